"""Crops of image files: which rectangle of an image is read, and the size to which it is resized.

Operations such as `random_resized_crop` act on an image file before its pixels are read. So only one resizing happens,
whatever the number of operations, and a JPEG file is decoded at the smallest scale that suffices.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxcnn.errors import UserError

# draws the crop of an image from random numbers, given the crop that the operations before have made
DrawCrop = Callable[[np.random.Generator, 'Crop'], 'Crop']


class Crop(NamedTuple):
    """A rectangle of an image, and the size to which it is resized.

    Attributes:
      top, left, height, width: the rectangle, in pixels of the image.
      size: the height and width of the result.
      limits: the rectangle (top, left, bottom, right) in whole pixels outside of which no pixel has an influence; None: the
        image. Without them, pixels just outside the rectangle contribute to those at its edges, as they do if a resized
        image is cropped.
    """

    top: float
    left: float
    height: float
    width: float
    size: tuple[int, int]
    limits: tuple[int, int, int, int] | None = None

    @classmethod
    def full(cls, height: int, width: int) -> 'Crop':
        """Return the crop that is all of an image."""
        return cls(0, 0, height, width, (height, width))

    def resize(self, height: int, width: int) -> 'Crop':
        """Return the crop resized to a height and a width."""
        return self._replace(size=(height, width))

    def resize_shorter(self, shorter: int) -> 'Crop':
        """Return the crop resized such that its shorter side has a length, and its proportions are kept."""
        old = min(self.size)
        height, width = (shorter * side // old for side in self.size)  # rounded down, as torchvision does
        return self.resize(height, width)

    def cut(self, top: int, left: int, height: int, width: int, limit: bool = False) -> 'Crop':
        """Return a rectangle of the result of this crop.

        Args:
          top, left, height, width: the rectangle, in pixels of the result.
          limit: whether pixels outside the rectangle have no influence if it is resized later.

        Raises:
          UserError: the rectangle is not within the result.
        """
        if not (0 <= top <= self.size[0] - height and 0 <= left <= self.size[1] - width):
            raise UserError(f'its {self.size[0]} x {self.size[1]} pixels are smaller than the crop, {height} x {width}',
                            hint='shorter_side(SIZE) or resize(SIZE) before the crop enlarges such images')
        scale_y, scale_x = self.height / self.size[0], self.width / self.size[1]
        crop = Crop(self.top + top * scale_y, self.left + left * scale_x, height * scale_y, width * scale_x, (height, width),
                    self.limits)
        if not limit:
            return crop
        return crop._replace(limits=(int(crop.top), int(crop.left), int(np.ceil(crop.top + crop.height)),
                                     int(np.ceil(crop.left + crop.width))))

    def smallest_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the smallest height and width at which an image can be decoded such that the crop is not enlarged."""
        return (min(height, int(np.ceil(height * self.size[0] / self.height))),
                min(width, int(np.ceil(width * self.size[1] / self.width))))

    def apply(self, image: np.ndarray, height: int, width: int) -> np.ndarray:
        """Return the rectangle of an image, resized by antialiased bilinear interpolation.

        Args:
          image: uint8 (H, W, C), the image, possibly decoded at a smaller scale.
          height, width: the size of the image at its full scale, to which the rectangle refers.

        Returns:
          uint8 (*size, C).
        """
        from PIL import Image
        scale_y, scale_x = image.shape[0] / height, image.shape[1] / width
        top, left, bottom, right = (self.top * scale_y, self.left * scale_x, (self.top + self.height) * scale_y,
                                    (self.left + self.width) * scale_x)
        if self.limits:
            rows = slice(round(self.limits[0] * scale_y), max(round(self.limits[2] * scale_y), 1))
            columns = slice(round(self.limits[1] * scale_x), max(round(self.limits[3] * scale_x), 1))
            image = image[rows, columns]
            top, left, bottom, right = top - rows.start, left - columns.start, bottom - rows.start, right - columns.start
        edges = (max(left, 0.0), max(top, 0.0), min(right, image.shape[1]), min(bottom, image.shape[0]))
        box = tuple(round(edge, 6) for edge in edges)  # without the rounding errors of the products
        if box == (round(box[0]), round(box[1]), round(box[0]) + self.size[1], round(box[1]) + self.size[0]):
            return np.ascontiguousarray(image[round(box[1]):round(box[3]), round(box[0]):round(box[2])])
        channels = image.shape[-1]
        squeezed = np.ascontiguousarray(image[..., 0] if channels == 1 else image)
        resized = Image.fromarray(squeezed).resize(self.size[::-1], Image.Resampling.BILINEAR, box)
        return np.asarray(resized).reshape(*self.size, channels)
