"""Convolutions that train fast on the CPU, too: a stand-in for `lax.conv_general_dilated`.

On GPU and TPU it is XLA's own. On the CPU XLA's convolutions train at a third of the speed that the processor allows,
and its grouped ones at a hundredth (jax-ml/jax #23713, #31662; openxla/xla #34273), so there it is our own for 3x3
kernels in Winograd's form, depthwise ones, groups and few channels, and oneDNN for the others (both in `native/`), or where
that is missing the fastest formulation in plain JAX (`shifts.py`).
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from jaxcnn.errors import UserError, unknown
from jaxcnn.ops import native, shifts
from jaxcnn.ops.geometry import FORWARD, INPUT_GRADIENT, KERNEL_GRADIENT, NHWC, Geometry, xla

IMPLEMENTATIONS = ('auto', 'native', 'onednn', 'jax', 'xla')


def check_implementation(field: str, implementation: str) -> None:
    """Raise a UserError, naming the field, for an implementation that does not exist."""
    if implementation == 'own':
        raise UserError(f"{field}: 'own' is now 'native'")
    if implementation not in IMPLEMENTATIONS:
        raise unknown(field, implementation, IMPLEMENTATIONS)


def conv_general_dilated(
        lhs: jax.Array, rhs: jax.Array, window_strides: Sequence[int], padding: str | Sequence[tuple[int, int]],
        lhs_dilation: Sequence[int] | None = None, rhs_dilation: Sequence[int] | None = None,
        dimension_numbers: Any = None, feature_group_count: int = 1, precision: Any = None, *,
        implementation: str = 'auto') -> jax.Array:
    """A convolution, as `jax.lax.conv_general_dilated`, whose gradients are fast on the CPU, too.

    What is not a convolution of (N, H, W, C) images, float32 or bfloat16, without input dilation, is left to XLA. By the
    other implementations it can be differentiated in reverse mode any number of times, but not in forward mode
    (`jax.jvp`, `jax.jacfwd`, `jax.hessian`), for which `implementation='xla'` is.

    Args:
      lhs: images (N, H, W, C).
      rhs: kernels (kh, kw, C / groups, features).
      window_strides: (height, width).
      padding: 'SAME', 'VALID', or ((top, bottom), (left, right)).
      lhs_dilation: input dilation; XLA's where it is not 1.
      rhs_dilation: kernel dilation.
      dimension_numbers: XLA's where it is not `('NHWC', 'HWIO', 'NHWC')`.
      feature_group_count: groups; C for a depthwise convolution.
      precision: see JAX; of no account on the CPU, where Winograd's form has some times the direct sum's rounding error.
      implementation: `auto`; or one by name: `native` (our kernels where they are faster, else oneDNN; what `auto` is on a
        CPU that has oneDNN), `onednn` alone, `jax`, `xla`.

    Returns:
      (N, H', W', features).

    Raises:
      UserError: an unknown implementation, or oneDNN is asked for by name and not there.
    """
    check_implementation('convolution implementation', implementation)
    numbers = dimension_numbers and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    plain = (lhs.ndim == 4 and numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, NHWC) and lhs.dtype == rhs.dtype
             and lhs.dtype in (jnp.float32, jnp.bfloat16) and all(d == 1 for d in lhs_dilation or ()) and lhs.size)
    if implementation == 'auto':
        implementation = 'xla' if jax.default_backend() != 'cpu' else 'native' if native.available(lhs.dtype) else 'jax'
    elif implementation in ('native', 'onednn'):
        native.require(lhs.dtype)
    by_xla = functools.partial(
        lax.conv_general_dilated, window_strides=window_strides, padding=padding, lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation, dimension_numbers=dimension_numbers, feature_group_count=feature_group_count,
        precision=precision)
    if implementation == 'xla' or not plain:
        return by_xla(lhs, rhs)
    result = jax.eval_shape(by_xla, lhs, rhs)  # XLA's own checks and messages
    dilation = tuple(rhs_dilation or (1, 1))
    if isinstance(padding, str):
        spans = [(k - 1) * d + 1 for k, d in zip(rhs.shape, dilation, strict=False)]
        padding = lax.padtype_to_pads(lhs.shape[1:3], spans, window_strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    if min(map(min, pads)) < 0 or not result.size:
        return by_xla(lhs, rhs)
    geometry = Geometry(lhs.shape[1:], rhs.shape, result.shape[1:], tuple(window_strides), pads, dilation,
                        feature_group_count)
    return _conv(FORWARD, geometry, implementation, lhs, rhs)


def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """y (N, H, W, C) plus a bias (C,), whose gradient is summed in float32 at least: a GPU would sum bfloat16 as it is.
    On the CPU the gradient of a few biases is summed by a matrix product: XLA's sum takes 2 to 7 times as long
    (docs/performance.md)."""
    if jax.default_backend() != 'cpu' or len(bias) > 16 or y.dtype != jnp.float32 or not y.size:
        wide = jnp.promote_types(y.dtype, jnp.float32)
        return (y.astype(wide) + bias.astype(wide)).astype(y.dtype)
    row = jnp.tile(bias, y.size // len(y) // len(bias))[None]
    rows = jnp.ones((len(y), 1), y.dtype) @ row  # which XLA computes without multiplying
    return y + rows.reshape(y.shape)


# The convolution y = x * k and its two gradients are one trilinear form in x, k and y; each of the three is
# differentiated by the other two.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _conv(kind: int, geometry: Geometry, implementation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """FORWARD: (x, k) to y. INPUT_GRADIENT: (y, k) to x. KERNEL_GRADIENT: (x, y) to k."""
    if implementation == 'jax' or (implementation == 'native' and geometry.is_small_product(a)):
        return shifts.conv(kind, geometry, a, b)
    own = _native(kind, geometry, implementation == 'native')
    return lax.platform_dependent(a, b, cpu=own, default=functools.partial(xla, kind, geometry))


def _conv_forward(kind: int, geometry: Geometry, implementation: str, a: jax.Array, b: jax.Array) -> Any:
    return _conv(kind, geometry, implementation, a, b), (a, b)


def _conv_backward(kind: int, geometry: Geometry, implementation: str, operands: Any, g: jax.Array) -> Any:
    a, b = operands

    def form(kind: int, *two: jax.Array) -> jax.Array:
        return _conv(kind, geometry, implementation, *two)
    if kind == FORWARD:
        return form(INPUT_GRADIENT, g, b), form(KERNEL_GRADIENT, a, g)
    if kind == INPUT_GRADIENT:
        return form(FORWARD, g, b), form(KERNEL_GRADIENT, g, a)
    return form(INPUT_GRADIENT, b, g), form(FORWARD, a, g)


_conv.defvjp(_conv_forward, _conv_backward)


@functools.lru_cache(maxsize=4096)
def _native(kind: int, geometry: Geometry, own: bool) -> Any:
    """The call of `native/calls.cc`, with its rules for several devices and for `vmap`."""
    def call(a: jax.Array, b: jax.Array) -> jax.Array:
        result = jax.ShapeDtypeStruct(geometry.result_shape(kind, a), a.dtype)
        return jax.ffi.ffi_call(native.CONV, result)(a, b, kind=np.int64(kind), native=own, window=geometry.window())

    rules = {FORWARD: 'n h w c, r s i o -> n p q m', INPUT_GRADIENT: 'n p q m, r s i o -> n h w c',
             KERNEL_GRADIENT: 'n h w c, n p q m -> r s i o'}
    batched = custom_vmap(native.partition_batch(call, (kind, geometry, own), rules[kind], (True, kind == KERNEL_GRADIENT),
                                        lax.psum if kind == KERNEL_GRADIENT else None))

    @batched.def_vmap
    def _(size: int, mapped: Sequence[bool], a: jax.Array, b: jax.Array) -> tuple[jax.Array, bool]:
        if kind != KERNEL_GRADIENT and not mapped[1]:  # one kernel: a larger batch
            found = batched(a.reshape(-1, *a.shape[2:]), b)
            return found.reshape(size, -1, *found.shape[1:]), True
        return native.vmap_sequentially(batched, size, mapped, a, b)

    return batched
