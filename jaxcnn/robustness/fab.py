"""The fast adaptive boundary attack, which looks for the smallest change that reaches its aim (Croce & Hein 2020, "Minimally
distorted adversarial examples with a fast adaptive boundary attack")."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcnn.data.augment import adversarial
from jaxcnn.loss_scaling import LOGIT_GRADIENT
from jaxcnn.robustness.threat import Logits, Threat, of_class

OVERSHOOT = 1.05  # length of a step beyond the boundary
LARGEST_PULL = 0.1  # largest weight of the step that starts at the original image
RETREAT = 0.9  # what remains of the change once the boundary is crossed


class State(NamedTuple):
    """The state of the search, with a row for each image.

    Attributes:
      iteration: number of the next iteration.
      x: the current images (N, H, W, C).
      nearest: the images that reach the aim by the smallest change so far.
      distance: the size of that change, (N,); infinite if none has.
    """

    iteration: jax.Array
    x: jax.Array
    nearest: jax.Array
    distance: jax.Array


def make_fab(threat: Threat, iterations: int) -> Callable[..., jax.Array]:
    """Return the attack `(logits, keys, images, labels, targets, eps) -> images` in its targeted form.

    It moves along the boundary between the labels and the target classes. An image is returned as it is if no change of at
    most `eps` was found, and with the first such change otherwise. The attack ends when all images have one.

    Args:
      threat: what the attack may do and aims at.
      iterations: number of iterations, each with one gradient.
    """
    def apply(logits: Logits, keys: jax.Array, images: jax.Array, labels: jax.Array, targets: jax.Array,
              eps: jax.Array) -> jax.Array:
        def linearize(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            """Return by how much the targets' logits are larger than the labels', (N,), and the gradients at x."""
            scale = LOGIT_GRADIENT / 2  # gradients of a float16 network keep their size with this one alone

            def summed(x: jax.Array) -> tuple[jax.Array, jax.Array]:
                outputs = logits(x)
                lead = of_class(outputs, targets) - of_class(outputs, labels)
                return lead.sum() * scale, lead
            gradient, lead = jax.grad(summed, has_aux=True)(x)
            return lead, gradient / scale

        def iterate(s: State) -> State:
            lead, gradient = linearize(s.x)
            step = smallest_change(s.x, gradient, -lead, threat.norm)
            growth_from_image = (gradient * (s.x - images)).sum((1, 2, 3)) - lead
            step_from_image = smallest_change(images, gradient, growth_from_image, threat.norm)
            lengths = [jnp.maximum(adversarial.size(change, threat.norm), 1e-8) for change in (step, step_from_image)]
            pull = _column(jnp.minimum(lengths[0] / (lengths[0] + lengths[1]), LARGEST_PULL))
            x = (1 - pull) * (s.x + OVERSHOOT * step) + pull * (images + OVERSHOOT * step_from_image)
            x = jnp.clip(x, 0, 1)
            reached = threat.is_reached(logits(x), labels, targets)
            distance = adversarial.size(x - images, threat.norm)
            is_nearest = reached & (distance < s.distance) & (s.distance > eps)  # what is near enough stays as it is
            return State(s.iteration + 1, jnp.where(_column(reached), images + RETREAT * (x - images), x),
                         jnp.where(_column(is_nearest), x, s.nearest), jnp.where(is_nearest, distance, s.distance))

        start = State(jnp.zeros((), jnp.int32), images, images, jnp.full(len(images), jnp.inf))
        final = jax.lax.while_loop(lambda s: (s.iteration < iterations) & (s.distance > eps).any(), iterate, start)
        return jnp.where(_column(final.distance <= eps), final.nearest, images)
    return apply


def _column(values: jax.Array) -> jax.Array:
    """Return values of images, (N,), as (N, 1, 1, 1)."""
    return values[:, None, None, None]


def smallest_change(images: jax.Array, weights: jax.Array, growth: jax.Array, norm: str) -> jax.Array:
    """Return the smallest changes by which the weighted sums of images grow as required, within [0, 1].

    A value moves at a rate that the norm gives, until it is 0 or 1. So the growth is a concave, piecewise linear function of
    the length of the change, on which Newton's method reaches the required length from below in a few steps.

    Args:
      images: (N, H, W, C), in [0, 1].
      weights: the weights of their values.
      growth: the growth of each sum, (N,), which may be negative.
      norm: `linf` or `l2`.

    Returns:
      The changes (N, H, W, C). If a growth cannot be reached, all values with weights have moved to their limits.
    """
    signs = jnp.sign(weights * _column(jnp.sign(growth)))
    room = jnp.where(signs > 0, 1 - images, images)
    slope = jnp.abs(weights)
    rate = (slope > 0).astype(images.dtype) if norm == 'linf' else slope

    def lengthen(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        length, _ = state
        moved = _column(length) * rate
        missing = jnp.abs(growth) - (slope * jnp.minimum(moved, room)).sum((1, 2, 3))
        slope_here = jnp.where(moved < room, slope * rate, 0).sum((1, 2, 3))
        longer = length + jnp.where(slope_here > 0, jnp.maximum(missing, 0) / jnp.where(slope_here > 0, slope_here, 1), 0)
        return longer, (longer > length * (1 + 1e-6)).any()

    length, _ = jax.lax.while_loop(lambda state: state[1], lengthen, (jnp.zeros(len(images)), jnp.ones((), bool)))
    return signs * jnp.minimum(_column(length) * rate, room)
