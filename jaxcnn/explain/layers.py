"""What a view of a layer needs: the layer with its channels or its place, and parts of a split."""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxcnn.analysis import tracing
from jaxcnn.analysis.batches import map_batches
from jaxcnn.analysis.feature_maximization import LOGITS
from jaxcnn.errors import UserError, unknown
from jaxcnn.explain.request import Request
from jaxcnn.models import Network


@dataclasses.dataclass(frozen=True)
class Layer:
    """Channels of a feature map, or classes.

    Attributes:
      name: name of the feature map, or `logits`.
      shape: (H, W, C) of the feature map; (classes,) of the logits.
      channels: the channels.
    """

    name: str
    shape: tuple[int, ...]
    channels: tuple[int, ...]

    def title(self, request: Request, channel: int) -> str:
        """Return a title of a channel: its number, or the name of the class."""
        return str(request.run.info['class_names'][channel]) if self.name == LOGITS else f'{self.name}:{channel}'


def check_options(minimum: float, **options: Any) -> None:
    """Check that numbers are finite and at least `minimum`. Their types are checked by `views.parse`.

    Args:
      minimum: the smallest value; a float if the options need not be whole numbers.
      **options: the values of the options by name.

    Raises:
      UserError: An option is smaller, or not finite.
    """
    for name, value in options.items():
        if not minimum <= value < math.inf:
            noun = 'a whole number' if isinstance(minimum, int) else 'a number'
            raise UserError(f'expected {noun} of at least {minimum:g}, got {value!r}', field=name)


def network_of(request: Request) -> tuple[Network, Any, tuple[int, int, int]]:
    """Return the network, its variables and the shape (H, W, C) of its images."""
    run = request.run
    return run.experiment.network, run.variables, run.experiment.image_shape


def map_shapes(request: Request) -> dict[str, tuple[int, ...]]:
    """Return the shape of each feature map of the run's network by name.

    Raises:
      UserError: The network has none.
    """
    network, variables, image_shape = network_of(request)
    shapes = tracing.map_shapes(network, variables, image_shape)
    if not shapes:
        raise UserError(f'the network {type(network).__name__} has no feature maps',
                        hint='its method forward adds them to the dict `maps`')
    return shapes


def find_map(request: Request, name: str) -> tuple[str, tuple[int, ...]]:
    """Return a feature map and its shape: `name`, or by default the last one of more than one pixel.

    Raises:
      UserError: The network has no such feature map.
    """
    shapes = map_shapes(request)
    name = tracing.find_map(*network_of(request), name)
    return name, shapes[name]


def parse_layer(request: Request, text: str, count: int, logits: bool = False) -> Layer:
    """Return the layer and the channels of a text such as `conv4`, `conv4:3`, `conv4:3,7`, `conv4:0-8` or `logits:dog`.

    Args:
      request: the request.
      text: the text; empty for the last feature map of more than one pixel.
      count: number of channels if the text names none; the first ones.
      logits: whether the layer may be the logits.

    Raises:
      UserError: There is no such layer, channel or class.
    """
    name, _, channels_text = text.partition(':')
    shape: tuple[int, ...]
    if logits and name == LOGITS:
        shape = (request.run.experiment.task.num_classes,)
    elif logits and name and name not in (shapes := map_shapes(request)):
        raise unknown('layer', name, [*shapes, LOGITS])
    else:
        name, shape = find_map(request, name)
    if not channels_text:
        return Layer(name, shape, tuple(range(min(count, shape[-1]))))
    channels: list[int] = []
    for item in channels_text.split(','):
        first, _, last = item.partition('-')
        if name == LOGITS:
            channels.append(request.class_number(item, field=None))
        elif not re.fullmatch('[0-9]+(-[0-9]+)?', item) or (last and int(last) < int(first)):
            raise UserError(f'expected channels as in {name}:3, {name}:3,7 or {name}:0-8, got {text!r}')
        else:
            channels += range(int(first), int(last or first) + 1)
    if wrong := [c for c in channels if c >= shape[-1]]:
        raise UserError(f'{name!r} has no channel {wrong[0]}', hint=f'nearest: {shape[-1] - 1}, its last one')
    return Layer(name, shape, tuple(channels))


def parse_element(request: Request, text: str) -> tuple[str, int, int]:
    """Return the feature map, row and column of a text such as `conv4:3,5`; by default the middle of the last map.

    Raises:
      UserError: There is no such layer or element.
    """
    name, _, element = text.partition(':')
    name, (height, width, _) = find_map(request, name)
    if not element:
        return name, height // 2, width // 2
    row, _, column = element.partition(',')
    if not (row.isascii() and row.isdigit() and column.isascii() and column.isdigit()):
        raise UserError(f'expected a row and a column as in {name}:3,5, got {text!r}')
    if int(row) >= height or int(column) >= width:
        raise UserError(f'no element {row},{column} of {name!r}, whose maps have {height} rows and {width} columns',
                        hint=f'nearest: {min(int(row), height - 1)},{min(int(column), width - 1)}')
    return name, int(row), int(column)


def find_split(request: Request, name: str = '') -> str:
    """Return the split whose images are searched: `name`, or by default the validation split if there is one.

    Raises:
      UserError: There is no such split.
    """
    splits = request.dataset.splits
    name = name or ('val' if 'val' in splits else 'test')
    if name not in splits:
        raise unknown('split', name, splits)
    return name


def map_split(request: Request, split: str, function: Callable[[jax.Array], Any], max_images: int = 0) -> Any:
    """Return the results of a function of normalised images for all images of a split, as host arrays.

    Args:
      request: the request.
      split: name of the split.
      function: maps images (n, H, W, C) to a tree of arrays (n, ...).
      max_images: number of images, the first ones; 0: all.
    """
    images = request.dataset.splits[split]
    count = min(len(images), max_images or len(images))
    preprocess = jax.jit(request.run.experiment.preprocessor.__call__)
    return map_batches(lambda batch: function(preprocess(batch)), count, images.take)


def take(request: Request, split: str, positions: Sequence[int] | np.ndarray) -> tuple[jax.Array, np.ndarray]:
    """Return images of a split: as the network takes them, and as pixels in [0, 1]."""
    images = request.dataset.splits[split].take(np.asarray(positions))
    preprocessor = request.run.experiment.preprocessor
    return jax.jit(preprocessor.__call__)(images), np.asarray(jax.jit(preprocessor.pixels)(images))
