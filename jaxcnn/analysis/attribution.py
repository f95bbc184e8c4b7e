"""Attribution: which pixels of an image a class score depends on.

Each method is a function `(network, variables, images, classes, ...)` of normalised images, as the network takes them, and
returns a number for each pixel, (N, H, W), or for each pixel and channel, (N, H, W, C). The methods of this file use the
gradient of the class score with respect to the images; `class_activation` has those of feature maps, and `occlusion` those
of images that are covered in part.

The methods are compiled once for each network and shape. `map_parts` and `sum_over_steps` bound their memory, however many
images or steps there are.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.analysis import tracing
from jaxcnn.errors import UserError, unknown
from jaxcnn.models import Network

PART_SIZE = 64  # images in one pass through the network; 32 are a quarter slower on two cores
QUADRATURE_RULES = ('gauss_legendre', 'middle', 'trapezoid')

_compiled = functools.partial(jax.jit, static_argnames='network')


@_compiled
def predicted_classes(network: Network, variables: Any, images: jax.Array) -> jax.Array:
    """Return the class with the highest score of each image (N, H, W, C): (N,)."""
    return map_parts(lambda x: jnp.argmax(jnp.asarray(network.apply(variables, x, train=False)), -1), images)


def map_parts(function: Callable[..., Any], *arrays: jax.Array, size: int = PART_SIZE) -> Any:
    """Apply a function of arrays with N rows to parts of at most `size` rows, one after the other.

    Args:
      function: maps arrays (n, ...) to an array (n, ...) or a tree of such arrays, each row by itself.
      *arrays: (N, ...), N at least 1. The last part is filled up with copies of the first row.
      size: rows of a part.

    Returns:
      The results of all rows, (N, ...).
    """
    count = len(arrays[0])
    size = min(size, count)
    num_parts = -(-count // size)

    def split(x: jax.Array) -> jax.Array:
        missing = num_parts * size - count
        padded = jnp.concatenate([x, jnp.broadcast_to(x[:1], (missing, *x.shape[1:]))]) if missing else x
        return padded.reshape(num_parts, size, *x.shape[1:])
    parts = [split(jnp.asarray(x)) for x in arrays]
    results = jax.lax.map(lambda part: function(*part), parts)
    return jax.tree.map(lambda x: x.reshape(num_parts * size, *x.shape[2:])[:count], results)


def map_steps(function: Callable[[jax.Array, jax.Array], Any], count: int, num_steps: int, size: int = PART_SIZE) -> Any:
    """Apply a function to every pair of an image and a step, to at most `size` pairs at a time.

    Args:
      function: maps the numbers of n images and of n steps to an array (n, ...) or a tree of such arrays.
      count: number of images N.
      num_steps: number of steps.
      size: pairs of a part.

    Returns:
      The results, (N, num_steps, ...). They are all in memory, so that they should be small.
    """
    rows, steps = np.repeat(np.arange(count), num_steps), np.tile(np.arange(num_steps), count)
    results = map_parts(function, jnp.asarray(rows), jnp.asarray(steps), size=size)
    return jax.tree.map(lambda x: x.reshape(count, num_steps, *x.shape[1:]), results)


def sum_over_steps(function: Callable[..., jax.Array], num_steps: int, *arrays: jax.Array,
                   size: int = PART_SIZE) -> jax.Array:
    """Return the sum of a function over steps, of which at most `size` are in memory at a time.

    Args:
      function: maps numbers of steps (n,) and arrays (n, ...) to an array (n, ...), each row by itself.
      num_steps: number of steps of each row.
      *arrays: (N, ...).
      size: pairs of a row and a step in a part.

    Returns:
      The sums over all steps, (N, ...).
    """
    def sum_of_part(*part: jax.Array) -> jax.Array:
        count = len(part[0])
        repeats = min(num_steps, max(1, size // count))
        num_parts = -(-num_steps // repeats)
        steps = np.arange(num_parts * repeats).reshape(num_parts, repeats)
        repeated = [jnp.repeat(x[None], repeats, 0).reshape(repeats * count, *x.shape[1:]) for x in part]

        def add(total: jax.Array, steps: jax.Array) -> tuple[jax.Array, None]:
            values = function(jnp.repeat(jnp.minimum(steps, num_steps - 1), count), *repeated)
            values = values.reshape(repeats, count, *values.shape[1:])
            is_step = (steps < num_steps).reshape(repeats, *[1] * (values.ndim - 1))
            return total + jnp.where(is_step, values, 0).sum(0), None
        shape = jax.eval_shape(function, jnp.zeros(repeats * count, int), *repeated)
        total, _ = jax.lax.scan(add, jnp.zeros((count, *shape.shape[1:]), shape.dtype), jnp.asarray(steps))
        return total
    result: jax.Array = map_parts(sum_of_part, *arrays, size=size)
    return result


def require_positive(name: str, value: int) -> None:
    """Raise a UserError for a number of steps, or a size, that is not a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f'expected a positive integer, got {value!r}', field=name)


def rows_of(value: Any, images: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """Return a function from the numbers of n images to the value for each of them, (n, H, W, C).

    Args:
      value: number or array that broadcasts to the images (N, H, W, C).
      images: the images.
    """
    value = jnp.asarray(value, images.dtype)
    if value.ndim == 4 and len(value) > 1:
        values = jnp.broadcast_to(value, images.shape)
        return lambda rows: values[rows]
    return lambda rows: jnp.broadcast_to(value, (len(rows), *images.shape[1:]))


def class_scores(logits: Any, classes: jax.Array) -> jax.Array:
    """Return the score of the class `classes[i]` of each image i, float32 (N,)."""
    return jnp.take_along_axis(logits, classes[:, None], -1)[:, 0].astype(jnp.float32)


def _gradient(network: Network, variables: Any, images: jax.Array, classes: jax.Array, relu_gradient: str = '') -> jax.Array:
    """Return the gradient of the class scores with respect to the images (N, H, W, C).

    Args:
      relu_gradient: another gradient of ReLUs, see `tracing.with_relu_gradient`.
    """
    def apply(x: jax.Array) -> Any:
        return network.apply(variables, x, train=False)
    function = tracing.with_relu_gradient(apply, images, relu_gradient) if relu_gradient else apply
    return jax.grad(lambda x: class_scores(function(x), classes).sum())(images)


@_compiled
def saliency(network: Network, variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
    """Return the absolute gradient of the class score (Simonyan et al. 2013, "Deep inside convolutional networks").

    Args:
      network: the network.
      variables: its variables.
      images: (N, H, W, C), normalised.
      classes: (N,) the class whose score is explained, for each image.

    Returns:
      (N, H, W, C). The paper shows the maximum over the channels.
    """
    return map_parts(lambda x, c: jnp.abs(_gradient(network, variables, x, c)), images, classes)


@_compiled
def gradient_x_input(network: Network, variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
    """Return the gradient of the class score times the image (Shrikumar et al. 2016, "Not just a black box: learning
    important features through propagating activation differences").

    Args:
      network, variables, images, classes: see `saliency`.

    Returns:
      (N, H, W, C), signed.
    """
    return map_parts(lambda x, c: x * _gradient(network, variables, x, c), images, classes)


@functools.partial(jax.jit, static_argnames=('network', 'samples', 'noise', 'seed'))
def smoothgrad(network: Network, variables: Any, images: jax.Array, classes: jax.Array, samples: int = 50,
               noise: float = 0.15, seed: int = 0) -> jax.Array:
    """Return the mean gradient of the class score over noisy copies of the image (Smilkov et al. 2017, "SmoothGrad: removing
    noise by adding noise").

    Args:
      network, variables, images, classes: see `saliency`.
      samples: number of noisy copies.
      noise: standard deviation of the Gaussian noise, as a fraction of the range of the image's values.
      seed: seed of the noise.

    Returns:
      (N, H, W, C), signed.

    Raises:
      UserError: The number of samples is not positive, or the noise is negative.
    """
    require_positive('samples', samples)
    if not 0 <= noise < math.inf:
        raise UserError(f'expected a number of at least 0, got {noise}', field='noise')
    key = jax.random.key(seed)

    def gradient(steps: jax.Array, rows: jax.Array, x: jax.Array, c: jax.Array) -> jax.Array:
        keys = jax.vmap(lambda row, step: jax.random.fold_in(jax.random.fold_in(key, row), step))(rows, steps)
        normal = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
        value_range = x.max((1, 2, 3), keepdims=True) - x.min((1, 2, 3), keepdims=True)
        return _gradient(network, variables, x + noise * value_range * normal, c)
    return sum_over_steps(gradient, samples, jnp.arange(len(images)), images, classes) / samples


def quadrature(rule: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions in [0, 1] and the weights of a rule of numerical integration: (steps,) each.

    Args:
      rule: `gauss_legendre`, `middle` (of `steps` equal intervals) or `trapezoid`.
      steps: number of positions.

    Raises:
      UserError: The rule is unknown, or has no such number of steps.
    """
    require_positive('steps', steps)
    if rule not in QUADRATURE_RULES:
        raise unknown('quadrature rule', rule, QUADRATURE_RULES, field='rule')
    if rule == 'gauss_legendre':
        positions, weights = np.polynomial.legendre.leggauss(steps)
        return (positions + 1) / 2, weights / 2
    if rule == 'middle':
        return (np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps)
    if steps == 1:
        raise UserError('the trapezoid rule needs at least 2 steps, got 1', field='steps')
    weights = np.full(steps, 1 / (steps - 1))
    weights[[0, -1]] /= 2
    return np.linspace(0, 1, steps), weights


@functools.partial(jax.jit, static_argnames=('network', 'steps', 'rule'))
def integrated_gradients(network: Network, variables: Any, images: jax.Array, classes: jax.Array, steps: int = 50,
                         baseline: Any = 0.0, rule: str = 'gauss_legendre') -> jax.Array:
    """Return the gradient of the class score, integrated along the line from a baseline to the image, times the difference
    of the two (Sundararajan et al. 2017, "Axiomatic attribution for deep networks").

    Args:
      network, variables, images, classes: see `saliency`.
      steps: number of gradients along the line.
      baseline: normalised image without any evidence, of a shape that broadcasts to that of the images; 0 is the mean of
        the training images if they are standardised.
      rule: rule of the numerical integration, see `quadrature`.

    Returns:
      (N, H, W, C), signed. The more steps, the closer is their sum to the difference of the scores of the image and of the
      baseline, see `completeness`.

    Raises:
      UserError: See `quadrature`.
    """
    positions, weights = (jnp.asarray(x, images.dtype) for x in quadrature(rule, steps))
    baseline_rows = rows_of(baseline, images)

    def gradient(step: jax.Array, rows: jax.Array, x: jax.Array, c: jax.Array) -> jax.Array:
        position, weight = (values[step][:, None, None, None] for values in (positions, weights))
        baselines = baseline_rows(rows)
        return weight * _gradient(network, variables, baselines + position * (x - baselines), c)
    return (images - baseline) * sum_over_steps(gradient, steps, jnp.arange(len(images)), images, classes)


@_compiled
def completeness(network: Network, variables: Any, images: jax.Array, classes: jax.Array, attributions: jax.Array,
                 baseline: Any = 0.0) -> tuple[jax.Array, jax.Array]:
    """Return the sum of the attributions to each image, and the difference that they should add up to: (N,) each.

    Args:
      network, variables, images, classes: see `saliency`.
      attributions: (N, H, W) or (N, H, W, C), such as those of `integrated_gradients`.
      baseline: see `integrated_gradients`.

    Returns:
      The sums, and the differences of the class scores of the images and of the baseline.
    """
    def class_score(x: jax.Array, c: jax.Array) -> jax.Array:
        return class_scores(network.apply(variables, x, train=False), c)
    scores = map_parts(class_score, images, classes)
    baseline_rows = rows_of(baseline, images)
    baseline_scores = map_parts(lambda rows, c: class_score(baseline_rows(rows), c), jnp.arange(len(images)), classes)
    return attributions.reshape(len(images), -1).sum(-1), scores - baseline_scores


@_compiled
def guided_backprop(network: Network, variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
    """Return the gradient of the class score, where ReLUs pass only positive gradients (Springenberg et al. 2014, "Striving
    for simplicity: the all convolutional net").

    Args:
      network, variables, images, classes: see `saliency`.

    Returns:
      (N, H, W, C), signed.

    Raises:
      UserError: The network has no ReLU.
    """
    return map_parts(lambda x, c: _gradient(network, variables, x, c, 'guided'), images, classes)


@_compiled
def deconvolution(network: Network, variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
    """Return the class score projected to the image as in a deconvnet, whose ReLUs pass positive values wherever they are
    (Zeiler & Fergus 2013, "Visualizing and understanding convolutional networks").

    Args:
      network, variables, images, classes: see `saliency`.

    Returns:
      (N, H, W, C), signed.

    Raises:
      UserError: The network has no ReLU.
    """
    return map_parts(lambda x, c: _gradient(network, variables, x, c, 'deconvnet'), images, classes)
