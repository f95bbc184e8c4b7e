"""Pooling over (N, H, W, C)."""

import functools

import jax
import jax.numpy as jnp


def _windows(x: jax.Array, size: int) -> jax.Array:
    """(N, H, W, C) as non-overlapping windows (N, H', size, W', size, C); rows and columns left over are dropped."""
    n, h, w, c = x.shape
    x = x[:, :h // size * size, :w // size * size]
    return x.reshape(n, h // size, size, w // size, size, c)


def max_pool(x: jax.Array, size: int, stride: int | None = None, padding: int = 0) -> jax.Array:
    """Largest value of each window.

    By reshaping, or where windows overlap as the maximum of shifted rows and then of shifted columns: the gradient of
    `reduce_window`, which flax uses, is several times slower on the CPU. Values that tie for the maximum share its gradient.

    Args:
      x: (N, H, W, C).
      size: side of the window.
      stride: distance between windows; by default `size`.
      padding: rows and columns before and after that are no candidates.
    """
    stride = stride or size
    if stride == size and not padding:
        return _windows(x, size).max((2, 4))
    least = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)), constant_values=least)
    for axis in (1, 2):
        last = (x.shape[axis] - size) // stride * stride
        x = functools.reduce(jnp.maximum, (
            jax.lax.slice_in_dim(x, first, first + last + 1, stride, axis) for first in range(size)))
    return x


def avg_pool(x: jax.Array, size: int) -> jax.Array:
    """Mean of each non-overlapping window of `size` x `size`, without padding."""
    return jnp.mean(_windows(x, size), (2, 4))
