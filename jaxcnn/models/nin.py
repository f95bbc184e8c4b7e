"""Network in Network (Lin, Chen & Yan 2013, "Network in network")."""

import flax.linen as nn
import jax

from jaxcnn.errors import UserError
from jaxcnn.models.layers import Maps, Models, Network, check_kernels, min_input_size, positive_ints
from jaxcnn.ops.pool import POOLS


class NIN(Network):
    """Stages of a convolution of some size followed by 1x1 ones, with 3x3 pooling with stride 2 between them; a last 1x1
    convolution has a feature map for each class, and their means are the logits. Every convolution has a bias and ReLU,
    the last one, too, as in the authors' definitions.

    `nin_cifar` is pytorchcv's `nin_cifar10`: its pooling begins one pixel outside of the image and does not reach over
    the end, where the authors' is the other way round. `nin_imagenet` is the authors' for Caffe, 7,595,176 parameters at
    1,000 classes: 11x11 with stride 4 without padding at first, a last pooling window may reach over the edge, and dropout
    is before the last stage alone. Padding is symmetric. Any image size from the smallest on.

    Attributes:
      stages: features of the convolutions of each stage.
      kernels: size, stride and padding of each stage's first convolution.
      pools: `max` or `avg`, before each stage but the first.
      pool_padding: pixels around the image in pooling, 0 or 1; with 0 a last window may reach over the edge.
      dropped: stages, counted from the last one, that begin with dropout.
    """

    stages: tuple[tuple[int, ...], ...] = ((192, 160, 96), (192, 192, 192), (192, 192))
    kernels: tuple[tuple[int, int, int], ...] = ((5, 1, 2), (5, 1, 2), (3, 1, 1))
    pools: tuple[str, ...] = ('max', 'avg')
    pool_padding: int = 1
    dropped: int = 2
    dropout: float = 0.5

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        if not self.stages or not all(map(positive_ints, self.stages)):
            raise UserError(f'stages must be positive numbers, got {self.stages}')
        check_kernels('kernels', self.kernels, len(self.stages))
        if len(self.pools) != len(self.stages) - 1 or any(pool not in POOLS for pool in self.pools):
            raise UserError(f"pools must be {len(self.stages) - 1} times 'max' or 'avg', got {self.pools}")
        if self.pool_padding not in (0, 1):
            raise UserError(f'pool_padding must be 0 or 1, got {self.pool_padding}')
        if not 0 <= self.dropped < len(self.stages):
            raise UserError(f'dropped must be in [0, {len(self.stages)}), got {self.dropped}')

    def side(self, pixels: int) -> int:
        """Side of the map that the means are taken of, of images of a side."""
        for i, (size, stride, padding) in enumerate(self.kernels):
            pixels = (pixels + self.pool_padding) // 2 if i else pixels
            pixels = (pixels + 2 * padding - size) // stride + 1
        return pixels

    def min_image_size(self) -> int:
        """See `Network.min_image_size`."""
        return min_input_size(self.side)

    def published_for(self) -> tuple[tuple[int, int, int], int]:
        """See `Network.published_for`."""
        return ((32, 32, 3), 10) if len(self.stages) == 3 else super().published_for()

    def forward(self, x: jax.Array, train: bool, maps: Maps) -> jax.Array:
        """See `Network.forward`; maps `stage1` and on, before pooling, and `classes`."""
        first = len(self.stages) - self.dropped
        for i in range(len(self.stages)):
            if i:
                x = POOLS[self.pools[i - 1]](x, 3, 2, self.pool_padding, ceil=not self.pool_padding)
                x = self.drop(x, train and i >= first)
            x = maps[f'stage{i + 1}'] = self.block(type(self).stage, x, i)
        x = maps['classes'] = nn.relu(self.conv(self.num_classes, 1)(x))
        return x.mean((1, 2))

    def stage(self, x: jax.Array, i: int) -> jax.Array:
        """The convolutions of stage i, counted from 0."""
        for width, kernel in zip(self.stages[i], (self.kernels[i], *((1, 1, 0),) * len(self.stages[i])), strict=False):
            x = nn.relu(self.conv(width, *kernel)(x))
        return x


MODELS: Models = {
    'nin_cifar': (NIN, {}),
    'nin_imagenet': (NIN, {
        'stages': ((96,) * 3, (256,) * 3, (384,) * 3, (1024,) * 2),
        'kernels': ((11, 4, 0), (5, 1, 2), (3, 1, 1), (3, 1, 1)), 'pools': ('max',) * 3, 'pool_padding': 0, 'dropped': 1}),
}
