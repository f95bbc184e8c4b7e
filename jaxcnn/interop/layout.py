"""Conversion of arrays between the layouts of Flax and PyTorch, with NumPy alone.

PyTorch stores the kernel of a convolution as (features, C / groups, H, W) and Flax as (H, W, C / groups, features). A dense
layer has (features, C) in PyTorch and (C, features) in Flax; behind a flattened map, C runs over (channel, row, column) in
PyTorch and over (row, column, channel) in Flax.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Pair:
    """A Flax layer and the same layer of a PyTorch module.

    Attributes:
      flax_path: path of the Flax module.
      torch_name: name of the PyTorch module.
      channels: channels of the map (H, W, channels) that a dense layer takes flattened, which PyTorch orders differently;
        None for other layers.
      kernel: shape of the Flax kernel, (H, W, C / groups, features) or (C, features); () for normalisation.
    """

    flax_path: Path
    torch_name: str
    channels: int | None
    kernel: tuple[int, ...]


def _identity(array: np.ndarray) -> np.ndarray:
    return array


@dataclasses.dataclass(frozen=True)
class Leaf:
    """An array of a pair of layers: its Flax collection and path, its PyTorch name, and the conversions between the two.

    `to_flax` gives an array of another size than the Flax kernel the shape that a Flax layer of that size would have.
    """

    collection: str
    path: Path
    torch_name: str
    to_flax: Callable[[np.ndarray], np.ndarray] = _identity
    to_torch: Callable[[np.ndarray], np.ndarray] = _identity


def leaves(pair: Pair, tensors: Mapping[str, Any]) -> Iterator[Leaf]:
    """Yield those arrays of a pair that are in `tensors`, which hold NumPy arrays or PyTorch tensors by name."""
    prefix = f'{pair.torch_name}.' if pair.torch_name else ''
    weight = f'{prefix}weight'
    if weight in tensors and pair.kernel:
        shape = tuple(tensors[weight].shape)
        channels = pair.channels or shape[1]

        def to_torch(kernel: np.ndarray) -> np.ndarray:
            return kernel.reshape(-1, channels, kernel.shape[-1]).transpose(2, 1, 0).reshape(shape)
        yield Leaf('params', (*pair.flax_path, 'kernel'), weight, lambda w: _flax_kernel(w, pair), to_torch)
    elif weight in tensors:
        yield Leaf('params', (*pair.flax_path, 'scale'), weight)
    for collection, name, torch_name in (('params', 'bias', 'bias'), ('batch_stats', 'mean', 'running_mean'),
                                         ('batch_stats', 'var', 'running_var')):
        if prefix + torch_name in tensors:
            yield Leaf(collection, (*pair.flax_path, name), prefix + torch_name)


def _flax_kernel(weight: np.ndarray, pair: Pair) -> np.ndarray:
    """Return a PyTorch weight in Flax's layout, with as many axes as the kernel of the pair."""
    channels = pair.channels if pair.channels and weight[0].size % pair.channels == 0 else weight.shape[1]
    by_pixel = weight.reshape(len(weight), channels, -1).transpose(2, 1, 0)  # (H * W, C / groups, features)
    if len(pair.kernel) == 2:
        return by_pixel.reshape(-1, len(weight))
    if weight.ndim == 4:
        return by_pixel.reshape(*weight.shape[2:], *by_pixel.shape[1:])
    return by_pixel.reshape(pair.kernel if by_pixel.size == np.prod(pair.kernel) else (1, *by_pixel.shape))
