"""EfficientNet-Lite, the variant for mobile devices (tensorflow/tpu, 2020) of EfficientNet (Tan & Le 2019, "EfficientNet:
rethinking model scaling for convolutional neural networks")."""

import math

from jaxcnn.models.mobilenet import InvertedResidualNetwork, Stage
from jaxcnn.models.network import Models

# name -> factor of the widths, factor of the numbers of blocks, image size, and dropout
VARIANTS = {
    'efficientnet_lite0': (1.0, 1.0, 224, 0.2),
    'efficientnet_lite1': (1.0, 1.1, 240, 0.2),
    'efficientnet_lite2': (1.1, 1.2, 260, 0.3),
    'efficientnet_lite3': (1.2, 1.4, 280, 0.3),
    'efficientnet_lite4': (1.4, 1.8, 300, 0.3),
}


def _blocks(depth: float) -> tuple[int, ...]:
    """Return the number of blocks in each stage; the first and the last are not scaled."""
    return 1, *(math.ceil(depth * count) for count in (2, 2, 3, 3, 4)), 1


class EfficientNetLite(InvertedResidualNetwork):
    """EfficientNet-Lite: EfficientNet without squeeze-and-excitation, with ReLU6 and a stem and head of fixed width.

    At 1,000 classes `efficientnet_lite0` to `efficientnet_lite4` have 4,652,008, 5,416,680, 6,092,072, 8,197,096 and
    13,006,568 parameters. They were published for images of 224, 240, 260, 280 and 300 pixels, from which 127 was
    subtracted and which were then divided by 128, and take images of any size.

    Padding, BatchNorm's momentum and epsilon, dropout and drop-connect are those of the authors' networks for TensorFlow
    (timm's `tf_efficientnet_lite0` to `4`). timm's `efficientnet_lite0`, which was trained with PyTorch, has
    `padding='symmetric'` and `bn_epsilon=1e-5`.
    """

    STAGES = (Stage(1, 16, 1), Stage(6, 24, 2), Stage(6, 40, 2, 5), Stage(6, 80, 2), Stage(6, 112, 1, 5),
              Stage(6, 192, 2, 5), Stage(6, 320, 1))

    blocks: tuple[int, ...] = _blocks(1.0)
    padding: str = 'same'
    drop_connect: float = 0.2
    bn_momentum: float = 0.99
    bn_epsilon: float = 1e-3

    def published_for(self) -> tuple[tuple[int, int, int], int]:
        """See `Network.published_for`."""
        if self.stem == 'small':
            return super().published_for()
        size = next((size for multiplier, depth, size, _ in VARIANTS.values()
                     if (multiplier, _blocks(depth)) == (self.multiplier, self.blocks)), 224)
        return (size, size, 3), 1000

    def stem_features(self) -> int:
        """See `InvertedResidualNetwork.stem_features`."""
        return 32

    def head_features(self) -> int:
        """See `InvertedResidualNetwork.head_features`."""
        return 1280


MODELS: Models = {
    name: (EfficientNetLite, {'multiplier': multiplier, 'blocks': _blocks(depth), 'dropout': dropout})
    for name, (multiplier, depth, _, dropout) in VARIANTS.items()}
