"""What networks of convolutions followed by dense layers share: three forms of their dense part."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.errors import UserError, unknown
from jaxcnn.models.layers import Network, initializer, min_input_size, positive_ints
from jaxcnn.ops.conv import conv_general_dilated
from jaxcnn.ops.geometry import NHWC

HEADS = ('dense', 'spp', 'dense_conv')


class Plain(Network):
    """A network whose last feature map goes through dense layers, each but the last with ReLU and dropout.

    The forms of `head`:

    - `dense`: the map is flattened, so that images must be of one size.
    - `spp`: the map's spatial pyramid is, whose size is that of any image's (He et al. 2014, "Spatial pyramid pooling in
      deep convolutional networks for visual recognition").
    - `dense_conv`: fully convolutional (Long et al. 2015; the dense evaluation of VGG's paper). The parameters are those of
      `dense`, by the same names and of the same shapes, but the first dense layer is a convolution of `window` x `window`
      without padding and the others are 1x1: scores (N, H', W', num_classes), one for each place of the window. An image
      of the size that the network was made for has the one score that `dense` gives, (N, 1, 1, num_classes); a larger one
      has a map of scores, of which `.mean((1, 2))` are logits (N, num_classes).

    Attributes:
      head: `dense`, `spp` or `dense_conv`.
      pyramid: bins on a side, for each level of the pyramid (`spp`).
      window: side of the map that the first dense layer sees (`dense_conv`).
    """

    head: str = 'dense'
    pyramid: tuple[int, ...] = (4, 2, 1)
    window: int = 7

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        if self.head not in HEADS:
            raise unknown('head', self.head, HEADS)
        if not positive_ints(self.pyramid):
            raise UserError(f'pyramid must be positive numbers, got {self.pyramid}')
        if self.window < 1:
            raise UserError(f'window must be at least 1, got {self.window}')

    def side(self, pixels: int) -> int:
        """Side of the last feature map of images of a side; every network writes its own, and it grows with `pixels`."""
        raise NotImplementedError

    def min_image_size(self) -> int:
        """See `Network.min_image_size`."""
        return min_input_size(self.side, self.window if self.head == 'dense_conv' else 1)

    def classify(self, x: jax.Array, train: bool, hidden: Sequence[int]) -> jax.Array:
        """The dense part, for the last feature map (N, H, W, C).

        Args:
          x: the map.
          train: dropout draws.
          hidden: features of the dense layers before the last.
        """
        if self.head == 'dense':
            x = x.reshape(len(x), -1)
        elif self.head == 'spp':
            x = spatial_pyramid(x, self.pyramid)
        for i, width in enumerate(hidden):
            if self.head == 'dense_conv' and not i:
                x = Dense(width, dtype=jnp.dtype(self.dtype), param_dtype=jnp.dtype(self.param_dtype),
                          kernel_init=initializer(self.kernel_init), window=self.window,
                          implementation=self.conv_implementation)(x)
            else:
                x = self.dense(width)(x)
            x = self.drop(nn.relu(x), train)
        return self.dense(self.num_classes)(x)


class Dense(nn.Dense):
    """A dense layer for `window` x `window` places, flattened, at each window of a map that may be larger.

    Its parameters, and its name in a network, are those of the dense layer for a map of one window.

    Attributes:
      window: side, in places.
      implementation: of the convolution, see `ops.conv`.
    """

    window: int = 1
    implementation: str = 'auto'

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """(N, H, W, C) as (N, H - window + 1, W - window + 1, features)."""
        size, channels = self.window, inputs.shape[-1]
        kernel = self.param('kernel', self.kernel_init, (size * size * channels, self.features), self.param_dtype)
        bias = self.param('bias', self.bias_init, (self.features,), self.param_dtype)
        x, kernel, bias = (a.astype(self.dtype) for a in (inputs, kernel, bias))
        return bias + conv_general_dilated(
            x, kernel.reshape(size, size, channels, self.features), (1, 1), 'VALID', dimension_numbers=NHWC,
            implementation=self.implementation)


def spatial_pyramid(x: jax.Array, levels: Sequence[int]) -> jax.Array:
    """The largest values within n x n bins, for each n of `levels`, of a map (N, H, W, C) of any size.

    Bin i of n over a side of s places is those from floor(i s / n) to before ceil((i + 1) s / n), as in PyTorch's adaptive
    pooling; where n does not divide s they overlap.

    Returns:
      (N, sum of n * n, times C), level by level and in each by row, column and channel.
    """
    return jnp.concatenate([_bins(_bins(x, n, 1), n, 2).reshape(len(x), -1) for n in levels], 1)


def _bins(x: jax.Array, count: int, axis: int) -> jax.Array:
    side = x.shape[axis]
    return jnp.stack([jax.lax.slice_in_dim(x, i * side // count, -(-(i + 1) * side // count), axis=axis).max(axis)
                      for i in range(count)], axis)
