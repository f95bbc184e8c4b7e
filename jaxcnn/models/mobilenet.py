"""MobileNet v1 (Howard et al. 2017, "MobileNets: efficient convolutional neural networks for mobile vision")."""

import flax.linen as nn
import jax

from jaxcnn.errors import UserError
from jaxcnn.models.layers import Network

# features and stride of each depthwise separable convolution (the paper's table 1)
LAYERS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


class MobileNetV1(Network):
    """A 3x3 convolution with stride 2, then depthwise separable ones: 3x3 by channel, 1x1; each with BatchNorm and ReLU.

    Padding is symmetric, as in PyTorch's.

    Attributes:
      multiplier: of all widths (the paper's alpha).
    """

    multiplier: float = 1.0

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        if self.multiplier <= 0 or int(32 * self.multiplier) < 1:
            raise UserError(f'multiplier must leave at least one of 32 features, got {self.multiplier}')

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits (N, num_classes) of images (N, H, W, C)."""
        x = nn.relu(self.norm(train)(self.conv(int(32 * self.multiplier), 3, 2, use_bias=False)(x)))
        for width, stride in LAYERS:
            c = x.shape[-1]
            x = nn.relu(self.norm(train)(self.conv(c, 3, stride, feature_group_count=c, use_bias=False)(x)))
            x = nn.relu(self.norm(train)(self.conv(int(width * self.multiplier), 1, use_bias=False)(x)))
        return self.dense(self.num_classes)(self.drop(x.mean((1, 2)), train))
