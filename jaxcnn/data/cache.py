"""The uint8 cache: every image is decoded once, then read through a memory map.

A cache is a folder `<cache_dir>/<name>-<key>/` holding `<split>.images.npy` (N, H, W, C) uint8, `<split>.labels.npy`
(N,) int32 and `meta.json` with their checksums. It is built under a temporary name and renamed, so a crash
half-way leaves nothing that could be taken for a cache; a stale one has another key, a damaged one another
checksum, and both are built anew.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jaxcnn import config as cfg
from jaxcnn.data.sources import Examples, Source
from jaxcnn.errors import UserError
from jaxcnn.sealed import seal, unseal

_FORMAT = 2
log = logging.getLogger('jaxcnn')


class ArrayFile:
    """A `.npy` file read through a memory map; pickles as its path, so that worker processes open their own."""

    def __init__(self, path: str):
        self.path = path
        self._map = np.load(path, mmap_mode='r', allow_pickle=False)
        self.shape: tuple[int, ...] = self._map.shape

    def __reduce__(self) -> tuple:
        return ArrayFile, (self.path,)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.asarray(self._map[index])


def _checksum(path: str) -> int:
    value = 0
    with open(path, 'rb') as f:
        while block := f.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """A uint8 image (H, W, C) at `size` x `size`: bilinear, antialiased."""
    from PIL import Image
    if image.shape[:2] == (size, size):
        return image
    squeezed = image[..., 0] if image.shape[-1] == 1 else image
    resized = np.asarray(Image.fromarray(squeezed).resize((size, size), Image.Resampling.BILINEAR))
    return resized.reshape(size, size, image.shape[-1])


def _decode(examples: Examples, where: str, split: str, image_size: int, num_classes: int, folder: str) -> None:
    count = len(examples)
    if count == 0:
        raise UserError(f'{where}: the {split} part holds no images')

    def read(index: int) -> tuple[np.ndarray, int]:
        try:
            return examples[index]
        except Exception as e:  # every decoder has its own
            raise UserError(f'{where}: {split} image {index} cannot be read: {type(e).__name__}: '
                            f'{" ".join(str(e).split())[:200]}') from e

    first = read(0)[0]
    shape = (image_size, image_size, first.shape[-1]) if image_size else first.shape
    path = os.path.join(folder, f'{split}.images.npy')
    images = np.lib.format.open_memmap(path, 'w+', np.uint8, (count, *shape))
    with open(path, 'r+b') as f:  # a full disk must be an error here, not a fault when a page is written
        os.posix_fallocate(f.fileno(), 0, os.path.getsize(path))
    labels = np.zeros(count, np.int32)

    def work(index: int) -> None:
        image, label = read(index)
        image = resize(image, image_size) if image_size else image
        if image.shape != shape:
            raise UserError(f'{where}: {split} image {index} is {image.shape}, the first one {shape}: '
                            'set config.data.image_size to bring them to one size')
        if not 0 <= label < num_classes:
            raise UserError(f'{where}: {split} image {index}: label {label} is not one of the {num_classes} classes')
        images[index], labels[index] = image, label

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(work, range(count)), 1):
            if done % 10000 == 0:
                log.info('decoding %s: %d of %d images', split, done, count)
    images.flush()
    np.save(os.path.join(folder, f'{split}.labels.npy'), labels)


def _read_meta(folder: str) -> dict[str, Any] | None:
    """The meta data of a whole and undamaged cache, or None."""
    try:
        with open(os.path.join(folder, 'meta.json')) as f:
            meta = unseal(json.load(f))
        for name, checksum in meta['checksums'].items():
            if _checksum(os.path.join(folder, name)) != checksum:
                log.warning('cache %s: %s is damaged; decoding again', folder, name)
                return None
        return meta
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, AttributeError) as e:
        log.warning('cache %s cannot be read (%s); decoding again', folder, e)
        return None


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    with open(path, 'w') as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def open_cache(name: str, source: Source, image_size: int, cache_dir: str) -> tuple[dict[str, Any], dict[str, tuple]]:
    """The decoded data set, from the cache where it has it.

    Returns:
      Its meta data (`class_names`), and for each split the images (an `ArrayFile`) and labels (N,) int32.

    Raises:
      UserError: an image does not decode or has another size than the first, a label is out of range, or the
        cache folder cannot be written.
    """
    root = cfg.cache_folder(cache_dir)
    key = json.dumps([_FORMAT, source.key, image_size], sort_keys=True)
    folder = os.path.join(root, f'{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}')
    try:
        meta = _read_meta(folder)
        if meta is None:
            os.makedirs(root, exist_ok=True)
            with _locked(f'{folder}.lock'):
                meta = _read_meta(folder)  # another process may have built it meanwhile
                if meta is None:
                    meta = _build(name, source, image_size, folder)
    except OSError as e:
        raise UserError(f'cannot keep decoded images in {root!r} (config.data.cache_dir): {e.strerror or e}') from e
    return meta, {split: (ArrayFile(os.path.join(folder, f'{split}.images.npy')),
                          np.load(os.path.join(folder, f'{split}.labels.npy'), allow_pickle=False))
                  for split in source.splits}


def _build(name: str, source: Source, image_size: int, folder: str) -> dict[str, Any]:
    temporary = f'{folder}.tmp'
    shutil.rmtree(temporary, ignore_errors=True)
    os.makedirs(temporary)
    try:
        class_names = list(source.class_names())
        for split, read in source.splits.items():
            _decode(read(), source.where, split, image_size, len(class_names), temporary)
        meta = {'name': name, 'class_names': class_names,
                'checksums': {f: _checksum(os.path.join(temporary, f)) for f in sorted(os.listdir(temporary))}}
        with open(os.path.join(temporary, 'meta.json'), 'w') as f:
            json.dump(seal(meta), f)
            f.flush()
            os.fsync(f.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)
        return meta
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
