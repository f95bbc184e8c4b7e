"""Training images with a label, together with unlabelled ones, whose labels a network predicts."""

import dataclasses
from typing import Any

import numpy as np

from jaxcnn.data.split import Split

NO_LABEL = -1  # pseudo-label of an image for which no class is probable enough


class ConcatenatedImages:
    """The images of two arrays, one after the other.

    Args:
      first: uint8 (N, H, W, C), an array, an `ArrayFile` or `StreamedImages`.
      second: uint8 (M, H, W, C), likewise.

    Attributes:
      shape: (N + M, H, W, C).
      is_streamed: whether images are decoded whenever they are used.
    """

    def __init__(self, first: Any, second: Any):
        self._first, self._second = first, second
        self.shape: tuple[int, ...] = (len(first) + len(second), *first.shape[1:])
        self.is_streamed: bool = getattr(first, 'is_streamed', False)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        index = np.asarray(index)
        is_first = index < len(self._first)
        return _merge(is_first, self._first[index[is_first]], self._second[index[~is_first] - len(self._first)])

    def draw(self, indices: np.ndarray, seed: int, numbers: np.ndarray) -> np.ndarray:
        """See `StreamedImages.draw`."""
        is_first = indices < len(self._first)
        drawn = [images.draw(indices[rows] - offset, seed, numbers[rows]) if rows.any() else None
                 for images, rows, offset in ((self._first, is_first, 0), (self._second, ~is_first, len(self._first)))]
        return _merge(is_first, *drawn)


def _merge(is_first: np.ndarray, first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray:
    """Return the images of two arrays as one (*S, H, W, C): those of the first, in order, where `is_first` (*S) is true.

    One that has no images may be None.
    """
    parts = [images for images in (first, second) if images is not None]
    images = np.empty((*is_first.shape, *parts[0].shape[1:]), np.uint8)
    for rows, values in ((is_first, first), (~is_first, second)):
        if values is not None:
            images[rows] = values
    return images


def join(labelled: Split, unlabelled: Split, labels: np.ndarray) -> Split:
    """Return the split of labelled images, followed by unlabelled ones with the labels `labels` (M,)."""
    index = np.concatenate([labelled.index, unlabelled.index + len(labelled.images)])
    return Split(ConcatenatedImages(labelled.images, unlabelled.images), index, {'label': join_labels(labelled, labels)})


def join_labels(labelled: Split, labels: np.ndarray) -> np.ndarray:
    """Return the labels of labelled images, followed by those of unlabelled ones (M,)."""
    return np.concatenate([labelled.targets['label'], labels.astype(labelled.targets['label'].dtype)])


@dataclasses.dataclass(frozen=True)
class PseudoLabels:
    """The labels of unlabelled images at some step. The order of an epoch does not change while it runs.

    Attributes:
      newest: (M,) the labels that were predicted last. Epochs that begin later draw from the images that have one.
      previous: (M,) the labels of the images from which the epoch was drawn that ran at the last prediction.
      first_epoch: the first epoch that draws by the newest labels.
    """

    newest: np.ndarray
    previous: np.ndarray
    first_epoch: int = 0

    @classmethod
    def none(cls, count: int) -> 'PseudoLabels':
        """Return the state before the first prediction for `count` images."""
        return cls(np.full(count, NO_LABEL), np.full(count, NO_LABEL))

    @property
    def used(self) -> np.ndarray:
        """The labels (M,) that training uses: the newest. An image that loses its label keeps it to the end of the epoch."""
        return np.where(self.newest == NO_LABEL, self.previous, self.newest)

    def replaced(self, labels: np.ndarray, num_examples: int, num_train: int) -> 'PseudoLabels':
        """Return the labels after a new prediction.

        Args:
          labels: (M,) the predicted labels.
          num_examples: number of images that the run has drawn before.
          num_train: number of images in an epoch.
        """
        epoch, first_epoch = num_examples // num_train, -(-num_examples // num_train)
        return PseudoLabels(labels, self.newest if self.first_epoch <= epoch else self.previous, first_epoch)
