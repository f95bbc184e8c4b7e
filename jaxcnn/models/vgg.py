"""VGG (Simonyan & Zisserman 2014, "Very deep convolutional networks for large-scale image recognition")."""

import functools
from typing import Any

import jax

from jaxcnn.errors import UserError
from jaxcnn.models.layers import activation, positive_ints
from jaxcnn.models.network import Maps, Models, Step
from jaxcnn.models.plain import Plain
from jaxcnn.ops.lrn import local_response_norm
from jaxcnn.ops.pool import max_pool


class VGG(Plain):
    """Stages of 3x3 convolutions with padding 1, each followed by 2x2 max pooling, and three dense layers with dropout.

    The first dense layer takes the flattened last map, 7x7x512 at 224 pixels and 2x2x512 at 64.

    The paper's A is `vgg11`, A-LRN `vgg11_lrn`, B `vgg13`, C `vgg16_c`, D `vgg16` and E `vgg19`.

    Attributes:
      stages: features of the convolutions of each stage.
      batch_norm: apply BatchNorm after each convolution, which keeps its bias, as in PyTorch's networks.
      pointwise: the third convolution of a stage, and any after it, is 1x1 (the paper's C).
      lrn: apply local response normalisation after the first convolution, with the parameters of AlexNet.
      hidden: features of the first two dense layers.
    """

    stages: tuple[tuple[int, ...], ...] = ()
    batch_norm: bool = False
    pointwise: bool = False
    lrn: bool = False
    hidden: int = 4096
    dropout: float = 0.5

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        if not self.stages or not all(map(positive_ints, (*self.stages, (self.hidden,)))):
            raise UserError(f'stages must be lists of positive integers and hidden one, got {self.stages} and {self.hidden}')

    def last_map_size(self, image_size: int) -> int:
        """See `Plain.last_map_size`."""
        return image_size >> len(self.stages) - (self.head == 'spp')

    def last_pool(self, x: jax.Array) -> jax.Array:
        """See `Plain.last_pool`."""
        return max_pool(x, 2)

    def forward(self, x: jax.Array, train: bool, maps: Maps) -> jax.Array:
        """See `Network.forward`; the feature maps are `stage1`, `stage2` and so on, before pooling."""
        return self.classify(self.trunk(x, train, maps), train)

    def hidden_features(self) -> tuple[int, ...]:
        """See `Plain.hidden_features`."""
        return self.hidden, self.hidden

    def steps(self, train: bool) -> list[Step]:
        """See `Network.steps`; a stage begins with the pooling of the one before it."""
        def step(x: jax.Array, i: int) -> jax.Array:
            return self.block(type(self).stage, max_pool(x, 2) if i > 1 else x, train, i)
        return [Step(f'stage{i}', functools.partial(step, i=i), ((2, 2, 0),) if i > 1 else ())
                for i in range(1, len(self.stages) + 1)]

    def stage(self, x: jax.Array, train: bool, i: int) -> jax.Array:
        """Apply the convolutions of stage `i`, counted from 1."""
        for j, width in enumerate(self.stages[i - 1], 1):
            x = self.conv(width, 1 if self.pointwise and j > 2 else 3)(x)
            x = self.norm_activation(x, train, self.activation) if self.batch_norm else activation(self.activation)(x)
            if self.lrn and i == j == 1:
                x = local_response_norm(x)
        return x


# table 1 of the paper, by the number of layers with weights
STAGES = {
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    13: ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
    19: ((64, 64), (128, 128), (256, 256, 256, 256), (512, 512, 512, 512), (512, 512, 512, 512)),
}
_PLAIN: dict[str, dict[str, Any]] = {
    **{f'vgg{depth}': {'stages': stages} for depth, stages in STAGES.items()},
    'vgg16_c': {'stages': STAGES[16], 'pointwise': True}}

MODELS: Models = {
    **{name: (VGG, fields) for name, fields in _PLAIN.items()},
    **{f'{name}_bn': (VGG, {**fields, 'batch_norm': True}) for name, fields in _PLAIN.items()},
    'vgg11_lrn': (VGG, {'stages': STAGES[11], 'lrn': True}),
}
