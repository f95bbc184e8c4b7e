"""Ops that move pixels: crops, flips, resizing and affine maps.

Places are in pixels from the upper left corner, the centre of a pixel at 0.5, as PIL and torchvision have them. What an
affine map brings in from outside is filled; resizing is bilinear and, where it makes smaller, antialiased.
"""

import math

import jax
import jax.numpy as jnp

from jaxcnn.data.augment.registry import ByEpoch, Op, maybe, number, one_of, register, span, steady, whole
from jaxcnn.errors import UserError

PADDINGS = ('constant', 'reflect', 'edge', 'symmetric')
INTERPOLATIONS = ('bilinear', 'nearest')


def _pad(image: jax.Array, pixels: int, mode: str) -> jax.Array:
    return jnp.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)), mode=mode)


def _fits(op: str, image: jax.Array, size: int) -> None:
    if min(image.shape[:2]) < size:
        raise UserError(f'{op}({size}): images are {image.shape[0]} x {image.shape[1]}')


def _cut(image: jax.Array, top: jax.Array | int, left: jax.Array | int, height: int, width: int) -> jax.Array:
    return jax.lax.dynamic_slice(image, (top, left, 0), (height, width, image.shape[-1]))


@steady
def pad(pixels: int, mode: str = 'constant') -> Op:
    """Adds `pixels`, at least 1, on each side; `mode`: how `jnp.pad` fills: `constant` (black), `reflect`, `edge`,
    `symmetric`."""
    whole('pad', pixels=pixels)
    one_of('pad', PADDINGS, mode=mode)
    return lambda key, image: _pad(image, pixels, mode)


@register
def pad_crop(pad: int, mode: str = 'constant') -> Op:
    """Pads each side by `pad` pixels, then crops the original size at a uniformly drawn place (He et al. 2015, 4.2).

    Args:
      pad: pixels, at least 1.
      mode: how `jnp.pad` fills: `constant` (black), `reflect`, `edge`, `symmetric`.
    """
    whole('pad_crop', pad=pad)
    one_of('pad_crop', PADDINGS, mode=mode)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:  # (H, W, C)
        top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1)
        return _cut(_pad(image, pad, mode), top, left, *image.shape[:2])
    return apply


@register
def random_crop(size: int) -> Op:
    """Crops `size` x `size` pixels at a uniformly drawn place (Krizhevsky et al. 2012, 4.1)."""
    whole('random_crop', size=size)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        _fits('random_crop', image, size)
        top, left = jax.random.randint(key, (2,), 0, jnp.array(image.shape[:2]) - size + 1)
        return _cut(image, top, left, size, size)
    return apply


@steady
def center_crop(size: int) -> Op:
    """Crops `size` x `size` pixels from the middle; where that is between two pixels, the upper left one of them."""
    whole('center_crop', size=size)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        _fits('center_crop', image, size)
        return _cut(image, (image.shape[0] - size) // 2, (image.shape[1] - size) // 2, size, size)
    return apply


@steady
def resize(size: int) -> Op:
    """Brings images to `size` x `size` pixels, at least 1."""
    whole('resize', size=size)
    return lambda key, image: jax.image.resize(image, (size, size, image.shape[-1]), 'linear', antialias=True)


def _zoom(image: jax.Array, size: int, top: jax.Array, left: jax.Array, height: jax.Array, width: jax.Array) -> jax.Array:
    """The rectangle at (top, left), in pixels, at `size` x `size`. Seen alone: what is around it is not looked at."""
    for axis, start, length in ((0, top, height), (1, left, width)):
        index, weights = _taps(image.shape[axis], size, start, length)
        before, shape = image, (*image.shape[:axis], size, *image.shape[axis + 1:])

        def add(i: int, x: jax.Array, axis: int = axis, before: jax.Array = before, index: jax.Array = index,
                weights: jax.Array = weights) -> jax.Array:
            return x + before.take(index[i], axis, mode='clip') * jnp.expand_dims(weights[i], (1 - axis, 2))
        # a loop, whose result XLA keeps: a sum would be computed anew for all that later ops want of it
        image = jax.lax.fori_loop(0, len(index), add, jnp.zeros(shape, image.dtype))
    return image


def _taps(side: int, size: int, start: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which of `side` pixels are in each of `size` that span [start, start + length), and how much: (taps, size) each."""
    scale = length / size
    centres = start + (jnp.arange(size) + 0.5) * scale
    half = jnp.maximum(scale, 1)
    index = jnp.floor(centres - half + 0.5).astype(jnp.int32) + jnp.arange(math.ceil(2 * max(side / size, 1)))[:, None]
    pixels = index + 0.5
    triangle = jnp.maximum(1 - jnp.abs(pixels - centres) / half, 0)
    triangle = jnp.where((pixels > start) & (pixels < start + length), triangle, 0)
    return index, triangle / triangle.sum(0)


@register
def random_resized_crop(size: int, scale: tuple = (0.08, 1.0), ratio: tuple = (3 / 4, 4 / 3)) -> Op:
    """A rectangle of drawn area and shape at a drawn place, brought to `size` x `size` (Szegedy et al. 2015, 6).

    As torchvision's: whole pixels; of ten tries the first that fits, else the largest central one of a shape within `ratio`.

    Args:
      size: pixels, at least 1.
      scale: least and largest part of the area, above 0, at most 1; drawn uniformly.
      ratio: least and largest width over height, above 0; its logarithm is drawn uniformly.
    """
    whole('random_resized_crop', size=size)
    span('random_resized_crop', 1e-6, 1, scale=scale)
    span('random_resized_crop', 1e-3, 1e3, ratio=ratio)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        top, left, height, width = drawn_rectangle(key, image.shape, scale, ratio, whole_image=True)
        return _zoom(image, size, *(x.astype(jnp.float32) for x in (top, left, height, width)))
    return apply


def drawn_rectangle(key: jax.Array, shape: tuple[int, ...], scale: tuple, ratio: tuple, whole_image: bool) -> tuple:
    """(top, left, height, width) in whole pixels. Where none of ten tries fits: the largest central rectangle of a
    permitted shape, or, unless `whole_image`, an empty one."""
    high, wide = shape[:2]
    areas, ratios, places = jax.random.split(key, 3)
    area = high * wide * jax.random.uniform(areas, (10,), minval=scale[0], maxval=scale[1])
    shapes = jnp.exp(jax.random.uniform(ratios, (10,), minval=math.log(ratio[0]), maxval=math.log(ratio[1])))
    width, height = (jnp.round(jnp.sqrt(x)).astype(jnp.int32) for x in (area * shapes, area / shapes))
    slack = 0 if whole_image else 1
    fits = (width > 0) & (height > 0) & (width <= wide - slack) & (height <= high - slack)
    first = jnp.argmax(fits)
    if whole_image:
        other = ((high, round(high * ratio[1])) if wide / high > ratio[1] else
                 (round(wide / ratio[0]), wide) if wide / high < ratio[0] else (high, wide))
    else:
        other = (0, 0)
    height, width = (jnp.where(fits.any(), x[first], o) for x, o in zip((height, width), other, strict=True))
    room = jnp.array([high - height, wide - width])
    drawn = jax.random.randint(places, (2,), 0, room + 1)
    top, left = jnp.where(fits.any(), drawn, room // 2)
    return top, left, height, width


@register
def scale_jitter(size: int, shorter: tuple = (256, 512)) -> Op:
    """The image with its shorter side brought to a length drawn from `shorter`, then a drawn crop of `size` x `size`
    (Simonyan & Zisserman 2015, 3.1).

    Args:
      size: pixels, at least 1.
      shorter: least and largest length of the shorter side, in pixels, at least `size`; whole numbers are drawn.
    """
    whole('scale_jitter', size=size)
    span('scale_jitter', size, shorter=shorter)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        first, second = jax.random.split(key)
        side = jax.random.randint(first, (), math.ceil(shorter[0]), math.floor(shorter[1]) + 1)
        scale = side / min(image.shape[:2])
        room = jnp.round(jnp.array(image.shape[:2]) * scale).astype(jnp.int32) - size
        place = jax.random.randint(second, (2,), 0, room + 1).astype(jnp.float32)
        return jax.image.scale_and_translate(image, (size, size, image.shape[-1]), (0, 1), jnp.stack([scale, scale]),
                                             -place, 'linear', antialias=True)
    return apply


@register
def flip_lr(p: float = 0.5) -> Op:
    """Mirrors left and right with probability `p` in [0, 1]."""
    number('flip_lr', high=1, p=p)
    return maybe(p, lambda key, image: image[:, ::-1])


@register
def alternating_flip() -> ByEpoch:
    """Mirrors left and right half of the images, drawn once, in even epochs, and the other half in odd ones, so that any two
    epochs in turn have every image both ways (Jordan 2024, arXiv 2404.00498, section 3.6)."""
    def apply(key: jax.Array, epoch: jax.Array, image: jax.Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key) ^ (epoch % 2 == 1), image[:, ::-1], image)
    return ByEpoch(apply)


@register
def flip_ud(p: float = 0.5) -> Op:
    """Mirrors top and bottom with probability `p` in [0, 1]."""
    number('flip_ud', high=1, p=p)
    return maybe(p, lambda key, image: image[::-1])


def warp(image: jax.Array, matrix: jax.Array, interpolation: str = 'bilinear', fill: float | jax.Array = 0.0) -> jax.Array:
    """The image (H, W, C) where output (x, y) shows what is at `matrix @ (x, y, 1)`, as PIL's `Image.transform` has it.

    Args:
      image: (H, W, C).
      matrix: (2, 3), in pixels.
      interpolation: `bilinear` or `nearest`.
      fill: the value of what is outside; one, or one per channel.
    """
    height, width, channels = image.shape
    flat = image.reshape(-1, channels)

    def at(row: jax.Array, column: jax.Array) -> jax.Array:
        return flat.at[jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)].get(mode='promise_in_bounds')

    if interpolation == 'nearest':  # in PIL's arithmetic, of 16 bits behind the point
        start = matrix[:, 2] + (matrix[:, 0] + matrix[:, 1]) / 2
        fixed = jnp.floor(65536 * jnp.column_stack([matrix[:, :2], start]) + 0.5).astype(jnp.int32)
        j, i = ((row[0] * jnp.arange(width) + row[1] * jnp.arange(height)[:, None] + row[2]) >> 16 for row in fixed)
        inside = (j >= 0) & (j < width) & (i >= 0) & (i < height)
        found = at(i, j)
    else:
        x, y = jnp.arange(width) + 0.5, jnp.arange(height)[:, None] + 0.5
        x, y = (row[0] * x + row[1] * y + row[2] for row in matrix)
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        left, top = jnp.floor(x - 0.5), jnp.floor(y - 0.5)
        right, below = (x - 0.5 - left)[..., None], (y - 0.5 - top)[..., None]
        i, j = top.astype(jnp.int32), left.astype(jnp.int32)
        found = ((at(i, j) * (1 - right) + at(i, j + 1) * right) * (1 - below)
                 + (at(i + 1, j) * (1 - right) + at(i + 1, j + 1) * right) * below)
    return jnp.where(inside[..., None], found, jnp.asarray(fill, image.dtype))


def affine_matrix(shape: tuple[int, ...], degrees: jax.Array | float = 0.0, translate: tuple = (0.0, 0.0),
                  scale: jax.Array | float = 1.0, shear: tuple = (0.0, 0.0)) -> jax.Array:
    """For `warp`: (2, 3), the inverse of shearing, then turning, scaling and, last, moving, all about the centre.

    Args:
      shape: of the image, (H, W, ...).
      degrees: counterclockwise.
      translate: pixels to the right and down.
      scale: above 1 makes larger.
      shear: degrees along x and y.
    """
    angle = -jnp.deg2rad(degrees)  # y points down
    x, y = (jnp.tan(jnp.deg2rad(s)) for s in shear)
    turn = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
    forward = scale * turn @ jnp.array([[1.0, x], [y, 1.0 + x * y]])  # along x, then along y
    determinant = scale ** 2
    inverse = jnp.array([[forward[1, 1], -forward[0, 1]], [-forward[1, 0], forward[0, 0]]]) / determinant
    centre = jnp.array([shape[1] / 2, shape[0] / 2])
    offset = centre - inverse @ (centre + jnp.stack([jnp.asarray(t, jnp.float32) for t in translate]))
    return jnp.concatenate([inverse, offset[:, None]], 1)


def _affine(op: str, degrees: float = 0.0, translate: float | tuple = 0.0, scale: tuple = (1.0, 1.0),
            shear: float | tuple = 0.0, interpolation: str = 'bilinear', fill: float = 0.0) -> Op:
    moves = tuple(translate) if isinstance(translate, (tuple, list)) else (translate, translate)
    shears = tuple(shear) if isinstance(shear, (tuple, list)) else (shear, shear)
    number(op, high=180, degrees=degrees)
    for name, values, most in [('translate', moves, 1), ('shear', shears, 89)]:
        if len(values) != 2:
            raise UserError(f'{op}: {name} must be a number or two, along x and y, got {values!r}')
        for value in values:
            number(op, high=most, **{name: value})
    span(op, 1e-3, scale=scale)
    number(op, high=1, fill=fill)
    one_of(op, INTERPOLATIONS, interpolation=interpolation)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        most = jnp.array([degrees, moves[0] * image.shape[1], moves[1] * image.shape[0], *shears], jnp.float32)
        amounts, factor = jax.random.split(key)
        turn, right, down, x, y = most * jax.random.uniform(amounts, (5,), minval=-1.0)
        zoom = jax.random.uniform(factor, minval=scale[0], maxval=scale[1])
        matrix = affine_matrix(image.shape, turn, (right, down), zoom, (x, y))
        return warp(image, matrix, interpolation, fill)
    return apply


@register
def affine(degrees: float = 0.0, translate: float | tuple = 0.0, scale: tuple = (1.0, 1.0), shear: float | tuple = 0.0,
           interpolation: str = 'bilinear', fill: float = 0.0) -> Op:
    """Shears, turns, scales and moves the image, in this order, about its centre; each by an amount drawn uniformly.

    Args:
      degrees: largest turn to either side, up to 180.
      translate: largest move to either side, as a part of the size in [0, 1]; one number, or one along x and one along y.
      scale: least and largest factor, above 0.
      shear: largest angle to either side, in degrees below 90; one number, or one along x and one along y.
      interpolation: `bilinear` or `nearest`.
      fill: value in [0, 1] of what comes in from outside.
    """
    return _affine('affine', degrees, translate, scale, shear, interpolation, fill)


@register
def rotate(degrees: float, interpolation: str = 'bilinear', fill: float = 0.0) -> Op:
    """Turns the image about its centre by up to `degrees` to either side; see `affine`."""
    return _affine('rotate', degrees, interpolation=interpolation, fill=fill)


@register
def translate(part: float | tuple, interpolation: str = 'bilinear', fill: float = 0.0) -> Op:
    """Moves the image by up to `part` of its size to either side; see `affine`."""
    return _affine('translate', translate=part, interpolation=interpolation, fill=fill)


@register
def scale(factor: tuple, interpolation: str = 'bilinear', fill: float = 0.0) -> Op:
    """Makes the image smaller or larger by a factor from `factor` (least, most), its size kept; see `affine`."""
    return _affine('scale', scale=factor, interpolation=interpolation, fill=fill)


@register
def shear(degrees: float | tuple, interpolation: str = 'bilinear', fill: float = 0.0) -> Op:
    """Shears the image by up to `degrees` to either side along x and y; see `affine`."""
    return _affine('shear', shear=degrees, interpolation=interpolation, fill=fill)
