"""Convolutions and their gradients as sums over the kernel's places, in plain JAX: for a CPU without oneDNN.

What XLA's CPU convolutions are slow at is written here as matrix products and multiply-adds of shifted views; the rest
(dense kernels larger than 1x1, forward and input gradient) stays XLA's. docs/performance.md has the measurements.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.ops.geometry import FORWARD, KERNEL_GRADIENT, Geometry, xla

BLOCK = 32  # channels of groups that are computed together


def conv(kind: int, geometry: Geometry, a: jax.Array, b: jax.Array) -> jax.Array:
    """See `ops.conv._conv`."""
    if geometry.groups > 1 and geometry.kernel[2] > 1:
        return _in_blocks(kind, geometry, a, b)
    if kind == KERNEL_GRADIENT:
        return _kernel_gradient(geometry, a, b)
    if geometry.groups == 1 and geometry.kernel[:2] != (1, 1):
        return xla(kind, geometry, a, b)
    return _forward(geometry, a, b) if kind == FORWARD else _input_gradient(geometry, a, b)


def _in_blocks(kind: int, g: Geometry, a: jax.Array, b: jax.Array) -> jax.Array:
    """A grouped convolution as dense ones of some groups each, whose kernels are zero between groups: many times the
    multiplications, and still less time than XLA takes for small products."""
    channels, features = g.kernel[2], g.kernel[3] // g.groups
    many = next(n for n in range(g.groups, 0, -1) if g.groups % n == 0 and (n == 1 or n * channels <= BLOCK))
    blocks, between = g.groups // many, jnp.eye(many, dtype=a.dtype)[:, None, :, None]
    dense = dataclasses.replace(g, x=(*g.x[:2], many * channels), y=(*g.y[:2], many * features), groups=1,
                                kernel=(*g.kernel[:2], many * channels, many * features))
    parts = []
    for one, other in zip(*(jnp.split(x, blocks, -1) for x in (a, b)), strict=True):
        if kind != KERNEL_GRADIENT:
            other = (other.reshape(*g.kernel[:2], 1, channels, many, features) * between).reshape(dense.kernel)
        part = conv(kind, dense, one, other)
        if kind == KERNEL_GRADIENT:
            part = jnp.einsum('hwncnf->hwcnf', part.reshape(*g.kernel[:2], many, channels, many, features))
            part = part.reshape(*g.kernel[:3], many * features)
        parts.append(part)
    return jnp.concatenate(parts, -1)


def _views(g: Geometry, x: jax.Array) -> Iterator[tuple[int, int, jax.Array]]:
    """For each place (i, j) of the kernel, the pixels (N, H', W', C) that it meets."""
    x = jnp.pad(x, ((0, 0), *g.padding, (0, 0)))
    for i, j in itertools.product(range(g.kernel[0]), range(g.kernel[1])):
        first = (i * g.dilation[0], j * g.dilation[1])
        rows, columns = (slice(f, f + (n - 1) * s + 1, s) for f, n, s in zip(first, g.y, g.strides, strict=False))
        yield i, j, x[:, rows, columns]


def _product(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
    """(N, H, W, C) times (C / groups, features)."""
    n, h, w, c = x.shape
    if kernel.shape[0] == 1:  # each channel on its own
        return (x[..., None] * kernel.reshape(c, -1)).reshape(n, h, w, -1) if kernel.shape[1] != c else x * kernel[0]
    if groups == 1:
        return x @ kernel
    grouped = jnp.einsum('nhwgc,cgo->nhwgo', x.reshape(n, h, w, groups, -1), kernel.reshape(c // groups, groups, -1))
    return grouped.reshape(n, h, w, -1)


def _forward(g: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return sum(_product(view, kernel[i, j], g.groups) for i, j, view in _views(g, x))  # type: ignore[return-value]


def _input_gradient(g: Geometry, y: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution of y, spread out by the strides, with the kernel turned round."""
    kh, kw, c, features = kernel.shape
    turned = kernel[::-1, ::-1].reshape(kh, kw, c, g.groups, features // g.groups)
    turned = turned.transpose(0, 1, 4, 3, 2).reshape(kh, kw, features // g.groups, c * g.groups)
    pads = []
    for x, y_size, k, s, d, (low, _) in zip(g.x, g.y, g.kernel, g.strides, g.dilation, g.padding, strict=False):
        before = (k - 1) * d - low
        pads.append((before, x - before - ((y_size - 1) * s + 1) + (k - 1) * d, s - 1))
    spread = lax.pad(y, jnp.zeros((), y.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    back = dataclasses.replace(g, x=spread.shape[1:], kernel=turned.shape, y=g.x, strides=(1, 1), padding=((0, 0), (0, 0)))
    return _forward(back, spread, turned)


def _kernel_gradient(g: Geometry, x: jax.Array, y: jax.Array) -> jax.Array:
    c, features = g.kernel[2:]

    def place(view: jax.Array) -> jax.Array:
        if c == 1:
            return (view[..., None] * y.reshape(*view.shape, -1)).sum((0, 1, 2)).reshape(1, features)
        return view.reshape(-1, c).T @ y.reshape(-1, features)
    return jnp.stack([place(view) for _, _, view in _views(g, x)]).reshape(g.kernel)
