"""Inception-ResNet (Szegedy et al. 2016, "Inception-v4, Inception-ResNet and the impact of residual connections on
learning")."""

import flax.linen as nn
import jax

from jaxcnn.models.inception import AVG_WITHOUT_PADDING, HALF, V3_STEM, Branches, Conv, Inception, Layers
from jaxcnn.models.network import Maps, Models

# the arguments of these functions are the widths of each branch's convolutions


def _res_a(first: int, second: tuple[int, int], third: tuple[int, int, int]) -> Branches:
    return ((Conv(first, 1),), (Conv(second[0], 1), Conv(second[1], 3)),
            (Conv(third[0], 1), Conv(third[1], 3), Conv(third[2], 3)))


def _res_factorized(size: int, first: int, second: tuple[int, int, int]) -> Branches:
    return (Conv(first, 1),), (Conv(second[0], 1), Conv(second[1], (1, size)), Conv(second[2], (size, 1)))


def _res_a_reduction(first: int, second: tuple[int, int, int]) -> Layers:
    return (((Conv(first, 3, 2, 0),), (Conv(second[0], 1), Conv(second[1], 3), Conv(second[2], 3, 2, 0)), (HALF,)),)


def _res_b_reduction(first: tuple[int, int], second: tuple[int, int], third: tuple[int, int, int]) -> Layers:
    return (((Conv(first[0], 1), Conv(first[1], 3, 2, 0)), (Conv(second[0], 1), Conv(second[1], 3, 2, 0)),
             (Conv(third[0], 1), Conv(third[1], 3), Conv(third[2], 3, 2, 0)), (HALF,)),)


class InceptionResNet(Inception):
    """The base class of Inception-ResNets, for 299 pixels.

    A block concatenates its branches, projects them by a 1x1 convolution without BatchNorm, scales the result by `SCALES` of
    its stage, adds it to the block's input and applies ReLU. The last block of the last stage has neither scale nor ReLU.
    Padding is as in `InceptionV4`.
    """

    SCALES = (0.17, 0.1, 0.2)

    dropout: float = 0.2
    bn_epsilon: float = 1e-3

    def inception_block(self, x: jax.Array, train: bool, stage: int, i: int) -> jax.Array:
        """See `Inception.inception_block`."""
        residual = self.conv(x.shape[-1], 1)(super().inception_block(x, train, stage, i))
        if (stage, i) == (2, self.blocks[2] - 1):
            return x + residual
        return nn.relu(x + self.SCALES[stage] * residual)


class InceptionResNetV1(InceptionResNet):
    """Inception-ResNet v1.

    This is pytorchcv's `inceptionresnetv1`, with 23,995,624 parameters at 1,000 classes. It differs from the paper: a dense
    layer of 512 features with BatchNorm follows the mean, and the last stage has six blocks instead of five.
    """

    STEM = (*V3_STEM[:-1], Conv(256, 3, 2, 0))
    STAGES = ((_res_a(32, (32, 32), (32, 32, 32)),), (_res_factorized(7, 128, (128, 128, 128)),),
              (_res_factorized(3, 192, (192, 192, 192)),))
    REDUCTIONS = (_res_a_reduction(384, (192, 192, 256)), _res_b_reduction((256, 384), (256, 256), (256, 256, 256)))

    blocks: tuple[int, ...] = (5, 10, 6)

    def head(self, x: jax.Array, train: bool, maps: Maps) -> jax.Array:
        """See `Inception.head`."""
        x = self.dense(self.width(512), use_bias=False)(self.drop(x.mean((1, 2)), train))
        return self.dense(self.num_classes)(self.norm(x, train))


class InceptionResNetV2(InceptionResNet):
    """Inception-ResNet v2: more and wider blocks than v1, and a last 1x1 convolution, whose feature map is `final_conv`.

    This is the authors' published network (pytorchcv's `inceptionresnetv2`), which has the stem of v3 and a block without a
    shortcut in place of the paper's stem.
    """

    STEM = (*V3_STEM, ((Conv(96, 1),), (Conv(48, 1), Conv(64, 5)), (Conv(64, 1), Conv(96, 3), Conv(96, 3)),
                     (AVG_WITHOUT_PADDING, Conv(64, 1))))
    STAGES = ((_res_a(32, (32, 32), (32, 48, 64)),), (_res_factorized(7, 192, (128, 160, 192)),),
              (_res_factorized(3, 192, (192, 224, 256)),))
    REDUCTIONS = (_res_a_reduction(384, (256, 256, 384)), _res_b_reduction((256, 384), (256, 288), (256, 288, 320)))

    blocks: tuple[int, ...] = (10, 20, 10)

    def head(self, x: jax.Array, train: bool, maps: Maps) -> jax.Array:
        """See `Inception.head`."""
        x = maps['final_conv'] = self.convolution(x, train, Conv(1536, 1))
        return super().head(x, train, maps)


MODELS: Models = {'inception_resnet_v1': (InceptionResNetV1, {}), 'inception_resnet_v2': (InceptionResNetV2, {})}
