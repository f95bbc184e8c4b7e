"""Maxima of the bins of windows of a feature map, looked up in tables of the maxima of smaller windows."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.ops import region_parts
from jaxcnn.ops.region_parts import Tree, in_parts, over_parts

MAX_TABLES = 1 << 24  # values of the tables of maxima for the channels that are processed at a time


class _Maximum(NamedTuple):
    """Maxima, and the indices of their pixels in the feature map."""

    value: jax.Array
    pixel: jax.Array


def _largest_value(*values: jax.Array) -> jax.Array:
    return functools.reduce(jnp.maximum, values)


def _largest(*maxima: _Maximum) -> _Maximum:
    """Return the largest of some maxima; where several are equal, with the lowest index of a pixel."""
    value = _largest_value(*(maximum.value for maximum in maxima))
    no_pixel = jnp.iinfo(jnp.int32).max
    pixels = (jnp.where(maximum.value == value, maximum.pixel, no_pixel) for maximum in maxima)
    return _Maximum(value, functools.reduce(jnp.minimum, pixels))


def _max_tables(pixels: Tree, rows: int, columns: int, combine: Callable[..., Tree]) -> Tree:
    """Return the maxima (levels of columns, levels of rows, H, W, C) of all windows whose sides are powers of 2.

    Args:
      pixels: (H, W, C).
      rows: largest height of a window that will be needed.
      columns: largest width of a window that will be needed.
      combine: returns the largest of several maxima.
    """
    def double(pixels: Tree, axis: int, largest: int) -> Tree:
        side = jax.tree.leaves(pixels)[0].shape[axis]

        def widen(table: Tree, level: jax.Array) -> tuple[Tree, Tree]:
            following = jnp.minimum(jnp.arange(side) + (1 << level), side - 1)
            return combine(table, jax.tree.map(lambda x: jnp.take(x, following, axis, mode='clip'), table)), table

        # In a loop, XLA computes each table from the last one; otherwise it would compute each from the pixels.
        return lax.scan(widen, pixels, jnp.arange(largest.bit_length()))[1]
    return double(double(pixels, 0, rows), 2, columns)


class _WindowMaxima:
    """Looks up the maxima of the bins of windows of a feature map.

    The maximum of a bin is that of four windows with sides of powers of 2 that cover it.

    Args:
      pixels: the features (H, W, C), or with `combine=_largest` a `_Maximum` of them.
      smallest: smallest number of bins along an axis, which defines the largest bin.
      combine: returns the largest of several maxima.
    """

    def __init__(self, pixels: Tree, smallest: int, combine: Callable[..., Tree]):
        self.shape = h, w, channels = jax.tree.leaves(pixels)[0].shape
        self.largest, self.combine = _largest_bins(h, w, smallest), combine
        tables = _max_tables(pixels, *self.largest, combine)
        self.table = jax.tree.map(lambda x: x.reshape(-1, channels), tables)

    def __call__(self, windows: jax.Array, size: int) -> tuple[Tree, jax.Array]:
        """Return the maxima (R, size ** 2, C) of the bins of windows, and which bins (R, size ** 2, 1) have pixels."""
        h, w, channels = self.shape
        x0, y0, x1, y1 = windows.T

        def cover(begin: jax.Array, end: jax.Array, side: int, largest: int) -> tuple:
            """Return the level, the positions of the two windows that cover each bin, and the bins that have pixels."""
            first, last = _bins(begin, end, size, side)
            level = sum(((last - first >= 1 << i) for i in range(1, largest.bit_length())), jnp.zeros_like(first))
            return level, jnp.minimum(first, side - 1), jnp.maximum(last - (1 << level), 0), last > first

        y_level, *y, has_rows = cover(y0, y1, h, self.largest[0])
        x_level, *x, has_columns = cover(x0, x1, w, self.largest[1])
        level = x_level[:, None, :] * self.largest[0].bit_length() + y_level[:, :, None]
        maxima = self.combine(*(
            jax.tree.map(lambda table, index=(level * h + row[:, :, None]) * w + column[:, None, :]:
                         table.at[index].get(mode='clip').reshape(-1, size ** 2, channels), self.table)
            for row in y for column in x))
        return maxima, (has_rows[:, :, None] & has_columns[:, None, :]).reshape(-1, size ** 2, 1)


def _largest_bins(height: int, width: int, smallest: int) -> tuple[int, int]:
    """Return the largest height and width of a bin if there are at least `smallest` of them along an axis.

    The bins of `side + 1` pixels have `(side + 1) / size`, rounded up, or one more where they begin within a pixel.
    """
    rows, columns = (min(side, -(-(side + 1) // smallest) + 1) for side in (height, width))
    return rows, columns


def _bins(begin: jax.Array, end: jax.Array, size: int, side: int) -> tuple[jax.Array, jax.Array]:
    """Return the first and the end pixels (R, size) of the bins of windows (R,) along an axis, clipped to the map."""
    length, index = (end - begin)[:, None], jnp.arange(size)
    return (jnp.clip(begin[:, None] + index * length // size, 0, side),
            jnp.clip(begin[:, None] - (-(index + 1) * length) // size, 0, side))


def _over_channels(pool: Callable[..., jax.Array], smallest: int, *arrays: jax.Array) -> jax.Array:
    """Apply a function of (H, W, C) and (R, B, C) to groups of channels whose tables of maxima have a bounded size."""
    h, w, channels = arrays[0].shape
    rows, columns = _largest_bins(h, w, smallest)
    largest = MAX_TABLES // (rows.bit_length() * columns.bit_length() * h * w)
    groups = next(n for n in range(1, channels + 1) if channels % n == 0 and (channels // n <= largest or n == channels))
    if groups == 1:
        return pool(*arrays)
    pooled = lax.map(lambda group: pool(*group), tuple(
        jnp.moveaxis(x.reshape(*x.shape[:2], groups, -1), 2, 0) for x in arrays))
    return jnp.moveaxis(pooled, 0, 2).reshape(*pooled.shape[1:3], channels)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def pool_windows(features: jax.Array, windows: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
    """Return the maxima of the bins of windows of a feature map.

    The gradient of JAX would add to all tables of maxima. This one adds to the pixel of each maximum.

    Args:
      features: (H, W, C).
      windows: (R, 4) int32, x0, y0 and the ends x1, y1; none is larger than the feature map by more than a pixel.
      sizes: numbers of bins along each axis; the results of all of them are concatenated.

    Returns:
      (R, sum of size ** 2, C); 0 for empty bins.
    """
    def pool(features: jax.Array) -> jax.Array:
        maxima = _WindowMaxima(features, min(sizes), _largest_value)

        def lookup(windows: jax.Array, size: int) -> jax.Array:
            values, exists = maxima(windows, size)
            return jnp.where(exists, values, 0)

        part = region_parts.MAX_PART // features.shape[-1]
        return jnp.concatenate([
            over_parts(functools.partial(lookup, size=size), windows, part // size ** 2) for size in sizes], axis=1)
    return _over_channels(pool, min(sizes), features)


def _pool_windows_forward(features: jax.Array, windows: jax.Array, sizes: tuple[int, ...]) -> tuple:
    return pool_windows(features, windows, sizes), (features, windows)


def _pool_windows_backward(sizes: tuple[int, ...], saved: tuple, g: jax.Array) -> tuple:
    def gradient(features: jax.Array, g: jax.Array) -> jax.Array:
        h, w, channels = features.shape
        pixel = jnp.broadcast_to(jnp.arange(h * w, dtype=jnp.int32).reshape(h, w, 1), features.shape)
        maxima = _WindowMaxima(_Maximum(features, pixel), min(sizes), _largest)
        total, first = jnp.zeros(h * w * channels, g.dtype), 0
        for size in sizes:
            def pixels(windows: jax.Array, size: int = size) -> jax.Array:
                maximum, exists = maxima(windows, size)
                index = maximum.pixel * channels + jnp.arange(channels)
                return jnp.where(exists & (maximum.pixel < h * w), index, h * w * channels)  # nothing is added there

            def add(total: jax.Array, part: tuple) -> tuple[jax.Array, None]:
                return total.at[part[0]].add(part[1]), None

            # Two loops, because XLA would compute the pixels element by element while it adds to them.
            part = region_parts.MAX_PART // (size ** 2 * channels)
            indices = over_parts(pixels, windows, part)
            total = lax.scan(add, total, in_parts((indices, g[:, first:first + size ** 2]), part))[0]
            first += size ** 2
        return total.reshape(features.shape)
    features, windows = saved
    return _over_channels(gradient, min(sizes), features, g), None


pool_windows.defvjp(_pool_windows_forward, _pool_windows_backward)
