"""A data set as training sees it: train, validation and test parts of uint8 images, and what is known of them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcnn.config import DataConfig
from jaxcnn.data import cache, sources
from jaxcnn.errors import UserError


@dataclasses.dataclass(frozen=True)
class Split:
    """Images of one part, by position.

    Attributes:
      images: array or file of uint8 (M, H, W, C), of which `index` picks this part.
      index: (N,) positions in `images`.
      labels: (N,) int32.
    """

    images: Any
    index: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded images."""
        return len(self) * int(np.prod(self.images.shape[1:]))

    def take(self, positions: np.ndarray) -> np.ndarray:
        """Images at `positions` (any shape S): uint8 (*S, H, W, C)."""
        return self.images[self.index[positions]]

    def class_counts(self, num_classes: int) -> list[int]:
        """Images of each class."""
        return np.bincount(self.labels, minlength=num_classes).tolist()


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A loaded data set.

    Attributes:
      splits: `train`, `test` and, where `val_fraction` is above zero, `val`.
      mean, std: per channel, of pixels scaled to [0, 1], over the training part.
      ink: see `sources.Source`.
    """

    name: str
    class_names: Sequence[str]
    splits: dict[str, Split]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    ink: sources.Ink | None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.splits['train'].images.shape[1:]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def info(self) -> dict[str, Any]:
        """What a trained network needs to be told of its data, for `data.json`."""
        return {'name': self.name, 'class_names': list(self.class_names), 'image_shape': list(self.image_shape),
                'mean': list(self.mean), 'std': list(self.std), 'ink': dataclasses.asdict(self.ink) if self.ink else None,
                'sizes': {name: len(split) for name, split in self.splits.items()}}

    def is_that_of(self, info: Any) -> bool:
        """Whether `info`, as a workdir holds it, tells of this data."""
        mine = self.info()
        return isinstance(info, dict) and all(
            info.get(k) == mine[k] for k in ('class_names', 'image_shape', 'sizes', 'mean', 'std'))


def channel_statistics(split: Split, block: int = 4096) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of pixels in [0, 1], summed exactly in integers.

    A channel that never varies gets deviation 1, so that standardising leaves it at zero.
    """
    channels = split.images.shape[-1]
    total, squares, count = np.zeros(channels, np.int64), np.zeros(channels, np.int64), 0
    for start in range(0, len(split), block):
        pixels = split.take(np.arange(start, min(start + block, len(split)))).reshape(-1, channels)
        for c in range(channels):
            histogram = np.bincount(pixels[:, c], minlength=256)
            total[c] += histogram @ np.arange(256)
            squares[c] += histogram @ np.arange(256) ** 2
        count += len(pixels)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean ** 2, 0))
    return tuple((mean / 255).tolist()), tuple(np.where(std > 0, std / 255, 1.0).tolist())


def load(config: DataConfig) -> Dataset:
    """The data set of `config`, decoded into or read from the cache.

    Raises:
      UserError: unknown or missing data, broken images, or too few images for a validation part.
    """
    source = sources.find(config)
    meta, parts = cache.open_cache(config.name, source, config.image_size, config.cache_dir)
    images, labels = parts['train']
    everything = np.arange(len(labels))
    splits = {'train': Split(images, everything, labels)}
    if config.val_fraction:
        train, val = sources.stratified_cut(labels, config.val_fraction, config.split_seed)
        if not len(train) or not len(val):
            raise UserError(f'config.data.val_fraction: {config.val_fraction} of {len(labels)} images leaves an empty part')
        splits = {'train': Split(images, train, labels[train]), 'val': Split(images, val, labels[val])}
    splits['test'] = Split(parts['test'][0], np.arange(len(parts['test'][1])), parts['test'][1])
    mean, std = channel_statistics(splits['train'])
    return Dataset(config.name, meta['class_names'], splits, mean, std, source.ink)
