"""Ops that mix an image with the one before it in the batch; the task mixes their targets likewise."""

import jax
import jax.numpy as jnp

from jaxcnn.data.augment.erase import within
from jaxcnn.data.augment.registry import Mix, number, register


def _share(key: jax.Array, alpha: float, p: float) -> jax.Array:
    """How much of the example is left: Beta(alpha, alpha) with probability `p`, else all of it."""
    first, second = jax.random.split(key)
    return jnp.where(jax.random.bernoulli(first, float(p)), jax.random.beta(second, alpha, alpha), 1.0)


@register
def mixup(alpha: float, p: float = 1.0) -> Mix:
    """The mean of two images and of their labels, weighted by a share drawn for each image (Zhang et al. 2018).

    Args:
      alpha: above 0; the share is drawn from Beta(alpha, alpha).
      p: probability of mixing, in [0, 1].
    """
    number('mixup', 1e-3, alpha=alpha)
    number('mixup', high=1, p=p)

    def apply(key: jax.Array, image: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
        share = _share(key, alpha, p)
        return share * image + (1 - share) * other, share
    return Mix(apply)


@register
def cutmix(alpha: float = 1.0, p: float = 1.0) -> Mix:
    """A rectangle of the other image pasted into this one; labels are mixed by the pixels of each (Yun et al. 2019).

    The rectangle has the image's shape and a part 1 - share of its area, its centre drawn uniformly over the image; it is
    cut off at the borders.

    Args:
      alpha: above 0; the share is drawn from Beta(alpha, alpha).
      p: probability of mixing, in [0, 1].
    """
    number('cutmix', 1e-3, alpha=alpha)
    number('cutmix', high=1, p=p)

    def apply(key: jax.Array, image: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
        first, second = jax.random.split(key)
        sides = jnp.array(image.shape[:2])
        cut = (sides * jnp.sqrt(1 - _share(first, alpha, p))).astype(jnp.int32)
        top, left = jax.random.randint(second, (2,), 0, sides) - cut // 2
        inside = within(image, top, left, *cut)
        return jnp.where(inside, other, image), 1 - inside.mean()
    return Mix(apply)
