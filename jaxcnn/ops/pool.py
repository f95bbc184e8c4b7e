"""Pooling over (N, H, W, C)."""

import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def _pads(shape: tuple[int, ...], size: int, stride: int, padding: int, ceil: bool) -> list[tuple[int, int]]:
    """Of (N, H, W, C), before and after: with `ceil` also what a last, incomplete window lacks, as PyTorch has it: a window
    that would begin in the padding after the image is left out."""
    pads = []
    for side in shape[1:3]:
        over = (side + 2 * padding - size) % stride
        more = stride - over if ceil and over and side + padding > side + 2 * padding - size - over + stride else 0
        pads.append((padding, padding + more))
    return [(0, 0), *pads, (0, 0)]


def _reduce(x: jax.Array, size: int, stride: int, combine: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    """Shifted rows combined, and then shifted columns: the gradient of `reduce_window`, which flax uses, is several times
    slower on the CPU."""
    for axis in (1, 2):
        last = (x.shape[axis] - size) // stride * stride
        x = functools.reduce(combine, (
            jax.lax.slice_in_dim(x, first, first + last + 1, stride, axis) for first in range(size)))
    return x


def _windows(x: jax.Array, size: int) -> jax.Array:
    """(N, H, W, C) as non-overlapping windows (N, H', size, W', size, C); rows and columns left over are dropped."""
    n, h, w, c = x.shape
    x = x[:, :h // size * size, :w // size * size]
    return x.reshape(n, h // size, size, w // size, size, c)


def _combined(x: jax.Array, size: int, combine: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    """Non-overlapping windows, each combined into one value (N, H', W', C)."""
    windows = _windows(x, size)
    for axis in (2, 3):
        windows = functools.reduce(combine, (
            jax.lax.index_in_dim(windows, i, axis, keepdims=False) for i in range(size)))
    return windows


@jax.named_scope('max_pool')
def max_pool(x: jax.Array, size: int, stride: int | None = None, padding: int = 0, ceil: bool = False) -> jax.Array:
    """Largest value of each window. Values that tie for the maximum share its gradient.

    Args:
      x: (N, H, W, C).
      size: side of the window.
      stride: distance between windows; by default `size`.
      padding: rows and columns before and after that are no candidates.
      ceil: a last window that reaches over the edge counts, too, with what it has (PyTorch's `ceil_mode`).
    """
    stride = stride or size
    least = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    x = jnp.pad(x, _pads(x.shape, size, stride, padding, ceil), constant_values=least)
    if stride == size:  # not by `max` over the windows: XLA may compute x once more, rounded otherwise, to compare it with y
        return _combined(x, size, jnp.maximum)
    return _reduce(x, size, stride, jnp.maximum)


@jax.named_scope('avg_pool')
def avg_pool(x: jax.Array, size: int, stride: int | None = None, padding: int = 0, count_padding: bool = True,
             ceil: bool = False) -> jax.Array:
    """Mean of each window.

    Args:
      x: (N, H, W, C).
      size: side of the window.
      stride: distance between windows; by default `size`.
      padding: rows and columns of zeros before and after.
      count_padding: means are over all places of a window; else over those within the image.
      ceil: a last window that reaches over the edge counts, too (PyTorch's `ceil_mode`), its mean over what it has of the
        image and, with `count_padding`, of the padding.
    """
    stride, dtype = stride or size, x.dtype
    x = x.astype(jnp.promote_types(dtype, jnp.float32))
    if stride == size and not padding and not ceil:
        return (_combined(x, size, operator.add) / size ** 2).astype(dtype)
    pads = _pads(x.shape, size, stride, padding, ceil)
    counted = np.pad(np.ones((1, *x.shape[1:3], 1), x.dtype), [(p, p) for p, _ in pads], constant_values=count_padding)
    counted = np.pad(counted, [(0, after - before) for before, after in pads])
    sums, counts = (_reduce(jnp.asarray(a), size, stride, operator.add) for a in (jnp.pad(x, pads), counted))
    return (sums / counts).astype(dtype)


POOLS: dict[str, Callable[..., jax.Array]] = {'avg': avg_pool, 'max': max_pool}
