"""Uniform quantisation: integers with a scale, fake quantisation with straight-through gradients, and learned step sizes.

Kernels are quantised symmetrically, with a scale for each feature. Activations have one scale; they are unsigned where no
value is negative, as after a ReLU, and symmetric elsewhere. So no zero points are needed.
"""

import functools

import jax
import jax.numpy as jnp


def integer_range(bits: int, signed: bool) -> tuple[int, int]:
    """Return the smallest and the largest integer: symmetric, as in -127 to 127, or unsigned, as in 0 to 255."""
    return (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2 ** bits - 1)


def quantize(x: jax.Array, scale: jax.Array | float, bits: int = 8, signed: bool = True) -> jax.Array:
    """Return the nearest integers to `x / scale`, clipped to the range; ties go to the even one.

    Args:
      x: any shape.
      scale: the value of one unit, which broadcasts with x.
      bits: number of bits, at most 8.
      signed: see `integer_range`.

    Returns:
      int8, or uint8 if they are unsigned, of the shape of x.
    """
    low, high = integer_range(bits, signed)
    return jnp.clip(jnp.round(x / scale), low, high).astype(jnp.int8 if signed else jnp.uint8)


def dequantize(x: jax.Array, scale: jax.Array | float) -> jax.Array:
    """Return the float32 values of integers."""
    return x.astype(jnp.float32) * scale


def channel_scales(kernel: jax.Array, bits: int = 8) -> jax.Array:
    """Return the scale of each feature (features,), with which its largest absolute weight is the largest integer.

    Args:
      kernel: (..., features).
      bits: number of bits.
    """
    _, high = integer_range(bits, signed=True)
    largest = jnp.abs(kernel).max(range(kernel.ndim - 1))
    return jnp.where(largest > 0, largest, 1.0) / high


def fake_quantize(x: jax.Array, scale: jax.Array, low: jax.Array | float, high: jax.Array | float) -> jax.Array:
    """Return x rounded to the values that its quantisation can represent, with a straight-through gradient.

    The gradient of x is that of the result where x is inside the range, and 0 outside (Bengio et al. 2013, "Estimating or
    propagating gradients through stochastic neurons"); the scale has none.

    Args:
      x: any shape.
      scale: see `quantize`.
      low, high: the smallest and the largest integer; see `integer_range`.
    """
    return _fake_quantize(x, jnp.asarray(scale), jnp.float32(low), jnp.float32(high))


@jax.custom_vjp
def _fake_quantize(x: jax.Array, scale: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    return jnp.clip(jnp.round(x / scale), low, high) * scale


def _fake_quantize_backward(operands: tuple, g: jax.Array) -> tuple:
    x, scale, low, high = operands
    ratio = x / scale
    is_inside = (ratio >= low) & (ratio <= high)
    return jnp.where(is_inside, g, 0), jnp.zeros_like(scale), jnp.zeros_like(low), jnp.zeros_like(high)


_fake_quantize.defvjp(lambda *operands: (_fake_quantize(*operands), operands), _fake_quantize_backward)


def learned_step_quantize(x: jax.Array, step: jax.Array, low: jax.Array | float, high: jax.Array | float,
                          count: int) -> jax.Array:
    """Return x rounded to multiples of a learned step (Esser et al. 2020, "Learned step size quantization").

    The gradient of x passes straight through inside the range. That of the step is, for each value, `round(x / step) -
    x / step` inside the range, and the limit of the range outside. Their sum is multiplied by the paper's gradient scale,
    `1 / sqrt(count * high)`.

    Args:
      x: any shape.
      step: () or, for a step for each feature, (features,), the last axis of x; above 0.
      low, high: the smallest and the largest integer; see `integer_range`.
      count: number of values that share a step: weights, or features of one image.
    """
    return _learned_step_quantize(x, jnp.asarray(step), jnp.float32(low), jnp.float32(high), count)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _learned_step_quantize(x: jax.Array, step: jax.Array, low: jax.Array, high: jax.Array, count: int) -> jax.Array:
    return jnp.clip(jnp.round(x / step), low, high) * step


def _learned_step_backward(count: int, operands: tuple, g: jax.Array) -> tuple:
    x, step, low, high = operands
    ratio = x / step
    is_inside = (ratio >= low) & (ratio <= high)
    slopes = jnp.where(is_inside, jnp.round(ratio) - ratio, jnp.clip(ratio, low, high))
    step_gradient = (g * slopes).sum(range(x.ndim - step.ndim)) / jnp.sqrt(count * high)
    return jnp.where(is_inside, g, 0), step_gradient, jnp.zeros_like(low), jnp.zeros_like(high)


_learned_step_quantize.defvjp(
    lambda x, step, low, high, count: (_learned_step_quantize(x, step, low, high, count), (x, step, low, high)),
    _learned_step_backward)


def initial_step(x: jax.Array, high: jax.Array | float, axes: tuple[int, ...]) -> jax.Array:
    """Return the initial step of Esser et al. 2020, `2 mean(|x|) / sqrt(high)`, with the mean over `axes`."""
    return 2 * jnp.abs(x).mean(axes) / jnp.sqrt(high)
