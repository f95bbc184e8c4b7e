"""Residual networks: ResNet (He et al. 2015, "Deep residual learning for image recognition"), with pre-activation (He et
al. 2016, "Identity mappings in deep residual networks"), and ResNeXt (Xie et al. 2016, "Aggregated residual
transformations for deep neural networks")."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.errors import UserError, unknown
from jaxcnn.models.layers import activation, positive_ints
from jaxcnn.models.network import Maps, Models, Network, Step
from jaxcnn.ops.pool import max_pool

STEMS = ('imagenet', 'small')
SHORTCUTS = ('A', 'B', 'C', 'none')


class ResNet(Network):
    """A stem, stages of residual blocks, mean over the image, and a dense layer, for images of any size.

    Each stage but the first halves the map and doubles the features. The stride of a bottleneck is in its 3x3 convolution
    (the authors have it in the first 1x1), and padding is symmetric, as in fb.resnet.torch and in PyTorch's networks:
    `resnet50` and `preresnet50` are pytorchcv's `resnet50b` and `preresnet50b`.

    The options of `shortcut` are the paper's:

    - `A`: where a block changes the shape, the shortcut takes every stride-th pixel and fills new features with zeros; it
      has no parameters.
    - `B`: where a block changes the shape, the shortcut is a projection, a 1x1 convolution with BatchNorm.
    - `C`: the shortcuts of all blocks are projections.
    - `none`: there are no shortcuts; these are the plain networks with which the paper compares.

    Pre-activation puts BatchNorm and ReLU before the convolutions and nothing after the sum; a last BatchNorm and ReLU
    follow the last stage. Shortcuts other than the identity start after the block's first activation, and projections have
    no BatchNorm. The ImageNet stem keeps its BatchNorm and ReLU, unless `stem_norm` is False, as in timm's `resnetv2_50`.
    The small stem is a convolution alone, as in the paper's networks for CIFAR.

    Attributes:
      blocks: number of blocks in each stage.
      bottleneck: blocks are 1x1, 3x3 and 1x1 convolutions, the last with four times the features, instead of two 3x3.
      width: features of the first stage's 3x3 convolutions.
      groups: groups of the 3x3 convolutions in bottlenecks (the cardinality of ResNeXt).
      group_width: features of each group in the first stage; 0 stands for `width / groups`.
      stem: `imagenet`, 7x7 with stride 2 and pooling; or `small`, 3x3 without either, for images of 32 or 64 pixels.
      stem_norm: apply BatchNorm and ReLU after the convolution of the ImageNet stem; False is for pre-activation only.
      shortcut: `A`, `B`, `C` or `none`.
      preact: use pre-activation.
      activation: name of an activation in `layers.ACTIVATIONS`, after BatchNorm and after sums; the papers' is `relu`.
      zero_init: a block starts as its shortcut, because the scale of its last BatchNorm starts at 0 (Goyal et al. 2017,
        "Accurate, large minibatch SGD"); with pre-activation, the kernel of its last convolution.
    """

    blocks: tuple[int, ...] = (2, 2, 2, 2)
    bottleneck: bool = False
    width: int = 64
    groups: int = 1
    group_width: int = 0
    stem: str = 'imagenet'
    stem_norm: bool = True
    shortcut: str = 'B'
    preact: bool = False
    activation: str = 'relu'
    zero_init: bool = False

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        activation(self.activation)
        if self.stem not in STEMS:
            raise unknown('stem', self.stem, STEMS)
        if self.shortcut not in SHORTCUTS:
            raise unknown('shortcut', self.shortcut, SHORTCUTS)
        if self.preact and self.shortcut == 'none':
            raise UserError("preact=True needs a shortcut of 'A', 'B' or 'C', got 'none'")
        if not self.stem_norm and not (self.preact and self.stem == 'imagenet'):
            raise UserError("stem_norm=False needs preact=True and stem='imagenet', "
                            f'got preact={self.preact} and stem={self.stem!r}')
        if self.zero_init and self.shortcut == 'none':
            raise UserError("zero_init=True needs a shortcut of 'A', 'B' or 'C', got 'none'")
        if not positive_ints(self.blocks):
            raise UserError(f'blocks must be positive integers, got {self.blocks}')
        if min(self.width, self.groups) < 1 or self.group_width < 0:
            raise UserError(f'width and groups must be at least 1 and group_width at least 0, got {self.width}, '
                            f'{self.groups} and {self.group_width}')
        if (self.groups > 1 or self.group_width) and not self.bottleneck:
            raise UserError(f'groups and group_width need bottleneck=True, got groups={self.groups} and '
                            f'group_width={self.group_width}')
        if not self.group_width and self.width % self.groups:
            raise UserError(f'{self.groups} groups do not divide {self.width} features')

    def published_for(self) -> tuple[tuple[int, int, int], int]:
        """See `Network.published_for`."""
        return ((32, 32, 3), 10) if self.stem == 'small' else super().published_for()

    def forward(self, x: jax.Array, train: bool, maps: Maps) -> jax.Array:
        """See `Network.forward`; the feature maps are `stem`, before pooling, `stage1`, `stage2` and so on, and with
        pre-activation `activation`, after the last ReLU."""
        x = self.pooled_features(self.trunk(x, train, maps), train)
        return self.dense(self.num_classes)(self.drop(x, train))

    def region_input(self) -> tuple[str, int]:
        """See `Network.region_input`: regions go through the last stage, which halves them."""
        return (f'stage{len(self.blocks) - 1}', 14) if len(self.blocks) > 1 else super().region_input()

    def steps(self, train: bool) -> list[Step]:
        """See `Network.steps`; the first stage begins with the pooling after the ImageNet stem."""
        steps = [Step('stem', functools.partial(self._stem, train=train), ((7, 2, 3),) if self.stem == 'imagenet' else ())]
        for stage in range(len(self.blocks)):
            halves = stage > 0 or self.stem == 'imagenet'
            steps.append(Step(f'stage{stage + 1}', functools.partial(self._stage, train=train, stage=stage),
                              ((3, 2, 1),) if halves else ()))
        if self.preact:
            steps.append(Step('activation', lambda x: self.norm_activation(x, train, self.activation)))
        return steps

    def _stem(self, x: jax.Array, train: bool) -> jax.Array:
        size, stride = (7, 2) if self.stem == 'imagenet' else (3, 1)
        if self.stem_norm if self.stem == 'imagenet' else not self.preact:
            return self.convolution(x, train, self.width, size, stride)
        return self.conv(self.width, size, stride, use_bias=False)(x)

    def _stage(self, x: jax.Array, train: bool, stage: int) -> jax.Array:
        """Apply stage `stage`, counted from 0."""
        if stage == 0 and self.stem == 'imagenet':
            x = max_pool(x, 3, 2, padding=1)
        for i in range(self.blocks[stage]):
            stride = 2 if stage > 0 and i == 0 else 1
            resized = stride > 1 or (i == 0 and self.bottleneck)
            x = self.block(type(self).residual, x, train, self.width << stage, stride, resized)
        return x

    def residual(self, x: jax.Array, train: bool, features: int, stride: int, resized: bool) -> jax.Array:
        """Apply a residual block whose 3x3 convolutions have `features` channels, or `group_width` ones per group.

        Args:
          x: the block's input.
          train: training mode.
          features: see above.
          stride: stride of the block.
          resized: whether the architecture gives the output another shape than the input.
        """
        if self.bottleneck:
            inner = features * self.group_width * self.groups // self.width if self.group_width else features
            convs = [(inner, 1, 1, 1), (inner, 3, stride, self.groups), (4 * features, 1, 1, 1)]
        else:
            convs = [(features, 3, stride, 1), (features, 3, 1, 1)]
        out_features = convs[-1][0]
        projected = self.shortcut == 'C' or (self.shortcut == 'B' and resized)
        if self.preact:
            activated = y = self.norm_activation(x, train, self.activation)
            for i, (width, size, conv_stride, groups) in enumerate(convs):
                if i > 0:
                    y = self.norm_activation(y, train, self.activation)
                zero = {'kernel_init': nn.initializers.zeros} if self.zero_init and i == len(convs) - 1 else {}
                y = self.conv(width, size, conv_stride, use_bias=False, feature_group_count=groups, **zero)(y)
            if projected:
                return y + self.conv(out_features, 1, stride, use_bias=False)(activated)
            return y + (_subsample(activated, y.shape[-1], stride) if resized else x)
        shortcut = self.conv_norm(x, train, out_features, 1, stride, relu=False) if projected else x
        for i, (width, size, conv_stride, groups) in enumerate(convs):
            if i < len(convs) - 1 or self.shortcut == 'none':
                x = self.convolution(x, train, width, size, conv_stride, groups)
            else:
                x = self.conv_norm(x, train, width, size, conv_stride, relu=False, zero=self.zero_init,
                                   feature_group_count=groups)
        if self.shortcut == 'none':
            return x
        shortcut = _subsample(shortcut, x.shape[-1], stride) if resized and not projected else shortcut
        return activation(self.activation)(x + shortcut)

    def convolution(self, x: jax.Array, train: bool, features: int, size: int, stride: int = 1,
                    groups: int = 1) -> jax.Array:
        """Apply a convolution with BatchNorm and the activation."""
        x = self.conv(features, size, stride, use_bias=False, feature_group_count=groups)(x)
        return self.norm_activation(x, train, self.activation)


def _subsample(x: jax.Array, features: int, stride: int) -> jax.Array:
    """Return every stride-th pixel of `x`, with zeros for the features that it lacks."""
    return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])))


_BASIC = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_BOTTLENECK = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_BLOCKS = {depth: {'blocks': blocks, 'bottleneck': depth in _BOTTLENECK}
           for depth, blocks in (_BASIC | _BOTTLENECK).items()}

MODELS: Models = {
    **{f'resnet{depth}': (ResNet, fields) for depth, fields in _BLOCKS.items()},
    **{f'preresnet{depth}': (ResNet, {**fields, 'preact': True}) for depth, fields in _BLOCKS.items()},
    **{f'resnet{depth}_cifar': (ResNet, {'blocks': (depth // 6,) * 3, 'width': 16, 'stem': 'small', 'shortcut': 'A'})
       for depth in (20, 32, 44, 56, 110, 1202)},  # the depth counts two layers per block, the stem and the dense layer
    'resnext50_32x4d': (ResNet, {**_BLOCKS[50], 'groups': 32, 'group_width': 4}),
    'resnext101_32x8d': (ResNet, {**_BLOCKS[101], 'groups': 32, 'group_width': 8}),
}
