"""airbench's networks (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv 2404.00498, section 3)."""

import jax

from jaxcnn.errors import UserError
from jaxcnn.models.layers import activation, min_input_size, positive_ints
from jaxcnn.models.network import Maps, Models, Network
from jaxcnn.ops.pool import max_pool


class AirBench(Network):
    """A whitening convolution, groups of 3x3 convolutions, max pooling and a dense layer, for images of about 32 pixels.

    The first convolution has no padding; `config.whiten` gives it whitening filters. Each convolution of a group is followed
    by BatchNorm without a scale and an activation, the first one of a group by 2x2 max pooling before them. The dense layer
    has no bias, and its output is multiplied by `logit_scale`. GELU is computed in its tanh form.

    Attributes:
      activation: name of an activation in `layers.ACTIVATIONS`.
      whiten_size: kernel size of the first convolution, which has two features per input value of its window.
      widths: features of each group.
      depth: number of convolutions in each group.
      residual: add the output of a group's first convolution to that of its last.
      logit_scale: factor of the logits.
    """

    activation: str = 'gelu'
    whiten_size: int = 2
    widths: tuple[int, ...] = (64, 256, 256)
    depth: int = 2
    residual: bool = False
    logit_scale: float = 1 / 9
    kernel_init: str = 'dirac'
    bn_momentum: float = 0.6
    bn_epsilon: float = 1e-12

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        activation(self.activation)
        if not positive_ints((*self.widths, self.whiten_size, self.depth)) or not self.widths:
            raise UserError(f'widths, whiten_size and depth must be positive integers, got {self.widths}, '
                            f'{self.whiten_size} and {self.depth}')
        if self.logit_scale <= 0:
            raise UserError(f'logit_scale must be above 0, got {self.logit_scale!r}')

    def min_image_size(self) -> int:
        """See `Network.min_image_size`."""
        return min_input_size(lambda pixels: (pixels - self.whiten_size + 1) >> len(self.widths), 3)

    def published_for(self) -> tuple[tuple[int, int, int], int]:
        """See `Network.published_for`."""
        return (32, 32, 3), 10

    def forward(self, x: jax.Array, train: bool, maps: Maps) -> jax.Array:
        """See `Network.forward`; the feature maps are `whiten`, `group1`, `group2` and so on."""
        features = 2 * self.whiten_size ** 2 * x.shape[-1]
        x = maps['whiten'] = activation(self.activation)(self.conv(features, self.whiten_size, padding=0, name='whiten')(x))
        for i, width in enumerate(self.widths, 1):
            x = maps[f'group{i}'] = self.block(type(self).group, x, train, width)
        x = self.drop(max_pool(x, 3).reshape(x.shape[0], -1), train)
        return self.dense(self.num_classes, use_bias=False)(x) * self.logit_scale

    def group(self, x: jax.Array, train: bool, width: int) -> jax.Array:
        """Apply the convolutions of a group."""
        def convolution(x: jax.Array, pool: bool) -> jax.Array:
            x = self.conv(width, 3, use_bias=False)(x)
            return activation(self.activation)(self.norm(max_pool(x, 2) if pool else x, train, scaled=False))
        x = shortcut = convolution(x, pool=True)
        for _ in range(self.depth - 1):
            x = convolution(x, pool=False)
        return x + shortcut if self.residual else x


MODELS: Models = {
    'airbench94': (AirBench, {}),
    'airbench95': (AirBench, {'widths': (128, 384, 384)}),
    'airbench96': (AirBench, {'widths': (128, 512, 512), 'depth': 3, 'residual': True}),
}
