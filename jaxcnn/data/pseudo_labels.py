"""Training images with a label, together with unlabelled ones, whose labels a network predicts."""

from typing import Any

import numpy as np

from jaxcnn.data.split import Split

NO_LABEL = -1  # pseudo-label of an image for which no class is probable enough


class ConcatenatedImages:
    """The images of two arrays, one after the other.

    Args:
      first: uint8 (N, H, W, C), an array or an `ArrayFile`.
      second: uint8 (M, H, W, C), likewise.

    Attributes:
      shape: (N + M, H, W, C).
    """

    def __init__(self, first: Any, second: Any):
        self._first, self._second = first, second
        self.shape: tuple[int, ...] = (len(first) + len(second), *first.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        images = np.empty((*np.shape(index), *self.shape[1:]), np.uint8)
        is_first = index < len(self._first)
        images[is_first] = self._first[index[is_first]]
        images[~is_first] = self._second[index[~is_first] - len(self._first)]
        return images


def join(labelled: Split, unlabelled: Split, labels: np.ndarray) -> Split:
    """Return the split of labelled images, followed by unlabelled ones with the labels `labels` (M,)."""
    index = np.concatenate([labelled.index, unlabelled.index + len(labelled.images)])
    targets = np.concatenate([labelled.targets['label'], labels.astype(labelled.targets['label'].dtype)])
    return Split(ConcatenatedImages(labelled.images, unlabelled.images), index, {'label': targets})
