"""Quantisation of kernels and inputs of layers in training (`config.quantization`)."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.ops import quantize

METHODS = 'minmax', 'lsq'
STATISTICS = 'input_low', 'input_high', 'input_unit', 'kernel_unit'  # 0 before the first batch
_MOMENTUM = 0.99


@dataclasses.dataclass(frozen=True)
class Quantizer:
    """Rounds the kernels and inputs of layers, with gradients that pass straight through.

    `minmax`: a kernel's scales follow its largest weights, and the range of an input is the moving average of the extremes
    of its batches. `lsq`: steps are learned (Esser et al. 2020). A step is the product of its initial value, a statistic
    that the first training step computes, and of a parameter that begins at 1. The parameter's gradient is that of the
    step over its initial value, so that SGD changes the step as if it were the parameter.

    Inputs whose smallest value so far is not negative have unsigned integers.

    Attributes:
      bits: number of bits, 2 to 8.
      method: one of `METHODS`.
      float_layers: regular expression; the layers whose names it matches are not quantised.
      is_frozen: the ranges stay as they are, once the first batch has set them.
      axis_name: name of the pmap axis over which the extremes are taken.
    """

    bits: int = 8
    method: str = 'minmax'
    float_layers: str = ''
    is_frozen: bool = False
    axis_name: str | None = None

    def __call__(self, module: nn.Module, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the input and the kernel of a layer, rounded. Where `batch_stats` is mutable, the statistics are updated.

        Args:
          module: the layer, which gets the parameters and statistics.
          x: its input (N, ...).
          kernel: its kernel (..., features).
        """
        if self.float_layers and re.search(self.float_layers, '/'.join(module.path)):
            return x, kernel
        low, high = (self._statistic(module, name, ()) for name in ('input_low', 'input_high'))
        updates = module.is_mutable_collection('batch_stats') and not module.is_initializing()
        if updates:
            self._observe(low, high, x)
        is_signed = low.value < 0
        limits = [jnp.where(is_signed, *pair) for pair in zip(
            quantize.integer_range(self.bits, True), quantize.integer_range(self.bits, False), strict=True)]
        kernel_limits = quantize.integer_range(self.bits, True)
        if self.method == 'lsq':
            axes = tuple(range(kernel.ndim - 1))
            x = self._learned(module, 'input', x, limits, tuple(range(x.ndim)), x.size // len(x), updates, self.axis_name)
            kernel = self._learned(module, 'kernel', kernel, kernel_limits, axes, kernel.size // kernel.shape[-1], updates,
                                   None)
            return x, kernel
        scale = jnp.maximum(-low.value, high.value) / limits[1]
        is_known = scale > 0
        rounded = quantize.fake_quantize(x, jnp.where(is_known, scale, 1.0), *limits)
        kernel_scale = quantize.channel_scales(lax.stop_gradient(kernel), self.bits)
        return jnp.where(is_known, rounded, x), quantize.fake_quantize(kernel, kernel_scale, *kernel_limits)

    def _statistic(self, module: nn.Module, name: str, shape: tuple[int, ...]) -> nn.Variable:
        return module.variable('batch_stats', name, jnp.zeros, shape, jnp.float32)

    def _observe(self, low: nn.Variable, high: nn.Variable, x: jax.Array) -> None:
        """Update the moving averages of the extremes unless they are frozen; the first batch sets them in any case."""
        extremes = lax.stop_gradient(x.min()), lax.stop_gradient(x.max())
        if self.axis_name is not None:
            extremes = lax.pmin(extremes[0], self.axis_name), lax.pmax(extremes[1], self.axis_name)
        momentum = jnp.where((low.value == 0) & (high.value == 0), 0.0, 1.0 if self.is_frozen else _MOMENTUM)
        for variable, value in zip((low, high), extremes, strict=True):
            variable.value = momentum * variable.value + (1 - momentum) * value

    def _learned(self, module: nn.Module, name: str, x: jax.Array, limits: tuple | list, axes: tuple[int, ...], count: int,
                 updates: bool, axis_name: str | None) -> jax.Array:
        """Return an input or a kernel rounded to multiples of its learned step."""
        shape = x.shape[len(axes):]
        parameter = module.param(f'{name}_step', nn.initializers.ones, shape, jnp.float32)
        unit = self._statistic(module, f'{name}_unit', shape)
        if updates:
            start = lax.stop_gradient(quantize.initial_step(x, limits[1], axes))
            start = start if axis_name is None else lax.pmean(start, axis_name)
            unit.value = jnp.where(unit.value > 0, unit.value, jnp.maximum(start, 1e-8))
        is_known = unit.value > 0
        step = jnp.maximum(_scaled(parameter, jnp.where(is_known, unit.value, 1.0)), 1e-8)
        return jnp.where(is_known, quantize.learned_step_quantize(x, step, limits[0], limits[1], count), x)


@jax.custom_vjp
def _scaled(parameter: jax.Array, unit: jax.Array) -> jax.Array:
    """Return the product, with the gradient of the parameter divided by the square of the unit."""
    return parameter * unit


_scaled.defvjp(lambda parameter, unit: (parameter * unit, unit), lambda unit, g: (g / unit, jnp.zeros_like(unit)))


def trained_scales(layer: str, variables: dict, quantizer: Quantizer) -> tuple[float, bool, jax.Array | None] | None:
    """Return the scale of a layer's input, whether it is signed, and the steps of its kernel, as training left them.

    Args:
      layer: path of the layer, with slashes.
      variables: variables of the network.
      quantizer: of the training.

    Returns:
      None for a layer that is not quantised. The steps (features,) are None if they follow the largest weights.
    """
    params, statistics = ({**variables.get(name, {})} for name in ('params', 'batch_stats'))
    for key in layer.split('/'):
        params, statistics = params.get(key, {}), statistics.get(key, {})
    if 'input_low' not in statistics:
        return None
    signed = bool(statistics['input_low'] < 0)
    if quantizer.method == 'lsq':
        step = max(float(params['input_step'] * statistics['input_unit']), 1e-8)
        return step, signed, jnp.maximum(params['kernel_step'] * statistics['kernel_unit'], 1e-8)
    _, high = quantize.integer_range(quantizer.bits, signed)
    largest = max(-float(statistics['input_low']), float(statistics['input_high']))
    return (largest or 1.0) / high, signed, None  # an input that was always 0 stays 0
