"""The registry of augmentations, and the pipelines that strings describe."""

import functools
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.config import bind, parse_calls
from jaxcnn.data.crops import DrawCrop
from jaxcnn.errors import UserError
from jaxcnn.registry import Registry

Op = Callable[[jax.Array, jax.Array], jax.Array]
Examples = dict[str, jax.Array]  # a batch: `image` (N, H, W, C), and the targets of the task by name, (N, ...) each
Targets = dict[str, jax.Array]
# maps images (N, H, W, C) and their targets to the gradient of the loss with respect to the images
Gradient = Callable[[jax.Array, Targets], jax.Array]


class TargetMixer(Protocol):
    """The methods of a task that augmentation calls to change targets with their images."""

    def mixable(self, targets: Targets) -> Targets:
        """Return the targets of a batch in the form that `mix` takes."""

    def mix(self, targets: Targets, others: Targets, share: jax.Array) -> Targets:
        """Return the targets of an image that is mixed with another one; `share` of the result is the first image."""

    def move(self, targets: Targets, matrix: jax.Array, size: tuple[int, int]) -> Targets:
        """Return the targets of an image after an affine map of its pixels; see `jaxcnn.tasks.Task.move`."""


class Transformed(NamedTuple):
    """An image whose pixels an op has moved, and the affine map by which it has moved them.

    Attributes:
      image: the result, (H', W', C).
      matrix: (2, 3). It maps the position (x, y, 1) of a point of the input to its x and y in the result. Positions are in
        pixels from the upper left corner of the image, and the first pixel reaches from 0 to 1.
    """

    image: jax.Array
    matrix: jax.Array


def compose(second: jax.Array, first: jax.Array) -> jax.Array:
    """Return the matrix (2, 3) of the affine map that applies the map `first` and then `second`, (2, 3) each.

    It uses no matrix product, which a GPU would round to 10 bits.
    """
    columns = [second[:, 0] * first[0, i] + second[:, 1] * first[1, i] for i in range(3)]
    return jnp.stack(columns, 1).at[:, 2].add(second[:, 2])


@dataclass(frozen=True)
class Geometric:
    """An op that moves pixels: `(key, image) -> Transformed`. Its matrix also moves the targets that are positions.

    Call it as a function to get the image alone.

    Attributes:
      apply: the function.
      crop: the same on an image file, whose size differs from that of other images; None if the op cannot act on files.
    """

    apply: Callable[[jax.Array, jax.Array], Transformed]
    crop: DrawCrop | None = None

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Return the image whose pixels are moved."""
        return self.apply(key, image).image


@dataclass(frozen=True)
class Mix:
    """An op that mixes an image with another one: `(key, image, other) -> (image, share)`.

    The share is the part of the result that is the first image; the targets are mixed by it.
    """

    apply: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


@dataclass(frozen=True)
class Attack:
    """An op that attacks the network: `(keys, images, targets, gradient) -> images`, for images (N, H, W, C)."""

    apply: Callable[[jax.Array, jax.Array, Targets, Gradient], jax.Array]


@dataclass(frozen=True)
class ByEpoch:
    """An op that depends on the epoch: `(key, epoch, image) -> image`, or `-> Transformed` if it moves pixels.

    The key belongs to the image and is the same in all epochs.
    """

    apply: Callable[[jax.Array, jax.Array, jax.Array], jax.Array | Transformed]


AnyOp = Op | Geometric | Mix | Attack | ByEpoch
Factory = Callable[..., AnyOp]  # from arguments to an op


class Augmentation(NamedTuple):
    """A registered augmentation.

    Attributes:
      factory: a function from the arguments of the augmentation to its op.
      deterministic: whether the op draws no random numbers.
    """

    factory: Factory
    deterministic: bool


AUGMENTATIONS: Registry[Augmentation] = Registry('augmentation')


def register(factory: Any = None, *, deterministic: bool = False) -> Any:
    """Make an augmentation known to pipeline strings under the name of its function, as a decorator.

        @register
        def brightness(amount): ...

    Args:
      factory: a function from the arguments of the augmentation to its op.
      deterministic: whether the op draws no random numbers, so that evaluation may use it.

    Raises:
      UserError: another augmentation has this name.
    """
    def add(factory: Any) -> Any:
        AUGMENTATIONS.add(factory.__name__, Augmentation(factory, deterministic), factory)
        return factory
    return add if factory is None else add(factory)


def names(deterministic: bool = False) -> list[str]:
    """Return the names of the augmentations, or only of the deterministic ones."""
    return sorted(name for name, augmentation in AUGMENTATIONS.items() if augmentation.deterministic or not deterministic)


def describe(name: str) -> str:
    """Return the call of an augmentation with its arguments and defaults, and its docstring below."""
    factory = AUGMENTATIONS.get(name).factory
    arguments = ', '.join(str(p.replace(annotation=p.empty)) for p in inspect.signature(factory).parameters.values())
    return f'{name}({arguments})\n{textwrap.indent(inspect.getdoc(factory) or "", "    ")}\n'


def sequential_on_cpu(op: Op) -> Op:
    """Return the op such that, under `vmap`, a CPU applies it to one image after another; other devices batch it.

    A batched op with branches (`lax.switch`) computes all branches for all images. In a batched program XLA for the CPU also
    computes an intermediate result anew for each value that needs it. One image at a time, neither happens.
    """
    sequential = jax.custom_batching.sequential_vmap(op)
    return lambda key, image: jax.lax.platform_dependent(key, image, cpu=sequential, default=op)


def apply_with_probability(p: float, op: Op) -> Op:
    """Return an op that applies `op` with probability `p` and otherwise returns the image unchanged."""
    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key, float(p)), op(jax.random.fold_in(key, 1), image), image)
    return apply


def _fold_in(keys: jax.Array, data: int) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)


@dataclass(frozen=True)
class Pipeline:
    """A sequence of ops. The op at position i uses the example's key, into which i is folded.

    Attributes:
      text: the string that describes the pipeline.
      ops: one or several ops.
    """

    text: str
    ops: tuple[AnyOp, ...]

    @property
    def num_mixes(self) -> int:
        """How many ops mix images; if any does, the targets take the form that `TargetMixer.mixable` gives."""
        return sum(isinstance(op, Mix) for op in self.ops)

    @property
    def has_attack(self) -> bool:
        """Whether an op attacks a network, whose gradient it needs."""
        return any(isinstance(op, Attack) for op in self.ops)

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Augment a single image (H, W, C), without `Mix`, `Attack` and `ByEpoch`, which need more than an image."""
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
          examples: `image`, float (N, H, W, C) in [0, 1], and the targets.
          mixer: the task, which mixes and moves the targets.
          previous: maps an array (N, ...) to the array in which each row is replaced by the row before it in the global
            batch, and the first row by the last one.
          gradient: the gradient of the network's loss with respect to images; None if there is no network.
          passes: for each image a key that is the same in all epochs, (N,), and the epoch, (N,); None stands for `keys` and
            the first epoch.

        Returns:
          The images (N, H', W', C), and the targets, in the form that `mixer.mixable` gives if any op mixes images.

        Raises:
          UserError: an op attacks the network, but `gradient` is None.
        """
        images, targets = examples['image'], {name: value for name, value in examples.items() if name != 'image'}
        if self.has_attack and gradient is None:
            raise UserError(f'{self.text!r} attacks a network, but no network is given')
        if self.num_mixes:
            targets = mixer.mixable(targets)
        image_keys, epochs = passes or (keys, jnp.zeros(len(keys), jnp.int32))
        for position, op in enumerate(self.ops):
            op_keys = _fold_in(keys, position)
            result: jax.Array | Transformed
            if isinstance(op, Mix):
                result, shares = jax.vmap(op.apply)(op_keys, images, previous(images))
                others = {name: previous(value) for name, value in targets.items()}
                targets = jax.vmap(mixer.mix)(targets, others, shares)
            elif isinstance(op, Attack):
                assert gradient is not None
                result = op.apply(op_keys, images, targets, gradient)
            elif isinstance(op, ByEpoch):
                result = jax.vmap(op.apply)(_fold_in(image_keys, position), epochs, images)
            elif isinstance(op, Geometric):
                result = jax.vmap(op.apply)(op_keys, images)
            else:
                result = jax.vmap(op)(op_keys, images)
            if not isinstance(result, Transformed):
                images = result
                continue
            images = result.image
            if targets:
                move = functools.partial(mixer.move, size=(images.shape[1], images.shape[2]))
                targets = jax.vmap(move)(targets, result.matrix)
        return {'image': images, **targets}

    def matrix(self, image_shape: tuple[int, ...]) -> np.ndarray:
        """Return the map of a deterministic pipeline for images of shape (H, W, C): (2, 3), as in `Transformed`."""
        def composed() -> jax.Array:
            key, image, total = jax.random.key(0), jnp.zeros(image_shape), jnp.eye(2, 3)
            for op in self.ops:
                if isinstance(op, Geometric):
                    image, matrix = op.apply(key, image)
                    total = compose(matrix, total)
                elif not isinstance(op, (Mix, Attack, ByEpoch)):
                    image = op(key, image)
            return total
        return np.asarray(jax.jit(composed)())


def parse_pipeline(text: str, deterministic: bool = False) -> Pipeline | None:
    """Return the pipeline that a string such as `'pad_crop(4)|flip_lr'` describes; None for an empty string.

    Args:
      text: augmentations with their arguments, separated by `|`.
      deterministic: refuse augmentations that draw random numbers, as evaluation must.

    Raises:
      UserError: the string is not a pipeline, an augmentation is unknown, random or does not take an argument.
    """
    if not text.strip():
        return None
    field = f'config.data.{"eval_augment" if deterministic else "augment"}'
    ops = []
    for name, args, kwargs in parse_calls(text, field):
        factory, is_deterministic = AUGMENTATIONS.get(name)
        if deterministic and not is_deterministic:
            choices = ', '.join(names(deterministic=True))
            raise UserError(f'{name} is random', hint=f'evaluation takes the deterministic augmentations {choices}')
        ops.append(factory(**bind(factory, args, kwargs, f'augmentation {name}')))
    return Pipeline(text, tuple(ops))
