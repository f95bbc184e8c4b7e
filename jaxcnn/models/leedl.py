"""The food classifier of Hung-yi Lee's course "Machine learning" (homework 3, images of 128 pixels in 11 classes)."""

import jax

from jaxcnn.errors import UserError
from jaxcnn.models.layers import positive_ints
from jaxcnn.models.network import Maps, Models
from jaxcnn.models.plain import Plain
from jaxcnn.ops.pool import max_pool


class LeeDL(Plain):
    """Five 3x3 convolutions with BatchNorm, an activation and 2x2 max pooling, and three dense layers.

    The convolutions have a bias and symmetric padding of 1. The network has 12,833,803 parameters at 128 pixels and 11
    classes. The homework's other network is `resnet18`.

    Attributes:
      widths: features of the convolutions, which may be more or fewer than five.
      hidden: features of the dense layers before the last.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    hidden: tuple[int, ...] = (1024, 512)
    window: int = 4

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        if not positive_ints(self.widths) or not positive_ints(self.hidden):
            raise UserError(f'widths and hidden must be positive integers, got {self.widths} and {self.hidden}')

    def last_map_size(self, image_size: int) -> int:
        """See `Plain.last_map_size`."""
        return image_size >> len(self.widths) - (self.head == 'spp')

    def last_pool(self, x: jax.Array) -> jax.Array:
        """See `Plain.last_pool`."""
        return max_pool(x, 2)

    def published_for(self) -> tuple[tuple[int, int, int], int]:
        """See `Network.published_for`."""
        return (128, 128, 3), 11

    def hidden_features(self) -> tuple[int, ...]:
        """See `Plain.hidden_features`."""
        return self.hidden

    def forward(self, x: jax.Array, train: bool, maps: Maps) -> jax.Array:
        """See `Network.forward`; the feature maps are `conv1`, `conv2` and so on, before pooling."""
        for i, width in enumerate(self.widths, 1):
            x = self.block(type(self).convolution, max_pool(x, 2) if i > 1 else x, train, width)
            maps[f'conv{i}'] = x
        return self.classify(x, train)

    def convolution(self, x: jax.Array, train: bool, width: int) -> jax.Array:
        """Apply a 3x3 convolution with BatchNorm and the activation."""
        return self.norm_activation(self.conv(width, 3)(x), train, self.activation)


MODELS: Models = {'leedl_cnn': (LeeDL, {})}
