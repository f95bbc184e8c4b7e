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


def moments(x: jax.Array, ours: bool) -> jax.Array:
    """Mean and variance of each channel, (2, C) float32. Squares are summed about a value near the mean, so that the
    variance is exact to rounding where the mean is thousands of deviations, too.

    Args:
      x: (N, ..., C).
      ours: by the library's call on the CPU, where there is one.
    """
    return _moments(_rows(x), ours)


def merge_devices(moments: jax.Array, axis: Any) -> jax.Array:
    """Mean and variance (2, C) over all devices of a mapped axis, from those of each device's part of the same size."""
    parts = lax.all_gather(moments, axis)
    return _merge(parts[:, 0], parts[:, 1])


def _merge(means: jax.Array, variances: jax.Array, rest: jax.Array | float = 0.0) -> jax.Array:
    """Mean and variance (2, C) of the union of parts of the same size, whose means are `means + rest` (Chan et al. 1983).

    Args:
      means: (parts, C); `variances` and `rest` too.
    """
    near = means.mean(0)  # not exact: the sum of large values loses digits
    apart = means - near + rest
    mean = apart.mean(0)
    return jnp.stack([near + mean, jnp.maximum((variances + apart ** 2).mean(0) - mean ** 2, 0)])


def normalise(x: jax.Array, mean: jax.Array, scale: jax.Array, bias: jax.Array, relu: bool, ours: bool) -> jax.Array:
    """`(x - mean) * scale + bias`, and with `relu` no less than 0; float32.

    Args:
      x: (N, ..., C).
      mean: (C,); `scale` and `bias` too.
      relu: the rectifier after it.
      ours: see `moments`.
    """
    return _normalise(_rows(x), mean, scale, bias, relu, ours).reshape(x.shape)


def _rows(x: jax.Array) -> jax.Array:
    """(N, ..., C) as (N, rows, C), float32."""
    return x.astype(jnp.float32).reshape(len(x), -1, x.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _moments(x: jax.Array, ours: bool) -> jax.Array:
    """See `moments`, of x (N, rows, C)."""
    return lax.platform_dependent(x, cpu=_moments_call(), default=_plain_moments) if ours else _plain_moments(x)


def _moments_forward(x: jax.Array, ours: bool) -> Any:
    mean_and_variance = _moments(x, ours)
    return mean_and_variance, (x, mean_and_variance[0])


def _moments_backward(ours: bool, operands: Any, g: jax.Array) -> tuple[jax.Array]:
    x, mean = operands
    g = g / (x.size // x.shape[-1])
    return (g[0] + 2 * g[1] * (x - mean),)


_moments.defvjp(_moments_forward, _moments_backward)


def _plain_moments(x: jax.Array) -> jax.Array:
    """Each image's moments about its first value, which need no other device, and then those of all."""
    apart = x - x[:, :1]
    rest = apart.mean(1)
    return _merge(x[:, 0], (apart ** 2).mean(1) - rest ** 2, rest)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _normalise(x: jax.Array, mean: jax.Array, scale: jax.Array, bias: jax.Array, relu: bool, ours: bool) -> jax.Array:
    y = (x - mean) * scale + bias
    return jnp.maximum(y, 0) if relu else y


def _normalise_backward(relu: bool, ours: bool, operands: Any, g: jax.Array) -> tuple[jax.Array, ...]:
    x, mean, scale, bias = operands
    sums = _sums(g, x, jnp.stack([mean, scale, bias]), relu, ours)
    back = jnp.where(_passes(x, mean, scale, bias), g, 0) if relu else g
    return back * scale, -scale * sums[0], sums[1], sums[0]


_normalise.defvjp(lambda x, mean, scale, bias, relu, ours: (
    _normalise(x, mean, scale, bias, relu, ours), (x, mean, scale, bias)), _normalise_backward)


def _passes(x: jax.Array, mean: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    return (x - mean) * scale + bias > 0


def _sums(g: jax.Array, x: jax.Array, affine: jax.Array, relu: bool, ours: bool) -> jax.Array:
    """The sums over all rows of m g and of m g (x - mean), (2, C); m is 1, or with `relu` where `normalise` is above 0.

    Args:
      g: (N, rows, C).
      x: likewise.
      affine: mean, scale and bias (3, C).
      relu: see above.
      ours: see `moments`.
    """
    if not ours:
        return _plain_sums(g, x, affine, relu)
    return _native_sums(g, x, affine, relu)


def _plain_sums(g: jax.Array, x: jax.Array, affine: jax.Array, relu: bool) -> jax.Array:
    if relu:
        g = jnp.where(_passes(x, *affine), g, 0)
    return jnp.stack([g.sum((0, 1)), (g * (x - affine[0])).sum((0, 1))])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _native_sums(g: jax.Array, x: jax.Array, affine: jax.Array, relu: bool) -> jax.Array:
    return lax.platform_dependent(g, x, affine, cpu=_call(relu), default=functools.partial(_plain_sums, relu=relu))


def _native_sums_forward(g: jax.Array, x: jax.Array, affine: jax.Array, relu: bool) -> Any:
    return _native_sums(g, x, affine, relu), (g, x, affine)


def _native_sums_backward(relu: bool, operands: Any, above: jax.Array) -> Any:
    return jax.vjp(functools.partial(_plain_sums, relu=relu), *operands)[1](above)


_native_sums.defvjp(_native_sums_forward, _native_sums_backward)


@functools.cache
def _call(relu: bool) -> Any:
    def call(g: jax.Array, x: jax.Array, affine: jax.Array) -> jax.Array:
        result = jax.ShapeDtypeStruct((2, x.shape[-1]), jnp.float32)
        return jax.ffi.ffi_call(native.SUMS, result)(g, x, affine, relu=np.bool_(relu))

    return _batched(native.partition_batch(call, ('sums', relu), 'n r c, n r c, k c -> l c', (True, True, False), lax.psum))


@functools.cache
def _moments_call() -> Any:
    def call(x: jax.Array) -> jax.Array:
        return jax.ffi.ffi_call(native.MOMENTS, jax.ShapeDtypeStruct((2, x.shape[-1]), jnp.float32))(x)

    return _batched(native.partition_batch(call, 'moments', 'n r c -> l c', (True,), merge_devices))


def _batched(call: Any) -> Any:
    """The call with its rule for `vmap`."""
    batched = custom_vmap(call)

    @batched.def_vmap
    def _(size: int, mapped: Sequence[bool], *operands: jax.Array) -> tuple[jax.Array, bool]:
        return native.vmap_sequentially(batched, size, mapped, *operands)

    return batched
