"""Boxes that are moved with the pixels of their image."""

import jax
import jax.numpy as jnp

from jaxcnn.data.augment.registry import Targets
from jaxcnn.data.targets import MIN_VISIBLE
from jaxcnn.ops import boxes as box_ops

_TOLERANCE = 1e-4  # of visible fractions, for the rounding of coordinates


def move_boxes(targets: Targets, matrix: jax.Array, size: tuple[int, int], train: bool,
               min_visible: float = MIN_VISIBLE) -> Targets:
    """Return the boxes of an image whose pixels have been moved by an affine map, clipped to the new image.

    A box becomes the smallest box that encloses its image under the map. Training drops boxes of which less than
    `min_visible` of the area is left in the image. In evaluation they become difficult, as in images that are cropped when
    they are loaded, so that a detection of what is left of the object is no mistake. Boxes wholly outside the image are
    dropped in both cases. Proposals are dropped only if nothing is left of them.

    Dropped boxes are not valid and filled with zeros. The others stay at their positions in the arrays.

    Args:
      targets: the targets of one image, as in `data.targets.ObjectBoxes`: `boxes` (M, 4), `classes` (M,), `valid` (M,) and
        `difficult` (M,), or `proposals` (P, 4) and `proposal_valid` (P,), or all of them. Others are returned unchanged.
      matrix: (2, 3), maps the position (x, y, 1) of a point of the image to its new x and y.
      size: height and width of the new image.
      train: whether the image is for training; otherwise, it is for evaluation.
      min_visible: fraction of the area of a box, in [0, 1].
    """
    height, width = size
    image_box = jnp.array([0, 0, width, height], jnp.float32)

    def transform_and_clip(boxes: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
        return box_ops.crop(box_ops.transform(boxes, matrix, valid), image_box, valid)

    moved = dict(targets)
    if 'boxes' in targets:
        boxes, visible = transform_and_clip(targets['boxes'], targets['valid'])
        is_clear = visible >= min_visible - _TOLERANCE
        valid = (visible > 0) & is_clear if train else visible > 0
        difficult = targets['difficult'] if train else targets['difficult'] | ~is_clear
        moved |= {'boxes': jnp.where(valid[:, None], boxes, 0), 'classes': jnp.where(valid, targets['classes'], 0),
                  'valid': valid, 'difficult': valid & difficult}
    if 'proposals' in targets:
        moved['proposals'], visible = transform_and_clip(targets['proposals'], targets['proposal_valid'])
        moved['proposal_valid'] = visible > 0
    return moved
