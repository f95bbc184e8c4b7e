"""AutoAugment, RandAugment and TrivialAugment, which draw ops from a fixed set.

The ops follow those of torchvision on PIL images. Between two ops, the pixels are rounded to bytes, as in PIL.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.config.arguments import check_choice, check_number, check_whole_number
from jaxcnn.data.augment.affine import affine_matrix, invert, warp
from jaxcnn.data.augment.color import equalization_table, histogram, look_up, smooth, to_bytes
from jaxcnn.data.augment.registry import Geometric, Transformed, compose, register, sequential_on_cpu
from jaxcnn.errors import UserError

# The ops whose amounts may be negative. They come first in `OPS`.
SIGNED = ('shear_x', 'shear_y', 'translate_x', 'translate_y', 'rotate', 'brightness', 'color', 'contrast', 'sharpness')
OPS = (*SIGNED, 'posterize', 'solarize', 'autocontrast', 'equalize', 'invert', 'identity')
_INDEX = {name: i for i, name in enumerate(OPS)}

SubPolicy = tuple[tuple[str, float, int], tuple[str, float, int]]  # two ops with their probabilities and magnitudes (0 to 9)

# The sub-policies of Cubuk et al. 2019, tables 7 and 9, one of which is drawn for each image.
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
class AugmentationSpace:
    """The amount by which each op changes an image at each magnitude. The effect grows linearly with the magnitude.

    Attributes:
      bins: number of magnitudes.
      shear: largest shear, as a slope.
      translate: largest translation, in pixels if it is above 1, and otherwise as a fraction of the height or width.
      rotate: largest rotation in degrees.
      enhance: largest deviation from 1 of the factors of brightness, color, contrast and sharpness.
      posterize: largest number of bits that are cleared.
    """

    bins: int
    shear: float = 0.3
    translate: float = 150 / 331
    rotate: float = 30.0
    enhance: float = 0.9
    posterize: int = 4

    def values(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return the amounts for images of a shape (H, W, ...) as a float32 array (ops, bins), in the order of `OPS`."""
        down, right = (self.translate * (side if self.translate <= 1 else 1) for side in shape[:2])
        largest = {'shear_x': self.shear, 'shear_y': self.shear, 'translate_x': right, 'translate_y': down,
                   'rotate': self.rotate, **dict.fromkeys(('brightness', 'color', 'contrast', 'sharpness'), self.enhance)}
        ramp = np.linspace(0, 1, self.bins)
        rows = {name: amount * ramp for name, amount in largest.items()}
        for name in ('translate_x', 'translate_y'):
            rows[name] = np.floor(rows[name] + 1e-6)
        rows['posterize'] = np.round(self.posterize * ramp)
        rows['solarize'] = 255 * (1 - ramp)
        return np.stack([rows.get(name, 0 * ramp) for name in OPS]).astype(np.float32)


def _warp_matrix(shape: tuple[int, ...], degrees: Any = 0.0, shear_x: Any = 0.0, shear_y: Any = 0.0, x: Any = 0.0,
                 y: Any = 0.0) -> jax.Array:
    """Return the matrix (2, 3) with which `warp` rotates, shears or translates an image, of which only one may be."""
    zero = jnp.zeros(())
    return affine_matrix(shape, degrees) + jnp.array([[zero, shear_x, -x], [shear_y, zero, -y]])


def matrix_of(shape: tuple[int, ...], op: jax.Array | int, amount: jax.Array | float) -> jax.Array:
    """Return the map (2, 3) of positions in an image of shape (H, W, ...) that belongs to an op; see `transform`."""
    def amount_of(name: str) -> jax.Array:
        return jnp.where(op == _INDEX[name], amount, 0.0)
    return invert(_warp_matrix(shape, amount_of('rotate'), amount_of('shear_x'), amount_of('shear_y'),
                               amount_of('translate_x'), amount_of('translate_y')))


def transform(image: jax.Array, op: jax.Array | int, amount: jax.Array | float, fill: float = 0.0) -> jax.Array:
    """Apply one op to an image.

    Args:
      image: image (H, W, C) of whole numbers in [0, 255], as float32.
      op: index of the op in `OPS`.
      amount: the slope of a shear, the pixels of a translation, the degrees of a rotation, the factor of an enhancement
        minus 1, the number of bits that `posterize` clears, or the threshold of `solarize`. Other ops ignore it.
      fill: value in [0, 255] of pixels that come from outside the image.

    Returns:
      The image (H, W, C) of whole numbers in [0, 255], as float32.
    """
    def warp_image(**amounts: Any) -> jax.Array:
        return warp(image, _warp_matrix(image.shape, **amounts), 'nearest', fill)

    def enhance(other: jax.Array) -> jax.Array:
        return _to_byte(other + (1 + amount) * (image - other))

    def autocontrast() -> jax.Array:
        low, high = image.min((0, 1)), image.max((0, 1))
        step = 255 / jnp.maximum(high - low, 1)
        return jnp.where(high > low, _to_byte(image * step - low * step), image)

    def equalize() -> jax.Array:
        pixels = image.astype(jnp.int32)
        return look_up(equalization_table(histogram(pixels)), pixels)

    def posterize() -> jax.Array:
        step = jnp.exp2(amount)
        return jnp.floor(image / step) * step

    branches: dict[str, Callable[[], jax.Array]] = {
        'shear_x': lambda: warp_image(shear_x=amount), 'shear_y': lambda: warp_image(shear_y=amount),
        'translate_x': lambda: warp_image(x=amount), 'translate_y': lambda: warp_image(y=amount),
        'rotate': lambda: warp_image(degrees=amount),
        'brightness': lambda: _to_byte((1 + amount) * image), 'color': lambda: enhance(_to_grey(image)),
        'contrast': lambda: enhance(jnp.floor(_to_grey(image).mean() + 0.5)),
        'sharpness': lambda: enhance(jax.lax.optimization_barrier(jnp.floor(smooth(image) + 0.5))),
        'posterize': posterize, 'solarize': lambda: jnp.where(image < amount, image, 255 - image),
        'autocontrast': autocontrast, 'equalize': equalize, 'invert': lambda: 255 - image, 'identity': lambda: image,
    }
    return jax.lax.switch(op, [branches[name] for name in OPS])


def _to_byte(x: jax.Array) -> jax.Array:
    """Clip values to [0, 255] and round them down as PIL does, tolerating rounding errors just below a whole number."""
    return jnp.floor(jnp.clip(x, 0, 255) + 1e-4)


def _to_grey(image: jax.Array) -> jax.Array:
    """Replace each channel of an RGB image by its luma, in the integer arithmetic of PIL; leave other images unchanged."""
    if image.shape[-1] != 3:
        return image
    luma = (image.astype(jnp.int32) * jnp.array([19595, 38470, 7471])).sum(-1, keepdims=True) + 0x8000 >> 16
    return jnp.broadcast_to(luma, image.shape).astype(image.dtype)


# A function of a PRNG key and an image shape that returns n ops, as indices in `OPS` (n,), and their amounts (n,).
Sampler = Callable[[jax.Array, tuple[int, ...]], tuple[jax.Array, jax.Array]]


def _policy_op(name: str, sample: Sampler, fill: float) -> Geometric:
    """Return an augmentation that applies the ops drawn by `sample` one after another."""
    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        if image.shape[-1] not in (1, 3):
            raise UserError(f'expected images of 1 or 3 channels, got {image.shape[-1]}', field=name)
        x = to_bytes(image).astype(jnp.float32)
        for op, amount in zip(*sample(key, image.shape), strict=True):
            x = transform(x, op, amount, fill=round(255 * fill))
        return (x / 255).astype(image.dtype)

    def matrix(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        total = jnp.eye(2, 3)
        for op, amount in zip(*sample(key, shape), strict=True):
            total = compose(matrix_of(shape, op, amount), total)
        return total
    change_pixels = sequential_on_cpu(apply)
    # the matrix is computed apart from the image, so that XLA leaves it out if no target needs it
    return Geometric(lambda key, image: Transformed(change_pixels(key, image), matrix(key, image.shape)))


def _randomly_negate(key: jax.Array, ops: jax.Array, amounts: jax.Array) -> jax.Array:
    """Negate the amount of each op in `SIGNED` with probability 1/2."""
    is_negative = jax.random.bernoulli(key, shape=ops.shape) & (ops < len(SIGNED))
    return jnp.where(is_negative, -amounts, amounts)


def sub_policy_sampler(policy: tuple[SubPolicy, ...]) -> Sampler:
    """Return the sampler of AutoAugment.

    It draws a sub-policy uniformly. Each op of the sub-policy is kept with its probability and otherwise replaced by the
    identity.
    """
    names, probabilities, magnitudes = (
        np.array([[entry[i] for entry in sub_policy] for sub_policy in policy]) for i in range(3))
    ops = np.vectorize(_INDEX.get)(names)

    def sample(key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        sub_policy_key, apply_key, sign_key = jax.random.split(key, 3)
        index = jax.random.randint(sub_policy_key, (), 0, len(policy))
        op, probability, magnitude = (jnp.asarray(table)[index] for table in (ops, probabilities, magnitudes))
        op = jnp.where(jax.random.uniform(apply_key, (2,)) < probability, op, _INDEX['identity'])
        amounts = jnp.asarray(AugmentationSpace(10).values(shape))[op, magnitude]
        return op, _randomly_negate(sign_key, op, amounts)
    return sample


def op_sampler(num_ops: int, space: AugmentationSpace, magnitude: int | None) -> Sampler:
    """Return the sampler of RandAugment and TrivialAugment, which draws ops uniformly, without `invert`.

    Args:
      num_ops: number of ops to draw.
      space: amounts of the ops.
      magnitude: magnitude of all ops; None draws the magnitude of each op uniformly.
    """
    choices = np.array([i for name, i in _INDEX.items() if name != 'invert'])

    def sample(key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        op_key, magnitude_key, sign_key = jax.random.split(key, 3)
        op = jax.random.choice(op_key, choices, (num_ops,))
        bins = jax.random.randint(magnitude_key, (num_ops,), 0, space.bins) if magnitude is None else magnitude
        amounts = jnp.asarray(space.values(shape))[op, bins]
        return op, _randomly_negate(sign_key, op, amounts)
    return sample


@register
def auto_augment(policy: str, fill: float = 0.0) -> Geometric:
    """Apply AutoAugment (Cubuk et al. 2019): one of 25 pairs of ops that were found by a search on a data set.

    Args:
      policy: data set of the search, `cifar10` or `imagenet`.
      fill: value in [0, 1] of pixels from outside the image.
    """
    check_choice('auto_augment', list(POLICIES), policy=policy)
    check_number('auto_augment', maximum=1, fill=fill)
    return _policy_op('auto_augment', sub_policy_sampler(POLICIES[policy]), fill)


@register
def rand_augment(num_ops: int = 2, magnitude: int = 9, fill: float = 0.0) -> Geometric:
    """Apply RandAugment (Cubuk et al. 2020): `num_ops` of 14 ops, all with the same magnitude.

    Args:
      num_ops: number of ops, at least 1.
      magnitude: whole number from 0 to 30, where 30 is as strong as the largest magnitude of AutoAugment.
      fill: value in [0, 1] of pixels from outside the image.
    """
    check_whole_number('rand_augment', num_ops=num_ops)
    check_whole_number('rand_augment', 0, magnitude=magnitude)
    check_number('rand_augment', maximum=30, magnitude=magnitude)
    check_number('rand_augment', maximum=1, fill=fill)
    return _policy_op('rand_augment', op_sampler(num_ops, AugmentationSpace(31), magnitude), fill)


@register
def trivial_augment(fill: float = 0.0) -> Geometric:
    """Apply TrivialAugment in its wide form (Müller & Hutter 2021): one of 14 ops, with a random one of 31 magnitudes.

    Args:
      fill: value in [0, 1] of pixels from outside the image.
    """
    check_number('trivial_augment', maximum=1, fill=fill)
    wide = AugmentationSpace(31, shear=0.99, translate=32.0, rotate=135.0, enhance=0.99, posterize=6)
    return _policy_op('trivial_augment', op_sampler(1, wide, None), fill)
