"""Boxes that are moved with the pixels of their image."""

import jax
import jax.numpy as jnp

from jaxcnn.data.augment.registry import Targets
from jaxcnn.data.targets import MIN_VISIBLE
from jaxcnn.ops import boxes as box_ops

_TOLERANCE = 1e-4  # of visible fractions, for the rounding of coordinates


def move_boxes(targets: Targets, matrix: jax.Array, size: tuple[int, int], min_visible: float = MIN_VISIBLE) -> Targets:
    """Return the boxes of an image whose pixels have been moved by an affine map, clipped to the new image.

    A box becomes the smallest box that encloses its image under the map. Boxes of which less than `min_visible` of the area
    is left in the image become difficult, as in images that are cropped when they are loaded: what is left of the object is
    neither an object to learn nor background, and detecting it is no mistake. Boxes and proposals wholly outside the image
    are dropped.

    If several maps follow each other, as the ops of a pipeline do, the fraction that is left is that of the area before the
    first map: the product of the fractions of the maps. It is handed on as the target `visible`.

    Dropped boxes are not valid and filled with zeros. The others stay at their positions in the arrays.

    Args:
      targets: the targets of one image, as in `data.targets.ObjectBoxes`: `boxes` (M, 4), `classes` (M,), `valid` (M,) and
        `difficult` (M,), or `proposals` (P, 4) and `proposal_valid` (P,), or all of them. After an earlier map there is
        `visible` (M,), too. Others are returned unchanged.
      matrix: (2, 3), maps the position (x, y, 1) of a point of the image to its new x and y.
      size: height and width of the new image.
      min_visible: fraction of the area of a box, in [0, 1].

    Returns:
      The targets, with `visible` (M,) if there are boxes: the fraction of the area of each box that is left, 0 for padding.
    """
    height, width = size
    image_box = jnp.array([0, 0, width, height], jnp.float32)

    def transform_and_clip(boxes: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
        return box_ops.crop(box_ops.transform(boxes, matrix, valid), image_box, valid)

    moved = dict(targets)
    if 'boxes' in targets:
        boxes, fraction = transform_and_clip(targets['boxes'], targets['valid'])
        visible, valid = targets.get('visible', 1) * fraction, fraction > 0
        difficult = targets['difficult'] | (visible < min_visible - _TOLERANCE)
        moved |= {'boxes': boxes, 'classes': jnp.where(valid, targets['classes'], 0), 'valid': valid,
                  'difficult': valid & difficult, 'visible': visible}
    if 'proposals' in targets:
        moved['proposals'], fraction = transform_and_clip(targets['proposals'], targets['proposal_valid'])
        moved['proposal_valid'] = fraction > 0
    return moved
