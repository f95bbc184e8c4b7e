"""Snow, frost and fog on an image (H, W, C), as the benchmark of common corruptions imitates them."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.data.augment import filters
from jaxcnn.data.augment.color import to_grey

# mean and standard deviation of red, green and blue, in [0, 1], of the benchmark's five photographs of frost, two of which
# are the same
FROST_MEANS = np.array([[0.305, 0.585, 0.650], [0.787, 0.805, 0.841], [0.787, 0.805, 0.841], [0.540, 0.599, 0.648],
                        [0.441, 0.484, 0.528]], np.float32)
FROST_STDS = np.array([[0.106, 0.065, 0.060], [0.084, 0.087, 0.089], [0.084, 0.087, 0.089], [0.112, 0.112, 0.117],
                       [0.174, 0.170, 0.163]], np.float32)


def snow(key: jax.Array, image: jax.Array, mean: float, std: float, enlargement: float, threshold: float, radius: int,
         sigma: float, weight: float) -> jax.Array:
    """Whiten the image, and add snowflakes, which fall at an angle.

    Args:
      key: random key.
      image: the image.
      mean, std: of the normal noise from which flakes are made.
      enlargement: of the noise.
      threshold: below which the noise is no snow.
      radius, sigma: of the motion blur of the flakes.
      weight: of the image before it is whitened.
    """
    noise_key, angle_key = jax.random.split(key)
    flakes = mean + std * jax.random.normal(noise_key, (*image.shape[:2], 1))
    flakes = filters.zoom(flakes, enlargement)
    flakes = jnp.clip(jnp.where(flakes < threshold, 0, flakes), 0, 1)
    flakes = filters.motion_blur(flakes, radius, sigma, jax.random.uniform(angle_key, minval=-135, maxval=-45))
    flakes = jnp.round(flakes * 255) / 255
    whitened = jnp.maximum(image, to_grey(image) * 1.5 + 0.5)
    return weight * image + (1 - weight) * whitened + flakes + flakes[::-1, ::-1]


def frost(key: jax.Array, image: jax.Array, weight: float, frost_weight: float) -> jax.Array:
    """Add frost to the image.

    The benchmark adds a part of one of five photographs. Here, a texture with the mean and the standard deviation of the
    colours of one of them is drawn; see `frost_texture`.
    """
    tone_key, texture_key, level_key = jax.random.split(key, 3)
    tone = jax.random.randint(tone_key, (), 0, len(FROST_MEANS))
    mean, std = jnp.asarray(FROST_MEANS)[tone], jnp.asarray(FROST_STDS)[tone]
    level = LEVEL_SHARE * jax.random.normal(level_key)  # parts of a photograph differ in their brightness
    field = level + np.sqrt(1 - LEVEL_SHARE ** 2) * frost_texture(texture_key, *image.shape[:2])
    colours = jnp.clip(mean + std * field[..., None], 0, 1)
    if image.shape[-1] == 1:
        colours = to_grey(colours)[..., :1]
    return weight * image + frost_weight * colours


LEVEL_SHARE = 0.5  # standard deviation of the mean of a part of a photograph, as a share of that of its pixels
NEEDLES = 6  # directions of the needles of ice


def frost_texture(key: jax.Array, height: int, width: int) -> jax.Array:
    """Return needles of ice in several directions over clouds, with mean 0 and standard deviation 1: (H, W)."""
    keys = jax.random.split(key, NEEDLES + 2)
    length = max(min(height, width) // 14, 2)
    margin = 2 * length + 1  # beyond which no needle reaches
    first = jax.random.uniform(keys[-1], maxval=180)
    needles = jnp.zeros((height + 2 * margin, width + 2 * margin, 1))
    for i in range(NEEDLES):
        seeds = jnp.maximum(jax.random.normal(keys[i], needles.shape) - 1.2, 0)
        needles += filters.motion_blur(seeds, length, 0.6 * length, first + i * 180 / NEEDLES + 10 * i * i)
    needles = filters.gaussian(needles, min(height, width) / 450)[margin:-margin, margin:-margin]
    clouds = filters.gaussian(jax.random.normal(keys[-2], (height, width, 1)), min(height, width) / 12, 'reflect')

    def standardise(x: jax.Array) -> jax.Array:
        return (x - x.mean()) / jnp.maximum(x.std(), 1e-6)
    return standardise(standardise(needles) + 0.8 * standardise(clouds))[..., 0]


def fog(key: jax.Array, image: jax.Array, amount: float, decay: float) -> jax.Array:
    """Add clouds of fog.

    Args:
      key: random key.
      image: the image.
      amount: of fog, to which the image is made darker.
      decay: by which the roughness of the clouds decreases from each scale to the next finer one.
    """
    height, width, _ = image.shape
    side = 1 << (max(height, width) - 1).bit_length()
    clouds = plasma(key, side, decay)[:height, :width, None]
    largest = image.max()
    return (image + amount * clouds) * largest / (largest + amount)


def plasma(key: jax.Array, side: int, decay: float) -> jax.Array:
    """Return a map of heights (side, side) in [0, 1] by the diamond-square algorithm, on a torus.

    Args:
      key: random key.
      side: a power of 2.
      decay: by which the square root of the random changes is divided from each scale to the next finer one.
    """
    heights, step, roughness = jnp.zeros((side, side)), side, 100.0

    def disturb(sums: jax.Array, number: int) -> jax.Array:
        noise = jax.random.uniform(jax.random.fold_in(key, number), sums.shape, minval=-1, maxval=1)
        return sums / 4 + roughness ** 2 * noise
    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        sums = corners + jnp.roll(corners, -1, 0)
        heights = heights.at[half::step, half::step].set(disturb(sums + jnp.roll(sums, -1, 1), 3 * step))
        centers = heights[half::step, half::step]
        corners = heights[::step, ::step]
        beside = centers + jnp.roll(centers, 1, 0) + corners + jnp.roll(corners, -1, 1)
        heights = heights.at[::step, half::step].set(disturb(beside, 3 * step + 1))
        beside = centers + jnp.roll(centers, 1, 1) + corners + jnp.roll(corners, -1, 0)
        heights = heights.at[half::step, ::step].set(disturb(beside, 3 * step + 2))
        step, roughness = half, roughness / decay
    heights -= heights.min()
    return heights / jnp.maximum(heights.max(), 1e-12)  # a single height is 0
