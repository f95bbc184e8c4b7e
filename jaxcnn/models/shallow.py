"""The shallow CNN: four convolutions with BatchNorm and two dense layers, for images of about 32 pixels."""

import flax.linen as nn
import jax

from jaxcnn.errors import UserError
from jaxcnn.models.layers import Network, activation
from jaxcnn.ops.pool import max_pool


class ShallowCNN(Network):
    """7x7x64, 3x3x128, 3x3x256, 3x3x256, each with BatchNorm, activation and 2x2 max pooling; then two dense layers.

    Attributes:
      activation: `relu`, `leaky_relu`, `elu`, `relu6`, `swish`, `tanh`, `sigmoid`, `gelu`.
      widths: features of the four convolutions.
      hidden: features of the first dense layer; the second gives the classes.
    """

    activation: str = 'relu'
    widths: tuple[int, ...] = (64, 128, 256, 256)
    hidden: int = 512
    dropout: float = 0.5

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        activation(self.activation)
        if len(self.widths) != 4 or any(not isinstance(w, int) or w < 1 for w in (*self.widths, self.hidden)):
            raise UserError(f'widths and hidden must be positive, and widths four, got {self.widths} and {self.hidden}')

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits (N, num_classes) of images (N, H, W, C) of at least 16x16."""
        if min(x.shape[1:3]) < 16:
            raise UserError(f'shallow_cnn halves its input four times: images of {x.shape[1]}x{x.shape[2]} are too small')
        act = activation(self.activation)
        for width, size in zip(self.widths, (7, 3, 3, 3), strict=True):
            x = self.conv(width, size, use_bias=False)(x)
            x = max_pool(act(self.norm(train)(x)), 2)
        x = x.reshape(len(x), -1)
        x = self.drop(act(self.dense(self.hidden)(x)), train)
        return self.dense(self.num_classes)(x)
