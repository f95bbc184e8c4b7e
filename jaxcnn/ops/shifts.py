"""Convolutions and their gradients as sums over the taps of the kernel, in plain JAX: for a CPU without oneDNN.

Where XLA's CPU convolutions are slow, they are written here as matrix products and multiply-adds of shifted images. Forward
and input gradient of dense kernels larger than 1x1 are left to XLA (measurements in docs/performance-log.md).
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
    """Compute a convolution, or one of its gradients; see `ops.conv._conv` for the operands."""
    if geometry.groups > 1 and geometry.kernel[2] > 1:
        return _block_diagonal(kind, geometry, a, b)
    if kind == KERNEL_GRADIENT:
        return _kernel_gradient(geometry, a, b)
    if geometry.groups == 1 and geometry.kernel[:2] != (1, 1):
        return xla(kind, geometry, a, b)
    return _forward(geometry, a, b) if kind == FORWARD else _input_gradient(geometry, a, b)


def _block_diagonal(kind: int, g: Geometry, a: jax.Array, b: jax.Array) -> jax.Array:
    """Compute a grouped convolution as dense ones of several groups each, whose kernels are zero between groups. That takes
    many times the multiplications, and still less time than XLA needs for small products."""
    channels, features = g.kernel[2], g.kernel[3] // g.groups
    per_block = next(n for n in range(g.groups, 0, -1) if g.groups % n == 0 and (n == 1 or n * channels <= BLOCK))
    blocks, diagonal = g.groups // per_block, jnp.eye(per_block, dtype=a.dtype)[:, None, :, None]
    dense = dataclasses.replace(g, x=(*g.x[:2], per_block * channels), y=(*g.y[:2], per_block * features), groups=1,
                                kernel=(*g.kernel[:2], per_block * channels, per_block * features))
    results = []
    for block_a, block_b in zip(*(jnp.split(x, blocks, -1) for x in (a, b)), strict=True):
        if kind != KERNEL_GRADIENT:
            block_b = block_b.reshape(*g.kernel[:2], 1, channels, per_block, features)
            block_b = (block_b * diagonal).reshape(dense.kernel)
        result = conv(kind, dense, block_a, block_b)
        if kind == KERNEL_GRADIENT:
            result = result.reshape(*g.kernel[:2], per_block, channels, per_block, features)
            result = jnp.einsum('hwncnf->hwcnf', result).reshape(*g.kernel[:3], per_block * features)
        results.append(result)
    return jnp.concatenate(results, -1)


def _shifted(g: Geometry, x: jax.Array) -> Iterator[tuple[int, int, jax.Array]]:
    """Yield each tap (i, j) of the kernel with the pixels (N, H', W', C) that it is multiplied by."""
    x = jnp.pad(x, ((0, 0), *g.padding, (0, 0)))
    for i, j in itertools.product(range(g.kernel[0]), range(g.kernel[1])):
        first = (i * g.dilation[0], j * g.dilation[1])
        rows, columns = (slice(f, f + (n - 1) * s + 1, s) for f, n, s in zip(first, g.y, g.strides, strict=False))
        yield i, j, x[:, rows, columns]


def _product(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
    """Multiply the pixels (N, H, W, C) by a tap (C / groups, features)."""
    n, h, w, c = x.shape
    if kernel.shape[0] == 1 and kernel.shape[1] == c:  # depthwise
        return x * kernel[0]
    if kernel.shape[0] == 1:
        return (x[..., None] * kernel.reshape(c, -1)).reshape(n, h, w, -1)
    if groups == 1:
        return x @ kernel
    grouped = jnp.einsum('nhwgc,cgo->nhwgo', x.reshape(n, h, w, groups, -1), kernel.reshape(c // groups, groups, -1))
    return grouped.reshape(n, h, w, -1)


def _forward(g: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return sum(_product(pixels, kernel[i, j], g.groups) for i, j, pixels in _shifted(g, x))  # type: ignore[return-value]


def _input_gradient(g: Geometry, y: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve y, dilated by the strides, with the kernel rotated by 180 degrees."""
    kh, kw, c, features = kernel.shape
    flipped = kernel[::-1, ::-1].reshape(kh, kw, c, g.groups, features // g.groups)
    flipped = flipped.transpose(0, 1, 4, 3, 2).reshape(kh, kw, features // g.groups, c * g.groups)
    pads = []
    for x, y_size, k, s, d, (low, _) in zip(g.x, g.y, g.kernel, g.strides, g.dilation, g.padding, strict=False):
        before = (k - 1) * d - low
        pads.append((before, x - before - ((y_size - 1) * s + 1) + (k - 1) * d, s - 1))
    dilated = lax.pad(y, jnp.zeros((), y.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    transposed = dataclasses.replace(g, x=dilated.shape[1:], kernel=flipped.shape, y=g.x, strides=(1, 1),
                                     padding=((0, 0), (0, 0)))
    return _forward(transposed, dilated, flipped)


def _kernel_gradient(g: Geometry, x: jax.Array, y: jax.Array) -> jax.Array:
    c, features = g.kernel[2:]

    def tap_gradient(pixels: jax.Array) -> jax.Array:
        if c == 1:
            return (pixels[..., None] * y.reshape(*pixels.shape, -1)).sum((0, 1, 2)).reshape(1, features)
        return pixels.reshape(-1, c).T @ y.reshape(-1, features)
    return jnp.stack([tap_gradient(pixels) for _, _, pixels in _shifted(g, x)]).reshape(g.kernel)
