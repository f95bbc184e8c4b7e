"""Adversarial examples: attacks on the network that is being trained, which is applied as in evaluation.

An attack follows the gradient of the task's loss, without label smoothing, for the targets of each image. The images stay in
[0, 1].
"""

import jax
import jax.numpy as jnp

from jaxcnn.config.arguments import check_choice, check_number, check_whole_number
from jaxcnn.data.augment.registry import Attack, Gradient, Targets, register
from jaxcnn.errors import UserError, check_bool

NORMS = ('linf', 'l2')


def check_eps(eps: float, norm: str, field: str | None = None, text: str = '') -> None:
    """Raise a UserError for a largest change of more than 1 in the norm `linf`, which allows any image.

    The error has the text that a person wrote, if there is one.
    """
    if norm == 'linf' and eps > 1:
        raise UserError(f'expected at most 1 in the norm linf, for values in [0, 1], got {text or f"{eps:g}"}', field=field,
                        hint='write 8/255 for a change of 8 bytes')


def l2_norm(x: jax.Array) -> jax.Array:
    """Return the L2 norm of each image of (N, H, W, C): (N, 1, 1, 1)."""
    return jnp.sqrt((x ** 2).sum((1, 2, 3), keepdims=True))


def size(change: jax.Array, norm: str) -> jax.Array:
    """Return the norm of each change (N, H, W, C): (N,)."""
    return jnp.abs(change).max((1, 2, 3)) if norm == 'linf' else l2_norm(change)[:, 0, 0, 0]


def steepest_ascent(gradient: jax.Array, norm: str) -> jax.Array:
    """Return the change of norm 1 that raises the loss most, for gradients (N, H, W, C)."""
    return jnp.sign(gradient) if norm == 'linf' else gradient / jnp.maximum(l2_norm(gradient), 1e-12)


def project(change: jax.Array, eps: jax.Array | float, norm: str) -> jax.Array:
    """Return the nearest changes whose norm is at most `eps`, for changes (N, H, W, C)."""
    if norm == 'linf':
        return jnp.clip(change, -eps, eps)
    return change * jnp.minimum(1, eps / jnp.maximum(l2_norm(change), 1e-12))


def random_offset(key: jax.Array, image: jax.Array, eps: jax.Array | float, norm: str) -> jax.Array:
    """Return a change of an image (H, W, C) that is drawn uniformly from those whose norm is at most `eps`."""
    if norm == 'linf':
        return jax.random.uniform(key, image.shape, image.dtype, -eps, eps)
    return eps * jax.random.ball(key, image.size).reshape(image.shape).astype(image.dtype)


def ascend(images: jax.Array, attacked: jax.Array, gradient: jax.Array, step: jax.Array | float, eps: jax.Array | float,
           norm: str) -> jax.Array:
    """Return attacked images after a step of projected gradient ascent.

    Args:
      images: the original images (N, H, W, C), in [0, 1].
      attacked: the images before the step.
      gradient: the gradient of the loss at them.
      step: the size of the step.
      eps: the largest distance from the original images.
      norm: the norm of both, `linf` or `l2`.
    """
    moved = attacked + step * steepest_ascent(gradient, norm)
    return jnp.clip(images + project(moved - images, eps, norm), 0, 1)


def projected_ascent(images: jax.Array, start: jax.Array, targets: Targets, gradient: Gradient,
                     eps: jax.Array | float, step: jax.Array | float, iterations: int, norm: str) -> jax.Array:
    """Return the result of projected gradient ascent.

    Args:
      images: the images (N, H, W, C), in [0, 1].
      start: where the ascent starts, (N, H, W, C).
      targets: targets of the images.
      gradient: gradient of what is maximised.
      eps, step, iterations, norm: see `pgd`.

    Returns:
      Images in [0, 1] within `eps` of `images`.
    """
    def iterate(_: int, attacked: jax.Array) -> jax.Array:
        return ascend(images, attacked, gradient(attacked, targets), step, eps, norm)
    return jax.lax.fori_loop(0, iterations, iterate, start)


@register
def fgsm(eps: float, norm: str = 'linf', random_start: bool = False, step: float | None = None) -> Attack:
    """Attack the network with one step along the sign of the gradient (Goodfellow et al. 2015); with `norm='l2'`, along the
    gradient.

    Args:
      eps: the largest distance from the image, at least 0, for values in [0, 1], such as 8/255. Without a random start it
        is the size of the step.
      norm: the norm in which `eps` is measured, `linf` or `l2`.
      random_start: start at a point drawn uniformly within `eps` of the image, and project the result to within `eps` (Wong
        et al. 2020).
      step: the size of the step from a random start; None: 1.25 `eps`.
    """
    check_number('fgsm', eps=eps)
    check_choice('fgsm', NORMS, norm=norm)
    check_eps(eps, norm, 'fgsm.eps')
    check_bool('fgsm.random_start', False, random_start)
    if random_start:
        step = 1.25 * eps if step is None else step
        check_number('fgsm', step=step)
        return pgd(eps, step, 1, norm)
    if step is not None:
        raise UserError(f'got {step!r}, but without random_start=True the size of the step is eps', field='fgsm.step')

    def apply(keys: jax.Array, images: jax.Array, targets: Targets, gradient: Gradient) -> jax.Array:
        return jnp.clip(images + eps * steepest_ascent(gradient(images, targets), norm), 0, 1)
    return Attack(apply)


@register
def pgd(eps: float, step: float, iterations: int, norm: str = 'linf') -> Attack:
    """Attack the network by projected gradient ascent (Madry et al. 2018).

    The attack starts at a point drawn uniformly within `eps` of the image. Each step of size `step` is followed by the
    projection to within `eps` of the image.

    Args:
      eps: the largest distance from the image, at least 0, for values in [0, 1].
      step: the size of a step, at least 0.
      iterations: the number of steps, at least 1.
      norm: the norm in which `eps` and `step` are measured, `linf` or `l2`.
    """
    check_number('pgd', eps=eps, step=step)
    check_whole_number('pgd', iterations=iterations)
    check_choice('pgd', NORMS, norm=norm)
    check_eps(eps, norm, 'pgd.eps')

    def apply(keys: jax.Array, images: jax.Array, targets: Targets, gradient: Gradient) -> jax.Array:
        offsets = jax.vmap(lambda key, image: random_offset(key, image, eps, norm))(keys, images)
        start = jnp.clip(images + offsets, 0, 1)
        return projected_ascent(images, start, targets, gradient, eps, step, iterations, norm)
    return Attack(apply)
