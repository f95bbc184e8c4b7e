"""Scaling of the loss, which keeps the gradients of a float16 network above the smallest numbers that float16 resolves.

The loss is multiplied by a scale before the backward pass, and the gradients are divided by it in float32 afterwards
(Micikevicius et al. 2018, "Mixed precision training"). A step whose gradients are not finite is skipped.

Attacks need only the direction of the gradient of each image, so these gradients are scaled image by image and stay scaled.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxcnn import config as cfg
from jaxcnn.config import bind
from jaxcnn.config.arguments import check_number, check_whole_number
from jaxcnn.errors import UserError, unknown
from jaxcnn.models import Network

FIELD = 'config.optim.loss_scale'
SMALLEST, LARGEST = 2.0 ** -24, 2.0 ** 24  # scales
State = dict[str, jax.Array]
MAX_SKIPPED = 16  # steps that a run with a constant scale may skip in sequence
LOGIT_GRADIENT = 2.0 ** 6  # largest gradient with respect to a logit of an image, from which those of its pixels follow


@dataclasses.dataclass(frozen=True)
class LossScaling:
    """How the scale of the loss changes from step to step.

    Attributes:
      initial: scale of the first step.
      every: number of steps in sequence with finite gradients after which the scale grows; 0: it is constant.
      factor: by which the scale grows, and by which it is divided after a step whose gradients are not finite.
      smallest, largest: limits of the scale.
    """

    initial: float
    every: int = 0
    factor: float = 1.0
    smallest: float = SMALLEST
    largest: float = LARGEST

    def init(self) -> State:
        """Return the state before the first step.

        It holds the `scale`; `good_steps`, the number of steps since it changed or a step was skipped; `skipped` and
        `skipped_in_stage`, the numbers of steps that were skipped in the run and in the present stage of the optimizer; and
        `skipped_in_sequence`.
        """
        counts = ('good_steps', 'skipped', 'skipped_in_stage', 'skipped_in_sequence')
        return {'scale': jnp.float32(self.initial), **{name: jnp.zeros((), jnp.int32) for name in counts}}

    def update(self, state: State, is_finite: jax.Array, begins_stage: jax.Array) -> State:
        """Return the state after a step.

        Args:
          state: state before the step.
          is_finite: whether the loss and the gradients of the step were finite; otherwise it was skipped.
          begins_stage: whether the step is the first one of a stage of the optimizer.
        """
        scale, skips = state['scale'], 1 - is_finite.astype(jnp.int32)
        good_steps = jnp.where(is_finite, state['good_steps'] + 1, 0)
        if self.every:
            grows = good_steps == self.every
            grown = jnp.where(grows, jnp.minimum(scale * self.factor, self.largest), scale)
            scale = jnp.where(is_finite, grown, jnp.maximum(scale / self.factor, self.smallest))
            good_steps = jnp.where(grows, 0, good_steps)
        return {'scale': scale, 'good_steps': good_steps, 'skipped': state['skipped'] + skips,
                'skipped_in_stage': jnp.where(begins_stage, 0, state['skipped_in_stage']) + skips,
                'skipped_in_sequence': jnp.where(is_finite, 0, state['skipped_in_sequence'] + 1)}

    def has_failed(self, before: State, after: State) -> jax.Array:
        """Return whether a step was skipped that no smaller scale could have saved.

        That is a step with the smallest scale or, if the scale is constant, the last of `MAX_SKIPPED` skipped steps in
        sequence.
        """
        if self.every:
            return (after['skipped'] > before['skipped']) & (before['scale'] <= self.smallest)
        return after['skipped_in_sequence'] >= MAX_SKIPPED


def _static(scale: float = 1024.0) -> LossScaling:
    check_number(FIELD, SMALLEST, LARGEST, scale=scale)
    return LossScaling(initial=scale)


def _dynamic(initial: float = 2.0 ** 16, every: int = 2000, factor: float = 2.0, smallest: float = 1.0) -> LossScaling:
    check_number(FIELD, SMALLEST, LARGEST, initial=initial)
    check_whole_number(FIELD, every=every)
    check_number(FIELD, 1.001, 65536, factor=factor)
    check_number(FIELD, SMALLEST, initial, smallest=smallest)
    return LossScaling(initial, every, factor, smallest)


_RULES: dict[str, Callable[..., LossScaling]] = {'static': _static, 'dynamic': _dynamic}


def make(optim: cfg.OptimConfig, network: Network) -> LossScaling | None:
    """Return how the loss of a run is scaled, or None if it is not.

    Args:
      optim: the optimisation.
      network: the network; `auto` scales the loss of one that computes in float16.

    Raises:
      UserError: the rule or an argument of it is unknown or out of range, or nothing is in float16.
    """
    choice = optim.loss_scale
    if choice.name not in ('auto', 'none', *_RULES):
        raise unknown('value', choice.name, ('auto', 'none', *_RULES), FIELD)
    uses_float16 = 'float16' in (network.dtype, network.param_dtype, optim.gradient_dtype)
    name = choice.name
    if name == 'auto':
        name = 'dynamic' if uses_float16 else 'none'
    if name == 'none':
        if choice.args:
            raise UserError(f'{choice.name!r} has no arguments, got {next(iter(choice.args))!r}', field=FIELD,
                            hint="dict(name='dynamic', ...) or dict(name='static', scale=1024)")
        return None
    if not uses_float16:
        raise UserError(f'{name!r} has no effect with config.model.dtype={network.dtype!r}, whose exponents reach as far as '
                        "float32's", field=FIELD, hint="leave it out, or set config.model.dtype='float16'")
    return _RULES[name](**bind(_RULES[name], (), choice.args, FIELD))


def all_finite(*trees: Any) -> jax.Array:
    """Return whether all numbers of some trees of arrays are finite."""
    return jnp.all(jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(trees)]))


def scale_image_gradients(logits: jax.Array, network: Network) -> jax.Array:
    """Return the logits (N, classes) such that the gradients with respect to the images do not underflow.

    The loss of an image that is classified with confidence has gradients that float16 rounds to 0. If the network computes
    in float16, the gradients that flow back from the logits of each image are multiplied by a power of two, after which the
    largest is about `LOGIT_GRADIENT`. The gradients with respect to each image keep their direction, but not their size.
    """
    return _scaled_gradients(logits.astype(jnp.float32)) if network.dtype == 'float16' else logits


@jax.custom_vjp
def _scaled_gradients(logits: jax.Array) -> jax.Array:
    return logits


def _scale_gradients(_: None, gradient: jax.Array) -> tuple[jax.Array]:
    exponent = jnp.frexp(jnp.abs(gradient).max(-1, keepdims=True) / LOGIT_GRADIENT)[1]
    return (jnp.ldexp(gradient, -exponent),)


_scaled_gradients.defvjp(lambda logits: (logits, None), _scale_gradients)
