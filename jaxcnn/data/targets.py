"""Kinds of targets: what an example holds beside its image, and what the data layer has to know of it."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from jaxcnn.errors import UserError

Arrays = Mapping[str, np.ndarray]  # by the target's name, (N, ...) each


@dataclasses.dataclass(frozen=True)
class Target:
    """One target as the cache stores it.

    Attributes:
      shape: of one example's value.
      dtype: of the stored array.
      largest: the largest value that is allowed; the smallest is 0.
    """

    shape: tuple[int, ...]
    dtype: type[np.generic]
    largest: int

    def check(self, name: str, value: object, num_classes: int) -> np.ndarray:
        """Return one example's value as an array.

        Raises:
          UserError: It has another shape or is out of range.
        """
        array = np.asarray(value)
        if array.shape != self.shape:
            raise UserError(f'{name} has shape {array.shape}, expected {self.shape}')
        if array.size and not (array.min() >= 0 and array.max() <= self.largest):
            wrong = array if array.ndim == 0 else array[(array < 0) | (array > self.largest)][0]
            reason = f'is not one of the {num_classes} classes' if array.ndim == 0 else f'is not from 0 to {self.largest}'
            raise UserError(f'{name} {wrong} {reason}')
        return array.astype(self.dtype)


class TargetKind(abc.ABC):
    """What the examples of a task hold beside their images."""

    name: ClassVar[str]
    description: ClassVar[str]  # as in 'a data set with ...'

    @abc.abstractmethod
    def targets(self, num_classes: int) -> dict[str, Target]:
        """Return the targets of an example by name."""

    @abc.abstractmethod
    def strata(self, targets: Arrays) -> np.ndarray:
        """Return the stratum of each example, (N,) integers: a validation part has the same share of each."""

    @abc.abstractmethod
    def class_counts(self, targets: Arrays, num_classes: int) -> np.ndarray:
        """Return how many examples show each class: (num_classes,) integers."""


class ClassLabel(TargetKind):
    """One class for each image: `label`, a whole number."""

    name = 'label'
    description = 'one class for each image'

    def targets(self, num_classes: int) -> dict[str, Target]:
        """See `TargetKind`."""
        return {'label': Target((), np.int32, num_classes - 1)}

    def strata(self, targets: Arrays) -> np.ndarray:
        """Return the labels."""
        return targets['label']

    def class_counts(self, targets: Arrays, num_classes: int) -> np.ndarray:
        """See `TargetKind`."""
        return np.bincount(targets['label'], minlength=num_classes)


class ClassLabels(TargetKind):
    """Any number of classes for each image: `labels`, which is 1 for each class that it shows and 0 for the others."""

    name = 'labels'
    description = 'several classes for each image'

    def targets(self, num_classes: int) -> dict[str, Target]:
        """See `TargetKind`."""
        return {'labels': Target((num_classes,), np.uint8, 1)}

    def strata(self, targets: Arrays) -> np.ndarray:
        """Return the number of each example's set of classes; sets that occur once share a stratum.

        The sets are numbered in a random order: a cut breaks ties between strata by their numbers, and must not prefer the
        sets without the first classes.
        """
        _, number, counts = np.unique(targets['labels'], axis=0, return_inverse=True, return_counts=True)
        number = number.reshape(-1)
        order = np.random.Generator(np.random.PCG64(0)).permutation(len(counts))
        return np.where(counts[number] > 1, order[number], -1)

    def class_counts(self, targets: Arrays, num_classes: int) -> np.ndarray:
        """See `TargetKind`."""
        return targets['labels'].sum(0, dtype=np.int64)


LABEL, LABELS = ClassLabel(), ClassLabels()
