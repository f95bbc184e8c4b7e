"""AutoAugment, RandAugment and TrivialAugment: ops drawn from a fixed set, as torchvision and PIL define them.

Values are bytes between two ops, as in PIL.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.data.augment.color import equalized, histogram, look_up, smoothed, to_bytes
from jaxcnn.data.augment.geometry import affine_matrix, warp
from jaxcnn.data.augment.registry import Op, in_turn, number, one_of, register, whole
from jaxcnn.errors import UserError

SIGNED = ('shear_x', 'shear_y', 'translate_x', 'translate_y', 'rotate', 'brightness', 'color', 'contrast', 'sharpness')
OPS = (*SIGNED, 'posterize', 'solarize', 'autocontrast', 'equalize', 'invert', 'identity')
_INDEX = {name: i for i, name in enumerate(OPS)}

SubPolicy = tuple[tuple[str, float, int], tuple[str, float, int]]  # two times: op, probability, magnitude 0 to 9

# Cubuk et al. 2019, tables 7 and 9: the sub-policies that were found, one of which is drawn for each image
CIFAR10: tuple[SubPolicy, ...] = (
    (('invert', 0.1, 0), ('contrast', 0.2, 6)), (('rotate', 0.7, 2), ('translate_x', 0.3, 9)),
    (('sharpness', 0.8, 1), ('sharpness', 0.9, 3)), (('shear_y', 0.5, 8), ('translate_y', 0.7, 9)),
    (('autocontrast', 0.5, 0), ('equalize', 0.9, 0)), (('shear_y', 0.2, 7), ('posterize', 0.3, 7)),
    (('color', 0.4, 3), ('brightness', 0.6, 7)), (('sharpness', 0.3, 9), ('brightness', 0.7, 9)),
    (('equalize', 0.6, 0), ('equalize', 0.5, 0)), (('contrast', 0.6, 7), ('sharpness', 0.6, 5)),
    (('color', 0.7, 7), ('translate_x', 0.5, 8)), (('equalize', 0.3, 0), ('autocontrast', 0.4, 0)),
    (('translate_y', 0.4, 3), ('sharpness', 0.2, 6)), (('brightness', 0.9, 6), ('color', 0.2, 8)),
    (('solarize', 0.5, 2), ('invert', 0.0, 0)), (('equalize', 0.2, 0), ('autocontrast', 0.6, 0)),
    (('equalize', 0.2, 0), ('equalize', 0.6, 0)), (('color', 0.9, 9), ('equalize', 0.6, 0)),
    (('autocontrast', 0.8, 0), ('solarize', 0.2, 8)), (('brightness', 0.1, 3), ('color', 0.7, 0)),
    (('solarize', 0.4, 5), ('autocontrast', 0.9, 0)), (('translate_y', 0.9, 9), ('translate_y', 0.7, 9)),
    (('autocontrast', 0.9, 0), ('solarize', 0.8, 3)), (('equalize', 0.8, 0), ('invert', 0.1, 0)),
    (('translate_y', 0.7, 9), ('autocontrast', 0.9, 0)),
)
IMAGENET: tuple[SubPolicy, ...] = (
    (('posterize', 0.4, 8), ('rotate', 0.6, 9)), (('solarize', 0.6, 5), ('autocontrast', 0.6, 0)),
    (('equalize', 0.8, 0), ('equalize', 0.6, 0)), (('posterize', 0.6, 7), ('posterize', 0.6, 6)),
    (('equalize', 0.4, 0), ('solarize', 0.2, 4)), (('equalize', 0.4, 0), ('rotate', 0.8, 8)),
    (('solarize', 0.6, 3), ('equalize', 0.6, 0)), (('posterize', 0.8, 5), ('equalize', 1.0, 0)),
    (('rotate', 0.2, 3), ('solarize', 0.6, 8)), (('equalize', 0.6, 0), ('posterize', 0.4, 6)),
    (('rotate', 0.8, 8), ('color', 0.4, 0)), (('rotate', 0.4, 9), ('equalize', 0.6, 0)),
    (('equalize', 0.0, 0), ('equalize', 0.8, 0)), (('invert', 0.6, 0), ('equalize', 1.0, 0)),
    (('color', 0.6, 4), ('contrast', 1.0, 8)), (('rotate', 0.8, 8), ('color', 1.0, 2)),
    (('color', 0.8, 8), ('solarize', 0.8, 7)), (('sharpness', 0.4, 7), ('invert', 0.6, 0)),
    (('shear_x', 0.6, 5), ('equalize', 1.0, 0)), (('color', 0.4, 0), ('equalize', 0.6, 0)),
    (('equalize', 0.4, 0), ('solarize', 0.2, 4)), (('solarize', 0.6, 5), ('autocontrast', 0.6, 0)),
    (('invert', 0.6, 0), ('equalize', 1.0, 0)), (('color', 0.6, 4), ('contrast', 1.0, 8)),
    (('equalize', 0.8, 0), ('equalize', 0.6, 0)),
)
POLICIES = {'cifar10': CIFAR10, 'imagenet': IMAGENET}


@dataclass(frozen=True)
class Space:
    """What magnitudes mean: of each op, the values from magnitude 0 to the largest.

    Attributes:
      bins: how many magnitudes there are.
      shear: largest, as a slope.
      translate: largest, in pixels if above 1, else as a part of the side.
      rotate: largest, in degrees.
      enhance: how far the factors of brightness, color, contrast and sharpness go from 1.
      posterize: most bits that are dropped.
    """

    bins: int
    shear: float = 0.3
    translate: float = 150 / 331
    rotate: float = 30.0
    enhance: float = 0.9
    posterize: int = 4

    def values(self, shape: tuple[int, ...]) -> np.ndarray:
        """(ops, bins) float32 for images of `shape` (H, W, ...)."""
        high, wide = (self.translate * (side if self.translate <= 1 else 1) for side in shape[:2])
        ends = {'shear_x': self.shear, 'shear_y': self.shear, 'translate_x': wide, 'translate_y': high,
                'rotate': self.rotate, **dict.fromkeys(('brightness', 'color', 'contrast', 'sharpness'), self.enhance)}
        ramp = np.linspace(0, 1, self.bins)
        rows = {name: end * ramp for name, end in ends.items()}
        rows['translate_x'], rows['translate_y'] = (np.floor(rows[name] + 1e-6) for name in ('translate_x', 'translate_y'))
        rows['posterize'] = np.round(self.posterize * ramp)  # bits dropped
        rows['solarize'] = 255 * (1 - ramp)
        return np.stack([rows.get(name, 0 * ramp) for name in OPS]).astype(np.float32)


def transform(image: jax.Array, op: jax.Array | int, amount: jax.Array | float, fill: float = 0.0) -> jax.Array:
    """The image after one op.

    Args:
      image: (H, W, C), whole numbers from 0 to 255 as float32.
      op: its place in `OPS`.
      amount: of the op: a slope, pixels, degrees, a factor less 1, bits dropped, or the threshold of `solarize`.
      fill: in [0, 255], of what comes in from outside.

    Returns:
      Of the same form.
    """
    def warped(degrees: Any = 0.0, shear_x: Any = 0.0, shear_y: Any = 0.0, x: Any = 0.0, y: Any = 0.0) -> jax.Array:
        zero = jnp.zeros(())
        return warp(image, affine_matrix(image.shape, degrees) + jnp.array([[zero, shear_x, -x], [shear_y, zero, -y]]),
                    'nearest', fill)

    def blended(other: jax.Array) -> jax.Array:
        return _byte(other + (1 + amount) * (image - other))

    def autocontrast() -> jax.Array:
        low, high = image.min((0, 1)), image.max((0, 1))
        step = 255 / jnp.maximum(high - low, 1)
        return jnp.where(high > low, _byte(image * step - low * step), image)

    def equalize() -> jax.Array:
        pixels = image.astype(jnp.int32)
        return look_up(equalized(histogram(pixels)), pixels)

    def posterize() -> jax.Array:
        kept = jnp.exp2(amount)
        return jnp.floor(image / kept) * kept

    branches: dict[str, Callable[[], jax.Array]] = {
        'shear_x': lambda: warped(shear_x=amount), 'shear_y': lambda: warped(shear_y=amount),
        'translate_x': lambda: warped(x=amount), 'translate_y': lambda: warped(y=amount), 'rotate': lambda: warped(amount),
        'brightness': lambda: _byte((1 + amount) * image), 'color': lambda: blended(_grey(image)),
        'contrast': lambda: blended(jnp.floor(_grey(image).mean() + 0.5)),
        'sharpness': lambda: blended(jax.lax.optimization_barrier(jnp.floor(smoothed(image) + 0.5))),
        'posterize': posterize, 'solarize': lambda: jnp.where(image < amount, image, 255 - image),
        'autocontrast': autocontrast, 'equalize': equalize, 'invert': lambda: 255 - image, 'identity': lambda: image,
    }
    return jax.lax.switch(op, [branches[name] for name in OPS])


def _byte(x: jax.Array) -> jax.Array:
    """Cut off, as PIL does."""
    return jnp.floor(jnp.clip(x, 0, 255) + 1e-4)


def _grey(image: jax.Array) -> jax.Array:
    """PIL's luma of bytes, in all channels."""
    if image.shape[-1] != 3:
        return image
    luma = (image.astype(jnp.int32) * jnp.array([19595, 38470, 7471])).sum(-1, keepdims=True) + 0x8000 >> 16
    return jnp.broadcast_to(luma, image.shape).astype(image.dtype)


Draw = Callable[[jax.Array, tuple[int, ...]], tuple[jax.Array, jax.Array]]


def _policy(draw: Draw, fill: float) -> Op:
    """The op that applies what `draw(key, shape)` says: ops (n,) and their amounts (n,)."""
    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        if image.shape[-1] not in (1, 3):
            raise UserError(f'policies need images of 1 or 3 channels, got {image.shape[-1]}')
        x = to_bytes(image).astype(jnp.float32)
        for op, amount in zip(*draw(key, image.shape), strict=True):
            x = transform(x, op, amount, fill=round(255 * fill))
        return (x / 255).astype(image.dtype)
    return in_turn(apply)


def signed(key: jax.Array, ops: jax.Array, amounts: jax.Array) -> jax.Array:
    """The amounts, those of ops with two directions negative with probability a half."""
    negative = jax.random.bernoulli(key, shape=ops.shape) & (ops < len(SIGNED))
    return jnp.where(negative, -amounts, amounts)


def drawn_sub_policy(policy: tuple[SubPolicy, ...]) -> Draw:
    """AutoAugment: one of the sub-policies, of which each op is applied with its probability."""
    ops, chances, bins = (np.array([[part[i] for part in sub] for sub in policy]) for i in range(3))
    ops = np.vectorize(_INDEX.get)(ops)

    def draw(key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        which, applied, sign = jax.random.split(key, 3)
        sub = jax.random.randint(which, (), 0, len(policy))
        op, chance, magnitude = (jnp.asarray(table)[sub] for table in (ops, chances, bins))
        op = jnp.where(jax.random.uniform(applied, (2,)) < chance, op, _INDEX['identity'])
        return op, signed(sign, op, jnp.asarray(Space(10).values(shape))[op, magnitude])
    return draw


def drawn_ops(num_ops: int, space: Space, magnitude: int | None) -> Draw:
    """RandAugment and TrivialAugment: ops drawn uniformly, with one magnitude, or, where that is None, a drawn one each."""
    choices = np.array([i for name, i in _INDEX.items() if name != 'invert'])

    def draw(key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        which, strength, sign = jax.random.split(key, 3)
        op = jax.random.choice(which, choices, (num_ops,))
        bins = jax.random.randint(strength, (num_ops,), 0, space.bins) if magnitude is None else magnitude
        return op, signed(sign, op, jnp.asarray(space.values(shape))[op, bins])
    return draw


@register
def auto_augment(policy: str, fill: float = 0.0) -> Op:
    """AutoAugment (Cubuk et al. 2019): one of 25 pairs of ops, found by search on the data set `policy`.

    Args:
      policy: `cifar10` or `imagenet`.
      fill: value in [0, 1] of what comes in from outside.
    """
    one_of('auto_augment', list(POLICIES), policy=policy)
    number('auto_augment', high=1, fill=fill)
    return _policy(drawn_sub_policy(POLICIES[policy]), fill)


@register
def rand_augment(num_ops: int = 2, magnitude: int = 9, fill: float = 0.0) -> Op:
    """RandAugment (Cubuk et al. 2020): `num_ops` ops drawn from 14, each with `magnitude`, 0 to 30.

    Args:
      num_ops: at least 1.
      magnitude: whole; 30 is AutoAugment's strongest.
      fill: value in [0, 1] of what comes in from outside.
    """
    whole('rand_augment', num_ops=num_ops)
    whole('rand_augment', 0, magnitude=magnitude)
    number('rand_augment', high=30, magnitude=magnitude)
    number('rand_augment', high=1, fill=fill)
    return _policy(drawn_ops(num_ops, Space(31), magnitude), fill)


@register
def trivial_augment(fill: float = 0.0) -> Op:
    """TrivialAugment, wide (Müller & Hutter 2021): one op drawn from 14, with a strength drawn from 31.

    Args:
      fill: value in [0, 1] of what comes in from outside.
    """
    number('trivial_augment', high=1, fill=fill)
    wide = Space(31, shear=0.99, translate=32.0, rotate=135.0, enhance=0.99, posterize=6)
    return _policy(drawn_ops(1, wide, None), fill)
