"""Activation maximisation: images that a channel or a class responds to most, by gradient ascent (Erhan et al. 2009,
"Visualizing higher-layer features of a deep network"; Olah et al. 2017, "Feature visualization").

The images are those that the network takes, and are not clipped. `display` normalises them for figures.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.analysis import tracing
from jaxcnn.analysis.attribution import PART_SIZE, map_parts
from jaxcnn.models import Network

LOGITS = 'logits'  # the layer whose channels are the classes
WINDOW = 16  # steps over which responses are compared
_START_STD = 0.01  # of the random image


class Maximization(NamedTuple):
    """Images that maximise responses.

    Attributes:
      images: (K, H, W, C), as the network takes them.
      responses: (K, steps + 1) of the image before each step, before jitter, and of the last image; NaN after the end.
      steps: (K,) steps until the end of each image.
    """

    images: jax.Array
    responses: jax.Array
    steps: jax.Array


class Parametrization(NamedTuple):
    """How an image is computed from the values that gradient ascent changes.

    Attributes:
      start: draws the values of an image from a random key.
      image: maps values to the image (H, W, C).
      blur: applies a Gaussian filter to the values of an image.
    """

    start: Callable[[jax.Array], jax.Array]
    image: Callable[[jax.Array], jax.Array]
    blur: Callable[[jax.Array, float], jax.Array]


def make_parametrization(image_shape: Sequence[int], fourier: bool = False,
                         color_matrix: jax.Array | None = None) -> Parametrization:
    """Return a parametrisation of images (H, W, C).

    Args:
      image_shape: (H, W, C).
      fourier: ascend the coefficients of the discrete Fourier transform, divided by their frequency, so that all scales are
        learned at the same speed (Olah et al. 2017).
      color_matrix: (C, C) that maps decorrelated colours to those of the image; see `color_matrix_of`.
    """
    height, width, channels = image_shape
    rows, columns = jnp.fft.fftfreq(height)[:, None, None], jnp.fft.rfftfreq(width)[:, None]
    frequency = jnp.sqrt(rows ** 2 + columns ** 2)
    scale = 1 / jnp.maximum(frequency, 1 / max(height, width))
    scale *= jnp.sqrt(height * width) / jnp.sqrt((scale ** 2).mean())  # noise of the same deviation as with pixels

    def filtered(values: jax.Array, sigma: float) -> jax.Array:
        return jnp.exp(-2 * (jnp.pi * sigma * frequency) ** 2) * values

    def to_image(values: jax.Array) -> jax.Array:
        if fourier:
            spectrum = jax.lax.complex(values[0], values[1]) * scale / jnp.sqrt(2)
            values = jnp.fft.irfft2(spectrum, (height, width), axes=(0, 1))
        return values if color_matrix is None else values @ color_matrix.T

    def blur(values: jax.Array, sigma: float) -> jax.Array:
        if fourier:
            return filtered(values, sigma)
        return jnp.fft.irfft2(filtered(jnp.fft.rfft2(values, axes=(0, 1)), sigma), (height, width), axes=(0, 1))
    shape = (2, height, width // 2 + 1, channels) if fourier else tuple(image_shape)
    return Parametrization(lambda key: _START_STD * jax.random.normal(key, shape), to_image, blur)


def color_matrix_of(images: np.ndarray) -> np.ndarray:
    """Return the square root of the covariance of the colours of images (N, H, W, C), scaled as by Olah et al. 2017: (C, C).

    Its product with independent values has the correlations of the images' colours.
    """
    pixels = np.asarray(images, np.float64).reshape(-1, images.shape[-1])
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(pixels, rowvar=False)))
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return np.asarray(root / np.linalg.norm(root, axis=0).max(), np.float32)


def maximize(network: Network, variables: Any, channels: Any, image_shape: tuple[int, ...], layer: str, *,
             steps: int = 256, learning_rate: float = 0.05, objective: str = 'channel', jitter: int = 0, blur: float = 0.0,
             total_variation: float = 0.0, l2: float = 0.0, fourier: bool = False, color_matrix: jax.Array | None = None,
             limit: Any = jnp.inf, tolerance: float = 1e-3, seed: Any = 0) -> Maximization:
    """Find an image for each of K channels by gradient ascent on its response, from noise.

    A step adds the gradient, divided by its root mean square, times the learning rate. An image ends when its response is
    above `limit`, or when the mean response of `WINDOW` steps grows by less than the fraction `tolerance`. Where no unit of
    a ReLU is active, its gradient is redirected; see `tracing.with_relu_gradient`. The image of a channel does not depend on
    the other channels, of which `PART_SIZE` at a time are computed together.

    Args:
      network: the network.
      variables: its variables.
      channels: (K,) channels of the feature map, or classes.
      image_shape: (H, W, C) of the images.
      layer: name of the feature map, or `LOGITS`.
      steps: largest number of steps.
      learning_rate: root mean square of the change of the values in a step.
      objective: `channel`, the mean over the channel's map, or `center`, the element in its middle.
      jitter: largest shift in pixels, drawn at each step.
      blur: standard deviation in pixels of the Gaussian filter after each step; 0: none.
      total_variation: weight of the mean absolute difference of neighbouring pixels, relative to the response's gradient.
      l2: weight decay of the image at each step.
      fourier, color_matrix: see `make_parametrization`.
      limit: response at which an image ends; a number, or (K,).
      tolerance: see above.
      seed: of the noise and the jitter.
    """
    channels = np.asarray(channels)
    limits = np.broadcast_to(np.asarray(limit, np.float32), channels.shape)
    size = min(PART_SIZE, len(channels))
    parts = []
    for start in range(0, len(channels), size):
        rows = np.arange(start, start + size) % len(channels)  # parts of one size, which compile once
        parts.append(_maximize_part(
            network, variables, channels[rows], tuple(image_shape), layer, limits[rows], color_matrix, seed, learning_rate,
            total_variation, l2, tolerance, steps=steps, objective=objective, jitter=jitter, blur=blur, fourier=fourier))
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays)[:len(channels)], *parts)


@functools.partial(jax.jit, static_argnames=(
    'network', 'image_shape', 'layer', 'steps', 'objective', 'jitter', 'blur', 'fourier'))
def _maximize_part(network: Network, variables: Any, channels: jax.Array, image_shape: tuple[int, ...], layer: str,
                   limit: jax.Array, color_matrix: jax.Array | None, seed: Any, learning_rate: Any, total_variation: Any,
                   l2: Any, tolerance: Any, *, steps: int, objective: str, jitter: int, blur: float,
                   fourier: bool) -> Maximization:
    """See `maximize`."""
    parametrization = make_parametrization(image_shape, fourier, color_matrix)
    count = len(channels)
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(channels)
    values = jax.vmap(parametrization.start)(keys)
    to_images = jax.vmap(parametrization.image)
    images = jax.eval_shape(to_images, values)
    output = tracing.with_relu_gradient(functools.partial(_layer_output, network, variables, layer), images, 'redirected',
                                        required=False)

    def respond(x: jax.Array) -> jax.Array:
        return _responses(output(x), channels, objective)

    def respond_shifted(values: jax.Array, shifts: jax.Array) -> jax.Array:
        x = to_images(values)
        return respond(jax.vmap(lambda image, shift: jnp.roll(image, shift, (0, 1)))(x, shifts) if jitter else x).sum()

    def variation(values: jax.Array) -> jax.Array:
        x = to_images(values)
        return sum(jnp.abs(jnp.diff(x, axis=axis)).mean((1, 2, 3)).sum() for axis in (1, 2))  # type: ignore[return-value]

    def next_values(values: jax.Array, step: jax.Array) -> jax.Array:
        shifts = jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, step), (2,), -jitter, jitter + 1))(keys)
        direction = _normalized(jax.grad(respond_shifted)(values, shifts))
        direction -= total_variation * _normalized(jax.grad(variation)(values))
        values = (1 - l2) * values + learning_rate * direction
        return jax.vmap(lambda v: parametrization.blur(v, blur))(values) if blur else values

    def advance(carry: tuple) -> tuple:
        step, values, responses, ends, active = carry
        proposed = next_values(values, step)
        values = jnp.where(_expand(active, values), proposed, values)
        response = respond(to_images(values))
        responses = responses.at[:, step + 1].set(jnp.where(active, response, jnp.nan))
        ends = jnp.where(active, step + 1, ends)
        active &= (response < limit) & ~_has_stopped_growing(responses, step + 1, tolerance)
        return step + 1, values, responses, ends, active
    responses = jnp.full((count, steps + 1), jnp.nan).at[:, 0].set(respond(to_images(values)))
    carry = jnp.int32(0), values, responses, jnp.zeros(count, jnp.int32), jnp.ones(count, bool)
    _, values, responses, ends, _ = jax.lax.while_loop(lambda c: (c[0] < steps) & c[-1].any(), advance, carry)
    return Maximization(to_images(values), responses, ends)


@functools.partial(jax.jit, static_argnames=('network', 'layer', 'objective'))
def responses(network: Network, variables: Any, images: jax.Array, channels: jax.Array, layer: str,
              objective: str = 'channel') -> jax.Array:
    """Return the responses of K channels to images (N, H, W, C), as `maximize` counts them: (N, K).

    With the objective `center`, it is the largest element of the map, because the images are not centred.
    """
    def of_part(x: jax.Array) -> jax.Array:
        output = _layer_output(network, variables, layer, x)[..., channels]
        if output.ndim == 2:
            return output
        return output.mean((1, 2)) if objective == 'channel' else output.max((1, 2))
    return map_parts(of_part, images)


def _layer_output(network: Network, variables: Any, layer: str, images: jax.Array) -> jax.Array:
    logits, maps = network.apply(variables, images, train=False, features=True)
    output: jax.Array = logits if layer == LOGITS else maps[layer]
    return output.astype(jnp.float32)


def _responses(output: jax.Array, channels: jax.Array, objective: str) -> jax.Array:
    """Return the response of the channel `channels[k]` of each row k of a layer's output: (K,)."""
    selected = jnp.take_along_axis(output, channels.reshape(-1, *(1,) * (output.ndim - 1)), -1)[..., 0]
    if output.ndim == 2:
        return selected
    height, width = selected.shape[1:]
    return selected.mean((1, 2)) if objective == 'channel' else selected[:, height // 2, width // 2]


def _expand(x: jax.Array, like: jax.Array) -> jax.Array:
    return x.reshape(-1, *(1,) * (like.ndim - 1))


def _normalized(gradient: jax.Array) -> jax.Array:
    """Return the gradient of each image divided by its root mean square; 0 remains 0."""
    size = jnp.sqrt((gradient ** 2).mean(range(1, gradient.ndim), keepdims=True))
    return gradient / jnp.where(size > 0, size, 1)


def _has_stopped_growing(responses: jax.Array, step: jax.Array, tolerance: float) -> jax.Array:
    """Return whether the mean of the last `WINDOW` responses (K, steps + 1) is hardly larger than that of those before."""
    begin = jnp.maximum(step + 1 - 2 * WINDOW, 0)
    last = jax.lax.dynamic_slice_in_dim(responses, begin, min(2 * WINDOW, responses.shape[1]), 1)
    earlier, later = last[:, :WINDOW].mean(1), last[:, WINDOW:].mean(1)
    return (step + 1 >= 2 * WINDOW) & (later - earlier < tolerance * jnp.abs(earlier))


def display(images: np.ndarray, deviations: float = 3.0) -> np.ndarray:
    """Return unclipped images (N, H, W, C) in [0, 1]: grey is the mean of each image, 0 and 1 are `deviations` standard
    deviations away from it."""
    images = np.asarray(images, np.float32)
    axes = tuple(range(1, images.ndim))
    deviation = images.std(axes, keepdims=True)
    centred = (images - images.mean(axes, keepdims=True)) / np.where(deviation > 0, deviation, 1)
    return (0.5 + centred / (2 * deviations)).clip(0, 1)
