"""Streamed images: encoded images that are decoded whenever they are used, as `config.data.placement='stream'` asks for.

A data set whose decoded images do not fit on a disk is streamed, and so are images that differ in size
(`config.data.keeps_sizes`): the operations at the beginning of the pipelines crop them to one size while they are decoded,
and the others run in the compiled step. What is drawn at random depends on `(seed, epoch, image)` alone, so that a
resumed run continues with the same bits, with any number of workers.
"""

import functools
import logging
import multiprocessing
import os
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
SKIP_HINT = 'config.data.skip_broken=True checks all images before the training, and skips such ones'
log = logging.getLogger('jaxcnn')
_DETERMINISTIC = np.random.default_rng(0)  # for operations that draw no random numbers


@functools.lru_cache(1)
def _threads(process_id: int) -> futures.ThreadPoolExecutor:
    """Return the threads of a process that decode images; a forked process must not use those of its parent."""
    return futures.ThreadPoolExecutor(len(os.sched_getaffinity(0)), 'decode')


def _is_worker() -> bool:
    """Return whether this is a worker process of Grain, which decodes with one thread, as there are several."""
    return multiprocessing.parent_process() is not None


class StreamedImages:
    """The images of a split, read from their encoded form. As an array, it holds the images of evaluation.

    Args:
      examples: the examples of the split, in their encoded form.
      name: the name of the split with its location, for errors.
      config: says how images are resized, and which operations crop them.
      path: the path of files that belong to these images in the cache, without their endings.

    Attributes:
      path: see the arguments.
      shape: (N, H, W, C), as of an array of the images of evaluation.

    Raises:
      UserError: the first image cannot be read, or a pipeline does not crop images to one size.
    """

    def __init__(self, examples: EncodedExamples, name: str, config: DataConfig, path: str):
        self._examples, self._name, self._config, self.path = examples, name, config, path
        self._crops: dict[bool, FileCrops | None] = {train: split_pipeline(config, train)[0] for train in (False, True)}
        crops = self._crops[False]
        channels = 1 if examples.mode == 'L' else 3
        size = crops.size if crops else config.fixed_size or self._read_full(0).shape[:2]
        self.shape: tuple[int, int, int, int] = (len(examples), *size, channels)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: Any) -> np.ndarray:
        """Return the images at an array of indices of any shape S, as evaluation gets them: uint8 (*S, H, W, C).

        Raises:
          UserError: an image cannot be read, is too small for the crop, or differs in size from the others.
        """
        indices = np.asarray(indices)
        return self._decode_all(lambda i: self._decode(int(i), _DETERMINISTIC, train=False),
                                indices.reshape(-1)).reshape(*indices.shape, *self.shape[1:])

    def draw(self, indices: np.ndarray, seed: int, epochs: np.ndarray) -> np.ndarray:
        """Return the images at indices (n,) as training gets them in some epochs (n,): uint8 (n, h, w, C).

        Raises:
          UserError: see `__getitem__`.
        """
        def decode(row: int) -> np.ndarray:
            rng = np.random.Generator(np.random.PCG64([seed, int(epochs[row]), int(indices[row]), 0xC209]))
            return self._decode(int(indices[row]), rng, train=True)
        return self._decode_all(decode, np.arange(len(indices)))

    def check(self, index: int) -> None:
        """Raise a UserError if an image cannot be decoded, or cannot be cropped for training or for evaluation."""
        for train in (False, True):
            self._decode(index, _DETERMINISTIC, train)

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
        with name_field(self._image_name(index)):
            return picture.decode_crop(self._examples.encoded(index), self._examples.mode,
                                       functools.partial(crops.draw, rng), is_exact=not train)

    def _read_full(self, index: int) -> np.ndarray:
        """Return an image as the cache would store it."""
        with name_field(self._image_name(index)):
            image = picture.decode(self._examples.encoded(index), self._examples.mode)
        image = image.reshape(*image.shape[:2], -1)
        size = self._config.fixed_size
        if size:
            return resize(image, size, self._config.resize)
        expected = getattr(self, 'shape', (0, *image.shape))[1:]
        if image.shape != expected:
            raise UserError(f'has the shape {image.shape}, but the first image {expected}', field=self._image_name(index),
                            hint="config.data.image_size resizes all images to one size, or keeps theirs ('original')")
        return image


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
            usable = _find_usable(StreamedImages(examples, f'{source.location}: {split}', config, ''))
        np.save(os.path.join(folder, f'{split}.usable.npy'), usable)
        broken[split] = int((~usable).sum())
    return broken


def _find_usable(images: StreamedImages) -> np.ndarray:
    """Return whether each of N images can be decoded and cropped: (N,) bool. The reasons of the others are logged."""
    def problem(index: int) -> UserError | None:
        try:
            images.check(index)
        except UserError as e:
            return e
        return None
    usable = np.ones(len(images), bool)
    log.info('checking %d images, because config.data.skip_broken is set', len(images))
    for index, error in enumerate(_threads(os.getpid()).map(problem, range(len(images)))):
        if error:
            usable[index] = False
            log.warning('skipped: %s', error)
    return usable
