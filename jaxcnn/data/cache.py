"""The cache of decoded images: every image is decoded once and then read, as uint8, through a memory map.

A cache is a folder `<cache_dir>/<name>-<key>/` with these files:

- `<split>.images.npy`: (N, H, W, C) uint8, unless the images are streamed (`stream.py`);
- `<split>.<target>.npy`: (N, ...), for each target;
- `<split>.usable.npy`: (N,) bool, false for images that could not be read;
- `meta.json`: the names of the classes, and the checksums of the other files.

`dataset` and `duplicates` add statistics and digests of the images. A cache is built under a temporary name and renamed, so
that an interrupted build is never taken for a cache. If the source or the settings change, so does the key; if a file is
damaged, its checksum does not match; in both cases the cache is built again. A new cache replaces older ones that were built
from the same folder with the same settings, unless a process reads them.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import zlib
from typing import IO, Any, NamedTuple

import numpy as np

from jaxcnn import config as cfg
from jaxcnn.cache_folder import cache_folder
from jaxcnn.data import stream
from jaxcnn.data.augment import split_pipeline
from jaxcnn.data.decode import decode_source
from jaxcnn.data.sources import EncodedExamples, Source
from jaxcnn.data.stream import StreamedImages
from jaxcnn.data.targets import BOXES
from jaxcnn.errors import UserError, from_os_error, name_file
from jaxcnn.locks import LockedError, is_shared, lock, open_shared
from jaxcnn.sealed import seal, unseal

_FORMAT = 5
log = logging.getLogger('jaxcnn')


class ArrayFile:
    """A `.npy` file read through a memory map. It pickles as its path, so that worker processes open the file themselves.

    Args:
      path: the path of the file.
      shared: an open file of the cache, from `locks.open_shared`, which stays open as long as this object is in use.
    """

    def __init__(self, path: str, shared: IO[str] | None = None):
        self.path, self._shared = path, shared
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


def _read_meta(folder: str) -> dict[str, Any] | None:
    """Return the metadata of a complete and undamaged cache, or None."""
    try:
        with open(os.path.join(folder, 'meta.json'), encoding='utf-8') as f:
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


class CachedSplit(NamedTuple):
    """A split in the cache.

    Attributes:
      images: uint8 (N, H, W, C), decoded or streamed.
      targets: one array (N, ...) for each target, by name.
      usable: (N,) bool; false for images that could not be read.
    """

    images: ArrayFile | StreamedImages
    targets: dict[str, np.ndarray]
    usable: np.ndarray


def open_cache(source: Source, config: cfg.DataConfig) -> tuple[dict[str, Any], dict[str, CachedSplit]]:
    """Return the decoded data set, which is read from the cache or, if it is not there, decoded into the cache.

    Returns:
      The metadata, with `class_names` and, in `broken`, the number of unusable images of each split; and the splits.
      Caches of versions with boxes also have `wrong_boxes`, the number of boxes that were left out or clipped.

    Raises:
      UserError: an image cannot be decoded or differs in size from the first one, a label is out of range, or the folder of
        the cache cannot be written.
    """
    stream.check_placement(config)
    root = cache_folder(config.cache_dir)
    is_streamed = config.placement == 'stream' or config.keeps_sizes
    folder, origin = _identify(source, config, root, is_streamed)
    try:
        opened = _open(folder)
        if opened is None and config.placement == 'auto' and not is_streamed and _is_too_large(source, config):
            log.info("%s: the images are streamed, because they would take more than %d GiB decoded; "
                     "config.data.placement='host' decodes them once", source.location, stream.STREAM_THRESHOLD >> 30)
            is_streamed = True
            folder, origin = _identify(source, config, root, is_streamed)
            opened = _open(folder)
        if opened is None:
            os.makedirs(root, exist_ok=True)
            with lock(f'{folder}.lock', wait=True):
                opened = _open(folder)  # another process may have built it meanwhile
                if opened is None:
                    opened = (_build(source, folder, config, origin, is_streamed),
                              open_shared(os.path.join(folder, 'meta.json')))
            _remove_superseded(folder, origin)
    except OSError as e:
        is_in_root = str(e.filename).startswith(root) or root.startswith(str(e.filename))
        if not is_in_root:  # an error of the source, or of the processes that decode
            raise from_os_error(e, root) from e
        raise UserError(f'decoded images cannot be stored in {root!r}: {from_os_error(e)}',
                        field='config.data.cache_dir') from e
    meta, shared = opened

    def load_array(split: str, name: str) -> np.ndarray:
        return np.load(os.path.join(folder, f'{split}.{name}.npy'), allow_pickle=False)
    splits = {}
    for split in source.splits:
        images: ArrayFile | StreamedImages
        if is_streamed:
            images = StreamedImages(stream.encoded_examples(source, split), f'{source.location}: {split}', config,
                                    os.path.join(folder, f'{split}.images'))
        else:
            images = ArrayFile(os.path.join(folder, f'{split}.images.npy'), shared)
        names = source.kind.targets(len(meta['class_names']), config)
        targets = {name: load_array(split, name) for name in names}
        splits[split] = CachedSplit(images, targets, load_array(split, 'usable'))
    return meta, splits


def _identify(source: Source, config: cfg.DataConfig, root: str, is_streamed: bool) -> tuple[str, list[Any]]:
    """Return the folder of a cache, and the origin by which older caches of the same data are recognised."""
    settings = [config.image_size, config.image_size and config.resize, config.skip_broken,
                *source.kind.cache_settings(config)]
    if 'unlabelled' in source.splits:
        settings.append('unlabelled')
    if is_streamed:
        crops = [split_pipeline(config, train)[0] for train in (True, False)]
        settings += ['stream', *(part.text for part in crops if part)]
    key = json.dumps([_FORMAT, source.kind.name, source.key, *settings], sort_keys=True)
    location = os.path.realpath(config.dir) if config.dir else source.location
    name = f'{config.name.replace("/", "-")}-{hashlib.sha256(key.encode()).hexdigest()[:16]}'
    return os.path.join(root, name), [config.name, location, source.kind.name, _FORMAT, *settings]


def _is_too_large(source: Source, config: cfg.DataConfig) -> bool:
    """Return whether images that can be streamed would be too large for the cache."""
    if source.kind is BOXES or not config.fixed_size:
        return False
    splits = [read() for read in source.splits.values()]
    height, width = config.fixed_size
    num_bytes = sum(map(len, splits)) * height * width * 3
    return num_bytes > stream.STREAM_THRESHOLD and all(isinstance(examples, EncodedExamples) for examples in splits)


def _open(folder: str) -> tuple[dict[str, Any], IO[str]] | None:
    """Return the metadata of a complete and undamaged cache, and its open file, until whose closing no process removes the
    cache; None if there is no such cache."""
    try:
        shared = open_shared(os.path.join(folder, 'meta.json'))
    except FileNotFoundError:
        return None
    meta = _read_meta(folder)
    if meta is None:
        shared.close()
        return None
    return meta, shared


def list_caches(root: str) -> dict[str, str]:
    """Return the caches in the folder `root` with the location of their source, '?' if it is unknown.

    Incomplete caches of killed processes are included.
    """
    names = os.listdir(root) if os.path.isdir(root) else []
    matches = [re.fullmatch(r'(.+-[0-9a-f]{16})(\.tmp|\.lock)?', name) for name in names]
    folders = {os.path.join(root, match[1]) for match in matches if match}
    return {folder: str((_read_origin(folder) or ['', '?'])[1]) for folder in sorted(folders)}


def _read_origin(folder: str) -> list[Any] | None:
    """Return the name, the location and the settings from which a cache was built; None if it cannot be read."""
    try:
        with open(os.path.join(folder, 'meta.json'), encoding='utf-8') as f:
            return unseal(json.load(f)).get('origin')
    except (OSError, ValueError):
        return None


def remove(folder: str) -> bool:
    """Remove a cache, and return whether it was removed.

    It is not removed if a process reads or builds it, or if the file system has no locks, which would show that.
    """
    meta, temporary = os.path.join(folder, 'meta.json'), f'{folder}.tmp'
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(lock(f'{folder}.lock'))
            if os.path.exists(meta) and stack.enter_context(is_shared(meta)):
                return False
            shutil.rmtree(temporary, ignore_errors=True)
            if os.path.isdir(folder):
                os.rename(folder, temporary)  # if this process is killed, no incomplete cache has the name of a complete one
                shutil.rmtree(temporary)
            os.remove(f'{folder}.lock')
            return True
    except (LockedError, OSError):
        return False


def _remove_superseded(folder: str, origin: list[Any]) -> None:
    """Remove incomplete caches, and other caches of the same origin, whose source has changed since they were built."""
    for other in list_caches(os.path.dirname(folder)):
        if other != folder and (_read_origin(other) == origin or not os.path.isdir(other)) and remove(other):
            log.info('removed %s: the images that it was decoded from have changed, or it was not complete', other)


def _build(source: Source, folder: str, config: cfg.DataConfig, origin: list[Any], is_streamed: bool) -> dict[str, Any]:
    """Decode all splits into a new cache, or prepare one of streamed images, and return its metadata."""
    temporary = f'{folder}.tmp'
    shutil.rmtree(temporary, ignore_errors=True)
    os.makedirs(temporary)
    try:
        versions = source.kind.package_versions(config)
        class_names = list(source.class_names())
        wrong_boxes: dict[str, int] = {}
        if is_streamed:
            broken = stream.prepare(source, len(class_names), config, temporary)
        else:
            broken, wrong_boxes = decode_source(source, len(class_names), config, temporary)
        meta = {'name': config.name, 'origin': origin, 'class_names': class_names, 'broken': broken,
                'wrong_boxes': wrong_boxes, 'package_versions': versions,
                'checksums': {name: _checksum(os.path.join(temporary, name)) for name in sorted(os.listdir(temporary))}}
        with name_file(temporary), open(os.path.join(temporary, 'meta.json'), 'w', encoding='utf-8') as f:
            json.dump(seal(meta), f)
            f.flush()
            os.fsync(f.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)
        return meta
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
