"""Ops that move pixels, against PIL and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from jaxcnn.data import augment
from jaxcnn.data.augment import geometry
from jaxcnn.errors import UserError

KEYS = jax.random.split(jax.random.key(1), 400)
PIL_MODES = {'bilinear': Image.Resampling.BILINEAR, 'nearest': Image.Resampling.NEAREST}


def by_channel(image, change):
    """What PIL makes of each channel, as floats."""
    planes = [np.asarray(change(Image.fromarray(np.ascontiguousarray(image[..., c]), 'F'))) for c in range(image.shape[-1])]
    return np.stack(planes, -1)


@pytest.fixture(scope='module')
def image(photo):
    return np.float32(photo() / 255)


def plain_matrix(shape, degrees, translate, scale, shear):
    """The inverse map, by plain matrices of three."""
    def linear(a):
        return np.block([[np.asarray(a), np.zeros((2, 1))], [np.zeros((1, 2)), np.ones((1, 1))]])

    def move(x, y):
        return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])
    a, (x, y) = np.deg2rad(degrees), np.tan(np.deg2rad(shear))
    middle = shape[1] / 2, shape[0] / 2
    turn = linear([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
    sheared = linear([[1, 0], [y, 1]]) @ linear([[1, x], [0, 1]])
    forward = move(*translate) @ move(*middle) @ linear(scale * np.eye(2)) @ turn @ sheared @ move(-middle[0], -middle[1])
    return np.linalg.inv(forward)[:2]


CASES = [(0, (0, 0), 1, (0, 0)), (30, (0, 0), 1, (0, 0)), (-100, (3.5, -2), 1, (0, 0)), (0, (0, 0), 0.6, (0, 0)),
         (0, (0, 0), 1, (20, 0)), (0, (0, 0), 1, (0, -30)), (12, (1, 2), 1.4, (10, 5))]


def test_affine_maps_are_those_of_pil(image):
    @jax.jit
    def warped(amounts):
        matrices = jax.vmap(lambda d, t, s, h: geometry.affine_matrix(image.shape, d, tuple(t), s, tuple(h)))(*amounts)
        return matrices, {mode: jax.vmap(lambda m, mode=mode: geometry.warp(jnp.asarray(image), m, mode, 0.25))(matrices)
                          for mode in PIL_MODES}
    matrices, results = warped(tuple(np.array(column, np.float32) for column in zip(*CASES, strict=True)))
    for i, case in enumerate(CASES):
        matrix = plain_matrix(image.shape, *case)
        np.testing.assert_allclose(matrices[i], matrix, atol=2e-5)
        for mode, found in results.items():
            expected = by_channel(image, lambda plane, mode=mode, matrix=matrix: plane.transform(
                plane.size, Image.Transform.AFFINE, matrix.ravel(), PIL_MODES[mode], fillcolor=0.25))
            other = np.abs(found[i] - expected).max(-1) > 2e-4
            assert other.mean() < 0.02, (case, mode)  # pixels whose place rounds the other way
            assert not np.allclose(found[i], image) or i == 0


def test_a_positive_turn_is_counterclockwise_as_in_pil(image):
    square = image[:20, :20]
    matrix = geometry.affine_matrix(square.shape, 90.0)
    np.testing.assert_allclose(geometry.warp(jnp.asarray(square), matrix, 'bilinear'), np.rot90(square), atol=1e-5)


def test_affine_draws_each_amount_evenly_and_applies_them(image, under, monkeypatch):
    def recorded(shape, *amounts):
        flat = [x for a in amounts for x in (a if isinstance(a, tuple) else (a,))]
        return jnp.stack([jnp.asarray(x, jnp.float32).reshape(()) for x in flat])
    monkeypatch.setattr(geometry, 'affine_matrix', recorded)
    monkeypatch.setattr(geometry, 'warp', lambda image, matrix, interpolation, fill: matrix)
    ops = {'degrees': geometry.rotate(30), 'move': geometry.translate((0.25, 0.5)), 'factor': geometry.scale((0.5, 2.0)),
           'shear': geometry.shear((10, 20)), 'all': geometry.affine(180, 0.1, (0.9, 1.0), 5)}
    seen = dict(zip(ops, under(KEYS, image, *ops.values()), strict=True))
    high, wide = image.shape[:2]
    spans = {'degrees': [(-30, 30), 0, 0, 1, 0, 0], 'move': [0, (-wide / 4, wide / 4), (-high / 2, high / 2), 1, 0, 0],
             'factor': [0, 0, 0, (0.5, 2.0), 0, 0], 'shear': [0, 0, 0, 1, (-10, 10), (-20, 20)],
             'all': [(-180, 180), (-wide / 10, wide / 10), (-high / 10, high / 10), (0.9, 1.0), (-5, 5), (-5, 5)]}
    for name, columns in spans.items():
        for drawn, span in zip(seen[name].T, columns, strict=True):
            if isinstance(span, tuple):
                assert stats.kstest(drawn, stats.uniform(span[0], span[1] - span[0]).cdf).pvalue > 1e-4, name
            else:
                np.testing.assert_allclose(drawn, span, atol=1e-6)


def test_resizing_is_pils(image):
    for size in (8, 20, 31):
        expected = by_channel(image, lambda plane, size=size: plane.resize((size, size), Image.Resampling.BILINEAR))
        np.testing.assert_allclose(geometry.resize(size)(KEYS[0], jnp.asarray(image)), expected, atol=1e-5)


def test_a_resized_crop_is_the_rectangle_that_was_drawn_as_pil_resizes_it(image, under):
    scale, ratio, size = (0.08, 1.0), (3 / 4, 4 / 3), 12
    crops, places = under(KEYS[:60], image, geometry.random_resized_crop(size), lambda key, x: geometry.drawn_rectangle(
        key, x.shape, scale, ratio, whole_image=True))
    for crop, top, left, height, width in zip(crops, *places, strict=True):
        box = image[top:top + height, left:left + width]
        assert box.shape == (height, width, 3)
        expected = by_channel(box, lambda plane: plane.resize((size, size), Image.Resampling.BILINEAR))
        np.testing.assert_allclose(crop, expected, atol=2e-5)


def test_rectangles_have_even_areas_and_log_ratios_at_even_places(under):
    """On an image so large that rounding is nothing and every try fits."""
    draw = [lambda key, x, whole=whole: geometry.drawn_rectangle(key, (4000, 4000), (0.1, 0.5), (0.5, 2.0), whole)
            for whole in (True, False)]
    keys = jax.random.split(jax.random.key(2), 1000)
    for top, left, height, width in under(keys, np.zeros(1), *draw):
        assert stats.kstest(height * width / 16e6, stats.uniform(0.1, 0.4).cdf).pvalue > 1e-4
        assert stats.kstest(np.log(width / height), stats.uniform(-np.log(2), 2 * np.log(2)).cdf).pvalue > 1e-4
        for place, side in ((top, height), (left, width)):
            assert stats.kstest(place / (4000 - side), 'uniform').pvalue > 1e-4


def test_where_no_rectangle_fits_the_largest_permitted_one_is_taken_or_none(under):
    shapes = [((10, 40), (3 / 4, 4 / 3), (0, 13, 10, 13)), ((40, 10), (3 / 4, 4 / 3), (13, 0, 13, 10)),
              ((40, 30), (3 / 4, 4 / 3), (0, 0, 40, 30))]
    for shape, ratio, expected in shapes:
        found = geometry.drawn_rectangle(KEYS[0], shape, (1.0, 1.0), ratio, whole_image=True)
        assert tuple(map(int, found)) == expected
        assert tuple(map(int, geometry.drawn_rectangle(KEYS[0], shape, (1.0, 1.0), ratio, whole_image=False)))[2:] == (0, 0)


def test_scale_jitter_is_a_crop_of_the_resized_image(image, under, monkeypatch):
    square = image[:20, :20]
    op = geometry.scale_jitter(16, (16, 40))
    keys = KEYS[:100]
    sides = np.asarray(jax.vmap(lambda key: jax.random.randint(jax.random.split(key)[0], (), 16, 41))(keys))
    found, = under(keys, square, op)
    for crop, side in zip(found[:30], sides, strict=False):
        whole = by_channel(square, lambda plane, side=side: plane.resize((side, side), Image.Resampling.BILINEAR))
        windows = np.lib.stride_tricks.sliding_window_view(whole, (16, 16), (0, 1)).transpose(0, 1, 3, 4, 2)
        assert np.abs(windows - crop).max((2, 3, 4)).min() < 2e-5
    assert set(sides) >= set(range(18, 38))


def test_random_crops_are_at_every_place_alike_and_central_ones_in_the_middle(image, under):
    keys = jax.random.split(jax.random.key(3), 1500)
    found, = under(keys, image, geometry.random_crop(17))
    windows = np.lib.stride_tricks.sliding_window_view(image, (17, 17), (0, 1)).transpose(0, 1, 3, 4, 2)
    windows = windows.reshape(-1, 17, 17, 3)
    places = [int(np.flatnonzero((windows == crop).all((1, 2, 3)))[0]) for crop in found]
    assert stats.chisquare(np.bincount(places, minlength=32)).pvalue > 1e-4
    np.testing.assert_array_equal(geometry.center_crop(17)(KEYS[0], jnp.asarray(image)), image[3:20, 1:18])


def test_upside_down_and_framed(image, under):
    flipped, framed = under(KEYS, image, geometry.flip_ud(0.3), geometry.pad(2, 'reflect'))
    turned = (flipped == image[::-1]).all((1, 2, 3))
    assert (turned | (flipped == image).all((1, 2, 3))).all()
    assert stats.binomtest(int(turned.sum()), len(KEYS), 0.3).pvalue > 1e-4
    np.testing.assert_array_equal(framed[0], np.pad(image, ((2, 2), (2, 2), (0, 0)), 'reflect'))


@pytest.mark.parametrize(('text', 'line'), [
    ('random_crop(25)', r'random_crop\(25\): images are 24 x 20'),
    ('center_crop(21)', r'center_crop\(21\): images are 24 x 20'),
    ('random_resized_crop(0)', 'random_resized_crop: size must be a whole number of at least 1, got 0'),
    ('random_resized_crop(8, (0.5, 0.1))', r'scale must not begin above its end, got \(0.5, 0.1\)'),
    ('random_resized_crop(8, 0.5)', r'scale must be two numbers \(least, most\), got 0.5'),
    ('random_resized_crop(8, (0.5, 2))', r'scale\[1\] must be between 1e-06 and 1, got 2'),
    ('scale_jitter(224, (100, 300))', r'scale_jitter: shorter\[0\] must be a number of at least 224, got 100'),
    ('rotate(200)', 'degrees must be between 0 and 180, got 200'),
    ('rotate(20, "cubic")', "unknown interpolation of rotate 'cubic'; known: bilinear, nearest"),
    ('translate((0.1, 0.2, 0.3))', 'translate must be a number or two, along x and y'),
    ('shear(90)', 'shear must be between 0 and 89, got 90'),
    ('scale(2)', r'scale must be two numbers'),
    ('resize(-1)', 'resize: size must be a whole number of at least 1, got -1'),
    ('pad(2, "black")', "unknown mode of pad 'black'"),
])
def test_wrong_geometry_is_told_in_one_line(text, line, image):
    with pytest.raises(UserError, match=line) as error:
        augment.pipeline(text)(KEYS[0], jnp.asarray(image))
    assert '\n' not in str(error.value)
