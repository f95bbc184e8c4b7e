"""Rescaling of images of any size, and the crops that evaluation protocols cut from them.

Sizes and positions are rounded as in torchvision's `Resize` and `FiveCrop`, so that a network has the same figures in both.
Mirror images are those of the crops, as in the papers; torchvision's `TenCrop` crops the mirrored image, whose centre is
shifted by a pixel if the margin of the width is odd.
"""

import numpy as np

from jaxcnn.data.resizing import resize
from jaxcnn.errors import UserError


def resize_shorter_side(image: np.ndarray, length: int, multiple: int = 1) -> np.ndarray:
    """Resize an image by antialiased bilinear interpolation such that its shorter side has a length in pixels.

    Args:
      image: uint8 (H, W, C).
      length: the new length of the shorter side. The longer one is rounded down.
      multiple: the longer side is then rounded to a multiple of this number of pixels.
    """
    height, width = image.shape[:2]
    longer = length * max(height, width) // min(height, width)
    longer = max(length, round(longer / multiple) * multiple)
    return resize(image, (longer, length) if height > width else (length, longer), 'squash')


def center_crop(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the central crop of a height and a width, (1, h, w, C); half a pixel is rounded to the even position."""
    margins = _margins(image, size)
    return _cut(image, size, [(round(margins[0] / 2), round(margins[1] / 2))])


def five_crops(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the crops of the four corners and of the centre, (5, h, w, C)."""
    bottom, right = _margins(image, size)
    corners = _cut(image, size, [(0, 0), (0, right), (bottom, 0), (bottom, right)])
    return np.concatenate([corners, center_crop(image, size)])


def grid_crops(image: np.ndarray, size: tuple[int, int], count: int) -> np.ndarray:
    """Return the crops at the positions of a regular grid of `count` rows and columns, (count * count, h, w, C).

    The outermost crops touch the borders of the image; a grid of a single position is the centre.
    """
    if count == 1:
        return center_crop(image, size)
    tops, lefts = ([margin * i // (count - 1) for i in range(count)] for margin in _margins(image, size))
    return _cut(image, size, [(top, left) for top in tops for left in lefts])


def _margins(image: np.ndarray, size: tuple[int, int]) -> tuple[int, int]:
    """Return by how many pixels the image is higher and wider than a crop."""
    margins = image.shape[0] - size[0], image.shape[1] - size[1]
    if min(margins) < 0:
        raise UserError(f'an image of {image.shape[0]} x {image.shape[1]} pixels is smaller than the crop of {size[0]} x '
                        f'{size[1]}', hint='enlarge the scale')
    return margins


def _cut(image: np.ndarray, size: tuple[int, int], positions: list[tuple[int, int]]) -> np.ndarray:
    return np.stack([image[top:top + size[0], left:left + size[1]] for top, left in positions])
