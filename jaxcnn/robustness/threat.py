"""What an attack on a classifier may do and aims at, and the losses that it raises."""

import dataclasses
import re
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from jaxcnn.data.augment import adversarial
from jaxcnn.errors import UserError

# from images (N, H, W, C) in [0, 1] to the logits of the classes, float32 (N, classes)
Logits: TypeAlias = Callable[[jax.Array], jax.Array]
# from the logits, the labels (N,) and the target classes (N,) to the loss of each image, (N,)
Loss: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def parse_eps(text: str, norm: str) -> float:
    """Return the largest norm of a change that a text such as `8/255` or `0.5` gives, for images in [0, 1].

    Raises:
      UserError: It is not a number of at least 0, or in the norm `linf` it is above 1.
    """
    number = r'\s*((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*'
    match = re.fullmatch(f'{number}(?:/{number})?', text)
    if not match or (match[2] and float(match[2]) == 0):
        raise UserError(f'expected a number of at least 0 or a fraction, such as 8/255, got {text!r}')
    eps = float(match[1]) / float(match[2] or 1)
    adversarial.check_eps(eps, norm, text=text.strip())
    return eps


def format_eps(eps: float) -> str:
    """Return the size of a change as text, as a number or, if this is shorter, as a fraction such as `8/255`."""
    return min(f'{eps:g}', f'{255 * eps:g}/255', key=len)


@dataclasses.dataclass(frozen=True)
class Threat:
    """What an attack may do, and what it aims at.

    Attributes:
      norm: the norm of the change of an image, `linf` or `l2`.
      targeted: whether the network must predict a target class, and not just any wrong class.
    """

    norm: str = 'linf'
    targeted: bool = False

    def is_reached(self, logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
        """Return whether the network predicts what the attack aims at, (N,) bool. Logits that are not a number count."""
        predicted = logits.argmax(-1)
        is_nan = jnp.isnan(logits).any(-1)
        return is_nan | (predicted == targets if self.targeted else predicted != labels)

    def cross_entropy(self, logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
        """Return the cross-entropy of the labels, or the negative one of the targets, (N,)."""
        log_probabilities = jax.nn.log_softmax(logits)
        if self.targeted:
            return of_class(log_probabilities, targets)
        return -of_class(log_probabilities, labels)

    def margin(self, logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
        """Return by how much the logits miss the aim of the attack, (N,): it is reached where the margin is negative."""
        if self.targeted:
            return largest_other(logits, targets) - of_class(logits, targets)
        return of_class(logits, labels) - largest_other(logits, labels)

    def logits_ratio(self, logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
        """Return the difference of logits ratio (Croce & Hein 2020, equations 6 and 7), (N,), which does not change if all
        logits are multiplied by a number.

        It needs three classes, or four if the attack is targeted.
        """
        if self.targeted:
            return -self.margin(logits, labels, targets) / _targeted_scale(logits)
        descending = jnp.sort(logits, -1)[:, ::-1]
        return -self.margin(logits, labels, targets) / (descending[:, 0] - descending[:, 2] + 1e-12)


def targeted_logits_ratio(logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the difference of logits ratio of the labels and one other class (Croce & Hein 2020, equation 7), (N,).

    It needs four classes.
    """
    return (of_class(logits, targets) - of_class(logits, labels)) / _targeted_scale(logits)


def _targeted_scale(logits: jax.Array) -> jax.Array:
    """Return the difference of the largest logit and the mean of the third and the fourth, (N,)."""
    descending = jnp.sort(logits, -1)[:, ::-1]
    return descending[:, 0] - (descending[:, 2] + descending[:, 3]) / 2 + 1e-12


def of_class(values: jax.Array, classes: jax.Array) -> jax.Array:
    """Return the value of one class for each image: (N,)."""
    return jnp.take_along_axis(values, classes[:, None], -1)[:, 0]


def largest_other(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Return the largest logit of each image except that of a class: (N,)."""
    is_class = jax.nn.one_hot(classes, logits.shape[-1], dtype=bool)
    return jnp.where(is_class, -jnp.inf, logits).max(-1)


def class_order(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the classes of each image by their logits, the largest first and the label last: (N, classes)."""
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    return jnp.argsort(-jnp.where(is_label, -jnp.inf, logits), -1)
