"""Ops that mix an image with the previous one in the batch. The task mixes their targets by the same share."""

import jax
import jax.numpy as jnp

from jaxcnn.config.arguments import check_number
from jaxcnn.data.augment.erase import rectangle_mask
from jaxcnn.data.augment.registry import Mix, register


def _draw_share(key: jax.Array, alpha: float, p: float) -> jax.Array:
    """Draw the first image's share: from Beta(alpha, alpha) with probability `p`, otherwise 1."""
    mix_key, share_key = jax.random.split(key)
    return jnp.where(jax.random.bernoulli(mix_key, float(p)), jax.random.beta(share_key, alpha, alpha), 1.0)


@register
def mixup(alpha: float, p: float = 1.0) -> Mix:
    """Replace each image and its targets by the weighted mean with those of another image (Zhang et al. 2018).

    Args:
      alpha: at least 0.001; the weight of the image is drawn from Beta(alpha, alpha).
      p: probability of mixing, in [0, 1].
    """
    check_number('mixup', 1e-3, alpha=alpha)
    check_number('mixup', maximum=1, p=p)

    def apply(key: jax.Array, image: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
        share = _draw_share(key, alpha, p)
        return share * image + (1 - share) * other, share
    return Mix(apply)


@register
def cutmix(alpha: float = 1.0, p: float = 1.0) -> Mix:
    """Paste a rectangle of another image into each image, and mix the targets by the number of pixels (Yun et al. 2019).

    The rectangle has the proportions of the image and covers `1 - share` of its area. Its centre is drawn uniformly over the
    image, and what lies beyond the borders is cut off.

    Args:
      alpha: at least 0.001; the share is drawn from Beta(alpha, alpha).
      p: probability of mixing, in [0, 1].
    """
    check_number('cutmix', 1e-3, alpha=alpha)
    check_number('cutmix', maximum=1, p=p)

    def apply(key: jax.Array, image: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
        share_key, centre_key = jax.random.split(key)
        image_size = jnp.array(image.shape[:2])
        rectangle_size = (image_size * jnp.sqrt(1 - _draw_share(share_key, alpha, p))).astype(jnp.int32)
        top, left = jax.random.randint(centre_key, (2,), 0, image_size) - rectangle_size // 2
        mask = rectangle_mask(image, top, left, *rectangle_size)
        return jnp.where(mask, other, image), 1 - mask.mean()
    return Mix(apply)
