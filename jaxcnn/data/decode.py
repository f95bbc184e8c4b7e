"""Decoding: images and targets of a source are written into the files of a cache, by several threads or processes."""

import contextlib
import dataclasses
import logging
import os
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxcnn import config as cfg
from jaxcnn.data import workers
from jaxcnn.data.checks import check_images
from jaxcnn.data.resizing import resize
from jaxcnn.data.sources import Example, Examples, InMemoryExamples, NamedExamples, Source
from jaxcnn.data.targets import TargetKind
from jaxcnn.errors import UserError, name_field, name_file

PROCESS_THRESHOLD = 5000  # number of images from which processes decode them instead of threads
_THREAD_BLOCK_SIZE = 50  # images that a thread decodes at a time
_PROPOSAL_BLOCK_SIZE = 4  # the same with proposals, which take up to several seconds for an image
_PROGRESS_INTERVAL = 10  # seconds between lines of progress with proposals
_SKIP_HINT = 'config.data.skip_broken=True skips such images'
log = logging.getLogger('jaxcnn')


class _DecodedBlock(NamedTuple):
    """The result of decoding some images of a split.

    Attributes:
      targets: one array (n, ...) for each target, by name.
      usable: (n,) bool; false for images that could not be read.
      reasons: why these could not be read.
      problems: the boxes that were left out or clipped; see `targets.EncodedTargets`.
    """

    targets: dict[str, np.ndarray]
    usable: np.ndarray
    reasons: list[str]
    problems: list[str]


@dataclasses.dataclass(frozen=True)
class _Decoder:
    """Decodes the images of a split into a file; it is pickled for worker processes.

    Attributes:
      examples: the examples of the split.
      location: the location of the source, for errors.
      split: the name of the split, for errors.
      kind: the kind of the targets.
      num_classes: the number of classes.
      config: says how images are resized, and whether those that cannot be read are skipped.
      path: the file of the decoded images.
    """

    examples: Examples
    location: str
    split: str
    kind: TargetKind
    num_classes: int
    config: cfg.DataConfig
    path: str

    def _image_name(self, index: int) -> str:
        if isinstance(self.examples, NamedExamples):
            return self.examples.image_name(index)
        return f'{self.location}: {self.split} image {index}'

    def _read(self, index: int) -> Example:
        """Return an example.

        Raises:
          UserError: it cannot be read.
        """
        hint = None if self.config.skip_broken else _SKIP_HINT
        try:
            return self.examples[index]
        except UserError as e:
            if hint:
                e.add_hint(hint)
            raise
        except Exception as e:  # each decoder raises other kinds of errors
            reason = f'{type(e).__name__}: {" ".join(str(e).split())[:200]}'
            raise UserError(f'cannot be read: {reason}', field=self._image_name(index), hint=hint) from e

    def _check_image(self, image: np.ndarray, index: int) -> np.ndarray:
        with name_field(self._image_name(index)):
            return check_images('image', image[None], image.shape if image.ndim == 3 else None)[0]

    def image_shape(self) -> tuple[int, ...]:
        """Return the shape of the decoded images, from the first image that can be read.

        Raises:
          UserError: no image can be read, or the first one cannot and `config.skip_broken` is not set.
        """
        for index in range(len(self.examples)):
            try:
                image = self._read(index)['image']
            except UserError:
                if not self.config.skip_broken:
                    raise
                continue
            shape = self._check_image(image, index).shape
            size = self.config.fixed_size
            return (*size, shape[-1]) if size else shape
        raise UserError(f'no image of the split {self.split} can be read', field=self.location)

    def decode(self, indices: range) -> _DecodedBlock:
        """Decode the images at `indices`, and write them into the file.

        Raises:
          UserError: an image cannot be read and `config.skip_broken` is not set, its size or type differs from that of the
            first image, or a target is wrong.
        """
        images = np.asarray(np.load(self.path, mmap_mode='r+'))
        specs = self.kind.targets(self.num_classes, self.config)
        targets = {name: np.zeros((len(indices), *spec.shape), spec.dtype) for name, spec in specs.items()}
        usable = np.ones(len(indices), bool)
        reasons: list[str] = []
        problems: list[str] = []
        size = self.config.fixed_size
        for row, index in enumerate(indices):
            try:
                example = self._read(index)
            except UserError as e:
                if not self.config.skip_broken:
                    raise
                usable[row] = False
                reasons.append(str(e))
                continue
            image = self._check_image(example['image'], index)
            with name_field(self._image_name(index)):
                encoded = self.kind.encode({**example, 'image': image}, self.num_classes, self.config)
            problems += [f'{self._image_name(index)}: {problem}' for problem in encoded.problems]
            for name, value in encoded.arrays.items():
                targets[name][row] = value
            if size:
                image = resize(image, size, self.config.resize)
            if image.shape != images.shape[1:]:
                has_channels = image.shape[2] == images.shape[3]
                raise UserError(f'has the shape {image.shape}, but the first image {images.shape[1:]}',
                                field=self._image_name(index),
                                hint='config.data.image_size=SIZE resizes all images to one size' if has_channels else
                                'all images must have the same number of channels')
            images[index] = image
        return _DecodedBlock(targets, usable, reasons, problems)


def _needs_processes(examples: Examples) -> bool:
    """Return whether processes decode the examples, because threads would spend their time on the interpreter's lock."""
    return len(examples) >= PROCESS_THRESHOLD and not isinstance(examples, InMemoryExamples)


def _create_array_file(path: str, shape: tuple[int, ...]) -> None:
    """Create a `.npy` file of uint8 zeros. A full disk is an error now instead of a crash when the file is written."""
    with name_file(path):
        np.lib.format.open_memmap(path, 'w+', np.uint8, shape).flush()
        with open(path, 'r+b') as f:
            os.posix_fallocate(f.fileno(), 0, os.path.getsize(path))


def _decode_blocks(decoder: _Decoder) -> Iterator[_DecodedBlock]:
    """Decode a split in blocks, in parallel, and yield the results in order."""
    import joblib
    count, cores = len(decoder.examples), len(os.sched_getaffinity(0))
    if _needs_processes(decoder.examples):
        block_size = -(-count // (8 * cores))
        arguments: dict[str, Any] = dict(backend='loky', initializer=workers.initializer())
        starting: contextlib.AbstractContextManager = workers.block_stop_signals()
    else:
        block_size, arguments, starting = _THREAD_BLOCK_SIZE, dict(backend='threading'), contextlib.nullcontext()
    if decoder.config.proposals:
        block_size = min(block_size, _PROPOSAL_BLOCK_SIZE)
    blocks = (range(start, min(start + block_size, count)) for start in range(0, count, block_size))
    with starting:
        results = joblib.Parallel(cores, return_as='generator', **arguments)(
            joblib.delayed(decoder.decode)(block) for block in blocks)
    yield from results


def _decode_split(decoder: _Decoder, folder: str) -> tuple[int, int]:
    """Write the images and the targets of a split.

    Returns:
      The number of images that could not be read, and of boxes that were left out or clipped.

    Raises:
      UserError: there are no images, or see `_Decoder.decode`.
    """
    split, count = decoder.split, len(decoder.examples)
    if not count:
        raise UserError(f'the split {split} holds no images', field=decoder.location)
    _create_array_file(decoder.path, (count, *decoder.image_shape()))
    decoded: list[_DecodedBlock] = []
    num_decoded, next_progress = 0, time.monotonic() + _PROGRESS_INTERVAL
    for block in _decode_blocks(decoder):
        decoded.append(block)
        num_decoded += len(block.usable)
        for reason in block.reasons:
            log.warning('skipped: %s', reason)
        if decoder.config.proposals and time.monotonic() >= next_progress:
            log.info('decoding %s and computing proposals: %d of %d images', split, num_decoded, count)
            next_progress = time.monotonic() + _PROGRESS_INTERVAL
        elif _needs_processes(decoder.examples) and not decoder.config.proposals:
            log.info('decoding %s: %d of %d images', split, num_decoded, count)
    if problems := [problem for block in decoded for problem in block.problems]:
        log.warning('%s: left out or clipped %s of the %s split, for example: %s', decoder.location,
                    f'{len(problems)} {"box" if len(problems) == 1 else "boxes"}', split, problems[0])
    usable = np.concatenate([block.usable for block in decoded])
    with name_file(decoder.path), open(decoder.path, 'r+b') as f:
        os.fsync(f.fileno())
    with name_file(folder):
        np.save(os.path.join(folder, f'{split}.usable.npy'), usable)
        for name in decoder.kind.targets(decoder.num_classes, decoder.config):
            np.save(os.path.join(folder, f'{split}.{name}.npy'), np.concatenate([block.targets[name] for block in decoded]))
    return int((~usable).sum()), len(problems)


@contextlib.contextmanager
def _handle_processes(is_used: bool) -> Iterator[None]:
    """Turn the end of a worker process in the block into a UserError, and end the worker processes after the block.

    Args:
      is_used: whether the block starts worker processes. Otherwise they would wait for further work for minutes.
    """
    from joblib.externals.loky.process_executor import TerminatedWorkerError
    try:
        yield
    except TerminatedWorkerError as e:
        exit_code = re.search(r'\((-?\d+)\)', str(e))  # loky gives the exit code only in its message
        raise workers.worker_error(int(exit_code[1]) if exit_code else None, 'the same command decodes the images again; '
                                   '`taskset -c 0` in front of it takes one process and less memory') from e
    finally:
        if is_used:
            from joblib.externals import loky
            loky.get_reusable_executor().shutdown()


def decode_source(source: Source, num_classes: int, config: cfg.DataConfig,
                  folder: str) -> tuple[dict[str, int], dict[str, int]]:
    """Decode all splits of a source into a folder.

    Returns:
      For each split, the number of images that could not be read, and of boxes that were left out or clipped.

    Raises:
      UserError: a split holds no images, or an image or a target is wrong.
    """
    splits = {split: read() for split, read in source.splits.items()}
    broken, wrong_boxes = {}, {}
    with _handle_processes(any(map(_needs_processes, splits.values()))):
        for split, examples in splits.items():
            path = os.path.join(folder, f'{split}.images.npy')
            decoder = _Decoder(examples, source.location, split, source.kind, num_classes, config, path)
            broken[split], wrong_boxes[split] = _decode_split(decoder, folder)
    return broken, wrong_boxes
