"""Sources of images: a registry with one function for each data set and each layout of files.

A source names the splits of a data set and gives random access to their examples, which are decoded when they are read.
`dataset.load` reads each example once, into the cache (`cache.py`).
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
from jaxcnn.registry import Registry

Example = dict[str, Any]


class Examples(Protocol):
    """Random access to the examples of one split."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """Return an example: its `image`, uint8 (H, W, C), and its targets by name."""


@dataclasses.dataclass(frozen=True)
class Ink:
    """How a data set frames handwriting, light ink on black; `predict` brings other pictures into this form.

    Attributes:
      size: the side of the square image in pixels, before any resizing.
      box: the side in pixels of the square into which the bounding box of the ink is fitted.
      by_mass: whether the centre of mass of the ink is at the centre of the image; otherwise the centre of the box is.
    """

    size: int
    box: int
    by_mass: bool


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set whose files are listed but not yet decoded.

    Attributes:
      location: its folder, file or library, for messages.
      key: a value for JSON that changes whenever the images or the targets may have changed.
      splits: functions that return the examples of `train` and, if the data set has them, of `val` and `test`.
      class_names: a function that returns the names of the classes in the order of their labels.
      ink: the framing of handwriting; None for photographs.
      val_fraction: the fraction of the training images held out for validation if the config does not give one.
      kind: the kind of its targets.
    """

    location: str
    key: dict[str, Any]
    splits: dict[str, Callable[[], Examples]]
    class_names: Callable[[], Sequence[str]]
    ink: Ink | None = None
    val_fraction: float = 0.1
    kind: TargetKind = LABEL


SourceFactory = Callable[[DataConfig], Source]
_FACTORIES: Registry[SourceFactory] = Registry('data set')


def register(name: str, factory: SourceFactory, kind: TargetKind = LABEL) -> None:
    """Make a data set, or a layout of files, known to `config.data.name`.

    Args:
      name: its name. A name can have one factory for each kind of targets.
      factory: a function that returns the source of a config.
      kind: the kind of the targets of its examples.
    """
    _FACTORIES.add(_key(name, kind), factory, getattr(factory, 'func', factory))


def _key(name: str, kind: TargetKind) -> str:
    """Return the key of a data set, of whose name there may be one for each kind of targets."""
    return f'{kind.name}/{name}'


def names(kind: TargetKind | None = None) -> list[str]:
    """Return the names of the registered data sets and layouts; with `kind`, of those with this kind of targets."""
    keys = (key.split('/', 1) for key in _FACTORIES.names())
    return sorted({name for kind_name, name in keys if kind is None or kind_name == kind.name})


def find(config: DataConfig, kind: TargetKind = LABEL) -> Source:
    """Return the source called `config.name`: a registered one, or any prepared TFDS classification data set.

    Raises:
      UserError: the name is unknown, the data is missing, or its examples have another kind of targets.
    """
    root = _tfds_root(config)
    if (key := _key(config.name, kind)) in _FACTORIES:
        factory = _FACTORIES.get(key)
    elif config.name in names() or kind is not LABEL:
        raise UserError(f'{config.name!r} does not have {kind.description}, which config.task needs',
                        field='config.data.name', hint=f'these have: {", ".join(names(kind))}')
    elif re.fullmatch(r'[a-z][a-z0-9_]*(/[\w.]+)?', config.name) and os.path.isdir(os.path.join(root, config.name)):
        factory = _tfds_factory(config.name)
    else:
        error = unknown('data set', config.name, names(), 'config.data.name')
        error.add_hint(f'any other TFDS set must be prepared in {root!r} (config.data.dir)')
        raise error
    with name_field('config.data.dir'):
        return factory(config)


@dataclasses.dataclass(frozen=True)
class InMemoryExamples:
    """The examples of a split in memory.

    Attributes:
      images: uint8 (N, H, W, C).
      targets: one array (N, ...) for each target, by name.
    """

    images: np.ndarray
    targets: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        return {'image': self.images[index], **{name: values[index] for name, values in self.targets.items()}}


def stratified_split(strata: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split examples at random into two subsets, of which the second holds `fraction` of each stratum.

    The second subset has exactly `round(fraction * N)` members. Where the fraction of a stratum is not a whole number, it is
    rounded by the largest remainder method.

    Args:
      strata: (N,) integers, for example class labels.
      fraction: the size of the second subset as a fraction of N, in [0, 1].
      seed: the seed of the random draw.

    Returns:
      The sorted indices of both subsets.
    """
    rng = np.random.Generator(np.random.PCG64([seed, 0x5EED]))
    values, counts = np.unique(strata, return_counts=True)
    exact_sizes = counts * fraction
    sizes = np.floor(exact_sizes).astype(int)
    remaining = round(fraction * len(strata)) - int(sizes.sum())
    sizes[np.argsort(sizes - exact_sizes, kind='stable')[:remaining]] += 1
    is_second = np.zeros(len(strata), bool)
    for value, size in zip(values, sizes, strict=True):
        is_second[rng.permutation(np.flatnonzero(strata == value))[:size]] = True
    return np.flatnonzero(~is_second), np.flatnonzero(is_second)


def _digits(config: DataConfig) -> Source:
    """Return scikit-learn's handwritten digits: 1,797 images of 8x8, a fixed fifth of each class for testing."""
    @functools.cache
    def read_splits() -> dict[str, InMemoryExamples]:
        from sklearn.datasets import load_digits
        digits = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]  # (1797, 8, 8, 1)
        train, test = stratified_split(digits.target, 0.2, seed=0)
        return {'train': InMemoryExamples(images[train], {'label': digits.target[train]}),
                'test': InMemoryExamples(images[test], {'label': digits.target[test]})}

    return Source('scikit-learn', key={'source': 'digits', 'version': 1},
                  splits={'train': lambda: read_splits()['train'], 'test': lambda: read_splits()['test']},
                  class_names=lambda: [str(i) for i in range(10)], ink=Ink(8, 8, by_mass=False))


@dataclasses.dataclass(frozen=True)
class _TfdsExamples:
    data_source: Any  # what `tfds.data_source` returns for a split

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, index: int) -> Example:
        example = self.data_source[index]
        return {'image': example['image'], 'label': example['label']}


@dataclasses.dataclass(frozen=True)
class _TfdsFolder:
    """The folder of one version of a prepared TFDS data set, which holds `dataset_info.json`."""

    path: str

    @contextlib.contextmanager
    def _raise_user_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as e:  # TFDS raises many kinds of errors for damaged files
            reason = f'{type(e).__name__}: {" ".join(str(e).split())[:200]}'
            raise UserError(f'cannot be read as a TFDS data set: {reason}', field=self.path) from e

    @functools.cached_property
    def _builder(self) -> Any:
        import tensorflow_datasets as tfds
        return tfds.builder_from_directory(self.path)

    def split_names(self) -> list[str]:
        """Return the names of the splits."""
        try:
            with open(os.path.join(self.path, 'dataset_info.json'), encoding='utf-8') as f:
                return [split['name'] for split in json.load(f)['splits']]
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise UserError(f'cannot be read as a TFDS data set: dataset_info.json: {e}', field=self.path) from e

    def read(self, split: str) -> _TfdsExamples:
        """Return the examples of a split."""
        with self._raise_user_errors():
            return _TfdsExamples(self._builder.as_data_source(split=split))

    def class_names(self) -> Sequence[str]:
        """Return the names of the classes in the order of their labels."""
        with self._raise_user_errors():
            features = dict(self._builder.info.features.items())
        if not hasattr(features.get('label'), 'names'):
            raise UserError(f'has no class label to train on; its features are: {", ".join(sorted(features))}',
                            field=self.path)
        return features['label'].names


def _tfds_root(config: DataConfig) -> str:
    return os.path.expanduser(config.dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets')


def _newest_version(folder: str) -> str | None:
    """Return the newest version of a prepared TFDS data set, the name of a folder in `folder`; None if there is none."""
    entries = os.listdir(folder) if os.path.isdir(folder) else []
    versions = [entry for entry in entries if os.path.isfile(os.path.join(folder, entry, 'dataset_info.json'))]
    return max(versions, key=lambda version: [int(n) if n.isdigit() else 0 for n in version.split('.')], default=None)


def _tfds_factory(name: str, ink: Ink | None = None) -> SourceFactory:
    """Return the factory of a prepared TFDS data set. It is read through `tfds.data_source`, without TensorFlow."""
    def make_source(config: DataConfig) -> Source:
        root = _tfds_root(config)
        prepare = f'tfds build {name} --file_format=array_record --data_dir={root}'
        version = _newest_version(os.path.join(root, name))
        if version is None:
            raise UserError(f'data set {name!r} is not prepared in {root!r}',
                            hint=f"prepare it once: pip install 'jaxcnn[prepare]' && {prepare}")
        path = os.path.join(root, name, version)
        files = sorted(os.listdir(path))
        if not any('array_record' in f for f in files):
            raise UserError('holds no ArrayRecord files', field=path, hint=f'prepare it again: {prepare}')
        stats = [os.stat(os.path.join(path, f)) for f in files]
        folder = _TfdsFolder(path)
        split_names = folder.split_names()
        if 'train' not in split_names:
            raise UserError(f'has no split train; its splits are: {", ".join(split_names) or "none"}', field=path)
        # networks are tested on 'validation' if there is no split 'test' or, as in ImageNet, it has no labels
        candidates = ('validation',) if name.startswith('imagenet2012') else ('test', 'validation')
        test = next((split for split in candidates if split in split_names), None)
        val = 'validation' if test == 'test' and 'validation' in split_names else None
        tfds_names = {'train': 'train', 'val': val, 'test': test}
        return Source(path, key={'source': f'tfds:{name}', 'version': version,
                                 'files': [[f, s.st_size, s.st_mtime_ns] for f, s in zip(files, stats, strict=True)]},
                      splits={split: functools.partial(folder.read, tfds_name)
                              for split, tfds_name in tfds_names.items() if tfds_name},
                      class_names=folder.class_names, ink=ink)
    return make_source


register('digits', _digits)
register('mnist', _tfds_factory('mnist', ink=Ink(28, 20, by_mass=True)))
for _name in ('cifar10', 'cifar100', 'fashion_mnist', 'svhn_cropped', 'imagenet2012'):
    register(_name, _tfds_factory(_name))
