"""Ops on values: colour, noise and blur. Amounts and their meaning are those of torchvision and PIL, values in [0, 1].

Images of one channel are grey, for which saturation and hue are nothing; those of three are red, green and blue.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcnn.data.augment.registry import Op, in_turn, maybe, number, register, span, whole
from jaxcnn.errors import UserError

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as PIL has it

# of the pixels of ImageNet in [0, 1], as published with AlexNet's reimplementations (Krizhevsky et al. 2012, 4.1)
PCA_DEVIATIONS = (0.2175, 0.0188, 0.0045)
PCA_DIRECTIONS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


def grey_of(image: jax.Array) -> jax.Array:
    """The luma of an image (H, W, C), in all its channels."""
    return jnp.broadcast_to(_luma(image), image.shape)


def _luma(image: jax.Array) -> jax.Array:
    if image.shape[-1] == 1:
        return image
    _rgb('grey', image)
    return sum((weight * image[..., i:i + 1] for i, weight in enumerate(LUMA)), jnp.zeros(()))


def _rgb(op: str, image: jax.Array) -> None:
    if image.shape[-1] != 3:
        raise UserError(f'{op}: needs images of 3 channels, got {image.shape[-1]}')


def _blend(image: jax.Array, other: jax.Array, factor: jax.Array) -> jax.Array:
    """1 gives the image, 0 the other one; beyond 1 goes on in that direction."""
    return jnp.clip(other + factor * (image - other), 0, 1)


def _brighter(image: jax.Array, factor: jax.Array) -> jax.Array:
    return jnp.clip(image * factor, 0, 1)


def _contrasted(image: jax.Array, factor: jax.Array) -> jax.Array:
    return _blend(image, _luma(image).mean(), factor)


def _saturated(image: jax.Array, factor: jax.Array) -> jax.Array:
    return _blend(image, grey_of(image), factor)


def _hued(image: jax.Array, turn: jax.Array) -> jax.Array:
    if image.shape[-1] == 1:
        return image
    import dm_pix
    _rgb('hue', image)
    return jnp.clip(dm_pix.adjust_hue(image, turn), 0, 1)


def smoothed(image: jax.Array) -> jax.Array:
    """The 3x3 mean with weight 5 on the middle and 1 around it; the border stays as it is. What PIL sharpens against."""
    inner = sum(image[i:image.shape[0] - 2 + i, j:image.shape[1] - 2 + j] for i in range(3) for j in range(3))
    inner = (inner + 4 * image[1:-1, 1:-1]) / 13
    return image.at[1:-1, 1:-1].set(inner)


def _drawn_factor(name: str, most: float, change: Callable[[jax.Array, jax.Array], jax.Array]) -> Op:
    number(name, most=most)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        return change(image, jax.random.uniform(key, minval=max(0.0, 1 - most), maxval=1.0 + most))
    return in_turn(apply)


@register
def brightness(most: float) -> Op:
    """Multiplies values by a factor drawn from [1 - most, 1 + most], at least 0."""
    return _drawn_factor('brightness', most, _brighter)


@register
def contrast(most: float) -> Op:
    """Multiplies differences from the mean luma by a factor drawn from [1 - most, 1 + most], at least 0."""
    return _drawn_factor('contrast', most, _contrasted)


@register
def saturation(most: float) -> Op:
    """Multiplies differences from each pixel's luma by a factor drawn from [1 - most, 1 + most], at least 0."""
    return _drawn_factor('saturation', most, _saturated)


@register
def hue(most: float) -> Op:
    """Turns the hue by a part of the circle drawn from [-most, most], `most` in [0, 0.5]."""
    number('hue', high=0.5, most=most)
    return lambda key, image: _hued(image, jax.random.uniform(key, minval=-most, maxval=most))


@register
def color_jitter(brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0) -> Op:
    """Those four one after the other, in an order drawn anew for each image; each as the op of its name."""
    number('color_jitter', brightness=brightness, contrast=contrast, saturation=saturation)
    number('color_jitter', high=0.5, hue=hue)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        order, amounts = jax.random.split(key)
        spread = jnp.array([brightness, contrast, saturation, hue], jnp.float32)
        low = jnp.maximum(jnp.array([1.0, 1.0, 1.0, 0.0]) - spread, jnp.array([0, 0, 0, -0.5]))
        drawn = jax.random.uniform(amounts, (4,), minval=low, maxval=jnp.array([1.0, 1.0, 1.0, 0.0]) + spread)
        ways = [lambda x: _brighter(x, drawn[0]), lambda x: _contrasted(x, drawn[1]), lambda x: _saturated(x, drawn[2]),
                lambda x: _hued(x, drawn[3]) if hue else x]
        for which in jax.random.permutation(order, 4):
            image = jax.lax.switch(which, ways, image)
        return image
    return in_turn(apply)


@register
def grayscale(p: float = 0.1) -> Op:
    """With probability `p`, every channel becomes the luma."""
    number('grayscale', high=1, p=p)
    return maybe(p, lambda key, image: grey_of(image))


@register
def invert(p: float = 0.5) -> Op:
    """With probability `p`, values become 1 minus themselves."""
    number('invert', high=1, p=p)
    return maybe(p, lambda key, image: 1 - image)


@register
def solarize(threshold: float = 0.5, p: float = 0.5) -> Op:
    """With probability `p`, inverts the values from `threshold` in [0, 1] on."""
    number('solarize', high=1, threshold=threshold, p=p)
    return maybe(p, lambda key, image: jnp.where(image >= threshold, 1 - image, image))


@register
def posterize(bits: int, p: float = 0.5) -> Op:
    """With probability `p`, keeps the upper `bits`, 1 to 8, of values as bytes."""
    whole('posterize', bits=bits)
    number('posterize', 1, 8, bits=bits)
    number('posterize', high=1, p=p)
    return maybe(p, lambda key, image: look_up(_posterized(8 - bits), to_bytes(image)) / 255)


@register
def sharpness(most: float) -> Op:
    """Multiplies differences from the smoothed image by a factor drawn from [1 - most, 1 + most], at least 0."""
    return _drawn_factor('sharpness', most, lambda image, factor: _blend(image, smoothed(image), factor))


@register
def equalize(p: float = 0.5) -> Op:
    """With probability `p`, gives each channel an even histogram of bytes, as PIL's `ImageOps.equalize` does."""
    number('equalize', high=1, p=p)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        pixels = to_bytes(image)
        return look_up(equalized(histogram(pixels)), pixels) / 255
    return maybe(p, apply)


@register
def autocontrast(p: float = 0.5) -> Op:
    """With probability `p`, stretches each channel to all of [0, 1], as PIL's `ImageOps.autocontrast` does."""
    number('autocontrast', high=1, p=p)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        low, high = image.min((0, 1)), image.max((0, 1))
        return jnp.where(high > low, (image - low) / jnp.where(high > low, high - low, 1), image)
    return maybe(p, apply)


@register
def channel_shift(deviation: float = 0.1) -> Op:
    """Adds to all pixels one colour along the principal components of ImageNet's pixels, each times its standard
    deviation and a normal variable of standard deviation `deviation` (Krizhevsky et al. 2012, 4.1)."""
    number('channel_shift', deviation=deviation)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        _rgb('channel_shift', image)
        drawn = deviation * jax.random.normal(key, (3,)) * jnp.array(PCA_DEVIATIONS)
        return jnp.clip(image + jnp.array(PCA_DIRECTIONS) @ drawn, 0, 1)
    return apply


@register
def gaussian_noise(deviation: float) -> Op:
    """Adds normal noise of that standard deviation to every value."""
    number('gaussian_noise', deviation=deviation)
    return lambda key, image: jnp.clip(image + deviation * jax.random.normal(key, image.shape, image.dtype), 0, 1)


@register
def salt_and_pepper(part: float) -> Op:
    """Makes `part` in [0, 1] of the pixels, on average, white or black, each with probability a half."""
    number('salt_and_pepper', high=1, part=part)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        drawn = jax.random.uniform(key, (*image.shape[:2], 1))
        return jnp.where(drawn < part / 2, 0, jnp.where(drawn < part, 1, image))
    return apply


@register
def gaussian_blur(size: int, deviation: tuple = (0.1, 2.0)) -> Op:
    """Blurs with a Gaussian of `size` x `size` pixels whose standard deviation is drawn from `deviation` (least, most),
    in pixels; the image is mirrored at its borders.

    Args:
      size: odd, and less than twice the image's side.
      deviation: above 0.
    """
    whole('gaussian_blur', size=size)
    span('gaussian_blur', 1e-3, deviation=deviation)
    if size % 2 == 0:
        raise UserError(f'gaussian_blur: size must be odd, got {size}')

    def blur(side: int, kernel: jax.Array) -> jax.Array:  # (side, side), for a product of matrices
        if side < size // 2 + 1:
            raise UserError(f'gaussian_blur({size}): images have a side of {side} pixels')
        places = jnp.pad(jnp.arange(side), size // 2, mode='reflect')[jnp.arange(side)[:, None] + jnp.arange(size)]
        return (jax.nn.one_hot(places, side) * kernel[:, None]).sum(1)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        sigma = jax.random.uniform(key, minval=deviation[0], maxval=deviation[1])
        kernel = jax.nn.softmax(-0.5 * ((jnp.arange(size) - size // 2) / sigma) ** 2)
        rows, columns = (blur(side, kernel) for side in image.shape[:2])
        return jnp.einsum('ai,ijc,bj->abc', rows, image, columns)
    return apply


def to_bytes(image: jax.Array) -> jax.Array:
    """Float values in [0, 1] as int32 in [0, 255], rounded."""
    return jnp.round(image * 255).astype(jnp.int32)


def histogram(pixels: jax.Array) -> jax.Array:
    """Of bytes (H, W, C): counts (C, 256)."""
    channels = pixels.shape[-1]
    index = (pixels + 256 * jnp.arange(channels)).reshape(-1)
    return jnp.zeros(256 * channels, jnp.int32).at[index].add(1, mode='promise_in_bounds').reshape(channels, 256)


def look_up(tables: jax.Array, pixels: jax.Array) -> jax.Array:
    """Of bytes (H, W, C) what tables (C, 256), or (1, 256) for all, have for them: float32."""
    tables = jnp.broadcast_to(tables, (pixels.shape[-1], 256)).astype(jnp.float32)
    index = pixels + 256 * jnp.arange(pixels.shape[-1])
    return tables.reshape(-1).at[index].get(mode='promise_in_bounds')


def _posterized(dropped: jax.Array | int) -> jax.Array:
    levels = jnp.arange(256)
    return (levels >> dropped << dropped)[None]


def equalized(counts: jax.Array) -> jax.Array:
    """PIL's table of an even histogram: of counts (C, 256), (C, 256)."""
    last = jnp.max(jnp.where(counts > 0, jnp.arange(256), 0), -1)
    step = (counts.sum(-1) - jnp.take_along_axis(counts, last[:, None], -1)[:, 0]) // 255
    before = jnp.cumsum(counts, -1) - counts
    table = jnp.minimum((step[:, None] // 2 + before) // jnp.maximum(step, 1)[:, None], 255)
    table = jnp.where(step[:, None] > 0, table, jnp.arange(256))
    return jax.lax.cummax(table, axis=1)  # rises anyway; else XLA divides anew for every pixel that looks it up
