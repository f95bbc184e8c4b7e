"""The shallow CNN: four convolutions with BatchNorm and two dense layers, for images of about 32 pixels."""

import jax

from jaxcnn.errors import UserError
from jaxcnn.models.layers import activation, positive_ints
from jaxcnn.models.network import Maps, Models, Network
from jaxcnn.ops.pool import max_pool


class ShallowCNN(Network):
    """Convolutions 7x7x64, 3x3x128, 3x3x256 and 3x3x256, and two dense layers.

    BatchNorm, the activation and 2x2 max pooling follow each convolution. Without BatchNorm, convolutions have a bias.

    Attributes:
      activation: name of an activation in `layers.ACTIVATIONS`.
      batch_norm: apply BatchNorm after each convolution.
      widths: features of the four convolutions.
      hidden: features of the first dense layer.
    """

    activation: str = 'relu'
    batch_norm: bool = True
    widths: tuple[int, ...] = (64, 128, 256, 256)
    hidden: int = 512
    dropout: float = 0.5

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        activation(self.activation)
        if len(self.widths) != 4 or not positive_ints((*self.widths, self.hidden)):
            raise UserError(f'widths must be four positive integers and hidden one, got {self.widths} and {self.hidden}')

    def min_image_size(self) -> int:
        """See `Network.min_image_size`."""
        return 16

    def published_for(self) -> tuple[tuple[int, int, int], int]:
        """See `Network.published_for`."""
        return (32, 32, 3), 10

    def forward(self, x: jax.Array, train: bool, maps: Maps) -> jax.Array:
        """See `Network.forward`; the feature maps are `conv1` to `conv4`, before pooling."""
        act = activation(self.activation)
        for i, (width, size) in enumerate(zip(self.widths, (7, 3, 3, 3), strict=True), 1):
            x = maps[f'conv{i}'] = self.block(type(self).convolution, x, train, width, size)
            x = max_pool(x, 2)
        x = x.reshape(x.shape[0], -1)
        x = self.drop(act(self.dense(self.hidden)(x)), train)
        return self.dense(self.num_classes)(x)

    def convolution(self, x: jax.Array, train: bool, width: int, size: int) -> jax.Array:
        """Apply a convolution with BatchNorm and the activation."""
        if not self.batch_norm:
            return activation(self.activation)(self.conv(width, size)(x))
        return activation(self.activation)(self.conv_norm(x, train, width, size, relu=False))


MODELS: Models = {'shallow_cnn': (ShallowCNN, {})}
