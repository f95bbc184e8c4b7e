"""Attribution: which pixels of an image a class score depends on.

Each method is a function `(network, variables, images, classes, ...)` of normalised images, as the network takes them, and
returns a number for each pixel, (N, H, W), or for each pixel and channel, (N, H, W, C). They are compiled once for each
network and shape, and `map_parts` bounds their memory, however many images or steps there are.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.analysis import tracing
from jaxcnn.models import Network

PART_SIZE = 32  # images in one pass through the network


_compiled = functools.partial(jax.jit, static_argnums=0)


@_compiled
def predicted_classes(network: Network, variables: Any, images: jax.Array) -> jax.Array:
    """Return the class with the highest score of each image (N, H, W, C): (N,)."""
    return map_parts(lambda x: jnp.argmax(jnp.asarray(network.apply(variables, x, train=False)), -1), images)


def map_parts(function: Callable[..., jax.Array], *arrays: jax.Array, size: int = PART_SIZE) -> jax.Array:
    """Apply a function of arrays with N rows to parts of at most `size` rows, one after the other.

    Args:
      function: maps arrays (n, ...) to an array (n, ...), each row by itself.
      *arrays: (N, ...), N at least 1. The last part is filled up with copies of the first row.
      size: rows of a part.

    Returns:
      The results of all rows, (N, ...).
    """
    count = len(arrays[0])
    size = min(size, count)
    num_parts = -(-count // size)
    rows = np.concatenate([np.arange(count), np.zeros(num_parts * size - count, int)])
    parts = [jnp.asarray(x)[rows].reshape(num_parts, size, *x.shape[1:]) for x in arrays]
    results: jax.Array = jax.lax.map(lambda part: function(*part), parts)
    return results.reshape(num_parts * size, *results.shape[2:])[:count]


def class_scores(logits: Any, classes: jax.Array) -> jax.Array:
    """Return the score of the class `classes[i]` of each image i: (N,)."""
    return jnp.take_along_axis(logits, classes[:, None], -1)[:, 0]


def _gradient(network: Network, variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
    """Return the gradient of the class scores with respect to the images (N, H, W, C)."""
    def total(x: jax.Array) -> jax.Array:
        return class_scores(network.apply(variables, x, train=False), classes).sum()
    return jax.grad(total)(images)


@_compiled
def saliency(network: Network, variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
    """Return the absolute gradient of the class score (Simonyan et al. 2013, "Deep inside convolutional networks").

    Args:
      network: the network.
      variables: its variables.
      images: (N, H, W, C), normalised.
      classes: (N,) the class whose score is explained, for each image.

    Returns:
      (N, H, W, C). The paper shows the maximum over the channels.
    """
    return map_parts(lambda x, c: jnp.abs(_gradient(network, variables, x, c)), images, classes)


@functools.partial(jax.jit, static_argnums=0, static_argnames='layer')
def gradcam(network: Network, variables: Any, images: jax.Array, classes: jax.Array, layer: str = '') -> jax.Array:
    """Return the class activation map: the channels of a feature map, weighted by the mean gradient of the class score
    (Selvaraju et al. 2017, "Grad-CAM: visual explanations from deep networks via gradient-based localization").

    Args:
      network, variables, images, classes: see `saliency`.
      layer: name of the feature map; by default the last one of more than one pixel.

    Returns:
      (N, H, W), at least 0, resized bilinearly to the images.

    Raises:
      UserError: There is no such feature map, or the logits are not computed from it.
    """
    layer = tracing.find_map(network, variables, images.shape[1:], layer)

    def of_part(x: jax.Array, c: jax.Array) -> jax.Array:
        before, after = tracing.split_at(network, variables, x, layer)
        feature_map = before(x)
        gradient = jax.grad(lambda value: class_scores(after(x, value), c).sum())(feature_map)
        weights = gradient.mean((1, 2), keepdims=True)
        return resize_maps(jax.nn.relu((weights * feature_map).sum(-1)), images.shape[1:3])
    return map_parts(of_part, images, classes)


def resize_maps(maps: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Resize maps (N, h, w) bilinearly to (N, height, width)."""
    return jax.image.resize(maps, (len(maps), *size), 'bilinear')
