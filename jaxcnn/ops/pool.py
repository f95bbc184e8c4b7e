"""Pooling over (N, H, W, C)."""

import contextlib
import contextvars
import functools
import operator
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

_as_windows = contextvars.ContextVar('_as_windows', default=False)


@contextlib.contextmanager
def as_reduce_window() -> Iterator[None]:
    """Trace each pooling in the block as one `lax.reduce_window`, which exporters recognise.

    The gradient of `reduce_window` is several times slower than that of the default on the CPU.
    """
    token = _as_windows.set(True)
    try:
        yield
    finally:
        _as_windows.reset(token)


def _reduce_window(x: jax.Array, size: int, stride: int, pads: list[tuple[int, int]], initial: float,
                   combine: Callable[..., jax.Array]) -> jax.Array:
    return jax.lax.reduce_window(x, np.array(initial, x.dtype), combine, (1, size, size, 1), (1, stride, stride, 1), pads)


def _pads(shape: tuple[int, ...], size: int, stride: int, padding: int, ceil: bool) -> list[tuple[int, int]]:
    """Return the padding (before, after) of each axis of (N, H, W, C).

    With `ceil` it includes what a last, incomplete window lacks. As in PyTorch, a window that would begin in the padding
    after the image does not count.
    """
    pads = []
    for side in shape[1:3]:
        remainder = (side + 2 * padding - size) % stride
        last_begin = side + 2 * padding - size - remainder + stride
        extra = stride - remainder if ceil and remainder and side + padding > last_begin else 0
        pads.append((padding, padding + extra))
    return [(0, 0), *pads, (0, 0)]


def _reduce_strided(x: jax.Array, size: int, stride: int, combine: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    """Reduce windows of any stride by combining shifted rows and then shifted columns.

    The gradient of `reduce_window`, which flax uses, is several times slower on the CPU.
    """
    for axis in (1, 2):
        last = (x.shape[axis] - size) // stride * stride
        x = functools.reduce(combine, (
            jax.lax.slice_in_dim(x, first, first + last + 1, stride, axis) for first in range(size)))
    return x


def _windows(x: jax.Array, size: int) -> jax.Array:
    """Reshape (N, H, W, C) to non-overlapping windows (N, H', size, W', size, C), without the rows and columns left over."""
    n, h, w, c = x.shape
    x = x[:, :h // size * size, :w // size * size]
    return x.reshape(n, h // size, size, w // size, size, c)


def _reduce_windows(x: jax.Array, size: int, combine: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    """Reduce non-overlapping windows to one value each, (N, H', W', C)."""
    windows = _windows(x, size)
    for axis in (2, 3):
        windows = functools.reduce(combine, (
            jax.lax.index_in_dim(windows, i, axis, keepdims=False) for i in range(size)))
    return windows


@jax.named_scope('max_pool')
def max_pool(x: jax.Array, size: int, stride: int | None = None, padding: int = 0, ceil: bool = False) -> jax.Array:
    """Return the maximum of each window. Values that tie for the maximum share its gradient.

    Args:
      x: (N, H, W, C).
      size: side of the window.
      stride: distance between windows; by default `size`.
      padding: rows and columns before and after the image, which are never the maximum.
      ceil: include a last window that reaches over the edge (PyTorch's `ceil_mode`).
    """
    stride = stride or size
    lowest = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    pads = _pads(x.shape, size, stride, padding, ceil)
    if _as_windows.get():
        return _reduce_window(x, size, stride, pads, lowest, jax.lax.max)
    x = jnp.pad(x, pads, constant_values=lowest)
    if stride == size:
        # The gradient of `jnp.max` compares x with the maximum, and XLA may compute x again for that, rounded differently.
        return _reduce_windows(x, size, jnp.maximum)
    return _reduce_strided(x, size, stride, jnp.maximum)


@jax.named_scope('avg_pool')
def avg_pool(x: jax.Array, size: int, stride: int | None = None, padding: int = 0, count_padding: bool = True,
             ceil: bool = False) -> jax.Array:
    """Return the mean of each window.

    Args:
      x: (N, H, W, C).
      size: side of the window.
      stride: distance between windows; by default `size`.
      padding: rows and columns of zeros before and after the image.
      count_padding: divide by the size of the window; otherwise by the number of its pixels inside the image.
      ceil: include a last window that reaches over the edge (PyTorch's `ceil_mode`). Its mean is over its pixels in the
        image and, with `count_padding`, in the padding.
    """
    stride, dtype = stride or size, x.dtype
    x = x.astype(jnp.promote_types(dtype, jnp.float32))
    if stride == size and not padding and not ceil and not _as_windows.get():
        return (_reduce_windows(x, size, operator.add) / size ** 2).astype(dtype)
    pads = _pads(x.shape, size, stride, padding, ceil)
    weights = np.pad(np.ones((1, *x.shape[1:3], 1), x.dtype), [(p, p) for p, _ in pads], constant_values=count_padding)
    weights = np.pad(weights, [(0, after - before) for before, after in pads])
    if _as_windows.get():
        windows = np.lib.stride_tricks.sliding_window_view(weights, (size, size), (1, 2))[:, ::stride, ::stride]
        return (_reduce_window(x, size, stride, pads, 0, jax.lax.add) / windows.sum((-1, -2))).astype(dtype)
    sums, counts = (_reduce_strided(jnp.asarray(a), size, stride, operator.add) for a in (jnp.pad(x, pads), weights))
    return (sums / counts).astype(dtype)


POOLS: dict[str, Callable[..., jax.Array]] = {'avg': avg_pool, 'max': max_pool}
