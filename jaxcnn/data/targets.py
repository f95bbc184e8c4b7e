"""Kinds of targets: what an example holds besides its image, and what the data pipeline has to know about it."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from jaxcnn.errors import UserError

Arrays = Mapping[str, np.ndarray]  # of N examples, one array (N, ...) for each target, by name


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
    maximum: int

    def check(self, name: str, value: object, num_classes: int) -> np.ndarray:
        """Return one example's value as an array.

        Args:
          name: the name of the target, for errors.
          value: the value, a number or an array.
          num_classes: the number of classes of the data set, for errors.

        Raises:
          UserError: the value has another shape or is out of range.
        """
        array = np.asarray(value)
        if array.shape != self.shape:
            raise UserError(f'{name} has shape {array.shape}, expected {self.shape}')
        wrong = array[~((array >= 0) & (array <= self.maximum))]  # NaN included
        if wrong.size:
            expected = f'one of the {num_classes} classes' if array.ndim == 0 else f'from 0 to {self.maximum}'
            raise UserError(f'{name} {wrong[0]} is not {expected}')
        return array.astype(self.dtype)


class TargetKind(abc.ABC):
    """What the examples of a task hold besides their images.

    Attributes:
      name: the name of the kind, for registries, cache keys and `data.json`.
      description: completes "a data set with ..." in errors.
    """

    name: ClassVar[str]
    description: ClassVar[str]

    @abc.abstractmethod
    def targets(self, num_classes: int) -> dict[str, TargetSpec]:
        """Return the targets of an example, by name."""

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

    def targets(self, num_classes: int) -> dict[str, TargetSpec]:
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

    def targets(self, num_classes: int) -> dict[str, TargetSpec]:
        """See `TargetKind`."""
        return {'labels': TargetSpec((num_classes,), np.uint8, 1)}

    def strata(self, targets: Arrays) -> np.ndarray:
        """Return the number of each example's set of classes, and -1 for sets that occur once.

        The sets are numbered in random order, because `stratified_split` breaks ties between strata by their numbers and
        must not prefer sets without the first classes.
        """
        _, set_indices, counts = np.unique(targets['labels'], axis=0, return_inverse=True, return_counts=True)
        set_indices = set_indices.reshape(-1)  # of shape (N, 1) in some versions of NumPy
        set_numbers = np.random.Generator(np.random.PCG64(0)).permutation(len(counts))
        return np.where(counts[set_indices] > 1, set_numbers[set_indices], -1)

    def class_counts(self, targets: Arrays, num_classes: int) -> np.ndarray:
        """See `TargetKind`."""
        return targets['labels'].sum(0, dtype=np.int64)


LABEL, LABELS = ClassLabel(), ClassLabels()
KINDS: dict[str, TargetKind] = {kind.name: kind for kind in (LABEL, LABELS)}
