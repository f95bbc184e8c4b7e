"""The registry of networks: `create` builds a network by name."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from flax.core import FrozenDict

from jaxcnn.errors import UserError, unknown
from jaxcnn.models.network import Models, Network
from jaxcnn.registry import Registry

_MODELS: Registry[tuple[type[Network], dict[str, Any]]] = Registry('model')


def add_family(family: Models) -> None:
    """Make the networks of a family known by their names."""
    for name, (network_class, fields) in family.items():
        _MODELS.add(name, (network_class, fields), network_class)


def register(network_class: Any = None, *, name: str | None = None, **fields: Any) -> Any:
    """Make a network known to `config.model`, as a decorator of its class.

        @register
        class MyNet(Network): ...

        @register(name='my_net_wide', width=128)
        class MyNet(Network): ...

    Args:
      network_class: a subclass of `Network`.
      name: its name in configs; that of the class by default.
      **fields: values of its fields that differ from their defaults. A config may set others.

    Raises:
      UserError: The class is no subclass of `Network`, lacks a field, or the name is taken.
    """
    def add(network_class: Any) -> Any:
        if not (isinstance(network_class, type) and issubclass(network_class, Network)):
            raise UserError(f'register_model: expected a subclass of jaxcnn.Network, got {network_class!r}')
        known = [f.name for f in dataclasses.fields(network_class)]
        for field in fields:
            if field not in known:
                raise unknown(f'field of model {network_class.__name__}', field, known)
        _MODELS.add(name or network_class.__name__, (network_class, fields), network_class)
        return network_class
    return add if network_class is None else add(network_class)


def names(outputs: str = '') -> list[str]:
    """Return the names of the registered networks, or of those with such `Network.outputs`."""
    return [name for name in _MODELS.names() if outputs in ('', _MODELS.get(name)[0].outputs)]


def create(name: str, num_classes: int = 10, **fields: Any) -> Network:
    """Build a network.

    Args:
      name: one of `names()`.
      num_classes: number of logits.
      **fields: fields of the network's class, which include those of `network.Network`.

    Raises:
      UserError: The name or a field is unknown, or a field has a value with which no network can be built.
    """
    network_class, variant = _MODELS.get(name)
    defaults = {f.name: f.default for f in dataclasses.fields(network_class) if f.name not in ('parent', 'name')}
    for field, value in {**fields, 'num_classes': num_classes}.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f'model {name}: {field} must be a finite number, got {value!r}')
        if field not in defaults:
            raise unknown(f'field of model {name}', field, defaults)
        if isinstance(defaults[field], tuple) and isinstance(value, list):
            fields[field] = tuple(tuple(item) if isinstance(item, list) else item for item in value)
        elif isinstance(defaults[field], Mapping) and isinstance(value, Mapping):
            fields[field] = FrozenDict(value)
        elif not _same_type(value, defaults[field]):
            raise UserError(f'model {name}: {field} must be of type {type(defaults[field]).__name__}, got {value!r}')
    network = network_class(num_classes=num_classes, **{**variant, **fields}, parent=None)
    network.check()
    return network


def _same_type(value: Any, default: Any) -> bool:
    """Return whether a field with this default may hold `value`; an integer may stand for a float, a bool for neither."""
    if default is None:
        return True
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    return isinstance(value, (int, float) if isinstance(default, float) else type(default))
