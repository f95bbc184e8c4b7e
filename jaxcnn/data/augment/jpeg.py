"""The loss of JPEG compression: the steps of libjpeg that change pixels, without the coding of the result."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

# the example tables of the standard (ITU-T T.81, annex K), which libjpeg scales by the quality
LUMINANCE = np.array([
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99]])
CHROMINANCE = np.array([
    [17, 18, 24, 47, 99, 99, 99, 99], [18, 21, 26, 66, 99, 99, 99, 99], [24, 26, 56, 99, 99, 99, 99, 99],
    [47, 66, 99, 99, 99, 99, 99, 99], *[[99] * 8] * 4])
TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
TO_RGB = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]])


def scaled_table(table: np.ndarray, quality: int) -> np.ndarray:
    """Return a quantisation table (8, 8) for a quality from 1 to 100."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((table * scale + 50) // 100, 1, 255)


@functools.cache
def _dct() -> np.ndarray:
    """Return the matrix (8, 8) of the orthonormal discrete cosine transform."""
    frequency, position = np.mgrid[:8, :8]
    matrix = np.cos((2 * position + 1) * frequency * np.pi / 16) / 2
    matrix[0] /= np.sqrt(2)
    return matrix.astype(np.float32)


def quantise(channel: jax.Array, table: np.ndarray) -> jax.Array:
    """Return a channel (H, W) in [0, 255] after quantisation of the transforms of its 8 x 8 blocks, rounded.

    Blocks that reach beyond the edge are filled by repeating it.
    """
    height, width = channel.shape
    padded = jnp.pad(channel, ((0, -height % 8), (0, -width % 8)), 'edge')
    rows, columns = padded.shape[0] // 8, padded.shape[1] // 8
    blocks = padded.reshape(rows, 8, columns, 8) - 128
    dct, precision = jnp.asarray(_dct()), jax.lax.Precision.HIGHEST
    transforms = jnp.einsum('ui,rics,vs->rucv', dct, blocks, dct, precision=precision)
    transforms = jnp.round(transforms * 8) / 8  # libjpeg's have three binary digits after the point
    steps = jnp.asarray(table, jnp.float32)[:, None]
    restored = jnp.sign(transforms) * jnp.floor(jnp.abs(transforms) / steps + 0.5) * steps
    pixels = jnp.einsum('ui,rucv,vs->rics', dct, restored, dct, precision=precision)
    return jnp.clip(jnp.round(pixels + 128), 0, 255).reshape(padded.shape)[:height, :width]


def halve(channel: jax.Array) -> jax.Array:
    """Return the means of 2 x 2 pixels (H / 2, W / 2), rounded up and down in alternating columns."""
    height, width = channel.shape
    padded = jnp.pad(channel, ((0, height % 2), (0, width % 2)), 'edge')
    sums = padded.reshape(padded.shape[0] // 2, 2, padded.shape[1] // 2, 2).sum((1, 3))
    return jnp.floor((sums + 1 + np.arange(sums.shape[1]) % 2) / 4)


def double(channel: jax.Array, height: int, width: int) -> jax.Array:
    """Return a channel (h, w) at twice its size, cropped to (height, width): each pixel is 3/4 of the nearest and 1/4 of the
    second nearest one along each axis."""
    above, below = (jnp.pad(channel, pad, 'edge')[rows] for pad, rows in (
        (((1, 0), (0, 0)), slice(None, -1)), (((0, 1), (0, 0)), slice(1, None))))
    tall = jnp.stack([3 * channel + above, 3 * channel + below], 1).reshape(-1, channel.shape[1])
    left = jnp.pad(tall, ((0, 0), (1, 0)), 'edge')[:, :-1]
    right = jnp.pad(tall, ((0, 0), (0, 1)), 'edge')[:, 1:]
    wide = jnp.stack([jnp.floor((3 * tall + left + 8) / 16), jnp.floor((3 * tall + right + 7) / 16)], -1)
    return wide.reshape(len(tall), -1)[:height, :width]


def compress(image: jax.Array, quality: int) -> jax.Array:
    """Return an image (H, W, C) in [0, 1] as it is after compression as JPEG by libjpeg with its default settings.

    The colours of images of three channels have half the resolution (4:2:0). The result agrees with Pillow's up to the
    rounding of libjpeg's integer arithmetic.

    Args:
      image: of 1 or 3 channels.
      quality: 1 to 100.
    """
    pixels = jnp.round(image * 255)
    luminance, chrominance = (scaled_table(table, quality) for table in (LUMINANCE, CHROMINANCE))
    if image.shape[-1] == 1:
        return quantise(pixels[..., 0], luminance)[..., None] / 255
    height, width, _ = image.shape
    ycc = jnp.einsum('hwc,dc->dhw', pixels, jnp.asarray(TO_YCC, jnp.float32), precision=jax.lax.Precision.HIGHEST)
    y = quantise(jnp.round(ycc[0]), luminance)
    # rounded half down, as libjpeg does
    cb, cr = (double(quantise(halve(jnp.ceil(ycc[i] + 127.5)), chrominance), height, width) - 128 for i in (1, 2))
    decoded = jnp.einsum('dhw,cd->hwc', jnp.stack([y, cb, cr]), jnp.asarray(TO_RGB, jnp.float32),
                         precision=jax.lax.Precision.HIGHEST)
    return jnp.clip(jnp.round(decoded), 0, 255) / 255
