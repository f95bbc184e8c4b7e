"""Attribution by class activation maps: weighted sums of the channels of a feature map.

All methods return maps of at least 0, resized bilinearly to the images, (N, H, W).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxcnn.analysis import tracing
from jaxcnn.analysis.attribution import class_scores, map_parts, map_steps
from jaxcnn.models import Network

_compiled = functools.partial(jax.jit, static_argnames=('network', 'layer'))


@_compiled
def gradcam(network: Network, variables: Any, images: jax.Array, classes: jax.Array, layer: str = '') -> jax.Array:
    """Return the channels of a feature map, weighted by the mean gradient of the class score (Selvaraju et al. 2017,
    "Grad-CAM: visual explanations from deep networks via gradient-based localization").

    Args:
      network: the network.
      variables: its variables.
      images: (N, H, W, C), normalised.
      classes: (N,) the class whose score is explained, for each image.
      layer: name of the feature map; by default the last one of more than one pixel.

    Returns:
      (N, H, W).

    Raises:
      UserError: There is no such feature map, or the logits are not computed from it.
    """
    def combine(feature_map: jax.Array, gradient: jax.Array) -> jax.Array:
        return gradient.mean((1, 2), keepdims=True) * feature_map
    return _class_activation(network, variables, images, classes, layer, combine)


@_compiled
def gradcam_plus_plus(network: Network, variables: Any, images: jax.Array, classes: jax.Array, layer: str = '') -> jax.Array:
    """Return the channels of a feature map, weighted by a weighted mean of the positive gradients of the class score
    (Chattopadhay et al. 2018, "Grad-CAM++: improved visual explanations for deep convolutional networks").

    The weights are those of the paper for the exponential of the class score.

    Args:
      network, variables, images, classes, layer: see `gradcam`.

    Returns:
      (N, H, W).

    Raises:
      UserError: See `gradcam`.
    """
    def combine(feature_map: jax.Array, gradient: jax.Array) -> jax.Array:
        activation = feature_map.sum((1, 2), keepdims=True)
        denominator = 2 * gradient ** 2 + activation * gradient ** 3
        weights = jnp.where(denominator == 0, 0, gradient ** 2 / jnp.where(denominator == 0, 1, denominator))
        return (weights * jax.nn.relu(gradient)).sum((1, 2), keepdims=True) * feature_map
    return _class_activation(network, variables, images, classes, layer, combine)


@_compiled
def layercam(network: Network, variables: Any, images: jax.Array, classes: jax.Array, layer: str = '') -> jax.Array:
    """Return the sum of a feature map's channels, each pixel weighted by its own positive gradient (Jiang et al. 2021,
    "LayerCAM: exploring hierarchical class activation maps for localization"), which suits early feature maps, too.

    Args:
      network, variables, images, classes, layer: see `gradcam`.

    Returns:
      (N, H, W).

    Raises:
      UserError: See `gradcam`.
    """
    def combine(feature_map: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.nn.relu(gradient) * feature_map
    return _class_activation(network, variables, images, classes, layer, combine)


@_compiled
def scorecam(network: Network, variables: Any, images: jax.Array, classes: jax.Array, layer: str = '') -> jax.Array:
    """Return the channels of a feature map, weighted by the class score of the image where the channel is active (Wang et
    al. 2020, "Score-CAM: score-weighted visual explanations for convolutional neural networks").

    It needs no gradient, but a pass through the network for each channel.

    Args:
      network, variables, images, classes, layer: see `gradcam`.

    Returns:
      (N, H, W).

    Raises:
      UserError: There is no such feature map.
    """
    layer = tracing.find_map(network, variables, images.shape[1:], layer)
    size = images.shape[1:3]

    def map_of_part(x: jax.Array, c: jax.Array) -> jax.Array:
        _, maps = network.apply(variables, x, train=False, features=True)
        feature_map = maps[layer].astype(jnp.float32)

        def masked_scores(rows: jax.Array, channels: jax.Array) -> jax.Array:
            masks = resize_maps(jnp.take_along_axis(feature_map[rows], channels[:, None, None, None], -1)[..., 0], size)
            low, high = masks.min((1, 2), keepdims=True), masks.max((1, 2), keepdims=True)
            masks = jnp.where(high > low, (masks - low) / jnp.where(high > low, high - low, 1), 0)
            return class_scores(network.apply(variables, x[rows] * masks[..., None], train=False), c[rows])
        weights = jax.nn.softmax(map_steps(masked_scores, len(x), feature_map.shape[-1]))
        return _as_attribution(weights[:, None, None] * feature_map, size)
    result: jax.Array = map_parts(map_of_part, images, classes)
    return result


def _class_activation(network: Network, variables: Any, images: jax.Array, classes: jax.Array, layer: str,
                      combine: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    """Return the class activation maps, given a function that weights a feature map by the gradient of the class score."""
    layer = tracing.find_map(network, variables, images.shape[1:], layer)

    def map_of_part(x: jax.Array, c: jax.Array) -> jax.Array:
        before, after = tracing.split_at(network, variables, x, layer)
        feature_map = before(x)
        gradient = jax.grad(lambda value: class_scores(after(x, value), c).sum())(feature_map)
        combined = combine(feature_map.astype(jnp.float32), gradient.astype(jnp.float32))
        return _as_attribution(combined, images.shape[1:3])
    result: jax.Array = map_parts(map_of_part, images, classes)
    return result


def _as_attribution(weighted_map: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Return the positive part of the sum over the channels of a map (N, h, w, C), resized to the images."""
    return resize_maps(jax.nn.relu(weighted_map.sum(-1)), size)


def resize_maps(maps: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Resize maps (N, h, w) bilinearly to (N, height, width)."""
    return jax.image.resize(maps, (len(maps), *size), 'bilinear')
