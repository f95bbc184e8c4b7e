"""Boxes against plain loops, torchvision's results and answers known by hand."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.errors import UserError
from jaxcnn.ops import boxes as box_ops

TORCHVISION = np.load(pathlib.Path(__file__).with_name('torchvision_reference.npz'))


def random_boxes(count, seed=0):
    rng = np.random.default_rng(seed)
    begin = rng.uniform(0, 80, (count, 2))
    return np.concatenate([begin, begin + rng.uniform(1, 60, (count, 2))], axis=1).astype(np.float32)


def overlap_by_hand(a, b):
    """Return the IoU and the generalised IoU of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    intersection = width * height if width > 0 and height > 0 else 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return intersection / union, intersection / union - (hull - union) / hull


def test_overlaps_are_those_of_plain_loops():
    a, b = random_boxes(9), random_boxes(7, 1)
    expected = np.array([[overlap_by_hand(x, y) for y in b.tolist()] for x in a.tolist()])
    iou, giou, aligned = jax.jit(lambda a, b: (
        box_ops.iou(a, b), box_ops.giou(a, b), box_ops.giou(a[:7], b, aligned=True)))(a, b)
    assert np.sum(expected[..., 0] > 0) > 10
    assert expected[..., 1].min() < 0
    np.testing.assert_allclose(iou, expected[..., 0], atol=1e-6)
    np.testing.assert_allclose(giou, expected[..., 1], atol=1e-6)
    np.testing.assert_allclose(aligned, np.diagonal(expected[:7, :, 1]), atol=1e-6)


def test_overlaps_and_targets_are_those_of_torchvision():
    boxes, weights = TORCHVISION['boxes'], (10.0, 10.0, 5.0, 5.0)
    np.testing.assert_array_equal(box_ops.iou(boxes[:50], boxes[50:90]), TORCHVISION['iou'])
    np.testing.assert_allclose(box_ops.giou(boxes[:50], boxes[50:90]), TORCHVISION['giou'], atol=1e-6)
    targets = box_ops.encode(boxes[:50], boxes[50:100], weights)
    np.testing.assert_allclose(targets, TORCHVISION['targets'], rtol=1e-5, atol=1e-5)
    decoded = box_ops.decode(TORCHVISION['predicted'], boxes[:50], weights)
    assert np.ptp(TORCHVISION['decoded'], axis=1).max() > 2000  # some scales are clamped
    np.testing.assert_allclose(decoded, TORCHVISION['decoded'], rtol=1e-5, atol=1e-3)


def test_regression_targets_are_those_of_the_paper_and_are_decoded_again():
    boxes, anchors = random_boxes(8), random_boxes(8, 1)
    targets = box_ops.encode(boxes, anchors)
    for (x0, y0, x1, y1), (a0, b0, a1, b1), actual in zip(boxes.tolist(), anchors.tolist(), targets, strict=True):
        expected = [((x0 + x1) / 2 - (a0 + a1) / 2) / (a1 - a0), ((y0 + y1) / 2 - (b0 + b1) / 2) / (b1 - b0),
                    math.log((x1 - x0) / (a1 - a0)), math.log((y1 - y0) / (b1 - b0))]
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(box_ops.decode(targets, anchors), boxes, atol=1e-4)
    unit = box_ops.decode(np.float32([[0, 0, 100, 1]]), np.float32([[0, 0, 16, 1]]))[0]
    np.testing.assert_allclose(unit[2] - unit[0], 1000, rtol=1e-5)


# the table in the comment of py-faster-rcnn's generate_anchors.py, that of the authors' MATLAB code
PAPER = [[-83, -39, 100, 56], [-175, -87, 192, 104], [-359, -183, 376, 200], [-55, -55, 72, 72], [-119, -119, 136, 136],
         [-247, -247, 264, 264], [-35, -79, 52, 96], [-79, -167, 96, 184], [-167, -343, 184, 360]]


def test_the_nine_anchors_are_those_of_the_paper():
    """MATLAB counts pixels from 1 and includes the last one, so x0 and y0 are those of the edges plus 1."""
    anchors = np.asarray(box_ops.anchors(2, 3, 16))
    np.testing.assert_array_equal(anchors[:9], np.array(PAPER) - [1, 1, 0, 0])
    positions = anchors.reshape(2, 3, 9, 4)
    np.testing.assert_array_equal(positions[1, 2], positions[0, 0] + [32, 16, 32, 16])
    assert box_ops.anchors(2, 3, 8, scales=(4, 8)).shape == (2 * 3 * 6, 4)


def test_anchors_of_torchvision():
    np.testing.assert_array_equal(box_ops.anchors(3, 4, 16, convention='torchvision'), TORCHVISION['anchors'])


@pytest.mark.parametrize(('arguments', 'fragment'), [
    (dict(convention='torch'), 'torchvision'), (dict(scales=()), 'above 0'), (dict(ratios=(1, 0)), 'above 0')])
def test_invalid_anchors_are_reported(arguments, fragment):
    with pytest.raises(UserError, match=fragment):
        box_ops.anchors(2, 2, 16, **arguments)


def test_boxes_follow_their_pixels():
    """A box of ones in an image remains the box of its ones."""
    image = np.zeros((6, 9))
    image[1:3, 2:7] = 1
    box = jnp.array([[2, 1, 7, 3]])
    crop, visible = box_ops.crop(box, jnp.array([4, 0, 9, 2]))
    quarter_turn = np.array([[0, 1, 0], [-1, 0, 9]])  # of the plane in which y points down
    for pixels, (moved,) in [
            (image[:, ::-1], box_ops.flip_lr(box, 9)), (image[::-1], box_ops.flip_ud(box, 6)),
            (np.rot90(image), box_ops.transform(box, quarter_turn)), (image[0:2, 4:9], crop)]:
        x0, y0, x1, y1 = np.asarray(moved, int)
        assert pixels.sum() == pixels[y0:y1, x0:x1].sum() == (y1 - y0) * (x1 - x0)
    assert visible == (1 * 3) / (2 * 5)


def test_an_affine_map_encloses_the_corners():
    boxes, matrix = random_boxes(5), np.array([[0.8, -0.7, 3], [0.5, 1.1, -2], [0, 0, 1]])
    moved = np.asarray(box_ops.transform(boxes, matrix))
    for box, actual in zip(boxes, moved, strict=True):
        corners = [matrix @ [x, y, 1] for x in box[[0, 2]] for y in box[[1, 3]]]
        expected = [*np.min(corners, axis=0)[:2], *np.max(corners, axis=0)[:2]]
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-4)


def test_padding_remains_zero_and_invisible():
    boxes, mask = jnp.array([[1, 1, 3, 4], [0, 0, 0, 0]]), jnp.array([True, False])
    crop, visible = box_ops.crop(boxes, jnp.array([-2, -2, 5, 5]), mask)
    moved = [crop, box_ops.flip_lr(boxes, 9, mask), box_ops.flip_ud(boxes, 9, mask),
             box_ops.transform(boxes, jnp.array([[1, 0, 5], [0, 1, 5]]), mask)]
    assert all((x[0] != 0).any() and (x[1] == 0).all() for x in moved)
    np.testing.assert_array_equal(visible, [1, 0])


def test_boxes_outside_the_image_are_clipped_to_empty_ones():
    boxes = jnp.array([[-5, -5, 3, 20], [20, 2, 30, 4], [2, 3, 4, 5]])
    clipped = box_ops.clip(boxes, 8, 10)
    np.testing.assert_array_equal(clipped, [[0, 0, 3, 8], [10, 2, 10, 4], [2, 3, 4, 5]])
    np.testing.assert_array_equal(box_ops.area(clipped), [24, 0, 4])


def test_degenerate_boxes_have_finite_results_and_gradients():
    empty, box = jnp.array([[3.0, 3, 3, 3], [5, 5, 2, 9]]), jnp.array([[2.0, 2, 4, 4]])
    np.testing.assert_array_equal(box_ops.area(empty), [0, 0])
    np.testing.assert_array_equal(box_ops.iou(empty, jnp.concatenate([empty, box])), np.zeros((2, 3)))
    np.testing.assert_array_equal(box_ops.giou(empty[:1], empty[:1]), [[0]])
    np.testing.assert_array_equal(box_ops.encode(empty, box), np.zeros((2, 4)))
    np.testing.assert_array_equal(box_ops.encode(box, empty), np.zeros((2, 4)))
    np.testing.assert_array_equal(box_ops.crop(empty, jnp.array([0.0, 0, 9, 9]))[1], [0, 0])
    gradients = jax.jit(lambda *boxes: {
        f.__name__: jax.grad(lambda a, b, f=f: jnp.sum(f(a, b)), argnums=(0, 1))(*boxes)
        for f in (box_ops.iou, box_ops.giou, box_ops.encode, box_ops.decode)})(empty, jnp.broadcast_to(box, (2, 4)))
    assert all(np.isfinite(gradient).all() for gradient in jax.tree.leaves(gradients)), gradients
    assert np.isnan(box_ops.iou(box * jnp.nan, box)).all()
    nothing = jnp.zeros((0, 4))
    assert box_ops.iou(nothing, box).shape == (0, 1)
    assert box_ops.encode(nothing, nothing).shape == (0, 4)
