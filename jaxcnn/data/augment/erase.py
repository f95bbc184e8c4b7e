"""Ops that fill a part of the image."""

import jax
import jax.numpy as jnp

from jaxcnn.config.arguments import check_number, check_range, check_whole_number
from jaxcnn.data.augment.geometry import draw_rectangle
from jaxcnn.data.augment.registry import Op, apply_with_probability, register
from jaxcnn.errors import UserError


def rectangle_mask(image: jax.Array, top: jax.Array, left: jax.Array, height: jax.Array | int,
                   width: jax.Array | int) -> jax.Array:
    """Return which pixels of an image (H, W, C) lie in a rectangle: bool (H, W, 1)."""
    rows, columns = jnp.arange(image.shape[0])[:, None], jnp.arange(image.shape[1])[None, :]
    return ((rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width))[..., None]


@register
def cutout(size: int, fill: float = 0.5) -> Op:
    """Fill a square whose centre is drawn uniformly over the image (DeVries & Taylor 2017).

    What lies beyond the borders is cut off.

    Args:
      size: side of the square in pixels, at least 1.
      fill: value in [0, 1]. The paper fills with the mean of the data set, which the default approximates.
    """
    check_whole_number('cutout', size=size)
    check_number('cutout', maximum=1, fill=fill)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        centre = jax.random.randint(key, (2,), 0, jnp.array(image.shape[:2]))
        top, left = centre - size // 2
        return jnp.where(rectangle_mask(image, top, left, size, size), jnp.asarray(fill, image.dtype), image)
    return apply


@register
def random_erasing(p: float = 0.5, scale: tuple = (0.02, 0.33), ratio: tuple = (0.3, 3.3),
                   value: float | str = 0.0) -> Op:
    """Fill a rectangle of random area, proportions and position with probability `p` (Zhong et al. 2017).

    Like torchvision, it draws up to ten rectangles, takes the first one that is smaller than the image, and leaves the image
    unchanged if there is none.

    Args:
      p: probability of erasing, in [0, 1].
      scale: range of the area as a fraction of the image's area, in (0, 1]; drawn uniformly.
      ratio: range of width over height, above 0; its logarithm is drawn uniformly.
      value: a value in [0, 1], or `'random'` to draw each value of the rectangle uniformly from [0, 1].
    """
    check_number('random_erasing', maximum=1, p=p)
    check_range('random_erasing', 1e-6, 1, scale=scale)
    check_range('random_erasing', 1e-3, 1e3, ratio=ratio)
    if not isinstance(value, str):
        check_number('random_erasing', maximum=1, value=value)
    elif value != 'random':
        raise UserError(f"expected a number between 0 and 1, or 'random', got {value!r}", field='random_erasing.value')

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        rectangle_key, fill_key = jax.random.split(key)
        rectangle = draw_rectangle(rectangle_key, image.shape, scale, ratio, allow_full_image=False)
        if value == 'random':
            fill = jax.random.uniform(fill_key, image.shape, image.dtype)
        else:
            fill = jnp.asarray(value, image.dtype)
        return jnp.where(rectangle_mask(image, *rectangle), fill, image)
    return apply_with_probability(p, apply)
