"""Processing of the regions of several images, one image at a time on the CPU, and in parts of bounded memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.errors import UserError

MAX_PART = 1 << 21  # values of the result for the regions that are processed at a time
Tree = Any  # an array, or a pytree of arrays of one shape


def over_images(function: Callable[[jax.Array, jax.Array], jax.Array], features: jax.Array, regions: jax.Array) -> jax.Array:
    """Apply a function of (H, W, C) and (R, ...) to each image of (..., H, W, C) and (..., R, ...).

    A loop over images, which a CPU gets, is not divided over the devices of a sharded batch; other devices vectorise it.
    """
    lead = features.shape[:-3]
    if lead != regions.shape[:len(lead)]:
        raise UserError(f'the features {features.shape} and the regions {regions.shape} have different leading axes')
    if not lead:
        return function(features, regions)
    images, regions = features.reshape(-1, *features.shape[-3:]), regions.reshape(-1, *regions.shape[len(lead):])
    if jax.default_backend() == 'cpu':
        results = lax.map(lambda image: function(*image), (images, regions))
    else:
        results = jax.vmap(function)(images, regions)
    return results.reshape(*lead, *results.shape[1:])


def in_parts(arrays: Tree, part: int) -> Tree:
    """Pad arrays (R, ...) with zeros and reshape them to (parts, regions of a part, ...)."""
    count = len(jax.tree.leaves(arrays)[0])
    part = max(1, min(part, count))
    parts = -(-count // part)
    return jax.tree.map(lambda x: jnp.pad(x, [(0, parts * part - count)] + [(0, 0)] * (x.ndim - 1)).reshape(
        parts, part, *x.shape[1:]), arrays)


def over_parts(function: Callable[[Tree], jax.Array], regions: Tree, part: int) -> jax.Array:
    """Apply a function to `part` regions (R, ...) at a time, and compute it again for its gradient."""
    count = len(jax.tree.leaves(regions)[0])
    if count <= max(1, part):
        return function(regions)
    results = lax.map(jax.checkpoint(function), in_parts(regions, part))
    return results.reshape(-1, *results.shape[2:])[:count]
