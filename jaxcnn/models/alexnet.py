"""AlexNet (Krizhevsky et al. 2012, "ImageNet classification with deep convolutional neural networks") and ZFNet (Zeiler &
Fergus 2013, "Visualizing and understanding convolutional networks")."""

import jax

from jaxcnn.errors import UserError
from jaxcnn.models.layers import Maps, Models, activation, check_kernels, positive_ints
from jaxcnn.models.plain import Plain
from jaxcnn.ops.lrn import local_response_norm
from jaxcnn.ops.pool import max_pool

GROUPED_LAYERS, POOLED_LAYERS = (2, 4, 5), (1, 2, 5)  # convolutions, counted from one


class AlexNet(Plain):
    """AlexNet and ZFNet: five convolutions with ReLU and three dense layers.

    Local response normalisation follows the first two convolutions, between ReLU and pooling; 3x3 max pooling with stride 2
    follows the first, second and fifth.

    `alexnet` is the paper's network in one tower. `alexnet_grouped` splits the second, fourth and fifth convolution into two
    groups, as the paper does over its two GPUs, and normalises over the channels of both groups, as Caffe does. `zfnet` has
    a first layer of 7x7 with stride 2 and a second with stride 2. At 1,000 classes they have 62,378,344, 60,965,224 and
    62,357,608 parameters.

    Padding is symmetric and pooling rounds sizes up, as in pytorchcv's `alexnet` and `zfnet`. So AlexNet's last map is
    6x6x256 both for the paper's 224 pixels and for the 227 that its arithmetic needs; ZFNet's is for 224.

    Attributes:
      widths: features of the five convolutions.
      stem: (size, stride, padding) of the first two convolutions; the others are 3x3.
      groups: number of groups of the second, fourth and fifth convolution.
      lrn: apply local response normalisation.
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
            raise UserError(f'widths must be five positive integers and hidden one, got {self.widths} and {self.hidden}')
        check_kernels('stem', self.stem, 2)
        if self.groups < 1:
            raise UserError(f'groups must be at least 1, got {self.groups}')
        for width in self.widths:
            if width % self.groups:
                raise UserError(f'{self.groups} groups do not divide {width} features')

    def last_map_size(self, image_size: int) -> int:
        """See `Plain.last_map_size`."""
        map_size = image_size
        for size, stride, padding in self.stem:
            map_size = ((map_size + 2 * padding - size) // stride + 1) // 2
        return map_size // 2

    def forward(self, x: jax.Array, train: bool, maps: Maps) -> jax.Array:
        """See `Network.forward`; the feature maps are `conv1` to `conv5`, after normalisation and before pooling."""
        for i in range(1, len(self.widths) + 1):
            x = maps[f'conv{i}'] = self.block(type(self).convolution, x, i)
            if i in POOLED_LAYERS:
                x = max_pool(x, 3, 2, ceil=True)
        return self.classify(x, train, (self.hidden, self.hidden))

    def convolution(self, x: jax.Array, i: int) -> jax.Array:
        """Apply convolution `i`, counted from 1, with the activation and normalisation."""
        in_stem = i <= len(self.stem)
        size, stride, padding = self.stem[i - 1] if in_stem else (3, 1, 1)
        groups = self.groups if i in GROUPED_LAYERS else 1
        x = activation(self.activation)(self.conv(self.widths[i - 1], size, stride, padding, feature_group_count=groups)(x))
        return local_response_norm(x) if self.lrn and in_stem else x


MODELS: Models = {
    'alexnet': (AlexNet, {}),
    'alexnet_grouped': (AlexNet, {'groups': 2}),
    'zfnet': (AlexNet, {'stem': ((7, 2, 1), (5, 2, 0))}),
}
