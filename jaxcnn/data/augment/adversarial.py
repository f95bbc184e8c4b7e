"""Adversarial examples against the network that is being trained, as it is in evaluation; of all images of a batch.

The gradient is that of the task's loss, without label smoothing, with the image's own targets. Images stay in [0, 1].
"""

import jax
import jax.numpy as jnp

from jaxcnn.data.augment.registry import Attack, Gradient, Targets, number, one_of, register, whole

NORMS = ('linf', 'l2')


def _length(x: jax.Array) -> jax.Array:
    """L2 norm of each image: (N, 1, 1, 1)."""
    return jnp.sqrt((x ** 2).sum((1, 2, 3), keepdims=True))


def _uphill(gradient: jax.Array, norm: str) -> jax.Array:
    """The change of length 1 that raises the loss most."""
    return jnp.sign(gradient) if norm == 'linf' else gradient / jnp.maximum(_length(gradient), 1e-12)


@register
def fgsm(eps: float, norm: str = 'linf') -> Attack:
    """One step of length `eps` along the gradient's sign (Goodfellow et al. 2015), or, in `l2`, along the gradient.

    Args:
      eps: at least 0, in units of values in [0, 1]: 8/255 is 0.0314.
      norm: `linf` or `l2`, in which `eps` is measured.
    """
    number('fgsm', eps=eps)
    one_of('fgsm', NORMS, norm=norm)

    def apply(keys: jax.Array, images: jax.Array, targets: Targets, gradient: Gradient) -> jax.Array:
        return jnp.clip(images + eps * _uphill(gradient(images, targets), norm), 0, 1)
    return Attack(apply)


@register
def pgd(eps: float, step: float, iterations: int, norm: str = 'linf') -> Attack:
    """`iterations` steps of length `step` uphill from a place drawn uniformly within `eps` of the image, each followed by
    the projection to within `eps` of it (Madry et al. 2018).

    Args:
      eps, step: at least 0, in units of values in [0, 1].
      iterations: at least 1.
      norm: `linf` or `l2`, in which both are measured.
    """
    number('pgd', eps=eps, step=step)
    whole('pgd', iterations=iterations)
    one_of('pgd', NORMS, norm=norm)

    def begin(key: jax.Array, image: jax.Array) -> jax.Array:
        if norm == 'linf':
            return jax.random.uniform(key, image.shape, image.dtype, -eps, eps)
        return eps * jax.random.ball(key, image.size).reshape(image.shape).astype(image.dtype)

    def project(change: jax.Array) -> jax.Array:
        if norm == 'linf':
            return jnp.clip(change, -eps, eps)
        return change * jnp.minimum(1, eps / jnp.maximum(_length(change), 1e-12))

    def apply(keys: jax.Array, images: jax.Array, targets: Targets, gradient: Gradient) -> jax.Array:
        def body(_: int, attacked: jax.Array) -> jax.Array:
            higher = attacked + step * _uphill(gradient(attacked, targets), norm)
            return jnp.clip(images + project(higher - images), 0, 1)
        return jax.lax.fori_loop(0, iterations, body, jnp.clip(images + jax.vmap(begin)(keys, images), 0, 1))
    return Attack(apply)
