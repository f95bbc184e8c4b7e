"""What goes wrong in detections: kinds of errors, confused classes and the worst images."""

from typing import NamedTuple

import numpy as np

from jaxcnn.analysis.mistakes import Ranking, rank
from jaxcnn.detection_metrics import IOU_THRESHOLD, DetectionScores, class_curves

ERROR_KINDS = 'localisation', 'class', 'both', 'duplicate', 'background', 'missed'
LOCALISATION, CLASS, BOTH, DUPLICATE, BACKGROUND, MISSED = range(len(ERROR_KINDS))
BACKGROUND_IOU = 0.1  # below which a detection overlaps no object


class DetectionErrors(NamedTuple):
    """The errors of a split, as in TIDE (Bolya et al. 2020).

    Attributes:
      kinds: (N, K) the number in `ERROR_KINDS` of the error of each detection; -1 where there is none.
      truth: (N, K) the position of the box that the detection would match without its error; -1 if there is none.
      is_correct: (N, K) whether the detection is a true positive.
      is_missed: (N, M) whether a box is matched by no detection, also none with a wrong position or a wrong class.
    """

    kinds: np.ndarray
    truth: np.ndarray
    is_correct: np.ndarray
    is_missed: np.ndarray


def find_errors(scores: DetectionScores, iou_threshold: float = IOU_THRESHOLD) -> DetectionErrors:
    """Return the kind of error of each detection that is not correct, and the boxes that are missed.

    The first of these kinds that applies is the error of a detection. Difficult boxes count for none of them.

    - localisation: the IoU with a box of its class is at least `BACKGROUND_IOU`, but below the threshold;
    - class: the IoU with a box of another class is at least the threshold;
    - duplicate: the IoU with a box of its class is at least the threshold, but another detection has matched the box;
    - background: the IoU with every box is below `BACKGROUND_IOU`;
    - both: the detection has a wrong class and a wrong position.
    """
    matches = scores.matches(iou_threshold)
    is_wrong = scores.is_detected & ~matches.is_correct & ~matches.is_ignored
    is_used = np.zeros(scores.is_required.shape, bool)
    images, positions = np.nonzero(matches.is_correct)
    is_used[images, matches.truth[images, positions]] = True
    kinds, truth = np.full(is_wrong.shape, -1), np.full(is_wrong.shape, -1)
    for start, stop in scores.image_ranges():
        kinds[start:stop], truth[start:stop] = _kinds_in_images(scores, start, stop, iou_threshold)
    kinds[~is_wrong] = truth[~is_wrong] = -1
    is_near = is_used.copy()
    images, positions = np.nonzero(truth >= 0)
    is_near[images, truth[images, positions]] = True
    truth[images, positions] = np.where(is_used[images, truth[images, positions]], -1, truth[images, positions])
    return DetectionErrors(kinds, truth, matches.is_correct, scores.is_required & ~is_near)


def _kinds_in_images(scores: DetectionScores, start: int, stop: int, iou_threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the kinds of error in a range of images as if all detections were wrong, and the boxes they belong to."""
    iou = np.where(scores.is_required[start:stop, None], scores.overlaps(start, stop), 0)
    is_same = scores.detections['classes'][start:stop, :, None] == scores.truth['classes'][start:stop, None]
    of_class, of_others = np.where(is_same, iou, 0), np.where(is_same, 0, iou)
    same, other = of_class.max(-1), of_others.max(-1)
    conditions = [(same >= BACKGROUND_IOU) & (same < iou_threshold), other >= iou_threshold, same >= iou_threshold,
                  np.maximum(same, other) < BACKGROUND_IOU]
    kinds = np.select(conditions, [LOCALISATION, CLASS, DUPLICATE, BACKGROUND], BOTH)
    truth = np.select([kinds == LOCALISATION, kinds == CLASS], [of_class.argmax(-1), of_others.argmax(-1)], -1)
    return kinds, truth


def count_errors(scores: DetectionScores, errors: DetectionErrors) -> np.ndarray:
    """Return the number of errors of each kind and class, (kinds, num_classes).

    The class is that of the detection, or that of the missed box.
    """
    counts = np.zeros((len(ERROR_KINDS), scores.num_classes), np.int64)
    is_error = errors.kinds >= 0
    np.add.at(counts, (errors.kinds[is_error], scores.detections['classes'][is_error]), 1)
    np.add.at(counts[MISSED], scores.truth['classes'][errors.is_missed], 1)
    return counts


def possible_gains(scores: DetectionScores, errors: DetectionErrors, iou_threshold: float = IOU_THRESHOLD) -> np.ndarray:
    """Return by how much the mean average precision would rise if all errors of a kind were repaired, (kinds,).

    A detection with a wrong position or class becomes correct if it has the largest score among those that would match the
    same box, and is left out otherwise. Other wrong detections are left out. Missed boxes are not counted.
    """
    matches = scores.matches(iou_threshold)
    order = scores.order[~matches.is_ignored.ravel()[scores.order]]
    kinds, is_correct, truth = (values.ravel()[order] for values in (errors.kinds, errors.is_correct, errors.truth))
    classes, values = (scores.detections[name].ravel()[order] for name in ('classes', 'scores'))
    images, num_positions = order // errors.kinds.shape[1], scores.is_required.shape[1]
    box_ids = images * num_positions + truth
    candidates = np.flatnonzero(truth >= 0)
    is_repairable = np.zeros(len(order), bool)
    is_repairable[candidates[np.unique(box_ids[candidates], return_index=True)[1]]] = True

    def mean_ap(is_kept: np.ndarray, is_repaired: np.ndarray, num_boxes: np.ndarray) -> float:
        true_classes = np.where(is_repaired, scores.truth['classes'][images, truth], classes)
        curves = class_curves(values[is_kept], true_classes[is_kept], (is_correct | is_repaired)[is_kept], num_boxes)
        precisions = np.array([curve.average_precision() for curve in curves])[scores.num_boxes > 0]
        return float(np.nan_to_num(precisions).sum() / max(len(precisions), 1))

    none = np.zeros(len(order), bool)
    before = mean_ap(~none, none, scores.num_boxes)
    gains = []
    for kind in range(len(ERROR_KINDS)):
        is_repaired = is_repairable & (kinds == kind)
        num_boxes = scores.num_boxes - (count_errors(scores, errors)[MISSED] if kind == MISSED else 0)
        gains.append(mean_ap((kinds != kind) | is_repaired, is_repaired, num_boxes) - before)
    return np.array(gains)


def confusion_matrix(scores: DetectionScores, iou_threshold: float = IOU_THRESHOLD) -> np.ndarray:
    """Return how many boxes of each class are detected as each class, (num_classes + 1, num_classes + 1).

    Rows are true classes and columns detected ones. The last row counts detections without a box, the last column boxes
    without a detection. A box and a detection form a pair if their IoU is at least the threshold. Pairs of equal classes
    come before others, and those with a larger IoU before those with a smaller one. Detections of difficult boxes are not
    counted.
    """
    size, background = scores.num_classes + 1, scores.num_classes
    confusion = np.zeros((size, size), np.int64)
    is_box, is_difficult = scores.truth['valid'].astype(bool), scores.truth['difficult'].astype(bool)
    for start, stop in scores.image_ranges():
        overlaps = scores.overlaps(start, stop)
        for image, iou in zip(range(start, stop), overlaps, strict=True):
            detected, true = scores.detections['classes'][image], scores.truth['classes'][image]
            open_detections, open_boxes = scores.is_detected[image].copy(), is_box[image].copy()
            k, m = np.nonzero((iou >= iou_threshold) & open_detections[:, None] & open_boxes)
            for pair in np.lexsort((-iou[k, m], is_difficult[image, m], detected[k] != true[m])):
                i, j = k[pair], m[pair]
                if open_detections[i] and open_boxes[j]:
                    open_detections[i] = open_boxes[j] = False
                    confusion[true[j], detected[i]] += not is_difficult[image, j]
            np.add.at(confusion[background], detected[open_detections], 1)
            np.add.at(confusion[:, background], true[open_boxes & ~is_difficult[image]], 1)
    return confusion


class ImageErrors(NamedTuple):
    """The errors of each image.

    Attributes:
      is_undetected: (N, M) whether a box has no correct detection.
      is_false: (N, K) whether a detection is a false positive.
      badness: (N,) the number of undetected boxes plus the sum of the scores of the false positives.
    """

    is_undetected: np.ndarray
    is_false: np.ndarray
    badness: np.ndarray


def image_errors(scores: DetectionScores, iou_threshold: float = IOU_THRESHOLD) -> ImageErrors:
    """Return the undetected boxes and the false positives of each image, and how bad the image is."""
    matches = scores.matches(iou_threshold)
    is_undetected = scores.is_required.copy()
    images, positions = np.nonzero(matches.is_correct)
    is_undetected[images, matches.truth[images, positions]] = False
    is_false = scores.is_detected & ~matches.is_correct & ~matches.is_ignored
    badness = is_undetected.sum(1) + np.where(is_false, scores.detections['scores'], 0).sum(1, dtype=np.float64)
    return ImageErrors(is_undetected, is_false, badness)


def worst_images(scores: DetectionScores, count: int | None = None) -> Ranking:
    """Return the images with the largest badness; see `ImageErrors`. Images without errors are left out.

    Args:
      scores: the detections above the threshold at which they are used.
      count: maximum number of images; None: all with an error.
    """
    badness = image_errors(scores).badness
    return rank(badness, badness > 0, count)
