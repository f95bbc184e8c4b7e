"""The common corruptions (Hendrycks & Dietterich 2019): 15 kinds, each in 5 severities.

The benchmark has constants for images of 32 x 32 pixels, with which CIFAR-10-C was made, and for images of 224 x 224 pixels,
with which ImageNet-C was made.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.config.arguments import check_choice, check_whole_number
from jaxcnn.data.augment import filters, jpeg, weather
from jaxcnn.data.augment.registry import Op, register
from jaxcnn.errors import UserError

SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST_IMAGENET_SIDE = 128  # pixels of the shorter side from which `constants='auto'` means ImageNet-C's


def gaussian_noise(key: jax.Array, image: jax.Array, std: float) -> jax.Array:
    """Add normal noise, as of a sensor in low light."""
    return image + std * jax.random.normal(key, image.shape, image.dtype)


def shot_noise(key: jax.Array, image: jax.Array, photons: float) -> jax.Array:
    """Replace each value by a count of photons, of which a value of 1 has `photons` on average."""
    return jax.random.poisson(key, image * photons, image.shape).astype(image.dtype) / photons


def impulse_noise(key: jax.Array, image: jax.Array, fraction: float) -> jax.Array:
    """Set a fraction of the values to 0 or 1."""
    hit_key, salt_key = jax.random.split(key)
    is_hit = jax.random.uniform(hit_key, image.shape) <= fraction
    salt = (jax.random.uniform(salt_key, image.shape) <= 0.5).astype(image.dtype)
    return jnp.where(is_hit, salt, image)


def defocus_blur(key: jax.Array, image: jax.Array, radius: float, alias_blur: float) -> jax.Array:
    """Average over a disk, as a lens does that is out of focus."""
    return filters.correlate(image, filters.disk(radius, alias_blur))


def glass_blur(key: jax.Array, image: jax.Array, sigma: float, max_shift: int, passes: int) -> jax.Array:
    """Blur, replace pixels by random neighbours, and blur again, as frosted glass does.

    The benchmark's code means to swap two pixels, but only copies one; this is what its images show, and it is done here.
    """
    blurred = jnp.floor(filters.gaussian(image, sigma) * 255) / 255
    for i in range(passes):
        blurred = _copy_neighbours(jax.random.fold_in(key, i), blurred, max_shift)
    return filters.gaussian(blurred, sigma)


def _copy_neighbours(key: jax.Array, image: jax.Array, max_shift: int) -> jax.Array:
    """Return the image after replacing one pixel after the other by a random neighbour, from the lower right.

    A neighbour that comes before a pixel in this order has been replaced already, so its source is the source of the pixel.
    Sources of sources are followed for all pixels at once, in a logarithmic number of steps.
    """
    height, width, channels = image.shape
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing='ij')
    is_replaced = ((rows > max_shift) & (rows <= height - max_shift) & (columns > max_shift) &
                   (columns <= width - max_shift))
    shifts = jax.random.randint(key, (2, height, width), -max_shift, max_shift)
    index = rows * width + columns
    source = jnp.where(is_replaced, (rows + shifts[0]) * width + columns + shifts[1], index).reshape(-1)
    goes_on = jnp.asarray(is_replaced.reshape(-1))[source] & (source > index.reshape(-1))
    # at a pixel whose source has not been replaced before, the chain ends
    following = jnp.where(goes_on, source, index.reshape(-1))
    for _ in range(int(height * width).bit_length()):
        following = following[following]
    return image.reshape(-1, channels)[source[following]].reshape(image.shape)


def motion_blur(key: jax.Array, image: jax.Array, radius: int, sigma: float) -> jax.Array:
    """Blur along a line at an angle of up to 45 degrees to the rows, as a camera does that moves."""
    return filters.motion_blur(image, radius, sigma, jax.random.uniform(key, minval=-45, maxval=45))


def zoom_blur(key: jax.Array, image: jax.Array, largest: float, step: float) -> jax.Array:
    """Average over enlargements by factors from 1 to below `largest`, as a camera does that moves towards an object."""
    factors = np.arange(1, largest, step)
    return (image + sum(filters.zoom(image, float(factor)) for factor in factors)) / (len(factors) + 1)


def brightness(key: jax.Array, image: jax.Array, change: float) -> jax.Array:
    """Add to the value of the colour model HSV, which is the largest channel, at the same hue and saturation."""
    value = image.max(-1, keepdims=True)
    brighter = jnp.clip(value + change, 0, 1)
    return jnp.where(value > 0, image * (brighter / jnp.where(value > 0, value, 1)), brighter)


def contrast(key: jax.Array, image: jax.Array, factor: float) -> jax.Array:
    """Multiply differences from the mean of each channel."""
    mean = image.mean((0, 1))
    return (image - mean) * factor + mean


def elastic_transform(key: jax.Array, image: jax.Array, distance: float, sigma: float, corner_shift: float) -> jax.Array:
    """Map the image by a random affine map, and move pixels by smooth random distances.

    All lengths are multiples of the shorter side of the image.

    Args:
      key: random key.
      image: the image.
      distance: by which distances drawn from [-1, 1] are multiplied after they were smoothed.
      sigma: standard deviation of the Gaussian that smooths them.
      corner_shift: largest shift along an axis of the three points that determine the affine map.
    """
    size = min(image.shape[:2])
    corner_key, *shift_keys = jax.random.split(key, 3)
    image = filters.random_affine(corner_key, image, corner_shift * size)
    shifts = [distance * size * filters.gaussian(jax.random.uniform(k, (*image.shape[:2], 1), minval=-1, maxval=1),
                                                 sigma * size, 'reflect', 3)[..., 0] for k in shift_keys]
    rows, columns = jnp.meshgrid(jnp.arange(image.shape[0]), jnp.arange(image.shape[1]), indexing='ij')
    return filters.sample(image, rows + shifts[1], columns + shifts[0], 'reflect')


def pixelate(key: jax.Array, image: jax.Array, factor: float) -> jax.Array:
    """Reduce the image by a factor, and enlarge it again without interpolation."""
    height, width, _ = image.shape
    small = filters.resize_box(image, int(height * factor), int(width * factor))
    return filters.resize_box(small, height, width)


def jpeg_compression(key: jax.Array, image: jax.Array, quality: int) -> jax.Array:
    """Compress as JPEG; see `jpeg.compress`."""
    return jpeg.compress(image, quality)


@dataclasses.dataclass(frozen=True)
class Corruption:
    """A kind of corruption.

    Attributes:
      apply: a function of a key, an image (H, W, C) in [0, 1] and the constants.
      constants: for `cifar` and for `imagenet` the constants of the five severities.
      category: noise, blur, weather or digital.
      is_random: whether it draws random numbers.
      is_traceable: whether the constants may be traced, so that one compiled program serves all severities.
    """

    apply: Callable[..., jax.Array]
    constants: Mapping[str, Sequence[Any]]
    category: str
    is_random: bool = True
    is_traceable: bool = False

    def arguments(self, severity: int, constants: str) -> tuple[Any, ...]:
        """Return the constants of a severity as a tuple; `constants` is `cifar` or `imagenet`."""
        values = self.constants[constants][severity - 1]
        return values if isinstance(values, tuple) else (values,)


_ELASTIC_244 = 244 / 224  # ImageNet-C's lengths are multiples of 244 pixels, for images of 224 pixels

CORRUPTIONS: dict[str, Corruption] = {
    'gaussian_noise': Corruption(gaussian_noise, {
        'cifar': (0.04, 0.06, 0.08, 0.09, 0.10), 'imagenet': (0.08, 0.12, 0.18, 0.26, 0.38)}, 'noise', is_traceable=True),
    'shot_noise': Corruption(shot_noise, {
        'cifar': (500, 250, 100, 75, 50), 'imagenet': (60, 25, 12, 5, 3)}, 'noise', is_traceable=True),
    'impulse_noise': Corruption(impulse_noise, {
        'cifar': (0.01, 0.02, 0.03, 0.05, 0.07), 'imagenet': (0.03, 0.06, 0.09, 0.17, 0.27)}, 'noise', is_traceable=True),
    'defocus_blur': Corruption(defocus_blur, {
        'cifar': ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        'imagenet': ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))}, 'blur', is_random=False),
    'glass_blur': Corruption(glass_blur, {
        'cifar': ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        'imagenet': ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))}, 'blur'),
    'motion_blur': Corruption(motion_blur, {
        'cifar': ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        'imagenet': ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))}, 'blur'),
    'zoom_blur': Corruption(zoom_blur, {
        'cifar': ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        'imagenet': ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))}, 'blur', is_random=False),
    'snow': Corruption(weather.snow, {
        'cifar': ((0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
                  (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8)),
        'imagenet': ((0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7), (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
                     (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65), (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55))}, 'weather'),
    'frost': Corruption(weather.frost, {
        'cifar': ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        'imagenet': ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))}, 'weather', is_traceable=True),
    'fog': Corruption(weather.fog, {
        'cifar': ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        'imagenet': ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))}, 'weather', is_traceable=True),
    'brightness': Corruption(brightness, {
        'cifar': (0.05, 0.1, 0.15, 0.2, 0.3), 'imagenet': (0.1, 0.2, 0.3, 0.4, 0.5)}, 'weather',
                             is_random=False, is_traceable=True),
    'contrast': Corruption(contrast, {
        'cifar': (0.75, 0.5, 0.4, 0.3, 0.15), 'imagenet': (0.4, 0.3, 0.2, 0.1, 0.05)}, 'digital',
                           is_random=False, is_traceable=True),
    'elastic_transform': Corruption(elastic_transform, {
        'cifar': ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        'imagenet': tuple(tuple(_ELASTIC_244 * length for length in lengths) for lengths in (
            (2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)))}, 'digital'),
    'pixelate': Corruption(pixelate, {
        'cifar': (0.95, 0.9, 0.85, 0.75, 0.65), 'imagenet': (0.6, 0.5, 0.4, 0.3, 0.25)}, 'digital', is_random=False),
    'jpeg_compression': Corruption(jpeg_compression, {
        'cifar': (80, 65, 58, 50, 40), 'imagenet': (25, 18, 15, 10, 7)}, 'digital', is_random=False),
}


def choose_constants(image_shape: Sequence[int]) -> str:
    """Return whose constants `constants='auto'` takes for images of a shape (H, W, C): `cifar` or `imagenet`."""
    return 'imagenet' if min(image_shape[:2]) >= SMALLEST_IMAGENET_SIDE else 'cifar'


def check_channels(image_shape: Sequence[int], field: str) -> None:
    """Raise a UserError, with the field, if corruptions are not for images of a shape (H, W, C)."""
    if image_shape[-1] not in (1, 3):
        raise UserError(f'expected images of 1 or 3 channels, got {image_shape[-1]}', field=field)


@register
def corruption(kind: str, severity: int, constants: str = 'auto') -> Op:
    """Corrupt the image as in CIFAR-10-C and ImageNet-C (Hendrycks & Dietterich 2019).

    The noise of a real sensor, a lens or the weather is imitated as the benchmark does it. Only `frost` differs: the
    benchmark adds photographs of frost, whose origin is not stated, and here needles of ice are drawn at random, with the
    colours, the deviation and about the spectrum of these photographs.

    Args:
      kind: gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur, motion_blur, zoom_blur, snow, frost, fog,
        brightness, contrast, elastic_transform, pixelate or jpeg_compression.
      severity: 1 to 5.
      constants: whose constants are taken: `cifar`, `imagenet`, or `auto`, which is `imagenet` for images whose shorter
        side has at least 128 pixels.
    """
    check_choice('corruption', list(CORRUPTIONS), kind=kind)
    check_choice('corruption', ('auto', 'cifar', 'imagenet'), constants=constants)
    check_whole_number('corruption', severity=severity)
    if severity > SEVERITIES[-1]:
        raise UserError(f'expected 1 to 5, got {severity}', field='corruption.severity')
    corrupted = CORRUPTIONS[kind]

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        check_channels(image.shape, f'corruption({kind!r})')
        chosen = choose_constants(image.shape) if constants == 'auto' else constants
        return jnp.clip(corrupted.apply(key, image, *corrupted.arguments(severity, chosen)), 0, 1)
    return apply
