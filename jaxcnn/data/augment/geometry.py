"""Ops that move pixels: padding, crops, flips and resizing. Each returns its affine map with the image.

Coordinates are in pixels from the upper left corner, and the centre of the first pixel is at 0.5, as in PIL and torchvision.
Resizing is bilinear, and antialiased where the image becomes smaller.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.config.arguments import check_choice, check_number, check_range, check_whole_number
from jaxcnn.data.augment.registry import ByEpoch, Geometric, Transformed, register
from jaxcnn.data.crops import Crop
from jaxcnn.errors import UserError

PADDING_MODES = ('constant', 'reflect', 'edge', 'symmetric')


def _pad(image: jax.Array, pixels: int, mode: str) -> jax.Array:
    return jnp.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)), mode=mode)


def _size(op: str, size: int, width: int | None) -> tuple[int, int]:
    """Return the height and the width that the arguments of an op mean.

    Raises:
      UserError: one of them is no whole number of at least 1.
    """
    check_whole_number(op, size=size)
    if width is None:
        return size, size
    check_whole_number(op, width=width)
    return size, width


def _check_image_size(op: str, image: jax.Array, size: int, width: int | None) -> None:
    """Raise a UserError for an image that is smaller than the crop."""
    if image.shape[0] < size or image.shape[1] < (width or size):
        raise UserError(f'images of {image.shape[0]} x {image.shape[1]} are smaller than {size} x {width or size}',
                        field=f'{op}({size}{f", {width}" if width else ""})')


def _matrix(scale_x: Any = 1.0, scale_y: Any = 1.0, x: Any = 0.0, y: Any = 0.0) -> jax.Array:
    """Return the matrix (2, 3) that scales positions and then translates them by x and y."""
    scale_x, scale_y, x, y = (jnp.asarray(value, jnp.float32) for value in (scale_x, scale_y, x, y))
    zero = jnp.zeros(())
    return jnp.stack([jnp.stack([scale_x, zero, x]), jnp.stack([zero, scale_y, y])])


def _centre(size: tuple[int, ...], crop_size: tuple[int, int]) -> tuple[int, int]:
    """Return the top and the left of the central crop; half a pixel is rounded to the even one, as in torchvision."""
    return round((size[0] - crop_size[0]) / 2), round((size[1] - crop_size[1]) / 2)


def _cut_at_random(rng: np.random.Generator, crop: Crop, size: tuple[int, int], limit: bool = False) -> Crop:
    """Return a rectangle of a crop, of the given height and width, at a uniformly drawn position; see `Crop.cut`."""
    top, left = (int(rng.integers(0, max(side - new_side, 0) + 1)) for side, new_side in zip(crop.size, size, strict=True))
    return crop.cut(top, left, *size, limit=limit)


def _crop(image: jax.Array, top: jax.Array | int, left: jax.Array | int, height: int, width: int) -> jax.Array:
    return jax.lax.dynamic_slice(image, (top, left, 0), (height, width, image.shape[-1]))


@register(deterministic=True)
def pad(pixels: int, mode: str = 'constant') -> Geometric:
    """Pad each side.

    Args:
      pixels: width of the padding, at least 1.
      mode: `constant` (black), `reflect`, `edge` or `symmetric`, as in `jnp.pad`.
    """
    check_whole_number('pad', pixels=pixels)
    check_choice('pad', PADDING_MODES, mode=mode)
    return Geometric(lambda key, image: Transformed(_pad(image, pixels, mode), _matrix(x=pixels, y=pixels)))


@register
def pad_crop(pad: int, mode: str = 'constant') -> Geometric:
    """Pad each side, then crop the original size at a uniformly drawn position (He et al. 2015, section 4.2).

    Args:
      pad: width of the padding in pixels, at least 1.
      mode: `constant` (black), `reflect`, `edge` or `symmetric`, as in `jnp.pad`.
    """
    check_whole_number('pad_crop', pad=pad)
    check_choice('pad_crop', PADDING_MODES, mode=mode)

    def apply(key: jax.Array, image: jax.Array) -> Transformed:  # (H, W, C)
        top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1)
        return Transformed(_crop(_pad(image, pad, mode), top, left, *image.shape[:2]), _matrix(x=pad - left, y=pad - top))
    return Geometric(apply)


@register
def random_crop(size: int, width: int | None = None) -> Geometric:
    """Crop `size` x `size` pixels at a uniformly drawn position (Krizhevsky et al. 2012, section 4.1).

    Args:
      size: side of the crop in pixels, at least 1.
      width: width of the crop, at least 1, if it is not square; `size` is its height then.
    """
    crop_size = _size('random_crop', size, width)

    def apply(key: jax.Array, image: jax.Array) -> Transformed:
        _check_image_size('random_crop', image, size, width)
        top, left = jax.random.randint(key, (2,), 0, jnp.array(image.shape[:2]) - jnp.array(crop_size) + 1)
        return Transformed(_crop(image, top, left, *crop_size), _matrix(x=-left, y=-top))
    return Geometric(apply, lambda rng, crop: _cut_at_random(rng, crop, crop_size))


@register(deterministic=True)
def center_crop(size: int, width: int | None = None) -> Geometric:
    """Crop `size` x `size` pixels from the centre. Half a pixel is rounded to the even one, as in torchvision and in
    `jaxcnn evaluate --protocol=center`.

    Args:
      size: side of the crop in pixels, at least 1.
      width: width of the crop, at least 1, if it is not square; `size` is its height then.
    """
    crop_size = _size('center_crop', size, width)

    def apply(key: jax.Array, image: jax.Array) -> Transformed:
        _check_image_size('center_crop', image, size, width)
        top, left = _centre(image.shape[:2], crop_size)
        return Transformed(_crop(image, top, left, *crop_size), _matrix(x=-left, y=-top))
    return Geometric(apply, lambda rng, crop: crop.cut(*_centre(crop.size, crop_size), *crop_size))


@register(deterministic=True)
def resize(size: int, width: int | None = None) -> Geometric:
    """Resize images to `size` x `size` pixels, without keeping their proportions.

    Args:
      size: side of the result in pixels, at least 1.
      width: width of the result, at least 1, if it is not square; `size` is its height then.
    """
    new_height, new_width = _size('resize', size, width)

    def apply(key: jax.Array, image: jax.Array) -> Transformed:
        resized = jax.image.resize(image, (new_height, new_width, image.shape[-1]), 'linear', antialias=True)
        return Transformed(resized, _matrix(new_width / image.shape[1], new_height / image.shape[0]))
    return Geometric(apply, lambda rng, crop: crop.resize(new_height, new_width))


@register(deterministic=True)
def shorter_side(size: int) -> Geometric:
    """Resize images such that their shorter side has `size` pixels, and keep their proportions.

    Args:
      size: the shorter side of the result in pixels, at least 1.
    """
    check_whole_number('shorter_side', size=size)

    def apply(key: jax.Array, image: jax.Array) -> Transformed:
        return resize(*Crop.full(*image.shape[:2]).resize_shorter(size).size).apply(key, image)
    return Geometric(apply, lambda rng, crop: crop.resize_shorter(size))


def _resize_rectangle(image: jax.Array, size: tuple[int, int], top: jax.Array, left: jax.Array, height: jax.Array,
                      width: jax.Array) -> jax.Array:
    """Return a rectangle of the image resized to a height and a width; pixels outside it have no influence."""
    for axis, start, length in ((0, top, height), (1, left, width)):
        num_taps = math.ceil(2 * max(image.shape[axis] / size[axis], 1))
        indices, weights = _resize_weights(num_taps, size[axis], start, length, (start, start + length))
        image = _weighted_sum(image, axis, indices, weights)
    return image


def _weighted_sum(image: jax.Array, axis: int, indices: jax.Array, weights: jax.Array) -> jax.Array:
    """Return the image with the pixels along an axis replaced by weighted sums.

    Args:
      image: (H, W, C).
      axis: 0 or 1.
      indices: the pixels along the axis that each sum adds, (taps, size).
      weights: their weights, (taps, size).

    Returns:
      The sums, with `size` pixels along the axis.
    """
    def add(i: int, total: jax.Array) -> jax.Array:
        return total + image.take(indices[i], axis, mode='clip') * jnp.expand_dims(weights[i], (1 - axis, 2))
    shape = (*image.shape[:axis], indices.shape[1], *image.shape[axis + 1:])
    # XLA stores the result of a loop, but would compute a sum anew for each value of a later op that uses it
    return jax.lax.fori_loop(0, len(indices), add, jnp.zeros(shape, image.dtype))


def _resize_weights(num_taps: int, size: int, start: jax.Array, length: jax.Array,
                    limits: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
    """Return the indices and the weights of antialiased bilinear resizing along one axis: (num_taps, size) each.

    Args:
      num_taps: number of pixels that are added for each pixel of the result; at least 2, and 2 for each pixel of the image
        that becomes one of the result.
      size: number of pixels of the result.
      start, length: the interval of the axis that becomes the result.
      limits: the interval whose pixels are used. The weights of pixels that are too far from it are 0.
    """
    scale = length / size
    centres = start + (jnp.arange(size) + 0.5) * scale
    support = jnp.maximum(scale, 1)  # half the width of the triangular filter
    indices = jnp.floor(centres - support + 0.5).astype(jnp.int32) + jnp.arange(num_taps)[:, None]
    pixels = indices + 0.5
    weights = jnp.maximum(1 - jnp.abs(pixels - centres) / support, 0)
    weights = jnp.where((pixels > limits[0]) & (pixels < limits[1]), weights, 0)
    return indices, weights / jnp.maximum(weights.sum(0), 1e-6)


@register
def random_resized_crop(size: int, scale: tuple = (0.08, 1.0), ratio: tuple = (3 / 4, 4 / 3),
                        width: int | None = None) -> Geometric:
    """Crop a rectangle of random area, proportions and position, and resize it to `size` x `size` (Szegedy et al. 2015,
    section 6).

    Like torchvision, it draws up to ten rectangles, takes the first one that fits into the image, and otherwise the largest
    central one whose proportions are within `ratio`.

    Args:
      size: side of the result in pixels, at least 1.
      scale: range of the area as a fraction of the image's area, in (0, 1]; drawn uniformly.
      ratio: range of the rectangle's width over its height, above 0; its logarithm is drawn uniformly.
      width: width of the result, at least 1, if it is not square; `size` is its height then.
    """
    new_height, new_width = _size('random_resized_crop', size, width)
    check_range('random_resized_crop', 1e-6, 1, scale=scale)
    check_range('random_resized_crop', 1e-3, 1e3, ratio=ratio)

    def apply(key: jax.Array, image: jax.Array) -> Transformed:
        rectangle = draw_rectangle(key, image.shape, scale, ratio, allow_full_image=True)
        top, left, crop_height, crop_width = (x.astype(jnp.float32) for x in rectangle)
        crop = _resize_rectangle(image, (new_height, new_width), top, left, crop_height, crop_width)
        scale_x, scale_y = new_width / crop_width, new_height / crop_height
        return Transformed(crop, _matrix(scale_x, scale_y, -left * scale_x, -top * scale_y))

    def draw(rng: np.random.Generator, crop: Crop) -> Crop:
        areas = crop.size[0] * crop.size[1] * rng.uniform(scale[0], scale[1], 10)
        ratios = np.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1]), 10))
        sizes = np.rint(np.sqrt([areas / ratios, areas * ratios])).astype(int).T
        fitting = sizes[((sizes > 0) & (sizes <= crop.size)).all(1)]
        if len(fitting):
            rectangle = _cut_at_random(rng, crop, (int(fitting[0, 0]), int(fitting[0, 1])), limit=True)
        else:
            largest = _largest_size(*crop.size, ratio)
            top, left = ((side - new_side) // 2 for side, new_side in zip(crop.size, largest, strict=True))
            rectangle = crop.cut(top, left, *largest, limit=True)
        return rectangle.resize(new_height, new_width)
    return Geometric(apply, draw)


def draw_rectangle(key: jax.Array, shape: tuple[int, ...], scale: tuple, ratio: tuple, allow_full_image: bool) -> tuple:
    """Draw a rectangle in an image: (top, left, height, width) in whole pixels.

    Args:
      key: key of the random numbers.
      shape: shape of the image, (H, W, ...).
      scale: range of the area as a fraction of the image's area.
      ratio: range of width over height.
      allow_full_image: whether the rectangle may be as high or as wide as the image. Of ten draws the first one that fits is
        returned; if none fits, then the largest central rectangle within `ratio` if this is True, otherwise an empty one.
    """
    image_height, image_width = shape[:2]
    area_key, ratio_key, position_key = jax.random.split(key, 3)
    areas = image_height * image_width * jax.random.uniform(area_key, (10,), minval=scale[0], maxval=scale[1])
    ratios = jnp.exp(jax.random.uniform(ratio_key, (10,), minval=math.log(ratio[0]), maxval=math.log(ratio[1])))
    widths, heights = (jnp.round(jnp.sqrt(x)).astype(jnp.int32) for x in (areas * ratios, areas / ratios))
    margin = 0 if allow_full_image else 1
    fits = (widths > 0) & (heights > 0) & (widths <= image_width - margin) & (heights <= image_height - margin)
    fallback_height, fallback_width = _largest_size(image_height, image_width, ratio) if allow_full_image else (0, 0)
    first = jnp.argmax(fits)
    height = jnp.where(fits.any(), heights[first], fallback_height)
    width = jnp.where(fits.any(), widths[first], fallback_width)
    room = jnp.array([image_height - height, image_width - width])
    position = jax.random.randint(position_key, (2,), 0, room + 1)
    top, left = jnp.where(fits.any(), position, room // 2)
    return top, left, height, width


def _largest_size(height: int, width: int, ratio: tuple) -> tuple[int, int]:
    """Return the height and the width of the largest rectangle in an image whose width over height is within `ratio`."""
    if width / height > ratio[1]:
        return height, round(height * ratio[1])
    if width / height < ratio[0]:
        return round(width / ratio[0]), width
    return height, width


@register
def scale_jitter(size: int, shorter: tuple = (256, 512)) -> Geometric:
    """Resize the image such that its shorter side has a random length, then crop `size` x `size` pixels at a random position
    (Simonyan & Zisserman 2015, section 3.1).

    Args:
      size: side of the crop in pixels, at least 1.
      shorter: range of the length of the shorter side in pixels, at least `size`; a whole number is drawn.
    """
    check_whole_number('scale_jitter', size=size)
    check_range('scale_jitter', size, shorter=shorter)
    if math.floor(shorter[1]) < math.ceil(shorter[0]):
        raise UserError(f'shorter={shorter!r} holds no whole number', field='scale_jitter')

    def apply(key: jax.Array, image: jax.Array) -> Transformed:
        length_key, position_key = jax.random.split(key)
        length = jax.random.randint(length_key, (), math.ceil(shorter[0]), math.floor(shorter[1]) + 1)
        scale = length / min(image.shape[:2])
        room = jnp.round(jnp.array(image.shape[:2]) * scale).astype(jnp.int32) - size
        position = jax.random.randint(position_key, (2,), 0, room + 1).astype(jnp.float32)
        crop = jax.image.scale_and_translate(image, (size, size, image.shape[-1]), (0, 1), jnp.stack([scale, scale]),
                                             -position, 'linear', antialias=True)
        return Transformed(crop, _matrix(scale, scale, -position[1], -position[0]))

    def draw(rng: np.random.Generator, crop: Crop) -> Crop:
        length = int(rng.integers(math.ceil(shorter[0]), math.floor(shorter[1]) + 1))
        return _cut_at_random(rng, crop.resize_shorter(length), (size, size))
    return Geometric(apply, draw)


@register
def large_scale_jitter(scale: tuple = (0.1, 2.0), fill: float = 0.5) -> Geometric:
    """Resize the image by a random factor, and crop or pad it to its original size at a random position (Ghiasi et al. 2021,
    section 3).

    Args:
      scale: range of the factor, at least 0.01; drawn uniformly. The paper compares (0.1, 2.0) with (0.8, 1.25).
      fill: value in [0, 1] of the padding, grey in the paper.
    """
    check_range('large_scale_jitter', 0.01, scale=scale)
    check_number('large_scale_jitter', maximum=1, fill=fill)
    num_taps = math.ceil(2 * max(1 / scale[0], 1))

    def apply(key: jax.Array, image: jax.Array) -> Transformed:
        factor_key, position_key = jax.random.split(key)
        factor = jax.random.uniform(factor_key, minval=scale[0], maxval=scale[1])
        sides = image.shape[:2]
        room = jnp.array(sides) * (1 - factor)  # negative if the resized image is cropped
        position = jnp.round(jax.random.uniform(position_key, (2,)) * room)
        result, is_inside = image, jnp.ones((1, 1), bool)
        for axis, side in enumerate(sides):
            start = -position[axis] / factor
            result = _weighted_sum(result, axis, *_resize_weights(num_taps, side, start, side / factor, (0, side)))
            centres = start + (jnp.arange(side) + 0.5) / factor
            is_inside &= jnp.expand_dims((centres > 0) & (centres < side), 1 - axis)
        result = jnp.where(is_inside[..., None], result, jnp.asarray(fill, image.dtype))
        return Transformed(result, _matrix(factor, factor, position[1], position[0]))
    return Geometric(apply)


def _flip(image: jax.Array, is_flipped: jax.Array, axis: int) -> Transformed:
    """Mirror an image along an axis, 0 or 1, if `is_flipped` is true."""
    mirrored = _matrix(scale_x=-1, x=image.shape[1]) if axis == 1 else _matrix(scale_y=-1, y=image.shape[0])
    return Transformed(jnp.where(is_flipped, jnp.flip(image, axis), image), jnp.where(is_flipped, mirrored, _matrix()))


@register
def flip_lr(p: float = 0.5) -> Geometric:
    """Mirror left and right with probability `p` in [0, 1]."""
    check_number('flip_lr', maximum=1, p=p)
    return Geometric(lambda key, image: _flip(image, jax.random.bernoulli(key, float(p)), axis=1))


@register
def alternating_flip() -> ByEpoch:
    """Mirror half of the images in even epochs and the other half in odd epochs (Jordan 2024, arXiv 2404.00498, 3.6).

    The half is drawn once for the whole run, so that two consecutive epochs show every image and its mirror image.
    """
    def apply(key: jax.Array, epoch: jax.Array, image: jax.Array) -> Transformed:
        in_first_half = jax.random.bernoulli(key)
        is_odd = epoch % 2 == 1
        return _flip(image, in_first_half ^ is_odd, axis=1)
    return ByEpoch(apply)


@register
def flip_ud(p: float = 0.5) -> Geometric:
    """Mirror top and bottom with probability `p` in [0, 1]."""
    check_number('flip_ud', maximum=1, p=p)
    return Geometric(lambda key, image: _flip(image, jax.random.bernoulli(key, float(p)), axis=0))
