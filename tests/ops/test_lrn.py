"""Local response normalisation against a plain loop and PyTorch's, with its gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxcnn.ops.lrn import local_response_norm

# n, alpha, beta, k; AlexNet's, and strong ones, even windows and one wider than the channels
PARAMETERS = [(5, 1e-4, 0.75, 2.0), (3, 0.5, 0.5, 1.0), (2, 1.0, 0.75, 1.0), (4, 0.3, 1.5, 0.5), (1, 2.0, 1.0, 1.0),
              (15, 0.8, 0.75, 2.0)]
strong = functools.partial(local_response_norm, size=4, alpha=2.0, k=0.5)


def image(*shape, dtype=np.float32):
    return np.random.default_rng(0).normal(0, 3, shape).astype(dtype)


def by_hand(x, size, alpha, beta, k):
    out = np.zeros(x.shape)
    channels = x.shape[-1]
    for c in range(channels):
        around = range(max(0, c - size // 2), min(channels - 1, c + (size - 1) // 2) + 1)
        total = sum(np.float64(x[..., j]) ** 2 for j in around)
        out[..., c] = x[..., c] / (k + alpha / size * total) ** beta
    return out


@pytest.mark.parametrize('parameters', PARAMETERS, ids=str)
@pytest.mark.parametrize('shape', [(2, 3, 2, 11), (4, 3)], ids=str)
def test_it_is_a_loop_over_the_channels_around_each(shape, parameters):
    x = image(*shape)
    actual = jax.jit(local_response_norm, static_argnums=(1, 2, 3, 4))(x, *parameters)
    np.testing.assert_allclose(actual, by_hand(x, *parameters), rtol=3e-6, atol=1e-7)


def test_the_defaults_are_those_of_alexnet():
    x = 100 * image(3, 96)
    np.testing.assert_allclose(local_response_norm(x), by_hand(x, 5, 1e-4, 0.75, 2.0), rtol=3e-6)


def test_gradients_and_their_gradients_are_those_of_finite_differences():
    with jax.enable_x64(True):
        check_grads(jax.jit(strong), (jnp.asarray(image(2, 2, 7, dtype=np.float64)),), order=2, modes=['rev'], eps=1e-5,
                    atol=1e-5, rtol=1e-5)


def test_bfloat16_is_computed_in_float32():
    x = jnp.asarray(image(2, 3, 3, 9), jnp.bfloat16)
    actual = strong(x)
    assert actual.dtype == jnp.bfloat16
    np.testing.assert_array_equal(actual, strong(x.astype(jnp.float32)).astype(jnp.bfloat16))


@pytest.mark.torch
@pytest.mark.parametrize('parameters', PARAMETERS[:3], ids=str)
def test_it_is_that_of_pytorch(parameters):
    torch = pytest.importorskip('torch')
    x = image(2, 3, 2, 11)
    expected = torch.nn.functional.local_response_norm(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), *parameters)
    np.testing.assert_allclose(local_response_norm(x, *parameters), expected.numpy().transpose(0, 2, 3, 1), rtol=3e-6,
                               atol=1e-7)
