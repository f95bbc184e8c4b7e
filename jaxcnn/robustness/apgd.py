"""Auto-PGD: projected gradient ascent with momentum that halves its step by itself (Croce & Hein 2020, algorithm 1)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.data.augment import adversarial
from jaxcnn.robustness.threat import Logits, Loss, Threat

MOMENTUM = 0.75  # weight of the new step
INCREASES = 0.75  # share of the steps since the last checkpoint that must raise the loss


class State(NamedTuple):
    """The state of the ascent, with a row for each image.

    Attributes:
      iteration: number of the next iteration.
      x, previous: the current and the previous images (N, H, W, C).
      gradient, loss: the gradient of the loss and the loss (N,) at `x`.
      best_x, best_gradient, best_loss: the same where the loss was largest.
      step: size of the step (N, 1, 1, 1).
      increases: number of steps since the last checkpoint that raised the loss, (N,).
      was_halved: whether the step was halved at the last checkpoint, (N,).
      best_at_checkpoint: the largest loss at the last checkpoint, (N,).
      reached: whether the aim was reached at some iteration, (N,).
      reached_x: the images at the last iteration that reached it.
    """

    iteration: jax.Array
    x: jax.Array
    previous: jax.Array
    gradient: jax.Array
    loss: jax.Array
    best_x: jax.Array
    best_gradient: jax.Array
    best_loss: jax.Array
    step: jax.Array
    increases: jax.Array
    was_halved: jax.Array
    best_at_checkpoint: jax.Array
    reached: jax.Array
    reached_x: jax.Array


def checkpoint_lengths(iterations: int) -> np.ndarray:
    """Return, for iterations at whose end the step may be halved, how many have passed since the last one: (iterations,).

    The others have 0. The first length is 22 % of all iterations, and each is shorter by 3 % of them than the one before,
    down to 6 %.
    """
    length, shortest, decrease = (max(int(share * iterations), 1) for share in (0.22, 0.06, 0.03))
    lengths, end = np.zeros(iterations, np.int32), length
    while end <= iterations:
        lengths[end - 1] = length
        length = max(length - decrease, shortest)
        end += length
    return lengths


def _select(condition: jax.Array, x: jax.Array, other: jax.Array) -> jax.Array:
    """Return the rows of `x` where the condition (N,) holds, and those of `other` elsewhere."""
    return jnp.where(condition.reshape(-1, *[1] * (x.ndim - 1)), x, other)


def random_start(key: jax.Array, image: jax.Array, eps: jax.Array, norm: str) -> jax.Array:
    """Return a random change of an image whose norm is `eps`."""
    if norm == 'linf':
        change = jax.random.uniform(key, image.shape, image.dtype, -1, 1)
        return eps * change / jnp.abs(change).max()
    change = jax.random.normal(key, image.shape, image.dtype)
    return eps * change / jnp.sqrt((change ** 2).sum())


def make_apgd(threat: Threat, loss: Loss, iterations: int) -> Callable[..., jax.Array]:
    """Return the attack `(logits, keys, images, labels, targets, eps) -> images` that raises a loss.

    It ends when all images have reached the aim, so its result for an image that has not is that of all iterations.

    Args:
      threat: what the attack may do and aims at.
      loss: the loss of each image.
      iterations: number of iterations, each with one gradient.
    """
    lengths = checkpoint_lengths(iterations)

    def apply(logits: Logits, keys: jax.Array, images: jax.Array, labels: jax.Array, targets: jax.Array,
              eps: jax.Array) -> jax.Array:
        def summed_loss(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            outputs = logits(x)
            losses = loss(outputs, labels, targets)
            return losses.sum(), (losses, threat.is_reached(outputs, labels, targets))

        def evaluate(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            (_, (losses, reached)), gradient = jax.value_and_grad(summed_loss, has_aux=True)(x)
            return losses, gradient, reached

        def iterate(s: State) -> State:
            momentum = jnp.where(s.iteration > 0, MOMENTUM, 1.0)
            z = adversarial.ascend(images, s.x, s.gradient, s.step, eps, threat.norm)
            change = s.x + momentum * (z - s.x) + (1 - momentum) * (s.x - s.previous) - images
            x = jnp.clip(images + adversarial.project(change, eps, threat.norm), 0, 1)
            losses, gradient, reached = evaluate(x)
            improved = losses > s.best_loss
            s = s._replace(
                iteration=s.iteration + 1, x=x, previous=s.x, gradient=gradient, loss=losses,
                best_x=_select(improved, x, s.best_x), best_gradient=_select(improved, gradient, s.best_gradient),
                best_loss=jnp.maximum(s.best_loss, losses), increases=s.increases + (losses > s.loss),
                reached=s.reached | reached, reached_x=_select(reached, x, s.reached_x))
            length = jnp.asarray(lengths)[s.iteration - 1]
            return jax.lax.cond(length > 0, lambda: halve_steps(s, length), lambda: s)

        changes = jax.vmap(lambda key, image: random_start(key, image, eps, threat.norm))(keys, images)
        first = jnp.clip(images + changes, 0, 1)
        losses, gradient, reached = evaluate(first)
        state = State(
            iteration=jnp.zeros((), jnp.int32), x=first, previous=first, gradient=gradient, loss=losses,
            best_x=first, best_gradient=gradient, best_loss=losses,
            step=jnp.full((len(images), 1, 1, 1), 2 * eps, images.dtype), increases=jnp.zeros(len(images), jnp.int32),
            was_halved=jnp.ones(len(images), bool), best_at_checkpoint=losses, reached=reached, reached_x=first)
        final = jax.lax.while_loop(lambda s: (s.iteration < iterations) & ~s.reached.all(), iterate, state)
        return _select(final.reached, final.reached_x, final.best_x)
    return apply


def halve_steps(s: State, length: jax.Array) -> State:
    """Return the state after a checkpoint, `length` iterations after the last one.

    The step of an image is halved, and the ascent goes on from its best point, if too few steps have raised the loss, or if
    the step was not halved at the last checkpoint and the best loss is still the same.
    """
    halved = (s.increases <= INCREASES * length) | (~s.was_halved & (s.best_at_checkpoint >= s.best_loss))
    return s._replace(
        step=_select(halved, s.step / 2, s.step), x=_select(halved, s.best_x, s.x),
        gradient=_select(halved, s.best_gradient, s.gradient), loss=_select(halved, s.best_loss, s.loss),
        increases=jnp.zeros_like(s.increases), was_halved=halved, best_at_checkpoint=s.best_loss)
