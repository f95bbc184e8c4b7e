"""Whitening filters: their outputs over the images' patches are uncorrelated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import models
from jaxcnn.config import WhitenConfig
from jaxcnn.errors import UserError
from jaxcnn.training import whiten


@pytest.fixture(scope='module')
def images():
    """Images whose neighbouring pixels and channels are correlated, as in photographs."""
    noise = np.random.default_rng(0).normal(size=(60, 14, 12, 3))
    smooth = noise + np.roll(noise, 1, 1) + 0.7 * np.roll(noise, 1, 2)
    return (smooth @ [[1, 0.5, 0.3], [0.2, 1, 0.4], [0.1, 0.3, 1]]).astype(np.float32)


def outputs(images, kernel):
    return np.asarray(jax.lax.conv_general_dilated(
        images, kernel, (1, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'), precision='highest'))


def test_outputs_are_white_and_followed_by_their_negatives(images):
    kernel = whiten.filters(images, 2, 2, 24, 1e-6)
    assert kernel.shape == (2, 2, 3, 24)
    np.testing.assert_array_equal(kernel[..., 12:], -kernel[..., :12])
    filtered = outputs(images, kernel)[..., :12].reshape(-1, 12)
    np.testing.assert_allclose(filtered.T @ filtered / len(filtered), np.eye(12), atol=1e-3)


def test_epsilon_reduces_outputs_of_small_variance(images):
    filtered = outputs(images, whiten.filters(images, 2, 2, 24, 0.5))[..., :12].reshape(-1, 12)
    moments = filtered.T @ filtered / len(filtered)
    patches = outputs(images, np.eye(12).reshape(2, 2, 3, 12)).reshape(-1, 12)
    eigenvalues = np.sort(np.linalg.eigvalsh(patches.T @ patches / len(patches)))[::-1]
    np.testing.assert_allclose(np.diag(moments), eigenvalues / (eigenvalues + 0.5), rtol=1e-3)
    assert np.abs(moments - np.diag(np.diag(moments))).max() < 1e-3


def test_fewer_filters_are_the_largest_and_further_features_stay_as_drawn(images):
    largest = whiten.filters(images, 2, 2, 24, 1e-3)[..., :4]
    np.testing.assert_array_equal(whiten.filters(images, 2, 2, 9, 1e-3), np.concatenate([largest, -largest], -1))
    network = models.create('shallow_cnn', widths=(300, 4, 4, 4), hidden=4)
    params = jax.tree.map(np.asarray, jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))['params'])
    after = whiten.initializer(WhitenConfig('Conv_0/kernel'), params, lambda count: images[:count])(params)
    kernel, count = np.asarray(after['Conv_0']['kernel']), 2 * 7 * 7 * 3
    np.testing.assert_array_equal(kernel[..., :count], whiten.filters(images, 7, 7, 300, 5e-4))
    np.testing.assert_array_equal(kernel[..., count:], params['Conv_0']['kernel'][..., count:])
    for name in ('Conv_1', 'Dense_0', 'BatchNorm_0'):
        jax.tree.map(np.testing.assert_array_equal, after[name], params[name])


@pytest.mark.parametrize(('match', 'line'), [
    ('kernle', r"config\.whiten\.match: 'kernle' matches no parameter; nearest: .*kernel"),
    ('kernel', r"config\.whiten\.match: 'kernel' matches 6 parameters, and must match one: Conv_0/kernel, "),
    ('Conv_1/kernel', r'config\.whiten\.match: Conv_1/kernel has shape \(3, 3, 4, 4\); it must be .* 3 channels'),
    ('Dense_0/kernel', r'config\.whiten\.match: Dense_0/kernel has shape'),
    ('(', r"config\.whiten\.match: '\(' is no regular expression"),
])
def test_a_pattern_that_does_not_match_the_first_kernel_alone_is_an_error(images, match, line):
    network = models.create('shallow_cnn', widths=(4, 4, 4, 4), hidden=4)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))['params']
    with pytest.raises(UserError, match=line):
        whiten.initializer(WhitenConfig(match), shapes, lambda count: images[:count])
