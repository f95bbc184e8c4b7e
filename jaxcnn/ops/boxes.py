"""Boxes of objects: areas, overlaps, regression targets, geometric maps and anchors.

Boxes are `x0, y0, x1, y1` along the last axis, in pixels. Coordinates are those of the edges of pixels: an image is the box
`0, 0, width, height`, and a box of one pixel is 1 wide. A box with `x1 <= x0` or `y1 <= y0` is empty and has an area of 0.
Integer boxes are converted to float32, and narrower floating-point types are computed in float32.

The number of boxes of an image is fixed by padding with zeros, beside a mask of the boxes that exist. Functions that move
boxes take this mask and return zeros for the padding.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.errors import UserError, unknown

MAX_LOG_SCALE = math.log(1000 / 16)
ANCHOR_CONVENTIONS = 'paper', 'torchvision'


def as_float(boxes: jax.Array) -> jax.Array:
    """Convert boxes, scores or features to floating-point numbers of at least 32 bits."""
    boxes = jnp.asarray(boxes)
    return boxes.astype(jnp.promote_types(boxes.dtype, jnp.float32))


def _zero_padding(boxes: jax.Array, mask: jax.Array | None) -> jax.Array:
    return boxes if mask is None else jnp.where(mask[..., None], boxes, 0)


def _area(x0: jax.Array, y0: jax.Array, x1: jax.Array, y1: jax.Array) -> jax.Array:
    return jnp.maximum(x1 - x0, 0) * jnp.maximum(y1 - y0, 0)


def area(boxes: jax.Array) -> jax.Array:
    """Return the areas (...) of boxes (..., 4). Empty boxes have an area of 0."""
    return _area(*coordinates(boxes))


def coordinates(boxes: jax.Array) -> jax.Array:
    """Return the coordinates (4, ...) of boxes (..., 4) as floating-point numbers of at least 32 bits."""
    return jnp.moveaxis(as_float(boxes), -1, 0)


def _pairs(a: jax.Array, b: jax.Array, aligned: bool) -> tuple[jax.Array, jax.Array]:
    a, b = coordinates(a), coordinates(b)
    return (a, b) if aligned else (a[..., :, None], b[..., None, :])


def _intersection_and_union(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    intersection = _area(jnp.maximum(a[0], b[0]), jnp.maximum(a[1], b[1]), jnp.minimum(a[2], b[2]), jnp.minimum(a[3], b[3]))
    return intersection, _area(*a) + _area(*b) - intersection


def _ratio(part: jax.Array, total: jax.Array) -> jax.Array:
    """Return `part / total`, or 0 with a gradient of 0 where `total` is 0."""
    return part / jnp.where(total == 0, 1, total)


def iou(a: jax.Array, b: jax.Array, aligned: bool = False) -> jax.Array:
    """Return the intersection over union (IoU) of boxes.

    It is 0 if both boxes are empty, and NaN if a coordinate is NaN.

    Args:
      a: (..., N, 4).
      b: (..., M, 4).
      aligned: compare each box of `a` only with the box at the same position of `b`; both are then (..., 4).

    Returns:
      (..., N, M) for all pairs, or (...) with `aligned`.
    """
    return iou_of_coordinates(*_pairs(a, b, aligned))


def iou_of_coordinates(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the IoU of boxes whose coordinates (4, ...) are broadcast against each other.

    XLA computes it several times as fast as the IoU of boxes whose coordinates are side by side in memory.
    """
    return _ratio(*_intersection_and_union(a, b))


def giou(a: jax.Array, b: jax.Array, aligned: bool = False) -> jax.Array:
    """Return the generalised IoU (Rezatofighi et al. 2019), between -1 and 1.

    It is the IoU minus the fraction of the smallest enclosing box that the union does not cover, so it has a gradient also
    where boxes do not overlap. The arguments and the shape of the result are those of `iou`.
    """
    a, b = _pairs(a, b, aligned)
    intersection, union = _intersection_and_union(a, b)
    hull = _area(jnp.minimum(a[0], b[0]), jnp.minimum(a[1], b[1]), jnp.maximum(a[2], b[2]), jnp.maximum(a[3], b[3]))
    return _ratio(intersection, union) - _ratio(hull - union, hull)


def clip(boxes: jax.Array, height: float | jax.Array, width: float | jax.Array) -> jax.Array:
    """Clip boxes (..., 4) to an image. A box outside the image becomes empty."""
    return jnp.clip(as_float(boxes), 0, jnp.stack([jnp.asarray(side, jnp.float32) for side in (width, height) * 2], axis=-1))


def _centers_and_sides(boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]


def encode(boxes: jax.Array, anchors: jax.Array, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> jax.Array:
    """Return the regression targets that `decode` maps to `boxes` (Girshick et al. 2014, R-CNN).

    The targets are the distances of the centres, divided by the width and the height of the anchor, and the logarithms of
    the ratios of the widths and of the heights. They are all 0 where the box or the anchor is empty.

    Args:
      boxes: (..., 4).
      anchors: (..., 4): the anchors, or the proposals, from which the boxes are predicted.
      weights: factors of the four targets. Fast R-CNN divides targets by the standard deviations 0.1, 0.1, 0.2, 0.2, which
        are the weights 10, 10, 5, 5.

    Returns:
      (..., 4): x, y, log width and log height.
    """
    centers, sides = _centers_and_sides(as_float(boxes))
    anchor_centers, anchor_sides = _centers_and_sides(as_float(anchors))
    exists = (jnp.minimum(sides, anchor_sides) > 0).all(axis=-1, keepdims=True)
    sides, anchor_sides = jnp.where(exists, sides, 1), jnp.where(exists, anchor_sides, 1)
    targets = jnp.concatenate([(centers - anchor_centers) / anchor_sides, jnp.log(sides / anchor_sides)], axis=-1)
    return jnp.where(exists, targets * jnp.asarray(weights, targets.dtype), 0)


def decode(targets: jax.Array, anchors: jax.Array, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
           max_log_scale: float = MAX_LOG_SCALE) -> jax.Array:
    """Return the boxes that are predicted by regression targets; the inverse of `encode`.

    Args:
      targets: (..., 4).
      anchors: (..., 4).
      weights: those of `encode`.
      max_log_scale: largest logarithm of a ratio of sides, which avoids an overflow of the exponential. The default, that of
        Detectron and torchvision, is the scale of an object of 1000 pixels from an anchor of 16.

    Returns:
      (..., 4). The boxes may reach over the image; see `clip`.
    """
    targets = as_float(targets)
    targets = targets / jnp.asarray(weights, targets.dtype)
    centers, sides = _centers_and_sides(as_float(anchors))
    centers = centers + targets[..., :2] * sides
    half_sides = jnp.exp(jnp.minimum(targets[..., 2:], max_log_scale)) * sides / 2
    return jnp.concatenate([centers - half_sides, centers + half_sides], axis=-1)


def flip_lr(boxes: jax.Array, width: float | jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Mirror boxes (..., 4) with an image of that width from left to right."""
    x0, y0, x1, y1 = coordinates(boxes)
    return _zero_padding(jnp.stack([width - x1, y0, width - x0, y1], axis=-1), mask)


def flip_ud(boxes: jax.Array, height: float | jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Mirror boxes (..., 4) with an image of that height from top to bottom."""
    x0, y0, x1, y1 = coordinates(boxes)
    return _zero_padding(jnp.stack([x0, height - y1, x1, height - y0], axis=-1), mask)


def transform(boxes: jax.Array, matrix: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Return the smallest boxes that enclose the images of boxes under an affine map.

    Args:
      boxes: (..., 4). Empty boxes must not have negative sides.
      matrix: (2, 3), or (3, 3) with a last row of 0, 0, 1. It maps (x, y, 1) to the new x and y.
      mask: (...), which boxes exist.
    """
    boxes = as_float(boxes)
    corners = boxes[..., jnp.asarray([[0, 1], [0, 3], [2, 1], [2, 3]])]  # (..., corner, 2)
    matrix = jnp.asarray(matrix, boxes.dtype)
    corners = sum(corners[..., axis, None] * matrix[:2, axis] for axis in range(2)) + matrix[:2, 2]
    return _zero_padding(jnp.concatenate([corners.min(axis=-2), corners.max(axis=-2)], axis=-1), mask)


def crop(boxes: jax.Array, window: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Return boxes relative to a window of the image, clipped to it, and the fraction of each that is visible.

    Args:
      boxes: (..., 4).
      window: (4,): `x0, y0, x1, y1` of the crop, which may reach over the image.
      mask: (...), which boxes exist.

    Returns:
      The boxes (..., 4), with zeros for those outside the window, and the visible fractions (...) of their areas, which are
      0 for empty boxes and for the padding.
    """
    boxes, window = as_float(boxes), as_float(window)
    origin = jnp.concatenate([window[:2]] * 2)
    clipped = jnp.clip(boxes, origin, jnp.concatenate([window[2:]] * 2))
    visible = _ratio(area(clipped), area(boxes))
    if mask is not None:
        visible = jnp.where(mask, visible, 0)
    return _zero_padding(clipped - origin, visible > 0), visible


def base_anchors(stride: int, scales: Sequence[float] = (8, 16, 32), ratios: Sequence[float] = (0.5, 1, 2),
                 convention: str = 'paper') -> np.ndarray:
    """Return the anchors (len(ratios) * len(scales), 4) of the first position of a feature map; see `anchors`."""
    if convention not in ANCHOR_CONVENTIONS:
        raise unknown('convention of anchors', convention, ANCHOR_CONVENTIONS)
    if not len(scales) or not len(ratios) or min(*scales, *ratios, stride) <= 0:
        raise UserError(f'anchors need a stride, scales and ratios above 0, got {stride}, {scales} and {ratios}')
    scale, ratio = np.asarray(scales, np.float64), np.asarray(ratios, np.float64)[:, None]
    if convention == 'paper':
        widths = np.round(stride / np.sqrt(ratio))
        sides = np.stack([widths * scale, np.round(widths * ratio) * scale], axis=-1).reshape(-1, 2)
        center, half_sides = stride / 2, sides / 2
    else:
        sides = np.stack([stride * scale / np.sqrt(ratio), stride * scale * np.sqrt(ratio)], axis=-1).reshape(-1, 2)
        center, half_sides = 0.0, np.round(sides / 2)
    return np.concatenate([center - half_sides, center + half_sides], axis=-1).astype(np.float32)


def anchors(height: int, width: int, stride: int, scales: Sequence[float] = (8, 16, 32),
            ratios: Sequence[float] = (0.5, 1, 2), convention: str = 'paper') -> jax.Array:
    """Return the anchors of all positions of a feature map (Ren et al. 2015, Faster R-CNN).

    With the defaults and a stride of 16 they are the paper's nine, with areas near 128², 256² and 512².

    Args:
      height: height of the feature map.
      width: width of the feature map.
      stride: distance of its positions in pixels of the image.
      scales: sides of the square anchors, as multiples of the stride.
      ratios: heights of anchors over their widths; all anchors of a scale have about the same area.
      convention: `paper` is that of the authors' code: anchors are centred on the cells of the feature map, and the sides
        of each ratio are rounded before they are multiplied by the scale. (The last pixel of the authors' boxes is inside
        them, so their x1 and y1 are less by 1.) `torchvision` centres anchors on the upper left corners of the cells, and
        rounds half of each side.

    Returns:
      (height * width * len(ratios) * len(scales), 4), in the order of the axes (height, width, ratio, scale).
    """
    y, x = np.meshgrid(np.arange(height) * stride, np.arange(width) * stride, indexing='ij')
    shifts = np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4).astype(np.float32)
    return jnp.asarray((shifts + base_anchors(stride, scales, ratios, convention)).reshape(-1, 4))
