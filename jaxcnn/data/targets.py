"""Kinds of targets: what an example holds besides its image, and what the data pipeline has to know about it."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxcnn.config import DataConfig
from jaxcnn.data import proposals
from jaxcnn.data.resizing import Resizing, resize
from jaxcnn.errors import UserError

Arrays = Mapping[str, np.ndarray]  # of N examples, one array (N, ...) for each target, by name
EDGE_TOLERANCE = 1  # pixels by which a box may reach beyond the image, because annotation tools count and round differently
_DEFAULTS = DataConfig()
MIN_VISIBLE = 0.25  # fraction of its area below which a box that is cropped with its image becomes difficult


@dataclasses.dataclass(frozen=True)
class TargetSpec:
    """How the cache stores one target.

    Attributes:
      shape: the shape of one example's value.
      dtype: the type of the stored array.
      maximum: the largest allowed value; the smallest is 0.
    """

    shape: tuple[int, ...]
    dtype: type[np.generic]
    maximum: float

    def check(self, name: str, value: object, num_classes: int) -> np.ndarray:
        """Return one example's value as an array.

        Args:
          name: the name of the target, for errors.
          value: the value, a number or an array.
          num_classes: the number of classes of the data set, for errors.

        Raises:
          UserError: the value has another shape or is out of range.
        """
        return self.check_all(name, np.asarray(value)[None], num_classes)[0]

    def check_all(self, name: str, values: np.ndarray, num_classes: int) -> np.ndarray:
        """Return the values of N examples as an array (N, ...); see `check`."""
        if values.shape[1:] != self.shape:
            raise UserError(f'{name} has shape {values.shape[1:]}, expected {self.shape}')
        wrong = values[~((values >= 0) & (values <= self.maximum))]  # NaN included
        if wrong.size:
            expected = f'from 0 to {self.maximum}' if self.shape else f'one of the {num_classes} classes'
            raise UserError(f'{name} {wrong[0]} is not {expected}')
        return values.astype(self.dtype)


class EncodedTargets(NamedTuple):
    """The targets of an example as the cache stores them.

    Attributes:
      arrays: the values by name.
      problems: why boxes were left out or clipped, which `config.data.skip_broken` allows; one text for each box.
    """

    arrays: dict[str, np.ndarray]
    problems: list[str]


class TargetKind(abc.ABC):
    """What the examples of a task hold besides their images.

    Attributes:
      name: the name of the kind, for registries, cache keys and `data.json`.
      description: completes "a data set with ..." in errors.
    """

    name: ClassVar[str]
    description: ClassVar[str]

    @abc.abstractmethod
    def targets(self, num_classes: int, config: DataConfig = _DEFAULTS) -> dict[str, TargetSpec]:
        """Return the targets of an example, by name. Only those of `ObjectBoxes` depend on the config."""

    def check(self, config: DataConfig) -> None:
        """Raise a UserError for fields of a config that do not fit this kind of targets."""
        if config.proposals:
            raise UserError(f'{config.proposals!r} needs boxes around objects, but config.task has {self.description}',
                            field=proposals.FIELD, hint="leave it '', or choose a task of object detection")

    def encode(self, example: Mapping[str, Any], num_classes: int, config: DataConfig) -> EncodedTargets:
        """Return the targets of an example as the cache stores them.

        Args:
          example: the image before resizing, uint8 (H, W, C), and the targets that the source gives.
          num_classes: the number of classes of the data set.
          config: says how the image is resized.

        Raises:
          UserError: a value is wrong.
        """
        specs = self.targets(num_classes, config)
        return EncodedTargets({name: spec.check(name, example[name], num_classes) for name, spec in specs.items()}, [])

    def cache_settings(self, config: DataConfig) -> list[Any]:
        """Return the fields of the config, other than those for images, on which the stored targets depend."""
        return []

    def package_versions(self, config: DataConfig) -> dict[str, str]:
        """Return the versions of the packages that compute targets, by name; they are recorded in the cache.

        Raises:
          UserError: a package is not installed.
        """
        return {}

    @abc.abstractmethod
    def strata(self, targets: Arrays) -> np.ndarray:
        """Return the stratum of each example: (N,) integers. A validation split holds the same fraction of each stratum."""

    @abc.abstractmethod
    def class_counts(self, targets: Arrays, num_classes: int) -> np.ndarray:
        """Return the number of examples of each class: (num_classes,) integers."""


class ClassLabel(TargetKind):
    """One class for each image: the target `label` is its number."""

    name = 'label'
    description = 'one class for each image'

    def targets(self, num_classes: int, config: DataConfig = _DEFAULTS) -> dict[str, TargetSpec]:
        """See `TargetKind`."""
        return {'label': TargetSpec((), np.int32, num_classes - 1)}

    def strata(self, targets: Arrays) -> np.ndarray:
        """Return the labels."""
        return targets['label']

    def class_counts(self, targets: Arrays, num_classes: int) -> np.ndarray:
        """See `TargetKind`."""
        return np.bincount(targets['label'], minlength=num_classes)


class ClassLabels(TargetKind):
    """Any number of classes for each image: the target `labels` is 1 for each class of the image and 0 for the others."""

    name = 'labels'
    description = 'several classes for each image'

    def targets(self, num_classes: int, config: DataConfig = _DEFAULTS) -> dict[str, TargetSpec]:
        """See `TargetKind`."""
        return {'labels': TargetSpec((num_classes,), np.uint8, 1)}

    def strata(self, targets: Arrays) -> np.ndarray:
        """Return the number of each example's set of classes, and -1 for sets that occur once."""
        return _strata_of_sets(targets['labels'])

    def class_counts(self, targets: Arrays, num_classes: int) -> np.ndarray:
        """See `TargetKind`."""
        return targets['labels'].sum(0, dtype=np.int64)


def _strata_of_sets(labels: np.ndarray) -> np.ndarray:
    """Return the number of each row's set of classes, and -1 for sets that occur once: labels (N, classes) -> (N,).

    The sets are numbered in random order, because `stratified_split` breaks ties between strata by their numbers and
    must not prefer sets without the first classes.
    """
    _, set_indices, counts = np.unique(labels, axis=0, return_inverse=True, return_counts=True)
    set_indices = set_indices.reshape(-1)  # of shape (N, 1) in some versions of NumPy
    set_numbers = np.random.Generator(np.random.PCG64(0)).permutation(len(counts))
    return np.where(counts[set_indices] > 1, set_numbers[set_indices], -1)


class ObjectBoxes(TargetKind):
    """Any number of objects in each image, each with a box and a class.

    The number of boxes of an example is fixed by padding with zeros to `config.data.max_boxes`, M:

    - `boxes`: (M, 4), `x0, y0, x1, y1` in pixels of the resized image, where the left upper pixel is the box `0, 0, 1, 1`;
    - `classes`: (M,), the number of each box's class;
    - `valid`: (M,), false for padding;
    - `difficult`: (M,), true for boxes that evaluation does not count: objects that are hard to see, groups of objects,
      and boxes of which less than `MIN_VISIBLE` is left in a cropped image;
    - `original_size`: (2,), height and width of the image before it was resized;
    - `proposals` and `proposal_valid`, if `config.data.proposals` is set; see `jaxcnn.data.proposals`.

    A source gives `boxes` (n, 4) in pixels of the image before resizing, `classes` (n,) and, optionally, `difficult` (n,)
    and `valid` (n,), and `problems`, the reasons why it has left out boxes itself.
    """

    name = 'boxes'
    description = 'boxes around the objects of each image'

    def targets(self, num_classes: int, config: DataConfig = _DEFAULTS) -> dict[str, TargetSpec]:
        """See `TargetKind`."""
        boxes = config.max_boxes
        specs = {'boxes': TargetSpec((boxes, 4), np.float32, np.inf),
                 'classes': TargetSpec((boxes,), np.int32, num_classes - 1),
                 'valid': TargetSpec((boxes,), np.bool_, 1), 'difficult': TargetSpec((boxes,), np.bool_, 1),
                 'original_size': TargetSpec((2,), np.int32, np.iinfo(np.int32).max)}
        if config.proposals:
            count = proposals.find(config.proposals).max_proposals
            specs |= {'proposals': TargetSpec((count, 4), np.float32, np.inf),
                      'proposal_valid': TargetSpec((count,), np.bool_, 1)}
        return specs

    def check(self, config: DataConfig) -> None:
        """See `TargetKind`."""
        if config.proposals:
            proposals.find(config.proposals)

    def cache_settings(self, config: DataConfig) -> list[Any]:
        """See `TargetKind`."""
        if not config.proposals:
            return [config.max_boxes]
        method = proposals.find(config.proposals)
        checksum = [method.checksum] if method.checksum else []
        return [config.max_boxes, proposals.canonical(config.proposals), proposals.VERSION, *checksum]

    def package_versions(self, config: DataConfig) -> dict[str, str]:
        """See `TargetKind`."""
        return dict(proposals.find(config.proposals).versions()) if config.proposals else {}

    def encode(self, example: Mapping[str, Any], num_classes: int, config: DataConfig) -> EncodedTargets:
        """See `TargetKind`.

        Boxes are clipped to the image, of which they may exceed the edges by `EDGE_TOLERANCE`. With `config.skip_broken`,
        boxes that exceed them further are clipped, too, and boxes without an area or wholly outside the image are left
        out; both are counted. Otherwise these are errors.

        Raises:
          UserError: a box is wrong, or there are more than `config.max_boxes` boxes.
        """
        height, width = example['image'].shape[:2]
        boxes = np.array(example['boxes'], np.float64).reshape(-1, 4)
        classes = np.asarray(example['classes'], np.int64).reshape(-1)
        difficult = np.asarray(example.get('difficult', np.zeros(len(boxes))), bool).reshape(-1)
        if not len(boxes) == len(classes) == len(difficult):
            raise UserError(f'there are {len(boxes)} boxes, but {len(classes)} classes and {len(difficult)} values of '
                            'difficult')
        if 'valid' in example:
            valid = np.asarray(example['valid'], bool)
            boxes, classes, difficult = boxes[valid], classes[valid], difficult[valid]
        problems = [problem for box in boxes if (problem := box_problem(box, height, width))]
        if problems and not config.skip_broken:
            raise UserError(problems[0], hint='config.data.skip_broken=True leaves out such boxes, or clips them at the '
                            'edges of the image')
        boxes[~np.isfinite(boxes).all(1)] = 0
        boxes = np.clip(boxes, 0, [width, height, width, height])
        areas = _areas(boxes)
        if shape := config.fixed_size:
            resizing = Resizing.between((height, width), shape, config.resize)
            complete = resizing.map_boxes(boxes)
            boxes = np.clip(complete, 0, [shape[1], shape[0], shape[1], shape[0]])
            areas = _areas(complete)
        remaining = _areas(boxes) > 0
        difficult = difficult | (_areas(boxes) < MIN_VISIBLE * areas)
        boxes, classes, difficult = boxes[remaining], classes[remaining], difficult[remaining]
        check_number_of_boxes(len(boxes), config.max_boxes)

        specs = self.targets(num_classes, config)
        values = {'boxes': boxes, 'classes': classes, 'valid': np.ones(len(boxes), bool), 'difficult': difficult}
        arrays = {'original_size': np.array([height, width], np.int32)}
        for name, value in values.items():
            padding = [(0, config.max_boxes - len(value)), *[(0, 0)] * (value.ndim - 1)]
            arrays[name] = specs[name].check(name, np.pad(value, padding), num_classes)
        if config.proposals:
            image, shape = example['image'], config.fixed_size
            arrays |= proposals.find(config.proposals).encode(resize(image, shape, config.resize) if shape else image)
        return EncodedTargets({name: arrays[name] for name in specs}, [*example.get('problems', ()), *problems])

    def strata(self, targets: Arrays) -> np.ndarray:
        """Return the number of each example's set of classes, and -1 for sets that occur once."""
        return _strata_of_sets(_presence(targets, int(targets['classes'].max(initial=0)) + 1))

    def class_counts(self, targets: Arrays, num_classes: int) -> np.ndarray:
        """See `TargetKind`. An image counts once for each class that it shows, however many boxes there are."""
        return _presence(targets, num_classes).sum(0, dtype=np.int64)


def _presence(targets: Arrays, num_classes: int) -> np.ndarray:
    """Return whether each example has a box of each class: uint8 (N, num_classes)."""
    presence = np.zeros((len(targets['classes']), num_classes), np.uint8)
    examples, positions = np.nonzero(targets['valid'])
    presence[examples, targets['classes'][examples, positions]] = 1
    return presence


def _areas(boxes: np.ndarray) -> np.ndarray:
    """Return the areas (n,) of boxes (n, 4)."""
    return np.maximum(boxes[:, 2] - boxes[:, 0], 0) * np.maximum(boxes[:, 3] - boxes[:, 1], 0)


def box_problem(box: np.ndarray, height: int, width: int) -> str | None:
    """Return what is wrong with a box (4,) of an image of the given size in pixels; None if nothing is."""
    x0, y0, x1, y1 = box
    name = f'the box x0={x0:g}, y0={y0:g}, x1={x1:g}, y1={y1:g}'
    if not np.isfinite(box).all():
        return f'{name} is not finite'
    if x1 <= x0 or y1 <= y0:
        return f'{name} has no area'
    size = f'the image, which is {width} x {height} pixels (width x height)'
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        return f'{name} is outside {size}'
    if min(x0, y0, width - x1, height - y1) < -EDGE_TOLERANCE:
        return f'{name} reaches beyond {size}'
    return None


def check_number_of_boxes(number: int, max_boxes: int) -> None:
    """Raise a UserError if the number of boxes in an image exceeds `config.data.max_boxes`."""
    if number > max_boxes:
        raise UserError(f'has {number} boxes, but config.data.max_boxes={max_boxes}',
                        hint=f'set config.data.max_boxes={number} or more')


LABEL, LABELS, BOXES = ClassLabel(), ClassLabels(), ObjectBoxes()
KINDS: dict[str, TargetKind] = {kind.name: kind for kind in (LABEL, LABELS, BOXES)}
