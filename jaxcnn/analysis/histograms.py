"""Histograms of arrays, computed on the device, so that only the counts are copied to the host."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

BINS = 64


class Histogram(NamedTuple):
    """The distribution of the finite values of an array.

    Attributes:
      low, high: the smallest and the largest value; infinite if no value is finite.
      size: number of finite values.
      total, total_squares: sum of the values, and of their squares.
      counts: (bins,) number of values in each of the bins of equal width between `low` and `high`.
    """

    low: jax.Array
    high: jax.Array
    size: jax.Array
    total: jax.Array
    total_squares: jax.Array
    counts: jax.Array


def histogram(values: jax.Array, bins: int = BINS) -> Histogram:
    """Return the histogram of an array of any shape. The function can be jitted.

    Args:
      values: real numbers; those that are not finite are left out.
      bins: number of bins of equal width.
    """
    x = jnp.ravel(values).astype(jnp.float32)
    is_finite = jnp.isfinite(x)
    low = jnp.min(x, where=is_finite, initial=jnp.inf)
    high = jnp.max(x, where=is_finite, initial=-jnp.inf)
    width = (high - low) / bins
    index = jnp.floor((x - low) / jnp.where(width > 0, width, 1))
    index = jnp.where(is_finite, jnp.clip(index, 0, bins - 1), bins).astype(jnp.int32)
    counts = jnp.zeros(bins + 1, jnp.int32).at[index].add(1)[:bins]
    finite_values = jnp.where(is_finite, x, 0)
    return Histogram(low, high, is_finite.sum(), finite_values.sum(), (finite_values ** 2).sum(), counts)
