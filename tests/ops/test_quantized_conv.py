"""Convolutions of 8-bit integers by oneDNN, against sums of integers in NumPy."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.ops import native
from jaxcnn.ops.quantized_conv import Integers, QuantizedConv, instruction_set

pytestmark = pytest.mark.skipif(not native.available(jnp.float32), reason='oneDNN is not installed')


def integer_convolution(x, kernel, strides, padding, groups):
    """The exact sums, by a loop over the positions of the kernel."""
    x = np.pad(x.astype(np.int64), [(0, 0), *padding, (0, 0)])
    (h, w, _, features), per_group = kernel.shape, x.shape[3] // groups
    out = [(side - size) // stride + 1 for side, size, stride in zip(x.shape[1:3], (h, w), strides, strict=True)]
    y = np.zeros((len(x), *out, features), np.int64)
    for i in range(h):
        for j in range(w):
            rows = x[:, i:i + strides[0] * (out[0] - 1) + 1:strides[0], j:j + strides[1] * (out[1] - 1) + 1:strides[1]]
            for g in range(groups):
                of_group = slice(g * features // groups, (g + 1) * features // groups)
                y[..., of_group] += rows[..., g * per_group:(g + 1) * per_group] @ kernel[i, j][:, of_group]
    return y


CASES = {  # channels, features, kernel, stride, padding, groups
    'conv3x3': (64, 64, 3, 1, 1, 1), 'stem': (3, 32, 7, 2, 3, 1), 'odd': (5, 7, 3, 1, 0, 1),
    'depthwise': (32, 32, 3, 2, 1, 32), 'dense': (48, 10, 1, 1, 0, 1), 'grouped': (16, 32, 3, 1, 1, 2)}


@pytest.mark.parametrize('signed', [True, False])
@pytest.mark.parametrize('case', CASES)
def test_sums_are_exact(case, signed):
    channels, features, size, stride, pad, groups = CASES[case]
    rng = np.random.default_rng(0)
    has_vnni = instruction_set()[1]
    of_x = Integers.for_processor(1.0, signed, has_vnni)
    x = rng.integers(-128 if signed else 0, of_x.high + 1, (2, 9, 8, channels)).astype(of_x.dtype)
    kernel = rng.integers(-127, 128, (size, size, channels // groups, features)).astype(np.int8)
    if signed and not has_vnni:  # oneDNN halves the weights then
        kernel = kernel // 2 * 2
    padding = ((pad, pad), (pad, pad))
    layer = QuantizedConv(kernel, np.ones(features), np.zeros(features), dataclasses.replace(of_x, scale=1.0), None,
                          strides=(stride, stride), padding=padding, groups=groups)
    expected = integer_convolution(x, kernel, (stride, stride), padding, groups)
    np.testing.assert_array_equal(jax.jit(layer)(x), expected.astype(np.float32))


@pytest.mark.parametrize(('output_signed', 'residual_signed', 'activation'), [
    (False, True, 'relu'), (False, False, 'relu6'), (True, True, 'none')])
def test_requantisation_with_bias_residual_and_activation(output_signed, residual_signed, activation):
    rng = np.random.default_rng(1)
    has_vnni = instruction_set()[1]
    of_x = Integers.for_processor(0.01, False, has_vnni)
    x = rng.integers(0, of_x.high + 1, (2, 6, 6, 16)).astype(np.uint8)
    kernel = rng.integers(-127, 128, (3, 3, 16, 32)).astype(np.int8)
    kernel_scale, bias = rng.uniform(1e-4, 1e-3, 32).astype(np.float32), rng.normal(size=32).astype(np.float32)
    residual = rng.integers(-128 if residual_signed else 0, 128 if residual_signed else 256, (2, 6, 6, 32))
    residual = residual.astype(np.int8 if residual_signed else np.uint8)
    output, of_residual = (Integers.for_processor(scale, signed, has_vnni) for scale, signed in (
        (0.03, output_signed), (0.02, residual_signed)))
    padding = ((1, 1), (1, 1))
    layer = QuantizedConv(kernel, kernel_scale, bias, of_x, output, of_residual, padding=padding,
                          activation=activation)
    y = integer_convolution(x, kernel, (1, 1), padding, 1) * of_x.scale * kernel_scale.astype(float)
    y += bias + residual * of_residual.scale
    y = np.clip(y, 0 if activation != 'none' else None, 6 if activation == 'relu6' else None)
    expected = np.clip(np.rint(y / output.scale), -128 if output_signed else 0, output.high)
    result = np.asarray(jax.jit(lambda x, r: layer(x, r))(x, residual))
    assert result.dtype == (np.int8 if output_signed else np.uint8)
    difference = np.abs(result.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3
    np.testing.assert_array_equal(np.asarray(jax.jit(lambda x, r: layer(x, r))(x, residual)), result)


def test_images_of_other_channels_are_refused():
    """The layer would read beyond their end, if it took them for the images of the same size that it has seen before."""
    scale = Integers(1.0, False, 127)
    layer = QuantizedConv(np.ones((1, 1, 8, 4), np.int8), np.ones(4), np.zeros(4), scale, None)
    np.testing.assert_array_equal(layer(np.ones((1, 2, 2, 8), np.uint8)), np.full((1, 2, 2, 4), 8))
    with pytest.raises(jax.errors.JaxRuntimeError, match='int8 convolution'):
        layer(np.ones((1, 2, 2, 4), np.uint8)).block_until_ready()


def test_the_instruction_set_is_that_of_the_processor():
    with open('/proc/cpuinfo') as f:
        flags = f.read().split()
    name, has_vnni = instruction_set()
    assert name
    if 'ONEDNN_MAX_CPU_ISA' not in os.environ:
        assert has_vnni == bool({'avx512_vnni', 'avx_vnni'} & set(flags))


@pytest.mark.slow
def test_processors_without_vnni_have_the_same_results():
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', __file__, '-m', 'not slow']
    done = subprocess.run(command, env={**os.environ, 'ONEDNN_MAX_CPU_ISA': 'AVX512_CORE'}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
