"""Test-time augmentation equals the evaluation of airbench, written in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.data import tta
from jaxcnn.errors import UserError

IMAGES = np.random.default_rng(0).uniform(size=(3, 8, 10, 2)).astype(np.float32)


def logits(x):
    """Return the logits of a network that is not invariant to flips and shifts."""
    weights = np.random.default_rng(1).normal(size=(8, 10, 2, 4))
    return np.tensordot(np.tanh(np.asarray(x) - 0.5), weights, 3)


def mean_logits(text):
    return sum(weight * logits(x) for weight, x in tta.parse(text)(jnp.asarray(IMAGES)))


def flip_logits(x):
    """Return the mean logits of images and their mirror images."""
    return 0.5 * logits(x) + 0.5 * logits(x[:, :, ::-1])


def test_flip_averages_over_the_image_and_its_mirror_image():
    np.testing.assert_allclose(mean_logits('flip'), flip_logits(IMAGES), rtol=1e-5)


@pytest.mark.parametrize('pixels', [1, 2])
def test_flip_shift_equals_airbench(pixels):
    padded = np.pad(IMAGES, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), mode='reflect')
    shifted = [padded[:, :8, :10], padded[:, 2 * pixels:2 * pixels + 8, 2 * pixels:2 * pixels + 10]]
    expected = 0.5 * flip_logits(IMAGES) + 0.5 * np.mean([flip_logits(x) for x in shifted], 0)
    np.testing.assert_allclose(mean_logits(f'flip_shift({pixels})'), expected, rtol=1e-5)
    assert np.abs(mean_logits('flip') - expected).max() > 1e-2


@pytest.mark.parametrize('text', tta.names()[1:])
def test_weights_add_up_to_1(text):
    assert sum(weight for weight, _ in tta.parse(text)(jnp.asarray(IMAGES))) == 1


@pytest.mark.parametrize(('text', 'line'), [
    ('flips', r"unknown test-time augmentation 'flips'; nearest: flip"),
    ('flip(2)', 'test-time augmentation flip: too many'),
    ('flip_shift(0)', 'flip_shift.pixels: expected a whole number of at least 1, got 0'),
    ('flip_shift(pixel=1)', "unknown argument of test-time augmentation flip_shift 'pixel'; nearest: pixels"),
])
def test_an_invalid_string_is_reported(text, line):
    with pytest.raises(UserError, match=line):
        tta.parse(text)


def test_a_shift_as_large_as_the_image_is_refused():
    with pytest.raises(UserError, match=r'flip_shift\(8\): images of 8 x 10 are too small'):
        tta.parse('flip_shift(8)')(jnp.asarray(IMAGES))


def test_none_is_no_augmentation():
    assert tta.parse('none') is None
