"""MobileNet v1 (Howard et al. 2017, "MobileNets: efficient convolutional neural networks for mobile vision")."""

import jax

from jaxcnn.errors import UserError
from jaxcnn.models.layers import Maps, Models, Network, activation

# features and stride of each depthwise separable convolution (the paper's table 1)
LAYERS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


class MobileNetV1(Network):
    """A 3x3 convolution with stride 2, depthwise separable convolutions, mean over the image, and a dense layer.

    A depthwise separable convolution is a 3x3 convolution of each channel and a 1x1 convolution. BatchNorm and an activation
    follow every convolution. Padding is symmetric, as in PyTorch's networks, and widths are rounded down. At 1,000 classes
    multipliers of 0.25, 0.5, 0.75 and 1 give 470,072, 1,331,592, 2,585,560 and 4,231,976 parameters, like pytorchcv's
    `mobilenet_wd4`, `_wd2`, `_w3d4` and `_w1`.

    Attributes:
      multiplier: factor of all widths (the paper's alpha).
      activation: name of an activation in `layers.ACTIVATIONS`: `relu` as in the paper, `relu6` as in TensorFlow's and
        timm's networks.
    """

    multiplier: float = 1.0
    activation: str = 'relu'

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        activation(self.activation)
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

    def convolution(self, x: jax.Array, train: bool, features: int, size: int, stride: int = 1,
                    groups: int = 1) -> jax.Array:
        """Apply a convolution with BatchNorm and the activation."""
        relu = self.activation == 'relu'
        x = self.conv_norm(x, train, features, size, stride, relu=relu, feature_group_count=groups)
        return x if relu else activation(self.activation)(x)


MODELS: Models = {'mobilenet_v1': (MobileNetV1, {})}
