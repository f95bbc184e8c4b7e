"""Filters and maps of an image (H, W, C), as SciPy, OpenCV and Pillow compute them.

Linear maps along an axis are matrices, which are obtained by applying the function of SciPy to the identity matrix.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np


def along_axes(image: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """Return the image after linear maps of its rows, (H', H), and of its columns, (W', W)."""
    precision = jax.lax.Precision.HIGHEST
    image = jnp.einsum('ai,ijc->ajc', jnp.asarray(rows, jnp.float32), image, precision=precision)
    return jnp.einsum('bj,ajc->abc', jnp.asarray(columns, jnp.float32), image, precision=precision)


@functools.cache
def gaussian_matrix(side: int, sigma: float, mode: str, truncate: float) -> np.ndarray:
    """Return the matrix (side, side) of SciPy's Gaussian filter along an axis."""
    from scipy.ndimage import gaussian_filter
    return gaussian_filter(np.eye(side), (sigma, 0), mode=mode, truncate=truncate)


def gaussian(image: jax.Array, sigma: float, mode: str = 'nearest', truncate: float = 4) -> jax.Array:
    """Return the image after `scipy.ndimage.gaussian_filter` of its rows and columns."""
    rows, columns = (gaussian_matrix(side, sigma, mode, truncate) for side in image.shape[:2])
    return along_axes(image, rows, columns)


@functools.cache
def zoom_matrix(side: int, factor: float) -> np.ndarray:
    """Return the matrix (side, side) that enlarges the middle of an axis, by `scipy.ndimage.zoom` of order 1."""
    from scipy.ndimage import zoom as scipy_zoom
    inner = math.ceil(side / factor)
    start = (side - inner) // 2
    enlarged = scipy_zoom(np.eye(side)[start:start + inner], (factor, 1), order=1)
    excess = (len(enlarged) - side) // 2
    return enlarged[excess:excess + side]


def zoom(image: jax.Array, factor: float) -> jax.Array:
    """Return the middle of the image, enlarged to its size."""
    rows, columns = (zoom_matrix(side, factor) for side in image.shape[:2])
    return along_axes(image, rows, columns)


@functools.cache
def box_matrix(side: int, new_side: int) -> np.ndarray:
    """Return the matrix (new_side, side) of Pillow's resizing with a box filter."""
    scale = side / new_side
    width = max(scale, 1)
    matrix = np.zeros((new_side, side))
    for i in range(new_side):
        center = (i + 0.5) * scale
        start, stop = max(int(center - width / 2 + 0.5), 0), min(int(center + width / 2 + 0.5), side)
        positions = (np.arange(start, stop) + 0.5 - center) / width
        weights = (positions > -0.5) & (positions <= 0.5)
        matrix[i, start:stop] = weights / weights.sum()
    return matrix


def resize_box(image: jax.Array, height: int, width: int) -> jax.Array:
    """Return the image as Pillow resizes it with a box filter, rounded to bytes after each axis."""
    identity = np.eye(image.shape[0])
    image = jnp.round(along_axes(image, identity, box_matrix(image.shape[1], max(width, 1))) * 255) / 255
    identity = np.eye(image.shape[1])
    return jnp.round(along_axes(image, box_matrix(image.shape[0], max(height, 1)), identity) * 255) / 255


def _opencv_gaussian(size: int, sigma: float) -> np.ndarray:
    weights = np.exp(-0.5 * ((np.arange(size) - size // 2) / sigma) ** 2)
    return weights / weights.sum()


@functools.cache
def disk(radius: float, alias_blur: float) -> np.ndarray:
    """Return the kernel of a disk, whose edge is smoothed by OpenCV's Gaussian filter; it adds up to 1."""
    reach, size = (8, 3) if radius <= 8 else (math.ceil(radius), 5)
    offsets = np.arange(-reach, reach + 1)
    kernel = (offsets ** 2 + offsets[:, None] ** 2 <= radius ** 2).astype(float)
    kernel /= kernel.sum()
    padded, weights = np.pad(kernel, size // 2, 'reflect'), _opencv_gaussian(size, alias_blur)
    columns = sum(weight * padded[:, i:i + len(kernel)] for i, weight in enumerate(weights))
    smoothed: np.ndarray = sum(weight * columns[i:i + len(kernel)] for i, weight in enumerate(weights))
    return smoothed


def correlate(image: jax.Array, kernel: np.ndarray) -> jax.Array:
    """Return the correlation of each channel with a square kernel of odd side; borders are reflected as in OpenCV."""
    used = np.argwhere(kernel > 0)
    low, high = used.min(), used.max()  # the kernels of small disks have wide margins of zeros
    kernel = kernel[low:high + 1, low:high + 1]
    rows, columns = (np.pad(np.arange(side), len(kernel) // 2, 'reflect') for side in image.shape[:2])
    channels = image[rows][:, columns].transpose(2, 0, 1)[..., None]  # as a batch
    weights = jnp.asarray(kernel, jnp.float32)[..., None, None]
    result = jax.lax.conv_general_dilated(channels, weights, (1, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
                                          precision=jax.lax.Precision.HIGHEST)
    return result[..., 0].transpose(1, 2, 0)


def motion_blur(image: jax.Array, radius: int, sigma: float, angle: jax.Array) -> jax.Array:
    """Return the image blurred along a line on one side of each pixel, as ImageMagick's motion blur does.

    Args:
      image: the image.
      radius: the line has 2 * radius + 1 pixels.
      sigma: standard deviation of the half of a Gaussian that gives their weights.
      angle: angle of the line in degrees.
    """
    height, width, _ = image.shape
    count = 2 * radius + 1
    weights = np.exp(-np.arange(count) ** 2 / (2 * sigma ** 2))
    radians = jnp.deg2rad(angle)
    steps = np.arange(count, dtype=np.float32)
    down, right = (-jnp.ceil(steps * direction - 0.5).astype(jnp.int32)
                   for direction in (jnp.sin(radians), jnp.cos(radians)))
    is_inside = (jnp.abs(down) < height) & (jnp.abs(right) < width)

    def add(total: jax.Array, inputs: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        weight, dy, dx = inputs
        rows = jnp.clip(jnp.arange(height) - dy, 0, height - 1)
        columns = jnp.clip(jnp.arange(width) - dx, 0, width - 1)
        return total + weight * image[rows][:, columns], None
    scaled = jnp.where(is_inside, jnp.asarray(weights / weights.sum(), jnp.float32), 0)
    return jax.lax.scan(add, jnp.zeros_like(image), (scaled, down, right))[0]


def sample(image: jax.Array, rows: jax.Array, columns: jax.Array, mode: str) -> jax.Array:
    """Return the image at positions (H', W'), interpolated linearly; `mode` is that of `scipy.ndimage.map_coordinates`."""
    from jax.scipy.ndimage import map_coordinates
    return jax.vmap(lambda channel: map_coordinates(channel, [rows, columns], 1, mode), -1, -1)(image)


def random_affine(key: jax.Array, image: jax.Array, largest_shift: float) -> jax.Array:
    """Return the image after the affine map that moves three points, each coordinate by up to `largest_shift` pixels."""
    height, width, _ = image.shape
    center, reach = np.array([height, width], np.float32) // 2, min(height, width) // 3
    points = np.stack([center + reach, center + np.array([reach, -reach]), center - reach]).astype(np.float32)  # (x, y) each
    moved = points + jax.random.uniform(key, (3, 2), minval=-largest_shift, maxval=largest_shift)
    inverse = jnp.linalg.solve(jnp.concatenate([moved, jnp.ones((3, 1))], 1), jnp.asarray(points))  # (3, 2)
    y, x = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing='ij')
    columns, rows = (x * inverse[0, i] + y * inverse[1, i] + inverse[2, i] for i in (0, 1))
    return sample(image, rows, columns, 'mirror')
