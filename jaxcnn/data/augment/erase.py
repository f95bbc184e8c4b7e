"""Ops that paint over a part of the image."""

import jax
import jax.numpy as jnp

from jaxcnn.data.augment.geometry import drawn_rectangle
from jaxcnn.data.augment.registry import Op, maybe, number, register, span, whole
from jaxcnn.errors import UserError


def within(image: jax.Array, top: jax.Array, left: jax.Array, height: jax.Array | int, width: jax.Array | int) -> jax.Array:
    """Where a rectangle is: bool (H, W, 1)."""
    rows, columns = jnp.arange(image.shape[0])[:, None], jnp.arange(image.shape[1])[None, :]
    return ((rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width))[..., None]


@register
def cutout(size: int, fill: float = 0.5) -> Op:
    """Fills a square whose centre is drawn uniformly over the image, cut off at its borders (DeVries & Taylor 2017).

    Args:
      size: side in pixels, at least 1.
      fill: value in [0, 1]. The paper fills with the data set's mean, which 0.5 stands for.
    """
    whole('cutout', size=size)
    number('cutout', high=1, fill=fill)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        centre = jax.random.randint(key, (2,), 0, jnp.array(image.shape[:2]))
        top, left = centre - size // 2
        return jnp.where(within(image, top, left, size, size), jnp.asarray(fill, image.dtype), image)
    return apply


@register
def random_erasing(p: float = 0.5, scale: tuple = (0.02, 0.33), ratio: tuple = (0.3, 3.3),
                   value: float | str = 0.0) -> Op:
    """With probability `p`, fills a rectangle of drawn area, shape and place (Zhong et al. 2017).

    As torchvision's: of ten tries the first that is smaller than the image, else none.

    Args:
      p: in [0, 1].
      scale: least and largest part of the image's area, above 0, at most 1; drawn uniformly.
      ratio: least and largest ratio of the sides, above 0; its logarithm is drawn uniformly.
      value: in [0, 1], or `'random'`: each value in the rectangle drawn uniformly from [0, 1].
    """
    number('random_erasing', high=1, p=p)
    span('random_erasing', 1e-6, 1, scale=scale)
    span('random_erasing', 1e-3, 1e3, ratio=ratio)
    if isinstance(value, str):
        if value != 'random':
            raise UserError(f"random_erasing: value must be between 0 and 1, or 'random', got {value!r}")
    else:
        number('random_erasing', high=1, value=value)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        where, what = jax.random.split(key)
        top, left, height, width = drawn_rectangle(where, image.shape, scale, ratio, whole_image=False)
        filling = (jax.random.uniform(what, image.shape, image.dtype) if isinstance(value, str)
                   else jnp.asarray(value, image.dtype))
        return jnp.where(within(image, top, left, height, width), filling, image)
    return maybe(p, apply)
