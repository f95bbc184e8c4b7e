"""AlexNet (Krizhevsky et al. 2012, "ImageNet classification with deep convolutional neural networks") and ZFNet (Zeiler &
Fergus 2013, "Visualizing and understanding convolutional networks")."""

import flax.linen as nn
import jax

from jaxcnn.errors import UserError
from jaxcnn.models.layers import Maps, Models, check_kernels, positive_ints
from jaxcnn.models.plain import Plain
from jaxcnn.ops.lrn import local_response_norm
from jaxcnn.ops.pool import max_pool

GROUPED, POOLED = (2, 4, 5), (1, 2, 5)  # convolutions, counted from one


class AlexNet(Plain):
    """Five convolutions with ReLU, the first two with local response normalisation, 3x3 max pooling with stride 2 after the
    first, second and fifth; three dense layers.

    `alexnet` is the paper's network in one tower. `alexnet_grouped` splits the second, fourth and fifth convolution in two
    groups, as the paper does over its two GPUs; it normalises over the channels of both, as Caffe's. `zfnet` has a first
    layer of 7x7 with stride 2 and a second with stride 2. At 1,000 classes they have 62,378,344, 60,965,224 and 62,357,608
    parameters.

    Padding is symmetric, and a last pooling window may reach over the edge, as pytorchcv's `alexnet` and `zfnet` have it:
    so AlexNet makes its 6x6x256 of the paper's 224 pixels and of the 227 that its arithmetic needs; ZFNet of 224.
    Normalisation is between ReLU and pooling in both.

    Attributes:
      widths: features of the five convolutions.
      stem: kernel size, stride and padding of the first two; the others are 3x3.
      groups: of the second, fourth and fifth convolution.
      lrn: local response normalisation.
      hidden: features of the first two dense layers.
    """

    widths: tuple[int, ...] = (96, 256, 384, 384, 256)
    stem: tuple[tuple[int, int, int], ...] = ((11, 4, 0), (5, 1, 2))
    groups: int = 1
    lrn: bool = True
    hidden: int = 4096
    dropout: float = 0.5
    window: int = 6

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        if len(self.widths) != 5 or not positive_ints((*self.widths, self.hidden)):
            raise UserError(f'widths and hidden must be positive, and widths five, got {self.widths} and {self.hidden}')
        check_kernels('stem', self.stem, 2)
        if self.groups < 1:
            raise UserError(f'groups must be at least 1, got {self.groups}')
        for width in self.widths:
            if width % self.groups:
                raise UserError(f'{self.groups} groups do not divide {width} features')

    def side(self, pixels: int) -> int:
        """See `Plain.side`."""
        for size, stride, padding in self.stem:
            pixels = ((pixels + 2 * padding - size) // stride + 1) // 2
        return pixels // 2

    def forward(self, x: jax.Array, train: bool, maps: Maps) -> jax.Array:
        """See `Network.forward`; maps `conv1` to `conv5`, after normalisation and before pooling."""
        for i in range(1, len(self.widths) + 1):
            x = maps[f'conv{i}'] = self.block(type(self).convolution, x, i)
            if i in POOLED:
                x = max_pool(x, 3, 2, ceil=True)
        return self.classify(x, train, (self.hidden, self.hidden))

    def convolution(self, x: jax.Array, i: int) -> jax.Array:
        """Convolution i, counted from 1, with ReLU and normalisation."""
        size, stride, padding = self.stem[i - 1] if i <= len(self.stem) else (3, 1, 1)
        groups = self.groups if i in GROUPED else 1
        x = nn.relu(self.conv(self.widths[i - 1], size, stride, padding, feature_group_count=groups)(x))
        return local_response_norm(x) if self.lrn and i <= len(self.stem) else x


MODELS: Models = {
    'alexnet': (AlexNet, {}),
    'alexnet_grouped': (AlexNet, {'groups': 2}),
    'zfnet': (AlexNet, {'stem': ((7, 2, 1), (5, 2, 0))}),
}
