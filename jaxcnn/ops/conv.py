"""Convolutions that train fast on the CPU, too: a replacement for `lax.conv_general_dilated`.

On GPU and TPU they are XLA's. On the CPU, XLA's convolutions train at a third of the speed that the processor allows, and
its grouped ones at a hundredth (jax-ml/jax #23713, #31662; openxla/xla #34273). There, the kernels of `native/` compute 3x3
convolutions, depthwise ones, and those in groups or of few channels, and oneDNN the others. Where these are not available,
all are computed in plain JAX (`shifts.py`).
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
    """Convolve images with kernels, as `jax.lax.conv_general_dilated`, with gradients that are fast on the CPU, too.

    XLA computes what is not a convolution of float32 or bfloat16 images (N, H, W, C) without input dilation. On a CPU with
    the native library, types that the processor does not support are computed in float32. Results of the other
    implementations can be differentiated in reverse mode any number of times, but not in forward mode (`jax.jvp`,
    `jax.jacfwd`, `jax.hessian`), which needs `implementation='xla'`.

    Args:
      lhs: images (N, H, W, C).
      rhs: kernels (kh, kw, C / groups, features).
      window_strides: (height, width).
      padding: 'SAME', 'VALID', or ((top, bottom), (left, right)).
      lhs_dilation: input dilation; XLA computes convolutions where it is not 1.
      rhs_dilation: kernel dilation.
      dimension_numbers: XLA computes convolutions where they are not `('NHWC', 'HWIO', 'NHWC')`.
      feature_group_count: number of groups; C for a depthwise convolution.
      precision: see JAX; ignored on the CPU, where Winograd's algorithm has a few times the direct sum's rounding error.
      implementation: `auto`, or one by name: `native` (the kernels of `native/` where they are faster, else oneDNN; this is
        `auto` on a CPU that has oneDNN), `onednn` alone, `jax` (plain JAX) or `xla`.

    Returns:
      (N, H', W', features).

    Raises:
      UserError: the implementation is unknown, or asked for by name and not available on this machine.
    """
    check_implementation('convolution implementation', implementation)
    if _is_computed_in_float32(lhs.dtype, implementation):
        wide = conv_general_dilated(lhs.astype(jnp.float32), rhs.astype(jnp.float32), window_strides, padding, lhs_dilation,
                                    rhs_dilation, dimension_numbers, feature_group_count, precision,
                                    implementation=implementation)
        return wide.astype(lhs.dtype)
    numbers = dimension_numbers and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    is_supported = (
        lhs.ndim == 4 and numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, NHWC) and lhs.dtype == rhs.dtype
        and lhs.dtype in (jnp.float32, jnp.bfloat16) and all(d == 1 for d in lhs_dilation or ()) and lhs.size)
    if implementation == 'auto':
        implementation = 'xla' if jax.default_backend() != 'cpu' else 'native' if native.available(lhs.dtype) else 'jax'
    elif implementation in ('native', 'onednn'):
        native.require(lhs.dtype)
    by_xla = functools.partial(
        lax.conv_general_dilated, window_strides=window_strides, padding=padding, lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation, dimension_numbers=dimension_numbers, feature_group_count=feature_group_count,
        precision=precision)
    if implementation == 'xla' or not is_supported:
        return by_xla(lhs, rhs)
    result = jax.eval_shape(by_xla, lhs, rhs)  # raises XLA's errors for shapes that do not fit
    dilation = tuple(rhs_dilation or (1, 1))
    if isinstance(padding, str):
        dilated_sizes = [(k - 1) * d + 1 for k, d in zip(rhs.shape, dilation, strict=False)]
        padding = lax.padtype_to_pads(lhs.shape[1:3], dilated_sizes, window_strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    if min(map(min, pads)) < 0 or not result.size:
        return by_xla(lhs, rhs)
    geometry = Geometry(lhs.shape[1:], rhs.shape, result.shape[1:], tuple(window_strides), pads, dilation,
                        feature_group_count)
    return _conv(FORWARD, geometry, implementation, lhs, rhs)


def _is_computed_in_float32(dtype: Any, implementation: str) -> bool:
    """Return whether operands are converted to float32 and results back, because the CPU has no instructions for their type
    and the library has kernels for float32."""
    return (implementation in ('auto', 'native') and dtype in (jnp.float16, jnp.bfloat16) and jax.default_backend() == 'cpu'
            and not native.available(dtype) and native.available(jnp.float32))


def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """Add a bias (C,) to y (N, H, W, C); its gradient is summed in float32 at least, even where y is bfloat16.

    On the CPU the gradient of up to 16 biases is summed by a matrix product, because XLA's sum takes 2 to 7 times as long
    (docs/performance-log.md).
    """
    is_symbolic = not isinstance(y.shape[0], int)  # in export
    if jax.default_backend() != 'cpu' or len(bias) > 16 or y.dtype != jnp.float32 or is_symbolic or not y.size:
        sum_dtype = jnp.promote_types(y.dtype, jnp.float32)
        return (y.astype(sum_dtype) + bias.astype(sum_dtype)).astype(y.dtype)
    row = jnp.tile(bias, y.size // len(y) // len(bias))[None]
    rows = jnp.ones((len(y), 1), y.dtype) @ row  # which XLA computes without multiplying
    return y + rows.reshape(y.shape)


# The convolution y = x * k and its two gradients are one trilinear form in x, k and y; each of the three is
# differentiated by the other two.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _conv(kind: int, geometry: Geometry, implementation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Compute y from (x, k) for FORWARD, x from (y, k) for INPUT_GRADIENT, and k from (x, y) for KERNEL_GRADIENT."""
    if implementation == 'jax' or (implementation == 'native' and geometry.is_small_product(a)):
        return shifts.conv(kind, geometry, a, b)
    on_cpu = _library_call(kind, geometry, implementation == 'native')
    return lax.platform_dependent(a, b, cpu=on_cpu, default=functools.partial(xla, kind, geometry))


def _conv_forward(kind: int, geometry: Geometry, implementation: str, a: jax.Array, b: jax.Array) -> Any:
    return _conv(kind, geometry, implementation, a, b), (a, b)


def _conv_backward(kind: int, geometry: Geometry, implementation: str, operands: Any, g: jax.Array) -> Any:
    a, b = operands

    def form(kind: int, a: jax.Array, b: jax.Array) -> jax.Array:
        return _conv(kind, geometry, implementation, a, b)
    if kind == FORWARD:
        return form(INPUT_GRADIENT, g, b), form(KERNEL_GRADIENT, a, g)
    if kind == INPUT_GRADIENT:
        return form(FORWARD, g, b), form(KERNEL_GRADIENT, g, a)
    return form(INPUT_GRADIENT, b, g), form(FORWARD, a, g)


_conv.defvjp(_conv_forward, _conv_backward)


@functools.lru_cache(maxsize=4096)
def _library_call(kind: int, geometry: Geometry, use_kernels: bool) -> Any:
    """Return the call of `native/calls.cc`, with its rules for several devices and for `vmap`.

    Args:
      kind: see `_conv`.
      geometry: the convolution.
      use_kernels: use the library's own kernels where they are faster, not oneDNN alone.
    """
    def call(a: jax.Array, b: jax.Array) -> jax.Array:
        result = jax.ShapeDtypeStruct(geometry.result_shape(kind, a), a.dtype)
        return jax.ffi.ffi_call(native.CONV, result)(a, b, kind=np.int64(kind), native=use_kernels, window=geometry.window())

    rules = {FORWARD: 'n h w c, r s i o -> n p q m', INPUT_GRADIENT: 'n p q m, r s i o -> n h w c',
             KERNEL_GRADIENT: 'n h w c, n p q m -> r s i o'}
    is_kernel_gradient = kind == KERNEL_GRADIENT
    merge = lax.psum if is_kernel_gradient else None
    batched = custom_vmap(native.partition_batch(call, (kind, geometry, use_kernels), rules[kind],
                                                 (True, is_kernel_gradient), merge))

    @batched.def_vmap
    def _(size: int, is_mapped: Sequence[bool], a: jax.Array, b: jax.Array) -> tuple[jax.Array, bool]:
        if not is_kernel_gradient and not is_mapped[1]:  # several batches with one kernel are a larger batch
            result = batched(a.reshape(-1, *a.shape[2:]), b)
            return result.reshape(size, -1, *result.shape[1:]), True
        return native.vmap_sequentially(batched, size, is_mapped, a, b)

    return batched
