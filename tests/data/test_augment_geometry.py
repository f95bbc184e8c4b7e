"""Ops that move pixels equal those of PIL and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from jaxcnn.data import augment
from jaxcnn.data.augment import affine, geometry
from jaxcnn.errors import UserError
from jaxcnn.evaluation import crops as evaluation_crops

KEYS = jax.random.split(jax.random.key(1), 400)
PIL_MODES = {'bilinear': Image.Resampling.BILINEAR, 'nearest': Image.Resampling.NEAREST}


def apply_pil(image, change):
    """Return the image whose channels are changed by PIL, as floats."""
    planes = [np.asarray(change(Image.fromarray(np.ascontiguousarray(image[..., c]), 'F'))) for c in range(image.shape[-1])]
    return np.stack(planes, -1)


@pytest.fixture(scope='module')
def image(photo):
    return np.float32(photo() / 255)


def reference_matrix(shape, degrees, translate, scale, shear):
    """Return the inverse map as a product of 3x3 matrices in homogeneous coordinates."""
    def linear(a):
        return np.block([[np.asarray(a), np.zeros((2, 1))], [np.zeros((1, 2)), np.ones((1, 1))]])

    def translation(x, y):
        return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])
    a, (x, y) = np.deg2rad(degrees), np.tan(np.deg2rad(shear))
    centre = shape[1] / 2, shape[0] / 2
    rotation = linear([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
    shearing = linear([[1, 0], [y, 1]]) @ linear([[1, x], [0, 1]])
    about_origin = linear(scale * np.eye(2)) @ rotation @ shearing
    forward = translation(*translate) @ translation(*centre) @ about_origin @ translation(-centre[0], -centre[1])
    return np.linalg.inv(forward)[:2]


CASES = [(0, (0, 0), 1, (0, 0)), (30, (0, 0), 1, (0, 0)), (-100, (3.5, -2), 1, (0, 0)), (0, (0, 0), 0.6, (0, 0)),
         (0, (0, 0), 1, (20, 0)), (0, (0, 0), 1, (0, -30)), (12, (1, 2), 1.4, (10, 5))]


def test_affine_maps_equal_pils(image):
    @jax.jit
    def warp_image(amounts):
        matrices = jax.vmap(lambda d, t, s, h: affine.affine_matrix(image.shape, d, tuple(t), s, tuple(h)))(*amounts)
        return matrices, {mode: jax.vmap(lambda m, mode=mode: affine.warp(jnp.asarray(image), m, mode, 0.25))(matrices)
                          for mode in PIL_MODES}
    matrices, results = warp_image(tuple(np.array(column, np.float32) for column in zip(*CASES, strict=True)))
    for i, case in enumerate(CASES):
        matrix = reference_matrix(image.shape, *case)
        np.testing.assert_allclose(matrices[i], matrix, atol=2e-5)
        for mode, images in results.items():
            expected = apply_pil(image, lambda plane, mode=mode, matrix=matrix: plane.transform(
                plane.size, Image.Transform.AFFINE, matrix.ravel(), PIL_MODES[mode], fillcolor=0.25))
            differs = np.abs(images[i] - expected).max(-1) > 2e-4
            assert differs.mean() < 0.02, (case, mode)  # pixels whose coordinates are rounded in the other direction
            assert not np.allclose(images[i], image) or i == 0


def test_a_positive_rotation_is_counterclockwise(image):
    square = image[:20, :20]
    matrix = affine.affine_matrix(square.shape, 90.0)
    np.testing.assert_allclose(affine.warp(jnp.asarray(square), matrix, 'bilinear'), np.rot90(square), atol=1e-5)


def test_affine_ops_draw_uniform_amounts(image, apply_to_image, monkeypatch):
    """The ops are traced with functions that return the amounts instead of the warped image."""
    def stack_amounts(shape, *amounts):
        flat = [x for a in amounts for x in (a if isinstance(a, tuple) else (a,))]
        return jnp.stack([jnp.asarray(x, jnp.float32).reshape(()) for x in flat])
    monkeypatch.setattr(affine, 'affine_matrix', stack_amounts)
    monkeypatch.setattr(affine, 'warp', lambda image, matrix, interpolation, fill: matrix)
    monkeypatch.setattr(affine, 'invert', lambda matrix: matrix)
    ops = {'degrees': affine.rotate(30), 'translation': affine.translate((0.25, 0.5)),
           'factor': affine.scale((0.5, 2.0)), 'shear': affine.shear((10, 20)),
           'all': affine.affine(180, 0.1, (0.9, 1.0), 5)}
    amounts = dict(zip(ops, apply_to_image(KEYS, image, *ops.values()), strict=True))
    height, width = image.shape[:2]
    # of rotation, translation along x and y, scale, shear along x and y: a range, or a constant
    expected = {
        'degrees': [(-30, 30), 0, 0, 1, 0, 0],
        'translation': [0, (-width / 4, width / 4), (-height / 2, height / 2), 1, 0, 0],
        'factor': [0, 0, 0, (0.5, 2.0), 0, 0], 'shear': [0, 0, 0, 1, (-10, 10), (-20, 20)],
        'all': [(-180, 180), (-width / 10, width / 10), (-height / 10, height / 10), (0.9, 1.0), (-5, 5), (-5, 5)]}
    for name, limits in expected.items():
        for samples, limit in zip(amounts[name].T, limits, strict=True):
            if isinstance(limit, tuple):
                assert stats.kstest(samples, stats.uniform(limit[0], limit[1] - limit[0]).cdf).pvalue > 1e-4, name
            else:
                np.testing.assert_allclose(samples, limit, atol=1e-6)


def test_resizing_equals_pils(image):
    for size in (8, 20, 31):
        expected = apply_pil(image, lambda plane, size=size: plane.resize((size, size), Image.Resampling.BILINEAR))
        np.testing.assert_allclose(geometry.resize(size)(KEYS[0], jnp.asarray(image)), expected, atol=1e-5)


def test_random_resized_crop_resizes_the_drawn_rectangle_as_pil_does(image, apply_to_image):
    scale, ratio, size = (0.08, 1.0), (3 / 4, 4 / 3), 12
    crops, rectangles = apply_to_image(
        KEYS[:60], image, geometry.random_resized_crop(size),
        lambda key, x: geometry.draw_rectangle(key, x.shape, scale, ratio, allow_full_image=True))
    for crop, top, left, height, width in zip(crops, *rectangles, strict=True):
        box = image[top:top + height, left:left + width]
        assert box.shape == (height, width, 3)
        expected = apply_pil(box, lambda plane: plane.resize((size, size), Image.Resampling.BILINEAR))
        np.testing.assert_allclose(crop, expected, atol=2e-5)


def test_rectangles_have_uniform_areas_log_ratios_and_positions(apply_to_image):
    """The image is so large that rounding is negligible and every draw fits."""
    draws = [lambda key, x, full=full: geometry.draw_rectangle(key, (4000, 4000), (0.1, 0.5), (0.5, 2.0), full)
             for full in (True, False)]
    keys = jax.random.split(jax.random.key(2), 1000)
    for top, left, height, width in apply_to_image(keys, np.zeros(1), *draws):
        assert stats.kstest(height * width / 16e6, stats.uniform(0.1, 0.4).cdf).pvalue > 1e-4
        assert stats.kstest(np.log(width / height), stats.uniform(-np.log(2), 2 * np.log(2)).cdf).pvalue > 1e-4
        for position, side in ((top, height), (left, width)):
            assert stats.kstest(position / (4000 - side), 'uniform').pvalue > 1e-4


def test_if_no_rectangle_fits_the_largest_permitted_or_an_empty_one_is_returned():
    cases = [((10, 40), (3 / 4, 4 / 3), (0, 13, 10, 13)), ((40, 10), (3 / 4, 4 / 3), (13, 0, 13, 10)),
              ((40, 30), (3 / 4, 4 / 3), (0, 0, 40, 30))]
    for shape, ratio, expected in cases:
        rectangle = geometry.draw_rectangle(KEYS[0], shape, (1.0, 1.0), ratio, allow_full_image=True)
        assert tuple(map(int, rectangle)) == expected
        _, _, height, width = geometry.draw_rectangle(KEYS[0], shape, (1.0, 1.0), ratio, allow_full_image=False)
        assert (height, width) == (0, 0)


def test_scale_jitter_crops_the_resized_image(image, apply_to_image):
    square = image[:20, :20]
    op = geometry.scale_jitter(16, (16, 40))
    keys = KEYS[:100]
    sides = np.asarray(jax.vmap(lambda key: jax.random.randint(jax.random.split(key)[0], (), 16, 41))(keys))
    crops, = apply_to_image(keys, square, op)
    for crop, side in zip(crops[:30], sides, strict=False):
        resized = apply_pil(square, lambda plane, side=side: plane.resize((side, side), Image.Resampling.BILINEAR))
        windows = np.lib.stride_tricks.sliding_window_view(resized, (16, 16), (0, 1)).transpose(0, 1, 3, 4, 2)
        assert np.abs(windows - crop).max((2, 3, 4)).min() < 2e-5
    assert set(sides) >= set(range(18, 38))


@pytest.mark.parametrize('factor', [0.5, 1.0, 2.5])
def test_large_scale_jitter_pads_or_crops_the_resized_image(image, apply_to_image, factor):
    height, width = (round(factor * side) for side in image.shape[:2])
    resized = apply_pil(image, lambda plane: plane.resize((width, height), Image.Resampling.BILINEAR))
    results, = apply_to_image(KEYS[:20], image, geometry.large_scale_jitter((factor, factor), 0.25).apply)
    positions = results.matrix[:, ::-1, 2].astype(int)  # of the upper left corner of the resized image: row, column
    assert len(np.unique(positions, axis=0)) > 10 or factor == 1
    for result, (top, left) in zip(results.image, positions, strict=True):
        assert min(top, left, 0) >= min(image.shape[0] - height, image.shape[1] - width, 0)
        canvas = np.full((200, 200, 3), 0.25, np.float32)  # its first 100 rows and columns are beyond the result
        canvas[100 + top:, 100 + left:][:height, :width] = resized
        np.testing.assert_allclose(result, canvas[100:, 100:][:image.shape[0], :image.shape[1]], atol=2e-5)


def test_random_crops_have_uniform_positions_and_center_crops_are_central(image, apply_to_image):
    keys = jax.random.split(jax.random.key(3), 1500)
    crops, = apply_to_image(keys, image, geometry.random_crop(17))
    windows = np.lib.stride_tricks.sliding_window_view(image, (17, 17), (0, 1)).transpose(0, 1, 3, 4, 2)
    windows = windows.reshape(-1, 17, 17, 3)
    positions = [int(np.flatnonzero((windows == crop).all((1, 2, 3)))[0]) for crop in crops]
    assert stats.chisquare(np.bincount(positions, minlength=32)).pvalue > 1e-4
    for size in (17, 19, 20):  # of 24 x 20 pixels, as in torchvision: int(round(margin / 2))
        top, left = round((24 - size) / 2.0), round((20 - size) / 2.0)
        expected = image[top:top + size, left:left + size]
        np.testing.assert_array_equal(geometry.center_crop(size)(KEYS[0], jnp.asarray(image)), expected)
        np.testing.assert_array_equal(evaluation_crops.center_crop(image, (size, size))[0], expected)


def test_flip_ud_mirrors_rows_and_pad_pads(image, apply_to_image):
    flipped, padded = apply_to_image(KEYS, image, geometry.flip_ud(0.3), geometry.pad(2, 'reflect'))
    mirrored = (flipped == image[::-1]).all((1, 2, 3))
    assert (mirrored | (flipped == image).all((1, 2, 3))).all()
    assert stats.binomtest(int(mirrored.sum()), len(KEYS), 0.3).pvalue > 1e-4
    np.testing.assert_array_equal(padded[0], np.pad(image, ((2, 2), (2, 2), (0, 0)), 'reflect'))


@pytest.mark.parametrize(('text', 'line'), [
    ('random_crop(25)', r'random_crop\(25\): images of 24 x 20 are smaller than 25 x 25'),
    ('center_crop(21)', r'center_crop\(21\): images of 24 x 20 are smaller than 21 x 21'),
    ('random_resized_crop(0)', 'random_resized_crop.size: expected a whole number of at least 1, got 0'),
    ('random_resized_crop(8, (0.5, 0.1))', r'crop\.scale: expected \(low, high\) with low at most high, got \(0.5, 0.1\)'),
    ('random_resized_crop(8, 0.5)', r'random_resized_crop\.scale: expected two numbers \(low, high\), got 0.5'),
    ('random_resized_crop(8, (0.5, 2))', r'random_resized_crop\.scale\[1\]: expected a number between 1e-06 and 1, got 2'),
    ('scale_jitter(224, (100, 300))', r'scale_jitter\.shorter\[0\]: expected a number of at least 224, got 100'),
    ('large_scale_jitter((0, 2))', r'large_scale_jitter\.scale\[0\]: expected a number of at least 0.01, got 0'),
    ('rotate(200)', 'rotate.degrees: expected a number between 0 and 180, got 200'),
    ('rotate(20, "cubic")', "unknown interpolation of rotate 'cubic'; known: bilinear, nearest"),
    ('translate((0.1, 0.2, 0.3))', 'translate.fraction: expected a number, or two along x and y'),
    ('shear(90)', 'shear.degrees: expected a number between 0 and 89, got 90'),
    ('scale(2)', r'scale\.factor: expected two numbers \(low, high\), got 2'),
    ('resize(-1)', 'resize.size: expected a whole number of at least 1, got -1'),
    ('pad(2, "black")', "unknown mode of pad 'black'"),
])
def test_an_invalid_argument_is_reported_in_one_line(text, line, image):
    with pytest.raises(UserError, match=line) as error:
        augment.parse_pipeline(text)(KEYS[0], jnp.asarray(image))
    assert '\n' not in str(error.value)
