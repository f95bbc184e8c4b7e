"""What networks are made of: named activations and initialisers, and `Network`, their common base."""

import bisect
import functools
from collections.abc import Callable, Sequence
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.linear import canonicalize_padding

from jaxcnn.config import bind, parse_call
from jaxcnn.errors import UserError, unknown
from jaxcnn.ops import batch_norm, native
from jaxcnn.ops.conv import IMPLEMENTATIONS, add_bias, conv_general_dilated
from jaxcnn.ops.geometry import NHWC
from jaxcnn.ops.tanh import tanh

Maps = dict[str, jax.Array]  # feature maps by name

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'relu': nn.relu, 'leaky_relu': nn.leaky_relu, 'elu': nn.elu, 'relu6': nn.relu6, 'swish': nn.swish,
    'tanh': tanh, 'sigmoid': nn.sigmoid, 'gelu': nn.gelu,
}


def _truncated_normal(std: float) -> nn.initializers.Initializer:
    """Normal of deviation `std` before it is cut off at two deviations, as TensorFlow's."""
    return nn.initializers.truncated_normal(std)


def _normal(std: float) -> nn.initializers.Initializer:
    return nn.initializers.normal(std)


def _torch_uniform() -> nn.initializers.Initializer:
    """Uniform within 1 / sqrt(fan_in), as PyTorch draws kernels where nothing is said."""
    return nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def _dirac() -> nn.initializers.Initializer:
    """Of convolutions: the first features are the input's channels, passed on as they are (PyTorch's `dirac_`), the others,
    and all of dense layers, `torch_uniform`."""
    draw = _torch_uniform()

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        kernel = draw(key, shape, dtype)
        if len(shape) < 4:
            return kernel
        *sides, channels, features = shape
        same = min(channels, features)
        passing = jnp.zeros((*sides, channels, same), dtype).at[(*(s // 2 for s in sides), *2 * (jnp.arange(same),))].set(1)
        return kernel.at[..., :same].set(passing)
    return init


INITIALIZERS: dict[str, Callable[..., nn.initializers.Initializer]] = {
    'he_normal': nn.initializers.he_normal, 'he_uniform': nn.initializers.he_uniform,
    'xavier_normal': nn.initializers.xavier_normal, 'xavier_uniform': nn.initializers.xavier_uniform,
    'glorot_normal': nn.initializers.glorot_normal, 'glorot_uniform': nn.initializers.glorot_uniform,
    'lecun_normal': nn.initializers.lecun_normal, 'lecun_uniform': nn.initializers.lecun_uniform,
    'truncated_normal': _truncated_normal, 'normal': _normal, 'torch_uniform': _torch_uniform, 'dirac': _dirac,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The activation of that name.

    Raises:
      UserError: there is none.
    """
    if name not in ACTIVATIONS:
        raise unknown('activation', name, ACTIVATIONS)
    return ACTIVATIONS[name]


@functools.cache
def initializer(text: str) -> nn.initializers.Initializer:
    """The initialiser of a name, or of a name with its parameters, as in `'truncated_normal(0.1)'`.

    Raises:
      UserError: unknown, or its parameters do not fit.
    """
    name, args, kwargs = parse_call(text, 'initialiser')
    if name not in INITIALIZERS:
        raise unknown('initialiser', name, INITIALIZERS)
    chosen = INITIALIZERS[name](**bind(INITIALIZERS[name], args, kwargs, f'initialiser {name}'))
    try:
        jax.eval_shape(lambda: chosen(jax.random.key(0), (2, 2)))
    except (TypeError, ValueError) as e:
        raise UserError(f'initialiser {text!r}: {" ".join(str(e).split())[:200]}') from e
    return chosen


def positive(values: Any) -> bool:
    """Whether it is a tuple of whole numbers above zero, and of one at least."""
    return isinstance(values, tuple) and bool(values) and all(isinstance(n, int) and n > 0 for n in values)


def check_kernels(field: str, kernels: Sequence[Any], count: int) -> None:
    """Raises a UserError, naming the field, for what is not size, stride and padding of `count` kernels; padding is less
    than half the size, so that nothing is seen of an image without pixels."""
    def fits(kernel: Any) -> bool:
        return (isinstance(kernel, tuple) and len(kernel) == 3 and all(isinstance(n, int) for n in kernel) and
                min(kernel[:2]) > 0 and 0 <= 2 * kernel[2] < kernel[0])
    if len(kernels) != count or not all(map(fits, kernels)):
        raise UserError(f'{field} must be {count} times size, stride and padding, which is less than half the size, '
                        f'got {kernels}')


def smallest_side(side: Callable[[int], int], wanted: int = 1) -> int:
    """The smallest image side of which `side`, which grows with it, makes at least `wanted`."""
    return bisect.bisect_left(range(1 << 40), wanted, key=side)


class BatchNorm(nn.BatchNorm):
    """Flax's batch normalisation over the last axis, with a gradient that is faster on the CPU (`ops/batch_norm.py`).

    Attributes:
      relu: the rectifier after it.
      native: by the library's calls on the CPU, where there is one.
    """

    relu: bool = False
    native: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """(N, ..., C) normalised, of the same shape, in `dtype`."""
        shape = x.shape[-1:]
        scale = self.param('scale', self.scale_init, shape, self.param_dtype) if self.use_scale else jnp.ones(shape)
        bias = self.param('bias', self.bias_init, shape, self.param_dtype)
        means, variances = (self.variable('batch_stats', name, start, shape, jnp.float32) for name, start in (
            ('mean', jnp.zeros), ('var', jnp.ones)))
        ours = self.native and jax.default_backend() == 'cpu' and native.available(jnp.float32)
        if self.use_running_average:
            mean, var = means.value, variances.value
        else:
            moments = batch_norm.moments(x, ours)
            if self.axis_name is not None and not self.is_initializing():
                moments = batch_norm.merge_devices(moments, self.axis_name)
            mean, var = moments
            if not self.is_initializing():
                for old, new in ((means, mean), (variances, var)):
                    old.value = self.momentum * old.value + (1 - self.momentum) * new
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        return batch_norm.normalise(x, mean, factor, bias, self.relu, ours).astype(self.dtype)


def two(value: int | Sequence[int] | None) -> tuple[int, int]:
    """Height and width, of which one number means both, and None 1."""
    height, width = (value or 1,) * 2 if isinstance(value, int | None) else value
    return height, width


class Conv(nn.Conv):
    """Flax's convolution, of images (N, H, W, C) alone, by ours (`ops/conv.py`), with the same parameters. Flax's fields for
    other convolutions (`conv_general_dilated`, `shared_weights`) are of no account.

    Attributes:
      implementation: see `ops.conv.conv_general_dilated`.
    """

    implementation: str = 'auto'

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, C) to (N, H', W', features)."""
        shape = (*two(self.kernel_size), x.shape[-1] // self.feature_group_count, self.features)
        kernel = self.param('kernel', self.kernel_init, shape, self.param_dtype)
        bias = self.param('bias', self.bias_init, shape[-1:], self.param_dtype) if self.use_bias else None
        image, kernel, bias = self.promote_dtype(x, kernel, bias, dtype=self.dtype)
        assert image is not None
        assert kernel is not None
        kernel = kernel if self.mask is None else kernel * self.mask
        y = conv_general_dilated(image, kernel, two(self.strides), canonicalize_padding(self.padding, 2),
                                 two(self.input_dilation), two(self.kernel_dilation), NHWC, self.feature_group_count,
                                 self.precision, implementation=self.implementation)
        return y if bias is None else add_bias(y, bias)


class Network(nn.Module):
    """Fields and layers that every network shares. Input (N, H, W, C) float, output logits (N, num_classes).

    A network writes `forward`, and `check` and `smallest` where it has something to say.

    Attributes:
      num_classes: logits.
      dtype: of the computation; BatchNorm statistics stay float32.
      param_dtype: of the parameters, but those of BatchNorm, which are float32.
      kernel_init: name of the initialiser of convolution and dense kernels.
      conv_implementation: of the convolutions: `auto`, or one by name, see `ops.conv`. BatchNorm's sums on the CPU are calls
        of ours with `auto` and `own`.
      dropout: probability of zeroing a feature, in [0, 1).
      bn_momentum: part of the running statistics kept at each step, or micro-batch (PyTorch's momentum is one minus this).
        The running variance is that of the batch, as the one it is normalised by; PyTorch's is N / (N - 1) times as large.
      bn_frozen: use the running statistics in training, too.
      bn_epsilon: added to the variance.
      bn_axis: name of the pmap axis that BatchNorm statistics are taken over.
      remat: keep only the results of blocks for the backward pass, and compute what is within them again.
    """

    num_classes: int = 10
    dtype: str = 'float32'
    param_dtype: str = 'float32'
    kernel_init: str = 'he_normal'
    conv_implementation: str = 'auto'
    dropout: float = 0.0
    bn_momentum: float = 0.9
    bn_frozen: bool = False
    bn_epsilon: float = 1e-5
    bn_axis: str | None = None
    remat: bool = False

    def check(self) -> None:
        """Raises a UserError for fields that make no network; `models.create` calls it."""
        for name in ('dtype', 'param_dtype'):
            known = ('float32', 'bfloat16')
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        initializer(self.kernel_init)
        if self.conv_implementation not in IMPLEMENTATIONS:
            raise unknown('conv_implementation', self.conv_implementation, IMPLEMENTATIONS)
        for name, low, high in (('dropout', 0, 1), ('bn_momentum', 0, 1)):
            if not low <= getattr(self, name) < high:
                raise UserError(f'{name} must be in [{low}, {high}), got {getattr(self, name)!r}')
        if self.bn_epsilon <= 0:
            raise UserError(f'bn_epsilon must be above 0, got {self.bn_epsilon!r}')
        if self.num_classes < 1:
            raise UserError(f'num_classes must be at least 1, got {self.num_classes!r}')

    def smallest(self) -> int:
        """Pixels of the smallest side of an image that it can work on."""
        return 1

    def published(self) -> tuple[tuple[int, int, int], int]:
        """The images (H, W, C) and the number of classes that it was published for."""
        return (224, 224, 3), 1000

    def forward(self, x: jax.Array, train: bool, maps: Maps) -> Any:
        """What `__call__` gives; every network writes its own.

        Args:
          x: images (N, H, W, C).
          train: see `__call__`.
          maps: where it leaves its feature maps, under names in the order in which they are computed.
        """
        raise NotImplementedError

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, features: bool = False) -> Any:
        """Logits (N, num_classes) of images (N, H, W, C); in training a network with auxiliary classifiers gives a tuple,
        its logits and then theirs.

        Args:
          x: images, normalised as in training.
          train: dropout draws, BatchNorm takes the batch's statistics, auxiliary classifiers are there.
          features: give a pair, of that and of the named feature maps, (N, H', W', C') each.

        Raises:
          UserError: images are smaller than `smallest`, or no (N, H, W, C).
        """
        if x.ndim != 4:
            raise UserError(f'{type(self).__name__} takes images (N, H, W, C), got an array of shape {x.shape}')
        if min(x.shape[1:3]) < self.smallest():
            raise UserError(f'{type(self).__name__} needs images of at least {self.smallest()} x {self.smallest()} pixels, '
                            f'got {x.shape[1]} x {x.shape[2]}')
        maps: Maps = {}
        output = self.forward(x, train, maps)
        return (output, maps) if features else output

    def block(self, body: Callable[..., jax.Array], x: jax.Array, *static: Any) -> jax.Array:
        """`body(self, x, *static)`: a block of the network, the unit of rematerialisation (see `remat`).

        Args:
          body: a method, as in `self.block(type(self).stage, x, train)`.
          x: its input.
          *static: what else it takes, no arrays.
        """
        def run(self: Self, x: jax.Array) -> jax.Array:
            return body(self, x, *static)
        return nn.remat(run)(self, x) if self.remat else run(self, x)

    def conv(self, features: int, size: int | tuple[int, int], stride: int = 1, padding: Any = None,
             **fields: Any) -> Conv:
        """A convolution of a square kernel or one of (height, width); padding is symmetric and keeps the size at stride 1,
        as in PyTorch's networks, unless it is given: a number, 'VALID', 'SAME', or ((top, bottom), (left, right))."""
        kernel = (size, size) if isinstance(size, int) else size
        padding = [(k // 2, k // 2) for k in kernel] if padding is None else padding
        return Conv(features, kernel, (stride, stride), padding, dtype=jnp.dtype(self.dtype),
                    param_dtype=jnp.dtype(self.param_dtype), kernel_init=initializer(self.kernel_init),
                    implementation=self.conv_implementation, **fields)

    def dense(self, features: int, **fields: Any) -> nn.Dense:
        """A fully connected layer."""
        return nn.Dense(features, dtype=jnp.dtype(self.dtype), param_dtype=jnp.dtype(self.param_dtype),
                        kernel_init=initializer(self.kernel_init), **fields)

    def norm(self, x: jax.Array, train: bool, relu: bool = False, zero: bool = False,
             scaled: bool = True) -> jax.Array:
        """Batch normalisation (Ioffe & Szegedy 2015), statistics in float32; and ReLU after it, where asked for. `zero`: its
        scale begins at 0 instead of 1; `scaled=False`: it has none."""
        scale = nn.initializers.zeros if zero else nn.initializers.ones
        return BatchNorm(use_running_average=not train or self.bn_frozen, momentum=self.bn_momentum, epsilon=self.bn_epsilon,
                         dtype=jnp.dtype(self.dtype), param_dtype=jnp.float32, axis_name=self.bn_axis, relu=relu,
                         scale_init=scale, use_scale=scaled, native=self.conv_implementation in ('auto', 'own'))(x)

    def conv_norm(self, x: jax.Array, train: bool, features: int, size: int | tuple[int, int], stride: int = 1,
                  padding: Any = None, relu: bool = True, zero: bool = False, **fields: Any) -> jax.Array:
        """A convolution without bias, batch normalisation, ReLU; see `conv` and `norm`."""
        return self.norm(self.conv(features, size, stride, padding, use_bias=False, **fields)(x), train, relu, zero)

    def drop(self, x: jax.Array, train: bool) -> jax.Array:
        """Dropout (Srivastava et al. 2014) in training."""
        return nn.Dropout(self.dropout, deterministic=not train)(x)


Models = dict[str, tuple[type[Network], dict[str, Any]]]  # name -> the module and the fields that make this variant of it
