"""Images in arrays: `.npz` files, and IDX files such as those of MNIST."""

import functools
import gzip
import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from jaxcnn.config import DataConfig
from jaxcnn.data.checks import check_class_names, check_images, check_label_sets, check_labels, number_classes
from jaxcnn.data.image_files import SPLITS, existing_path, log
from jaxcnn.data.sources import InMemoryExamples, Source, register
from jaxcnn.data.targets import LABEL, LABELS, TargetKind
from jaxcnn.errors import UserError, name_field

Splits = Mapping[str, InMemoryExamples]


def arrays(config: DataConfig, kind: TargetKind = LABEL) -> Source:
    """Return the source of an `.npz` file with `train_images` and `train_labels`, or `x_train` and `y_train`.

    The arrays of the splits `val` and `test` are named likewise. Images are uint8 (N, H, W) or (N, H, W, C). Labels are
    integers (N,) or, for several classes for each image, zeros and ones (N, classes). `class_names` is optional.

    Raises:
      UserError: the file cannot be read, has no training split, or holds arrays of another type or shape.
    """
    path = existing_path(config.dir, 'arrays')
    content = _read_npz(path)
    splits: dict[str, InMemoryExamples] = {}
    used_names = {'class_names'}
    for images_name, labels_name, split in _array_names():
        if images_name not in content or labels_name not in content:
            continue
        if split in splits:
            raise UserError(f'holds two {split} splits: {images_name} is the second', field=path)
        with name_field(path):
            splits[split] = _make_examples(images_name, content[images_name], labels_name, content[labels_name], kind)
        used_names |= {images_name, labels_name}
    if 'train' not in splits:
        raise UserError('holds no train_images and train_labels', field=path,
                        hint=f'its arrays are: {", ".join(content) or "none"}')
    if unused_names := sorted(content.keys() - used_names):
        log.warning('%s: ignored arrays, which are not the images and labels of a split: %s', path, ', '.join(unused_names))
    with name_field(path):
        names = check_class_names(content['class_names']) if 'class_names' in content else _default_names(splits, kind)
        _check_classes(splits, names, kind)
    return _make_source('arrays', path, splits, names, kind)


def _read_npz(path: str) -> dict[str, np.ndarray]:
    """Return the arrays of an `.npz` file by name."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as e:  # zipfile, zlib and NumPy raise many kinds of errors for damaged files
        reason = ' '.join(str(e).split())[:200] if zipfile.is_zipfile(path) else 'it is not an .npz file'
        raise UserError(f'cannot be read as .npz without pickles: {reason}', field=path) from e


def _array_names() -> list[tuple[str, str, str]]:
    """Return the possible names of the arrays: images, labels and the split that they belong to."""
    return [(images_name, labels_name, split) for split, split_names in SPLITS.items() for name in split_names
            for images_name, labels_name in ((f'{name}_images', f'{name}_labels'), (f'x_{name}', f'y_{name}'))]


def _make_examples(images_name: str, images: np.ndarray, labels_name: str, labels: np.ndarray,
                   kind: TargetKind = LABEL) -> InMemoryExamples:
    images = check_images(images_name, images)
    if kind is LABELS:
        return InMemoryExamples(images, {'labels': check_label_sets(labels_name, labels, len(images))})
    return InMemoryExamples(images, {'label': check_labels(labels_name, labels, len(images))})


def _check_classes(splits: Splits, names: Sequence[str], kind: TargetKind) -> None:
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


def _default_names(splits: Splits, kind: TargetKind = LABEL) -> list[str]:
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


def _make_source(name: str, path: str, splits: Splits, names: Sequence[str], kind: TargetKind = LABEL) -> Source:
    if len(names) < 2 and kind is LABEL:
        raise UserError('holds only one class; a classifier needs two or more', field=path)
    digest = hashlib.sha256()
    for split, examples in splits.items():
        for array in (examples.images, *examples.targets.values()):
            digest.update(f'{split} {array.dtype} {array.shape}'.encode())
            digest.update(np.ascontiguousarray(array).data)
    return Source(path, key={'source': name, 'content': digest.hexdigest(), 'names': [*names]},
                  splits={split: functools.partial(splits.__getitem__, split) for split in splits},
                  class_names=lambda: names, kind=kind)


def idx(config: DataConfig) -> Source:
    """Return the source of a folder with MNIST's files, `train-images-idx3-ubyte.gz` and so on, compressed or not.

    Raises:
      UserError: a file is missing or damaged.
    """
    root = existing_path(config.dir, 'idx')
    splits = {}
    for split, prefix in (('train', 'train'), ('test', 't10k')):
        images = _read_idx(_idx_path(root, prefix, 'images-idx3-ubyte'))
        labels = _read_idx(_idx_path(root, prefix, 'labels-idx1-ubyte'))
        with name_field(root):
            splits[split] = _make_examples(f'{split} images', images, f'{split} labels', labels)
    with name_field(root):
        names = _default_names(splits)
    return _make_source('idx', root, splits, names)


def _idx_path(root: str, prefix: str, suffix: str) -> str:
    """Return the path of an IDX file whose name has a hyphen or a dot before the suffix, and may end in `.gz`."""
    names = [f'{prefix}{separator}{suffix}{ending}' for separator in '-.' for ending in ('', '.gz')]
    for name in names:
        path = os.path.join(root, name)
        if os.path.isfile(path):
            return path
    raise UserError(f'holds no {names[1]}', field=root)


def _read_idx(path: str) -> np.ndarray:
    """Return the array in an IDX file of bytes, the format of MNIST."""
    try:
        with (gzip.open if path.endswith('.gz') else open)(path, 'rb') as f:
            content = f.read()
        zeros, type_code, num_dimensions = struct.unpack_from('>HBB', content)
        shape = struct.unpack_from(f'>{num_dimensions}I', content, 4)
    except (OSError, EOFError, struct.error, zlib.error) as e:
        raise UserError(f'cannot be read: {getattr(e, "strerror", None) or e}', field=path) from e
    array = np.frombuffer(content, np.uint8, offset=4 + 4 * num_dimensions)
    if zeros or type_code != 8 or array.size != np.prod(shape, dtype=np.int64):
        raise UserError('is not a complete IDX file of bytes', field=path)
    return array.reshape(shape)


register('arrays', arrays)
register('arrays', functools.partial(arrays, kind=LABELS), LABELS)
register('idx', idx)
