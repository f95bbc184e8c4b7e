"""GoogLeNet (Szegedy et al. 2014, "Going deeper with convolutions"), without and with BatchNorm."""

import functools

import flax.linen as nn
import jax

from jaxcnn.errors import UserError
from jaxcnn.models.inception import HALF_CEIL, MAX, AuxiliaryInception, Branches, Conv, Layers
from jaxcnn.models.network import Maps, Models
from jaxcnn.ops.lrn import local_response_norm
from jaxcnn.ops.pool import avg_pool, max_pool

LRN = functools.partial(local_response_norm, size=5, alpha=1e-4, beta=0.75, k=1.0)
POOL_4 = functools.partial(max_pool, size=3, stride=2, ceil=True)
POOL_4_TORCHVISION = functools.partial(max_pool, size=2, stride=2, ceil=True)


def _block(one: int, reduce_three: int, three: int, reduce_five: int, five: int, pool_proj: int) -> Branches:
    """Return the branches of a block from the columns of the paper's table 1: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool
    proj."""
    return ((Conv(one, 1),), (Conv(reduce_three, 1), Conv(three, 3)), (Conv(reduce_five, 1), Conv(five, 5)),
            (MAX, Conv(pool_proj, 1)))


class GoogLeNet(AuxiliaryInception):
    """A stem, stages of Inception blocks with max pooling between them, mean over the image, and a dense layer.

    Convolutions are padded symmetrically, as in PyTorch's networks. 3x3 pooling with stride 2 starts at the first pixel and
    rounds sizes up, which equals TensorFlow's `SAME` on even sides. Local response normalisation has the values of Caffe's
    GoogLeNet (`bvlc_googlenet`), because the paper gives none.

    Training has two auxiliary classifiers, on blocks 4a and 4d: 5x5 mean pooling with stride 3, a 1x1 convolution, and two
    dense layers with dropout between them. On maps smaller than 5x5 (images under 79 pixels) the pool covers the map. The
    first dense layer takes a 4x4 map at 224 pixels and has another size for other images. A network with fewer than four
    blocks in its second stage has only the classifier on 4a.

    Attributes:
      batch_norm: apply BatchNorm after each convolution, which then has no bias, and no local response normalisation.
      aux_dropout: dropout probability in the auxiliary classifiers.
      torchvision: use 3x3 convolutions in place of 5x5 and 2x2 windows in the last pooling, as torchvision's weights need;
        auxiliary classifiers still pool as in the paper.
    """

    STEM = (Conv(64, 7, 2), HALF_CEIL, LRN, Conv(64, 1), Conv(192, 3), LRN, HALF_CEIL)
    STAGES = ((_block(64, 96, 128, 16, 32, 32), _block(128, 128, 192, 32, 96, 64)),
              (_block(192, 96, 208, 16, 48, 64), _block(160, 112, 224, 24, 64, 64), _block(128, 128, 256, 24, 64, 64),
               _block(112, 144, 288, 32, 64, 64), _block(256, 160, 320, 32, 128, 128)),
              (_block(256, 160, 320, 32, 128, 128), _block(384, 192, 384, 48, 128, 128)))
    REDUCTIONS = ((HALF_CEIL,), (POOL_4,))

    blocks: tuple[int, ...] = (2, 5, 2)
    dropout: float = 0.4
    bn_epsilon: float = 1e-3
    batch_norm: bool = False
    aux_dropout: float = 0.7
    torchvision: bool = False

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        if not 0 <= self.aux_dropout < 1:
            raise UserError(f'aux_dropout must be in [0, 1), got {self.aux_dropout!r}')

    def published_for(self) -> tuple[tuple[int, int, int], int]:
        """See `Network.published_for`."""
        return (224, 224, 3), 1000

    def min_image_size(self) -> int:
        """See `Network.min_image_size`."""
        return 31

    def label(self, stage: int, i: int) -> str:
        """Return the paper's names, `inception_3a` and so on; the pooling after a stage is `pool_3` or `pool_4`."""
        return f'pool_{stage + 3}' if i == self.blocks[stage] else f'inception_{stage + 3}{chr(ord("a") + i)}'

    def auxiliary(self, train: bool, maps: Maps) -> list[jax.Array]:
        """See `AuxiliaryInception.auxiliary`."""
        return [self._auxiliary_classifier(maps[name], train) for name in ('inception_4a', 'inception_4d') if name in maps]

    def sequence(self, x: jax.Array, train: bool, layers: Layers) -> jax.Array:
        """See `Inception.sequence`."""
        if self.torchvision and layers == (POOL_4,):
            layers = (POOL_4_TORCHVISION,)
        if self.batch_norm:
            layers = tuple(layer for layer in layers if layer is not LRN)
        return super().sequence(x, train, layers)

    def convolution(self, x: jax.Array, train: bool, conv: Conv) -> jax.Array:
        """Apply a convolution, BatchNorm if `batch_norm` is set, and ReLU."""
        if self.torchvision and conv.size == 5:
            conv = conv._replace(size=3)
        if self.batch_norm:
            return super().convolution(x, train, conv)
        return nn.relu(self.conv(self.width(conv.features), *conv[1:])(x))

    def _auxiliary_classifier(self, x: jax.Array, train: bool) -> jax.Array:
        x = avg_pool(x, min(5, *x.shape[1:3]), 3)
        x = self.convolution(x, train, Conv(128, 1))
        x = nn.relu(self.dense(self.width(1024))(x.reshape(x.shape[0], -1)))
        return self.dense(self.num_classes)(nn.Dropout(self.aux_dropout, deterministic=not train)(x))


MODELS: Models = {'googlenet': (GoogLeNet, {}), 'googlenet_bn': (GoogLeNet, {'batch_norm': True})}
