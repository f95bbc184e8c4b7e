"""Images in arrays: `.npz` files, and the IDX files that MNIST comes in."""

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
from jaxcnn.data.layouts import SPLITS, existing_path, log
from jaxcnn.data.sources import InMemoryExamples, Source, register
from jaxcnn.data.targets import LABEL, LABELS, TargetKind
from jaxcnn.errors import UserError, name_field


def arrays(config: DataConfig, kind: TargetKind = LABEL) -> Source:
    """Read an `.npz` file of `train_images` and `train_labels` (or `x_train`, `y_train`), and the same of `test` or `val`.

    Images are uint8 (N, H, W) or (N, H, W, C). Labels are whole numbers (N,), or, of several classes for each image, 0 and
    1 (N, classes). `class_names` is optional.
    """
    path = existing_path(config.dir, 'arrays')
    try:
        with np.load(path, allow_pickle=False) as file:
            file_arrays = {key: file[key] for key in file.files}
    except Exception as e:  # zipfile, zlib and NumPy raise many kinds of error for damaged files
        reason = 'it is no .npz file' if not zipfile.is_zipfile(path) else " ".join(str(e).split())[:200]
        raise UserError(f'{path}: cannot be read as .npz without pickles: {reason}') from e
    splits: dict[str, InMemoryExamples] = {}
    used = {'class_names'}
    for split, called in SPLITS.items():
        for name in called:
            for images, labels in ((f'{name}_images', f'{name}_labels'), (f'x_{name}', f'y_{name}')):
                if images in file_arrays and labels in file_arrays:
                    if split in splits:
                        raise UserError(f'{path}: holds two {split} parts: {images} is the second')
                    with name_field(path):
                        splits[split] = _checked(images, file_arrays[images], labels, file_arrays[labels], kind)
                    used |= {images, labels}
    if 'train' not in splits:
        raise UserError(f'{path}: holds no train_images and train_labels; there are: '
                        f'{", ".join(file_arrays) or "no arrays"}')
    if unused := sorted(file_arrays.keys() - used):
        log.warning('%s: ignored arrays, which are not images and labels of one part: %s', path, ', '.join(unused))
    with name_field(path):
        names = check_class_names(file_arrays['class_names']) if 'class_names' in file_arrays else _numbers(splits, kind)
        _check_classes(splits, names, kind)
    return _in_memory('arrays', path, splits, names, kind)


def _checked(images_name: str, images: np.ndarray, labels_name: str, labels: np.ndarray,
             kind: TargetKind = LABEL) -> InMemoryExamples:
    checked = check_images(images_name, images)
    if kind is LABELS:
        return InMemoryExamples(checked, {'labels': check_label_sets(labels_name, labels, len(checked))})
    return InMemoryExamples(checked, {'label': check_labels(labels_name, labels, len(checked))})


def _check_classes(splits: Mapping[str, InMemoryExamples], names: Sequence[str], kind: TargetKind) -> None:
    """Raise a UserError where labels (N, classes) do not fit the names of the classes."""
    if kind is not LABELS:
        return
    if unclear := [name for name in names if ';' in name]:
        raise UserError(f'class_names: {unclear[0]!r} holds a semicolon, which separates the classes of an image in tables')
    for split, part in splits.items():
        if part.targets['labels'].shape[1] != len(names):
            raise UserError(f'the {split} labels are of {part.targets["labels"].shape[1]} classes, and there are '
                            f'{len(names)} names')


def _numbers(splits: Mapping[str, InMemoryExamples], kind: TargetKind = LABEL) -> list[str]:
    """Class names of labels that have none: the numbers from 0 to the largest label.

    Raises:
      UserError: the labels cannot be numbers of classes.
    """
    if kind is LABELS:
        return [str(label) for label in range(splits['train'].targets['labels'].shape[1])]
    largest = max(int(part.targets['label'].max(initial=0)) for part in splits.values())
    if largest >= max(1000, len(splits['train'])):  # numbers of another kind; so many names might not fit in memory
        raise UserError(f'the largest label is {largest}, of {len(splits["train"])} training images, and labels must number '
                        f'the classes from 0; {number_classes("labels")}')
    return [str(label) for label in range(largest + 1)]


def _in_memory(name: str, where: str, splits: Mapping[str, InMemoryExamples], names: Sequence[str],
               kind: TargetKind = LABEL) -> Source:
    if len(names) < 2 and kind is LABEL:
        raise UserError(f'{where}: holds one class alone; a classifier needs two or more')
    digest = hashlib.sha256()
    for split, part in splits.items():
        for array in (part.images, *part.targets.values()):
            digest.update(f'{split} {array.dtype} {array.shape}'.encode())
            digest.update(np.ascontiguousarray(array).data)
    return Source(where, key={'source': name, 'content': digest.hexdigest(), 'names': [*names]},
                  splits={split: functools.partial(splits.__getitem__, split) for split in splits},
                  class_names=lambda: names, kind=kind)


def idx(config: DataConfig) -> Source:
    """MNIST's own files, `train-images-idx3-ubyte.gz` and so on, compressed or not."""
    root = existing_path(config.dir, 'idx')
    paths = {}
    for split, name in (('train', 'train'), ('test', 't10k')):
        for what, suffix in (('images', 'images-idx3-ubyte'), ('labels', 'labels-idx1-ubyte')):
            candidates = [os.path.join(root, f'{name}{dot}{suffix}{end}') for dot in '-.' for end in ('', '.gz')]
            path = next((p for p in candidates if os.path.isfile(p)), None)
            if path is None:
                raise UserError(f'{root!r} holds no {name}-{suffix}.gz')
            paths[split, what] = path
    with name_field(root):
        splits = {split: _checked(f'{split} images', _idx(paths[split, 'images']),
                                  f'{split} labels', _idx(paths[split, 'labels'])) for split in ('train', 'test')}
    return _in_memory('idx', root, splits, _numbers(splits))


def _idx(path: str) -> np.ndarray:
    """An IDX file of bytes, as LeCun's page describes it."""
    try:
        with (gzip.open if path.endswith('.gz') else open)(path, 'rb') as f:
            content = f.read()
        zeros, kind, dimensions = struct.unpack_from('>HBB', content)
        shape = struct.unpack_from(f'>{dimensions}I', content, 4)
    except (OSError, EOFError, struct.error, zlib.error) as e:
        raise UserError(f'{path}: cannot be read: {getattr(e, "strerror", None) or e}') from e
    data = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
    if zeros or kind != 8 or data.size != np.prod(shape, dtype=np.int64):
        raise UserError(f'{path}: is not a whole IDX file of bytes')
    return data.reshape(shape)


register('arrays', arrays)
register('arrays', functools.partial(arrays, kind=LABELS), LABELS)
register('idx', idx)
