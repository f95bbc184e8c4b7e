"""The survey of a data set: each image is read once, at its true size, and reduced to a row of numbers."""

import dataclasses
import functools
import hashlib
import importlib.util
import logging
import os
import time
from collections.abc import Sequence
from concurrent import futures
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxcnn.data import picture
from jaxcnn.data.box_files import BoxFiles
from jaxcnn.data.checks import check_images
from jaxcnn.data.sources import EncodedExamples, Example, Examples, InMemoryExamples, Source
from jaxcnn.data.targets import BOXES, LABELS, TargetKind, box_problem
from jaxcnn.data_report.files import Header, failure_kind, read_header
from jaxcnn.errors import UserError, as_text, describe_exception

THUMBNAIL_SIDE = 16  # pixels of the thumbnails that confirm near duplicates
MIN_HASHED_SIDE = 32  # pixels; perceptual hashes of smaller images say little, because they are computed at this size
_REDUCED_SIDE = 64  # pixels to which the shorter side is about reduced before hashing
_MIN_DEVIATION = 2  # of 255
_BLOCK_SIZE = 32  # images that a thread reads at a time
_PROGRESS_INTERVAL = 10  # seconds
log = logging.getLogger('jaxcnn')

# an image that was read
RECORD = np.dtype([
    ('index', np.int64),  # in the split
    ('height', np.int32), ('width', np.int32), ('channels', np.uint8),
    ('is_grey', np.bool_),  # all channels are equal
    ('num_bytes', np.int64), ('format', 'U12'), ('properties', np.uint16),  # see `files.Header`
    ('digest', np.uint64),  # of the pixels
    ('hash', np.uint64),  # the perceptual hash
    ('is_hashed', np.bool_),
    ('thumbnail', np.uint8, (THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3)),
    ('mean', np.float64, (3,)), ('mean_square', np.float64, (3,)),  # of each channel, of pixels in [0, 1]
])


@dataclasses.dataclass(frozen=True)
class Failure:
    """An image that could not be read: its index in the split, the kind of failure, and the reason."""

    index: int
    kind: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Objects:
    """The boxes of a split.

    Attributes:
      rows: (m,) the row of the image of each object in `SplitSurvey.records`.
      classes: (m,) numbers of classes.
      boxes: (m, 4) `x0, y0, x1, y1` in pixels of the image.
      difficult: (m,) bool.
      problems: the reasons why boxes are wrong, such as boxes without an area.
    """

    rows: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    difficult: np.ndarray
    problems: Sequence[str]


@dataclasses.dataclass(frozen=True)
class SplitSurvey:
    """What was found in the images of a split.

    Attributes:
      name: name of the split.
      size: number of its images.
      num_examined: number of images that were examined, all or a random subset.
      records: (n,) a `RECORD` of each image that could be read, in the order of the split.
      classes: for each record, the classes of the image, sorted; in detection, a class for each object.
      failures: the other images.
      class_counts: (classes,) number of images with each class.
      counts_all: whether `class_counts` is that of all images of the split, and not only of the records.
      objects: the boxes; None if the data set has none.
    """

    name: str
    size: int
    num_examined: int
    records: np.ndarray
    classes: Sequence[tuple[int, ...]]
    failures: Sequence[Failure]
    class_counts: np.ndarray
    counts_all: bool
    objects: Objects | None

    def rows_of_class(self, label: int) -> np.ndarray:
        """Return the rows of the images with a class."""
        return np.array([row for row, classes in enumerate(self.classes) if label in classes], np.int64)


class _Objects(NamedTuple):
    """The boxes of an image; see `Objects`."""

    boxes: np.ndarray
    difficult: np.ndarray
    problems: list[str]


class _Examined(NamedTuple):
    """An image that was read."""

    record: np.ndarray  # of the type `RECORD`, without axes
    classes: tuple[int, ...]  # in the order of the boxes, if there are any
    objects: _Objects | None


@functools.cache
def can_hash() -> bool:
    """Return whether the library of perceptual hashes is installed."""
    return importlib.util.find_spec('imagehash') is not None


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Examines images of a split, of which each is reduced to a record.

    Attributes:
      examples: the examples of the split.
      paths: the paths of the images; empty if they are not in files of their own.
      kind: the kind of targets.
      num_classes: the number of classes.
    """

    examples: Examples
    paths: Sequence[str]
    kind: TargetKind
    num_classes: int

    def _header(self, index: int) -> Header:
        """Return the header of the file of an image; an empty one if there is no file."""
        try:
            if isinstance(self.examples, EncodedExamples):
                content = self.examples.encoded(index)
            elif isinstance(self.examples, BoxFiles):
                content = picture.read_file(os.path.join(self.examples.root, self.paths[index]))
            else:
                return Header()
        except (OSError, UserError):  # reading the image reports it
            return Header()
        return read_header(content, self.paths[index] if self.paths else '')

    def examine(self, index: int) -> _Examined | Failure:
        """Return what an image and its targets hold, or why they cannot be read."""
        try:
            example = self.examples[index]
            image = np.ascontiguousarray(check_images('image', np.asarray(example['image'])[None])[0])
            if not image.size:
                raise UserError('the image has no pixels')
            classes, objects = self._targets(example, image, index)
        except Exception as e:  # each decoder raises other kinds of errors
            reason = str(e) if isinstance(e, UserError) else describe_exception(e)
            return Failure(index, failure_kind(reason), reason)
        record = np.zeros((), RECORD)
        record['index'] = index
        header = self._header(index)
        for name, value in (('format', header.format), ('num_bytes', header.num_bytes), ('properties', header.properties)):
            record[name] = value
        _describe_pixels(image, record)
        return _Examined(record, classes, objects)

    def _targets(self, example: Example, image: np.ndarray, index: int) -> tuple[tuple[int, ...], _Objects | None]:
        """Return the classes and the boxes of an example.

        Raises:
          UserError: a class does not exist.
        """
        objects = None
        if self.kind is BOXES:
            valid = np.asarray(example.get('valid', np.ones(len(example['classes']))), bool)
            boxes = np.asarray(example['boxes'], np.float64).reshape(-1, 4)[valid]
            classes = np.asarray(example['classes'], np.int64)[valid]
            difficult = np.asarray(example.get('difficult', np.zeros(len(valid))), bool)[valid]
            name = as_text(self.paths[index]) if self.paths else f'image {index}'
            problems = [f'{name}: {problem}' for box in boxes if (problem := box_problem(box, *image.shape[:2]))]
            objects = _Objects(boxes, difficult, [*example.get('problems', ()), *problems])
        elif self.kind is LABELS:
            classes = np.flatnonzero(example['labels'])
        else:
            classes = np.asarray(example['label']).reshape(-1)
        for label in classes:
            if not 0 <= label < self.num_classes:
                raise UserError(f'label {label} is not one of the classes, which are numbered 0 to {self.num_classes - 1}')
        return tuple(map(int, classes)), objects

    def examine_block(self, indices: np.ndarray) -> list[_Examined | Failure]:
        """Return what `examine` returns for several images."""
        return [self.examine(int(index)) for index in indices]


def _describe_pixels(image: np.ndarray, record: np.ndarray) -> None:
    """Set the fields of a record that depend on the pixels, uint8 (H, W, C)."""
    height, width, channels = image.shape
    record['height'], record['width'], record['channels'] = height, width, channels
    record['digest'] = int.from_bytes(hashlib.blake2b(image.data, digest_size=8).digest(), 'little')
    record['is_grey'] = channels == 1 or (_is_grey(image[::8, ::8]) and _is_grey(image))
    pil_image = Image.fromarray(image if channels > 1 else image[..., 0])
    counts = np.array(pil_image.histogram(), np.float64).reshape(channels, 256) / (height * width)
    values = np.arange(256) / 255
    record['mean'], record['mean_square'] = counts @ values, counts @ values ** 2  # one channel is repeated
    factor = max(1, min(height, width) // _REDUCED_SIDE)
    reduced = pil_image.reduce(factor) if factor > 1 else pil_image
    thumbnail = reduced.convert('RGB').resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
    record['thumbnail'] = np.asarray(thumbnail)
    has_structure = record['thumbnail'].std() > _MIN_DEVIATION  # the hash of an image of one colour is noise
    if can_hash() and has_structure and min(height, width) >= MIN_HASHED_SIDE:
        import imagehash
        record['hash'] = np.packbits(imagehash.phash(reduced).hash).view(np.uint64)[0]
        record['is_hashed'] = True


def _is_grey(image: np.ndarray) -> bool:
    return bool((image == image[..., :1]).all())


def survey(source: Source, class_names: Sequence[str], max_images: int = 0, seed: int = 0) -> dict[str, SplitSurvey]:
    """Return the survey of each split of a data set.

    Images are read by one thread for each core. Only a `RECORD` of each stays in memory.

    Args:
      source: the data set.
      class_names: names of its classes.
      max_images: number of images of each split that are examined, drawn at random from larger splits; 0: all.
      seed: seed of the draw.
    """
    return {split: _survey_split(split, source.splits[split](), source, len(class_names), max_images, seed)
            for split in ('train', 'val', 'test') if split in source.splits}


def draw_indices(size: int, count: int, seed: int) -> np.ndarray:
    """Return `count` of `size` indices, drawn at random and sorted; all of them if `count` is 0 or not smaller."""
    if not 0 < count < size:
        return np.arange(size)
    return np.sort(np.random.Generator(np.random.PCG64(seed)).permutation(size)[:count])


def _survey_split(name: str, examples: Examples, source: Source, num_classes: int, max_images: int,
                  seed: int) -> SplitSurvey:
    picture.endings()  # initialises Pillow, before several threads do
    reader = _Reader(examples, source.paths.get(name, ()), source.kind, num_classes)
    indices = draw_indices(len(examples), max_images, seed)
    blocks = [indices[start:start + _BLOCK_SIZE] for start in range(0, len(indices), _BLOCK_SIZE)]
    records, classes, objects, failures = [], [], [], []
    num_read, next_progress = 0, time.monotonic() + _PROGRESS_INTERVAL
    threads = futures.ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        for results in threads.map(reader.examine_block, blocks):
            examined = [result for result in results if isinstance(result, _Examined)]
            failures += [result for result in results if isinstance(result, Failure)]
            if examined:
                records.append(np.stack([result.record for result in examined]))
            classes += [result.classes for result in examined]
            objects += [result.objects for result in examined]
            num_read += len(results)
            if time.monotonic() >= next_progress:
                log.info('%s: %d of %d images', name, num_read, len(indices))
                next_progress = time.monotonic() + _PROGRESS_INTERVAL
    finally:
        threads.shutdown(cancel_futures=True)
    counts = _all_class_counts(examples, source.kind, num_classes)
    counts_all = counts is not None or len(indices) == len(examples)
    if counts is None:
        counts = np.bincount([c for image in classes for c in {*image}], minlength=num_classes)
    return SplitSurvey(
        name, len(examples), len(indices), np.concatenate(records) if records else np.zeros(0, RECORD),
        [tuple(sorted(image)) for image in classes], failures, counts, counts_all,
        _concatenate_objects(objects, classes) if source.kind is BOXES else None)


def _all_class_counts(examples: Examples, kind: TargetKind, num_classes: int) -> np.ndarray | None:
    """Return the number of images with each class, if the targets of all images are known without reading them."""
    if kind is BOXES or not isinstance(examples, (EncodedExamples, InMemoryExamples)):
        return None
    targets = examples.targets if isinstance(examples, InMemoryExamples) else examples.read_targets()
    return kind.class_counts(targets, num_classes)[:num_classes]


def _concatenate_objects(objects: Sequence[_Objects | None], classes: Sequence[tuple[int, ...]]) -> Objects:
    images = [image for image in objects if image is not None]
    return Objects(
        rows=np.repeat(np.arange(len(images)), [len(image.boxes) for image in images]),
        classes=np.array([c for image in classes for c in image], np.int64),
        boxes=np.concatenate([np.zeros((0, 4)), *(image.boxes for image in images)]),
        difficult=np.concatenate([np.zeros(0, bool), *(image.difficult for image in images)]),
        problems=[problem for image in images for problem in image.problems])


def image_name(source: Source, split: str, index: int) -> str:
    """Return the path of an image, relative to the folder of the data set, or `test image 3` if it has no file."""
    return as_text(source.paths[split][index]) if split in source.paths else f'{split} image {index}'
