"""Recall of object proposals: an example whose overlaps are known by hand."""

import numpy as np
from PIL import Image

from jaxcnn.analysis.proposal_recall import best_proposals, draw_best_proposals, draw_recall, proposal_recall

OBJECTS = np.array([[[0, 0, 10, 10], [0, 0, 5, 5], [0, 0, 0, 0]], [[0, 0, 4, 4], [2, 2, 6, 7], [0, 0, 10, 5]]], np.float32)
TARGETS = {'boxes': OBJECTS, 'valid': np.array([[True, True, False], [True, True, True]]),
           'difficult': np.array([[False, True, False], [False, False, False]])}
# the first image has proposals with IoU 0.5 and 1 for its object that counts; in the second one the last proposal is padding
PROPOSALS = np.array([[[0, 0, 10, 5], [20, 20, 30, 30], [0, 0, 10, 10]],
                      [[0, 0, 4, 3], [2, 2, 6, 6], [0, 0, 10, 5]]], np.float32)
VALID = np.array([[True, True, True], [True, True, False]])


def test_recall_of_an_example_by_hand():
    result = proposal_recall(PROPOSALS, VALID, TARGETS, counts=[1, 2, 50])
    assert result.counts.tolist() == [1, 2, 3]
    np.testing.assert_allclose(result.mean_counts, [1, 2, 2.5])
    # the objects of the second image have areas of 16, 20 and 50; its proposals that are valid have areas of 12 and 16
    expected = [[0.5, 0.5, 1], [0.75, 0.75, 0.75], [2 / 30, 0.8, 0.8], [12 / 50, 12 / 50, 12 / 50]]
    np.testing.assert_allclose(result.best_ious, expected, rtol=1e-6)
    np.testing.assert_allclose(result.recall(0.5), [0.5, 0.75, 0.75])
    np.testing.assert_allclose(result.recall(0.7), [0.25, 0.5, 0.75])
    np.testing.assert_allclose(result.average_recall(), [0.125, (0.5 + 0.6) / 4, (1 + 0.5 + 0.6) / 4], rtol=1e-6)
    # the average recall is the mean of the recall over the thresholds
    thresholds = np.linspace(0.5, 1, 20001)
    np.testing.assert_allclose(np.mean([result.recall(t) for t in thresholds], 0), result.average_recall(), atol=1e-4)


def test_numbers_of_proposals_end_with_all():
    boxes = np.tile(PROPOSALS[:, :1], (1, 100, 1))
    result = proposal_recall(boxes, np.ones((2, 100), bool), {'boxes': OBJECTS, 'valid': TARGETS['valid']})
    assert (result.counts[0], result.counts[-1]) == (1, 100)
    assert (np.diff(result.counts) > 0).all()
    assert len(result.best_ious) == 5, 'without `difficult` all objects count'


def test_the_best_proposals_and_their_figures(tmp_path):
    best, ious = best_proposals(PROPOSALS[1], VALID[1], OBJECTS[1])
    np.testing.assert_array_equal(best, PROPOSALS[1][[0, 1, 0]])
    np.testing.assert_allclose(ious, [0.75, 0.8, 12 / 50], rtol=1e-6)
    images = np.full((2, 12, 16, 1), 255, np.uint8)
    draw_best_proposals(str(tmp_path / 'best.png'), images, TARGETS, {'a $name': (PROPOSALS, VALID)}, ['one', 'two'])
    draw_recall(str(tmp_path / 'recall.png'), {'a $name': proposal_recall(PROPOSALS, VALID, TARGETS)})
    sheet = np.asarray(Image.open(tmp_path / 'best.png').convert('RGB')).astype(int)
    yellow = np.abs(sheet[:, :sheet.shape[1] * 2 // 3] - [253, 231, 37]).max(-1) <= 2  # an IoU of 1, without the colour bar
    assert yellow.sum() > 100
    assert np.asarray(Image.open(tmp_path / 'recall.png').convert('L')).std() > 10
