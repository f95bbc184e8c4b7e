"""The shape of a convolution of (N, H, W, C) images, and the convolution and its two gradients by XLA."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

NHWC = ('NHWC', 'HWIO', 'NHWC')
FORWARD, INPUT_GRADIENT, KERNEL_GRADIENT = range(3)


@dataclasses.dataclass(frozen=True)
class Geometry:
    """All that defines a convolution but the batch size.

    Attributes:
      x, kernel, y: shapes (H, W, C), (kh, kw, C / groups, features) and (H', W', features).
      strides, padding, dilation: each (height, width); padding as (before, after).
      groups: number of groups of features, each of which sees its own part of the input's channels.
    """

    x: tuple[int, ...]
    kernel: tuple[int, ...]
    y: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    def result_shape(self, kind: int, a: Any) -> tuple[int, ...]:
        """Return the shape of the result of `kind`, given its first operand `a`."""
        return self.kernel if kind == KERNEL_GRADIENT else (len(a), *(self.y if kind == FORWARD else self.x))

    def is_small_product(self, a: jax.Array) -> bool:
        """Return whether it is a matrix product so small that XLA computes it faster than oneDNN, which reorders its kernel
        at each call (docs/performance-log.md)."""
        return (self.kernel[:2] == (1, 1) and self.x[:2] == self.y[:2] and self.groups == 1 and a.dtype == jnp.float32 and
                len(a) * self.x[0] * self.x[1] <= 4096)

    def window(self) -> np.ndarray:
        """Return strides, padding, dilation and groups in the order of `Window` in `native/calls.cc`."""
        (top, bottom), (left, right) = self.padding
        return np.array([*self.strides, top, left, bottom, right, *self.dilation, self.groups], np.int64)


def xla(kind: int, geometry: Geometry, a: jax.Array, b: jax.Array) -> jax.Array:
    """Compute a convolution, or one of its gradients, by XLA; see `conv._conv` for the operands."""
    def forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, kernel, geometry.strides, geometry.padding, rhs_dilation=geometry.dilation,
                                        dimension_numbers=NHWC, feature_group_count=geometry.groups)
    if kind == FORWARD:
        return forward(a, b)
    result = jax.ShapeDtypeStruct(geometry.result_shape(kind, a), a.dtype)
    if kind == INPUT_GRADIENT:
        return jax.linear_transpose(lambda x: forward(x, b), result)(a)[0]
    return jax.linear_transpose(lambda kernel: forward(a, kernel), result)(b)[0]
