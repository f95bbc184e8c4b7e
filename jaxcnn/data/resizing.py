"""Resizing images to the size of the data set, and the maps of boxes that belong to it."""

from typing import NamedTuple

import numpy as np

PADDING = 128  # the value of all channels of the border that the mode `pad` adds


class _Region(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """The rows and the columns of the region."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


class Resizing(NamedTuple):
    """How an image is resized: its region `source` fills the region `target` of the result.

    Attributes:
      source: the region of the image that is used.
      target: the region of the result that it fills. The rest is padding.
      shape: height and width of the result.
    """

    source: _Region
    target: _Region
    shape: tuple[int, int]

    @classmethod
    def between(cls, old_shape: tuple[int, int], shape: tuple[int, int], mode: str) -> 'Resizing':
        """Return how an image is resized.

        Args:
          old_shape: the height and width of the image.
          shape: the new height and width.
          mode: `crop` takes the largest central part with the aspect ratio of `shape`; `squash` changes the aspect ratio;
            `pad` keeps the aspect ratio of the image, and centres it between two grey borders.
        """
        height, width = shape
        old_height, old_width = old_shape
        source, target = _Region(0, 0, *old_shape), _Region(0, 0, *shape)
        if mode == 'crop':
            scale = min(old_height / height, old_width / width)
            source = _centred(max(1, round(scale * height)), max(1, round(scale * width)), old_shape)
        elif mode == 'pad':
            scale = min(height / old_height, width / old_width)
            target = _centred(max(1, round(scale * old_height)), max(1, round(scale * old_width)), shape)
        return cls(source, target, shape)

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Resize an image, uint8 (H, W, C), by antialiased bilinear interpolation."""
        from PIL import Image
        image = image[self.source.slices]
        height, width, channels = self.target.height, self.target.width, image.shape[-1]
        if image.shape[:2] != (height, width):
            squeezed = image[..., 0] if channels == 1 else image
            resized = np.asarray(Image.fromarray(squeezed).resize((width, height), Image.Resampling.BILINEAR))
            image = resized.reshape(height, width, channels)
        if self.shape == (height, width):
            return image
        padded = np.full((*self.shape, channels), PADDING, np.uint8)
        padded[self.target.slices] = image
        return padded

    def map_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Return boxes (..., 4), `x0, y0, x1, y1` in pixels of the image, in pixels of the result. They are not clipped."""
        return _map_boxes(boxes, self.source, self.target)

    def map_boxes_back(self, boxes: np.ndarray) -> np.ndarray:
        """Return boxes (..., 4), in pixels of the result, in pixels of the image.

        They are clipped to the part of the image that the result shows.
        """
        left, top, right, bottom = (self.source.left, self.source.top, self.source.left + self.source.width,
                                    self.source.top + self.source.height)
        return np.clip(_map_boxes(boxes, self.target, self.source), [left, top] * 2, [right, bottom] * 2)


def _map_boxes(boxes: np.ndarray, source: _Region, target: _Region) -> np.ndarray:
    """Return boxes (..., 4) after the region `source` is moved and scaled to the region `target`."""
    scale = np.array([target.width / source.width, target.height / source.height])
    corners = boxes.reshape(*boxes.shape[:-1], 2, 2) - [source.left, source.top]
    return (np.array([target.left, target.top]) + corners * scale).reshape(boxes.shape)


def _centred(height: int, width: int, shape: tuple[int, int]) -> _Region:
    """Return the region of a height and a width in the centre of an image of the given shape."""
    return _Region((shape[0] - height) // 2, (shape[1] - width) // 2, height, width)


def resize(image: np.ndarray, shape: tuple[int, int], mode: str) -> np.ndarray:
    """Resize an image by antialiased bilinear interpolation.

    Args:
      image: uint8 (H, W, C).
      shape: the new height and width.
      mode: `crop`, `squash` or `pad`; see `Resizing.between`.

    Returns:
      uint8 (height, width, C).
    """
    return Resizing.between(image.shape[:2], shape, mode).apply(image)
