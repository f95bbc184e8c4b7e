"""Predictions of a classifier for the images of one split, which protocols, ensembles and calibration produce and take."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions of a classifier for the images of one split.

    Attributes:
      names: (N,) the path of each image, relative to the folder of the data set, or `test image 3` if it has no file.
      labels: (N,) int32, the true classes.
      log_probabilities: (N, classes) float32, the logarithms of the predicted probabilities. They also serve as logits,
        because adding a constant to the logits of an image does not change its probabilities.
      class_names: the names of the classes.
    """

    names: Sequence[str]
    labels: np.ndarray
    log_probabilities: np.ndarray
    class_names: Sequence[str]

    @property
    def probabilities(self) -> np.ndarray:
        """The predicted probabilities, (N, classes) float32."""
        return np.exp(self.log_probabilities)

    @property
    def correct(self) -> np.ndarray:
        """Whether the most probable class is the true one, (N,) bool."""
        return self.log_probabilities.argmax(-1) == self.labels
