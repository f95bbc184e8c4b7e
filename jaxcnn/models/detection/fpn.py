"""Feature pyramid networks (Lin et al. 2017, "Feature pyramid networks for object detection")."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.errors import unknown
from jaxcnn.models.detection.modules import ConvModule

EXTRA_LEVELS = '', 'pool', 'convolutions'


class FPN(ConvModule):
    """Turns feature maps of a backbone into a pyramid of maps with the same number of channels.

    A 1x1 convolution maps each feature map to `features` channels. From the coarsest to the finest, each is enlarged to the
    size of the next, by repeating pixels, and added to it. A 3x3 convolution follows on each level. The parameters are
    `lateral0`, `output0` and so on, from the finest level. Kernels are initialised as in Detectron, uniformly with a
    variance of 1 / fan_in.

    Attributes:
      features: channels of each level.
      extra: coarser levels that are added: none; `pool`, every second pixel of the coarsest level, as in the paper; or
        `convolutions`, two 3x3 convolutions of stride 2 with a ReLU between them, as in RetinaNet (Lin et al. 2017, "Focal
        loss for dense object detection") but from the coarsest level, as in FCOS. Their parameters are `extra0` and
        `extra1`.
    """

    features: int = 256
    extra: str = ''

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> list[jax.Array]:
        """Return the levels (N, H, W, features), from the finest.

        Args:
          maps: feature maps (N, H, W, C), from the finest; usually of the strides 4, 8, 16 and 32.

        Raises:
          UserError: `extra` is unknown.
        """
        if self.extra not in EXTRA_LEVELS:
            raise unknown('extra', self.extra, EXTRA_LEVELS)
        init = nn.initializers.lecun_uniform()
        sums = [self.conv(self.features, 1, name=f'lateral{i}', kernel_init=init)(x) for i, x in enumerate(maps)]
        for i in reversed(range(len(sums) - 1)):
            sums[i] = sums[i] + upsample(sums[i + 1], *sums[i].shape[1:3])
        levels = [self.conv(self.features, 3, name=f'output{i}', kernel_init=init)(x) for i, x in enumerate(sums)]
        if self.extra == 'pool':
            levels.append(levels[-1][:, ::2, ::2])
        elif self.extra == 'convolutions':
            levels.append(self.conv(self.features, 3, 2, name='extra0', kernel_init=init)(levels[-1]))
            levels.append(self.conv(self.features, 3, 2, name='extra1', kernel_init=init)(nn.relu(levels[-1])))
        return levels


def upsample(x: jax.Array, height: int, width: int) -> jax.Array:
    """Enlarge a map (N, H, W, C) by repeating pixels; row i of the result is row `i * H // height`, as in PyTorch."""
    for axis, side in ((1, height), (2, width)):
        if side in (2 * x.shape[axis], 2 * x.shape[axis] - 1):  # its gradient is much faster than that of indexing
            x = jax.lax.slice_in_dim(jnp.repeat(x, 2, axis), 0, side, axis=axis)
        elif side != x.shape[axis]:
            x = jnp.take(x, np.arange(side) * x.shape[axis] // side, axis)
    return x
