"""Invariance of features to translation, scale and rotation, as in figure 5 of Zeiler & Fergus 2013."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.analysis.attribution import class_scores, map_parts
from jaxcnn.data.augment.affine import affine_matrix, warp
from jaxcnn.models import Network


class Invariance(NamedTuple):
    """Responses to transformed images.

    Attributes:
      distances: (T, N, layers) Euclidean distance between the features of the transformed image and of the original.
      probabilities: (T, N) probability of the class of each image.
    """

    distances: jax.Array
    probabilities: jax.Array


def transformation_matrices(image_shape: Sequence[int], kind: str, values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return a matrix for `warp` for each amount of a transformation: (T, 2, 3).

    Args:
      image_shape: (H, W, ...).
      kind: `translation`, down by a fraction of the height; `scale`, a factor; or `rotation`, counterclockwise in degrees.
      values: the amounts.
    """
    shape = tuple(image_shape)
    arguments = {'translation': lambda v: {'translate': (0.0, v * shape[0])}, 'scale': lambda v: {'scale': v},
                 'rotation': lambda v: {'degrees': v}}[kind]
    matrices = jax.jit(jax.vmap(lambda v: affine_matrix(shape, **arguments(v))))(jnp.asarray(values, jnp.float32))
    return np.asarray(matrices)


@jax.jit
def transform(pixels: jax.Array, matrices: jax.Array) -> jax.Array:
    """Apply each matrix (T, 2, 3) to each image (N, H, W, C): (T, N, H, W, C).

    The interpolation is bilinear, and pixels from outside an image have its mean colour.
    """
    def of_image(image: jax.Array, matrix: jax.Array) -> jax.Array:
        return warp(image, matrix, fill=image.mean((0, 1)))
    return jax.vmap(lambda m: jax.vmap(lambda image: of_image(image, m))(pixels))(matrices)


@functools.partial(jax.jit, static_argnames=('network', 'layers'))
def invariance(network: Network, variables: Any, images: jax.Array, transformed: jax.Array, classes: jax.Array,
               layers: tuple[str, ...]) -> Invariance:
    """Compare the responses to transformed images with those to the originals.

    Args:
      network: a network whose outputs are logits of classes.
      variables: its variables.
      images: (N, H, W, C), normalised.
      transformed: (T, N, H, W, C), likewise.
      classes: (N,) class of each image.
      layers: names of feature maps.
    """
    def respond(x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        logits, maps = network.apply(variables, x, train=False, features=True)
        features = [maps[layer].astype(jnp.float32).reshape(len(x), -1) for layer in layers]
        return jax.nn.softmax(jnp.asarray(logits, jnp.float32)), features

    def of_part(x: jax.Array, original: jax.Array, c: jax.Array) -> Invariance:
        (probabilities, features), (_, original_features) = respond(x), respond(original)
        distances = [jnp.linalg.norm(a - b, axis=1) for a, b in zip(features, original_features, strict=True)]
        return Invariance(jnp.stack(distances, -1), class_scores(probabilities, c))
    count = len(transformed)
    flat = transformed.reshape(-1, *images.shape[1:])
    result = map_parts(of_part, flat, jnp.tile(images, (count, 1, 1, 1)), jnp.tile(classes, count))
    return Invariance(*(values.reshape(count, len(images), *values.shape[1:]) for values in result))
