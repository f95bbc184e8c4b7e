"""VGG (Simonyan & Zisserman 2014, "Very deep convolutional networks for large-scale image recognition")."""

from typing import Self

import flax.linen as nn
import jax

from jaxcnn.errors import UserError
from jaxcnn.models.layers import Maps, Models, Network
from jaxcnn.ops.pool import max_pool


class VGG(Network):
    """Stages of 3x3 convolutions with padding 1, each stage ended by 2x2 max pooling; three dense layers with dropout.

    The first dense layer takes what the stages leave: 7x7x512 of 224 pixels, 2x2x512 of 64.

    Attributes:
      stages: features of the convolutions of each stage.
      batch_norm: BatchNorm after each convolution, which keeps its bias, as in PyTorch's.
      hidden: features of the first two dense layers.
    """

    stages: tuple[tuple[int, ...], ...] = ()
    batch_norm: bool = False
    hidden: int = 4096
    dropout: float = 0.5

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        if not self.stages or any(not isinstance(w, int) or w < 1 for stage in self.stages for w in (self.hidden, *stage)):
            raise UserError(f'stages and hidden must be positive, got {self.stages} and {self.hidden}')

    def smallest(self) -> int:
        """See `Network.smallest`."""
        return 1 << len(self.stages)

    def forward(self, x: jax.Array, train: bool, maps: Maps) -> jax.Array:
        """See `Network.forward`; maps `stage1` and on, before pooling."""
        for i, stage in enumerate(self.stages, 1):
            def convolutions(self: Self, x: jax.Array, stage: tuple[int, ...] = stage) -> jax.Array:
                for width in stage:
                    x = self.conv(width, 3)(x)
                    x = self.norm(x, train, relu=True) if self.batch_norm else nn.relu(x)
                return x
            x = maps[f'stage{i}'] = self.block(convolutions, x)
            x = max_pool(x, 2)
        x = x.reshape(len(x), -1)
        for _ in range(2):
            x = self.drop(nn.relu(self.dense(self.hidden)(x)), train)
        return self.dense(self.num_classes)(x)


VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
MODELS: Models = {'vgg16_bn': (VGG, {'stages': VGG16, 'batch_norm': True})}
