"""Ops on values: colour, noise and blur. Arguments mean the same as in torchvision and PIL, for values in [0, 1].

Images of three channels are RGB. Images of one channel are grey; changes of saturation and hue leave them unchanged.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcnn.config.arguments import check_number, check_range, check_whole_number
from jaxcnn.data.augment.registry import Op, apply_with_probability, register, sequential_on_cpu
from jaxcnn.errors import UserError

LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue by ITU-R 601-2, as in PIL

# the principal components of ImageNet's pixels in [0, 1], as reimplementations of AlexNet have published them (Krizhevsky
# et al. 2012, section 4.1): standard deviations, and directions in the columns
PCA_STDS = (0.2175, 0.0188, 0.0045)
PCA_DIRECTIONS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


def to_grey(image: jax.Array) -> jax.Array:
    """Return the image (H, W, C) with every channel replaced by the luma."""
    return jnp.broadcast_to(_luma(image), image.shape)


def _luma(image: jax.Array) -> jax.Array:
    """Return the luma of an image (H, W, C): (H, W, 1)."""
    if image.shape[-1] == 1:
        return image
    _check_rgb('luma', image)
    return sum((weight * image[..., i:i + 1] for i, weight in enumerate(LUMA)), jnp.zeros(()))


def _check_rgb(op: str, image: jax.Array) -> None:
    if image.shape[-1] != 3:
        raise UserError(f'expected images of 3 channels, got {image.shape[-1]}', field=op)


def _blend(image: jax.Array, other: jax.Array, factor: jax.Array) -> jax.Array:
    """Interpolate between two images: a factor of 1 gives `image`, 0 gives `other`, and above 1 extrapolates."""
    return jnp.clip(other + factor * (image - other), 0, 1)


def _scale_brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    return jnp.clip(image * factor, 0, 1)


def _scale_contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    return _blend(image, _luma(image).mean(), factor)


def _scale_saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    return _blend(image, to_grey(image), factor)


def _shift_hue(image: jax.Array, shift: jax.Array) -> jax.Array:
    if image.shape[-1] == 1:
        return image
    import dm_pix
    _check_rgb('hue', image)
    return jnp.clip(dm_pix.adjust_hue(image, shift), 0, 1)


def smooth(image: jax.Array) -> jax.Array:
    """Return the 3x3 mean with weight 5 at the centre and 1 around it; the border stays unchanged.

    PIL's sharpness interpolates between this and the image.
    """
    inner = sum(image[i:image.shape[0] - 2 + i, j:image.shape[1] - 2 + j] for i in range(3) for j in range(3))
    inner = (inner + 4 * image[1:-1, 1:-1]) / 13
    return image.at[1:-1, 1:-1].set(inner)


def _random_factor_op(name: str, max_change: float, change: Callable[[jax.Array, jax.Array], jax.Array]) -> Op:
    """Return the op that applies `change(image, factor)` with a factor from [1 - max_change, 1 + max_change], at least 0."""
    check_number(name, max_change=max_change)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        return change(image, jax.random.uniform(key, minval=max(0.0, 1 - max_change), maxval=1.0 + max_change))
    return sequential_on_cpu(apply)


@register
def brightness(max_change: float) -> Op:
    """Multiply values by a factor drawn from [1 - max_change, 1 + max_change], at least 0."""
    return _random_factor_op('brightness', max_change, _scale_brightness)


@register
def contrast(max_change: float) -> Op:
    """Multiply differences from the mean luma by a factor drawn from [1 - max_change, 1 + max_change], at least 0."""
    return _random_factor_op('contrast', max_change, _scale_contrast)


@register
def saturation(max_change: float) -> Op:
    """Multiply differences from each pixel's luma by a factor drawn from [1 - max_change, 1 + max_change], at least 0."""
    return _random_factor_op('saturation', max_change, _scale_saturation)


@register
def hue(max_change: float) -> Op:
    """Shift the hue by a fraction of the colour circle drawn from [-max_change, max_change]; `max_change` is in [0, 0.5]."""
    check_number('hue', maximum=0.5, max_change=max_change)
    return lambda key, image: _shift_hue(image, jax.random.uniform(key, minval=-max_change, maxval=max_change))


@register
def color_jitter(brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0) -> Op:
    """Change brightness, contrast, saturation and hue in an order drawn for each image.

    Each argument is the `max_change` of the augmentation of that name.
    """
    check_number('color_jitter', brightness=brightness, contrast=contrast, saturation=saturation)
    check_number('color_jitter', maximum=0.5, hue=hue)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        order_key, amounts_key = jax.random.split(key)
        max_changes = jnp.array([brightness, contrast, saturation, hue], jnp.float32)
        neutral = jnp.array([1.0, 1.0, 1.0, 0.0])
        low = jnp.maximum(neutral - max_changes, jnp.array([0, 0, 0, -0.5]))
        amounts = jax.random.uniform(amounts_key, (4,), minval=low, maxval=neutral + max_changes)
        changes = [lambda x: _scale_brightness(x, amounts[0]), lambda x: _scale_contrast(x, amounts[1]),
                   lambda x: _scale_saturation(x, amounts[2]), lambda x: _shift_hue(x, amounts[3]) if hue else x]
        for index in jax.random.permutation(order_key, 4):
            image = jax.lax.switch(index, changes, image)
        return image
    return sequential_on_cpu(apply)


@register
def grayscale(p: float = 0.1) -> Op:
    """Replace every channel by the luma with probability `p`."""
    check_number('grayscale', maximum=1, p=p)
    return apply_with_probability(p, lambda key, image: to_grey(image))


@register
def invert(p: float = 0.5) -> Op:
    """Replace each value x by 1 - x with probability `p`."""
    check_number('invert', maximum=1, p=p)
    return apply_with_probability(p, lambda key, image: 1 - image)


@register
def solarize(threshold: float = 0.5, p: float = 0.5) -> Op:
    """Invert the values of at least `threshold`, in [0, 1], with probability `p`."""
    check_number('solarize', maximum=1, threshold=threshold, p=p)
    return apply_with_probability(p, lambda key, image: jnp.where(image >= threshold, 1 - image, image))


@register
def posterize(bits: int, p: float = 0.5) -> Op:
    """Clear all but the upper `bits`, 1 to 8, of values as bytes with probability `p`."""
    check_whole_number('posterize', bits=bits)
    check_number('posterize', 1, 8, bits=bits)
    check_number('posterize', maximum=1, p=p)
    return apply_with_probability(p, lambda key, image: look_up(_posterization_table(8 - bits), to_bytes(image)) / 255)


@register
def sharpness(max_change: float) -> Op:
    """Multiply differences from the smoothed image by a factor drawn from [1 - max_change, 1 + max_change], at least 0."""
    return _random_factor_op('sharpness', max_change, lambda image, factor: _blend(image, smooth(image), factor))


@register
def equalize(p: float = 0.5) -> Op:
    """Equalize the histogram of each channel, like PIL's `ImageOps.equalize`, with probability `p`."""
    check_number('equalize', maximum=1, p=p)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        pixels = to_bytes(image)
        return look_up(equalization_table(histogram(pixels)), pixels) / 255
    return apply_with_probability(p, apply)


@register
def autocontrast(p: float = 0.5) -> Op:
    """Stretch the values of each channel to [0, 1], like PIL's `ImageOps.autocontrast`, with probability `p`."""
    check_number('autocontrast', maximum=1, p=p)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        low, high = image.min((0, 1)), image.max((0, 1))
        return jnp.where(high > low, (image - low) / jnp.where(high > low, high - low, 1), image)
    return apply_with_probability(p, apply)


@register
def channel_shift(std: float = 0.1) -> Op:
    """Add one random colour to all pixels (Krizhevsky et al. 2012, section 4.1).

    The colour is a sum of the principal components of ImageNet's pixels, each multiplied by its standard deviation and by a
    normal variable of standard deviation `std`.
    """
    check_number('channel_shift', std=std)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        _check_rgb('channel_shift', image)
        amounts = std * jax.random.normal(key, (3,)) * jnp.array(PCA_STDS)
        return jnp.clip(image + jnp.array(PCA_DIRECTIONS) @ amounts, 0, 1)
    return apply


@register
def gaussian_noise(std: float) -> Op:
    """Add normal noise of standard deviation `std` to every value."""
    check_number('gaussian_noise', std=std)
    return lambda key, image: jnp.clip(image + std * jax.random.normal(key, image.shape, image.dtype), 0, 1)


@register
def salt_and_pepper(fraction: float) -> Op:
    """Make each pixel black with probability `fraction / 2`, and white with the same probability."""
    check_number('salt_and_pepper', maximum=1, fraction=fraction)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        uniform = jax.random.uniform(key, (*image.shape[:2], 1))
        return jnp.where(uniform < fraction / 2, 0, jnp.where(uniform < fraction, 1, image))
    return apply


@register
def gaussian_blur(size: int, std: tuple = (0.1, 2.0)) -> Op:
    """Blur with a Gaussian kernel whose standard deviation is drawn uniformly; borders are reflected.

    Args:
      size: side of the kernel in pixels, odd, and less than twice the side of the image.
      std: range of the standard deviation in pixels, above 0.
    """
    check_whole_number('gaussian_blur', size=size)
    check_range('gaussian_blur', 1e-3, std=std)
    if size % 2 == 0:
        raise UserError(f'expected an odd number, got {size}', field='gaussian_blur.size')

    def blur_matrix(side: int, kernel: jax.Array) -> jax.Array:
        """Return the matrix (side, side) whose product with an image blurs it along one axis."""
        if side < size // 2 + 1:
            raise UserError(f'images with a side of {side} pixels are too small', field=f'gaussian_blur({size})')
        reflected = jnp.pad(jnp.arange(side), size // 2, mode='reflect')
        indices = reflected[jnp.arange(side)[:, None] + jnp.arange(size)]  # of the pixels under the kernel
        return (jax.nn.one_hot(indices, side) * kernel[:, None]).sum(1)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        sigma = jax.random.uniform(key, minval=std[0], maxval=std[1])
        kernel = jax.nn.softmax(-0.5 * ((jnp.arange(size) - size // 2) / sigma) ** 2)
        rows, columns = (blur_matrix(side, kernel) for side in image.shape[:2])
        return jnp.einsum('ai,ijc,bj->abc', rows, image, columns)
    return apply


def to_bytes(image: jax.Array) -> jax.Array:
    """Return float values in [0, 1] as int32 in [0, 255], rounded."""
    return jnp.round(image * 255).astype(jnp.int32)


def histogram(pixels: jax.Array) -> jax.Array:
    """Return how often each byte occurs in each channel of (H, W, C): (C, 256)."""
    channels = pixels.shape[-1]
    index = (pixels + 256 * jnp.arange(channels)).reshape(-1)
    return jnp.zeros(256 * channels, jnp.int32).at[index].add(1, mode='promise_in_bounds').reshape(channels, 256)


def look_up(tables: jax.Array, pixels: jax.Array) -> jax.Array:
    """Return each byte of (H, W, C) replaced by its entry in a table: float32.

    Args:
      tables: (C, 256), one table for each channel, or (1, 256), one for all.
      pixels: int32 in [0, 255].
    """
    tables = jnp.broadcast_to(tables, (pixels.shape[-1], 256)).astype(jnp.float32)
    index = pixels + 256 * jnp.arange(pixels.shape[-1])
    return tables.reshape(-1).at[index].get(mode='promise_in_bounds')


def _posterization_table(cleared_bits: int) -> jax.Array:
    """Return the table (1, 256) that clears the lowest bits of bytes."""
    levels = jnp.arange(256)
    return (levels >> cleared_bits << cleared_bits)[None]


def equalization_table(counts: jax.Array) -> jax.Array:
    """Return the tables (C, 256) with which PIL equalizes histograms (C, 256)."""
    highest_level = jnp.max(jnp.where(counts > 0, jnp.arange(256), 0), -1)
    count_of_highest = jnp.take_along_axis(counts, highest_level[:, None], -1)[:, 0]
    step = (counts.sum(-1) - count_of_highest) // 255
    counts_below = jnp.cumsum(counts, -1) - counts
    table = jnp.minimum((step[:, None] // 2 + counts_below) // jnp.maximum(step, 1)[:, None], 255)
    table = jnp.where(step[:, None] > 0, table, jnp.arange(256))
    return jax.lax.cummax(table, axis=1)  # changes nothing, but keeps XLA from computing an entry again for every pixel
