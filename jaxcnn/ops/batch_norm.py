"""Batch normalisation in training: statistics of the batch, and a gradient that reads the images as few times as possible.

On the CPU, XLA spends most of the time on the sums over the batch, so there they are computed by `native/batch_norm.h`. The
rest is left to XLA, which fuses it with the operations before and after it.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from jaxcnn.ops import native


def moments(x: jax.Array, use_native: bool) -> jax.Array:
    """Return the mean and the variance of each channel, (2, C) float32.

    Squares are summed about a value near the mean. The variance is therefore exact to rounding even where the mean is
    thousands of standard deviations from 0.

    Args:
      x: (N, ..., C).
      use_native: compute them by the native library on the CPU, where it is available.
    """
    return _moments(_as_rows(x), use_native)


def merge_devices(moments: jax.Array, axis: Any) -> jax.Array:
    """Return the mean and the variance (2, C) over all devices of a mapped axis, given those of each device's equally large
    part of the batch."""
    per_device = lax.all_gather(moments, axis)
    return _merge(per_device[:, 0], per_device[:, 1])


def _merge(means: jax.Array, variances: jax.Array, corrections: jax.Array | float = 0.0) -> jax.Array:
    """Return the mean and the variance (2, C) of the union of equally large parts (Chan et al. 1983).

    Args:
      means: (parts, C), to which `corrections` are added to get the parts' means.
      variances: (parts, C).
      corrections: (parts, C), or 0.
    """
    center = means.mean(0)  # not exact: the sum of large values loses digits
    deviations = means - center + corrections
    mean = deviations.mean(0)
    return jnp.stack([center + mean, jnp.maximum((variances + deviations ** 2).mean(0) - mean ** 2, 0)])


def normalise(x: jax.Array, mean: jax.Array, scale: jax.Array, bias: jax.Array, relu: bool, use_native: bool,
              dtype: Any = jnp.float32) -> jax.Array:
    """Return `(x - mean) * scale + bias`, which is computed in float32.

    Args:
      x: (N, ..., C).
      mean: (C,); `scale` and `bias` too.
      relu: apply a ReLU to the result.
      use_native: see `moments`; of the gradient's sums.
      dtype: type of the result.
    """
    return _normalise(_widened(x), mean, scale, bias, relu, use_native, jnp.dtype(dtype))


def _widened(x: jax.Array) -> jax.Array:
    """Return bfloat16 images as they are, and others in float32."""
    return x if x.dtype == jnp.bfloat16 else x.astype(jnp.float32)


def _as_rows(x: jax.Array) -> jax.Array:
    """Return (N, ..., C) as (N, rows, C), in float32 or bfloat16."""
    return _widened(x).reshape(x.shape[0], -1, x.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _moments(x: jax.Array, use_native: bool) -> jax.Array:
    """See `moments`; x is (N, rows, C)."""
    return lax.platform_dependent(x, cpu=_moments_call(), default=_jax_moments) if use_native else _jax_moments(x)


def _moments_forward(x: jax.Array, use_native: bool) -> Any:
    mean_and_variance = _moments(x, use_native)
    return mean_and_variance, (x, mean_and_variance[0])


def _moments_backward(use_native: bool, operands: Any, g: jax.Array) -> tuple[jax.Array]:
    x, mean = operands
    g = g / (x.size // x.shape[-1])
    return ((g[0] + 2 * g[1] * (x - mean)).astype(x.dtype),)


_moments.defvjp(_moments_forward, _moments_backward)


def _jax_moments(x: jax.Array) -> jax.Array:
    """Compute the moments of each image about its first value, which needs no other device, and merge them."""
    x = x.astype(jnp.float32)
    deviations = x - x[:, :1]
    corrections = deviations.mean(1)
    return _merge(x[:, 0], (deviations ** 2).mean(1) - corrections ** 2, corrections)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _normalise(x: jax.Array, mean: jax.Array, scale: jax.Array, bias: jax.Array, relu: bool, use_native: bool,
               dtype: Any) -> jax.Array:
    y = (x - mean) * scale + bias
    return (jnp.maximum(y, 0) if relu else y).astype(dtype)


def _normalise_backward(relu: bool, use_native: bool, dtype: Any, operands: Any, g: jax.Array) -> tuple[jax.Array, ...]:
    x, mean, scale, bias = operands
    sums = gradient_sums(_as_rows(g), _as_rows(x), jnp.stack([mean, scale, bias]), relu, use_native)
    masked = jnp.where(_is_positive(x, mean, scale, bias), g, 0) if relu else g
    return (masked * scale).astype(x.dtype), -scale * sums[0], sums[1], sums[0]


_normalise.defvjp(lambda x, mean, scale, bias, relu, use_native, dtype: (
    _normalise(x, mean, scale, bias, relu, use_native, dtype), (x, mean, scale, bias)), _normalise_backward)


def _is_positive(x: jax.Array, mean: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    return (x - mean) * scale + bias > 0


def gradient_sums(g: jax.Array, x: jax.Array, affine: jax.Array, relu: bool, use_native: bool) -> jax.Array:
    """Return the sums over all rows of m g and of m g (x - mean), (2, C), where m masks what a ReLU does not pass.

    Args:
      g: (N, rows, C).
      x: (N, rows, C); the sums are in float32.
      affine: mean, scale and bias (3, C).
      relu: m is 1 where `(x - mean) * scale + bias` is above 0, and 0 elsewhere; otherwise m is 1.
      use_native: see `moments`.
    """
    if g.dtype != x.dtype or x.dtype != jnp.bfloat16:
        g, x = g.astype(jnp.float32), x.astype(jnp.float32)
    return _native_sums(g, x, affine, relu) if use_native else _jax_sums(g, x, affine, relu)


def _jax_sums(g: jax.Array, x: jax.Array, affine: jax.Array, relu: bool) -> jax.Array:
    g, x = g.astype(jnp.float32), x.astype(jnp.float32)
    if relu:
        g = jnp.where(_is_positive(x, *affine), g, 0)
    return jnp.stack([g.sum((0, 1)), (g * (x - affine[0])).sum((0, 1))])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _native_sums(g: jax.Array, x: jax.Array, affine: jax.Array, relu: bool) -> jax.Array:
    return lax.platform_dependent(g, x, affine, cpu=_sums_call(relu), default=functools.partial(_jax_sums, relu=relu))


def _native_sums_forward(g: jax.Array, x: jax.Array, affine: jax.Array, relu: bool) -> Any:
    return _native_sums(g, x, affine, relu), (g, x, affine)


def _native_sums_backward(relu: bool, operands: Any, cotangent: jax.Array) -> Any:
    return jax.vjp(functools.partial(_jax_sums, relu=relu), *operands)[1](cotangent)


_native_sums.defvjp(_native_sums_forward, _native_sums_backward)


@functools.cache
def _sums_call(relu: bool) -> Any:
    def call(g: jax.Array, x: jax.Array, affine: jax.Array) -> jax.Array:
        result = jax.ShapeDtypeStruct((2, x.shape[-1]), jnp.float32)
        return jax.ffi.ffi_call(native.SUMS, result)(g, x, affine, relu=np.bool_(relu))

    rule = 'n r c, n r c, k c -> l c'
    return _with_vmap_rule(native.partition_batch(call, ('sums', relu), rule, (True, True, False), lax.psum))


@functools.cache
def _moments_call() -> Any:
    def call(x: jax.Array) -> jax.Array:
        return jax.ffi.ffi_call(native.MOMENTS, jax.ShapeDtypeStruct((2, x.shape[-1]), jnp.float32))(x)

    return _with_vmap_rule(native.partition_batch(call, 'moments', 'n r c -> l c', (True,), merge_devices))


def _with_vmap_rule(call: Any) -> Any:
    batched = custom_vmap(call)

    @batched.def_vmap
    def _(size: int, is_mapped: Sequence[bool], *operands: jax.Array) -> tuple[jax.Array, bool]:
        return native.vmap_sequentially(batched, size, is_mapped, *operands)

    return batched
