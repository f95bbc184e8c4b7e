"""Ops that move pixels by affine maps: rotation, translation, scaling and shear. Each returns its map with the image.

Coordinates are those of `geometry`. The maps fill what comes in from outside the image.
"""


import jax
import jax.numpy as jnp

from jaxcnn.config.arguments import check_choice, check_number, check_range
from jaxcnn.data.augment.registry import Geometric, Transformed, register
from jaxcnn.errors import UserError

INTERPOLATIONS = ('bilinear', 'nearest')


def invert(matrix: jax.Array) -> jax.Array:
    """Return the matrix (2, 3) of the inverse of an affine map (2, 3)."""
    (a, b, x), (c, d, y) = matrix
    return jnp.array([[d, -b, b * y - d * x], [-c, a, c * x - a * y]]) / (a * d - b * c)


def warp(image: jax.Array, matrix: jax.Array, interpolation: str = 'bilinear', fill: float | jax.Array = 0.0) -> jax.Array:
    """Return the image whose pixel at (x, y) is the input's at `matrix @ (x, y, 1)`, like PIL's `Image.transform`.

    Args:
      image: (H, W, C).
      matrix: (2, 3), for coordinates in pixels.
      interpolation: `bilinear` or `nearest`.
      fill: the value of pixels that lie outside the input; one value, or one per channel.
    """
    height, width, channels = image.shape
    flat = image.reshape(-1, channels)

    def pixel(row: jax.Array, column: jax.Array) -> jax.Array:
        index = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
        return flat.at[index].get(mode='promise_in_bounds')

    if interpolation == 'nearest':  # in fixed-point arithmetic with 16 fractional bits, as in PIL
        start = matrix[:, 2] + (matrix[:, 0] + matrix[:, 1]) / 2
        fixed = jnp.floor(65536 * jnp.column_stack([matrix[:, :2], start]) + 0.5).astype(jnp.int32)
        j, i = ((row[0] * jnp.arange(width) + row[1] * jnp.arange(height)[:, None] + row[2]) >> 16 for row in fixed)
        inside = (j >= 0) & (j < width) & (i >= 0) & (i < height)
        warped = pixel(i, j)
    else:
        x, y = jnp.arange(width) + 0.5, jnp.arange(height)[:, None] + 0.5
        x, y = (row[0] * x + row[1] * y + row[2] for row in matrix)
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        left, top = jnp.floor(x - 0.5), jnp.floor(y - 0.5)
        right_weight, lower_weight = (x - 0.5 - left)[..., None], (y - 0.5 - top)[..., None]
        i, j = top.astype(jnp.int32), left.astype(jnp.int32)
        upper = pixel(i, j) * (1 - right_weight) + pixel(i, j + 1) * right_weight
        lower = pixel(i + 1, j) * (1 - right_weight) + pixel(i + 1, j + 1) * right_weight
        warped = upper * (1 - lower_weight) + lower * lower_weight
    return jnp.where(inside[..., None], warped, jnp.asarray(fill, image.dtype))


def affine_matrix(shape: tuple[int, ...], degrees: jax.Array | float = 0.0, translate: tuple = (0.0, 0.0),
                  scale: jax.Array | float = 1.0, shear: tuple = (0.0, 0.0)) -> jax.Array:
    """Return the matrix (2, 3) with which `warp` shears, rotates, scales and translates an image, in this order.

    All four are about the centre of the image. The matrix maps the coordinates of the result to those of the input.

    Args:
      shape: shape of the image, (H, W, ...).
      degrees: rotation, counterclockwise.
      translate: pixels to the right and down.
      scale: factor; the content becomes larger if it is above 1.
      shear: angles along x and along y in degrees.
    """
    angle = -jnp.deg2rad(degrees)  # y points down
    x, y = (jnp.tan(jnp.deg2rad(s)) for s in shear)
    rotation = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
    forward = scale * rotation @ jnp.array([[1.0, x], [y, 1.0 + x * y]])  # sheared along x, then along y
    determinant = scale ** 2
    inverse = jnp.array([[forward[1, 1], -forward[0, 1]], [-forward[1, 0], forward[0, 0]]]) / determinant
    centre = jnp.array([shape[1] / 2, shape[0] / 2])
    offset = centre - inverse @ (centre + jnp.stack([jnp.asarray(t, jnp.float32) for t in translate]))
    return jnp.concatenate([inverse, offset[:, None]], 1)


def _along_x_and_y(op: str, name: str, value: float | tuple, maximum: float) -> tuple:
    """Return an argument of an op that is one number, or one along x and one along y, as two numbers.

    Raises:
      UserError: the argument is neither, or a number is not between 0 and `maximum`.
    """
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(values) != 2:
        raise UserError(f'expected a number, or two along x and y, got {values!r}', field=f'{op}.{name}')
    for number in values:
        check_number(op, maximum=maximum, **{name: number})
    return values


def _make_affine(op: str, degrees: float = 0.0, translate: tuple = (0.0, 0.0), scale: tuple = (1.0, 1.0),
                 shear: tuple = (0.0, 0.0), interpolation: str = 'bilinear', fill: float = 0.0) -> Geometric:
    check_number(op, maximum=1, fill=fill)
    check_choice(op, INTERPOLATIONS, interpolation=interpolation)

    def apply(key: jax.Array, image: jax.Array) -> Transformed:
        height, width = image.shape[:2]
        limits = jnp.array([degrees, translate[0] * width, translate[1] * height, *shear], jnp.float32)
        limits_key, scale_key = jax.random.split(key)
        angle, right, down, shear_x, shear_y = limits * jax.random.uniform(limits_key, (5,), minval=-1.0)
        factor = jax.random.uniform(scale_key, minval=scale[0], maxval=scale[1])
        matrix = affine_matrix(image.shape, angle, (right, down), factor, (shear_x, shear_y))
        return Transformed(warp(image, matrix, interpolation, fill), invert(matrix))
    return Geometric(apply)


@register
def affine(degrees: float = 0.0, translate: float | tuple = 0.0, scale: tuple = (1.0, 1.0), shear: float | tuple = 0.0,
           interpolation: str = 'bilinear', fill: float = 0.0) -> Geometric:
    """Shear, rotate, scale and translate the image, in this order, about its centre, each by a uniformly drawn amount.

    Args:
      degrees: largest rotation in either direction, in [0, 180].
      translate: largest translation in either direction as a fraction of the image's size, in [0, 1]; one number, or one
        along x and one along y.
      scale: range of the factor, above 0.
      shear: largest angle in either direction in degrees, in [0, 89]; one number, or one along x and one along y.
      interpolation: `bilinear` or `nearest`.
      fill: value in [0, 1] of pixels from outside the image.
    """
    check_number('affine', maximum=180, degrees=degrees)
    translation = _along_x_and_y('affine', 'translate', translate, 1)
    shears = _along_x_and_y('affine', 'shear', shear, 89)
    check_range('affine', 1e-3, scale=scale)
    return _make_affine('affine', degrees, translation, scale, shears, interpolation, fill)


@register
def rotate(degrees: float, interpolation: str = 'bilinear', fill: float = 0.0) -> Geometric:
    """Rotate the image about its centre by up to `degrees` in either direction; see `affine`."""
    check_number('rotate', maximum=180, degrees=degrees)
    return _make_affine('rotate', degrees, interpolation=interpolation, fill=fill)


@register
def translate(fraction: float | tuple, interpolation: str = 'bilinear', fill: float = 0.0) -> Geometric:
    """Translate the image by up to `fraction` of its size in either direction along x and y; see `affine`."""
    translation = _along_x_and_y('translate', 'fraction', fraction, 1)
    return _make_affine('translate', translate=translation, interpolation=interpolation, fill=fill)


@register
def scale(factor: tuple, interpolation: str = 'bilinear', fill: float = 0.0) -> Geometric:
    """Scale the content of the image by a factor from the range `factor`; the size stays the same; see `affine`."""
    check_range('scale', 1e-3, factor=factor)
    return _make_affine('scale', scale=factor, interpolation=interpolation, fill=fill)


@register
def shear(degrees: float | tuple, interpolation: str = 'bilinear', fill: float = 0.0) -> Geometric:
    """Shear the image by up to `degrees` in either direction along x and y; see `affine`."""
    shears = _along_x_and_y('shear', 'degrees', degrees, 89)
    return _make_affine('shear', shear=shears, interpolation=interpolation, fill=fill)
