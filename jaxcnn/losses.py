"""Losses and their registry. Losses are computed in float32, whatever the dtype of the network.

A loss is a function `(logits, targets, ...) -> (N,)` with arguments that `config.loss` can set. To add one, write the
function and put `@register(...)` above it, with the kinds of targets that it takes.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from jaxcnn import config as cfg
from jaxcnn.config import bind
from jaxcnn.data.targets import KINDS
from jaxcnn.errors import UserError, check_bool, name_field, unknown
from jaxcnn.registry import Registry

Loss = Callable[[jax.Array, jax.Array], jax.Array]
F = TypeVar('F', bound=Callable[..., jax.Array])
_LOSSES: Registry[tuple[Callable[..., jax.Array], tuple[str, ...]]] = Registry('loss')


def register(*targets: Any) -> Any:
    """Make a function known to `config.loss` under its name, as a decorator.

        @register
        def my_loss(logits, targets): ...

        @register('label', 'labels')
        def my_loss(logits, targets): ...

    Args:
      *targets: the kinds of targets that it takes: `label`, one class for each image (the default); `labels`, several.
    """
    if len(targets) == 1 and callable(targets[0]):
        return register('label')(targets[0])
    for kind in targets:
        if kind not in KINDS:
            raise unknown('kind of targets', kind, KINDS)

    def add(loss: F) -> F:
        _LOSSES.add(loss.__name__, (loss, targets), loss)
        return loss
    return add


def names(targets: str) -> list[str]:
    """Return the names of the losses that take a kind of targets."""
    return sorted(name for name, (_, kinds) in _LOSSES.items() if targets in kinds)


def make(choice: cfg.Choice, targets: str, task: str) -> tuple[Loss, Loss]:
    """Return the loss of a config for training, and the same loss without label smoothing for evaluation.

    Args:
      choice: `config.loss`.
      targets: the kind of targets of the task.
      task: the name of the task, for errors.

    Raises:
      UserError: The loss is unknown, does not take these targets, or does not take an argument.
    """
    if choice.name not in _LOSSES:
        raise unknown('loss', choice.name, names(targets), field='config.loss')
    loss, kinds = _LOSSES.get(choice.name)
    if targets not in kinds:
        raise UserError(f'the loss {choice.name!r} does not fit the task {task!r}', field='config.loss',
                        hint=f'these do: {", ".join(names(targets))}')
    with name_field('config.loss'):
        bound = bind(loss, (None, None), choice.args, f'loss {choice.name}')
    arguments = dict(list(bound.items())[2:])  # without the outputs and the targets
    for name, value in arguments.items():
        default = inspect.signature(loss).parameters[name].default
        check_bool(f'config.loss.{name}', default, value)
        low, high = _LIMITS.get(name, (-math.inf, math.inf))
        wants_number = name in _LIMITS or (isinstance(default, (int, float)) and not isinstance(default, bool))
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if wants_number and value is not default and not (is_number and low <= value <= high):
            limits = ' '.join(f'{word} {limit:g}' for word, limit in (('from', low), ('to', high)) if math.isfinite(limit))
            raise UserError(f'expected a number {limits}'.rstrip() + f', got {value!r}', field=f'config.loss.{name}')
    without_smoothing = {name: value for name, value in arguments.items() if name != 'label_smoothing'}
    return functools.partial(loss, **arguments), functools.partial(loss, **without_smoothing)


_LIMITS = {'label_smoothing': (0.0, 0.999), 'gamma': (0.0, math.inf), 'epsilon': (-1.0, math.inf), 'alpha': (0.0, 1.0)}


def _distributions(logits: jax.Array, targets: jax.Array, label_smoothing: float) -> jax.Array:
    """Return targets (N,) or (N, classes) as probabilities (N, classes), smoothed (Szegedy et al. 2016, section 7)."""
    probabilities = (targets.astype(jnp.float32) if targets.ndim == logits.ndim else
                     jax.nn.one_hot(targets, logits.shape[-1]))
    return optax.smooth_labels(probabilities, label_smoothing)


@register('label')
def cross_entropy(logits: jax.Array, targets: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Return the softmax cross-entropy of each example.

    Args:
      logits: (N, classes).
      targets: (N,) whole numbers, or (N, classes) probabilities.
      label_smoothing: the fraction of each target that is spread evenly over all classes, in [0, 1) (Szegedy et al. 2016).

    Returns:
      (N,) float32.
    """
    logits = logits.astype(jnp.float32)
    if targets.ndim < logits.ndim and not label_smoothing:
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return optax.softmax_cross_entropy(logits, _distributions(logits, targets, label_smoothing))


@register('label')
def focal(logits: jax.Array, targets: jax.Array, gamma: float = 2.0, label_smoothing: float = 0.0) -> jax.Array:
    """Return the cross-entropy weighted by `(1 - p)^gamma` of each class's probability p (Lin et al. 2017).

    Args:
      logits: (N, classes).
      targets: (N,) whole numbers, or (N, classes) probabilities.
      gamma: at least 0; 0 gives the cross-entropy.
      label_smoothing: see `cross_entropy`.
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    # below a gamma of 1, the gradient of (1 - p)^gamma is infinite at p = 1
    others = jnp.maximum(-jnp.expm1(log_probabilities), 1e-12)
    return -(_distributions(logits, targets, label_smoothing) * others ** gamma * log_probabilities).sum(-1)


@register('label')
def mse(logits: jax.Array, targets: jax.Array, softmax: bool = False, label_smoothing: float = 0.0) -> jax.Array:
    """Return the squared error against the one-hot target, summed over classes (Hui & Belkin 2021).

    Args:
      logits: (N, classes).
      targets: (N,) whole numbers, or (N, classes) probabilities.
      softmax: compare the softmax of the logits with the target, instead of the logits themselves.
      label_smoothing: see `cross_entropy`.
    """
    logits = logits.astype(jnp.float32)
    outputs = jax.nn.softmax(logits) if softmax else logits
    return ((outputs - _distributions(logits, targets, label_smoothing)) ** 2).sum(-1)


@register('label')
def poly1(logits: jax.Array, targets: jax.Array, epsilon: float = 1.0, label_smoothing: float = 0.0) -> jax.Array:
    """Return the cross-entropy plus `epsilon (1 - p)`, p being the target's probability (Leng et al. 2022).

    Args:
      logits: (N, classes).
      targets: (N,) whole numbers, or (N, classes) probabilities.
      epsilon: at least -1; 0 gives the cross-entropy.
      label_smoothing: see `cross_entropy`.
    """
    distributions = _distributions(logits, targets, label_smoothing)
    logits = logits.astype(jnp.float32)
    missing = 1 - (distributions * jax.nn.softmax(logits)).sum(-1)
    return optax.softmax_cross_entropy(logits, distributions) + epsilon * missing


@register('label', 'labels')
def bce(logits: jax.Array, targets: jax.Array, gamma: float = 0.0, alpha: float | None = None,
        label_smoothing: float = 0.0) -> jax.Array:
    """Return the binary cross-entropy of the sigmoid of each logit, averaged over classes.

    Because of the average, gradients shrink in proportion to the number of classes. With many classes, SGD may need a larger
    learning rate than for a loss that is summed over classes; Adam's steps do not depend on the scale of gradients.

    Args:
      logits: (N, classes).
      targets: (N, classes) from 0 to 1, or (N,) whole numbers.
      gamma: at least 0; above 0 gives the focal form, whose factor is `(1 - p)^gamma` (Lin et al. 2017).
      alpha: the weight of positives, in [0, 1]; negatives have the weight `1 - alpha`. None: both have the weight 1.
      label_smoothing: the fraction by which targets are moved towards 1/2, in [0, 1).
    """
    return bce_by_class(logits, targets, gamma, alpha, label_smoothing).mean(-1)


def bce_by_class(logits: jax.Array, targets: jax.Array, gamma: float = 0.0, alpha: float | None = None,
                 label_smoothing: float = 0.0) -> jax.Array:
    """Return the terms of `bce`, (N, classes)."""
    logits = logits.astype(jnp.float32)
    targets = targets.astype(jnp.float32) if targets.ndim == logits.ndim else jax.nn.one_hot(targets, logits.shape[-1])
    targets = targets * (1 - label_smoothing) + 0.5 * label_smoothing
    positive, negative = -jax.nn.log_sigmoid(logits) * targets, -jax.nn.log_sigmoid(-logits) * (1 - targets)
    if gamma:
        positive *= jnp.maximum(jax.nn.sigmoid(-logits), 1e-12) ** gamma
        negative *= jnp.maximum(jax.nn.sigmoid(logits), 1e-12) ** gamma
    return positive + negative if alpha is None else alpha * positive + (1 - alpha) * negative


def log_probabilities(logits: jax.Array, targets: str) -> jax.Array:
    """Return the logarithms of the probabilities that logits stand for.

    Args:
      logits: (N, classes).
      targets: the kind of targets of the task. With `label`, an image has one class, and the probabilities are a softmax.
        With `labels`, each class is present or not, and the probability of its presence is a sigmoid.

    Returns:
      For `label` (N, classes); for `labels` (N, classes, 2), of the presence and of the absence of each class.
    """
    logits = logits.astype(jnp.float32)
    if targets == 'label':
        return jax.nn.log_softmax(logits)
    return jnp.stack([jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)], -1)


def divergence(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """Return the Kullback-Leibler divergence of q from p for each image, a mean over classes for `labels`: (N,).

    Args:
      log_p, log_q: what `log_probabilities` returns.
    """
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1).reshape(len(log_p), -1).mean(-1)


@register('boxes')
def detection(terms: dict[str, jax.Array], targets: object, classes: float = 1.0, boxes: float = 1.0,
              rpn_objectness: float = 1.0, rpn_boxes: float = 1.0, centerness: float = 1.0) -> jax.Array:
    """Return the weighted sum of the terms of a detector's loss.

    Args:
      terms: (N,) each, by name; see the detector.
      targets: not used, as the terms depend on them already.
      classes, boxes, rpn_objectness, rpn_boxes, centerness: weights of the terms with these names, at least 0; others have
        the weight 1.
    """
    weights = {'classes': classes, 'boxes': boxes, 'rpn_objectness': rpn_objectness, 'rpn_boxes': rpn_boxes,
               'centerness': centerness}
    for name, weight in weights.items():
        if weight < 0:
            raise UserError(f'expected a number from 0, got {weight!r}', field=f'config.loss.{name}')
    return sum((weights.get(name, 1.0) * term.astype(jnp.float32) for name, term in terms.items()), jnp.zeros(()))
