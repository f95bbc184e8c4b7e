"""Ops on values equal those of PIL, colorsys, SciPy and NumPy."""

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


def is_uniform(samples, low, high):
    return stats.kstest(samples, stats.uniform(low, high - low).cdf).pvalue > 1e-4


ENHANCERS = {'brightness': ImageEnhance.Brightness, 'contrast': ImageEnhance.Contrast, 'saturation': ImageEnhance.Color,
             'sharpness': ImageEnhance.Sharpness}


def test_enhancers_equal_pils_with_uniform_factors(pixels, image, apply_to_image):
    ranges = {0.4: (0.6, 1.4), 1.5: (0, 2.5)}  # of the factor by `max_change`
    ops = [augment.parse_pipeline(f'{name}({max_change})').ops[0] for name in ENHANCERS for max_change in ranges]
    factors = {}
    for max_change, (low, high) in ranges.items():
        factors[max_change] = np.asarray(jax.vmap(
            lambda key, low=low, high=high: jax.random.uniform(key, minval=low, maxval=high))(KEYS))
        assert is_uniform(factors[max_change], low, high)
    all_results = iter(apply_to_image(KEYS, image, *ops))
    for enhance in ENHANCERS.values():
        for max_change in ranges:
            for result, factor in zip(next(all_results)[:20], factors[max_change], strict=False):
                expected = np.asarray(enhance(Image.fromarray(pixels)).enhance(float(factor)), np.float32)
                assert np.abs(255 * result - expected).max() < 2.01 + factor  # PIL rounds twice, to whole levels


def test_hue_shifts_the_hue_of_colorsys(image, apply_to_image):
    small = image[:6, :5]
    results, shifts = apply_to_image(KEYS, small, color.hue(0.3),
                                     lambda key, _: jax.random.uniform(key, minval=-0.3, maxval=0.3))
    assert is_uniform(shifts, -0.3, 0.3)
    for result, shift in zip(results[:10], shifts, strict=False):
        hsv = [colorsys.rgb_to_hsv(*map(float, p)) for p in small.reshape(-1, 3)]
        expected = [colorsys.hsv_to_rgb((h + shift) % 1, s, v) for h, s, v in hsv]
        np.testing.assert_allclose(result.reshape(-1, 3), expected, atol=2e-5)


def test_color_jitter_applies_four_changes_in_a_uniform_order(image, apply_to_image):
    ranges = np.float32([(0.6, 1.4), (0.7, 1.3), (0.5, 1.5), (-0.1, 0.1)])

    def draw(key, _):
        order_key, amounts_key = jax.random.split(key)
        amounts = jax.random.uniform(amounts_key, (4,), minval=jnp.array(ranges[:, 0]), maxval=jnp.array(ranges[:, 1]))
        return jax.random.permutation(order_key, 4), amounts
    results, (orders, amounts) = apply_to_image(KEYS, image, color.color_jitter(0.4, 0.3, 0.5, 0.1), draw)
    for column, (low, high) in zip(amounts.T, ranges, strict=True):
        assert is_uniform(column, low, high)
    counts = [int((orders == list(order)).all(1).sum()) for order in itertools.permutations(range(4))]
    assert stats.chisquare(counts).pvalue > 1e-4

    def blend(x, other, factor):
        return np.clip(other + factor * (x - other), 0, 1)

    def luma(x):
        return x @ np.array([0.299, 0.587, 0.114], np.float32)

    def shift_hue(x, shift):
        hsv = [colorsys.rgb_to_hsv(*map(float, p)) for p in x.reshape(-1, 3)]
        return np.reshape([colorsys.hsv_to_rgb((h + shift) % 1, s, v) for h, s, v in hsv], x.shape)
    changes = [lambda x, factor: np.clip(x * factor, 0, 1), lambda x, factor: blend(x, luma(x).mean(), factor),
               lambda x, factor: blend(x, luma(x)[..., None], factor), shift_hue]
    for result, order, factors in zip(results[:12], orders, amounts, strict=False):
        x = image
        for index in order:
            x = changes[index](x, factors[index])
        np.testing.assert_allclose(result, x, atol=1e-4)


@pytest.mark.parametrize(('text', 'change', 'tolerance'), [
    ('grayscale', lambda x: ImageOps.grayscale(x).convert('RGB'), 1.01), ('invert', ImageOps.invert, 0.01),
    ('solarize(0.3)', lambda x: ImageOps.solarize(x, 77), 0.01), ('posterize(3)', lambda x: ImageOps.posterize(x, 3), 0.01),
    ('equalize', ImageOps.equalize, 0.01), ('autocontrast', ImageOps.autocontrast, 1.01),
])
def test_ops_equal_pils_and_are_applied_with_probability_p(pixels, image, apply_to_image, text, change, tolerance):
    expected = np.asarray(change(Image.fromarray(pixels)), np.float32)
    name, _, arguments = text.rstrip(')').partition('(')
    probabilities = (0.0, 0.3, 1.0)
    ops = [augment.parse_pipeline(f'{name}({arguments + ", " if arguments else ""}p={p})') for p in probabilities]
    for p, results in zip(probabilities, apply_to_image(KEYS, image, *ops), strict=True):
        changed = np.array([np.abs(255 * x - expected).max() < tolerance for x in results])
        assert (changed | (results == image).all((1, 2, 3))).all()
        assert stats.binomtest(int(changed.sum()), len(KEYS), p).pvalue > 1e-4 if 0 < p < 1 else changed.mean() == p


@pytest.mark.parametrize('text', ['equalize(1)', 'autocontrast(1)', 'posterize(8, p=1)', 'contrast(0)', 'gaussian_blur(5)'])
def test_a_constant_image_stays_unchanged(text):
    constant = np.full((9, 8, 3), np.float32(51 / 255))
    np.testing.assert_allclose(jax.jit(augment.parse_pipeline(text))(KEYS[0], constant), constant, atol=1e-6)


def test_blur_equals_scipys_with_uniform_standard_deviations(image, apply_to_image):
    results, stds = apply_to_image(KEYS, image, color.gaussian_blur(7, (0.5, 3.0)),
                                   lambda key, _: jax.random.uniform(key, minval=0.5, maxval=3.0))
    assert is_uniform(stds, 0.5, 3.0)
    for result, sigma in zip(results[:10], stds, strict=False):
        kernel = np.exp(-0.5 * (np.arange(-3, 4) / sigma) ** 2)
        expected = image
        for axis in (0, 1):
            expected = ndimage.correlate1d(expected, kernel / kernel.sum(), axis, mode='mirror')
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_channel_shift_adds_a_normal_colour_along_the_principal_components(apply_to_image):
    keys = jax.random.split(jax.random.key(2), 4000)
    results, = apply_to_image(keys, np.full((2, 3, 3), 0.5, np.float32), color.channel_shift(0.1))
    assert (results == results[:, :1, :1]).all()
    directions, stds = np.array(color.PCA_DIRECTIONS), np.array(color.PCA_STDS)
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-3)
    projected = (results[:, 0, 0] - 0.5) @ directions / (0.1 * stds)
    for column in projected.T:
        assert stats.kstest(column, 'norm').pvalue > 1e-4
    assert np.abs(np.corrcoef(projected.T) - np.eye(3)).max() < 0.08


def test_noise_has_the_distribution_of_its_arguments(apply_to_image):
    constant = np.full((20, 20, 3), 0.5, np.float32)
    noisy, spotted = apply_to_image(KEYS[:50], constant, color.gaussian_noise(0.05), color.salt_and_pepper(0.2))
    assert stats.kstest((noisy.ravel() - 0.5) / 0.05, 'norm').pvalue > 1e-4
    assert (spotted == spotted[..., :1]).all()
    counts = [int((spotted[..., 0] == value).sum()) for value in (0.0, 1.0, 0.5)]
    assert sum(counts) == 50 * 400
    assert stats.chisquare(counts, 50 * 400 * np.array([0.1, 0.1, 0.8])).pvalue > 1e-4


@pytest.mark.parametrize('text', ['saturation(0.5)', 'hue(0.5)', 'grayscale(1)'])
def test_saturation_and_hue_leave_a_grey_image_unchanged(image, text):
    np.testing.assert_allclose(jax.jit(augment.parse_pipeline(text))(KEYS[0], image[..., :1]), image[..., :1])


@pytest.mark.parametrize(('text', 'channels', 'line'), [
    ('brightness(-1)', 3, 'brightness.max_change: expected a number of at least 0, got -1'),
    ('hue(0.6)', 3, 'hue.max_change: expected a number between 0 and 0.5, got 0.6'),
    ('color_jitter(hue=1)', 3, 'color_jitter.hue: expected a number between 0 and 0.5, got 1'),
    ('posterize(9)', 3, 'posterize.bits: expected a number between 1 and 8, got 9'),
    ('posterize(0)', 3, 'posterize.bits: expected a whole number of at least 1, got 0'),
    ('gaussian_blur(4)', 3, 'gaussian_blur.size: expected an odd number, got 4'),
    ('gaussian_blur(51)', 3, r'gaussian_blur\(51\): images with a side of 24 pixels are too small'),
    ('channel_shift', 1, 'channel_shift: expected images of 3 channels, got 1'),
    ('grayscale', 2, 'luma: expected images of 3 channels, got 2'),
    ('salt_and_pepper(2)', 3, 'salt_and_pepper.fraction: expected a number between 0 and 1, got 2'),
    ('gaussian_noise("much")', 3, "gaussian_noise.std: expected a number of at least 0, got 'much'"),
    ('brightness(most=0.3)', 3, "unknown argument of augmentation brightness 'most'; known: max_change"),
])
def test_an_invalid_argument_is_reported_in_one_line(text, channels, line):
    with pytest.raises(UserError, match=line) as error:
        augment.parse_pipeline(text)(KEYS[0], jnp.zeros((24, 24, channels)))
    assert '\n' not in str(error.value)
