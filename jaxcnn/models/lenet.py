"""LeNet-5 (LeCun et al. 1998, "Gradient-based learning applied to document recognition") and its MNIST descendant."""

import jax
import jax.numpy as jnp

from jaxcnn.errors import unknown
from jaxcnn.models.layers import activation
from jaxcnn.models.network import Maps, Models, Network
from jaxcnn.ops.pool import POOLS, max_pool


class LeNet5(Network):
    """LeNet-5 in its usual modern form: convolutions connect all feature maps, and the output layer is dense.

    The network has 61,706 parameters on 32x32x1 images at 10 classes. Smaller images are padded with zeros to 32x32, as the
    paper pads its 28x28 digits; with larger images the first dense layer is larger.

    Attributes:
      activation: name of an activation in `layers.ACTIVATIONS`; the paper's is `tanh`.
      pool: `avg`, as in the paper, or `max`.
      batch_norm: apply BatchNorm before each activation (Ioffe & Szegedy 2015); layers keep their biases.
    """

    kernel_init: str = 'xavier_uniform'
    activation: str = 'tanh'
    pool: str = 'avg'
    batch_norm: bool = False

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        activation(self.activation)
        if self.pool not in POOLS:
            raise unknown('pool', self.pool, POOLS)

    def published_for(self) -> tuple[tuple[int, int, int], int]:
        """See `Network.published_for`."""
        return (32, 32, 1), 10

    def forward(self, x: jax.Array, train: bool, maps: Maps) -> jax.Array:
        """See `Network.forward`; the feature maps are `conv1` and `conv2`, before pooling."""
        pool = POOLS[self.pool]
        missing = [max(32 - side, 0) for side in x.shape[1:3]]
        x = jnp.pad(x, ((0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)))
        x = maps['conv1'] = self.block(type(self).convolution, x, train, 6)  # (N, 28, 28, 6)
        x = maps['conv2'] = self.block(type(self).convolution, pool(x, 2), train, 16)  # (N, 10, 10, 16)
        x = pool(x, 2)  # (N, 5, 5, 16)
        x = x.reshape(x.shape[0], -1)
        x = self.drop(_activate(self, self.dense(120)(x), train), train)
        x = self.drop(_activate(self, self.dense(84)(x), train), train)
        return self.dense(self.num_classes)(x)

    def convolution(self, x: jax.Array, train: bool, width: int) -> jax.Array:
        """Apply a 5x5 convolution without padding and the activation."""
        return _activate(self, self.conv(width, 5, padding='VALID')(x), train)


class LeNetMnist(Network):
    """The network of the MNIST tutorials: convolutions 5x5x32 and 5x5x64, and dense layers of 512 and of the classes.

    Padding keeps the size. The activation and 2x2 max pooling follow each convolution, the activation and dropout the first
    dense layer. The network has 1,663,370 parameters on 28x28x1 images at 10 classes.

    Attributes:
      activation: name of an activation in `layers.ACTIVATIONS`; the tutorials' is `relu`.
      batch_norm: as in `LeNet5`.
    """

    kernel_init: str = 'truncated_normal(0.1)'
    activation: str = 'relu'
    batch_norm: bool = False
    dropout: float = 0.5

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        activation(self.activation)

    def min_image_size(self) -> int:
        """See `Network.min_image_size`."""
        return 4

    def published_for(self) -> tuple[tuple[int, int, int], int]:
        """See `Network.published_for`."""
        return (28, 28, 1), 10

    def forward(self, x: jax.Array, train: bool, maps: Maps) -> jax.Array:
        """See `Network.forward`; the feature maps are `conv1` and `conv2`, before pooling."""
        x = maps['conv1'] = self.block(type(self).convolution, x, train, 32)
        x = maps['conv2'] = self.block(type(self).convolution, max_pool(x, 2), train, 64)
        x = max_pool(x, 2)
        x = x.reshape(x.shape[0], -1)
        x = self.drop(_activate(self, self.dense(512)(x), train), train)
        return self.dense(self.num_classes)(x)

    def convolution(self, x: jax.Array, train: bool, width: int) -> jax.Array:
        """Apply a 5x5 convolution and the activation."""
        return _activate(self, self.conv(width, 5)(x), train)


def _activate(network: LeNet5 | LeNetMnist, x: jax.Array, train: bool) -> jax.Array:
    """Apply BatchNorm, if the network has it, and the activation."""
    if network.batch_norm:
        return network.norm_activation(x, train, network.activation)
    return activation(network.activation)(x)


MODELS: Models = {'lenet5': (LeNet5, {}), 'lenet_mnist': (LeNetMnist, {})}
