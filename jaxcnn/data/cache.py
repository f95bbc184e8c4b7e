"""The uint8 cache: every image is decoded once, then read through a memory map.

A cache is a folder `<cache_dir>/<name>-<key>/` holding `<split>.images.npy` (N, H, W, C) uint8, `<split>.<target>.npy`
(N, ...) for each target, `<split>.usable.npy` (N,) bool, which is false for images that could not be read, and `meta.json`
with their checksums; `dataset` adds channel statistics. It is built under a temporary name and
renamed, so a crash half-way leaves nothing that could be taken for a cache; a stale one has another key, a damaged one
another checksum, and both are built anew. A cache that takes the place of others, which were built from the same folder and
with the same settings, removes them, except those that a process reads.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import numpy as np

from jaxcnn import config as cfg
from jaxcnn.cache_folder import cache_folder
from jaxcnn.data import workers
from jaxcnn.data.checks import check_images
from jaxcnn.data.sources import Example, Examples, InMemoryExamples, Source
from jaxcnn.data.targets import TargetKind
from jaxcnn.errors import UserError, from_os_error, name_field, name_file
from jaxcnn.locks import LockedError, is_shared, lock, open_shared
from jaxcnn.sealed import seal, unseal

_FORMAT = 5
_LEAVE_OUT = 'config.data.skip_broken leaves such images out'
MANY = 5000  # images, from which on processes decode them, not threads
log = logging.getLogger('jaxcnn')


class ArrayFile:
    """A `.npy` file read through a memory map; pickles as its path, so that worker processes open their own.

    Args:
      path: of the file.
      shared: a file of the cache, from `locks.open_shared`, that stays open as long as this object is in use.
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


def resize(image: np.ndarray, shape: tuple[int, int], how: str) -> np.ndarray:
    """A uint8 image (H, W, C), of which `how` says `crop`: the middle, as much as has the form of `shape`, or `squash`: all,
    at `shape`, (height, width).

    Bilinear, antialiased.
    """
    from PIL import Image
    height, width = shape
    if how == 'crop':
        scale = min(image.shape[0] / height, image.shape[1] / width)
        rows, columns = max(1, round(scale * height)), max(1, round(scale * width))
        top, left = (image.shape[0] - rows) // 2, (image.shape[1] - columns) // 2
        image = image[top:top + rows, left:left + columns]
    if image.shape[:2] == (height, width):
        return image
    squeezed = image[..., 0] if image.shape[-1] == 1 else image
    resized = np.asarray(Image.fromarray(squeezed).resize((width, height), Image.Resampling.BILINEAR))
    return resized.reshape(height, width, image.shape[-1])


def _read(examples: Examples, index: int, where: str, split: str) -> Example:
    try:
        return examples[index]
    except UserError:
        raise
    except Exception as e:  # every decoder has its own
        raise UserError(f'{where}: {split} image {index} cannot be read: {type(e).__name__}: '
                        f'{" ".join(str(e).split())[:200]}') from e


def _checked(image: np.ndarray, where: str, split: str, index: int) -> np.ndarray:
    with name_field(f'{where}: {split} image {index}'):
        return check_images('image', image[None], image.shape if image.ndim == 3 else None)[0]


def _decode_part(examples: Examples, where: str, split: str, kind: TargetKind, num_classes: int, path: str,
                 config: cfg.DataConfig, indices: range) -> tuple[dict[str, np.ndarray], np.ndarray, list[str]]:
    """Write the images at `indices` into the file at `path`.

    Returns:
      Their targets by name, whether each image could be read, and why the others could not.
    """
    images = np.asarray(np.load(path, mmap_mode='r+'))
    specs = kind.targets(num_classes)
    targets = {name: np.zeros((len(indices), *spec.shape), spec.dtype) for name, spec in specs.items()}
    usable, reasons = np.ones(len(indices), bool), []
    for row, index in enumerate(indices):
        try:
            example = _read(examples, index, where, split)
        except UserError as e:
            if not config.skip_broken:
                e.add_hint(_LEAVE_OUT)
                raise
            usable[row] = False
            reasons.append(str(e))
            continue
        image = _checked(example['image'], where, split, index)
        image = resize(image, (config.image_size,) * 2, config.resize) if config.image_size else image
        if image.shape != images.shape[1:]:
            advice = ('set config.data.image_size to bring them to one size' if image.shape[2] == images.shape[3] else
                      'all must have the same number of channels')
            raise UserError(f'{where}: {split} image {index} is {image.shape}, the first one {images.shape[1:]}: {advice}')
        with name_field(f'{where}: {split} image {index}'):
            for name, spec in specs.items():
                targets[name][row] = spec.check(name, example[name], num_classes)
        images[index] = image
    return targets, usable, reasons


def _many(examples: Examples) -> bool:
    """Whether processes decode them: in threads, the interpreter's lock would take more than small images' decoding."""
    return len(examples) >= MANY and not isinstance(examples, InMemoryExamples)


def _decode(examples: Examples, source: Source, split: str, num_classes: int, folder: str, config: cfg.DataConfig) -> int:
    """Write a split's images and targets, and return how many images could not be read."""
    import joblib
    where, count = source.location, len(examples)
    if count == 0:
        raise UserError(f'{where}: the {split} part holds no images')

    def first_whole() -> np.ndarray:
        for index in range(count):
            try:
                image = _read(examples, index, where, split)['image']
            except UserError as e:
                if not config.skip_broken:
                    e.add_hint(_LEAVE_OUT)
                    raise
                continue
            return _checked(image, where, split, index)
        raise UserError(f'{where}: not one image of the {split} part can be read')

    first = first_whole()
    shape = (config.image_size, config.image_size, first.shape[-1]) if config.image_size else first.shape
    path = os.path.join(folder, f'{split}.images.npy')
    with name_file(path):
        np.lib.format.open_memmap(path, 'w+', np.uint8, (count, *shape)).flush()
        with open(path, 'r+b') as f:  # a full disk must be an error here, not a fault when a page is written
            os.posix_fallocate(f.fileno(), 0, os.path.getsize(path))

    many, cores = _many(examples), len(os.sched_getaffinity(0))
    size = -(-count // (8 * cores)) if many else 50
    backend = dict(backend='loky', initializer=workers.initializer()) if many else dict(backend='threading')
    with workers.block_stop_signals() if many else contextlib.nullcontext():
        parts = joblib.Parallel(cores, return_as='generator', **backend)(
            joblib.delayed(_decode_part)(examples, where, split, source.kind, num_classes, path, config,
                                         range(a, min(a + size, count)))
            for a in range(0, count, size))
    decoded: list[tuple[dict[str, np.ndarray], np.ndarray]] = []
    for start, (targets, usable, reasons) in zip(range(0, count, size), parts, strict=True):
        decoded.append((targets, usable))
        for reason in reasons:
            log.warning('left out: %s', reason)
        if many:
            log.info('decoding %s: %d of %d images', split, start + len(usable), count)
    all_usable = np.concatenate([usable for _, usable in decoded])
    with name_file(path), open(path, 'r+b') as f:
        os.fsync(f.fileno())
    with name_file(folder):
        np.save(os.path.join(folder, f'{split}.usable.npy'), all_usable)
        for name in source.kind.targets(num_classes):
            np.save(os.path.join(folder, f'{split}.{name}.npy'), np.concatenate([targets[name] for targets, _ in decoded]))
    return int((~all_usable).sum())


def _read_meta(folder: str) -> dict[str, Any] | None:
    """The meta data of a whole and undamaged cache, or None."""
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
    """A split as the cache holds it.

    Attributes:
      images: uint8 (N, H, W, C).
      targets: by name, (N, ...) each.
      usable: (N,) bool; False where an image could not be read.
    """

    images: ArrayFile
    targets: dict[str, np.ndarray]
    usable: np.ndarray


def open_cache(source: Source, config: cfg.DataConfig) -> tuple[dict[str, Any], dict[str, CachedSplit]]:
    """Return the decoded data set, from the cache where it is there.

    Returns:
      Its meta data (`class_names`, and of each split how many images are `broken`), and its splits.

    Raises:
      UserError: an image does not decode or has another size than the first, a label is out of range, or the
        cache folder cannot be written.
    """
    root = cache_folder(config.cache_dir)
    settings = [config.image_size, config.image_size and config.resize, config.skip_broken]
    key = json.dumps([_FORMAT, source.kind.name, source.key, *settings], sort_keys=True)
    location = os.path.realpath(config.dir) if config.dir else source.location
    origin = [config.name, location, source.kind.name, _FORMAT, *settings]
    folder = os.path.join(root, f'{config.name.replace("/", "-")}-{hashlib.sha256(key.encode()).hexdigest()[:16]}')
    try:
        opened = _open(folder)
        if opened is None:
            os.makedirs(root, exist_ok=True)
            with lock(f'{folder}.lock', wait=True):
                opened = _open(folder)  # another process may have built it meanwhile
                if opened is None:
                    opened = _build(source, folder, config, origin), open_shared(os.path.join(folder, 'meta.json'))
            _remove_superseded(folder, origin)
    except OSError as e:
        if not (str(e.filename).startswith(root) or root.startswith(str(e.filename))):
            raise from_os_error(e, root) from e  # of the source, or of the processes that decode
        raise UserError(f'cannot keep decoded images in {root!r} (config.data.cache_dir): {from_os_error(e)}') from e
    meta, shared = opened

    def array(split: str, name: str) -> np.ndarray:
        return np.load(os.path.join(folder, f'{split}.{name}.npy'), allow_pickle=False)
    return meta, {split: CachedSplit(ArrayFile(os.path.join(folder, f'{split}.images.npy'), shared),
                                     {name: array(split, name) for name in source.kind.targets(len(meta['class_names']))},
                                     array(split, 'usable'))
                  for split in source.splits}


def _open(folder: str) -> tuple[dict[str, Any], IO[str]] | None:
    """The meta data of a whole and undamaged cache, and its open file, which keeps other processes from removing it."""
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
    """The caches in the folder `root`, unfinished ones of killed processes included, with what their images are from ('?':
    unknown)."""
    folders = {os.path.join(root, match[1]) for name in (os.listdir(root) if os.path.isdir(root) else [])
               if (match := re.fullmatch(r'(.+-[0-9a-f]{16})(\.tmp|\.lock)?', name))}
    return {folder: str((_origin(folder) or ['', '?'])[1]) for folder in sorted(folders)}


def _origin(folder: str) -> list[Any] | None:
    try:
        with open(os.path.join(folder, 'meta.json'), encoding='utf-8') as f:
            return unseal(json.load(f)).get('origin')
    except (OSError, ValueError):
        return None


def remove(folder: str) -> bool:
    """Removes a cache, and returns whether it did: not where a process reads or builds it, or where the file system has no
    locks, which would tell."""
    meta, temporary = os.path.join(folder, 'meta.json'), f'{folder}.tmp'
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(lock(f'{folder}.lock'))
            if os.path.exists(meta) and stack.enter_context(is_shared(meta)):
                return False
            shutil.rmtree(temporary, ignore_errors=True)
            if os.path.isdir(folder):
                os.rename(folder, temporary)  # a process that is killed now leaves no part of a cache under its name
                shutil.rmtree(temporary)
            os.remove(f'{folder}.lock')
            return True
    except (LockedError, OSError):
        return False


def _remove_superseded(folder: str, origin: list[Any]) -> None:
    """Removes other caches of this origin, whose source has changed since they were built, and unfinished ones."""
    for other in list_caches(os.path.dirname(folder)):
        if other != folder and (_origin(other) == origin or not os.path.isdir(other)) and remove(other):
            log.info('removed %s: the images that it was decoded from have changed, or it was not finished', other)


@contextlib.contextmanager
def _decoding_pool(used: bool) -> Iterator[None]:
    from joblib.externals.loky.process_executor import TerminatedWorkerError
    try:
        yield
    except TerminatedWorkerError as e:
        exit_code = re.search(r'\((-?\d+)\)', str(e))  # loky gives it in its message alone
        raise workers.worker_error(int(exit_code[1]) if exit_code else None, 'the same command decodes the images again; '
                                   '`taskset -c 0` in front of it takes one process and less memory') from e
    finally:
        if used:  # else they wait for more to do, for minutes
            from joblib.externals import loky
            loky.get_reusable_executor().shutdown()


def _build(source: Source, folder: str, config: cfg.DataConfig, origin: list[Any]) -> dict[str, Any]:
    temporary = f'{folder}.tmp'
    shutil.rmtree(temporary, ignore_errors=True)
    os.makedirs(temporary)
    try:
        class_names, parts = list(source.class_names()), {split: read() for split, read in source.splits.items()}
        with _decoding_pool(any(map(_many, parts.values()))):
            broken = {split: _decode(part, source, split, len(class_names), temporary, config)
                      for split, part in parts.items()}
        meta = {'name': config.name, 'origin': origin, 'class_names': class_names, 'broken': broken,
                'checksums': {f: _checksum(os.path.join(temporary, f)) for f in sorted(os.listdir(temporary))}}
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
