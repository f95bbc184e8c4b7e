"""Metrics of object detection: average precision as in Pascal VOC and COCO.

All functions run on the host. Boxes are `x0, y0, x1, y1` in pixels, in the coordinates of the edges of pixels, so that the
overlaps equal those of the Pascal VOC devkit, whose boxes include their last pixel.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxcnn.errors import UserError
from jaxcnn.metrics import split_metric

IOU_THRESHOLD = 0.5  # from which a detection is correct, if no other one is named
_MAX_PAIRS = 1 << 22  # of a detection and a true box, whose overlaps are in memory at a time
_COCO_NAMES = ('AP', 'AP50', 'AP75', 'AP small', 'AP medium', 'AP large', 'AR 1', 'AR 10', 'AR 100', 'AR small',
               'AR medium', 'AR large')  # in the order of COCO's summary


class Matches(NamedTuple):
    """The outcome of each detection at a threshold of IoU.

    Attributes:
      is_correct: (N, K) whether the detection is a true positive.
      is_ignored: (N, K) whether the detection matches a difficult box, so that it counts neither as right nor as wrong.
      truth: (N, K) the position of the matched box in its image; -1 for detections that match no box.
    """

    is_correct: np.ndarray
    is_ignored: np.ndarray
    truth: np.ndarray


class Curve(NamedTuple):
    """The precision and the recall of a class at each of its detections, in decreasing order of their scores.

    Attributes:
      scores: (D,) the scores of the detections, without ignored ones.
      correct: (D,) the number of true positives among the detections up to each one.
      num_boxes: the number of boxes of the class that are not difficult.
    """

    scores: np.ndarray
    correct: np.ndarray
    num_boxes: int

    @property
    def precision(self) -> np.ndarray:
        """The precision among the detections up to each one, (D,)."""
        return self.correct / np.arange(1, len(self.correct) + 1)

    @property
    def recall(self) -> np.ndarray:
        """The recall of the detections up to each one, (D,)."""
        return self.correct / max(self.num_boxes, 1)

    @property
    def interpolated_precision(self) -> np.ndarray:
        """The largest precision at each recall or a larger one, (D,)."""
        return np.maximum.accumulate(self.precision[::-1])[::-1]

    def average_precision(self) -> float:
        """Return the area under the interpolated precision (Pascal VOC from 2010 on); NaN if the class has no boxes."""
        if not self.num_boxes:
            return np.nan
        is_correct = np.diff(self.correct, prepend=0) > 0
        return float(self.interpolated_precision[is_correct].sum() / self.num_boxes)

    def average_precision_11_points(self) -> float:
        """Return the mean of the interpolated precision at the recalls 0, 0.1, ... 1 (Pascal VOC up to 2009).

        It is NaN if the class has no boxes.
        """
        if not self.num_boxes:
            return np.nan
        first = np.searchsorted(10 * self.correct, np.arange(11) * self.num_boxes)  # in integers, so that 0.3 is 3 of 10
        return float(np.append(self.interpolated_precision, 0)[first].mean())


def class_curves(scores: np.ndarray, classes: np.ndarray, is_correct: np.ndarray, num_boxes: np.ndarray) -> list[Curve]:
    """Return the curve of each class.

    Args:
      scores: (D,) the scores of the detections that count, in decreasing order.
      classes: (D,) their classes.
      is_correct: (D,) whether each is a true positive.
      num_boxes: (num_classes,) the number of boxes of each class that are not difficult.
    """
    of_classes = (classes == c for c in range(len(num_boxes)))
    return [Curve(scores[of_class], is_correct[of_class].cumsum(), int(count))
            for of_class, count in zip(of_classes, num_boxes, strict=True)]


@dataclasses.dataclass(frozen=True, eq=False)
class DetectionScores:
    """The detections and the true boxes of all images of a split.

    Detections whose score or box is not finite do not count.

    Attributes:
      detections: `boxes` (N, K, 4), `scores` (N, K), `classes` (N, K) and `valid` (N, K).
      truth: `boxes` (N, M, 4), `classes` (N, M), `valid` (N, M) and `difficult` (N, M).
      num_classes: the number of classes.
    """

    detections: Mapping[str, np.ndarray]
    truth: Mapping[str, np.ndarray]
    num_classes: int

    @functools.cached_property
    def is_detected(self) -> np.ndarray:
        """Whether each detection counts, (N, K)."""
        return (self.detections['valid'].astype(bool) & np.isfinite(self.detections['scores'])
                & np.isfinite(self.detections['boxes']).all(-1))

    @functools.cached_property
    def is_required(self) -> np.ndarray:
        """Whether each true box has to be detected, because it is not difficult, (N, M)."""
        return self.truth['valid'].astype(bool) & ~self.truth['difficult'].astype(bool)

    @functools.cached_property
    def num_boxes(self) -> np.ndarray:
        """The number of boxes of each class that are not difficult, (num_classes,)."""
        return np.bincount(self.truth['classes'][self.is_required], minlength=self.num_classes)

    @functools.cached_property
    def order(self) -> np.ndarray:
        """The detections that count as positions in the flat arrays (N * K,), in decreasing order of their scores."""
        positions = np.flatnonzero(self.is_detected)
        return positions[np.argsort(-self.detections['scores'].ravel()[positions], kind='stable')]

    def overlaps(self, start: int, stop: int) -> np.ndarray:
        """Return the IoU of each detection with each true box in a range of images, (stop - start, K, M)."""
        return pairwise_iou(self.detections['boxes'][start:stop], self.truth['boxes'][start:stop])

    def image_ranges(self) -> list[tuple[int, int]]:
        """Return ranges of images that together are all images and of which `overlaps` needs little memory."""
        count, pairs = len(self.is_detected), self.is_detected.shape[1] * self.is_required.shape[1]
        step = max(1, _MAX_PAIRS // max(pairs, 1))
        return [(start, min(start + step, count)) for start in range(0, count, step)]

    @functools.cached_property
    def _best_of_class(self) -> tuple[np.ndarray, np.ndarray]:
        """The largest IoU of each detection with a box of its class, and the position of this box: (N, K) each."""
        best, positions = np.zeros(self.is_detected.shape), np.zeros(self.is_detected.shape, int)
        is_box, classes = self.truth['valid'].astype(bool), self.truth['classes']
        for start, stop in self.image_ranges():
            is_candidate = is_box[start:stop, None] & (
                self.detections['classes'][start:stop, :, None] == classes[start:stop, None])
            iou = np.where(is_candidate, self.overlaps(start, stop), -1)
            positions[start:stop] = iou.argmax(-1)
            best[start:stop] = iou.max(-1)
        return best, positions

    def matches(self, iou_threshold: float = IOU_THRESHOLD) -> Matches:
        """Return the outcome of each detection by the rules of the Pascal VOC devkit.

        Detections are processed in decreasing order of their scores. Each matches the box of its class in its image that it
        overlaps most, if their IoU is at least the threshold. It is correct if the box is not difficult and no detection
        has matched it before.
        """
        best, positions = self._best_of_class
        is_match = self.is_detected & (best >= iou_threshold)
        truth = np.where(is_match, positions, -1)
        is_difficult = np.take_along_axis(self.truth['difficult'].astype(bool), positions, 1)
        num_positions = self.is_required.shape[1]
        box_ids = (np.arange(len(truth))[:, None] * num_positions + truth).ravel()
        candidates = self.order[(is_match & ~is_difficult).ravel()[self.order]]
        _, first = np.unique(box_ids[candidates], return_index=True)
        is_correct = np.zeros(truth.size, bool)
        is_correct[candidates[first]] = True
        return Matches(is_correct.reshape(truth.shape), is_match & is_difficult, truth)

    def curves(self, iou_threshold: float = IOU_THRESHOLD) -> list[Curve]:
        """Return the precision and the recall of each class."""
        matches = self.matches(iou_threshold)
        counted = self.order[~matches.is_ignored.ravel()[self.order]]
        return class_curves(self.detections['scores'].ravel()[counted], self.detections['classes'].ravel()[counted],
                            matches.is_correct.ravel()[counted], self.num_boxes)

    def average_precisions(self, iou_threshold: float = IOU_THRESHOLD) -> np.ndarray:
        """Return the area under the precision-recall curve of each class, (num_classes,); NaN for classes without boxes."""
        return np.array([curve.average_precision() for curve in self.curves(iou_threshold)])

    def best_threshold(self, iou_threshold: float = IOU_THRESHOLD) -> float:
        """Return the threshold of scores with the largest F1 over all classes; 0.5 if no detection is correct."""
        matches = self.matches(iou_threshold)
        counted = self.order[~matches.is_ignored.ravel()[self.order]]
        correct = matches.is_correct.ravel()[counted].cumsum()
        if not len(counted) or not correct[-1]:
            return 0.5
        scores = self.detections['scores'].ravel()[counted]
        f1 = 2 * correct / (np.arange(1, len(counted) + 1) + self.num_boxes.sum())
        is_last_of_score = np.append(scores[1:] != scores[:-1], True)
        return float(scores[np.where(is_last_of_score, f1, -1).argmax()])

    def above(self, score_threshold: float) -> 'DetectionScores':
        """Return the same images with only the detections whose scores are at least a threshold."""
        is_valid = self.is_detected & (self.detections['scores'] >= score_threshold)
        return dataclasses.replace(self, detections={**self.detections, 'valid': is_valid})

    def per_class(self, iou_threshold: float = IOU_THRESHOLD) -> list[dict[str, float]]:
        """Return precision, recall, F1 (0 where undefined) and number of boxes, `support`, of each class."""
        rows = []
        for curve in self.curves(iou_threshold):
            precision, recall = (float(values[-1]) if len(values) else 0.0 for values in (curve.precision, curve.recall))
            f1 = 2 * precision * recall / (precision + recall) if precision * recall else 0.0
            rows.append({'precision': precision, 'recall': recall, 'f1': f1, 'support': curve.num_boxes})
        return rows

    @functools.cached_property
    def coco(self) -> dict[str, float]:
        """COCO's twelve figures by name, `AP` to `AR large`; NaN where no box has the size.

        Difficult boxes count as COCO's `iscrowd`. Sizes are in pixels of the images that the network gets: small objects
        have an area below 32 x 32 pixels, large ones one above 96 x 96 pixels.

        Raises:
          UserError: faster-coco-eval is not installed.
        """
        require_evaluator()
        from faster_coco_eval import COCO, COCOeval_faster
        images = [{'id': i} for i in range(1, len(self.is_detected) + 1)]
        categories = [{'id': c} for c in range(self.num_classes)]
        truth = _coco_annotations(self.truth, self.truth['valid'].astype(bool), iscrowd=self.truth['difficult'].astype(int))
        detections = _coco_annotations(self.detections, self.is_detected, score=self.detections['scores'])
        data_sets = (COCO({'images': images, 'categories': categories, 'annotations': rows}) for rows in (truth, detections))
        evaluation = COCOeval_faster(*data_sets, 'bbox', print_function=lambda *_: None)
        evaluation.run()
        return {name: float(value) if value >= 0 else np.nan
                for name, value in zip(_COCO_NAMES, evaluation.stats, strict=True)}


def pairwise_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the IoU of each pair of boxes (..., n, 4) and (..., m, 4): float64 (..., n, m); 0 for boxes without an area."""
    a, b = (np.asarray(boxes, np.float64) for boxes in (a, b))
    a, b = a[..., :, None, :], b[..., None, :, :]
    sizes = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    intersection = np.maximum(sizes, 0).prod(-1)
    areas = [np.maximum(boxes[..., 2:] - boxes[..., :2], 0).prod(-1) for boxes in (a, b)]
    union = areas[0] + areas[1] - intersection
    return intersection / np.where(union > 0, union, 1)


def _coco_annotations(arrays: Mapping[str, np.ndarray], is_valid: np.ndarray, **extra: np.ndarray) -> list[dict[str, Any]]:
    """Return boxes as COCO's annotations; images have the ids 1, 2, ..., and classes their numbers."""
    images, positions = np.nonzero(is_valid)
    boxes = np.asarray(arrays['boxes'][images, positions], np.float64)
    sizes = boxes[:, 2:] - boxes[:, :2]
    columns = {'id': np.arange(1, len(images) + 1), 'image_id': images + 1,
               'category_id': arrays['classes'][images, positions], 'bbox': np.concatenate([boxes[:, :2], sizes], 1),
               'area': sizes.prod(1), 'iscrowd': np.zeros(len(images), int),
               **{name: values[images, positions] for name, values in extra.items()}}
    return [dict(zip(columns, row, strict=True)) for row in zip(*(v.tolist() for v in columns.values()), strict=True)]


def require_evaluator() -> None:
    """Check that the package that computes COCO's figures is installed.

    Raises:
      UserError: It is not.
    """
    try:
        import faster_coco_eval  # noqa: F401
    except ImportError as e:
        raise UserError(f'the evaluation of detections needs faster-coco-eval: {e}',
                        hint="pip install 'jaxcnn[detection]'") from None


def _mean(values: np.ndarray) -> float:
    """Return the mean over the classes that have boxes; 0 if there are none."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else 0.0


@split_metric('boxes', title='mAP@0.5')
def map50(scores: DetectionScores) -> float:
    """Return the mean over the classes of the average precision at an IoU of 0.5, as in Pascal VOC from 2010 on."""
    return _mean(scores.average_precisions(0.5))


@split_metric('boxes', title='mAP@0.5 (11 points)')
def map50_11_points(scores: DetectionScores) -> float:
    """Return the mean over the classes of the average precision at an IoU of 0.5, as in Pascal VOC up to 2009."""
    return _mean(np.array([curve.average_precision_11_points() for curve in scores.curves(0.5)]))


@split_metric('boxes', title='mAP@0.75')
def map75(scores: DetectionScores) -> float:
    """Return the same as `map50` at an IoU of 0.75."""
    return _mean(scores.average_precisions(0.75))


@split_metric('boxes', title='COCO AP')
def coco_ap(scores: DetectionScores) -> float:
    """Return COCO's average precision, the mean over the IoUs 0.5, 0.55, ... 0.95, of at most 100 detections an image."""
    return float(np.nan_to_num(scores.coco['AP']))
