"""Quantisation, against NumPy and against Qwix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.ops import quantize


@pytest.mark.parametrize('bits', [8, 4])
@pytest.mark.parametrize('signed', [True, False])
def test_quantize_rounds_half_to_even_and_clips(bits, signed):
    x = np.concatenate([np.arange(-300, 300) * 0.125, [1e6, -1e6]]).astype(np.float32)
    low, high = (-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1) if signed else (0, 2 ** bits - 1)
    expected = np.clip(np.rint(x / 0.25), low, high)
    result = quantize.quantize(jnp.asarray(x), 0.25, bits, signed)
    assert result.dtype == (jnp.int8 if signed else jnp.uint8)
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(quantize.dequantize(result, 0.25), expected * 0.25)
    np.testing.assert_array_equal(quantize.fake_quantize(jnp.asarray(x), jnp.float32(0.25), low, high), expected * 0.25)


def test_kernels_have_the_scales_and_integers_of_qwix():
    from qwix._src.core import qarray
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 4, 8)).astype(np.float32) * np.arange(1, 9))
    how = qarray.HowToQuantize(qtype=jnp.int8, channelwise_axes=[3], tiled_axes={}, calibration_method='absmax')
    expected = qarray.quantize(kernel, how)
    scales = quantize.channel_scales(kernel)
    largest = [max(abs(float(v)) for v in np.asarray(kernel)[..., i].flat) for i in range(8)]
    np.testing.assert_allclose(scales, np.array(largest) / 127, rtol=1e-6)
    np.testing.assert_allclose(scales, np.asarray(expected.scale).reshape(-1), rtol=1e-2)  # Qwix divides by 127.5
    difference = np.asarray(quantize.quantize(kernel, scales), int) - np.asarray(expected.qvalue, int)
    assert np.abs(difference).max() <= 1


def test_straight_through_gradient_stops_outside_the_range():
    x = jnp.array([-3.0, -0.3, 0.2, 0.7, 40.0])
    gradient = jax.grad(lambda x: (quantize.fake_quantize(x, jnp.float32(0.1), 0, 255) * jnp.arange(1, 6)).sum())(x)
    np.testing.assert_array_equal(gradient, [0, 0, 3, 4, 0])


@pytest.mark.parametrize('shape', [(), (3,)])
def test_gradient_of_a_learned_step_is_the_papers(shape):
    rng = np.random.default_rng(0)
    x, g = (rng.normal(size=(4, 5, 3)).astype(np.float32) for _ in range(2))
    step = np.full(shape, 0.21, np.float32) * (np.arange(1, 4) if shape else 1)
    y, backward = jax.vjp(lambda x, s: quantize.learned_step_quantize(x, s, -3, 3, 20), jnp.asarray(x), jnp.asarray(step))
    x_gradient, step_gradient = backward(jnp.asarray(g))
    expected_step = np.zeros(3)
    for i in np.ndindex(x.shape):
        s = np.broadcast_to(step, (3,))[i[-1]]
        ratio, high = x[i] / s, 3
        inside = -high < ratio < high
        assert float(y[i]) == pytest.approx(s * max(-high, min(high, round(ratio))), abs=1e-6)
        assert float(x_gradient[i]) == pytest.approx(g[i] if inside else 0)
        slope = round(ratio) - ratio if inside else (high if ratio > 0 else -high)
        expected_step[i[-1]] += g[i] * slope / np.sqrt(20 * high)
    np.testing.assert_allclose(step_gradient, expected_step if shape else expected_step.sum(), rtol=1e-4, atol=1e-5)
