"""The registry of ops, what checks their parameters, and the pipeline that a string describes."""

import inspect
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxcnn.config import bind, parse_calls
from jaxcnn.errors import UserError, unknown

Op = Callable[[jax.Array, jax.Array], jax.Array]
Examples = dict[str, jax.Array]  # a batch: `image` (N, H, W, C), and the targets of the task by name, (N, ...)
Targets = dict[str, jax.Array]
# maps images (N, H, W, C) and their targets to the gradient of the loss by the images
Gradient = Callable[[jax.Array, Targets], jax.Array]


class TargetMixer(Protocol):
    """The task, as far as mixing needs it."""

    def mixable(self, targets: Targets) -> Targets:
        """Return the targets of a batch in the form that `mix` takes."""

    def mix(self, targets: Targets, others: Targets, share: jax.Array) -> Targets:
        """Return the targets of one image that is mixed with another one, of which it holds the part `share`."""


@dataclass(frozen=True)
class Mix:
    """An op on an image and another one: `(key, image, other) -> (image, share)`, the share that is left of the image."""

    apply: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


@dataclass(frozen=True)
class Attack:
    """An op that sees the network: `(keys, images, targets, gradient) -> images`, on (N, H, W, C)."""

    apply: Callable[[jax.Array, jax.Array, Targets, Gradient], jax.Array]


@dataclass(frozen=True)
class ByEpoch:
    """An op that knows how often the image has been there: `(key, epoch, image) -> image`, the key being the image's own,
    the same in each epoch."""

    apply: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


AnyOp = Op | Mix | Attack | ByEpoch
_OPS: dict[str, Callable[..., AnyOp]] = {}
_STEADY: set[str] = set()


def register(factory: Callable[..., Any]) -> Callable[..., Any]:
    """Makes an op known to pipeline strings under the function's name."""
    _OPS[factory.__name__] = factory
    return factory


def steady(factory: Callable[..., Any]) -> Callable[..., Any]:
    """`register` for an op that draws nothing, so that evaluation may use it."""
    _STEADY.add(factory.__name__)
    return register(factory)


def names(steady: bool = False) -> list[str]:
    """The registered ops; `steady`: those that draw nothing."""
    return sorted(_STEADY if steady else _OPS)


def described(name: str) -> str:
    """An op as it is written, with its arguments and their defaults, and its docstring."""
    factory = _OPS[name]
    arguments = ', '.join(str(p.replace(annotation=p.empty)) for p in inspect.signature(factory).parameters.values())
    return f'{name}({arguments})\n{textwrap.indent(inspect.getdoc(factory) or "", "    ")}\n'


def whole(op: str, low: int = 1, **value: Any) -> None:
    """Raises a UserError for a parameter that is not a whole number of at least `low`."""
    for name, x in value.items():
        if not isinstance(x, int) or isinstance(x, bool) or x < low:
            raise UserError(f'{op}: {name} must be a whole number of at least {low}, got {x!r}')


def number(op: str, low: float = 0.0, high: float = math.inf, **value: Any) -> None:
    """Raises a UserError for a parameter that is not a finite number from `low` to `high`."""
    for name, x in value.items():
        if isinstance(x, bool) or not isinstance(x, (int, float)) or not low <= x <= high or math.isinf(x):
            limits = f'between {low:g} and {high:g}' if high < math.inf else f'a number of at least {low:g}'
            raise UserError(f'{op}: {name} must be {limits}, got {x!r}')


def span(op: str, low: float = 0.0, high: float = math.inf, **value: Any) -> None:
    """Raises a UserError for a parameter that is not two numbers, from `low` to `high`, the second not the smaller."""
    for name, x in value.items():
        if not isinstance(x, (tuple, list)) or len(x) != 2:
            raise UserError(f'{op}: {name} must be two numbers (least, most), got {x!r}')
        number(op, low, high, **{f'{name}[0]': x[0], f'{name}[1]': x[1]})
        if x[0] > x[1]:
            raise UserError(f'{op}: {name} must not begin above its end, got {x!r}')


def one_of(op: str, choices: Sequence[str], **value: Any) -> None:
    """Raises a UserError for a parameter that is none of `choices`."""
    for name, x in value.items():
        if x not in choices:
            raise unknown(f'{name} of {op}', x, choices)


def in_turn(op: Op) -> Op:
    """`op`, of a batch on a CPU one image at a time, in which it may take one of several ways; else all ways of all images.

    XLA on a CPU computes anew, for each value, what one batched program has in several places.
    """
    one_by_one = jax.custom_batching.sequential_vmap(op)
    return lambda key, image: jax.lax.platform_dependent(key, image, cpu=one_by_one, default=op)


def maybe(p: float, op: Op) -> Op:
    """`op` with probability `p`, else the image as it is."""
    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key, float(p)), op(jax.random.fold_in(key, 1), image), image)
    return apply


@dataclass(frozen=True)
class Pipeline:
    """Ops one after the other; the op at position i draws from the example's key, folded with i.

    Attributes:
      text: as it was written.
      ops: never none.
    """

    text: str
    ops: tuple[AnyOp, ...]

    @property
    def mixes(self) -> int:
        """How many of its ops mix; where any does, labels become probabilities."""
        return sum(isinstance(op, Mix) for op in self.ops)

    @property
    def attacks(self) -> bool:
        """Whether it needs a network."""
        return any(isinstance(op, Attack) for op in self.ops)

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Of one image (H, W, C) alone; `Mix`, `Attack` and `ByEpoch`, which need more than that, are left out."""
        for position, op in enumerate(self.ops):
            if not isinstance(op, (Mix, Attack, ByEpoch)):
                image = op(jax.random.fold_in(key, position), image)
        return image

    def batch(self, keys: jax.Array, examples: Examples, mixer: TargetMixer,
              previous: Callable[[jax.Array], jax.Array], gradient: Gradient | None,
              passes: tuple[jax.Array, jax.Array] | None = None) -> Examples:
        """Augment a batch.

        Args:
          keys: (N,), one for each example.
          examples: `image`, float (N, H, W, C) in [0, 1], and targets.
          mixer: how targets are mixed: the task.
          previous: gives for each row the row before it in the global batch, for the first row the last one.
          gradient: of the network's loss by images; None where nothing attacks it.
          passes: (N,) keys, the same for an image in each epoch, and (N,) epochs; None: `keys`, and the first epoch.

        Returns:
          Images (N, H', W', C), and targets, in the form that `mixer.mixable` gives where any op mixes.

        Raises:
          UserError: An op attacks a network, and there is none.
        """
        images, targets = examples['image'], {name: value for name, value in examples.items() if name != 'image'}
        if self.attacks and gradient is None:
            raise UserError(f'{self.text}: attacks a network, and there is none here')
        if self.mixes:
            targets = mixer.mixable(targets)
        passes = passes or (keys, jnp.zeros(len(keys), jnp.int32))
        for position, op in enumerate(self.ops):
            own = jax.vmap(lambda key, position=position: jax.random.fold_in(key, position))(keys)
            if isinstance(op, Mix):
                images, shares = jax.vmap(op.apply)(own, images, previous(images))
                targets = jax.vmap(mixer.mix)(targets, {name: previous(value) for name, value in targets.items()}, shares)
            elif isinstance(op, Attack):
                assert gradient is not None
                images = op.apply(own, images, targets, gradient)
            elif isinstance(op, ByEpoch):
                images = jax.vmap(lambda key, epoch, image, op=op, position=position: op.apply(
                    jax.random.fold_in(key, position), epoch, image))(*passes, images)
            else:
                images = jax.vmap(op)(own, images)
        return {'image': images, **targets}


def pipeline(text: str, steady: bool = False) -> Pipeline | None:
    """What a pipeline string describes; None where it is empty.

    Args:
      text: ops with arguments, `|` between them.
      steady: takes only ops that draw nothing.

    Raises:
      UserError: an unknown op, an argument it does not take, or a string that is not a pipeline.
    """
    ops = []
    where = f'config.data.{"eval_augment" if steady else "augment"}'
    for name, args, kwargs in parse_calls(text, where) if text.strip() else []:
        if name not in _OPS:
            raise unknown('augmentation', name, names())
        if steady and name not in _STEADY:
            raise UserError(f'{name} draws at random; evaluation takes {", ".join(names(steady=True))}')
        ops.append(_OPS[name](**bind(_OPS[name], args, kwargs, f'augmentation {name}')))
    return Pipeline(text, tuple(ops)) if ops else None
