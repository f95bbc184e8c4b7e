"""Ops on values, against PIL, colorsys, scipy and NumPy."""

import colorsys
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage, stats

from jaxcnn.data import augment
from jaxcnn.data.augment import color
from jaxcnn.errors import UserError

KEYS = jax.random.split(jax.random.key(1), 400)


@pytest.fixture(scope='module')
def pixels(photo):
    return photo()


@pytest.fixture(scope='module')
def image(pixels):
    return np.float32(pixels / 255)


def is_even(drawn, low, high):
    return stats.kstest(drawn, stats.uniform(low, high - low).cdf).pvalue > 1e-4


ENHANCERS = {'brightness': ImageEnhance.Brightness, 'contrast': ImageEnhance.Contrast, 'saturation': ImageEnhance.Color,
             'sharpness': ImageEnhance.Sharpness}


def test_enhancers_are_those_of_pil_with_factors_drawn_evenly(pixels, image, under):
    ops = [augment.pipeline(f'{name}({most})').ops[0] for name in ENHANCERS for most in (0.4, 1.5)]
    factors = {most: np.asarray(jax.vmap(lambda key, most=most: jax.random.uniform(
        key, minval=max(0, 1 - most), maxval=1 + most))(KEYS)) for most in (0.4, 1.5)}
    assert is_even(factors[0.4], 0.6, 1.4)
    assert is_even(factors[1.5], 0, 2.5)
    found = iter(under(KEYS, image, *ops))
    for enhance in ENHANCERS.values():
        for most in (0.4, 1.5):
            for result, factor in zip(next(found)[:20], factors[most], strict=False):
                expected = np.asarray(enhance(Image.fromarray(pixels)).enhance(float(factor)), np.float32)
                assert np.abs(255 * result - expected).max() < 2.01 + factor  # PIL rounds twice, to whole levels


def test_the_hue_turns_as_colorsys_has_it(image, under):
    small = image[:6, :5]
    found, drawn = under(KEYS, small, color.hue(0.3), lambda key, _: jax.random.uniform(key, minval=-0.3, maxval=0.3))
    assert is_even(drawn, -0.3, 0.3)
    for result, turn in zip(found[:10], drawn, strict=False):
        hsv = [colorsys.rgb_to_hsv(*map(float, p)) for p in small.reshape(-1, 3)]
        expected = [colorsys.hsv_to_rgb((h + turn) % 1, s, v) for h, s, v in hsv]
        np.testing.assert_allclose(result.reshape(-1, 3), expected, atol=2e-5)


def test_jitter_is_the_four_in_each_order_alike(image, under):
    """Each result is that of one of the 24 orders, with factors from their intervals."""
    most = (0.4, 0.3, 0.5, 0.1)

    def drawn(key, _):
        order, amounts = jax.random.split(key)
        low = jnp.array([0.6, 0.7, 0.5, -0.1])
        return jax.random.permutation(order, 4), jax.random.uniform(
            amounts, (4,), minval=low, maxval=jnp.array([1.4, 1.3, 1.5, 0.1]))
    found, (orders, amounts) = under(KEYS, image, color.color_jitter(*most), drawn)
    for column, (low, high) in zip(amounts.T, [(0.6, 1.4), (0.7, 1.3), (0.5, 1.5), (-0.1, 0.1)], strict=True):
        assert is_even(column, low, high)
    counts = [int((orders == list(order)).all(1).sum()) for order in itertools.permutations(range(4))]
    assert stats.chisquare(counts).pvalue > 1e-4

    def blend(x, other, factor):
        return np.clip(other + factor * (x - other), 0, 1)

    def luma(x):
        return x @ np.array([0.299, 0.587, 0.114], np.float32)

    def turned(x, turn):
        hsv = [colorsys.rgb_to_hsv(*map(float, p)) for p in x.reshape(-1, 3)]
        return np.reshape([colorsys.hsv_to_rgb((h + turn) % 1, s, v) for h, s, v in hsv], x.shape)
    for result, order, factors in zip(found[:12], orders, amounts, strict=False):
        x = image
        for which in order:
            factor = factors[which]
            x = [lambda x, f: np.clip(x * f, 0, 1), lambda x, f: blend(x, luma(x).mean(), f),
                 lambda x, f: blend(x, luma(x)[..., None], f), turned][which](x, factor)
        np.testing.assert_allclose(result, x, atol=1e-4)


@pytest.mark.parametrize(('text', 'change', 'tolerance'), [
    ('grayscale', lambda x: ImageOps.grayscale(x).convert('RGB'), 1.01), ('invert', ImageOps.invert, 0.01),
    ('solarize(0.3)', lambda x: ImageOps.solarize(x, 77), 0.01), ('posterize(3)', lambda x: ImageOps.posterize(x, 3), 0.01),
    ('equalize', ImageOps.equalize, 0.01), ('autocontrast', ImageOps.autocontrast, 1.01),
])
def test_ops_of_a_table_are_those_of_pil_and_happen_as_often_as_asked(pixels, image, under, text, change, tolerance):
    expected = np.asarray(change(Image.fromarray(pixels)), np.float32)
    name, _, rest = text.rstrip(')').partition('(')
    chances = (0.0, 0.3, 1.0)
    found = under(KEYS, image, *[augment.pipeline(f'{name}({rest + ", " if rest else ""}p={p})') for p in chances])
    for p, results in zip(chances, found, strict=True):
        changed = np.array([np.abs(255 * x - expected).max() < tolerance for x in results])
        assert (changed | (results == image).all((1, 2, 3))).all()
        assert stats.binomtest(int(changed.sum()), len(KEYS), p).pvalue > 1e-4 if 0 < p < 1 else changed.mean() == p


@pytest.mark.parametrize('text', ['equalize(1)', 'autocontrast(1)', 'posterize(8, p=1)', 'contrast(0)', 'gaussian_blur(5)'])
def test_an_even_image_stays_as_it_is(text):
    even = np.full((9, 8, 3), np.float32(51 / 255))
    np.testing.assert_allclose(augment.pipeline(text)(KEYS[0], jnp.asarray(even)), even, atol=1e-6)


def test_blur_is_scipys_with_deviations_drawn_evenly(image, under):
    found, drawn = under(KEYS, image, color.gaussian_blur(7, (0.5, 3.0)),
                         lambda key, _: jax.random.uniform(key, minval=0.5, maxval=3.0))
    assert is_even(drawn, 0.5, 3.0)
    for result, sigma in zip(found[:10], drawn, strict=False):
        kernel = np.exp(-0.5 * (np.arange(-3, 4) / sigma) ** 2)
        expected = image
        for axis in (0, 1):
            expected = ndimage.correlate1d(expected, kernel / kernel.sum(), axis, mode='mirror')
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_colours_shift_along_the_principal_components(under):
    found, = under(jax.random.split(jax.random.key(2), 4000), np.full((2, 3, 3), 0.5, np.float32), color.channel_shift(0.1))
    assert (found == found[:, :1, :1]).all()
    directions, deviations = np.array(color.PCA_DIRECTIONS), np.array(color.PCA_DEVIATIONS)
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-3)
    projected = (found[:, 0, 0] - 0.5) @ directions / (0.1 * deviations)
    for column in projected.T:
        assert stats.kstest(column, 'norm').pvalue > 1e-4
    assert np.abs(np.corrcoef(projected.T) - np.eye(3)).max() < 0.08


def test_noise_has_its_deviation_and_its_part(under):
    even = np.full((20, 20, 3), 0.5, np.float32)
    noisy, spotted = under(KEYS[:50], even, color.gaussian_noise(0.05), color.salt_and_pepper(0.2))
    assert stats.kstest((noisy.ravel() - 0.5) / 0.05, 'norm').pvalue > 1e-4
    assert (spotted == spotted[..., :1]).all()
    counts = [int((spotted[..., 0] == value).sum()) for value in (0.0, 1.0, 0.5)]
    assert sum(counts) == 50 * 400
    assert stats.chisquare(counts, 50 * 400 * np.array([0.1, 0.1, 0.8])).pvalue > 1e-4


@pytest.mark.parametrize('text', ['saturation(0.5)', 'hue(0.5)', 'grayscale(1)'])
def test_a_grey_image_has_no_colour_to_change(image, text):
    np.testing.assert_allclose(augment.pipeline(text)(KEYS[0], jnp.asarray(image[..., :1])), image[..., :1])


@pytest.mark.parametrize(('text', 'channels', 'line'), [
    ('brightness(-1)', 3, 'brightness: most must be a number of at least 0, got -1'),
    ('hue(0.6)', 3, 'hue: most must be between 0 and 0.5, got 0.6'),
    ('color_jitter(hue=1)', 3, 'color_jitter: hue must be between 0 and 0.5, got 1'),
    ('posterize(9)', 3, 'posterize: bits must be between 1 and 8, got 9'),
    ('posterize(0)', 3, 'posterize: bits must be a whole number of at least 1, got 0'),
    ('gaussian_blur(4)', 3, 'gaussian_blur: size must be odd, got 4'),
    ('gaussian_blur(51)', 3, r'gaussian_blur\(51\): images have a side of 24 pixels'),
    ('channel_shift', 1, 'channel_shift: needs images of 3 channels, got 1'),
    ('grayscale', 2, 'grey: needs images of 3 channels, got 2'),
    ('salt_and_pepper(2)', 3, 'salt_and_pepper: part must be between 0 and 1, got 2'),
    ('gaussian_noise("much")', 3, "gaussian_noise: deviation must be a number of at least 0, got 'much'"),
])
def test_wrong_colour_is_told_in_one_line(text, channels, line):
    with pytest.raises(UserError, match=line) as error:
        augment.pipeline(text)(KEYS[0], jnp.zeros((24, 24, channels)))
    assert '\n' not in str(error.value)
