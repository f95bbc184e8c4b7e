"""Inception networks: BN-Inception (Ioffe & Szegedy 2015, "Batch normalization: accelerating deep network training by
reducing internal covariate shift"), v3 (Szegedy et al. 2015, "Rethinking the Inception architecture for computer vision")
and v4 (Szegedy et al. 2016, "Inception-v4, Inception-ResNet and the impact of residual connections on learning")."""

import functools
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxcnn.errors import UserError, unknown
from jaxcnn.models.layers import min_input_size, positive_ints
from jaxcnn.models.network import Maps, Models, Network
from jaxcnn.ops.pool import avg_pool, max_pool


class Conv(NamedTuple):
    """The sizes of a convolution, which `Inception.convolution` applies; by default padding keeps the size at stride 1."""

    features: int
    size: int | tuple[int, int]
    stride: int = 1
    padding: int | None = None


AUX_SCHEDULES = ('constant', 'linear')
Layers = tuple[Any, ...]  # applied one after the other; each is a Conv, a function of an array, or Branches
Branches = tuple[Layers, ...]  # applied to the same input; their outputs are concatenated


class Inception(Network):
    """The base class of Inception networks: a stem, three stages of blocks, mean over the image, and a dense layer.

    A reduction, which halves the map, follows each of the first two stages.

    Attributes:
      multiplier: factor of all widths, which are rounded down, but not below 1.
      blocks: number of blocks in each stage, without reductions. Blocks beyond those of the paper repeat its last one.
    """

    STEM: ClassVar[Layers]
    STAGES: ClassVar[tuple[tuple[Branches, ...], ...]]
    REDUCTIONS: ClassVar[tuple[Layers, ...]]

    multiplier: float = 1.0
    blocks: tuple[int, ...] = (1, 1, 1)

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        if self.multiplier <= 0:
            raise UserError(f'multiplier must be above 0, got {self.multiplier!r}')
        if len(self.blocks) != 3 or not positive_ints(self.blocks):
            raise UserError(f'blocks must be three positive integers, got {self.blocks}')

    def min_image_size(self) -> int:
        """See `Network.min_image_size`: the last map of 75 pixels, after five reductions, is a single pixel."""
        return 75

    def published_for(self) -> tuple[tuple[int, int, int], int]:
        """See `Network.published_for`."""
        return (299, 299, 3), 1000

    def width(self, features: int) -> int:
        """Return the number of features of this network where the paper's has `features`."""
        return max(1, int(features * self.multiplier))

    def label(self, stage: int, i: int) -> str:
        """Return the name of the feature map of block `i` of a stage; `i = blocks[stage]` stands for the reduction."""
        return f'reduction_{"ab"[stage]}' if i == self.blocks[stage] else f'inception_{"abc"[stage]}{i + 1}'

    def forward(self, x: jax.Array, train: bool, maps: Maps) -> jax.Array:
        """See `Network.forward`; the feature maps are `stem` and all blocks, `inception_a1`, ..., `reduction_a`, ..."""
        network = type(self)
        x = maps['stem'] = self.block(network.sequence, x, train, self.stem_layers())
        for stage, count in enumerate(self.blocks):
            for i in range(count):
                x = maps[self.label(stage, i)] = self.block(network.inception_block, x, train, stage, i)
            if stage < len(self.REDUCTIONS):
                x = maps[self.label(stage, count)] = self.block(network.sequence, x, train, self.REDUCTIONS[stage])
        return self.head(x, train, maps)

    def stem_layers(self) -> Layers:
        """Return the layers before the first stage."""
        return self.STEM

    def convolution(self, x: jax.Array, train: bool, conv: Conv) -> jax.Array:
        """Apply a convolution with BatchNorm and ReLU."""
        return self.conv_norm(x, train, self.width(conv.features), *conv[1:])

    def sequence(self, x: jax.Array, train: bool, layers: Layers) -> jax.Array:
        """Apply layers one after the other."""
        for layer in layers:
            if isinstance(layer, Conv):
                x = self.convolution(x, train, layer)
            elif callable(layer):
                x = layer(x)
            else:
                x = self.branches(x, train, layer)
        return x

    def branches(self, x: jax.Array, train: bool, branches: Branches) -> jax.Array:
        """Apply branches to the same input and concatenate their outputs."""
        return jnp.concatenate([self.sequence(x, train, branch) for branch in branches], -1)

    def inception_block(self, x: jax.Array, train: bool, stage: int, i: int) -> jax.Array:
        """Apply block `i` of a stage."""
        blocks = self.STAGES[stage]
        return self.branches(x, train, blocks[min(i, len(blocks) - 1)])

    def head(self, x: jax.Array, train: bool, maps: Maps) -> jax.Array:
        """Return the logits of the last stage's output."""
        return self.dense(self.num_classes)(self.drop(x.mean((1, 2)), train))


class AuxiliaryInception(Inception):
    """The base class of Inception networks with auxiliary classifiers, which are computed in training only.

    Attributes:
      aux_weight: weight of each auxiliary classifier in the loss; with 0 there are none.
      aux_schedule: `constant`, as in the papers; or `linear`: the weight falls from `aux_weight` at the first step to 0 at
        the end of training (Lee et al. 2015, "Deeply-supervised nets"). The training step applies it.
    """

    aux_weight: float = 0.3
    aux_schedule: str = 'constant'

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        if self.aux_weight < 0:
            raise UserError(f'aux_weight must be at least 0, got {self.aux_weight!r}')
        if self.aux_schedule not in AUX_SCHEDULES:
            raise unknown('aux_schedule', self.aux_schedule, AUX_SCHEDULES)

    def forward(self, x: jax.Array, train: bool, maps: Maps) -> Any:
        """See `Inception.forward`."""
        logits = super().forward(x, train, maps)
        if not self.aux_weight or not (train or self.is_initializing()):
            return logits
        auxiliary_logits = self.auxiliary(train, maps)
        return (logits, *auxiliary_logits) if train else logits

    def auxiliary(self, train: bool, maps: Maps) -> list[jax.Array]:
        """Return the logits of each auxiliary classifier."""
        raise NotImplementedError


AVG = functools.partial(avg_pool, size=3, stride=1, padding=1)
AVG_WITHOUT_PADDING = functools.partial(avg_pool, size=3, stride=1, padding=1, count_padding=False)
MAX = functools.partial(max_pool, size=3, stride=1, padding=1)
HALF = functools.partial(max_pool, size=3, stride=2)
HALF_CEIL = functools.partial(max_pool, size=3, stride=2, ceil=True)


# ---- BN-Inception


def half_up(x: jax.Array) -> jax.Array:
    """Halve a map by max pooling, rounding odd sizes up as a convolution with stride 2 and padding 1 does.

    On odd sizes `HALF_CEIL` alone has one window fewer.
    """
    padding = [(0, side % 2) for side in x.shape[1:3]]
    return HALF_CEIL(jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf))


def _bn_block(one: int, reduce_three: int, three: int, reduce_double: int, double: int, pool: Any,
              pool_proj: int) -> Branches:
    """Return the branches of a block from the columns of the paper's figure 5: 1x1, 3x3 reduce, 3x3, double 3x3 reduce,
    double 3x3, pool, pool projection."""
    return (Conv(one, 1),), (Conv(reduce_three, 1), Conv(three, 3)), (
        Conv(reduce_double, 1), Conv(double, 3), Conv(double, 3)), (pool, Conv(pool_proj, 1))


def _bn_reduction(reduce_three: int, three: int, reduce_double: int, double: int) -> Layers:
    return (((Conv(reduce_three, 1), Conv(three, 3, 2)),
             (Conv(reduce_double, 1), Conv(double, 3), Conv(double, 3, 2)), (half_up,)),)


class BNInception(Inception):
    """BN-Inception (Inception v2): two 3x3 convolutions instead of GoogLeNet's 5x5, and BatchNorm after every convolution.

    Convolutions keep their bias and padding is symmetric, as in pytorchcv's `bninception`. 3x3 pooling with stride 2 starts
    at the first pixel and rounds sizes up. On maps with an odd side, which do not occur at 224 pixels, pooling in reductions
    has as many windows as the convolutions beside it.
    """

    STEM = (Conv(64, 7, 2), HALF_CEIL, Conv(64, 1), Conv(192, 3), HALF_CEIL)
    STAGES = ((_bn_block(64, 64, 64, 64, 96, AVG, 32), _bn_block(64, 64, 96, 64, 96, AVG, 64)),
              (_bn_block(224, 64, 96, 96, 128, AVG, 128), _bn_block(192, 96, 128, 96, 128, AVG, 128),
               _bn_block(160, 128, 160, 128, 160, AVG, 128), _bn_block(96, 128, 192, 160, 192, AVG, 128)),
              (_bn_block(352, 192, 320, 160, 224, AVG, 128), _bn_block(352, 192, 320, 192, 224, MAX, 128)))
    REDUCTIONS = (_bn_reduction(128, 160, 64, 96), _bn_reduction(128, 192, 192, 256))

    blocks: tuple[int, ...] = (2, 4, 2)

    def published_for(self) -> tuple[tuple[int, int, int], int]:
        """See `Network.published_for`."""
        return (224, 224, 3), 1000

    def min_image_size(self) -> int:
        """See `Network.min_image_size`."""
        return 7

    def label(self, stage: int, i: int) -> str:
        """Return the paper's names, `inception_3a` and so on."""
        return f'inception_{stage + 3}{chr(ord("a") + i)}'

    def convolution(self, x: jax.Array, train: bool, conv: Conv) -> jax.Array:
        """Apply a convolution, which has a bias, with BatchNorm and ReLU."""
        return self.norm(self.conv(self.width(conv.features), *conv[1:])(x), train, relu=True)


# ---- v3


def _v3_a(pool_proj: int) -> Branches:
    return (Conv(64, 1),), (Conv(48, 1), Conv(64, 5)), (Conv(64, 1), Conv(96, 3), Conv(96, 3)), (AVG, Conv(pool_proj, 1))


def _v3_b(inner: int) -> Branches:
    return (Conv(192, 1),), (Conv(inner, 1), Conv(inner, (1, 7)), Conv(192, (7, 1))), (
        Conv(inner, 1), Conv(inner, (7, 1)), Conv(inner, (1, 7)), Conv(inner, (7, 1)), Conv(192, (1, 7))), (
        AVG, Conv(192, 1))


def _split(features: int) -> Branches:
    return (Conv(features, (1, 3)),), (Conv(features, (3, 1)),)


_V3_C: Branches = ((Conv(320, 1),), (Conv(384, 1), _split(384)), (Conv(448, 1), Conv(384, 3), _split(384)),
                   (AVG, Conv(192, 1)))
_V3_A_REDUCTION: Branches = ((Conv(384, 3, 2, 0),), (Conv(64, 1), Conv(96, 3), Conv(96, 3, 2, 0)), (HALF,))
_V3_B_REDUCTION: Branches = ((Conv(192, 1), Conv(320, 3, 2, 0)),
                       (Conv(192, 1), Conv(192, (1, 7)), Conv(192, (7, 1)), Conv(192, 3, 2, 0)), (HALF,))
V3_STEM: Layers = (Conv(32, 3, 2, 0), Conv(32, 3, 1, 0), Conv(64, 3), HALF, Conv(80, 1), Conv(192, 3, 1, 0), HALF)


class InceptionV3(AuxiliaryInception):
    """Inception v3, for 299 pixels, with factorised convolutions and an auxiliary classifier on the last 17x17 map.

    Layers that halve the map have no padding, and all other layers after the stem keep its size, so that PyTorch's and
    TensorFlow's padding agree. Averages of padded 3x3 pooling count the zeros, as in PyTorch (pytorchcv's `inceptionv3`).
    The auxiliary classifier is torchvision's: 5x5 mean pooling with stride 3, a 1x1 convolution, a 5x5 convolution without
    padding, the mean, and a dense layer. On maps smaller than 5x5 its windows shrink to the map, so that it has fewer
    parameters for images under 299 pixels.

    The paper compares three resolutions at about the same cost (section 8), with the same parameters: 299 pixels; 151 with
    `stem_stride=1`; and 79 with `stem_stride=1` and `stem_pool=False`.

    Attributes:
      stem_stride: stride of the first convolution, 1 or 2.
      stem_pool: apply the stem's first max pooling.
    """

    STEM = V3_STEM
    STAGES = ((_v3_a(32), _v3_a(64)), (_v3_b(128), _v3_b(160), _v3_b(160), _v3_b(192)), (_V3_C,))
    REDUCTIONS = ((_V3_A_REDUCTION,), (_V3_B_REDUCTION,))

    blocks: tuple[int, ...] = (3, 4, 2)
    dropout: float = 0.2
    bn_epsilon: float = 1e-3
    aux_weight: float = 0.4
    stem_stride: int = 2
    stem_pool: bool = True

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        if self.stem_stride not in (1, 2):
            raise UserError(f'stem_stride must be 1 or 2, got {self.stem_stride}')

    def stem_layers(self) -> Layers:
        """See `Inception.stem_layers`."""
        first, *others = self.STEM
        if not self.stem_pool:
            others.remove(HALF)
        return (first._replace(stride=self.stem_stride), *others)

    def min_image_size(self) -> int:
        """See `Network.min_image_size`."""
        def half(side: int) -> int:
            return (side - 3) // 2 + 1

        def last_map_size(side: int) -> int:
            side = (side - 3) // self.stem_stride + 1 - 2
            return half(half(half((half(side) if self.stem_pool else side) - 2)))
        return min_input_size(last_map_size)

    def auxiliary(self, train: bool, maps: Maps) -> list[jax.Array]:
        """See `AuxiliaryInception.auxiliary`."""
        x = maps[self.label(1, self.blocks[1] - 1)]
        x = avg_pool(x, min(5, *x.shape[1:3]), 3)
        x = self.conv_norm(x, train, self.width(128), 1)
        x = self.conv_norm(x, train, self.width(768), (min(5, x.shape[1]), min(5, x.shape[2])), padding=0)
        return [self.dense(self.num_classes)(x.mean((1, 2)))]


# ---- v4

_V4_A: Branches = ((Conv(96, 1),), (Conv(64, 1), Conv(96, 3)), (Conv(64, 1), Conv(96, 3), Conv(96, 3)),
                   (AVG_WITHOUT_PADDING, Conv(96, 1)))
_V4_B: Branches = ((Conv(384, 1),), (Conv(192, 1), Conv(224, (1, 7)), Conv(256, (7, 1))),
                   (Conv(192, 1), Conv(192, (7, 1)), Conv(224, (1, 7)), Conv(224, (7, 1)), Conv(256, (1, 7))),
                   (AVG_WITHOUT_PADDING, Conv(128, 1)))
_V4_C: Branches = ((Conv(256, 1),), (Conv(384, 1), _split(256)),
                   (Conv(384, 1), Conv(448, (3, 1)), Conv(512, (1, 3)), _split(256)), (AVG_WITHOUT_PADDING, Conv(256, 1)))
_V4_A_REDUCTION: Branches = ((Conv(384, 3, 2, 0),), (Conv(192, 1), Conv(224, 3), Conv(256, 3, 2, 0)), (HALF,))
_V4_B_REDUCTION: Branches = ((Conv(192, 1), Conv(192, 3, 2, 0)),
                       (Conv(256, 1), Conv(256, (1, 7)), Conv(320, (7, 1)), Conv(320, 3, 2, 0)), (HALF,))
_V4_STEM: Layers = (
    Conv(32, 3, 2, 0), Conv(32, 3, 1, 0), Conv(64, 3), ((HALF,), (Conv(96, 3, 2, 0),)),
    ((Conv(64, 1), Conv(96, 3, 1, 0)), (Conv(64, 1), Conv(64, (1, 7)), Conv(64, (7, 1)), Conv(96, 3, 1, 0))),
    ((Conv(192, 3, 2, 0),), (HALF,)))


class InceptionV4(Inception):
    """Inception v4, for 299 pixels.

    Layers that halve the map have no padding, all other layers after the stem keep its size, and averages of padded 3x3
    pooling leave the zeros out, so that PyTorch's networks (pytorchcv's `inceptionv4`) and TensorFlow's agree.
    """

    STEM = _V4_STEM
    STAGES = ((_V4_A,), (_V4_B,), (_V4_C,))
    REDUCTIONS = ((_V4_A_REDUCTION,), (_V4_B_REDUCTION,))

    blocks: tuple[int, ...] = (4, 7, 3)
    dropout: float = 0.2
    bn_epsilon: float = 1e-3


MODELS: Models = {
    'bn_inception': (BNInception, {}), 'inception_v3': (InceptionV3, {}), 'inception_v4': (InceptionV4, {}),
}
