"""Where images come from: one function per kind of data set, in a registry.

A source names its splits and gives random access to examples, which are not decoded before they are read.
`dataset.load` decodes each image once into the cache (`cache.py`).
"""

import contextlib
import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jaxcnn.config import DataConfig
from jaxcnn.data.targets import LABEL, TargetKind
from jaxcnn.errors import UserError, name_field, unknown

Example = dict[str, Any]


class Examples(Protocol):
    """Random access to one split."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """Return an example: its `image`, uint8 (H, W, C), and its targets by name."""


@dataclasses.dataclass(frozen=True)
class Ink:
    """How a data set frames handwriting, light ink on black; a person's own picture is brought into this form.

    Attributes:
      size: pixels of the square image, before any resizing.
      box: pixels of the square that the ink's bounding box is fitted into.
      by_mass: the ink's centre of mass is at the image's centre; else the box's centre is.
    """

    size: int
    box: int
    by_mass: bool


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set that has been found but not yet read.

    Attributes:
      where: the folder, or what else to name when something is wrong with it.
      key: JSON-able; changes whenever the images could.
      splits: reads a split: `train` and, where the data has them, `val` and `test`.
      class_names: gives the classes in the order of their labels.
      ink: for handwriting; None for photographs.
      val_fraction: of the training images, what is kept apart for validation where the config does not say.
      kind: what its examples hold beside their images.
    """

    where: str
    key: dict[str, Any]
    splits: dict[str, Callable[[], Examples]]
    class_names: Callable[[], Sequence[str]]
    ink: Ink | None = None
    val_fraction: float = 0.1
    kind: TargetKind = LABEL


_SOURCES: dict[tuple[str, str], Callable[[DataConfig], Source]] = {}  # by name and kind of targets


def add_source(name: str, find: Callable[[DataConfig], Source], kind: TargetKind = LABEL) -> None:
    """Registers a data set, or a layout of files, whose examples have targets of a kind."""
    _SOURCES[name, kind.name] = find


def names(kind: TargetKind | None = None) -> list[str]:
    """Return the registered data sets and layouts; `kind`: those with such targets alone."""
    return sorted({name for name, of_kind in _SOURCES if kind is None or of_kind == kind.name})


def find(config: DataConfig, kind: TargetKind = LABEL) -> Source:
    """Return the source called `config.name`: a registered one, or any prepared TFDS classification set.

    Raises:
      UserError: The name is unknown, the data is missing, or its examples have no targets of this kind.
    """
    root = _tfds_root(config)
    if (config.name, kind.name) in _SOURCES:
        find_source = _SOURCES[config.name, kind.name]
    elif config.name in names() or kind is not LABEL:
        raise UserError(f'{config.name!r} does not have {kind.description}, which config.task needs',
                        field='config.data.name', hint=f'these have: {", ".join(names(kind))}')
    elif re.fullmatch(r'[a-z][a-z0-9_]*(/[\w.]+)?', config.name) and os.path.isdir(os.path.join(root, config.name)):
        find_source = _tfds(config.name)
    else:
        error = unknown('data set', config.name, names(), 'config.data.name')
        error.add_hint(f'any other TFDS set must be prepared in {root!r} (config.data.dir)')
        raise error
    with name_field('config.data.dir'):
        return find_source(config)


@dataclasses.dataclass(frozen=True)
class InMemory:
    """A split in memory: images uint8 (N, H, W, C), and targets by name, (N, ...) each."""

    images: np.ndarray
    targets: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        return {'image': self.images[index], **{name: values[index] for name, values in self.targets.items()}}


def stratified_cut(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of the (larger, smaller) part, the smaller holding `fraction` of every class.

    The smaller part has `round(fraction * len(labels))` members; classes whose share is not whole are rounded by
    largest remainder.
    """
    rng = np.random.Generator(np.random.PCG64([seed, 0x5EED]))
    classes, counts = np.unique(labels, return_counts=True)
    shares = counts * fraction
    take = np.floor(shares).astype(int)
    missing = round(fraction * len(labels)) - int(take.sum())
    take[np.argsort(take - shares, kind='stable')[:missing]] += 1
    small = np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:k] for c, k in zip(classes, take, strict=True)])
    chosen = np.zeros(len(labels), bool)
    chosen[small.astype(int)] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _digits(config: DataConfig) -> Source:
    """scikit-learn's handwritten digits: 1,797 images of 8x8, a fixed fifth of each class kept as test part."""
    @functools.cache
    def parts() -> dict[str, InMemory]:
        from sklearn.datasets import load_digits
        bunch = load_digits()
        images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]  # (1797, 8, 8, 1)
        train, test = stratified_cut(bunch.target, 0.2, seed=0)
        return {'train': InMemory(images[train], {'label': bunch.target[train]}),
                'test': InMemory(images[test], {'label': bunch.target[test]})}

    return Source('scikit-learn', key={'source': 'digits', 'version': 1},
                  splits={'train': lambda: parts()['train'], 'test': lambda: parts()['test']},
                  class_names=lambda: [str(i) for i in range(10)], ink=Ink(8, 8, by_mass=False))


@dataclasses.dataclass(frozen=True)
class _Tfds:
    data: Any

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Example:
        example = self.data[index]
        return {'image': example['image'], 'label': example['label']}


def _tfds_root(config: DataConfig) -> str:
    return os.path.expanduser(config.dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets')


def _tfds(name: str, ink: Ink | None = None) -> Callable[[DataConfig], Source]:
    """A prepared TFDS data set, read through `tfds.data_source`: needs no TensorFlow."""
    def find_prepared(config: DataConfig) -> Source:
        root = _tfds_root(config)
        folder = os.path.join(root, name)
        versions = sorted((v for v in (os.listdir(folder) if os.path.isdir(folder) else [])
                           if os.path.isfile(os.path.join(folder, v, 'dataset_info.json'))),
                          key=lambda v: [int(n) if n.isdigit() else 0 for n in v.split('.')])
        if not versions:
            raise UserError(f"data set {name!r} is not prepared in {root!r}; prepare it once: "
                            f"pip install 'jaxcnn[prepare]' && tfds build {name} --file_format=array_record "
                            f'--data_dir={root}')
        version = os.path.join(folder, versions[-1])
        files = sorted(os.listdir(version))
        if not any('array_record' in f for f in files):
            raise UserError(f'{version}: holds no ArrayRecord files; prepare it again: '
                            f'tfds build {name} --file_format=array_record --data_dir={root}')
        stats = [os.stat(os.path.join(version, f)) for f in files]
        try:
            with open(os.path.join(version, 'dataset_info.json'), encoding='utf-8') as f:
                held = [split['name'] for split in json.load(f)['splits']]
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise UserError(f'{version}: cannot be read as a TFDS data set: dataset_info.json: {e}') from e
        if 'train' not in held:
            raise UserError(f'{version}: has no train split; there are: {", ".join(held) or "none"}')
        # where 'test' is missing, or carries no labels, as ImageNet's, 'validation' is what networks are tested on
        judges = ('validation',) if name.startswith('imagenet2012') else ('test', 'validation')
        test = next((split for split in judges if split in held), None)
        parts = {'train': 'train', 'val': 'validation' if test == 'test' and 'validation' in held else None, 'test': test}

        @functools.cache
        def builder() -> Any:
            import tensorflow_datasets as tfds
            with _readable():
                return tfds.builder_from_directory(version)

        @contextlib.contextmanager
        def _readable() -> Iterator[None]:
            try:
                yield
            except Exception as e:  # TFDS raises many kinds of error for damaged files
                raise UserError(f'{version}: cannot be read as a TFDS data set: {type(e).__name__}: '
                                f'{" ".join(str(e).split())[:200]}') from e

        def read(split: str) -> _Tfds:
            with _readable():
                return _Tfds(builder().as_data_source(split=split))

        def class_names() -> Sequence[str]:
            with _readable():
                features = dict(builder().info.features.items())
            if not hasattr(features.get('label'), 'names'):
                raise UserError(f'{version}: has no label of classes to train on; there are: {", ".join(sorted(features))}')
            return features['label'].names

        return Source(version, key={'source': f'tfds:{name}', 'version': versions[-1],
                           'files': [[f, s.st_size, s.st_mtime_ns] for f, s in zip(files, stats, strict=True)]},
                      splits={part: functools.partial(read, split) for part, split in parts.items() if split},
                      class_names=class_names, ink=ink)
    return find_prepared


add_source('digits', _digits)
add_source('mnist', _tfds('mnist', ink=Ink(28, 20, by_mass=True)))
for _name in ('cifar10', 'cifar100', 'fashion_mnist', 'svhn_cropped', 'imagenet2012'):
    add_source(_name, _tfds(_name))
