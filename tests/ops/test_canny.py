"""Non-maximum suppression of gradient magnitudes against plain loops, OpenCV and answers known by hand."""

import math

import jax
import numpy as np
import pytest

from jaxcnn.ops.canny import thin_edges


def smooth_gradients(seed=0, shape=(40, 37)):
    """Return the integer derivatives of a smooth random image."""
    rng = np.random.default_rng(seed)
    image = np.cumsum(np.cumsum(rng.normal(size=shape), axis=0), axis=1)
    image = np.pad(np.round(255 * (image - image.min()) / np.ptp(image)), 1, mode='edge')
    smooth = image[:-2] + 2 * image[1:-1] + image[2:]
    dx = smooth[:, 2:] - smooth[:, :-2]
    smooth = image[:, :-2] + 2 * image[:, 1:-1] + image[:, 2:]
    return dx.astype(np.int16), (smooth[2:] - smooth[:-2]).astype(np.int16)


def thin_by_hand(dx, dy):
    """Return which pixels are greater than the magnitude, interpolated between pixels, where their gradient leads."""
    magnitude = np.pad(np.hypot(dx.astype(float), dy), 1)
    maxima = np.zeros(dx.shape, bool)

    def at(y, x):  # on a line between two pixels
        i, j = math.floor(y), math.floor(x)
        rows, columns = ((i, 1 - (y - i)), (i + 1, y - i)), ((j, 1 - (x - j)), (j + 1, x - j))
        return sum(a * b * magnitude[row, column] for row, a in rows for column, b in columns if a * b > 0)

    for (i, j), gx in np.ndenumerate(dx.astype(float)):
        gy, center = float(dy[i, j]), magnitude[i + 1, j + 1]
        if center == 0:
            continue
        steep = abs(gy) > abs(gx)
        step = np.array([gy, gx]) / (gy if steep else gx)  # down, or to the right
        before, after = (at(*(np.array([i + 1, j + 1]) + sign * step)) for sign in (-1, 1))
        maxima[i, j] = center > before + 1e-4 and center > after - 1e-4
    return maxima


def test_maxima_with_interpolation_are_those_of_plain_loops():
    dx, dy = smooth_gradients()
    thin = np.asarray(jax.jit(thin_edges)(dx, dy))
    expected = thin_by_hand(dx, dy)
    assert 100 < expected.sum() < dx.size / 2
    np.testing.assert_array_equal(thin > 0, expected)
    np.testing.assert_allclose(thin[expected], np.hypot(dx.astype(float), dy)[expected], rtol=1e-6)


def test_maxima_without_interpolation_are_those_of_opencv():
    cv2 = pytest.importorskip('cv2')
    for seed in range(4):
        dx, dy = smooth_gradients(seed, (120, 90))
        expected = cv2.Canny(dx, dy, 0, 0, L2gradient=True) > 0  # without thresholds all maxima are edges
        np.testing.assert_array_equal(np.asarray(thin_edges(dx, dy, interpolate=False)) > 0, expected)


def test_directions_along_rows_columns_and_diagonals_are_those_of_opencv():
    """There both use the same two neighbours."""
    cv2 = pytest.importorskip('cv2')
    rng = np.random.default_rng(0)
    direction = np.array([(1, 0), (0, 1), (1, 1), (1, -1)])[rng.integers(0, 4, (60, 50))]
    strength = rng.permutation(np.arange(3000) - 1500).reshape(60, 50, 1)
    dx, dy = np.moveaxis((direction * strength).astype(np.int16), -1, 0)
    expected = cv2.Canny(dx, dy, 0, 0, L2gradient=True) > 0
    assert 500 < expected.sum() < 2500
    for interpolate in (False, True):
        np.testing.assert_array_equal(np.asarray(thin_edges(dx, dy, interpolate)) > 0, expected)


@pytest.mark.parametrize('interpolate', [False, True])
def test_an_edge_of_equal_pixels_is_one_pixel_wide(interpolate):
    dx = np.zeros((2, 5, 8), np.float32)
    dx[:, :, 3:5] = [[[3]], [[-3]]]  # two pixels wide, in an image and in its negative
    thin = np.asarray(thin_edges(dx, np.zeros_like(dx), interpolate))
    np.testing.assert_array_equal(np.nonzero(thin.any(axis=1)), [[0, 1], [3, 3]])
    np.testing.assert_array_equal(thin[:, :, 3], 3)
    turned = np.asarray(thin_edges(np.zeros((8, 5)), dx[0].T, interpolate))
    np.testing.assert_array_equal(turned, thin[0].T)
    assert not thin_edges(np.zeros((4, 4)), np.zeros((4, 4)), interpolate).any()
