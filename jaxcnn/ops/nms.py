"""Non-maximum suppression (NMS) of boxes, and soft-NMS.

All functions have results of a fixed shape, can be compiled, and can be vmapped over images. Boxes are those of `ops.boxes`.
Boxes that are masked out, or that have a coordinate or a score that is not finite, are never selected and affect no other
box. Empty boxes overlap no other box. Where scores are equal, the box with the lower index comes first. The results of NMS
have no gradient.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.errors import unknown
from jaxcnn.ops import boxes as box_ops

SOFT_NMS_METHODS = 'linear', 'gaussian'


def tile_size() -> int:
    """Return the number of boxes that are compared at a time. It does not affect the results.

    XLA compiles a loop over at most 1,024 values (32 x 32) into one function on the CPU, which is ten times as fast as the
    loop that is used for more values.
    """
    return 32 if jax.default_backend() == 'cpu' else 512


class Selection(NamedTuple):
    """Boxes that were selected, in decreasing order of their scores.

    Attributes:
      indices: (max_outputs,) int32, indices of the boxes; 0 after the last one.
      mask: (max_outputs,), True for the boxes that were selected and False after the last one.
    """

    indices: jax.Array
    mask: jax.Array


class ScoredSelection(NamedTuple):
    """The result of soft-NMS: boxes in decreasing order of their scores after the decay.

    Attributes:
      indices: (max_outputs,) int32, indices of the boxes; 0 after the last one.
      scores: (max_outputs,), the scores after the decay; 0 after the last one.
      mask: (max_outputs,), True for the boxes that were selected and False after the last one.
    """

    indices: jax.Array
    scores: jax.Array
    mask: jax.Array


class _State(NamedTuple):
    """The state of NMS between tiles.

    Attributes:
      tile: number of tiles that are finished.
      selected: number of boxes that are selected.
      indices, boxes, labels: those of the selected boxes, with room for one more tile; boxes are (4, ...) and, after the
        selected ones, empty.
    """

    tile: jax.Array
    selected: jax.Array
    indices: jax.Array
    boxes: jax.Array
    labels: jax.Array


def _usable(boxes: jax.Array, scores: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Return the mask (N,) of the boxes that can be selected."""
    usable = jnp.isfinite(boxes).all(axis=-1) & jnp.isfinite(scores)
    return usable if mask is None else usable & mask


def _overlaps(boxes: jax.Array, labels: jax.Array, others: jax.Array, other_labels: jax.Array,
              threshold: float | jax.Array) -> jax.Array:
    """Return which pairs of boxes (4, N) and others (4, M) have the same label and an IoU above the threshold, (N, M)."""
    overlap = box_ops.iou_of_coordinates(boxes[:, :, None], others[:, None, :])
    return (overlap > threshold) & (labels[:, None] == other_labels)


def _fixpoint(suppresses: jax.Array, candidates: jax.Array) -> jax.Array:
    """Return the candidates that remain if each that remains suppresses others.

    The result of greedy NMS is the only mask for which a candidate remains exactly if no candidate that remains suppresses
    it. Each iteration makes at least one more position final, and in practice few iterations are needed.

    Args:
      suppresses: (T, T), whether the box of the row, which has the higher score, suppresses that of the column.
      candidates: (T,).
    """
    def iterate(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        remaining, _ = state
        updated = candidates & ~jnp.any(suppresses & remaining[:, None], axis=0)
        return updated, jnp.any(updated != remaining)
    return lax.while_loop(lambda state: state[1], iterate, (candidates, jnp.any(candidates)))[0]


def nms(boxes: jax.Array, scores: jax.Array, threshold: float | jax.Array, max_outputs: int,
        mask: jax.Array | None = None) -> Selection:
    """Select boxes greedily: the box with the highest score suppresses all that overlap it, and so on.

    The result is exact. Boxes are processed in the order of their scores, a tile at a time, and only until `max_outputs` are
    selected. The memory grows with the number of boxes, not with its square.

    Args:
      boxes: (N, 4).
      scores: (N,).
      threshold: a box is suppressed if its IoU with a selected one is greater than this; at least 0.
      max_outputs: number of boxes to select at most.
      mask: (N,), which boxes exist; by default all.
    """
    return nms_per_class(boxes, scores, jnp.zeros(jnp.shape(scores), jnp.int32), threshold, max_outputs, mask)


def nms_per_class(boxes: jax.Array, scores: jax.Array, labels: jax.Array, threshold: float | jax.Array, max_outputs: int,
                  mask: jax.Array | None = None) -> Selection:
    """Select boxes as `nms` does, where boxes suppress only those of their own class.

    The boxes of all classes compete for the `max_outputs` results. For a detector with boxes (N, classes, 4), flatten the
    boxes and their scores, and pass the class of each as its label.

    Args:
      boxes: (N, 4).
      scores: (N,).
      labels: (N,) integers, the classes.
      threshold: a box is suppressed if its IoU with a selected one of its class is greater than this; at least 0.
      max_outputs: number of boxes to select at most.
      mask: (N,), which boxes exist; by default all.
    """
    boxes, scores = lax.stop_gradient((box_ops.as_float(boxes), box_ops.as_float(scores)))
    usable = _usable(boxes, scores, mask)
    limit = min(max_outputs, len(boxes))
    if not limit:
        return Selection(jnp.zeros(max_outputs, jnp.int32), jnp.zeros(max_outputs, bool))
    select = functools.partial(_select, limit=limit)
    if jax.default_backend() == 'cpu':  # a loop over images, whose tiles remain small
        select = jax.custom_batching.sequential_vmap(select)
    indices, selected = select(boxes, scores, jnp.asarray(labels), usable, jnp.asarray(threshold, boxes.dtype))
    return Selection(jnp.pad(indices, (0, max_outputs - limit)), jnp.arange(max_outputs) < selected)


def _select(boxes: jax.Array, scores: jax.Array, labels: jax.Array, usable: jax.Array, threshold: jax.Array, *,
            limit: int) -> tuple[jax.Array, jax.Array]:
    """Return the indices (limit,) of the selected boxes, and their number. The arguments are those of `nms_per_class`."""
    tile = min(tile_size(), len(boxes))
    tiles = -(-len(boxes) // tile)
    order = jnp.argsort(jnp.where(usable, -scores, jnp.inf), stable=True).astype(jnp.int32)
    order = jnp.pad(order, (0, tiles * tile - len(boxes)))
    usable = usable[order] & (jnp.arange(len(order)) < len(boxes))
    boxes, labels = jnp.where(usable, boxes[order].T, 0), labels[order]
    is_before = jnp.arange(tile)[:, None] < jnp.arange(tile)

    def select_from_tile(state: _State) -> _State:
        tile_boxes, tile_labels, tile_usable, tile_order = (
            lax.dynamic_slice_in_dim(x, state.tile * tile, tile, axis=-1) for x in (boxes, labels, usable, order))

        def suppress(block: jax.Array, suppressed: jax.Array) -> jax.Array:
            selected, selected_labels = (
                lax.dynamic_slice_in_dim(x, block * tile, tile, axis=-1) for x in (state.boxes, state.labels))
            return suppressed | jnp.any(_overlaps(tile_boxes, tile_labels, selected, selected_labels, threshold), axis=1)

        suppressed = lax.fori_loop(0, (state.selected + tile - 1) // tile, suppress, jnp.zeros(tile, bool))
        suppresses = is_before & _overlaps(tile_boxes, tile_labels, tile_boxes, tile_labels, threshold)
        remaining = _fixpoint(suppresses, tile_usable & ~suppressed)
        ranks = jnp.argsort(~remaining, stable=True)  # the boxes that remain, then the others
        remaining = remaining[ranks]
        indices = jnp.where(remaining, tile_order[ranks], 0)
        selected_boxes = jnp.where(remaining, tile_boxes[:, ranks], 0)  # an empty box suppresses no other
        return _State(state.tile + 1, state.selected + jnp.sum(remaining, dtype=jnp.int32), *(
            lax.dynamic_update_slice_in_dim(before, new, state.selected, axis=-1) for before, new in (
                (state.indices, indices), (state.boxes, selected_boxes), (state.labels, tile_labels[ranks]))))

    size = -(-limit // tile) * tile + tile
    state = lax.while_loop(
        lambda state: (state.tile < tiles) & (state.selected < limit), select_from_tile,
        _State(jnp.int32(0), jnp.int32(0), jnp.zeros(size, jnp.int32), jnp.zeros((4, size), boxes.dtype),
               jnp.zeros(size, labels.dtype)))
    return state.indices[:limit], jnp.minimum(state.selected, limit)


def soft_nms(boxes: jax.Array, scores: jax.Array, max_outputs: int, method: str = 'gaussian', threshold: float = 0.3,
             sigma: float = 0.5, min_score: float = 0.001, labels: jax.Array | None = None,
             mask: jax.Array | None = None) -> ScoredSelection:
    """Select boxes one after another, and lower the scores of those that overlap them (Bodla et al. 2017, Soft-NMS).

    Args:
      boxes: (N, 4).
      scores: (N,), not negative.
      max_outputs: number of boxes to select at most.
      method: `linear` multiplies the scores of the boxes with an IoU above `threshold` by 1 - IoU. `gaussian` multiplies the
        scores of all boxes by exp(-IoU² / `sigma`).
      threshold: of `linear`.
      sigma: of `gaussian`.
      min_score: the selection ends when no score is greater than this.
      labels: (N,) integers, the classes; boxes then lower only the scores of their own class.
      mask: (N,), which boxes exist; by default all.
    """
    if method not in SOFT_NMS_METHODS:
        raise unknown('method of soft-NMS', method, SOFT_NMS_METHODS)
    boxes, scores = box_ops.as_float(boxes), box_ops.as_float(scores)
    if not len(boxes):
        return ScoredSelection(*(jnp.zeros(max_outputs, dtype) for dtype in (jnp.int32, scores.dtype, bool)))
    usable = _usable(boxes, scores, mask)
    boxes = jnp.where(usable, boxes.T, 0)
    positions, classes = jnp.arange(len(scores)), jnp.zeros(0) if labels is None else jnp.asarray(labels)

    def select(scores: jax.Array, _: None) -> tuple[jax.Array, ScoredSelection]:
        best = jnp.argmax(scores)
        score = scores[best]
        overlap = box_ops.iou_of_coordinates(boxes[:, best, None], boxes)
        if method == 'linear':
            decay = jnp.where(overlap > threshold, 1 - overlap, 1)
        else:
            decay = jnp.exp(-overlap ** 2 / sigma)
        if labels is not None:
            decay = jnp.where(classes == classes[best], decay, 1)
        is_selected = score > min_score
        is_candidate = (scores > -jnp.inf) & (positions != best)
        scores = jnp.where(is_candidate, scores * decay, -jnp.inf)
        return scores, ScoredSelection(jnp.where(is_selected, best, 0).astype(jnp.int32), jnp.where(is_selected, score, 0),
                                       is_selected)

    return lax.scan(select, jnp.where(usable, scores, -jnp.inf), length=max_outputs)[1]
