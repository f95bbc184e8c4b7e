"""The layers, activations and initialisers that networks share."""

import bisect
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.linear import canonicalize_padding

from jaxcnn.config import bind, parse_call
from jaxcnn.errors import UserError, unknown
from jaxcnn.models.quantized_layers import Quantizer
from jaxcnn.ops import batch_norm, native
from jaxcnn.ops.conv import add_bias, conv_general_dilated
from jaxcnn.ops.geometry import NHWC
from jaxcnn.ops.tanh import tanh

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'relu': nn.relu, 'leaky_relu': nn.leaky_relu, 'elu': nn.elu, 'selu': nn.selu, 'relu6': nn.relu6, 'swish': nn.swish,
    'silu': nn.silu, 'hard_swish': nn.hard_swish, 'mish': jax.nn.mish, 'gelu': nn.gelu, 'tanh': tanh, 'sigmoid': nn.sigmoid,
    'softplus': nn.softplus,
}


def _truncated_normal(std: float) -> nn.initializers.Initializer:
    """Return a normal initialiser cut off at two standard deviations; `std` is that before the cut, as in TensorFlow."""
    return nn.initializers.truncated_normal(std)


def _normal(std: float) -> nn.initializers.Initializer:
    return nn.initializers.normal(std)


def _orthogonal(scale: float = 1.0) -> nn.initializers.Initializer:
    """Return an initialiser whose kernels, as matrices (all other axes, features), have orthonormal columns or rows times
    `scale` (Saxe et al. 2013, "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks")."""
    return nn.initializers.orthogonal(scale)


@functools.cache
def constant(value: float) -> nn.initializers.Initializer:
    """Return the initialiser of a constant, the same object for the same value."""
    return nn.initializers.constant(value)


def _torch_uniform() -> nn.initializers.Initializer:
    """Return an initialiser that is uniform in +-1 / sqrt(fan_in), PyTorch's default for kernels."""
    return nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def _dirac() -> nn.initializers.Initializer:
    """Return an initialiser whose convolutions copy each input channel to the feature of the same index, as PyTorch's
    `dirac_`. Further features, and the kernels of dense layers, are drawn from `torch_uniform`."""
    draw = _torch_uniform()

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        kernel = draw(key, shape, dtype)
        if len(shape) < 4:
            return kernel
        *size, channels, features = shape
        copied = min(channels, features)
        center = tuple(n // 2 for n in size)
        index = jnp.arange(copied)
        identity = jnp.zeros((*size, channels, copied), dtype).at[(*center, index, index)].set(1)
        return kernel.at[..., :copied].set(identity)
    return init


INITIALIZERS: dict[str, Callable[..., nn.initializers.Initializer]] = {
    'he_normal': nn.initializers.he_normal, 'he_uniform': nn.initializers.he_uniform,
    'xavier_normal': nn.initializers.xavier_normal, 'xavier_uniform': nn.initializers.xavier_uniform,
    'glorot_normal': nn.initializers.glorot_normal, 'glorot_uniform': nn.initializers.glorot_uniform,
    'lecun_normal': nn.initializers.lecun_normal, 'lecun_uniform': nn.initializers.lecun_uniform,
    'truncated_normal': _truncated_normal, 'normal': _normal, 'orthogonal': _orthogonal, 'torch_uniform': _torch_uniform,
    'dirac': _dirac, 'constant': constant,
}
BIASED_LAYERS = ('all', 'conv', 'dense')


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """Return the activation registered under a name.

    Raises:
      UserError: The name is unknown.
    """
    if name not in ACTIVATIONS:
        raise unknown('activation', name, ACTIVATIONS)
    return ACTIVATIONS[name]


@functools.cache
def initializer(text: str) -> nn.initializers.Initializer:
    """Return the initialiser that a name, or a name with arguments such as `'truncated_normal(0.1)'`, stands for.

    Raises:
      UserError: The name is unknown, or the arguments do not fit.
    """
    name, args, kwargs = parse_call(text, 'initialiser')
    if name not in INITIALIZERS:
        raise unknown('initialiser', name, INITIALIZERS)
    init = INITIALIZERS[name](**bind(INITIALIZERS[name], args, kwargs, f'initialiser {name}'))
    try:
        jax.eval_shape(lambda: init(jax.random.key(0), (2, 2)))
    except (TypeError, ValueError) as e:
        raise UserError(f'initialiser {text!r}: {" ".join(str(e).split())[:200]}') from e
    return init


def positive_ints(values: Any) -> bool:
    """Return whether `values` is a non-empty tuple of positive integers."""
    return isinstance(values, tuple) and bool(values) and all(isinstance(n, int) and n > 0 for n in values)


def check_kernels(field: str, kernels: Sequence[Any], count: int) -> None:
    """Check that a field holds `count` tuples (size, stride, padding).

    The padding must be less than half the size, so that an image without pixels has no output.

    Raises:
      UserError: The kernels do not fit; the message names the field.
    """
    def valid(kernel: Any) -> bool:
        if not isinstance(kernel, tuple) or len(kernel) != 3 or not all(isinstance(n, int) for n in kernel):
            return False
        size, stride, padding = kernel
        return size > 0 and stride > 0 and 0 <= 2 * padding < size
    if len(kernels) != count or not all(map(valid, kernels)):
        raise UserError(f'{field} must be {count} tuples (size, stride, padding) with the padding less than half the size, '
                        f'got {kernels}')


def min_input_size(output_size: Callable[[int], int], required: int = 1) -> int:
    """Return the smallest image size for which `output_size`, a function that never falls, is at least `required`."""
    return bisect.bisect_left(range(1 << 40), required, key=output_size)


class BatchNorm(nn.BatchNorm):
    """Normalise each channel, the last axis, as `flax.linen.BatchNorm` does, with a faster gradient on the CPU.

    The operations are in `ops/batch_norm.py`.

    Attributes:
      relu: apply a ReLU to the result.
      native: compute the sums over the batch by the native library on the CPU, where it is available.
    """

    relu: bool = False
    native: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """Return (N, ..., C) normalised, of the same shape, in `dtype`."""
        shape = x.shape[-1:]
        scale = self.param('scale', self.scale_init, shape, self.param_dtype) if self.use_scale else jnp.ones(shape)
        bias = self.param('bias', self.bias_init, shape, self.param_dtype)
        means, variances = (self.variable('batch_stats', name, start, shape, jnp.float32) for name, start in (
            ('mean', jnp.zeros), ('var', jnp.ones)))
        use_native = self.native and jax.default_backend() == 'cpu' and native.available(jnp.float32)
        if self.use_running_average:
            mean, var = means.value, variances.value
        else:
            moments = batch_norm.moments(x, use_native)
            if self.axis_name is not None and not self.is_initializing():
                moments = batch_norm.merge_devices(moments, self.axis_name)
            mean, var = moments
            if not self.is_initializing():
                for old, new in ((means, mean), (variances, var)):
                    old.value = self.momentum * old.value + (1 - self.momentum) * new
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        dtype = jnp.float32 if self.dtype is None else self.dtype
        return batch_norm.normalise(x, mean, factor, bias, self.relu, use_native, dtype)


def height_width(value: int | Sequence[int] | None) -> tuple[int, int]:
    """Return (height, width) of a setting in which a single number stands for both, and None for 1."""
    if value is None:
        return 1, 1
    if isinstance(value, int):
        return value or 1, value or 1
    height, width = value
    return height, width


class Conv(nn.Conv):
    """Convolve images (N, H, W, C), with the parameters of `flax.linen.Conv` and the implementations of `ops/conv.py`.

    Flax's fields `conv_general_dilated` and `shared_weights` are ignored.

    Attributes:
      implementation: see `ops.conv.conv_general_dilated`.
      quantizer: rounds the input and the kernel; or None.
    """

    implementation: str = 'auto'
    quantizer: Quantizer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (N, H, W, C) to (N, H', W', features)."""
        shape = (*height_width(self.kernel_size), x.shape[-1] // self.feature_group_count, self.features)
        kernel = self.param('kernel', self.kernel_init, shape, self.param_dtype)
        bias = self.param('bias', self.bias_init, shape[-1:], self.param_dtype) if self.use_bias else None
        image, kernel, bias = self.promote_dtype(x, kernel, bias, dtype=self.dtype)
        assert image is not None
        assert kernel is not None
        kernel = kernel if self.mask is None else kernel * self.mask
        if self.quantizer is not None:
            image, kernel = self.quantizer(self, image, kernel)
        y = conv_general_dilated(image, kernel, height_width(self.strides), canonicalize_padding(self.padding, 2),
                                 height_width(self.input_dilation), height_width(self.kernel_dilation), NHWC,
                                 self.feature_group_count, self.precision, implementation=self.implementation)
        return y if bias is None else add_bias(y, bias)


class Dense(nn.Dense):
    """Apply a dense layer whose input and kernel are rounded by a quantizer; see `flax.linen.Dense`.

    Attributes:
      quantizer: rounds the input and the kernel.
    """

    quantizer: Quantizer = Quantizer()

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map (..., C) to (..., features)."""
        kernel = self.param('kernel', self.kernel_init, (inputs.shape[-1], self.features), self.param_dtype)
        bias = self.param('bias', self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
        x, kernel, bias = self.promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        assert x is not None
        assert kernel is not None
        x, kernel = self.quantizer(self, x, kernel)
        y = x @ kernel
        return y if bias is None else y + bias
