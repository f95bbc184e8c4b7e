"""Average precision of detections, against the devkit's rules and pycocotools."""

import dataclasses
import pathlib

import numpy as np
import pytest

from jaxcnn import detection_metrics as dm
from jaxcnn import metrics

REFERENCE = np.load(pathlib.Path(__file__).with_name('coco_reference.npz'))
NUM_CLASSES = 4


def reference_scores():
    detections, truth = ({name.split('/')[1]: REFERENCE[name] for name in REFERENCE.files if name.startswith(side)}
                         for side in ('detections', 'truth'))
    return dm.DetectionScores(detections, truth, NUM_CLASSES)


def scores_of(detections, truth, num_classes=1):
    """Return scores of one image: detections (x0, y0, x1, y1, score, class) and boxes (x0, y0, x1, y1, class, difficult)."""
    detections, truth = np.array(detections, float)[None], np.array(truth, float)[None]
    return dm.DetectionScores(
        {'boxes': detections[..., :4], 'scores': detections[..., 4], 'classes': detections[..., 5].astype(int),
         'valid': np.ones(detections.shape[:2], bool)},
        {'boxes': truth[..., :4], 'classes': truth[..., 4].astype(int), 'difficult': truth[..., 5] > 0,
         'valid': np.ones(truth.shape[:2], bool)}, num_classes)


def devkit_curve(scores, c, threshold):
    """Return recall and precision as `VOCevaldet.m` computes them, one detection at a time."""
    detections, truth = scores.detections, scores.truth
    candidates = [(i, j) for i, j in np.ndindex(detections['valid'].shape)
                  if detections['valid'][i, j] and detections['classes'][i, j] == c]
    candidates.sort(key=lambda ij: -detections['scores'][ij])
    boxes = {i: [j for j in np.flatnonzero(truth['valid'][i]) if truth['classes'][i, j] == c]
             for i in range(len(truth['valid']))}
    num_boxes = sum(not truth['difficult'][i, j] for i in boxes for j in boxes[i])
    detected, true_positives, false_positives = set(), [], []
    for i, j in candidates:
        bb, best, j_best = detections['boxes'][i, j].astype(float), -np.inf, None
        for k in boxes[i]:
            gt = truth['boxes'][i, k].astype(float)
            w, h = min(bb[2], gt[2]) - max(bb[0], gt[0]), min(bb[3], gt[3]) - max(bb[1], gt[1])
            if w > 0 and h > 0:
                union = (bb[2] - bb[0]) * (bb[3] - bb[1]) + (gt[2] - gt[0]) * (gt[3] - gt[1]) - w * h
                if w * h / union > best:
                    best, j_best = w * h / union, k
        is_match = best >= threshold
        is_counted = not (is_match and truth['difficult'][i, j_best])
        true_positives.append(is_match and is_counted and (i, j_best) not in detected)
        false_positives.append(is_counted and not true_positives[-1])
        if true_positives[-1]:
            detected.add((i, j_best))
    tp, fp = np.cumsum(true_positives), np.cumsum(false_positives)
    return tp / num_boxes, tp / np.maximum(tp + fp, 1)


def devkit_area(recall, precision):
    """Return the average precision as `VOCap.m` computes it."""
    recall, precision = np.array([0, *recall, 1]), np.array([0, *precision, 0])
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    changes = np.flatnonzero(recall[1:] != recall[:-1]) + 1
    return ((recall[changes] - recall[changes - 1]) * precision[changes]).sum()


def devkit_11_points(recall, precision):
    return sum(precision[recall >= t - 1e-12].max(initial=0) for t in np.arange(11) / 10) / 11


def test_average_precision_is_that_of_the_voc_devkit():
    scores = reference_scores()
    for threshold in (0.5, 0.75):
        curves = [devkit_curve(scores, c, threshold) for c in range(NUM_CLASSES - 1)]
        areas = [devkit_area(*curve) for curve in curves]
        assert len({*areas}) == 3
        np.testing.assert_allclose(scores.average_precisions(threshold), [*areas, np.nan], atol=1e-12)
        np.testing.assert_allclose([curve.average_precision_11_points() for curve in scores.curves(threshold)],
                                   [*(devkit_11_points(*curve) for curve in curves), np.nan], atol=1e-12)
    assert dm.map75(scores) == pytest.approx(np.mean(areas))  # the class without boxes does not enter the mean


def test_average_precision_by_hand():
    scores = scores_of([(0, 0, 10, 10, 0.9, 0),  # correct
                        (0, 0, 10, 9, 0.8, 0),  # duplicate
                        (40, 0, 50, 10, 0.7, 0),  # the difficult box: ignored, also the second time
                        (40, 0, 50, 10, 0.6, 0),
                        (20, 0, 30, 5, 0.5, 0),  # an IoU of exactly 0.5 is enough
                        (60, 0, 70, 10, 0.5, 0),  # no object
                        (20, 0, 30, 10, 0.4, 1),  # the right box with the wrong class
                        (0, 0, np.nan, 1, 0.99, 0)],  # counts as no detection
                       [(0, 0, 10, 10, 0, 0), (20, 0, 30, 10, 0, 0), (40, 0, 50, 10, 0, 1), (80, 0, 90, 10, 0, 0)], 2)
    curve = scores.curves()[0]
    np.testing.assert_allclose(curve.scores, [0.9, 0.8, 0.5, 0.5])
    np.testing.assert_allclose(curve.precision, [1, 1 / 2, 2 / 3, 2 / 4])
    np.testing.assert_allclose(curve.recall, [1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert curve.average_precision() == pytest.approx((1 + 2 / 3) / 3)
    assert curve.average_precision_11_points() == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)
    assert dm.map50(scores) == curve.average_precision()  # the other class has no boxes
    # F1 over both classes: 2/4 at 0.9, 2/5 at 0.8, 4/7 at 0.5 with both detections of this score, 4/8 at 0.4
    assert scores.best_threshold() == 0.5
    row = scores.above(0.5).per_class()[0]
    assert (row['precision'], row['recall'], row['support']) == (0.5, pytest.approx(2 / 3), 3)


def test_coco_figures_are_those_of_pycocotools():
    scores = reference_scores()
    np.testing.assert_allclose(list(scores.coco.values()), REFERENCE['figures'], atol=1e-12)
    assert min(scores.coco.values()) > 0
    assert dm.coco_ap(scores) == REFERENCE['figures'][0]


def test_nothing_detected_and_nothing_to_detect():
    scores = reference_scores()
    names = [metric.name for metric in metrics.of_targets('boxes').values()]
    assert names[:2] == ['loss', 'map50']  # the main metric
    for side in ('detections', 'truth'):
        group = getattr(scores, side)
        empty = dataclasses.replace(scores, **{side: {**group, 'valid': np.zeros_like(group['valid'])}})
        assert [metrics.of_targets('boxes')[name].compute(empty) for name in names[1:]] == [0, 0, 0, 0]
        assert empty.best_threshold() == 0.5
