"""Occlusion: how a network's outputs change while a square slides over the image.

See Zeiler & Fergus 2013, "Visualizing and understanding convolutional networks".
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.analysis import tracing
from jaxcnn.analysis.attribution import class_scores, map_parts, map_steps, require_positive, rows_of
from jaxcnn.errors import UserError
from jaxcnn.models import Network

_SQUARES_IN_SIDE = 5  # the paper's square is about a fifth of the side of the image
_POSITIONS_IN_SIDE = 28  # at most, by default


@dataclasses.dataclass(frozen=True)
class Grid:
    """The positions of the square. The last one of a row or column may reach over the edge.

    Attributes:
      height, width: size of the image.
      size: side of the square.
      stride: distance between positions.
    """

    height: int
    width: int
    size: int
    stride: int

    @classmethod
    def for_images(cls, shape: tuple[int, ...], size: int = 0, stride: int = 0) -> 'Grid':
        """Return the positions for images of shape (H, W, C).

        Args:
          shape: shape of the images.
          size: side of the square; 0 for a fifth of the shorter side of the image.
          stride: distance between positions; 0 for the smallest with at most 28 positions along the longer side, or
            the size of the square if it is smaller.

        Raises:
          UserError: The size or the stride is negative, the square is larger than the image, or the stride is larger than
            the square, so that some pixels are never covered.
        """
        height, width = shape[:2]
        size = size or max(1, round(min(height, width) / _SQUARES_IN_SIDE))
        stride = stride or min(size, max(1, -(-(max(height, width) - size) // (_POSITIONS_IN_SIDE - 1))))
        require_positive('size', size)
        require_positive('stride', stride)
        if size > min(height, width):
            raise UserError(f'expected at most the side of the image, {min(height, width)}, got {size}', field='size')
        if stride > size:
            raise UserError(f'expected at most the size of the square, {size}, got {stride}', field='stride')
        return cls(height, width, size, stride)

    @property
    def shape(self) -> tuple[int, int]:
        """The number of positions along the height and along the width."""
        return -(-(self.height - self.size) // self.stride) + 1, -(-(self.width - self.size) // self.stride) + 1

    def covered(self) -> tuple[np.ndarray, np.ndarray]:
        """Return which rows and which columns of the image the square covers: bool (rows, H) and (columns, W)."""
        def along(count: int, side: int) -> np.ndarray:
            first = np.arange(count)[:, None] * self.stride
            return (np.arange(side) >= first) & (np.arange(side) < first + self.size)
        return along(self.shape[0], self.height), along(self.shape[1], self.width)


def _map_occluded(function: Callable[[jax.Array, jax.Array], Any], grid: Grid, images: jax.Array, fill: Any) -> Any:
    """Apply a function to images with the square at each position.

    Args:
      function: maps images (n, H, W, C) and their numbers (n,) to a tree of arrays (n, ...).
      grid: the positions.
      images: (N, H, W, C).
      fill: value of the square's pixels, which broadcasts to the images.

    Returns:
      A tree of arrays (N, rows, columns, ...).
    """
    rows, columns = map(jnp.asarray, grid.covered())
    num_rows, num_columns = grid.shape
    fill_rows = rows_of(fill, images)

    def apply(numbers: jax.Array, positions: jax.Array) -> Any:
        mask = rows[positions // num_columns][:, :, None] & columns[positions % num_columns][:, None, :]
        return function(jnp.where(mask[..., None], fill_rows(numbers), images[numbers]), numbers)
    results = map_steps(apply, len(images), num_rows * num_columns)
    return jax.tree.map(lambda x: x.reshape(len(images), num_rows, num_columns, *x.shape[2:]), results)


@functools.partial(jax.jit, static_argnames=('network', 'size', 'stride'))
def occlusion(network: Network, variables: Any, images: jax.Array, classes: jax.Array, size: int = 0, stride: int = 0,
              fill: Any = 0.0) -> jax.Array:
    """Return how far the class score falls when a square covers a pixel (Zeiler & Fergus 2013, "Visualizing and
    understanding convolutional networks"), on average over the positions that cover it.

    Args:
      network: the network.
      variables: its variables.
      images: (N, H, W, C), normalised.
      classes: (N,) the class whose score is explained, for each image.
      size, stride: side of the square and distance between its positions, see `Grid.for_images`.
      fill: normalised value of the square's pixels, of a shape that broadcasts to that of the images.

    Returns:
      (N, H, W), signed.

    Raises:
      UserError: See `Grid.for_images`.
    """
    grid = Grid.for_images(images.shape[1:], size, stride)

    def scores(x: jax.Array, numbers: jax.Array) -> jax.Array:
        return class_scores(network.apply(variables, x, train=False), classes[numbers])
    unchanged = map_parts(lambda x, c: class_scores(network.apply(variables, x, train=False), c), images, classes)
    drops = unchanged[:, None, None] - _map_occluded(scores, grid, images, fill)
    rows, columns = (x.astype(np.float32) for x in grid.covered())
    total = jnp.einsum('nij,ih,jw->nhw', drops, rows, columns, precision='highest')
    return total / (rows.sum(0)[:, None] * columns.sum(0))


@functools.partial(jax.jit, static_argnames=('network', 'layer', 'size', 'stride', 'predict'))
def occlusion_responses(network: Network, variables: Any, images: jax.Array, classes: jax.Array, layer: str = '',
                        size: int = 0, stride: int = 0, fill: Any = 0.0,
                        predict: Callable[[jax.Array], jax.Array] = jax.nn.softmax) -> dict[str, jax.Array]:
    """Return what the network computes for each position of the square, as in figure 7 of Zeiler & Fergus 2013.

    Args:
      network, variables, images, classes, size, stride, fill: see `occlusion`.
      layer: name of a feature map; by default the last one of more than one pixel.
      predict: maps logits to probabilities.

    Returns:
      `probability` of the class, (N, rows, columns); `activation`, the sum over the feature map of the channel with the
      largest sum for the unchanged image, (N, rows, columns); `best_class`, the most probable class, (N, rows, columns);
      `channel`, the number of that channel, (N,).

    Raises:
      UserError: There is no such feature map, or see `Grid.for_images`.
    """
    layer = tracing.find_map(network, variables, images.shape[1:], layer)
    grid = Grid.for_images(images.shape[1:], size, stride)

    def apply(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, maps = network.apply(variables, x, train=False, features=True)
        return predict(jnp.asarray(logits, jnp.float32)), maps[layer].astype(jnp.float32).sum((1, 2))
    channels = map_parts(lambda x: jnp.argmax(apply(x)[1], -1), images)

    def responses(x: jax.Array, numbers: jax.Array) -> dict[str, jax.Array]:
        probabilities, activations = apply(x)
        return {'probability': class_scores(probabilities, classes[numbers]),
                'activation': class_scores(activations, channels[numbers]),
                'best_class': jnp.argmax(probabilities, -1)}
    return {**_map_occluded(responses, grid, images, fill), 'channel': channels}
