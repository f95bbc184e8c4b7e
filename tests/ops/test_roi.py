"""Pooling of regions against plain loops and torchvision's results, with its gradients."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.errors import UserError
from jaxcnn.ops import region_parts, roi, window_maxima
from jaxcnn.ops.roi import (
    map_to_features,
    multilevel_roi_align,
    multilevel_roi_max_pool,
    pyramid_level,
    response_geometry,
    roi_align,
    roi_max_pool,
    spatial_pyramid_pool,
)

TORCHVISION = np.load(pathlib.Path(__file__).with_name('torchvision_reference.npz'))
DETECTION = np.load(pathlib.Path(__file__).with_name('detection_reference.npz'))
FEATURES, REGIONS = TORCHVISION['features'], TORCHVISION['regions']


def max_by_hand(features, window, size):
    """Return the maxima of the bins of an integer window x0, y0, x1, y1."""
    (x0, y0, x1, y1), (h, w, channels) = window, features.shape
    pooled = np.zeros((size, size, channels), np.float32)
    for i, j in np.ndindex(size, size):
        top, bottom = y0 + math.floor(i * (y1 - y0) / size), y0 + math.ceil((i + 1) * (y1 - y0) / size)
        left, right = x0 + math.floor(j * (x1 - x0) / size), x0 + math.ceil((j + 1) * (x1 - x0) / size)
        bin_ = features[max(top, 0):min(bottom, h), max(left, 0):min(right, w)]
        if bin_.size:
            pooled[i, j] = bin_.max(axis=(0, 1))
    return pooled


def align_by_hand(features, box, size, samples):
    """Return RoIAlign with pixels that have their centres at half-integer coordinates."""
    x0, y0, x1, y1 = map(float, box)
    h, w, channels = features.shape
    pooled = np.zeros((size, size, channels))
    for i, j, m, n in np.ndindex(size, size, samples, samples):
        y, x = y0 + (i + (m + 0.5) / samples) * (y1 - y0) / size, x0 + (j + (n + 0.5) / samples) * (x1 - x0) / size
        y, x = min(max(y - 0.5, 0), h - 1), min(max(x - 0.5, 0), w - 1)
        for row, column in np.ndindex(h, w):
            weight = max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column))
            pooled[i, j] += weight * features[row, column] / samples ** 2
    return pooled


def value_and_gradient(pool, features=FEATURES):
    """Return the value of a function of the features, and the gradient of the sum of it times cos(0, 1, 2, ...)."""
    @jax.jit
    def run(features):
        y, vjp = jax.vjp(pool, features)
        return y, vjp(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))[0]
    return run(jax.tree.map(jnp.asarray, features))


@pytest.mark.parametrize('aligned', [False, True])
@pytest.mark.parametrize('sampling_ratio', [0, 1, 2, 3])
def test_roi_align_is_that_of_torchvision_with_its_gradient(sampling_ratio, aligned):
    y, gradient = value_and_gradient(lambda x: roi_align(x, REGIONS, 4, 1 / 16, sampling_ratio, aligned))
    name = f'roi_{sampling_ratio}_{aligned}'
    np.testing.assert_allclose(y, TORCHVISION[name], atol=2e-5)
    np.testing.assert_allclose(gradient, TORCHVISION[f'{name}_gradient'], atol=2e-5)


def test_roi_max_pool_is_that_of_torchvision_with_its_gradient():
    y, gradient = value_and_gradient(lambda x: roi_max_pool(x, REGIONS, 4, 1 / 16))
    np.testing.assert_array_equal(y, TORCHVISION['roi_max'])
    np.testing.assert_allclose(gradient, TORCHVISION['roi_max_gradient'], atol=1e-5)
    ties = np.maximum(np.round(FEATURES), 0)  # most bins have several maxima; the first one gets the gradient
    y, gradient = value_and_gradient(lambda x: roi_max_pool(x, REGIONS, 4, 1 / 16), ties)
    np.testing.assert_array_equal(y, TORCHVISION['roi_max_of_ties'])
    np.testing.assert_allclose(gradient, TORCHVISION['roi_max_of_ties_gradient'], atol=1e-5)


@pytest.mark.parametrize('samples', [2, 3])
def test_roi_align_is_that_of_plain_loops(samples):
    features, boxes = FEATURES[:5, :6], np.float32([[0, 0, 6, 5], [1.2, 0.7, 3.1, 4.4], [2.2, 2.2, 2.3, 2.4]])
    y = roi_align(features, boxes, 2, sampling_ratio=samples)
    np.testing.assert_allclose(y, [align_by_hand(features, box, 2, samples) for box in boxes], atol=1e-5)


def test_roi_align_from_several_levels_is_that_of_each_regions_level_and_of_torchvision():
    maps, regions = [DETECTION[f'level{i}'] for i in range(3)], DETECTION['regions']
    levels = pyramid_level(regions, 3, 5, 32)
    np.testing.assert_array_equal(levels.ravel() - 3, DETECTION['levels'])
    assert set(DETECTION['levels']) == {0, 1, 2}
    pooled = jax.jit(lambda: multilevel_roi_align(maps, regions, (8, 16, 32), 3, aligned=False, canonical_size=32))()
    np.testing.assert_allclose(pooled.reshape(40, 3, 3, 4), DETECTION['pooled'], atol=1e-5)

    def by_level(maps):
        return sum(jnp.where((levels == 3 + i)[..., None, None, None], roi_align(x, regions, 3, 1 / stride), 0)
                   for i, (x, stride) in enumerate(zip(maps, (8, 16, 32), strict=True)))
    expected = value_and_gradient(by_level, maps)
    actual = value_and_gradient(lambda x: multilevel_roi_align(x, regions, (8, 16, 32), 3, canonical_size=32), maps)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), actual, expected)
    extreme = np.float32([[0, 0, 0, 0], [9, 9, 3, 3], [0, 0, 1e9, 1e9], [np.nan] * 4])
    assert pyramid_level(extreme, 2, 5).tolist() == [2, 2, 5, 2]
    assert np.isfinite(multilevel_roi_align(maps, np.zeros((2, 1, 4)), (8, 16, 32), 3)).all()
    for strides, ratio in (((8, 16, 64), 2), ((8, 16), 2), ((8, 16, 32), 0)):
        with pytest.raises(UserError, match=r'strides such as 4, 8, 16|sampling_ratio'):
            multilevel_roi_align(maps, regions, strides, 3, ratio)


def test_max_pooling_from_several_levels_is_that_of_loops_on_each_regions_level():
    """All features are negative, so that a pixel of another level or of the padding would be larger."""
    rng = np.random.default_rng(0)
    maps = [rng.uniform(-9, -1, (1, *shape, 2)).astype(np.float32) for shape in ((15, 17), (8, 9), (4, 5))]
    begin, sides = rng.uniform(-10, 120, (40, 2)), np.exp(rng.uniform(0, 5, (40, 1))) * rng.uniform(0.7, 1.4, (40, 2))
    boxes = np.concatenate([begin, begin + sides], axis=1)[None]
    boxes = np.clip(boxes, 0, [136, 120, 136, 120]).astype(np.float32)
    levels = np.asarray(pyramid_level(boxes[0], 3, 5, 32)) - 3
    assert set(levels) == {0, 1, 2}
    expected, gradient = [], [np.zeros_like(x) for x in maps]
    factors = np.cos(np.arange(40 * 9 * 2)).reshape(40, 3, 3, 2)  # of the pooled values in `value_and_gradient`
    for level, box, factor in zip(levels, boxes[0], factors, strict=True):
        features = maps[level][0]
        x0, y0, x1, y1 = np.clip(np.floor(box / (8 << level) + 0.5), 0, [*features.shape[1::-1]] * 2).astype(int)
        expected.append(max_by_hand(features, (x0, y0, x1 + 1, y1 + 1), 3))
        for index in np.argwhere(expected[-1]):
            gradient[level] += factor[*index] * (maps[level] == expected[-1][*index])
    assert 0 < (np.asarray(expected) == 0).mean() < 0.5  # empty bins after the edges of their maps

    pooled, gradients = value_and_gradient(
        lambda maps: multilevel_roi_max_pool(maps, boxes, (8, 16, 32), 3, canonical_size=32), maps)
    np.testing.assert_array_equal(pooled[0], expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradients, gradient)


def test_the_mean_of_a_linear_function_is_its_value_at_the_centre_of_the_bin():
    rows, columns = np.mgrid[:9, :12] + 0.5
    features = jnp.asarray(np.stack([rows, columns], axis=-1), jnp.float32)
    y = roi_align(features, jnp.array([[16.0, 32, 80, 112]]), 2, 1 / 16)  # 1, 2, 5, 7 on the feature map
    np.testing.assert_allclose(y[0, :, 0, 0], [2 + 5 / 4, 7 - 5 / 4], rtol=1e-6)
    np.testing.assert_allclose(y[0, 0, :, 1], [2, 4], rtol=1e-6)


def test_results_do_not_depend_on_the_parts_in_which_they_are_computed(monkeypatch):
    """Neither on parts of the regions nor on groups of channels; and images may come in a batch."""
    features = jnp.asarray(np.random.default_rng(0).normal(size=(2, 11, 14, 6)), jnp.float32)
    boxes = jnp.asarray(np.stack([REGIONS, REGIONS[::-1]]))

    def run():
        def pool(features):
            y = (roi_align(features, boxes, 2, 1 / 16, 1), roi_align(features, boxes, 2, 1 / 16, 0),
                 spatial_pyramid_pool(features, boxes, 16, levels=(1, 2)))
            return sum(jnp.sum(a * jnp.cos(jnp.arange(a.size)).reshape(a.shape)) for a in y), y
        return jax.jit(jax.grad(pool, has_aux=True))(features)

    gradient, expected = run()
    single = jax.jit(lambda x: roi_align(x, boxes[1], 2, 1 / 16, 1))(features[1])
    np.testing.assert_allclose(expected[0][1], single, atol=1e-6)
    for module, name, value in ((region_parts, 'MAX_PART', 2 * 2 * 6 * 4), (roi, 'MAX_ROWS', 2 * 11 * 6 * 4),
                                (window_maxima, 'MAX_TABLES', 4 * 4 * 11 * 14 * 2)):
        monkeypatch.setattr(module, name, value)
    in_parts, actual = run()
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    np.testing.assert_allclose(in_parts, gradient, atol=1e-4)


def test_a_region_is_mapped_to_the_responses_whose_receptive_fields_have_their_centres_in_it():
    layers = [(7, 2, 3), (3, 2, 0), (5, 2, 2), (3, 2, 0)]
    stride, first_center = response_geometry(layers)
    assert (stride, first_center) == (16, 0.5 + 2 * 1 + 8 * 1)
    rng = np.random.default_rng(0)
    begin = rng.integers(0, 150, (40, 2))
    boxes = np.concatenate([begin, begin + rng.integers(17, 70, (40, 2))], axis=1)
    windows = np.asarray(map_to_features(boxes, (12, 14), stride, first_center))
    for (x0, y0, x1, y1), actual in zip(boxes, windows, strict=True):
        columns = [i for i in range(14) if x0 < first_center + 16 * i < x1] or [13]
        rows = [i for i in range(12) if y0 < first_center + 16 * i < y1] or [11]
        assert actual.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def test_the_mapping_is_that_of_the_appendix_of_spp_net():
    """The paper counts pixels from 0 at their centres: floor(x / S) + 1 and ceil(x / S) - 1."""
    boxes = np.array([[31, 48, 97, 128], [0, 0, 224, 224]])
    x0, y0, x1, y1 = np.moveaxis(np.asarray(map_to_features(boxes + 0.5, (99, 99), 16)), -1, 0)
    for first, edge in ((x0, boxes[:, 0]), (y0, boxes[:, 1])):
        np.testing.assert_array_equal(first, edge // 16 + 1)
    for end, edge in ((x1, boxes[:, 2]), (y1, boxes[:, 3])):
        np.testing.assert_array_equal(end - 1, -(-edge // 16) - 1)


def test_the_spatial_pyramid_is_that_of_plain_loops():
    boxes = np.concatenate([REGIONS, [[0, 0, 1, 1], [300, 300, 400, 400], [-50, -50, 60, 70]]]).astype(np.float32)
    pyramid = jax.jit(lambda x: spatial_pyramid_pool(x, boxes, 16))(FEATURES)
    windows = np.asarray(map_to_features(boxes, FEATURES.shape[:2], 16))
    assert pyramid.shape == (len(boxes), 50, 3)
    for window, actual in zip(windows.tolist(), pyramid, strict=True):
        assert 0 <= window[0] < window[2] <= 14
        assert 0 <= window[1] < window[3] <= 11
        expected = [max_by_hand(FEATURES, window, size).reshape(-1, 3) for size in (1, 2, 3, 6)]
        np.testing.assert_array_equal(actual, np.concatenate(expected))


def test_boxes_outside_the_image_and_no_boxes_have_results():
    outside = jnp.array([[500.0, 500, 600, 600], [-300, -300, -200, -200], [np.nan] * 4, [80, 80, 40, 40]])
    aligned, adaptive, pooled, pyramid, gradient = jax.jit(lambda x: (
        roi_align(x, outside, 3, 1 / 16, 1), roi_align(x, outside, 3, 1 / 16, 0), roi_max_pool(x, outside, 3, 1 / 16),
        spatial_pyramid_pool(x, outside, 16, levels=(1,)),
        jax.grad(lambda x: roi_max_pool(x, outside[:1], 3, 1 / 16).sum())(x)))(FEATURES)
    np.testing.assert_array_equal(aligned[:2], 0)
    np.testing.assert_array_equal(adaptive[jnp.array([0, 1, 3])], 0)  # an empty region has no samples
    assert np.isfinite(pooled).all()
    np.testing.assert_array_equal(pooled[0], 0)  # its bins are empty
    np.testing.assert_array_equal(gradient, 0)
    assert np.isfinite(pyramid).all()
    nothing = jnp.zeros((0, 4))
    shapes = jax.eval_shape(lambda: (roi_align(FEATURES, nothing, 3), roi_max_pool(FEATURES, nothing, 3),
                                     spatial_pyramid_pool(FEATURES, nothing, 16)))
    assert [x.shape for x in shapes] == [(0, 3, 3, 3), (0, 3, 3, 3), (0, 50, 3)]
    with pytest.raises(UserError, match='leading axes'):
        roi_align(FEATURES[None], jnp.zeros((2, 3, 4)), 3)


def test_results_have_the_type_of_the_features():
    for dtype in (jnp.bfloat16, jnp.float32):
        features = jnp.asarray(FEATURES, dtype)
        for pool in (roi_align, roi_max_pool, spatial_pyramid_pool):
            assert jax.eval_shape(lambda x, pool=pool: pool(x, REGIONS, 2, 0.5), features).dtype == dtype
    exact = roi_max_pool(jnp.asarray(FEATURES, jnp.bfloat16), REGIONS[:2], 1, 1 / 16)
    np.testing.assert_array_equal(exact, roi_max_pool(FEATURES, REGIONS[:2], 1, 1 / 16).astype(jnp.bfloat16))
