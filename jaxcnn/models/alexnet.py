"""AlexNet (Krizhevsky et al. 2012, "ImageNet classification with deep convolutional neural networks"), ZFNet (Zeiler &
Fergus 2013, "Visualizing and understanding convolutional networks"), and the other networks to which He et al. 2014 add a
spatial pyramid ("Spatial pyramid pooling in deep convolutional networks for visual recognition", table 1)."""

import functools
from typing import Any

import jax

from jaxcnn.errors import UserError, unknown
from jaxcnn.models.layers import activation, check_kernels, positive_ints
from jaxcnn.models.network import Maps, Models, Step
from jaxcnn.models.plain import Plain
from jaxcnn.ops.lrn import local_response_norm
from jaxcnn.ops.pool import max_pool

LRN_POSITIONS = ('before_activation', 'before_pool', 'after_pool')


class AlexNet(Plain):
    """AlexNet, ZFNet and similar networks: five or seven convolutions with an activation and three dense layers.

    In AlexNet and ZFNet, local response normalisation follows the first two convolutions, between the activation and
    pooling; 3x3 max pooling with stride 2 follows the first, second and fifth.

    `alexnet` is the paper's network in one tower. `alexnet_grouped` splits the second, fourth and fifth convolution into two
    groups, as the paper does over its two GPUs, and normalises over the channels of both groups, as Caffe does. `zfnet` has
    a first layer of 7x7 with stride 2 and a second with stride 2. At 1,000 classes they have 62,378,344, 60,965,224 and
    62,357,608 parameters.

    Padding is symmetric and pooling rounds sizes up, as in pytorchcv's `alexnet` and `zfnet`. So AlexNet's last map is
    6x6x256 both for the paper's 224 pixels and for the 227 that its arithmetic needs; ZFNet's is for 224.

    The other networks of table 1 of He et al. 2014 are, besides ZF-5, which is `zfnet`: `convnet5` (Convnet*-5), an AlexNet
    with its first two poolings after the second and third convolution; and `overfeat5` and `overfeat7`, in which 3x3 pooling
    with stride 3 and normalisation follow the first convolution, and 2x2 pooling the second. Their last maps, which
    `head='spp'` pools with `pyramid=(6, 3, 2, 1)`, are 13x13x256 and 18x18x512 at 224 pixels, and 6x6 after the last
    pooling. The paper gives no padding and no numbers of parameters; computed from its table, these are 62,378,344 for
    `convnet5` (with other poolings than `alexnet`, but its kernels), 102,908,520 and 107,628,136.

    The ablations of ZFNet's paper (section 4.3) are `widths=(96, 256, 256)`, without two middle convolutions, and
    `hidden_layers=0`, without two dense layers.

    Attributes:
      widths: features of the convolutions, at least three. The last one is followed by pooling.
      stem: (size, stride, padding) of the first two convolutions; the others are 3x3.
      groups: number of groups of all convolutions but the first and the third.
      pools: (convolution, size, stride) of each pooling between convolutions: the number of the convolution that it follows,
        counted from 1, and its window.
      last_window: (size, stride) of the last pooling.
      pool_ceil: pooling includes a last, incomplete window.
      lrn: apply local response normalisation.
      lrn_layers: number of convolutions, from the first, that are followed by normalisation.
      lrn_position: `before_activation`; `before_pool`, between the activation and pooling, as in AlexNet's paper; or
        `after_pool`, as in ZFNet's paper and in CaffeNet.
      lrn_size, lrn_alpha, lrn_beta, lrn_k: constants of the normalisation, see `ops.lrn.local_response_norm`; by default
        those of AlexNet's paper. Caffe's AlexNet has `lrn_k=1.0`.
      hidden: features of the dense layers before the last.
      hidden_layers: number of dense layers before the last, at least 0.
    """

    widths: tuple[int, ...] = (96, 256, 384, 384, 256)
    stem: tuple[tuple[int, int, int], ...] = ((11, 4, 0), (5, 1, 2))
    groups: int = 1
    pools: tuple[tuple[int, int, int], ...] = ((1, 3, 2), (2, 3, 2))
    last_window: tuple[int, int] = (3, 2)
    pool_ceil: bool = True
    lrn: bool = True
    lrn_layers: int = 2
    lrn_position: str = 'before_pool'
    lrn_size: int = 5
    lrn_alpha: float = 1e-4
    lrn_beta: float = 0.75
    lrn_k: float = 2.0
    hidden: int = 4096
    hidden_layers: int = 2
    dropout: float = 0.5
    window: int = 6

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        if len(self.widths) < 3 or not positive_ints((*self.widths, self.hidden)):
            raise UserError(f'widths must be three or more positive integers and hidden one, got {self.widths} and '
                            f'{self.hidden}')
        if self.lrn_position not in LRN_POSITIONS:
            raise unknown('lrn_position', self.lrn_position, LRN_POSITIONS)
        for name, minimum in (('lrn_size', 1), ('lrn_alpha', 0), ('lrn_beta', 0), ('lrn_layers', 0),
                              ('hidden_layers', 0)):
            if getattr(self, name) < minimum:
                raise UserError(f'{name} must be at least {minimum}, got {getattr(self, name)!r}')
        if self.lrn_k <= 0:
            raise UserError(f'lrn_k must be above 0, got {self.lrn_k!r}')
        check_kernels('stem', self.stem, 2)
        last = len(self.widths) - 1
        if self.lrn_layers > last:
            raise UserError(f'lrn_layers must be at most {last}, got {self.lrn_layers}')
        if not all(len(pool) == 3 and positive_ints(pool) and pool[0] <= last for pool in self.pools) or (
                len({pool[0] for pool in self.pools}) < len(self.pools)):
            raise UserError('pools must be tuples (convolution, size, stride) with different convolutions from 1 to '
                            f'{last}, got {self.pools}')
        if len(self.last_window) != 2 or not positive_ints(self.last_window):
            raise UserError(f'last_window must be (size, stride), got {self.last_window}')
        if self.groups < 1:
            raise UserError(f'groups must be at least 1, got {self.groups}')
        for width in self.widths:
            if width % self.groups:
                raise UserError(f'{self.groups} groups do not divide {width} features')

    def last_map_size(self, image_size: int) -> int:
        """See `Plain.last_map_size`."""
        map_size = image_size
        for i in range(1, len(self.widths)):
            if i <= len(self.stem):
                size, stride, padding = self.stem[i - 1]
                map_size = (map_size + 2 * padding - size) // stride + 1
            for window in self._pools_after(i):
                map_size = self._pooled_size(map_size, *window)
        return map_size if self.head == 'spp' else self._pooled_size(map_size, *self.last_window)

    def _pooled_size(self, map_size: int, size: int, stride: int) -> int:
        """Return the side of a pooled map; 0 for a map that is smaller than a complete window where these are needed."""
        if not self.pool_ceil:
            return max(map_size - size, -stride) // stride + 1
        return 0 if map_size < 1 else min(-(-(map_size - size) // stride), (map_size - 1) // stride) + 1

    def _pools_after(self, i: int) -> list[tuple[int, int]]:
        """Return the window of the pooling that follows convolution `i`, or none."""
        return [(size, stride) for convolution, size, stride in self.pools if convolution == i]

    def last_pool(self, x: jax.Array) -> jax.Array:
        """See `Plain.last_pool`."""
        return max_pool(x, *self.last_window, ceil=self.pool_ceil)

    def forward(self, x: jax.Array, train: bool, maps: Maps) -> jax.Array:
        """See `Network.forward`; the feature maps are `conv1`, `conv2` and so on, before pooling, and after normalisation
        unless this follows pooling."""
        return self.classify(self.trunk(x, train, maps), train)

    def hidden_features(self) -> tuple[int, ...]:
        """See `Plain.hidden_features`."""
        return (self.hidden,) * self.hidden_layers

    def steps(self, train: bool) -> list[Step]:
        """See `Network.steps`; a convolution begins with the pooling and normalisation after the one before it."""
        def step(x: jax.Array, i: int) -> jax.Array:
            for window in self._pools_after(i - 1):
                x = max_pool(x, *window, ceil=self.pool_ceil)
            if 1 < i <= self.lrn_layers + 1:
                x = self._normalize(x, 'after_pool')
            return self.block(type(self).convolution, x, i)

        def windows(i: int) -> tuple[tuple[int, int, int], ...]:
            pooling = tuple((*window, 0) for window in self._pools_after(i - 1))
            return pooling + ((self.stem[i - 1],) if i <= len(self.stem) else ())
        return [Step(f'conv{i}', functools.partial(step, i=i), windows(i)) for i in range(1, len(self.widths) + 1)]

    def convolution(self, x: jax.Array, i: int) -> jax.Array:
        """Apply convolution `i`, counted from 1, with the activation and normalisation."""
        size, stride, padding = self.stem[i - 1] if i <= len(self.stem) else (3, 1, 1)
        groups = 1 if i in (1, 3) else self.groups
        x = self.conv(self.widths[i - 1], size, stride, padding, feature_group_count=groups)(x)
        if i > self.lrn_layers:
            return activation(self.activation)(x)
        x = activation(self.activation)(self._normalize(x, 'before_activation'))
        return self._normalize(x, 'before_pool')

    def _normalize(self, x: jax.Array, position: str) -> jax.Array:
        """Apply local response normalisation if it is at this position."""
        if not self.lrn or position != self.lrn_position:
            return x
        return local_response_norm(x, self.lrn_size, self.lrn_alpha, self.lrn_beta, self.lrn_k)


_OVERFEAT: dict[str, Any] = {
    'stem': ((7, 2, 0), (5, 1, 2)), 'pools': ((1, 3, 3), (2, 2, 2)), 'last_window': (3, 3), 'pool_ceil': False,
    'lrn_layers': 1, 'lrn_position': 'after_pool'}

MODELS: Models = {
    'alexnet': (AlexNet, {}),
    'alexnet_grouped': (AlexNet, {'groups': 2}),
    'zfnet': (AlexNet, {'stem': ((7, 2, 1), (5, 2, 0))}),
    'convnet5': (AlexNet, {'stem': ((11, 4, 2), (5, 1, 2)), 'pools': ((2, 3, 2), (3, 3, 2))}),
    **{f'overfeat{depth}': (AlexNet, {**_OVERFEAT, 'widths': (96, 256, *[512] * (depth - 2))}) for depth in (5, 7)},
}
