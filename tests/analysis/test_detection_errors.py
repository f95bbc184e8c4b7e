"""Kinds of errors in detections, on one image whose answer is known."""

import numpy as np

from jaxcnn.analysis import detection_errors
from jaxcnn.analysis.detection_errors import ERROR_KINDS
from jaxcnn.detection_metrics import DetectionScores

# x0, y0, x1, y1, score, class
DETECTIONS = np.array([
    (0, 0, 10, 10, 0.9, 0),  # correct
    (0, 0, 10, 9, 0.8, 0),  # duplicate
    (20, 0, 30, 4, 0.7, 0),  # localisation: IoU 0.4
    (20, 0, 30, 3, 0.65, 0),  # localisation, of the same box
    (40, 0, 50, 10, 0.6, 0),  # class
    (60, 0, 70, 3, 0.5, 0),  # both: IoU 0.3 with a box of class 1
    (100, 0, 110, 10, 0.4, 1),  # background
    (120, 0, 130, 10, 0.3, 1)])  # a difficult box
# x0, y0, x1, y1, class, difficult
BOXES = np.array([(0, 0, 10, 10, 0, 0), (20, 0, 30, 10, 0, 0), (40, 0, 50, 10, 1, 0), (60, 0, 70, 10, 1, 0),
                  (80, 0, 90, 10, 1, 0), (120, 0, 130, 10, 1, 1)])


def scores():
    """Return an image without detections and boxes, and the one above."""
    def two_images(values):
        return np.stack([np.zeros_like(values), values])
    return DetectionScores(
        {'boxes': two_images(DETECTIONS[:, :4]), 'scores': two_images(DETECTIONS[:, 4]),
         'classes': two_images(DETECTIONS[:, 5].astype(int)), 'valid': two_images(np.ones(len(DETECTIONS), bool))},
        {'boxes': two_images(BOXES[:, :4]), 'classes': two_images(BOXES[:, 4]), 'difficult': two_images(BOXES[:, 5] > 0),
         'valid': two_images(np.ones(len(BOXES), bool))}, 2)


def test_each_error_has_its_kind():
    errors = detection_errors.find_errors(scores())
    kinds = [ERROR_KINDS[kind] if kind >= 0 else '' for kind in errors.kinds[1]]
    assert kinds == ['', 'duplicate', 'localisation', 'localisation', 'class', 'both', 'background', '']
    assert (errors.kinds[0] == -1).all()
    assert np.argwhere(errors.is_missed).tolist() == [[1, 3], [1, 4]]  # the box of `both` is missed, too
    counts = detection_errors.count_errors(scores(), errors)
    assert dict(zip(ERROR_KINDS, counts.tolist(), strict=True)) == {
        'localisation': [2, 0], 'class': [1, 0], 'both': [1, 0], 'duplicate': [1, 0], 'background': [0, 1], 'missed': [0, 2]}


def test_possible_gains_are_those_of_repaired_detections():
    gains = detection_errors.possible_gains(scores(), detection_errors.find_errors(scores()))
    # the average precision is 1/2 of class 0 and 0 of class 1
    expected = {'localisation': ((1 + 2 / 3) / 2 - 1 / 2) / 2,  # the second one is left out
                'class': (1 / 3) / 2,  # the first detection of class 1, which has three boxes, becomes correct
                'both': 0, 'duplicate': 0, 'background': 0, 'missed': 0}
    np.testing.assert_allclose(gains, list(expected.values()), atol=1e-12)


def test_confusion_matrix_with_background():
    np.testing.assert_array_equal(detection_errors.confusion_matrix(scores()), [
        [1, 0, 1],  # class 0: detected, and not detected
        [1, 0, 2],  # class 1: detected as class 0, and not detected twice
        [4, 1, 0]])  # background


def test_worst_images_have_undetected_boxes_and_confident_false_positives():
    assert detection_errors.image_errors(scores()).is_undetected[1].tolist() == [False, True, True, True, True, False]
    ranking = detection_errors.worst_images(scores())
    assert ranking.indices.tolist() == [1]
    np.testing.assert_allclose(ranking.scores, 4 + 0.8 + 0.7 + 0.65 + 0.6 + 0.5 + 0.4)
    np.testing.assert_allclose(detection_errors.worst_images(scores().above(0.66)).scores, 4 + 0.8 + 0.7)
