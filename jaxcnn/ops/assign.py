"""Assignment of anchors or proposals to the boxes of an image, and sampling of those that enter the loss.

The functions are for one image and have results of fixed shape; use `jax.vmap` for a batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.errors import UserError
from jaxcnn.ops.boxes import coordinates, iou_of_coordinates

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


class Assignment(NamedTuple):
    """What each anchor is assigned to.

    Attributes:
      indices: (A,) int32, the box with the largest IoU, the first of several; 0 for an image without boxes.
      labels: (A,) int32, POSITIVE (1), NEGATIVE (0) or IGNORED (-1).
      iou: (A,), the IoU with that box; 0 for an image without boxes.
    """

    indices: jax.Array
    labels: jax.Array
    iou: jax.Array


def match(anchors: jax.Array, boxes: jax.Array, valid: jax.Array, high: float, low: float, allow_low_quality: bool = False,
          ignored_boxes: jax.Array | None = None, usable: jax.Array | None = None) -> Assignment:
    """Assign each anchor to the box with which it overlaps most (Ren et al. 2015, Faster R-CNN).

    An anchor is positive if this IoU is at least `high`, negative if it is below `low`, and otherwise ignored. In an image
    without boxes, all anchors are negative.

    Args:
      anchors: (A, 4).
      boxes: (M, 4).
      valid: (M,), which boxes exist.
      high: smallest IoU of a positive anchor; 0.7 for the paper's anchors and 0.5 for its proposals.
      low: IoU below which an anchor is negative; 0.3 and 0.5.
      allow_low_quality: the anchor whose IoU with a box is the largest is positive, too, and so are others with the same
        IoU. They are assigned to the box with which they overlap most, as in the authors' code. Anchors that do not overlap
        with the box do not count.
      ignored_boxes: (M,), which boxes are no objects to learn, such as difficult ones. No anchor is assigned to them, and
        an anchor that would be negative is ignored if its IoU with one of them is at least `low`.
      usable: (A,), which anchors take part, such as those inside the image; the others are ignored.

    Raises:
      UserError: `high` is below `low`.
    """
    if high < low:
        raise UserError(f'the IoU of positive anchors must be at least that of negative ones, got high={high} and low={low}')
    anchor_coordinates, count = coordinates(anchors), len(anchors)
    is_usable = jnp.ones(count, bool) if usable is None else usable
    ignored = jnp.zeros(len(boxes), bool) if ignored_boxes is None else ignored_boxes

    def add(carry: tuple, box: tuple) -> tuple[tuple, None]:
        largest, indices, is_best, largest_ignored = carry
        index, box_coordinates, exists, is_ignored = box
        # The barrier keeps XLA from computing the IoU twice, rounded differently, where it is compared with the largest.
        iou = lax.optimization_barrier(iou_of_coordinates(box_coordinates[:, None], anchor_coordinates))
        iou = jnp.where(exists, iou, 0)
        overlap = jnp.where(is_ignored, 0, iou)
        candidates = jnp.where(is_usable, overlap, 0)
        best = candidates.max(initial=0)
        return (jnp.maximum(largest, overlap), jnp.where(overlap > largest, index, indices),
                is_best | ((candidates == best) & (best > 0)),
                jnp.maximum(largest_ignored, jnp.where(is_ignored, iou, 0))), None

    # A loop over the boxes, with A values at a time, is several times as fast on the CPU as operations on all M x A pairs.
    zeros = jnp.zeros(count, anchor_coordinates.dtype)
    start = zeros, jnp.zeros(count, jnp.int32), jnp.zeros(count, bool), zeros
    largest, indices, is_best, largest_ignored = lax.scan(
        add, start, (jnp.arange(len(boxes), dtype=jnp.int32), coordinates(boxes).T, valid, ignored))[0]
    labels = jnp.where(largest >= high, POSITIVE, jnp.where(largest < low, NEGATIVE, IGNORED))
    if ignored_boxes is not None:
        labels = jnp.where((labels == NEGATIVE) & (largest_ignored >= low), IGNORED, labels)
    if allow_low_quality:
        labels = jnp.where(is_best, POSITIVE, labels)
    return Assignment(indices, jnp.where(is_usable, labels, IGNORED).astype(jnp.int32), largest)


class Sampled(NamedTuple):
    """A random subset of anchors or proposals, the positive ones first.

    Attributes:
      indices: (count,) int32; 0 where `valid` is False.
      is_positive: (count,) bool.
      valid: (count,) bool; False where there are too few to choose from.
    """

    indices: jax.Array
    is_positive: jax.Array
    valid: jax.Array


def sample(key: jax.Array, positive: jax.Array, negative: jax.Array, count: int, positive_fraction: float) -> Sampled:
    """Choose anchors or proposals for the loss at random and without replacement (Ren et al. 2015, Faster R-CNN).

    Up to `count * positive_fraction` of them, rounded down, are positive, and the others negative. If there are fewer
    positive ones, there are more negative ones, but not the other way round.

    Args:
      key: random key.
      positive: (A,) bool, the positive candidates.
      negative: (A,) bool, the negative ones.
      count: number of anchors or proposals; the paper has 256 anchors, half of them positive, and Fast R-CNN 64 proposals
        per image, a quarter of them positive.
      positive_fraction: largest fraction of positive ones.
    """
    # The priorities are distinct but for a probability of about A ** 2 / 2 ** 24, and top_k is fast for float32 only.
    priorities = jax.random.uniform(key, positive.shape)

    def choose(candidates: jax.Array, most: int) -> tuple[jax.Array, jax.Array]:
        """Return indices (count,) of random candidates, of which the first ones are meant, and their number."""
        most = min(most, len(candidates))
        indices = lax.top_k(jnp.where(candidates, priorities, -1), most)[1]
        return jnp.pad(indices, (0, count - most)), jnp.minimum(candidates.sum(), most)

    positives, num_positives = choose(positive, int(count * positive_fraction))
    negatives, num_negatives = choose(negative, count)
    slot = jnp.arange(count)
    is_positive = slot < num_positives
    valid = slot < num_positives + num_negatives
    following = jnp.take(negatives, slot - num_positives, mode='clip')
    indices = jnp.where(is_positive, positives, following)
    return Sampled(jnp.where(valid, indices, 0).astype(jnp.int32), is_positive, valid)
