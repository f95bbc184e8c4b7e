"""Streamed images: encoded images that are decoded whenever they are used, as `config.data.placement='stream'` asks for.

A data set whose decoded images do not fit on a disk is streamed, and so are images that differ in size
(`config.data.keeps_sizes`): the operations at the beginning of the pipelines crop them to one size while they are decoded,
and the others run in the compiled step. What is drawn at random depends on the seed and on the number of the image in the
run alone, so that a resumed run continues with the same bits, with any number of workers.
"""

import contextlib
import dataclasses
import functools
import logging
import multiprocessing
import os
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import numpy as np

from jaxcnn.config import DataConfig
from jaxcnn.data import picture
from jaxcnn.data.augment.file_crops import FileCrops, split_pipeline
from jaxcnn.data.resizing import resize
from jaxcnn.data.sources import EncodedExamples, Source
from jaxcnn.data.targets import BOXES
from jaxcnn.errors import UserError, name_field

STREAM_THRESHOLD = 32 << 30  # bytes of decoded images from which `auto` streams a data set instead of storing them
_SKIP_HINT = 'config.data.skip_broken=True checks all images before the training, and skips such ones'
_CHECKED_AT_A_TIME = 4096
log = logging.getLogger('jaxcnn')


@functools.lru_cache(1)
def _threads(process_id: int) -> futures.ThreadPoolExecutor:
    """Return the threads of a process that decode images; a forked process must not use those of its parent."""
    return futures.ThreadPoolExecutor(len(os.sched_getaffinity(0)), 'decode')


def _is_worker() -> bool:
    """Return whether this is a worker process of Grain, which decodes with one thread, as there are several."""
    return multiprocessing.parent_process() is not None


def crop_generator(seed: int, number: int) -> np.random.Generator:
    """Return the generator of the random numbers by which an image is cropped.

    Args:
      seed: seed of the run.
      number: how many images of the run come before it.
    """
    return np.random.Generator(np.random.PCG64([seed, number, 0xC209]))


class StreamedImages:
    """The images of a split, read from their encoded form. As an array, it holds the images of evaluation.

    Args:
      examples: the examples of the split, in their encoded form.
      name: the name of the split with its location, for errors.
      config: says how images are resized, and which operations crop them.
      path: the path of files that belong to these images in the cache, without their endings.

    Attributes:
      is_streamed: True, by which a `Split` recognises such images.
      path: see the arguments.
      shape: (N, H, W, C), as of an array of the images of evaluation.

    Raises:
      UserError: the first image cannot be read, or a pipeline does not crop images to one size.
    """

    is_streamed = True

    def __init__(self, examples: EncodedExamples, name: str, config: DataConfig, path: str):
        self._examples, self._name, self._config, self.path = examples, name, config, path
        self._crops: dict[bool, FileCrops | None] = {train: split_pipeline(config, train)[0] for train in (False, True)}
        crops = self._crops[False]
        height, width = crops.size if crops else config.fixed_size or self._first_size()
        self.shape: tuple[int, int, int, int] = (len(examples), height, width, 1 if examples.mode == 'L' else 3)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: Any) -> np.ndarray:
        """Return the images at an array of indices of any shape S, as evaluation gets them: uint8 (*S, H, W, C).

        Raises:
          UserError: an image cannot be read, is too small for the crop, or differs in size from the others.
        """
        indices = np.asarray(indices)
        return self._decode_all(lambda i: self._decode(int(i), np.random.default_rng(0), train=False),
                                indices.reshape(-1)).reshape(*indices.shape, *self.shape[1:])

    def draw(self, indices: np.ndarray, seed: int, numbers: np.ndarray) -> np.ndarray:
        """Return the images at indices (n,) as training gets them: uint8 (n, h, w, C).

        Args:
          indices: the indices of the images.
          seed: seed of the run.
          numbers: (n,) how many images of the run come before each of them.

        Raises:
          UserError: see `__getitem__`.
        """
        def decode(row: int) -> np.ndarray:
            return self._decode(int(indices[row]), crop_generator(seed, int(numbers[row])), train=True)
        return self._decode_all(decode, np.arange(len(indices)))

    def with_augment(self, augment: str) -> 'StreamedImages':
        """Return the same images with another pipeline for training, of which `draw` applies the crops.

        Raises:
          UserError: the pipeline is invalid, or does not crop images to one size.
        """
        return StreamedImages(self._examples, self._name, dataclasses.replace(self._config, augment=augment), self.path)

    def check(self, index: int, for_training: bool) -> None:
        """Raise a UserError if an image cannot be decoded, or cropped for evaluation and, if asked for, for training."""
        for train in (False, True) if for_training and self._crops[True] else (False,):
            self._decode(index, np.random.default_rng(0), train)

    def encoded(self, index: int) -> bytes:
        """Return the content of an image's file."""
        return self._examples.encoded(index)

    def _decode_all(self, decode: Any, items: np.ndarray) -> np.ndarray:
        mapped = map(decode, items) if _is_worker() else _threads(os.getpid()).map(decode, items)
        return np.stack([*mapped])

    def _image_name(self, index: int) -> str:
        named = getattr(self._examples, 'image_name', None)
        return named(index) if named else f'{self._name} image {index}'

    def _decode(self, index: int, rng: np.random.Generator, train: bool) -> np.ndarray:
        crops = self._crops[train]
        if crops is None:
            return self._read_full(index)
        with self._name_image(index):
            return picture.decode_crop(self._examples.encoded(index), self._examples.mode,
                                       functools.partial(crops.draw, rng), is_exact=not train)

    @contextlib.contextmanager
    def _name_image(self, index: int) -> Iterator[None]:
        """Name an image in a UserError that is raised in the block, and how such images are skipped."""
        try:
            with name_field(self._image_name(index)):
                yield
        except UserError as e:
            if not self._config.skip_broken:
                e.add_hint(_SKIP_HINT)
            raise

    def _read(self, index: int) -> np.ndarray:
        with self._name_image(index):
            image = picture.decode(self._examples.encoded(index), self._examples.mode)
        return image.reshape(*image.shape[:2], -1)

    def _first_size(self) -> tuple[int, int]:
        """Return the height and width of the first image that can be read."""
        for index in range(len(self._examples)):
            try:
                return self._read(index).shape[:2]
            except UserError:
                if not self._config.skip_broken:
                    raise
        raise UserError('no image can be read', field=self._name)

    def _read_full(self, index: int) -> np.ndarray:
        """Return an image as the cache would store it."""
        image, size = self._read(index), self._config.fixed_size
        if size:
            return resize(image, size, self._config.resize)
        if image.shape != self.shape[1:]:
            raise UserError(f'has the shape {image.shape}, but the first image {self.shape[1:]}',
                            field=self._image_name(index),
                            hint="config.data.image_size resizes all images to one size, or keeps theirs ('original')")
        return image


def check_placement(config: DataConfig) -> None:
    """Raise a UserError if images that keep their sizes are to be stored."""
    if config.keeps_sizes and config.placement not in ('auto', 'stream'):
        raise UserError(f'{config.placement!r} stores images of one size, but config.data.image_size={config.image_size!r} '
                        'keeps their proportions', field='config.data.placement', hint="leave it 'auto', which streams them")


def encoded_examples(source: Source, split: str) -> EncodedExamples:
    """Return the examples of a split in their encoded form.

    Raises:
      UserError: they are not stored in an encoded form, or have boxes.
    """
    examples = source.splits[split]()
    reason = 'boxes around objects need images of one size'
    if source.kind is not BOXES:
        if isinstance(examples, EncodedExamples):
            return examples
        reason = 'its images are in memory or decoded already'
    raise UserError(f'the images of {source.location} cannot be streamed: {reason}', field='config.data.placement',
                    hint="config.data.placement='auto' and a number or (height, width) as config.data.image_size store them")


def prepare(source: Source, num_classes: int, config: DataConfig, folder: str) -> dict[str, int]:
    """Write what the cache holds of a streamed data set: targets, and which images can be used.

    With `config.skip_broken` all images are decoded once, to find those that cannot be read.

    Returns:
      For each split, the number of images that cannot be used.

    Raises:
      UserError: a split holds no images, a target is wrong, or see `encoded_examples`.
    """
    broken = {}
    for split in source.splits:
        examples = encoded_examples(source, split)
        if not len(examples):
            raise UserError(f'the split {split} holds no images', field=source.location)
        targets = examples.read_targets()
        for name, spec in source.kind.targets(num_classes, config).items():
            with name_field(f'{source.location}: {split}'):
                spec.check_all(name, targets[name], num_classes)
            np.save(os.path.join(folder, f'{split}.{name}.npy'), np.asarray(targets[name], spec.dtype))
        usable = np.ones(len(examples), bool)
        if config.skip_broken:
            name = f'{source.location}: {split}'
            usable = _find_usable(StreamedImages(examples, name, config, ''), name, split in ('train', 'unlabelled'))
        np.save(os.path.join(folder, f'{split}.usable.npy'), usable)
        broken[split] = int((~usable).sum())
    return broken


def _find_usable(images: StreamedImages, name: str, for_training: bool) -> np.ndarray:
    """Return whether each of N images can be decoded and cropped: (N,) bool. The reasons of the others are logged.

    Args:
      images: the images of a split.
      name: the name of the split.
      for_training: whether they are cropped for training, too.

    Raises:
      UserError: none of them can.
    """
    def problem(index: int) -> UserError | None:
        try:
            images.check(index, for_training)
        except UserError as e:
            return e
        return None
    usable = np.ones(len(images), bool)
    log.info('%s: checking %d images, because config.data.skip_broken is set', name, len(images))
    for start in range(0, len(images), _CHECKED_AT_A_TIME):
        block = range(start, min(start + _CHECKED_AT_A_TIME, len(images)))
        for index, error in zip(block, _threads(os.getpid()).map(problem, block), strict=True):
            if error:
                usable[index] = False
                log.warning('skipped: %s', error)
    if not usable.any():
        raise UserError('no image can be used', field=name)
    return usable
