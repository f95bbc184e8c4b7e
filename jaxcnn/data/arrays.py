"""Images in arrays: `.npz` files, and IDX files such as those of MNIST."""

import functools
import gzip
import os
import struct
import zipfile
import zlib

import numpy as np

from jaxcnn.config import DataConfig
from jaxcnn.data.image_files import SPLITS, existing_path, log
from jaxcnn.data.sources import IN_MEMORY, InMemoryExamples, Source, register
from jaxcnn.data.targets import KINDS, LABEL, LABELS, TargetKind
from jaxcnn.errors import UserError, name_field


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
            splits[split] = InMemoryExamples.from_arrays(
                images_name, content[images_name], labels_name, content[labels_name], kind)
        used_names |= {images_name, labels_name}
    if 'train' not in splits:
        raise UserError('holds no train_images and train_labels', field=path,
                        hint=f'its arrays are: {", ".join(content) or "none"}')
    if unused_names := sorted(content.keys() - used_names):
        log.warning('%s: ignored arrays, which are not the images and labels of a split: %s', path, ', '.join(unused_names))
    with name_field(path):
        return Source.from_examples('arrays', path, splits, content.get('class_names'), kind)


def _refuse_in_memory(config: DataConfig) -> Source:
    """Raise the error for a run on arrays in memory that is to load its data itself."""
    raise UserError('the data of this run are arrays that were handed over from Python', field='config.data.name',
                    hint='hand them over again: train(..., data=...), or run.evaluate(split, data=...)')


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
            splits[split] = InMemoryExamples.from_arrays(f'{split} images', images, f'{split} labels', labels)
    with name_field(root):
        return Source.from_examples('idx', root, splits)


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


register(arrays, fields=())
register(functools.partial(arrays, kind=LABELS), name='arrays', targets='labels', fields=())
register(idx, fields=())
for _targets in KINDS:
    register(_refuse_in_memory, name=IN_MEMORY, targets=_targets, fields=())
