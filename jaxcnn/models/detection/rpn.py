"""The region proposal network (RPN; Ren et al. 2015, "Faster R-CNN: towards real-time object detection with region proposal
networks")."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.models.detection.modules import ConvModule

STD = 0.01  # of the initial kernels, as in the paper


class RPNHead(ConvModule):
    """Predicts for each anchor whether it shows an object, and the regression targets of its box.

    A 3x3 convolution with ReLU is followed by two 1x1 convolutions. The objectness of an anchor is one logit, for a sigmoid.
    The paper has two scores for a softmax, which is the sigmoid of their difference. Levels of a pyramid share the
    parameters if the module is called on each of them.

    Attributes:
      num_anchors: number of anchors at each position.
      features: channels of the 3x3 convolution; 0 stands for those of the feature map. The paper has 256 with ZFNet and 512
        with VGG-16.
    """

    num_anchors: int = 9
    features: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the objectness logits (N, A) and regression targets (N, A, 4) of a feature map, in float32.

        The order of the H * W * num_anchors anchors is that of `ops.boxes.anchors`.

        Args:
          x: feature map (N, H, W, C).
        """
        init = nn.initializers.normal(STD)
        y = nn.relu(self.conv(self.features or x.shape[-1], 3, name='conv', kernel_init=init)(x))
        logits = self.conv(self.num_anchors, 1, name='objectness', kernel_init=init, dtype=jnp.float32)(y)
        targets = self.conv(4 * self.num_anchors, 1, name='boxes', kernel_init=init, dtype=jnp.float32)(y)
        return logits.reshape(x.shape[0], -1), targets.reshape(x.shape[0], -1, 4)
