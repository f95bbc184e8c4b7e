"""Matching of a file's names with the layers of a network, and of a network of the zoo with a file's names."""

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jaxcnn import models
from jaxcnn.errors import UserError
from jaxcnn.interop.layout import Pair
from jaxcnn.interop.names import Naming, namings
from jaxcnn.models import Network


@dataclasses.dataclass(frozen=True)
class Match:
    """The naming that fits the names of a file best.

    Attributes:
      naming: the naming.
      prefix: what precedes all names in the file, such as `module.`.
      count: number of layers whose weight the file has.
    """

    naming: Naming
    prefix: str
    count: int


def match_names(network: Network, names: Iterable[str]) -> Match:
    """Return the naming, and the prefix, with which most layers of a network are in a file.

    Args:
      network: the jaxcnn network.
      names: names of the arrays of the file, such as `module.layer1.0.conv1.weight`.

    Raises:
      UserError: No naming is known for the network, or none fits a name of the file.
    """
    candidates = namings(network)
    if not candidates:
        known = sorted(name for name, other in _zoo() if namings(other))
        raise UserError(f'the names of parameters in PyTorch are not known for a {type(network).__name__}',
                        hint=f'they are for {", ".join(known)}; for others see jaxcnn.interop.torch.from_torch')
    layers = {name.removesuffix('.weight') for name in names if name.endswith('.weight')}
    best = max((_best_prefix(naming, layers) for naming in candidates), key=lambda match: match.count)
    if not best.count:
        examples = ', '.join(sorted(layers)[:3]) or 'none'
        raise UserError(f'no layer has a name that {candidates[0].source} have, such as {candidates[0].convs[0]}; the '
                        f"file's layers are {examples}, ...", hint=describe_file(names))
    return best


def _zoo() -> Iterator[tuple[str, Network]]:
    """Yield the name of each registered classifier and the network with its default fields."""
    for name in models.names('logits'):
        with contextlib.suppress(UserError):  # a network may need a field that has no default
            yield name, models.create(name)


def _best_prefix(naming: Naming, layers: set[str]) -> Match:
    first = naming.convs[0]
    prefixes = {'', *(layer.removesuffix(first) for layer in layers if layer.endswith(f'.{first}'))}
    counts = {prefix: sum(prefix + name in layers for name in naming.layers) for prefix in sorted(prefixes, key=len)}
    prefix = max(counts, key=lambda p: counts[p])
    return Match(naming, prefix, counts[prefix])


def find_network(names: Iterable[str]) -> tuple[str, set[str]] | None:
    """Return the network of the zoo that has the names of a file, and the names of its layers; None if none fits."""
    layers = {name.removesuffix('.weight') for name in names if name.endswith('.weight')}
    best_score, best = 0.5, None
    for name, network in _zoo() if layers else ():
        for naming in namings(network):
            match = _best_prefix(naming, layers)
            if (score := match.count / len(layers | set(naming.layers))) > best_score:
                best_score, best = score, (name, {match.prefix + layer for layer in naming.layers})
    return best


def describe_file(names: Iterable[str]) -> str | None:
    """Return advice that says whose names a file has, or None if no network of the zoo has them."""
    network = find_network(names)
    return f"the file's names are those of {network[0]}" if network else None


def check_required(network: Network, naming: Naming) -> None:
    """Raise a UserError if the network computes another function than the networks with these names."""
    different = {field: value for field, value in naming.required.items() if getattr(network, field) != value}
    if different:
        fields = ', '.join(f'{field}={value!r}' for field, value in different.items())
        current = ', '.join(f'{field}={getattr(network, field)!r}' for field in different)
        raise UserError(f'{naming.source} have {fields}, and this network has {current}',
                        hint='set these fields in config.model')


def pair_by_name(naming: Naming, params: Mapping[str, Any], prefix: str = '') -> list[Pair]:
    """Return the pairs of layers of a network and of a file.

    Args:
      naming: the names in the file.
      params: the network's parameters, or their shapes.
      prefix: what precedes all names in the file.

    Raises:
      UserError: The network has other layers, for example because it is of a subclass.
    """
    _check_layers(naming, params)
    return [Pair((path,), prefix + name, naming.flattened.get(name),
                 tuple(params[path]['kernel'].shape) if 'kernel' in params[path] else ())
            for name, path in naming.layer_paths().items()]


def _check_layers(naming: Naming, params: Mapping[str, Any]) -> None:
    """Raise a UserError unless the network has as many numbered layers of each kind as there are names."""
    paths = naming.layer_paths().values()
    missing = [path for path in paths if path not in params]
    if missing:
        raise UserError(f'this network has no {missing[0]}, which {naming.source} have')
    further = [path for path in params if re.fullmatch(r'(Conv|BatchNorm|Dense)_\d+', path) and path not in paths]
    if further:
        raise UserError(f'this network has {further[0]}, which {naming.source} do not have',
                        hint="in a subclass, give further layers names, as in name='extra', and the others keep their "
                        'numbers')
