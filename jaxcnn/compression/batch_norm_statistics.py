"""Estimates BatchNorm statistics anew, for a network whose weights were changed without training."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.data import Split
from jaxcnn.models import Network
from jaxcnn.preprocessing import Preprocessor

_BATCH_SIZE = 64  # of an estimate


def estimate(network: Network, params: Any, batch_stats: Any, preprocessor: Preprocessor, split: Split, num_images: int,
             seed: int) -> Any:
    """Return the statistics of BatchNorm as means over batches of images, without augmentation.

    Removing channels changes the inputs of all later layers, so the running statistics no longer hold. The statistics of
    batches of 64 images are averaged (Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm"); the variance is the mean of
    those within batches, as in the running statistics of training.

    Args:
      network: the network.
      params: its parameters.
      batch_stats: its statistics, of which there are some.
      preprocessor: makes the inputs of the network from images.
      split: the images, usually those of training.
      num_images: how many of them are drawn; a last incomplete batch is left out, unless it is the only one.
      seed: seed of the draw, and of dropout.
    """
    network = network.clone(bn_momentum=0.0, bn_frozen=False)

    @jax.jit
    def of_batch(images: jax.Array, key: jax.Array) -> Any:
        _, updates = network.apply({'params': params, 'batch_stats': batch_stats}, preprocessor(images), train=True,
                                   rngs={'dropout': key}, mutable=['batch_stats'])
        return updates['batch_stats']

    positions = np.random.default_rng(seed).permutation(len(split))[:num_images]
    num_batches = max(1, len(positions) // _BATCH_SIZE)
    batches = [np.sort(positions[i * _BATCH_SIZE:(i + 1) * _BATCH_SIZE]) for i in range(num_batches)]
    total = jax.tree.map(lambda x: jnp.zeros_like(x, jnp.float32), batch_stats)
    for batch, key in zip(batches, jax.random.split(jax.random.key(seed), num_batches), strict=True):
        total = jax.tree.map(jnp.add, total, of_batch(split.take(batch), key))
    return jax.tree.map(lambda x, old: np.asarray(x / num_batches, old.dtype), total, batch_stats)
