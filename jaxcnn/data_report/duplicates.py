"""Images that occur more than once in a data set, within a split or in two splits, and whether their labels agree."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxcnn.data_report.near_duplicates import Pairs, near_pairs
from jaxcnn.data_report.survey import SplitSurvey

EXACT, NEAR = 'exact', 'near'


class Image(NamedTuple):
    """An image of a data set: its split, and its row in the records of the split."""

    split: str
    row: int


class Count(NamedTuple):
    """The duplicates of a kind within a split or between two splits.

    Attributes:
      kind: `EXACT` or `NEAR`.
      first, second: the splits, which may be the same.
      num_pairs: number of pairs. An image that occurs n times makes n - 1 exact pairs.
      num_images: number of images of the second split that are in a pair.
      num_conflicts: number of pairs whose labels differ.
    """

    kind: str
    first: str
    second: str
    num_pairs: int
    num_images: int
    num_conflicts: int


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """The duplicates of a data set.

    Attributes:
      splits: names of the splits.
      starts: the position of the first record of each split among all records, and the number of all records.
      pairs: by `EXACT` and `NEAR`, the pairs of positions.
      conflicts: by kind, whether the labels of each pair differ, (n,) bool.
    """

    splits: tuple[str, ...]
    starts: np.ndarray
    pairs: Mapping[str, Pairs]
    conflicts: Mapping[str, np.ndarray]

    def image(self, position: int) -> Image:
        """Return the image at a position among all records."""
        split = int(np.searchsorted(self.starts, position, side='right')) - 1
        return Image(self.splits[split], int(position - self.starts[split]))

    def _split_numbers(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the number of the split of each image of the pairs."""
        first, second = (np.searchsorted(self.starts, positions, side='right') - 1 for positions in self.pairs[kind][:2])
        return first, second

    def counts(self) -> list[Count]:
        """Return the number of duplicates for each kind and pair of splits that has any."""
        counts = []
        for kind, (a, b) in itertools.product((EXACT, NEAR), itertools.combinations_with_replacement(
                range(len(self.splits)), 2)):
            first, second = self._split_numbers(kind)
            is_selected = (first == a) & (second == b)
            if is_selected.any():
                images = self.pairs[kind].second[is_selected]
                if a == b:
                    images = np.concatenate([images, self.pairs[kind].first[is_selected]])
                counts.append(Count(kind, self.splits[a], self.splits[b], int(is_selected.sum()), len(np.unique(images)),
                                    int(self.conflicts[kind][is_selected].sum())))
        return counts

    def order(self, kind: str) -> np.ndarray:
        """Return the indices of the pairs, the most important ones first: conflicts, other splits, small distances."""
        first, second = self._split_numbers(kind)
        return np.lexsort((self.pairs[kind].distance, first == second, ~self.conflicts[kind]))


def find(surveys: Mapping[str, SplitSurvey]) -> Duplicates:
    """Return the duplicates among the images of a survey."""
    records = np.concatenate([split.records for split in surveys.values()])
    classes = [image for split in surveys.values() for image in split.classes]
    starts = np.cumsum([0, *(len(split.records) for split in surveys.values())])
    groups, splits = _equal_groups(records), np.repeat(np.arange(len(surveys)), np.diff(starts))
    pairs = {EXACT: _exact_pairs(groups), NEAR: _near_pairs(records, groups, splits)}
    conflicts = {kind: np.array([classes[a] != classes[b] for a, b in zip(p.first, p.second, strict=True)], bool)
                 for kind, p in pairs.items()}
    return Duplicates((*surveys,), starts, pairs, conflicts)


def _equal_groups(records: np.ndarray) -> np.ndarray:
    """Return, for each record, the number of its group of images with equal pixels."""
    keys = np.stack([records['digest'], *(records[name].astype(np.uint64) for name in ('height', 'width', 'channels'))], 1)
    return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)


def _exact_pairs(groups: np.ndarray) -> Pairs:
    """Return the pairs of the first image of each group with the others."""
    _, first = np.unique(groups, return_index=True)
    partners = first[groups]
    repeated = np.flatnonzero(partners != np.arange(len(groups)))
    return Pairs(partners[repeated], repeated, np.zeros(len(repeated), np.int64))


def _near_pairs(records: np.ndarray, groups: np.ndarray, splits: np.ndarray) -> Pairs:
    """Return the pairs of images that look alike, but whose pixels are not equal.

    Of exact copies within a split, only the first is compared.
    """
    _, first_copies = np.unique(np.stack([groups, splits]), axis=1, return_index=True)
    hashed = np.sort(first_copies[records['is_hashed'][first_copies]])
    pairs = near_pairs(records['hash'][hashed], records['thumbnail'][hashed])
    first, second = hashed[pairs.first], hashed[pairs.second]
    differs = groups[first] != groups[second]
    return Pairs(first[differs], second[differs], pairs.distance[differs])
