"""Start training from other weights: those of a run, of a file, or from Python (`config.init`).

`load_initial_weights` reads the weights and matches them by name with the variables of a network. Names are those of the
network, such as `Conv_0/kernel` and `BatchNorm_0/mean`.
"""

import collections
import dataclasses
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import config as cfg
from jaxcnn.errors import UserError, name_field, unknown
from jaxcnn.models import Network
from jaxcnn.optim import path_mask
from jaxcnn.training.state import leaves_by_path
from jaxcnn.training.weight_sources import Source, init_source, parameter_name, read_source
from jaxcnn.training.workdir import read_config, write_json

log = logging.getLogger('jaxcnn')

FILE_NAME = 'init.json'  # in the workdir
_LOGGED = 6  # parameters that a line of the log names


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter or a BatchNorm statistic in the table of what was taken.

    Attributes:
      name: its name in the network, such as `Conv_0/kernel`; for what was not used, its name in the source.
      shape: its shape.
      source: the name in the source of a parameter that was taken.
      reason: why a parameter was not taken.
    """

    name: str
    shape: tuple[int, ...]
    source: str = ''
    reason: str = ''


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """Weights to start from, and the table of what was taken.

    Attributes:
      source: description of the source, for messages.
      checksum: SHA-256 checksum of the file, or of the variables of a run or from Python.
      arrays: the arrays that were taken, by the path of the variable, such as `params/Conv_0/kernel`.
      taken: parameters and statistics that start from these weights.
      left: those that keep the values that are drawn at random.
      unused: arrays of the source that no parameter takes.
    """

    source: str
    checksum: str
    arrays: dict[str, np.ndarray]
    taken: tuple[Parameter, ...]
    left: tuple[Parameter, ...]
    unused: tuple[Parameter, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the table and the checksum as `init.json` holds them."""
        def rows(parameters: Iterable[Parameter]) -> list[dict[str, Any]]:
            return [{key: value for key, value in dataclasses.asdict(p).items() if value or key in ('name', 'shape')}
                    for p in parameters]
        return {'source': self.source, 'checksum': self.checksum, 'taken': rows(self.taken), 'left': rows(self.left),
                'unused': rows(self.unused)}

    def summary(self) -> list[str]:
        """Return the table as a few lines for the log."""
        lines = [f'starting from {self.source}: {len(self.taken)} of {len(self.taken) + len(self.left)} parameters and '
                 'statistics taken']
        if self.left:
            lines.append(f'  left at their initialisation: {_enumerate(self.left)}')
        if self.unused:
            lines.append(f'  not used: {_enumerate(self.unused)}')
        return lines


def _enumerate(parameters: Sequence[Parameter]) -> str:
    items = [f'{p.name} {p.shape}{f" ({p.reason})" if p.reason else ""}' for p in parameters[:_LOGGED]]
    more = len(parameters) - len(items)
    return ', '.join(items) + (f' and {more} more (see {FILE_NAME})' if more else '')


# ---- the config


def with_variables(config: cfg.Config, variables: Mapping[str, Any] | None) -> cfg.Config:
    """Return the config of a run that starts from variables that are passed from Python, if there are any.

    Raises:
      UserError: `config.init` says to start from something else.
    """
    if variables is None:
        return config
    init = config.init or cfg.InitConfig()
    other = next((name for name in cfg.INIT_SOURCES if name != 'variables' and getattr(init, name)), None)
    if other:
        raise UserError(f'got {getattr(init, other)!r}, and variables are passed from Python, too',
                        field=f'config.init.{other}', hint='use one of them')
    return dataclasses.replace(config, init=dataclasses.replace(init, variables=True))


def with_checksum(config: cfg.Config, checksum: str) -> cfg.Config:
    """Return the config with the checksum of the initial weights, as `config.json` records it."""
    if config.init is None:
        return config
    return dataclasses.replace(config, init=dataclasses.replace(config.init, checksum=checksum))


def with_recorded_checksum(config: cfg.Config, workdir: str) -> cfg.Config:
    """Return the config of a run with the checksum that its `config.json` records; unchanged for a run that begins."""
    if config.init is None or not os.path.exists(os.path.join(workdir, 'config.json')):
        return config
    recorded = read_config(workdir).init
    return config if recorded is None else with_checksum(config, recorded.checksum)


def write_table(weights: InitialWeights, workdir: str) -> None:
    """Log a summary of the table of what was taken, and write the table to `init.json` in the workdir."""
    for line in weights.summary():
        log.info('%s', line)
    write_json(os.path.join(workdir, FILE_NAME), weights.to_dict())


# ---- matching


def head_paths(network: Network, image_shape: tuple[int, int, int]) -> set[str]:
    """Return the paths of the variables whose shape depends on the number of classes."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes, other_shapes = (
        leaves_by_path(jax.eval_shape(network.clone(num_classes=count).init, jax.random.key(0), images))
        for count in (network.num_classes, network.num_classes + 1))
    return {path for path, leaf in shapes.items() if leaf.shape != other_shapes[path].shape}


def load_initial_weights(config: cfg.Config, network: Network, shapes: Mapping[str, Any], image_shape: tuple[int, int, int],
                         class_names: Sequence[str] = (), variables: Mapping[str, Any] | None = None) -> InitialWeights:
    """Read the weights that `config.init` names and match them with the variables of a network.

    Args:
      config: config of the run, whose `init` is not None.
      network: network of the run.
      shapes: `{'params': ..., 'batch_stats': ...}` of the network, or their shapes.
      image_shape: (H, W, C) of the images that the network takes.
      class_names: classes of the run's data.
      variables: variables that are passed from Python, for `config.init.variables`.

    Raises:
      UserError: The source is missing, damaged, of another network, or has another checksum than `config.init.checksum`; a
        pattern matches no parameter; a shape outside of the head differs; nothing is taken; or a kernel that is taken is the
        one that `config.whiten` initialises.
    """
    init = config.init
    assert init is not None
    field = init_source(init)
    with name_field(f'config.init.{field}'):
        source = read_source(config, network, shapes, image_shape, class_names, variables)
    if init.checksum and init.checksum != source.checksum:
        raise UserError(f'{source.title} has the checksum {source.checksum}, expected {init.checksum}',
                        field='config.init.checksum', hint='the weights have changed since')
    with name_field(f'config.init.{field}'):
        initial = _match(init, source, leaves_by_path(shapes), head_paths(network, image_shape))
    if config.whiten:
        _check_whitening(config.whiten, initial, shapes['params'])
    return initial


def _check_whitening(whiten: cfg.WhitenConfig, initial: InitialWeights, params: Any) -> None:
    """Raise a UserError if whitening filters would replace a kernel that is taken."""
    is_whitened = leaves_by_path(path_mask(whiten.match, 'config.whiten.match')(params))
    for parameter in initial.taken:
        if is_whitened.get(parameter.name):
            layer = re.escape(parameter.name.rpartition('/')[0])
            raise UserError(f'{parameter.name}, which starts from {initial.source}, also gets whitening filters',
                            field='config.whiten', hint=f"config.init.exclude='^{layer}/' leaves it to config.whiten")


def _match(init: cfg.InitConfig, source: Source, targets: Mapping[str, Any], head: set[str]) -> InitialWeights:
    """Return the weights of a source for the network whose variables are `targets`, by path."""
    names = {path: parameter_name(path) for path in targets}
    included = _matches(init.include, names, 'include', everything=True)
    excluded = _matches(init.exclude, names, 'exclude', everything=False)
    renamed = _rename(init, names)
    taken, left, arrays, missing, mismatched = [], [], {}, [], []
    for path in sorted(targets, key=lambda path: not path.startswith('params/')):  # errors name parameters first
        target = targets[path]
        source_path = renamed.get(path, path)
        array, shape = source.arrays.get(source_path), tuple(target.shape)
        if path not in included or path in excluded:
            left.append(Parameter(names[path], shape, reason='excluded' if path in excluded else 'not included'))
        elif array is None:
            if path in renamed:
                raise unknown('parameter of the source', parameter_name(source_path), map(parameter_name, source.arrays),
                              'config.init.rename')
            if source.optional is not None and path not in source.optional and path not in head:
                missing.append(path)
            left.append(Parameter(names[path], shape, reason='not in the source'))
        elif array.shape == shape:
            arrays[path] = array
            taken.append(Parameter(names[path], shape, source.origins[source_path]))
        elif path in head:
            left.append(Parameter(names[path], shape, reason=f'a head of another size, {array.shape} in the source'))
        else:
            mismatched.append(path)
    if mismatched:
        raise _shape_error(source, targets, mismatched, renamed)
    if missing:
        example = next((path for path in missing if path.endswith('/kernel')), missing[0])
        expected = source.expected.get(example, 'an array')
        raise UserError(f'{source.title} lacks {len(missing)} of the {len(targets)} parameters and statistics of this '
                        f'network, such as {expected} for {names[example]}',
                        hint=f'{source.describe()}; config.init.exclude leaves parameters at their '
                        'initialisation')
    if not taken:
        reasons = collections.Counter(parameter.reason for parameter in left)
        raise UserError(f'matches nothing: none of the {len(targets)} parameters and statistics of this network is taken '
                        f'from {source.title}', hint=', '.join(f'{count} {reason}' for reason, count in reasons.items()))
    used = {renamed.get(path, path) for path in arrays}
    unused = [Parameter(source.origins[path], array.shape) for path, array in source.arrays.items() if path not in used]
    unused += [Parameter(name, shape) for name, shape in source.unused.items()]
    return InitialWeights(source.title, source.checksum, arrays, tuple(taken), tuple(left), tuple(unused))


def _shape_error(source: Source, targets: Mapping[str, Any], paths: Sequence[str],
                 renamed: Mapping[str, str]) -> UserError:
    """Return the error for variables that have another shape in the source; it names a kernel if there is one."""
    path = next((path for path in paths if path.endswith('/kernel')), paths[0])
    source_path, name = renamed.get(path, path), parameter_name(path)
    origin, layer = source.origins[source_path], name.rpartition('/')[0]
    origin = '' if origin == name else f' ({origin})'
    more = f', and {len(paths) - 1} more differ' if len(paths) > 1 else ''
    return UserError(f'{name} has shape {tuple(targets[path].shape)} in this network and {source.arrays[source_path].shape} '
                     f'in {source.title}{origin}{more}', hint=f'{source.describe()}; '
                     f"config.init.exclude='^{re.escape(layer)}/' leaves this layer at its initialisation")


def _matches(pattern: str, names: Mapping[str, str], field: str, everything: bool) -> set[str]:
    """Return the paths whose names a pattern matches; for an empty pattern all paths or none."""
    if not pattern:
        return set(names) if everything else set()
    mask = path_mask(pattern, f'config.init.{field}')(dict.fromkeys(names.values(), 0))
    return {path for path, name in names.items() if mask[name]}


def _rename(init: cfg.InitConfig, names: Mapping[str, str]) -> dict[str, str]:
    """Return the paths in the source of variables that have another name there."""
    renamed: dict[str, str] = {}
    for i, (pattern, replacement) in enumerate(init.rename):
        for path in _matches(pattern, names, f'rename[{i}]', everything=True) - set(renamed):
            collection = path.partition('/')[0]
            try:
                renamed[path] = f'{collection}/{re.sub(pattern, replacement, names[path])}'
            except (re.error, IndexError) as e:
                raise UserError(f'{replacement!r} is no replacement for {pattern!r}: {e}',
                                field=f'config.init.rename[{i}]') from e
    return renamed
