"""The base class of the modules from which detectors are made."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxcnn.models.layers import Conv


class ConvModule(nn.Module, kw_only=True):
    """A module of a detector, with convolutions as those of its backbone; for the fields see `network.Network`."""

    dtype: str = 'float32'
    param_dtype: str = 'float32'
    conv_implementation: str = 'auto'
    bn_frozen: bool = False
    bn_axis: str | None = None
    remat: bool = False

    def conv(self, features: int, size: int, stride: int = 1, **fields: Any) -> Conv:
        """Return a convolution with a bias, whose padding keeps the size of the map at stride 1.

        Args:
          features: number of output channels.
          size: side of the kernel.
          stride: in both directions.
          **fields: further fields of `layers.Conv`.
        """
        return Conv(features, (size, size), (stride, stride), [(size // 2, size // 2)] * 2,
                    param_dtype=jnp.dtype(self.param_dtype), implementation=self.conv_implementation,
                    **{'dtype': jnp.dtype(self.dtype), **fields})
