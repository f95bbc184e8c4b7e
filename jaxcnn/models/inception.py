"""Inception networks: BN-Inception (Ioffe & Szegedy 2015, "Batch normalization: accelerating deep network training by
reducing internal covariate shift"), v3 (Szegedy et al. 2015, "Rethinking the Inception architecture for computer vision"),
v4 and Inception-ResNet (Szegedy et al. 2016, "Inception-v4, Inception-ResNet and the impact of residual connections on
learning")."""

import functools
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.errors import UserError
from jaxcnn.models.layers import Maps, Models, Network, positive_ints
from jaxcnn.ops.pool import avg_pool, max_pool


class Conv(NamedTuple):
    """A convolution, with what follows it (`Inception.convolution`); without `padding` it keeps the size at stride 1."""

    features: int
    size: int | tuple[int, int]
    stride: int = 1
    padding: int | None = None


Row = tuple[Any, ...]  # layers one after the other: a Conv, a function of an array, or Branches
Branches = tuple[Row, ...]  # rows side by side, concatenated


class Inception(Network):
    """What Inception networks share: a stem, three stages of blocks, the first two ended by one that halves the image, mean
    over the image, classes.

    Attributes:
      multiplier: of all widths, which are rounded down, but not below 1.
      blocks: in each stage, without those that halve the image; more than the paper has repeat its last.
    """

    STEM: ClassVar[Row]
    STAGES: ClassVar[tuple[tuple[Branches, ...], ...]]
    REDUCTIONS: ClassVar[tuple[Row, ...]]

    multiplier: float = 1.0
    blocks: tuple[int, ...] = (1, 1, 1)

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        if self.multiplier <= 0:
            raise UserError(f'multiplier must be above 0, got {self.multiplier!r}')
        if len(self.blocks) != 3 or not positive_ints(self.blocks):
            raise UserError(f'blocks must be three positive numbers, got {self.blocks}')

    def min_image_size(self) -> int:
        """See `Network.min_image_size`: 75 pixels leave one, after five halvings and two convolutions without padding."""
        return 75

    def published_for(self) -> tuple[tuple[int, int, int], int]:
        """See `Network.published_for`."""
        return (299, 299, 3), 1000

    def width(self, features: int) -> int:
        """The width that this network has where the paper's has `features`."""
        return max(1, int(features * self.multiplier))

    def label(self, stage: int, i: int) -> str:
        """The map's name of block `i` of a stage, or of the stage's reduction, which comes after the last."""
        return f'reduction_{"ab"[stage]}' if i == self.blocks[stage] else f'inception_{"abc"[stage]}{i + 1}'

    def forward(self, x: jax.Array, train: bool, maps: Maps) -> jax.Array:
        """See `Network.forward`; maps `stem`, then all blocks, `inception_a1`, ..., `reduction_a`, `inception_b1`, ..."""
        own = type(self)
        x = maps['stem'] = self.block(own.row, x, train, self.STEM)
        for stage, count in enumerate(self.blocks):
            for i in range(count):
                x = maps[self.label(stage, i)] = self.block(own.unit, x, train, stage, i)
            if stage < len(self.REDUCTIONS):
                x = maps[self.label(stage, count)] = self.block(own.row, x, train, self.REDUCTIONS[stage])
        return self.head(x, train, maps)

    def convolution(self, x: jax.Array, train: bool, conv: Conv) -> jax.Array:
        """A convolution with BatchNorm and ReLU."""
        return self.conv_norm(x, train, self.width(conv.features), *conv[1:])

    def row(self, x: jax.Array, train: bool, row: Row) -> jax.Array:
        """Layers one after the other."""
        for layer in row:
            if isinstance(layer, Conv):
                x = self.convolution(x, train, layer)
            else:
                x = layer(x) if callable(layer) else self.mixed(x, train, layer)
        return x

    def mixed(self, x: jax.Array, train: bool, branches: Branches) -> jax.Array:
        """Rows of layers side by side, concatenated."""
        return jnp.concatenate([self.row(x, train, row) for row in branches], -1)

    def unit(self, x: jax.Array, train: bool, stage: int, i: int) -> jax.Array:
        """Block `i` of a stage."""
        table = self.STAGES[stage]
        return self.mixed(x, train, table[min(i, len(table) - 1)])

    def head(self, x: jax.Array, train: bool, maps: Maps) -> jax.Array:
        """Logits of what the last stage gives."""
        return self.dense(self.num_classes)(self.drop(x.mean((1, 2)), train))


class WithAuxiliary(Inception):
    """Inception with auxiliary classifiers, which are there in training alone.

    Attributes:
      aux_weight: of each auxiliary classifier in the loss; 0: there are none.
    """

    aux_weight: float = 0.3

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        if self.aux_weight < 0:
            raise UserError(f'aux_weight must be at least 0, got {self.aux_weight!r}')

    def forward(self, x: jax.Array, train: bool, maps: Maps) -> Any:
        """See `Inception.forward`."""
        logits = super().forward(x, train, maps)
        if not self.aux_weight or not (train or self.is_initializing()):
            return logits
        others = self.auxiliary(train, maps)
        return (logits, *others) if train else logits

    def auxiliary(self, train: bool, maps: Maps) -> list[jax.Array]:
        """Logits of the auxiliary classifiers."""
        raise NotImplementedError


AVG = functools.partial(avg_pool, size=3, stride=1, padding=1)
AVG_INSIDE = functools.partial(avg_pool, size=3, stride=1, padding=1, count_padding=False)
MAX = functools.partial(max_pool, size=3, stride=1, padding=1)
HALF = functools.partial(max_pool, size=3, stride=2)
HALF_CEIL = functools.partial(max_pool, size=3, stride=2, ceil=True)


# ---- BN-Inception


def half_up(x: jax.Array) -> jax.Array:
    """`HALF_CEIL`, with a last window for the last of an odd number of pixels: as many as a convolution with padding 1."""
    pads = [(0, side % 2) for side in x.shape[1:3]]
    return HALF_CEIL(jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf))


def _bn_block(one: int, three_in: int, three: int, double_in: int, double: int, pool: Any, pooled: int) -> Branches:
    """A row of the paper's figure 5: 1x1; 3x3 and double 3x3 with what comes before them; the pool and its projection."""
    return (Conv(one, 1),), (Conv(three_in, 1), Conv(three, 3)), (
        Conv(double_in, 1), Conv(double, 3), Conv(double, 3)), (pool, Conv(pooled, 1))


def _bn_reduction(three_in: int, three: int, double_in: int, double: int) -> Row:
    return (((Conv(three_in, 1), Conv(three, 3, 2)),
             (Conv(double_in, 1), Conv(double, 3), Conv(double, 3, 2)), (half_up,)),)


class BNInception(Inception):
    """BN-Inception (Inception v2): two 3x3 convolutions instead of GoogLeNet's 5x5, BatchNorm after every convolution.

    Convolutions keep their bias, and padding is symmetric, as in PyTorch's (pytorchcv's `bninception`); 3x3 pooling with
    stride 2 begins at the first pixel and may reach over the edge. Where a map has an odd side, which 224 pixels do not
    make, pooling has a last window of the last pixel, as many as the convolutions beside it.
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
        """The paper's names, `inception_3a` and on."""
        return f'inception_{stage + 3}{chr(ord("a") + i)}'

    def convolution(self, x: jax.Array, train: bool, conv: Conv) -> jax.Array:
        """See `Inception.convolution`; the convolution has a bias."""
        return self.norm(self.conv(self.width(conv.features), *conv[1:])(x), train, relu=True)


# ---- v3


def _v3_a(pooled: int) -> Branches:
    return (Conv(64, 1),), (Conv(48, 1), Conv(64, 5)), (Conv(64, 1), Conv(96, 3), Conv(96, 3)), (AVG, Conv(pooled, 1))


def _v3_b(inner: int) -> Branches:
    return (Conv(192, 1),), (Conv(inner, 1), Conv(inner, (1, 7)), Conv(192, (7, 1))), (
        Conv(inner, 1), Conv(inner, (7, 1)), Conv(inner, (1, 7)), Conv(inner, (7, 1)), Conv(192, (1, 7))), (
        AVG, Conv(192, 1))


def _split(features: int) -> Branches:
    return (Conv(features, (1, 3)),), (Conv(features, (3, 1)),)


_V3_C: Branches = ((Conv(320, 1),), (Conv(384, 1), _split(384)), (Conv(448, 1), Conv(384, 3), _split(384)),
                   (AVG, Conv(192, 1)))
_V3_A_END: Branches = ((Conv(384, 3, 2, 0),), (Conv(64, 1), Conv(96, 3), Conv(96, 3, 2, 0)), (HALF,))
_V3_B_END: Branches = ((Conv(192, 1), Conv(320, 3, 2, 0)),
                       (Conv(192, 1), Conv(192, (1, 7)), Conv(192, (7, 1)), Conv(192, 3, 2, 0)), (HALF,))
_STEM: Row = (Conv(32, 3, 2, 0), Conv(32, 3, 1, 0), Conv(64, 3), HALF, Conv(80, 1), Conv(192, 3, 1, 0), HALF)


class InceptionV3(WithAuxiliary):
    """Inception v3, for 299 pixels: 5x5 and 7x7 convolutions in parts, and an auxiliary classifier on the last 17x17 map.

    What halves the image is without padding, and what follows the stem else keeps the size: so the padding of PyTorch and
    of TensorFlow is one, but means of padded 3x3 pooling count the zeros, as PyTorch's do (pytorchcv's `inceptionv3`). The
    auxiliary classifier is torchvision's: 5x5 mean pooling with stride 3, 1x1, 5x5 without padding, mean, dense; on maps
    smaller than 5x5 its windows are as large as the map, so that images under 299 pixels give it fewer parameters.
    """

    STEM = _STEM
    STAGES = ((_v3_a(32), _v3_a(64)), (_v3_b(128), _v3_b(160), _v3_b(160), _v3_b(192)), (_V3_C,))
    REDUCTIONS = ((_V3_A_END,), (_V3_B_END,))

    blocks: tuple[int, ...] = (3, 4, 2)
    dropout: float = 0.2
    bn_epsilon: float = 1e-3
    aux_weight: float = 0.4

    def auxiliary(self, train: bool, maps: Maps) -> list[jax.Array]:
        """See `WithAuxiliary.auxiliary`."""
        x = maps[self.label(1, self.blocks[1] - 1)]
        x = avg_pool(x, min(5, *x.shape[1:3]), 3)
        x = self.conv_norm(x, train, self.width(128), 1)
        x = self.conv_norm(x, train, self.width(768), (min(5, x.shape[1]), min(5, x.shape[2])), padding=0)
        return [self.dense(self.num_classes)(x.mean((1, 2)))]


# ---- v4

_V4_A: Branches = ((Conv(96, 1),), (Conv(64, 1), Conv(96, 3)), (Conv(64, 1), Conv(96, 3), Conv(96, 3)),
                   (AVG_INSIDE, Conv(96, 1)))
_V4_B: Branches = ((Conv(384, 1),), (Conv(192, 1), Conv(224, (1, 7)), Conv(256, (7, 1))),
                   (Conv(192, 1), Conv(192, (7, 1)), Conv(224, (1, 7)), Conv(224, (7, 1)), Conv(256, (1, 7))),
                   (AVG_INSIDE, Conv(128, 1)))
_V4_C: Branches = ((Conv(256, 1),), (Conv(384, 1), _split(256)),
                   (Conv(384, 1), Conv(448, (3, 1)), Conv(512, (1, 3)), _split(256)), (AVG_INSIDE, Conv(256, 1)))
_V4_A_END: Branches = ((Conv(384, 3, 2, 0),), (Conv(192, 1), Conv(224, 3), Conv(256, 3, 2, 0)), (HALF,))
_V4_B_END: Branches = ((Conv(192, 1), Conv(192, 3, 2, 0)),
                       (Conv(256, 1), Conv(256, (1, 7)), Conv(320, (7, 1)), Conv(320, 3, 2, 0)), (HALF,))
_V4_STEM: Row = (
    Conv(32, 3, 2, 0), Conv(32, 3, 1, 0), Conv(64, 3), ((HALF,), (Conv(96, 3, 2, 0),)),
    ((Conv(64, 1), Conv(96, 3, 1, 0)), (Conv(64, 1), Conv(64, (1, 7)), Conv(64, (7, 1)), Conv(96, 3, 1, 0))),
    ((Conv(192, 3, 2, 0),), (HALF,)))


class InceptionV4(Inception):
    """Inception v4, for 299 pixels.

    What halves the image is without padding, what follows the stem else keeps the size, and means of padded 3x3 pooling are
    over the pixels of the image: so PyTorch's networks (pytorchcv's `inceptionv4`) and TensorFlow's are one.
    """

    STEM = _V4_STEM
    STAGES = ((_V4_A,), (_V4_B,), (_V4_C,))
    REDUCTIONS = ((_V4_A_END,), (_V4_B_END,))

    blocks: tuple[int, ...] = (4, 7, 3)
    dropout: float = 0.2
    bn_epsilon: float = 1e-3


# ---- Inception-ResNet


def _res_a(one: int, two: tuple[int, int], three: tuple[int, int, int]) -> Branches:
    return (Conv(one, 1),), (Conv(two[0], 1), Conv(two[1], 3)), (Conv(three[0], 1), *(Conv(w, 3) for w in three[1:]))


def _res_long(size: int, one: int, two: tuple[int, int, int]) -> Branches:
    return (Conv(one, 1),), (Conv(two[0], 1), Conv(two[1], (1, size)), Conv(two[2], (size, 1)))


def _res_a_end(one: int, three: tuple[int, int, int]) -> Row:
    return (((Conv(one, 3, 2, 0),), (Conv(three[0], 1), Conv(three[1], 3), Conv(three[2], 3, 2, 0)), (HALF,)),)


def _res_b_end(one: tuple[int, int], two: tuple[int, int], three: tuple[int, int, int]) -> Row:
    return (((Conv(one[0], 1), Conv(one[1], 3, 2, 0)), (Conv(two[0], 1), Conv(two[1], 3, 2, 0)),
             (Conv(three[0], 1), Conv(three[1], 3), Conv(three[2], 3, 2, 0)), (HALF,)),)


class InceptionResNet(Inception):
    """Inception-ResNet, for 299 pixels: the blocks' concatenated branches, projected by a 1x1 convolution without BatchNorm
    and scaled down, are added to the blocks' inputs; ReLU. The last block of the last stage is added in full and without
    ReLU. Padding as in `InceptionV4`.
    """

    SCALES = (0.17, 0.1, 0.2)

    dropout: float = 0.2
    bn_epsilon: float = 1e-3

    def unit(self, x: jax.Array, train: bool, stage: int, i: int) -> jax.Array:
        """See `Inception.unit`."""
        y = self.conv(x.shape[-1], 1)(super().unit(x, train, stage, i))
        last = (stage, i) == (2, self.blocks[2] - 1)
        return x + y if last else nn.relu(x + self.SCALES[stage] * y)


class InceptionResNetV1(InceptionResNet):
    """Inception-ResNet v1.

    As pytorchcv's `inceptionresnetv1`, of 23,995,624 parameters at 1,000 classes, and not quite the paper's: after the mean
    a dense layer of 512 features with BatchNorm, and six blocks of the last stage instead of five.
    """

    STEM = (*_STEM[:-1], Conv(256, 3, 2, 0))
    STAGES = ((_res_a(32, (32, 32), (32, 32, 32)),), (_res_long(7, 128, (128, 128, 128)),),
              (_res_long(3, 192, (192, 192, 192)),))
    REDUCTIONS = (_res_a_end(384, (192, 192, 256)), _res_b_end((256, 384), (256, 256), (256, 256, 256)))

    blocks: tuple[int, ...] = (5, 10, 6)

    def head(self, x: jax.Array, train: bool, maps: Maps) -> jax.Array:
        """See `Inception.head`."""
        x = self.dense(self.width(512), use_bias=False)(self.drop(x.mean((1, 2)), train))
        return self.dense(self.num_classes)(self.norm(x, train))


class InceptionResNetV2(InceptionResNet):
    """Inception-ResNet v2: the blocks of v1, wider and more of them, and a last 1x1 convolution, whose map is `final_conv`.

    The authors' published network (pytorchcv's `inceptionresnetv2`), which has the stem of v3 and a block without residue
    in place of the paper's stem.
    """

    STEM = (*_STEM, ((Conv(96, 1),), (Conv(48, 1), Conv(64, 5)), (Conv(64, 1), Conv(96, 3), Conv(96, 3)),
                     (AVG_INSIDE, Conv(64, 1))))
    STAGES = ((_res_a(32, (32, 32), (32, 48, 64)),), (_res_long(7, 192, (128, 160, 192)),),
              (_res_long(3, 192, (192, 224, 256)),))
    REDUCTIONS = (_res_a_end(384, (256, 256, 384)), _res_b_end((256, 384), (256, 288), (256, 288, 320)))

    blocks: tuple[int, ...] = (10, 20, 10)

    def head(self, x: jax.Array, train: bool, maps: Maps) -> jax.Array:
        """See `Inception.head`."""
        x = maps['final_conv'] = self.convolution(x, train, Conv(1536, 1))
        return super().head(x, train, maps)


MODELS: Models = {
    'bn_inception': (BNInception, {}), 'inception_v3': (InceptionV3, {}), 'inception_v4': (InceptionV4, {}),
    'inception_resnet_v1': (InceptionResNetV1, {}), 'inception_resnet_v2': (InceptionResNetV2, {}),
}
