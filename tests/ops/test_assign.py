"""Assignment of anchors to boxes and sampling, against plain loops and torchvision's results."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.errors import UserError
from jaxcnn.ops.assign import match, sample
from jaxcnn.ops.boxes import anchors, iou

REFERENCE = np.load(pathlib.Path(__file__).with_name('detection_reference.npz'))


def match_by_hand(overlaps, kinds, usable, high, low, allow_low_quality):
    """Return indices and labels from the IoU (A, M) of anchors with boxes of the kinds `box`, `ignored` and `padding`."""
    objects = [j for j, kind in enumerate(kinds) if kind == 'box']
    best = {j: max((row[j] for row, can in zip(overlaps, usable, strict=True) if can), default=0) for j in objects}
    indices, labels = [], []
    for row, can in zip(overlaps, usable, strict=True):
        index = max(objects, key=lambda j: (row[j], -j)) if objects else 0
        largest = row[index] if objects else 0
        label = 1 if largest >= high else 0 if largest < low else -1
        if label == 0 and any(row[j] >= low for j, kind in enumerate(kinds) if kind == 'ignored'):
            label = -1
        if allow_low_quality and any(row[j] == best[j] > 0 for j in objects):
            label = 1
        indices.append(index if largest > 0 else 0)
        labels.append(label if can else -1)
    return indices, labels


@pytest.mark.parametrize('allow_low_quality', [False, True])
def test_matches_are_those_of_plain_loops_and_of_torchvision(allow_low_quality):
    """On a grid, several anchors have the same IoU with a box; boxes may be padding, ignored, or without any overlap."""
    grid = np.asarray(anchors(6, 6, 8, scales=(1, 2), ratios=(1,)))
    rng = np.random.default_rng(0)
    begin = 4 * rng.integers(0, 10, (6, 7, 2))
    boxes = np.concatenate([begin, begin + 4 * rng.integers(1, 5, (6, 7, 2))], axis=-1).astype(np.float32)
    boxes[:, 0] += 200
    kinds = rng.choice(['box', 'ignored', 'padding'], (6, 7), p=[0.6, 0.2, 0.2])
    kinds[0] = 'padding'
    usable = rng.uniform(size=(6, len(grid))) < 0.8
    matches = jax.jit(jax.vmap(lambda boxes, valid, ignored, usable: match(
        grid, boxes, valid, 0.4, 0.2, allow_low_quality, ignored, usable)))(
            boxes, kinds != 'padding', kinds == 'ignored', usable)
    overlaps = np.asarray(jax.vmap(lambda boxes: iou(grid, boxes))(boxes))
    num_labels = dict.fromkeys((-1, 0, 1), 0)
    for i in range(6):
        indices, labels = match_by_hand(overlaps[i], kinds[i], usable[i], 0.4, 0.2, allow_low_quality)
        np.testing.assert_array_equal(matches.labels[i], labels)
        np.testing.assert_array_equal(matches.indices[i], indices)
        np.testing.assert_allclose(matches.iou[i], np.where(kinds[i] == 'box', overlaps[i], 0).max(axis=1))
        num_labels = {label: num_labels[label] + np.sum(np.asarray(labels)[usable[i]] == label) for label in num_labels}
    assert min(num_labels.values()) > 10
    expected = REFERENCE[f'matches_{allow_low_quality}']
    matches = match(REFERENCE['anchors'], REFERENCE['boxes'], np.ones(5, bool), 0.6, 0.3, allow_low_quality)
    np.testing.assert_array_equal(jnp.where(matches.labels == 1, matches.indices, matches.labels - 1), expected)


def test_an_image_without_boxes_has_negative_anchors_only():
    for boxes in (np.zeros((0, 4)), np.zeros((3, 4))):
        matches = match(REFERENCE['anchors'], boxes, np.zeros(len(boxes), bool), 0.7, 0.3, True)
        assert not np.any(matches.labels)
        assert not np.any(matches.indices)
    with pytest.raises(UserError, match=r'high=0\.3 and low=0\.7'):
        match(REFERENCE['anchors'], np.zeros((1, 4)), np.ones(1, bool), 0.3, 0.7)


@pytest.mark.parametrize(('num_positive', 'num_negative', 'expected'), [
    (9, 20, (3, 9)), (2, 20, (2, 10)), (0, 20, (0, 12)), (9, 4, (3, 4)), (0, 0, (0, 0))])
def test_a_sample_is_a_random_subset_with_the_given_fraction_of_positives(num_positive, num_negative, expected):
    rng = np.random.default_rng(0)
    kinds = rng.permutation([1] * num_positive + [0] * num_negative + [-1] * 5)
    positive, negative = kinds == 1, kinds == 0
    draws = 400
    keys = jax.random.split(jax.random.key(0), draws)
    sampled = jax.jit(jax.vmap(lambda key: sample(key, positive, negative, 12, 0.3)))(keys)
    counts = np.zeros(len(kinds))
    for indices, is_positive, valid in zip(*map(np.asarray, sampled), strict=True):
        assert (is_positive.sum(), (valid & ~is_positive).sum()) == expected
        assert not np.any(is_positive & ~valid)
        assert positive[indices[is_positive]].all()
        assert negative[indices[valid & ~is_positive]].all()
        assert len(set(indices[valid])) == valid.sum()
        np.add.at(counts, indices[valid], 1)
    for mask, total, chosen in ((positive, num_positive, expected[0]), (negative, num_negative, expected[1])):
        if total:
            probability = chosen / total  # of the hypergeometric distribution, within five standard deviations
            deviation = np.sqrt(draws * probability * (1 - probability))
            assert np.all(np.abs(counts[mask] - draws * probability) <= 5 * deviation)
