"""Wrong predictions, doubtful images and probable label errors: arrays in, indices of images and scores out.

All functions take the probabilities of images that the network was not trained on, so those of the validation or the test
split. Images whose probabilities are not finite are left out.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxcnn.analysis import figures


class Ranking(NamedTuple):
    """Images in an order, first the ones with the largest score.

    Attributes:
      indices: (n,) the images.
      scores: (n,) their scores.
    """

    indices: np.ndarray
    scores: np.ndarray


def rank(scores: np.ndarray, candidates: np.ndarray, count: int | None) -> Ranking:
    """Return the candidates, (N,) bool, with the largest finite scores (N,)."""
    indices = np.flatnonzero(candidates & np.isfinite(scores))
    indices = indices[np.argsort(-scores[indices], kind='stable')][:count]
    return Ranking(indices, scores[indices])


def confident_mistakes(predictions: np.ndarray, confidences: np.ndarray, labels: np.ndarray,
                       count: int | None = None) -> Ranking:
    """Return the wrong predictions that the network was most confident of; the score is the confidence.

    Args:
      predictions: (N,) predicted classes.
      confidences: (N,) their probabilities.
      labels: (N,) correct classes.
      count: maximum number of images; None: all mistakes.
    """
    return rank(confidences, predictions != labels, count)


def confident_label_mistakes(probabilities: np.ndarray, labels: np.ndarray, count: int | None = None,
                             threshold: float = 0.5) -> tuple[Ranking, np.ndarray]:
    """Return the images with the most confident wrong decision, if an image has any number of classes.

    The score of an image is the probability that the network gave to its most confident wrong decision: that it shows a
    class, or that it does not.

    Args:
      probabilities: (N, classes) probability of each class.
      labels: (N, classes) of 0 and 1.
      count: maximum number of images; None: all with a mistake.
      threshold: the probability from which a class is predicted.

    Returns:
      The images, and the class of the decision for each of them, (n,).
    """
    is_predicted = probabilities >= threshold
    confidences = np.where(is_predicted != (labels > 0), np.where(is_predicted, probabilities, 1 - probabilities), -1.0)
    classes = confidences.argmax(1)
    largest = confidences[np.arange(len(classes)), classes]
    ranking = rank(largest, largest >= 0, count)
    return ranking, classes[ranking.indices]


def doubtful_images(probabilities: np.ndarray, count: int | None = None) -> Ranking:
    """Return the images that the network is least sure of.

    The score is the entropy of the probabilities (N, classes), as a fraction of its maximum, the logarithm of the number of
    classes.
    """
    p = np.clip(probabilities.astype(np.float64), 1e-300, 1)
    entropy = -(probabilities * np.log(p)).sum(1) / np.log(max(2, probabilities.shape[1]))
    return rank(entropy, np.ones(len(p), bool), count)


_TOLERANCE = 1e-6  # of probabilities at a threshold, since the mean of equal ones may be rounded above them


class LabelErrors(NamedTuple):
    """Images whose labels are probably wrong, most probable first.

    Attributes:
      indices: (n,) the images.
      scores: (n,) by how much the probability of the suggested class exceeds that of the label, in [-1, 1].
      suggested: (n,) the class that each image probably shows.
      joint: (classes, classes) the confident joint: how many images of each label probably show each class.
    """

    indices: np.ndarray
    scores: np.ndarray
    suggested: np.ndarray
    joint: np.ndarray


def label_errors(probabilities: np.ndarray, labels: np.ndarray) -> LabelErrors:
    """Return the images whose labels are probably wrong, by confident learning (Northcutt et al. 2021).

    The threshold of a class is the mean probability that the network gives it on the images with its label. An image
    probably shows the most probable one of the classes whose probabilities reach their thresholds; images without such a
    class are not counted in the confident joint. Scaled to the number of images of each label, it estimates how many images
    of a label show another class. That many are selected, the ones with the largest margins ("prune by noise rate"), unless
    the label is more probable than that class.

    Args:
      probabilities: (N, classes) of images that the network was not trained on.
      labels: (N,) classes, of which some may be wrong.
    """
    num_classes = probabilities.shape[1]
    is_finite = np.isfinite(probabilities).all(1)
    counts = np.bincount(labels[is_finite], minlength=num_classes)
    thresholds = np.full(num_classes, np.inf)  # a class without images has no threshold, and is not suggested
    for c in np.flatnonzero(counts):
        thresholds[c] = probabilities[is_finite & (labels == c), c].mean()
    is_confident = is_finite[:, None] & (probabilities >= thresholds - _TOLERANCE)
    is_counted = is_confident.any(1)
    probable = np.where(is_confident, probabilities, -1).argmax(1)
    joint = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(joint, (labels[is_counted], probable[is_counted]), 1)
    estimated = np.rint(joint * (counts / np.maximum(joint.sum(1), 1))[:, None]).astype(int)
    margins = np.full(len(labels), -np.inf)
    suggested = labels.copy()
    for label, shown in zip(*np.nonzero(estimated), strict=True):
        if label == shown:
            continue
        images = np.flatnonzero(is_finite & (labels == label))
        differences = probabilities[images, shown] - probabilities[images, label]
        selected = np.argsort(-differences, kind='stable')[:estimated[label, shown]]
        images, differences = images[selected], differences[selected]
        is_larger = differences > margins[images]
        margins[images[is_larger]] = differences[is_larger]
        suggested[images[is_larger]] = shown
    indices, scores = rank(margins, margins > 0, None)
    return LabelErrors(indices, scores, suggested[indices], joint)


def label_set_errors(probabilities: np.ndarray, labels: np.ndarray) -> tuple[Ranking, np.ndarray]:
    """Return the images with a class that is probably missing in their labels, or wrong, by `label_errors` of each class.

    Args:
      probabilities: (N, classes) probability of each class.
      labels: (N, classes) of 0 and 1.

    Returns:
      The images with their scores, an image once for each doubtful class, and that class, (n,).
    """
    by_class = [label_errors(np.stack([1 - p, p], 1), (y > 0).astype(int)) for p, y in zip(
        probabilities.T, labels.T, strict=True)]
    indices, scores = (np.concatenate([getattr(errors, name) for errors in by_class]) for name in ('indices', 'scores'))
    classes = np.repeat(np.arange(len(by_class)), [len(errors.indices) for errors in by_class])
    order = np.argsort(-scores, kind='stable')
    return Ranking(indices[order], scores[order]), classes[order]


def draw_sheet(images: np.ndarray, titles: Sequence[str], path: str, columns: int = 8) -> None:
    """Draw images with their titles in a grid, with 144 pixels a side or more. Large images are reduced to 160 pixels.

    Args:
      images: uint8 (N, H, W, C).
      titles: N titles of one or several lines.
      path: the PNG file.
      columns: images in a row.
    """
    figures.image_grid(figures.thumbnails(images, 160) / 255, titles, path, min(columns, len(images)), min_side=144)
