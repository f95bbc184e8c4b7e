"""Networks and their registry: `create(name, num_classes=..., **fields)`, `names()`."""

import dataclasses
from typing import Any

from jaxcnn.errors import UserError, unknown
from jaxcnn.models.layers import Network
from jaxcnn.models.lenet import LeNet5, LeNetMnist
from jaxcnn.models.mobilenet import MobileNetV1
from jaxcnn.models.resnet import ResNet
from jaxcnn.models.shallow import ShallowCNN
from jaxcnn.models.vgg import VGG, VGG16

__all__ = ['Network', 'create', 'names']

# name -> the module and the fields that make this variant of it
_MODELS: dict[str, tuple[type[Network], dict[str, Any]]] = {
    'lenet5': (LeNet5, {}),
    'lenet_mnist': (LeNetMnist, {}),
    'shallow_cnn': (ShallowCNN, {}),
    'vgg16_bn': (VGG, {'stages': VGG16, 'batch_norm': True}),
    'resnet18': (ResNet, {}),
    'resnet50': (ResNet, {'blocks': (3, 4, 6, 3), 'bottleneck': True}),
    'resnext50_32x4d': (ResNet, {'blocks': (3, 4, 6, 3), 'bottleneck': True, 'groups': 32, 'group_width': 4}),
    'mobilenet_v1': (MobileNetV1, {}),
}


def names() -> list[str]:
    """The registered networks."""
    return sorted(_MODELS)


def create(name: str, num_classes: int = 10, **fields: Any) -> Network:
    """The network of that name.

    Args:
      name: see `names()`.
      num_classes: logits.
      **fields: the network's own fields, and those of `layers.Network`.

    Raises:
      UserError: an unknown name or field, or a value that makes no network.
    """
    if name not in _MODELS:
        raise unknown('model', name, names())
    module, variant = _MODELS[name]
    known = {f.name: f.default for f in dataclasses.fields(module) if f.name not in ('parent', 'name')}
    for field, value in {**fields, 'num_classes': num_classes}.items():
        if field not in known:
            raise unknown(f'field of model {name}', field, known)
        kind = type(known[field])
        if kind is tuple and isinstance(value, list):
            fields[field] = tuple(tuple(part) if isinstance(part, list) else part for part in value)
        elif known[field] is not None and not isinstance(value, (int, float) if kind is float else kind):
            raise UserError(f'model {name}: {field} must be a {kind.__name__}, got {value!r}')
    network = module(num_classes=num_classes, **{**variant, **fields})
    network.check()
    return network
