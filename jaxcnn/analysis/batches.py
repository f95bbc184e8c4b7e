"""Results of a function for many images, which are computed in batches of one size."""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

BATCH_SIZE = 256


def compute_in_batches(function: Callable[[Any, jax.Array], Any], variables: Any, count: int,
                       take: Callable[[np.ndarray], np.ndarray], batch_size: int = BATCH_SIZE) -> Any:
    """Return the results of a function for `count` images, which is compiled once; see `map_batches`.

    Args:
      function: maps variables and a batch of images to a tree of arrays (n, ...).
      variables: variables of the network.
      count: number of images.
      take: returns the images at indices.
      batch_size: maximum number of images in a batch.
    """
    return map_batches(functools.partial(jax.jit(function), variables), count, take, batch_size)


def map_batches(function: Callable[[Any], Any], count: int, take: Callable[[np.ndarray], Any],
                batch_size: int = BATCH_SIZE) -> Any:
    """Return the results of a function for `count` images, as host arrays.

    Args:
      function: maps a batch of images to a tree of arrays (n, ...). All batches have one size, so that it is compiled once.
      count: number of images.
      take: returns the images at indices, or a tree of arrays with a row for each of them.
      batch_size: maximum number of images in a batch.
    """
    results, size = [], min(batch_size, count)
    for start in range(0, count, size):
        indices = np.minimum(np.arange(start, start + size), count - 1)
        batch = jax.tree.map(np.asarray, function(take(indices)))
        results.append(jax.tree.map(operator.itemgetter(slice(count - start)), batch))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *results)
