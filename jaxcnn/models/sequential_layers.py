"""The layers that a string of `sequential.py` may name."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax

from jaxcnn.config.arguments import check_choice, check_number, check_whole_number
from jaxcnn.errors import UserError, check_bool
from jaxcnn.models.layers import ACTIVATIONS, height_width
from jaxcnn.models.network import Network
from jaxcnn.ops.lrn import local_response_norm
from jaxcnn.ops.pool import POOLS

PADDINGS = ('same', 'valid')


class Shape(NamedTuple):
    """The shape of the activations of one image.

    Attributes:
      channels: number of channels; None where it depends on the image's.
      size: height and width of a feature map; None for a vector.
    """

    channels: int | None
    size: tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class Layer:
    """The base class of layers; the fields are the arguments in the string.

    A layer that neither changes the shape nor needs a feature map implements `apply` alone.
    """

    elementwise: ClassVar[bool] = False  # belongs to the convolution before it

    def check(self) -> None:
        """Check the arguments.

        Raises:
          UserError: An argument has the wrong type or is out of range.
        """

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the output for an input of a shape.

        Raises:
          UserError: The layer does not take such inputs.
        """
        return shape

    def apply(self, network: Network, x: jax.Array, train: bool) -> jax.Array:
        """Apply the layer to (N, H, W, C) or (N, C)."""
        raise NotImplementedError


def _map_size(shape: Shape) -> tuple[int, int]:
    if shape.size is None:
        raise UserError('it needs a feature map, and its input is a vector; move it before flatten and global_avg_pool')
    return shape.size


def _windows(shape: Shape, window: tuple[int, int], stride: int, padding: Sequence[int]) -> tuple[int, int]:
    """Return the size of a map after a window moved over it; `padding` is the sum of both sides, for each axis."""
    height, width = size = _map_size(shape)
    if any(n + pad < k for n, k, pad in zip(size, window, padding, strict=True)):
        padded = ', padding included,' if any(padding) else ''
        raise UserError(f'its window of {window[0]} x {window[1]} pixels does not fit into its input{padded} of '
                        f'{height + padding[0]} x {width + padding[1]}')
    rows, columns = ((n + pad - k) // stride + 1 for n, k, pad in zip(size, window, padding, strict=True))
    return rows, columns


@dataclasses.dataclass(frozen=True)
class Conv(Layer):
    """A convolution.

    Attributes:
      features: number of output channels.
      kernel: side of a square kernel, or (height, width).
      stride: stride in both directions.
      padding: pixels on each side; `'same'`, as in TensorFlow; or `'valid'`, which is 0. By default it is half the kernel's
        size, dilation included, which keeps the size of the map at stride 1 if the kernel's is odd.
      groups: groups into which the channels are divided.
      dilation: distance between neighbouring elements of the kernel.
      use_bias: add a bias; one before `norm` has no effect.
    """

    features: int
    kernel: int | tuple[int, int] = 3
    stride: int = 1
    padding: int | str | None = None
    groups: int = 1
    dilation: int = 1
    use_bias: bool = True

    def check(self) -> None:
        """See `Layer.check`."""
        check_whole_number('conv', features=self.features, stride=self.stride, groups=self.groups, dilation=self.dilation)
        if isinstance(self.kernel, tuple):
            if len(self.kernel) != 2:
                raise UserError(f'expected a whole number or (height, width), got {self.kernel}', field='conv.kernel')
            check_whole_number('conv', **{f'kernel[{i}]': side for i, side in enumerate(self.kernel)})
        else:
            check_whole_number('conv', kernel=self.kernel)
        if isinstance(self.padding, str):
            check_choice('conv', PADDINGS, padding=self.padding)
        elif self.padding is not None:
            check_whole_number('conv', 0, padding=self.padding)
        check_bool('conv.use_bias', True, self.use_bias)
        if self.features % self.groups:
            raise UserError(f'{self.groups} groups do not divide {self.features} features')

    def _window(self) -> tuple[int, int]:
        """Return the size of the dilated kernel."""
        height, width = ((k - 1) * self.dilation + 1 for k in height_width(self.kernel))
        return height, width

    def output_shape(self, shape: Shape) -> Shape:
        """See `Layer.output_shape`."""
        size, window = _map_size(shape), self._window()
        if shape.channels is not None and shape.channels % self.groups:
            raise UserError(f'{self.groups} groups do not divide the channels of its input, {shape.channels}')
        if self.padding == 'same':
            height, width = (-(-n // self.stride) for n in size)
            return Shape(self.features, (height, width))
        if isinstance(self.padding, str):
            sums = [0, 0]
        else:
            sums = [2 * (k // 2 if self.padding is None else self.padding) for k in window]
        return Shape(self.features, _windows(shape, window, self.stride, sums))

    def apply(self, network: Network, x: jax.Array, train: bool) -> jax.Array:
        """See `Layer.apply`."""
        padding: Any = self.padding
        if padding is None:
            padding = [(k // 2, k // 2) for k in self._window()]
        elif isinstance(padding, str):
            padding = padding.upper()
        return network.conv(self.features, self.kernel, self.stride, padding, feature_group_count=self.groups,
                            kernel_dilation=self.dilation, use_bias=self.use_bias)(x)


@dataclasses.dataclass(frozen=True)
class Pool(Layer):
    """Pooling; a size that does not divide that of the map leaves the last rows and columns out.

    Attributes:
      kind: `max` or `avg`.
      size: side of the window.
      stride: distance between windows; by default `size`.
      padding: pixels on each side, at most half of `size`.
    """

    kind: str
    size: int
    stride: int | None = None
    padding: int = 0

    def check(self) -> None:
        """See `Layer.check`."""
        call = f'{self.kind}_pool'
        check_whole_number(call, size=self.size)
        if self.stride is not None:
            check_whole_number(call, stride=self.stride)
        check_whole_number(call, 0, padding=self.padding)
        if 2 * self.padding > self.size:
            raise UserError(f'expected at most half the size of {self.size}, got {self.padding}', field=f'{call}.padding')

    def output_shape(self, shape: Shape) -> Shape:
        """See `Layer.output_shape`."""
        sums = [2 * self.padding] * 2
        return Shape(shape.channels, _windows(shape, (self.size, self.size), self.stride or self.size, sums))

    def apply(self, network: Network, x: jax.Array, train: bool) -> jax.Array:
        """See `Layer.apply`."""
        return POOLS[self.kind](x, self.size, self.stride, self.padding)


@dataclasses.dataclass(frozen=True)
class GlobalAvgPool(Layer):
    """The mean of each channel over the map."""

    def output_shape(self, shape: Shape) -> Shape:
        """See `Layer.output_shape`."""
        _map_size(shape)
        return Shape(shape.channels, None)

    def apply(self, network: Network, x: jax.Array, train: bool) -> jax.Array:
        """See `Layer.apply`."""
        return x.mean((1, 2))


@dataclasses.dataclass(frozen=True)
class Flatten(Layer):
    """A map as a vector, so that all images must have one size."""

    def output_shape(self, shape: Shape) -> Shape:
        """See `Layer.output_shape`."""
        height, width = _map_size(shape)
        return Shape(None if shape.channels is None else height * width * shape.channels, None)

    def apply(self, network: Network, x: jax.Array, train: bool) -> jax.Array:
        """See `Layer.apply`."""
        return x.reshape(x.shape[0], -1)


@dataclasses.dataclass(frozen=True)
class Dense(Layer):
    """A fully connected layer.

    Attributes:
      features: number of outputs; None for the last layer, which has one for each class.
    """

    features: int | None = None

    def check(self) -> None:
        """See `Layer.check`."""
        if self.features is not None:
            check_whole_number('dense', features=self.features)

    def output_shape(self, shape: Shape) -> Shape:
        """See `Layer.output_shape`."""
        if shape.size is not None:
            raise UserError('its input is a feature map; put flatten or global_avg_pool before it')
        return Shape(self.features, None)

    def apply(self, network: Network, x: jax.Array, train: bool) -> jax.Array:
        """See `Layer.apply`."""
        return network.dense(network.num_classes if self.features is None else self.features)(x)


@dataclasses.dataclass(frozen=True)
class Norm(Layer):
    """BatchNorm, with the network's `bn_momentum` and `bn_epsilon`."""

    elementwise: ClassVar[bool] = True

    def apply(self, network: Network, x: jax.Array, train: bool) -> jax.Array:
        """See `Layer.apply`."""
        return network.norm(x, train)


@dataclasses.dataclass(frozen=True)
class Activation(Layer):
    """An activation of `layers.ACTIVATIONS`."""

    name: str
    elementwise: ClassVar[bool] = True

    def apply(self, network: Network, x: jax.Array, train: bool) -> jax.Array:
        """See `Layer.apply`."""
        return ACTIVATIONS[self.name](x)


@dataclasses.dataclass(frozen=True)
class Dropout(Layer):
    """Dropout.

    Attributes:
      rate: probability of zeroing a feature; by default the network's `dropout`.
    """

    rate: float | None = None
    elementwise: ClassVar[bool] = True

    def check(self) -> None:
        """See `Layer.check`."""
        if self.rate is not None:
            check_number('dropout', 0, 1, rate=self.rate)
            if self.rate == 1:
                raise UserError('expected a number below 1, got 1, which would drop everything', field='dropout.rate')

    def apply(self, network: Network, x: jax.Array, train: bool) -> jax.Array:
        """See `Layer.apply`."""
        return nn.Dropout(network.dropout if self.rate is None else float(self.rate), deterministic=not train)(x)


@dataclasses.dataclass(frozen=True)
class LocalResponseNorm(Layer):
    """Local response normalisation; see `ops.lrn.local_response_norm`."""

    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 2.0
    elementwise: ClassVar[bool] = True

    def check(self) -> None:
        """See `Layer.check`."""
        check_whole_number('lrn', size=self.size)
        check_number('lrn', alpha=self.alpha, beta=self.beta)
        check_number('lrn', 1e-12, k=self.k)

    def output_shape(self, shape: Shape) -> Shape:
        """See `Layer.output_shape`."""
        _map_size(shape)
        return shape

    def apply(self, network: Network, x: jax.Array, train: bool) -> jax.Array:
        """See `Layer.apply`."""
        return local_response_norm(x, self.size, self.alpha, self.beta, self.k)


LAYERS: dict[str, Callable[..., Layer]] = {
    'conv': Conv, 'norm': Norm, 'lrn': LocalResponseNorm, 'dropout': Dropout, 'global_avg_pool': GlobalAvgPool,
    'flatten': Flatten, 'dense': Dense,
    **{f'{kind}_pool': functools.partial(Pool, kind) for kind in POOLS},
    **{name: functools.partial(Activation, name) for name in ACTIVATIONS},
}
