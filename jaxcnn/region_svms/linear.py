"""Linear SVMs with hard-negative mining, and ridge regression of boxes (Girshick et al. 2014, R-CNN, and its code).

All functions run on the host. Features of regions are (R, F) float32.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.svm import LinearSVC

FEATURE_NORM = 20.0  # mean Euclidean norm to which features are scaled; the constants of the SVMs and of the ridge suit it


class Linear(NamedTuple):
    """Linear functions of features.

    Attributes:
      weights: (..., F).
      biases: (...).
    """

    weights: np.ndarray
    biases: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Return the values (R, ...) of features (R, F)."""
        values = features @ self.weights.reshape(-1, self.weights.shape[-1]).T + self.biases.ravel()
        return values.reshape(len(features), *self.biases.shape)


class SVMTrainer:
    """Trains a linear SVM for each class, while the regions of one image after the other are added.

    All negative regions of the first image are used. Those of the others are used if they are hard: if they are inside the
    margin of the present SVM or on its wrong side. When enough of them have been added, the SVM is trained again, and then
    forgets the easy ones. One pass over the images is enough, according to the paper.

    Args:
      positives: for each class the features (n, F) of the true boxes.
      regularization: C of the SVMs.
      positive_weight: factor of the loss of positive regions.
      bias_scale: value of the feature that stands for the bias; the larger, the weaker is the bias regularised.
      hard_score: negative regions with a larger score are hard.
      easy_score: negative regions with a smaller score are forgotten.
      retrain_after: number of new negative regions after which an SVM is trained again.
      scale: factor of all features; see `FEATURE_NORM`.
    """

    def __init__(self, positives: Sequence[np.ndarray], regularization: float = 1e-3, positive_weight: float = 2.0,
                 bias_scale: float = 10.0, hard_score: float = -1.0001, easy_score: float = -1.2, retrain_after: int = 2000,
                 scale: float = 1.0):
        self.scale, self.hard_score, self.easy_score, self.retrain_after = scale, hard_score, easy_score, retrain_after
        self.positives = [np.asarray(features, np.float32) * np.float32(scale) for features in positives]
        num_classes, num_features = len(self.positives), self.positives[0].shape[1]
        self.negatives = [np.zeros((0, num_features), np.float32) for _ in range(num_classes)]
        self.added = [0] * num_classes
        # A class without a negative region keeps a score of -1, and one without a positive region is never detected.
        self.weights = np.zeros((num_classes, num_features), np.float32)
        self.biases = np.array([-1.0 if len(features) else -np.inf for features in self.positives], np.float32)
        self._is_first = True
        self._svm = {'C': regularization, 'class_weight': {1: positive_weight}, 'intercept_scaling': bias_scale,
                     'loss': 'hinge', 'dual': True, 'tol': 1e-3, 'max_iter': 10_000, 'random_state': 0}

    def add(self, features: np.ndarray, is_negative: np.ndarray) -> None:
        """Add the regions of an image.

        Args:
          features: (R, F).
          is_negative: (R, classes), which regions are negative examples of each class.
        """
        features = np.asarray(features, np.float32) * np.float32(self.scale)
        scores = features @ self.weights.T + self.biases
        is_new = is_negative if self._is_first else is_negative & (scores > self.hard_score)
        for c, negatives in enumerate(self.negatives):
            self.negatives[c] = np.concatenate([negatives, features[is_new[:, c]]])
            self.added[c] += int(is_new[:, c].sum())
            if self._is_first or self.added[c] > self.retrain_after:
                self._train(c)
        self._is_first = False

    def finish(self) -> Linear:
        """Train the SVMs for the last time, and return their scores of the features before scaling."""
        for c, count in enumerate(self.added):
            if count:
                self._train(c)
        return Linear(self.weights * np.float32(self.scale), self.biases.copy())

    def _train(self, c: int) -> None:
        positives, negatives = self.positives[c], self.negatives[c]
        self.added[c] = 0
        if not len(positives) or not len(negatives):
            return
        svm = LinearSVC(**self._svm).fit(np.concatenate([positives, negatives]),
                                         np.repeat([1, 0], [len(positives), len(negatives)]))
        self.weights[c], self.biases[c] = svm.coef_[0], svm.intercept_[0]
        self.negatives[c] = negatives[negatives @ self.weights[c] + self.biases[c] >= self.easy_score]


def fit_box_regression(features: Sequence[np.ndarray], targets: Sequence[np.ndarray], strength: float = 1000.0,
                       scale: float = 1.0) -> Linear:
    """Return the ridge regression of the boxes of each class.

    Args:
      features: for each class the features (n, F) of its regions.
      targets: for each class the targets (n, 4) of `ops.boxes.encode`.
      strength: factor of the squared norm of the weights.
      scale: factor of all features; see `FEATURE_NORM`.

    Returns:
      A function of the features before scaling, with the values (R, classes, 4); 0 for classes without regions.
    """
    weights = np.zeros((len(features), 4, features[0].shape[1]), np.float32)
    biases = np.zeros((len(features), 4), np.float32)
    for c, (x, y) in enumerate(zip(features, targets, strict=True)):
        if len(x):
            ridge = Ridge(strength, solver='cholesky').fit(np.asarray(x, np.float32) * np.float32(scale), y)
            weights[c], biases[c] = ridge.coef_ * scale, ridge.intercept_
    return Linear(weights, biases)
