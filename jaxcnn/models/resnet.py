"""Residual networks: ResNet (He et al. 2015, "Deep residual learning for image recognition") and ResNeXt (Xie et al.
2016, "Aggregated residual transformations for deep neural networks")."""

from typing import Self

import flax.linen as nn
import jax

from jaxcnn.errors import UserError, unknown
from jaxcnn.models.layers import Maps, Models, Network
from jaxcnn.ops.pool import max_pool

STEMS = ('imagenet', 'small')


class ResNet(Network):
    """A stem, four stages of residual blocks that halve the image and double the features, mean over the image, classes.

    The stride of a bottleneck is in its 3x3 convolution, and padding is symmetric, as in the authors' later code and
    PyTorch's. Projections (option B) where the shape changes.

    Attributes:
      blocks: in each stage.
      bottleneck: blocks of 1x1, 3x3, 1x1 with four times the features; else of two 3x3.
      width: features of the first stage's 3x3 convolutions.
      groups: of the 3x3 convolutions in bottlenecks (the cardinality of ResNeXt).
      group_width: features of each group in the first stage; 0: `width` over `groups`.
      stem: `imagenet`: 7x7 with stride 2 and pooling; `small`, for images of 32 or 64 pixels: 3x3, stride 1, no pooling.
    """

    blocks: tuple[int, ...] = (2, 2, 2, 2)
    bottleneck: bool = False
    width: int = 64
    groups: int = 1
    group_width: int = 0
    stem: str = 'imagenet'

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        if self.stem not in STEMS:
            raise unknown('stem', self.stem, STEMS)
        if not self.blocks or any(not isinstance(n, int) or n < 1 for n in self.blocks):
            raise UserError(f'blocks must be positive numbers, got {self.blocks}')
        if min(self.width, self.groups) < 1 or self.group_width < 0:
            raise UserError(f'width and groups must be at least 1, and group_width 0, got {self.width}, {self.groups} and '
                            f'{self.group_width}')
        if self.groups > 1 and not self.bottleneck:
            raise UserError('groups are for bottlenecks')
        if not self.group_width and self.width % self.groups:
            raise UserError(f'{self.groups} groups do not divide {self.width} features')

    def forward(self, x: jax.Array, train: bool, maps: Maps) -> jax.Array:
        """See `Network.forward`; maps `stem`, before pooling, and `stage1` to `stage4`."""
        small = self.stem == 'small'
        x = maps['stem'] = self.conv_norm(x, train, self.width, 3 if small else 7, 1 if small else 2)
        if not small:
            x = max_pool(x, 3, 2, padding=1)
        for stage, count in enumerate(self.blocks):
            for i in range(count):
                width, stride = self.width << stage, 2 if stage and not i else 1

                def body(self: Self, x: jax.Array, width: int = width, stride: int = stride) -> jax.Array:
                    return self._block(x, width, stride, train)
                x = self.block(body, x)
            maps[f'stage{stage + 1}'] = x
        return self.dense(self.num_classes)(self.drop(x.mean((1, 2)), train))

    def _block(self, x: jax.Array, features: int, stride: int, train: bool) -> jax.Array:
        if self.bottleneck:
            inner = features * self.group_width * self.groups // self.width if self.group_width else features
            layers = [(inner, 1, 1, 1), (inner, 3, stride, self.groups), (4 * features, 1, 1, 1)]
        else:
            layers = [(features, 3, stride, 1), (features, 3, 1, 1)]
        y = x
        for i, (width, size, step, groups) in enumerate(layers, 1):
            y = self.conv_norm(y, train, width, size, step, relu=i < len(layers), feature_group_count=groups)
        if x.shape != y.shape:
            x = self.conv_norm(x, train, y.shape[-1], 1, stride, relu=False)
        return nn.relu(x + y)


MODELS: Models = {
    'resnet18': (ResNet, {}),
    'resnet50': (ResNet, {'blocks': (3, 4, 6, 3), 'bottleneck': True}),
    'resnext50_32x4d': (ResNet, {'blocks': (3, 4, 6, 3), 'bottleneck': True, 'groups': 32, 'group_width': 4}),
}
