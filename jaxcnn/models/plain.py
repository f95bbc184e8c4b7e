"""The base class of networks whose convolutions are followed by dense layers, with three kinds of classifier head."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.errors import UserError, unknown
from jaxcnn.models.layers import activation, min_input_size, positive_ints
from jaxcnn.models.network import Network
from jaxcnn.ops.conv import conv_general_dilated
from jaxcnn.ops.geometry import NHWC

HEADS = ('dense', 'spp', 'dense_conv')


class Plain(Network):
    """A network whose last feature map goes through dense layers, all but the last of them with the activation and
    dropout.

    The field `head` selects one of three classifiers:

    - `dense` flattens the map, so that all images must have one size.
    - `spp` has a spatial pyramid in place of the last pooling, whose size does not depend on the image's (He et al. 2014,
      "Spatial pyramid pooling in deep convolutional networks for visual recognition"). The paper's ZF-5 is
      `zfnet` with `pyramid=(6, 3, 2, 1)`, 50 bins; `(4, 2, 1)` has 21.
    - `dense_conv` is fully convolutional (Long et al. 2015; the dense evaluation of VGG's paper). Its parameters have the
      names and shapes of those of `dense`, but the first dense layer is applied as a `window` x `window` convolution without
      padding and the others as 1x1 convolutions. The output are scores (N, H', W', num_classes), one for each position of
      the window. An image of the size that the network was trained for has a single score, the one that `dense` gives; the
      scores of a larger image are averaged by `.mean((1, 2))` to logits (N, num_classes).

    Attributes:
      activation: name of an activation in `layers.ACTIVATIONS`, after convolutions and dense layers; the papers' is `relu`.
      head: `dense`, `spp` or `dense_conv`.
      pyramid: number of bins along a side, for each level of the pyramid (`spp`).
      window: side of the part of the map that the first dense layer sees (`dense_conv`).
    """

    activation: str = 'relu'
    head: str = 'dense'
    pyramid: tuple[int, ...] = (4, 2, 1)
    window: int = 7

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        activation(self.activation)
        if self.head not in HEADS:
            raise unknown('head', self.head, HEADS)
        if not positive_ints(self.pyramid):
            raise UserError(f'pyramid must be positive integers, got {self.pyramid}')
        if self.window < 1:
            raise UserError(f'window must be at least 1, got {self.window}')

    def last_map_size(self, image_size: int) -> int:
        """Return the side of the map that the dense layers or the pyramid see, for the image's side.

        It never falls with the image's side; every subclass implements this method.
        """
        raise NotImplementedError

    def last_pool(self, x: jax.Array) -> jax.Array:
        """Apply the last pooling, which `spp` replaces by the pyramid; every subclass implements this method."""
        raise NotImplementedError

    def min_image_size(self) -> int:
        """See `Network.min_image_size`."""
        return min_input_size(self.last_map_size, self.window if self.head == 'dense_conv' else 1)

    def classify(self, x: jax.Array, train: bool) -> jax.Array:
        """Apply the last pooling, or the pyramid in its place, and the dense layers.

        Args:
          x: the last feature map (N, H, W, C).
          train: apply dropout.
        """
        x = spatial_pyramid(x, self.pyramid) if self.head == 'spp' else self.last_pool(x)
        if self.head == 'dense':
            x = x.reshape(x.shape[0], -1)
        first, *others = [*self.hidden_features(), self.num_classes]
        x = self._first_dense(first)(x)
        for width in others:
            x = self.drop(activation(self.activation)(x), train)
            x = self.dense(width)(x)
        return x

    def hidden_features(self) -> Sequence[int]:
        """Return the features of the dense layers before the last."""
        raise NotImplementedError

    def region_input(self) -> tuple[str, int]:
        """See `Network.region_input`; a region has the size that the first dense layer takes."""
        return super().region_input()[0], self.window

    def pooled_features(self, x: jax.Array, train: bool) -> jax.Array:
        """See `Network.pooled_features`; regions (N, ...) of any shape are flattened for the dense layers."""
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden_features():
            x = self.drop(activation(self.activation)(self.dense(width)(x)), train)
        return x

    def _first_dense(self, features: int) -> nn.Dense:
        """Return the first dense layer, which `dense_conv` applies to each window of the map."""
        if self.head != 'dense_conv':
            return self.dense(features)
        return Dense(features, dtype=jnp.dtype(self.dtype), param_dtype=jnp.dtype(self.param_dtype), window=self.window,
                     implementation=self.conv_implementation, **self.initializers('dense'))


class Dense(nn.Dense):
    """A dense layer for flattened maps of `window` x `window` pixels, applied to every window of a map that may be larger.

    The parameters, and the layer's name in a network, are those of the dense layer for a map of one window.

    Attributes:
      window: side of the window in pixels of the map.
      implementation: of the convolution, see `ops.conv`.
    """

    window: int = 1
    implementation: str = 'auto'

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map (N, H, W, C) to (N, H - window + 1, W - window + 1, features)."""
        size, channels = self.window, inputs.shape[-1]
        kernel = self.param('kernel', self.kernel_init, (size * size * channels, self.features), self.param_dtype)
        bias = self.param('bias', self.bias_init, (self.features,), self.param_dtype)
        x, kernel, bias = (a.astype(self.dtype) for a in (inputs, kernel, bias))
        return bias + conv_general_dilated(
            x, kernel.reshape(size, size, channels, self.features), (1, 1), 'VALID', dimension_numbers=NHWC,
            implementation=self.implementation)


def spatial_pyramid(x: jax.Array, levels: Sequence[int]) -> jax.Array:
    """Pool a map (N, H, W, C) of any size into n x n bins by their maximum, for each n of `levels`.

    Along a side of s pixels, bin i of n reaches from floor(i s / n) to ceil((i + 1) s / n), exclusive (He et al. 2014,
    appendix A; PyTorch's adaptive pooling); bins overlap where n does not divide s. For the 13 pixels of the paper's maps
    these are windows of ceil(s / n) at a stride of floor(s / n), as in its section 2.3.

    Returns:
      An array (N, C times the sum of n * n), ordered by level, row, column and channel.
    """
    return jnp.concatenate([_max_bins(_max_bins(x, n, 1), n, 2).reshape(x.shape[0], -1) for n in levels], 1)


def _max_bins(x: jax.Array, count: int, axis: int) -> jax.Array:
    """Return the maximum of each of `count` bins along an axis."""
    side = x.shape[axis]
    maxima = []
    for i in range(count):
        start, stop = i * side // count, -(-(i + 1) * side // count)
        maxima.append(jax.lax.slice_in_dim(x, start, stop, axis=axis).max(axis))
    return jnp.stack(maxima, axis)
