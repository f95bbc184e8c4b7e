"""Networks and their registry: `create(name, num_classes=..., **fields)`, `names()`."""

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
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f'model {name}: {field} must be a finite number, got {value!r}')
        if field not in known:
            raise unknown(f'field of model {name}', field, known)
        kind = type(known[field])
        if kind is tuple and isinstance(value, list):
            fields[field] = tuple(tuple(part) if isinstance(part, list) else part for part in value)
        elif known[field] is not None and (
                not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool) != (kind is bool)):
            raise UserError(f'model {name}: {field} must be a {kind.__name__}, got {value!r}')
    network = module(num_classes=num_classes, **{**variant, **fields})
    network.check()
    return network
