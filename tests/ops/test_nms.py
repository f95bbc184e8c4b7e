"""Non-maximum suppression against plain greedy loops, torchvision's results and OpenCV."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.errors import UserError
from jaxcnn.ops import nms as nms_ops
from jaxcnn.ops.nms import nms, nms_per_class, soft_nms

TORCHVISION = np.load(pathlib.Path(__file__).with_name('torchvision_reference.npz'))
BOXES, SCORES, LABELS = (TORCHVISION[name] for name in ('boxes', 'scores', 'labels'))


def overlap(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0) * max(height, 0)
    return intersection / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection)


def greedy(boxes, scores, threshold, labels=None, mask=None):
    selected = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        rivals = [j for j in selected if labels is None or labels[i] == labels[j]]
        if (mask is None or mask[i]) and all(overlap(boxes[i], boxes[j]) <= threshold for j in rivals):
            selected.append(i)
    return selected


def soft_greedy(boxes, scores, decay):
    """Return the indices and the scores of soft-NMS down to a score of 0.001."""
    scores, selected = list(map(float, scores)), []
    while (best := max(range(len(scores)), key=lambda i: (scores[i], -i))) is not None and scores[best] > 0.001:
        selected.append((best, scores[best]))
        scores = [score * decay(overlap(boxes[best], box)) for score, box in zip(scores, boxes, strict=True)]
        for i, _ in selected:
            scores[i] = -1.0
    return zip(*selected, strict=True)


def selected_indices(selection):
    assert not np.any(np.diff(np.asarray(selection.mask).astype(int)) > 0)  # the selected boxes come first
    assert np.all(np.asarray(selection.indices)[~np.asarray(selection.mask)] == 0)
    return np.asarray(selection.indices)[np.asarray(selection.mask)].tolist()


@pytest.mark.parametrize('tile', [32, 512])
def test_the_selection_is_that_of_torchvision_and_of_greedy_loops(tile, monkeypatch):
    """Many scores tie. A tile of 512 holds all boxes, as on a GPU."""
    monkeypatch.setattr(nms_ops, 'tile_size', lambda: tile)
    assert len(set(SCORES.tolist())) < 200
    select = jax.jit(lambda threshold: (nms(BOXES, SCORES, threshold, 400),
                                        nms_per_class(BOXES, SCORES, LABELS, threshold, 400)))
    for threshold in (0.25, 0.5, 0.7):
        for name, labels, selection in zip(('nms', 'nms_per_class'), (None, LABELS), select(threshold), strict=True):
            indices = selected_indices(selection)
            assert indices == greedy(BOXES.tolist(), SCORES.tolist(), threshold, labels)
            expected = TORCHVISION[f'{name}_{threshold}'].tolist()
            if name == 'nms':
                assert indices == expected
            else:  # torchvision sorts them again, which changes the order where scores tie
                assert sorted(indices) == sorted(expected)


def test_images_may_be_vmapped_and_outputs_limited():
    boxes, scores = np.stack([BOXES[:100], BOXES[100:200]]), np.stack([SCORES[:100], SCORES[100:200]])
    mask = np.random.default_rng(0).random((2, 100)) < 0.8
    few, many = jax.jit(jax.vmap(lambda b, s, m: (nms(b, s, 0.4, 7, m), nms(b, s, 0.4, 150, m))))(boxes, scores, mask)
    for i in range(2):
        expected = greedy(boxes[i].tolist(), scores[i].tolist(), 0.4, mask=mask[i])
        assert selected_indices(jax.tree.map(lambda x, i=i: x[i], many)) == expected
        assert selected_indices(jax.tree.map(lambda x, i=i: x[i], few)) == expected[:7]


def test_a_loss_of_selected_boxes_can_be_differentiated():
    def loss(boxes):
        return sum(jnp.sum(x[nms(x, SCORES[:50], 0.5, 10).indices]) for x in boxes)
    gradient = jax.jit(jax.grad(loss))(jnp.stack([BOXES[:50], BOXES[50:100]]))
    np.testing.assert_array_equal(np.unique(gradient), [0, 1])
    assert gradient.sum() == 2 * 10 * 4


def test_boxes_that_are_not_finite_or_empty_suppress_no_other():
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 4, np.nan], [2, 2, 2, 2], [2, 2, 2, 2], [0, 0, 4, 3.9],
                      [0, 0, 4, 4]], np.float32)
    scores = np.array([0.5, np.nan, 0.9, 0.8, 0.7, 0.4, np.inf], np.float32)
    assert selected_indices(nms(boxes, scores, 0.5, 7)) == [3, 4, 0]
    assert selected_indices(soft_nms(boxes, scores, 7, 'linear', threshold=0.5)) == [3, 4, 0, 5]
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    for selection in (nms(*nothing, 0.5, 3), soft_nms(*nothing, 3), nms(boxes, scores, 0.5, 3, np.zeros(7, bool))):
        assert selection.indices.shape == (3,)
        assert not selection.mask.any()


def test_equal_scores_are_selected_in_the_order_of_their_indices():
    boxes = np.array([[10 * i, 0, 10 * i + 5, 5] for i in (3, 1, 2)] * 2, np.float32)
    assert selected_indices(nms(boxes, np.ones(6, np.float32), 0.5, 6)) == [0, 1, 2]
    assert selected_indices(soft_nms(boxes, np.ones(6, np.float32), 6))[:3] == [0, 1, 2]


@pytest.mark.parametrize(('method', 'decay'), [
    ('linear', lambda overlap: 1 - overlap if overlap > 0.3 else 1),
    ('gaussian', lambda overlap: np.exp(-overlap ** 2 / 0.5))], ids=['linear', 'gaussian'])
def test_soft_nms_is_that_of_plain_loops(method, decay):
    boxes, scores = BOXES[:120], SCORES[:120] + np.arange(120, dtype=np.float32) * 1e-5  # no ties
    selection = soft_nms(boxes, scores, 120, method)
    indices, expected = soft_greedy(boxes.tolist(), scores, decay)
    assert selected_indices(selection) == list(indices)
    np.testing.assert_allclose(np.asarray(selection.scores)[:len(expected)], expected, rtol=1e-4)
    labels = np.arange(120) % 2
    of_both = soft_nms(boxes, scores, 120, method, labels=labels)
    for label in range(2):
        separate = soft_nms(boxes, scores, 120, method, mask=labels == label)
        both = [i for i in selected_indices(of_both) if labels[i] == label]
        assert both == selected_indices(separate)


def test_an_unknown_method_of_soft_nms_is_reported():
    with pytest.raises(UserError, match='gaussian'):
        soft_nms(BOXES, SCORES, 10, 'gauss')


def test_nms_and_soft_nms_are_those_of_opencv():
    cv2 = pytest.importorskip('cv2')
    rng = np.random.default_rng(0)
    begin = rng.integers(0, 100, (150, 2))
    sides = rng.integers(10, 50, (150, 2))
    scores = (1 + rng.permutation(150).astype(np.float32)) / 150
    boxes, corners = np.concatenate([begin, begin + sides], axis=1), np.concatenate([begin, sides], axis=1).tolist()
    for threshold in (0.301, 0.5001):
        expected = cv2.dnn.NMSBoxes(corners, scores.tolist(), 0.0, threshold)
        assert selected_indices(nms(boxes, scores, threshold, 150)) == np.ravel(expected).tolist()
    for method, code in (('linear', cv2.dnn.SOFT_NMSMETHOD_SOFTNMS_LINEAR),
                         ('gaussian', cv2.dnn.SOFT_NMSMETHOD_SOFTNMS_GAUSSIAN)):
        expected_scores, expected = cv2.dnn.softNMSBoxes(corners, scores.tolist(), 0.01, 0.3, sigma=0.5, method=code)
        selection = soft_nms(boxes, scores, 150, method, threshold=0.3, min_score=0.01)
        assert selected_indices(selection) == np.ravel(expected).tolist()
        np.testing.assert_allclose(np.asarray(selection.scores)[:len(expected)], np.ravel(expected_scores), rtol=1e-4)
