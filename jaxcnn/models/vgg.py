"""VGG (Simonyan & Zisserman 2014, "Very deep convolutional networks for large-scale image recognition")."""

import flax.linen as nn
import jax

from jaxcnn.errors import UserError
from jaxcnn.models.layers import Network
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

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits (N, num_classes) of images (N, H, W, C) of at least 32x32 for five stages."""
        if min(x.shape[1:3]) < 1 << len(self.stages):
            raise UserError(f'{len(self.stages)} stages halve their input as often: images of {x.shape[1]}x{x.shape[2]} are '
                            'too small')
        for stage in self.stages:
            for width in stage:
                x = self.conv(width, 3)(x)
                x = nn.relu(self.norm(train)(x) if self.batch_norm else x)
            x = max_pool(x, 2)
        x = x.reshape(len(x), -1)
        for _ in range(2):
            x = self.drop(nn.relu(self.dense(self.hidden)(x)), train)
        return self.dense(self.num_classes)(x)


VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
