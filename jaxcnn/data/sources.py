"""Sources of images: a registry with one function for each data set and each layout of files.

A source names the splits of a data set and gives random access to their examples, which are decoded when they are read.
`dataset.load` reads each example once, into the cache (`cache.py`).
"""

import dataclasses
import functools
import hashlib
import os
import re
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from jaxcnn.config import DataConfig
from jaxcnn.data import tfds
from jaxcnn.data.checks import check_class_names, check_images, check_label_sets, check_labels, number_classes
from jaxcnn.data.targets import BOXES, KINDS, LABEL, LABELS, TargetKind
from jaxcnn.errors import UserError, describe_exception, name_field, unknown
from jaxcnn.registry import Registry

T = TypeVar('T')
Example = dict[str, Any]
Arrays = tuple[Any, Any]  # images and labels
IN_MEMORY = 'in_memory'  # name of the data set of a run whose data is handed over from Python


class Examples(Protocol):
    """Random access to the examples of one split."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """Return an example: its `image`, uint8 (H, W, C), and its targets by name."""


@runtime_checkable
class NamedExamples(Examples, Protocol):
    """Examples whose images have names, for errors."""

    def image_name(self, index: int) -> str:
        """Return the name of an image, for example the path of its file."""


@runtime_checkable
class EncodedExamples(Examples, Protocol):
    """Examples whose images are stored in an encoded form, such as JPEG, and can be read without decoding them.

    `picture.decode(examples.encoded(index), examples.mode)` gives the pixels of `examples[index]['image']`.

    Attributes:
      mode: `RGB` or, for images with one channel, `L`.
    """

    mode: str

    def encoded(self, index: int) -> bytes:
        """Return the content of an image's file.

        Raises:
          UserError: it cannot be read.
        """

    def read_targets(self) -> Mapping[str, np.ndarray]:
        """Return the targets of all examples, one array (N, ...) for each, by name, without decoding an image."""


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

    @classmethod
    def from_arrays(cls, images_name: str, images: np.ndarray, labels_name: str, labels: np.ndarray,
                    kind: TargetKind = LABEL) -> 'InMemoryExamples':
        """Return the examples of two arrays, after checking them.

        Args:
          images_name: name of the images, for errors.
          images: uint8 (N, H, W) or (N, H, W, C).
          labels_name: name of the labels, for errors.
          labels: integers (N,), or zeros and ones (N, classes) for several classes for each image.
          kind: which of the two the labels are.

        Raises:
          UserError: an array has another type or shape; the message holds the conversion.
        """
        images = check_images(images_name, images)
        if kind is LABELS:
            return cls(images, {'labels': check_label_sets(labels_name, labels, len(images))})
        return cls(images, {'label': check_labels(labels_name, labels, len(images))})


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
      paths: by split, the paths of its images in order, relative to the folder of the data set; those in an archive are the
        path of the archive and the name in it. Empty if the images have no names.
      with_unlabelled: returns this source with the unlabelled training images as a further split, `unlabelled`; None if
        there are no such images.
    """

    location: str
    key: dict[str, Any]
    splits: dict[str, Callable[[], Examples]]
    class_names: Callable[[], Sequence[str]]
    ink: Ink | None = None
    val_fraction: float = 0.1
    kind: TargetKind = LABEL
    paths: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    with_unlabelled: 'Callable[[], Source] | None' = None

    @classmethod
    def from_arrays(cls, train: Arrays, val: Arrays | None = None, test: Arrays | None = None,
                    class_names: Sequence[str] | None = None) -> 'Source':
        """Return the data set of arrays in memory.

        Args:
          train: the images, uint8 (N, H, W) or (N, H, W, C), and their labels: integers (N,) or, for several classes for
            each image, zeros and ones (N, classes).
          val: the images and labels of the validation split; None: a part of the training images is held out.
          test: the images and labels of the test split; None: there is none.
          class_names: names of the classes in the order of their labels; the numbers by default.

        Raises:
          UserError: an array has another type or shape; the message holds the conversion.
        """
        kind: TargetKind = LABEL
        splits: dict[str, InMemoryExamples] = {}
        for split, arrays in (('train', train), ('val', val), ('test', test)):
            if arrays is None:
                continue
            if not isinstance(arrays, (tuple, list)) or len(arrays) != 2:
                raise UserError(f'expected (images, labels), got {type(arrays).__name__}', field=split)
            images, labels = map(np.asarray, arrays)
            if not len(images):
                raise UserError('there are no images', field=split)
            kind = LABELS if split == 'train' and labels.ndim == 2 else kind
            splits[split] = InMemoryExamples.from_arrays(f'{split} images', images, f'{split} labels', labels, kind)
        return cls.from_examples(IN_MEMORY, 'the arrays', splits, class_names, kind)

    @classmethod
    def from_examples(cls, name: str, location: str, splits: Mapping[str, InMemoryExamples],
                      class_names: Sequence[str] | np.ndarray | None = None, kind: TargetKind = LABEL) -> 'Source':
        """Return the data set of examples in memory.

        Args:
          name: name of the data set.
          location: origin of the examples, for messages.
          splits: the examples by split.
          class_names: names of the classes in the order of their labels; the numbers by default.
          kind: kind of the targets.

        Raises:
          UserError: class names and labels do not fit together, or there is only one class.
        """
        names = _number_names(splits, kind) if class_names is None else check_class_names(np.asarray(class_names))
        _check_classes(splits, names, kind)
        if len(names) < 2 and kind is LABEL:
            raise UserError('holds only one class; a classifier needs two or more', field=location)
        digest = hashlib.sha256()
        for split, examples in splits.items():
            for array in (examples.images, *examples.targets.values()):
                digest.update(f'{split} {array.dtype} {array.shape}'.encode())
                digest.update(np.ascontiguousarray(array).data)
        return cls(location, key={'source': name, 'content': digest.hexdigest(), 'names': [*names]},
                   splits={split: functools.partial(splits.__getitem__, split) for split in splits},
                   class_names=lambda: names, kind=kind)


def _number_names(splits: Mapping[str, InMemoryExamples], kind: TargetKind) -> list[str]:
    """Return the names of classes that have none: the numbers from 0 to the largest label.

    Raises:
      UserError: the largest label is too large for the number of a class.
    """
    if kind is LABELS:
        return [str(label) for label in range(splits['train'].targets['labels'].shape[1])]
    largest = max(int(examples.targets['label'].max(initial=0)) for examples in splits.values())
    num_images = len(splits['train'])
    if largest >= max(1000, num_images):  # probably numbers with another meaning; so many names might not fit in memory
        raise UserError(f'the largest label is {largest}, with {num_images} training images, but labels must number the '
                        'classes from 0', hint=number_classes('labels'))
    return [str(label) for label in range(largest + 1)]


def _check_classes(splits: Mapping[str, InMemoryExamples], names: Sequence[str], kind: TargetKind) -> None:
    """Raise a UserError if labels (N, classes) do not match the class names."""
    if kind is not LABELS:
        return
    for name in names:
        if ';' in name:
            raise UserError(f'class_names: {name!r} holds a semicolon, which separates the classes of an image in tables')
    for split, examples in splits.items():
        num_classes = examples.targets['labels'].shape[1]
        if num_classes != len(names):
            raise UserError(f'the {split} labels have {num_classes} classes, but there are {len(names)} class names')


SourceFactory = Callable[[DataConfig], Source]
_FACTORIES: Registry[SourceFactory] = Registry('data set')
# fields of `config.data` that only some data sets use, and by the key of a data set those that it uses
_OPTIONAL_FIELDS = ('class_file', 'columns')
_FIELDS: dict[str, Collection[str]] = {}


def register(factory: Any = None, *, name: str | None = None, targets: str = LABEL.name,
             fields: Collection[str] = _OPTIONAL_FIELDS) -> Any:
    """Make a data set, or a layout of files, known to `config.data.name`, as a decorator of its function.

        @register
        def my_data(config): ...

    Args:
      factory: a function that returns the `Source` of a `DataConfig`.
      name: its name in configs; that of the function by default. A name can have one function for each kind of targets.
      targets: the kind of targets of its examples: `label`, one class for each image; `labels`, several;
        `boxes`, boxes around objects with one class each.
      fields: those of the fields `class_file` and `columns` of the config that the function uses; a config that sets another
        one is refused.

    Raises:
      UserError: the kind of targets is unknown, or the name is taken.
    """
    if targets not in KINDS:
        raise unknown('kind of targets', targets, KINDS)

    def add(factory: Any) -> Any:
        key = _key(name or factory.__name__, KINDS[targets])
        _FACTORIES.add(key, factory, getattr(factory, 'func', factory))
        _FIELDS[key] = fields
        return factory
    return add if factory is None else add(factory)


def _key(name: str, kind: TargetKind) -> str:
    """Return the key of a data set, of whose name there may be one for each kind of targets."""
    return f'{kind.name}/{name}'


def names(kind: TargetKind | None = None) -> list[str]:
    """Return the names of the registered data sets and layouts; with `kind`, of those with this kind of targets."""
    keys = (key.split('/', 1) for key in _FACTORIES.names())
    return sorted({name for kind_name, name in keys if kind is None or kind_name == kind.name})


def find_factory(config: DataConfig, kind: TargetKind = LABEL) -> SourceFactory:
    """Return the function that makes the source called `config.name`: a registered one, or any prepared TFDS data set.

    Raises:
      UserError: the name is unknown, or its examples have another kind of targets.
    """
    root = _tfds_root(config)
    if (key := _key(config.name, kind)) in _FACTORIES:
        return _FACTORIES.get(key)
    if config.name in names() or kind is not LABEL:
        raise UserError(f'{config.name!r} does not have {kind.description}, which config.task needs',
                        field='config.data.name', hint=f'these have: {", ".join(names(kind))}')
    if re.fullmatch(r'[a-z][a-z0-9_]*(/[\w.]+)?', config.name) and os.path.isdir(os.path.join(root, config.name)):
        return _tfds_factory(config.name)
    error = unknown('data set', config.name, names(), 'config.data.name')
    error.add_hint(f'any other TFDS set must be prepared in {root!r} (config.data.dir)')
    raise error


def find(config: DataConfig, kind: TargetKind = LABEL) -> Source:
    """Return the source called `config.name`; see `find_factory`.

    Raises:
      UserError: there is no such source, or its data is missing.
    """
    factory = find_factory(config, kind)
    _check_fields(config, kind)
    is_external = getattr(factory, 'func', factory).__module__.partition('.')[0] != 'jaxcnn'
    if is_external:
        factory = _name_data_set(config.name, factory)
    with name_field('config.data.dir'):
        source = factory(config)
    if not isinstance(source, Source):
        raise UserError(f'the function of {config.name!r} returns {type(source).__name__}, and must return a jaxcnn.Dataset',
                        field='config.data.name')
    if is_external:
        splits = {split: _name_data_set(config.name, read) for split, read in source.splits.items()}
        source = dataclasses.replace(source, splits=splits, class_names=_name_data_set(config.name, source.class_names))
    return source


def _check_fields(config: DataConfig, kind: TargetKind) -> None:
    """Raise a UserError if a field of the config is set that the data set does not use."""
    for field in _OPTIONAL_FIELDS:
        is_set = getattr(config, field) != getattr(DataConfig(), field)
        if is_set and field not in _FIELDS.get(_key(config.name, kind), ()):
            users = sorted(key.partition('/')[2] for key, fields in _FIELDS.items()
                           if field in fields and key.startswith(f'{kind.name}/'))
            raise UserError(f'{config.name!r} does not use it', field=f'config.data.{field}',
                            hint=f'these do: {", ".join(users) or "none"}')


def _name_data_set(name: str, function: Callable[..., T]) -> Callable[..., T]:
    """Return a function of a data set from outside the package, such that its exceptions become UserErrors.

    The error names the data set, the type of the exception, and the line of the function.
    """
    def call(*arguments: Any) -> T:
        try:
            return function(*arguments)
        except UserError:
            raise
        except Exception as e:
            frames = traceback.extract_tb(e.__traceback__)[1:]  # the first is that of this function
            line = f' ({frames[0].filename}, line {frames[0].lineno})' if frames else ''
            raise UserError(f'the data set {name!r} raised {describe_exception(e)}{line}', field='config.data.name') from e
    return call


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


def _tfds_root(config: DataConfig) -> str:
    return os.path.expanduser(config.dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets')


def _tfds_factory(name: str, ink: Ink | None = None, kind: TargetKind = LABEL) -> SourceFactory:
    """Return the factory of a prepared TFDS data set with one class or with boxes for each image."""
    def make_source(config: DataConfig) -> Source:
        prepared = tfds.find_prepared(name, _tfds_root(config))
        read, class_names = (prepared.read_boxes, prepared.box_class_names) if kind is BOXES else (
            prepared.read, prepared.class_names)
        return Source(prepared.path, key={'source': f'tfds:{name}', 'version': prepared.version, 'files': prepared.files()},
                      splits={split: functools.partial(read, tfds_name) for split, tfds_name in prepared.splits().items()},
                      class_names=class_names, ink=ink, kind=kind)
    return make_source


register(_digits, name='digits', fields=())
register(_tfds_factory('mnist', ink=Ink(28, 20, by_mass=True)), name='mnist', fields=())
for _name in ('cifar10', 'cifar100', 'fashion_mnist', 'svhn_cropped', 'imagenet2012'):
    register(_tfds_factory(_name), name=_name, fields=())
for _name in ('voc/2007', 'voc/2012', 'coco/2014', 'coco/2017'):
    register(_tfds_factory(_name, kind=BOXES), name=_name, targets=BOXES.name, fields=())
