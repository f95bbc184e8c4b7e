"""Networks and their registry: `create` builds a network by name, `names` lists the names."""

import dataclasses
import math
from typing import Any

from jaxcnn.errors import UserError, unknown
from jaxcnn.models import (
    airbench,
    alexnet,
    googlenet,
    inception,
    leedl,
    lenet,
    mobilenet,
    nin,
    resnet,
    shallow,
    t2t_vit,
    vgg,
)
from jaxcnn.models.layers import Models, Network

__all__ = ['Network', 'create', 'names']

_MODELS: Models = {
    name: variant for family in (
        lenet, shallow, alexnet, vgg, nin, leedl, googlenet, inception, resnet, mobilenet, t2t_vit, airbench)
    for name, variant in family.MODELS.items()}


def names() -> list[str]:
    """Return the names of the registered networks."""
    return sorted(_MODELS)


def create(name: str, num_classes: int = 10, **fields: Any) -> Network:
    """Build a network.

    Args:
      name: one of `names()`.
      num_classes: number of logits.
      **fields: fields of the network's class, which include those of `layers.Network`.

    Raises:
      UserError: The name or a field is unknown, or a field has a value with which no network can be built.
    """
    if name not in _MODELS:
        raise unknown('model', name, names())
    network_class, variant = _MODELS[name]
    defaults = {f.name: f.default for f in dataclasses.fields(network_class) if f.name not in ('parent', 'name')}
    for field, value in {**fields, 'num_classes': num_classes}.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f'model {name}: {field} must be a finite number, got {value!r}')
        if field not in defaults:
            raise unknown(f'field of model {name}', field, defaults)
        if isinstance(defaults[field], tuple) and isinstance(value, list):
            fields[field] = tuple(tuple(item) if isinstance(item, list) else item for item in value)
        elif not _same_type(value, defaults[field]):
            raise UserError(f'model {name}: {field} must be of type {type(defaults[field]).__name__}, got {value!r}')
    network = network_class(num_classes=num_classes, **{**variant, **fields})
    network.check()
    return network


def _same_type(value: Any, default: Any) -> bool:
    """Return whether a field with this default may hold `value`; an integer may stand for a float, a bool for neither."""
    if default is None:
        return True
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    return isinstance(value, (int, float) if isinstance(default, float) else type(default))
