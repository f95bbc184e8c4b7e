"""Batch normalisation in training: the batch's statistics, and a gradient that reads the images as seldom as can be.

The sums over the batch, which XLA's CPU takes most of the time for, are calls of `native/channels.h` there; the rest is left
to XLA, which puts it together with what comes before and after.
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


def moments(x: jax.Array, ours: bool) -> tuple[jax.Array, jax.Array]:
    """Mean and mean square of each channel, (C,) float32 each.

    Args:
      x: (N, ..., C).
      ours: by the library's call on the CPU, where there is one.
    """
    sums = _own_sums(_rows(x), ours) / (x.size // x.shape[-1])
    return sums[0], sums[1]


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
def _own_sums(x: jax.Array, ours: bool) -> jax.Array:
    """The sums of x and of its squares, (2, C)."""
    return _sums(x, x, jnp.zeros((0, x.shape[-1])), False, ours)


def _own_sums_backward(ours: bool, x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    return (g[0] + 2 * g[1] * x,)


_own_sums.defvjp(lambda x, ours: (_own_sums(x, ours), x), _own_sums_backward)


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
      affine: mean, scale and bias (3, C); (0, C): mean is 0.
      relu: see above.
      ours: see `moments`.
    """
    if not ours:
        return _plain_sums(g, x, affine, relu)
    return _native_sums(g, x, affine, relu)


def _plain_sums(g: jax.Array, x: jax.Array, affine: jax.Array, relu: bool) -> jax.Array:
    if relu:
        g = jnp.where(_passes(x, *affine), g, 0)
    return jnp.stack([g.sum((0, 1)), (g * (x - affine[0] if len(affine) else x)).sum((0, 1))])


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

    batched = custom_vmap(native.spread(call, ('sums', relu), 'n r c, n r c, k c -> l c', (True, True, False), summed=True))

    @batched.def_vmap
    def _(size: int, mapped: Sequence[bool], *operands: jax.Array) -> tuple[jax.Array, bool]:
        return native.each(batched, size, mapped, *operands)

    return batched
