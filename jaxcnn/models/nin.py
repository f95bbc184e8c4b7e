"""Network in Network (Lin, Chen & Yan 2013, "Network in network")."""

import flax.linen as nn
import jax

from jaxcnn.errors import UserError, unknown
from jaxcnn.models.layers import check_kernels, min_input_size, positive_ints
from jaxcnn.models.network import Maps, Models, Network
from jaxcnn.ops.pool import POOLS

HEADS = ('global_avg_pool', 'dense')


class NIN(Network):
    """Stages of a convolution followed by 1x1 convolutions, with 3x3 pooling with stride 2 between the stages.

    A last 1x1 convolution has a feature map for each class, whose mean is the logit. The paper compares this head with a
    dense layer on the same maps, which needs images of one size (section 4.6). Every convolution, the last one
    included, has a bias and ReLU, as in the authors' definitions. Padding is symmetric.

    `nin_cifar` is pytorchcv's `nin_cifar10`: it pads one pixel in pooling and rounds sizes down, whereas the authors'
    network does not pad and rounds up. `nin_imagenet` is the authors' network for Caffe, with 7,595,176 parameters at 1,000
    classes: its first convolution is 11x11 with stride 4 and no padding, pooling rounds up, and only the last stage starts
    with dropout.

    Attributes:
      stages: features of the convolutions of each stage.
      kernels: (size, stride, padding) of each stage's first convolution.
      pools: `max` or `avg`, for the pooling before each stage but the first.
      pool_padding: 1 pads the map by a pixel in pooling and rounds sizes down; 0 does not pad and rounds up.
      dropped: number of stages, counted from the last, that start with dropout.
      head: `global_avg_pool`, or `dense`, a dense layer on the flattened maps of the classes.
      head_dropout: probability of zeroing a value of these maps before the dense layer, in [0, 1); the paper compares both.
    """

    stages: tuple[tuple[int, ...], ...] = ((192, 160, 96), (192, 192, 192), (192, 192))
    kernels: tuple[tuple[int, int, int], ...] = ((5, 1, 2), (5, 1, 2), (3, 1, 1))
    pools: tuple[str, ...] = ('max', 'avg')
    pool_padding: int = 1
    dropped: int = 2
    head: str = 'global_avg_pool'
    head_dropout: float = 0.0
    dropout: float = 0.5

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        if not self.stages or not all(map(positive_ints, self.stages)):
            raise UserError(f'stages must be lists of positive integers, got {self.stages}')
        check_kernels('kernels', self.kernels, len(self.stages))
        if len(self.pools) != len(self.stages) - 1 or any(pool not in POOLS for pool in self.pools):
            raise UserError(f"pools must be 'max' or 'avg' for each of {len(self.stages) - 1} poolings, got {self.pools}")
        if self.pool_padding not in (0, 1):
            raise UserError(f'pool_padding must be 0 or 1, got {self.pool_padding}')
        if not 0 <= self.dropped < len(self.stages):
            raise UserError(f'dropped must be in [0, {len(self.stages)}), got {self.dropped}')
        if self.head not in HEADS:
            raise unknown('head', self.head, HEADS)
        if not 0 <= self.head_dropout < 1:
            raise UserError(f'head_dropout must be in [0, 1), got {self.head_dropout!r}')
        if self.head_dropout and self.head != 'dense':
            raise UserError(f"head_dropout={self.head_dropout!r} needs head='dense', got {self.head!r}")

    def last_map_size(self, image_size: int) -> int:
        """Return the side of the last feature map, whose mean is the logit, for images of a side."""
        map_size = image_size
        for i, (size, stride, padding) in enumerate(self.kernels):
            if i > 0:
                map_size = (map_size + self.pool_padding) // 2
            map_size = (map_size + 2 * padding - size) // stride + 1
        return map_size

    def min_image_size(self) -> int:
        """See `Network.min_image_size`."""
        return min_input_size(self.last_map_size)

    def published_for(self) -> tuple[tuple[int, int, int], int]:
        """See `Network.published_for`."""
        return ((32, 32, 3), 10) if len(self.stages) == 3 else super().published_for()

    def forward(self, x: jax.Array, train: bool, maps: Maps) -> jax.Array:
        """See `Network.forward`; the feature maps are `stage1`, `stage2` and so on, before pooling, and `classes`."""
        first_dropped = len(self.stages) - self.dropped
        for i in range(len(self.stages)):
            if i > 0:
                x = POOLS[self.pools[i - 1]](x, 3, 2, self.pool_padding, ceil=not self.pool_padding)
                x = self.drop(x, train and i >= first_dropped)
            x = maps[f'stage{i + 1}'] = self.block(type(self).stage, x, i)
        x = maps['classes'] = nn.relu(self.conv(self.num_classes, 1)(x))
        if self.head == 'global_avg_pool':
            return x.mean((1, 2))
        x = nn.Dropout(self.head_dropout, deterministic=not train)(x.reshape(x.shape[0], -1))
        return self.dense(self.num_classes)(x)

    def stage(self, x: jax.Array, i: int) -> jax.Array:
        """Apply the convolutions of stage `i`, counted from 0."""
        for j, width in enumerate(self.stages[i]):
            size, stride, padding = self.kernels[i] if j == 0 else (1, 1, 0)
            x = nn.relu(self.conv(width, size, stride, padding)(x))
        return x


MODELS: Models = {
    'nin_cifar': (NIN, {}),
    'nin_imagenet': (NIN, {
        'stages': ((96,) * 3, (256,) * 3, (384,) * 3, (1024,) * 2),
        'kernels': ((11, 4, 0), (5, 1, 2), (3, 1, 1), (3, 1, 1)), 'pools': ('max',) * 3, 'pool_padding': 0, 'dropped': 1}),
}
