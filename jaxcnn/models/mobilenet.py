"""MobileNet v1 (Howard et al. 2017, "MobileNets: efficient convolutional neural networks for mobile vision") and v2 (Sandler
et al. 2018, "MobileNetV2: inverted residuals and linear bottlenecks")."""

import functools
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax

from jaxcnn.errors import UserError, unknown
from jaxcnn.models.layers import activation, positive_ints
from jaxcnn.models.network import Maps, Models, Network, Step

STEMS = ('imagenet', 'small')
PADDINGS = ('symmetric', 'same')

# features and stride of each depthwise separable convolution (the first paper's table 1)
LAYERS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


class MobileNet(Network):
    """The base class of networks whose convolutions are depthwise or 1x1, but for the first.

    Attributes:
      multiplier: factor of all widths (the papers' alpha).
      activation: name of an activation in `layers.ACTIVATIONS`.
    """

    multiplier: float = 1.0
    activation: str = 'relu6'

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        activation(self.activation)

    def convolution(self, x: jax.Array, train: bool, features: int, size: int, stride: int = 1, groups: int = 1,
                    padding: str | None = None) -> jax.Array:
        """Apply a convolution with BatchNorm and the activation."""
        x = self.conv(features, size, stride, padding, use_bias=False, feature_group_count=groups)(x)
        return self.norm_activation(x, train, self.activation)


class MobileNetV1(MobileNet):
    """A 3x3 convolution with stride 2, depthwise separable convolutions, mean over the image, and a dense layer.

    A depthwise separable convolution is a 3x3 convolution of each channel and a 1x1 convolution. BatchNorm and an activation
    follow every convolution. Padding is symmetric, as in PyTorch's networks, and widths are rounded down. At 1,000 classes
    multipliers of 0.25, 0.5, 0.75 and 1 give 470,072, 1,331,592, 2,585,560 and 4,231,976 parameters, like pytorchcv's
    `mobilenet_wd4`, `_wd2`, `_w3d4` and `_w1`.

    The activation is `relu`, as in the paper; TensorFlow's and timm's networks have `relu6`.
    """

    activation: str = 'relu'

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        if self.multiplier <= 0 or int(32 * self.multiplier) < 1:
            raise UserError(f'multiplier must be large enough to leave one of 32 features (at least 1/32), '
                            f'got {self.multiplier}')

    def forward(self, x: jax.Array, train: bool, maps: Maps) -> jax.Array:
        """See `Network.forward`; the feature maps are `conv1`, and `conv2` to `conv14` after the 1x1 convolutions."""
        x = maps['conv1'] = self.convolution(x, train, int(32 * self.multiplier), 3, 2)
        for i, (width, stride) in enumerate(LAYERS, 2):
            x = maps[f'conv{i}'] = self.block(type(self).separable, x, train, int(width * self.multiplier), stride)
        return self.dense(self.num_classes)(self.drop(x.mean((1, 2)), train))

    def separable(self, x: jax.Array, train: bool, width: int, stride: int) -> jax.Array:
        """Apply a depthwise separable convolution."""
        x = self.convolution(x, train, x.shape[-1], 3, stride, x.shape[-1])
        return self.convolution(x, train, width, 1)


class Stage(NamedTuple):
    """A stage of inverted residual blocks.

    Attributes:
      expansion: features of the depthwise convolutions, as a multiple of the block's input channels.
      features: features of the block's output, at a multiplier of 1.
      stride: stride of the first block; the others have stride 1.
      size: side of the depthwise kernels.
    """

    expansion: int
    features: int
    stride: int
    size: int = 3


class InvertedResidualNetwork(MobileNet):
    """A 3x3 stem, stages of inverted residual blocks, a 1x1 convolution, mean over the image, and a dense layer.

    An inverted residual block is a 1x1 convolution that expands the channels, a depthwise convolution, and a 1x1 convolution
    to the block's features without an activation. A block without expansion lacks the first one. Where the shape does not
    change, the input is added to the output. BatchNorm follows every convolution.

    A subclass has the constant `STAGES` and implements `stem_features` and `head_features`.

    Attributes:
      blocks: number of blocks in each stage.
      stem: `imagenet`; or `small`, for images of 32 or 64 pixels, in which the stem and the second stage have stride 1, so
        that the network reduces images to an eighth instead of a 32nd of their size.
      padding: `symmetric`, half the kernel's size on each side, as in PyTorch's networks; or `same`, as in TensorFlow's,
        where a convolution with stride 2 pads more after the image than before it. Weights fit one of the two only.
      drop_connect: a training image skips block i of n, counted from 0, with probability `drop_connect * i / n`
        (stochastic depth, Huang et al. 2016). Only blocks with a shortcut are skipped.
    """

    STAGES: ClassVar[tuple[Stage, ...]] = ()

    blocks: tuple[int, ...] = ()
    stem: str = 'imagenet'
    padding: str = 'symmetric'
    drop_connect: float = 0.0
    dropout: float = 0.2

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        if self.multiplier <= 0:
            raise UserError(f'multiplier must be above 0, got {self.multiplier}')
        if len(self.blocks) != len(self.STAGES) or not positive_ints(self.blocks):
            raise UserError(f'blocks must be {len(self.STAGES)} positive integers, got {self.blocks}')
        for name, choices in (('stem', STEMS), ('padding', PADDINGS)):
            if getattr(self, name) not in choices:
                raise unknown(name, getattr(self, name), choices)
        if not 0 <= self.drop_connect < 1:
            raise UserError(f'drop_connect must be in [0, 1), got {self.drop_connect}')

    def stem_features(self) -> int:
        """Return the features of the first convolution."""
        raise NotImplementedError

    def head_features(self) -> int:
        """Return the features of the last convolution."""
        raise NotImplementedError

    def published_for(self) -> tuple[tuple[int, int, int], int]:
        """See `Network.published_for`."""
        return ((32, 32, 3), 10) if self.stem == 'small' else super().published_for()

    def forward(self, x: jax.Array, train: bool, maps: Maps) -> jax.Array:
        """See `Network.forward`; the feature maps are `stem`, `stage1`, `stage2` and so on, and `head`."""
        x = self.pooled_features(self.trunk(x, train, maps), train)
        return self.dense(self.num_classes)(self.drop(x, train))

    def region_input(self) -> tuple[str, int]:
        """See `Network.region_input`: regions go through the stages from the last one with a stride, which halves them."""
        last = max((i for i, stage in enumerate(self.STAGES) if stage.stride > 1), default=0)
        return (f'stage{last}', 14) if last else super().region_input()

    def steps(self, train: bool) -> list[Step]:
        """See `Network.steps`."""
        def stem(x: jax.Array) -> jax.Array:
            return self.convolution(x, train, self.stem_features(), 3, stem_stride, padding=self._padding())

        def head(x: jax.Array) -> jax.Array:
            return self.convolution(x, train, self.head_features(), 1)

        stem_stride = 1 if self.stem == 'small' else 2
        steps = [Step('stem', stem, self._window(3, stem_stride))]
        for i, stage in enumerate(self.STAGES):
            steps.append(Step(f'stage{i + 1}', functools.partial(self._stage, train=train, index=i),
                              self._window(stage.size, self._stride(i))))
        return [*steps, Step('head', head)]

    def _stride(self, index: int) -> int:
        """Return the stride of stage `index`, counted from 0."""
        return 1 if self.stem == 'small' and index == 1 else self.STAGES[index].stride

    def _window(self, size: int, stride: int) -> tuple[tuple[int, int, int], ...]:
        """Return the window of a depthwise convolution for `Step`."""
        if stride == 1:
            return ()
        return ((size, stride, (size - stride) // 2 if self.padding == 'same' else size // 2),)

    def _stage(self, x: jax.Array, train: bool, index: int) -> jax.Array:
        """Apply stage `index`, counted from 0."""
        stage, first = self.STAGES[index], sum(self.blocks[:index])
        for i in range(self.blocks[index]):
            stride = 1 if i > 0 else self._stride(index)
            rate = self.drop_connect * (first + i) / sum(self.blocks)
            shortcut = stride == 1 and (i > 0 or self._features(index) == self._features(index - 1))
            x = self.block(type(self).inverted_residual, x, train, stage, stride, shortcut, rate)
        return x

    def _features(self, index: int) -> int:
        """Return the features of stage `index`, counted from 0; of the stem for -1."""
        return self.stem_features() if index < 0 else round_features(self.STAGES[index].features * self.multiplier)

    def inverted_residual(self, x: jax.Array, train: bool, stage: Stage, stride: int, shortcut: bool,
                          rate: float) -> jax.Array:
        """Apply a block, whose input is added to its output with `shortcut`; training images then skip the block with
        probability `rate`."""
        y, expanded = x, x.shape[-1] * stage.expansion
        if stage.expansion > 1:
            y = self.convolution(y, train, expanded, 1)
        y = self.convolution(y, train, expanded, stage.size, stride, expanded, self._padding())
        y = self.conv_norm(y, train, round_features(stage.features * self.multiplier), 1, relu=False)
        if not shortcut:
            return y
        return x + nn.Dropout(rate, broadcast_dims=(1, 2, 3), deterministic=not train)(y)

    def _padding(self) -> str | None:
        return 'SAME' if self.padding == 'same' else None


def round_features(features: float) -> int:
    """Round to a multiple of 8, which is at least 8 and at least 90 % of the number."""
    rounded = max(8, int(features + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * features else rounded


class MobileNetV2(InvertedResidualNetwork):
    """MobileNet v2, the network of the paper's table 2.

    The last convolution has 1,280 features, and more with a multiplier above 1. Widths are rounded to multiples of 8 as in
    TensorFlow and torchvision. At 1,000 classes multipliers of 0.75, 1 and 1.4 give 2,636,424, 3,504,872 and
    6,108,776 parameters.
    """

    STAGES = (Stage(1, 16, 1), Stage(6, 24, 2), Stage(6, 32, 2), Stage(6, 64, 2), Stage(6, 96, 1), Stage(6, 160, 2),
              Stage(6, 320, 1))

    blocks: tuple[int, ...] = (1, 2, 3, 4, 3, 3, 1)

    def stem_features(self) -> int:
        """See `InvertedResidualNetwork.stem_features`."""
        return round_features(32 * self.multiplier)

    def head_features(self) -> int:
        """See `InvertedResidualNetwork.head_features`."""
        return round_features(1280 * max(1, self.multiplier))


MODELS: Models = {'mobilenet_v1': (MobileNetV1, {}), 'mobilenet_v2': (MobileNetV2, {})}
