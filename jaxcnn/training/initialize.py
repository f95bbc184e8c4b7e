"""Start training from other weights: those of a run, of a file, or from Python (`config.init`).

`load_initial_weights` reads the weights and matches them by name with the variables of a network. Names are those of the
network, such as `Conv_0/kernel` and `BatchNorm_0/mean`.
"""

import collections
import dataclasses
import hashlib
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
from jaxcnn.interop import pretrained, weights
from jaxcnn.models import Network
from jaxcnn.optim import path_mask, path_name
from jaxcnn.run import load_run
from jaxcnn.training import state
from jaxcnn.training.workdir import read_config, write_json

log = logging.getLogger('jaxcnn')

FILE_NAME = 'init.json'  # in the workdir
_COLLECTIONS = ('params', 'batch_stats')
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


# ---- sources


@dataclasses.dataclass
class _Source:
    """Arrays in the layout of a network.

    Attributes:
      title: description of the source, for messages.
      checksum: see `InitialWeights`.
      arrays: the arrays by path, such as `params/Conv_0/kernel`.
      origins: the name in the source of each array.
      unused: shapes of arrays that belong to no layer of the network, by name.
      optional: paths that the source may lack; None if it may lack any.
      expected: names that variables would have in the source, by path.
      names: names of all arrays of a file, from which an error tells the network that it is of.
    """

    title: str
    checksum: str
    arrays: dict[str, np.ndarray]
    origins: dict[str, str]
    unused: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    optional: frozenset[str] | None = None
    expected: dict[str, str] = dataclasses.field(default_factory=dict)
    names: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return advice for a source that does not fit the network."""
        return weights.describe_file(self.names) or 'it may be of another network'


    def in_part(self, part: str, targets: Iterable[str]) -> '_Source':
        """Return the arrays as those of a part of a network.

        Args:
          part: name of the part, such as `backbone`.
          targets: paths of the network's variables; the source may lack those of other parts.
        """
        def moved(path: str) -> str:
            collection, _, name = path.partition('/')
            return f'{collection}/{part}/{name}'
        others = {path for path in targets if not _name(path).startswith(f'{part}/')}
        return dataclasses.replace(
            self, arrays={moved(path): array for path, array in self.arrays.items()},
            origins={moved(path): name for path, name in self.origins.items()},
            optional=None if self.optional is None else frozenset(others | {moved(path) for path in self.optional}),
            expected={moved(path): name for path, name in self.expected.items()})


def _flatten(tree: Any) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _name(path: str) -> str:
    """Return a parameter's name, as configs write it, from its path, which begins with the collection."""
    return path.partition('/')[2]


def checksum(variables: Any) -> str:
    """Return the SHA-256 checksum of the names, shapes, types and values of the variables of a network.

    Raises:
      UserError: they are no variables, but for example parameters alone.
    """
    if not isinstance(variables, Mapping) or 'params' not in variables:
        raise UserError("expected variables of a network, a dict with 'params' and, with BatchNorm, 'batch_stats'; got "
                        f'{f"the keys {list(variables)}" if isinstance(variables, Mapping) else type(variables).__name__}')
    digest = hashlib.sha256()
    for path, leaf in sorted(_flatten({name: variables.get(name, {}) for name in _COLLECTIONS}).items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f'{path}{array.dtype}{array.shape}'.encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _file_checksum(path: str) -> str:
    try:
        with open(path, 'rb') as file:
            return hashlib.file_digest(file, 'sha256').hexdigest()
    except OSError as e:
        raise UserError(e.strerror or str(e), field=path) from e


def _from_variables(variables: Any, title: str) -> _Source:
    digest = checksum(variables)
    variables = {name: variables[name] for name in _COLLECTIONS if name in variables}
    arrays = {path: np.asarray(leaf) for path, leaf in _flatten(variables).items()}
    return _Source(title, digest, arrays, {path: _name(path) for path in arrays})


def _from_run(config: cfg.Config, init: cfg.InitConfig, class_names: Sequence[str]) -> _Source:
    with name_field('config.init.run'):
        run = load_run(os.path.expanduser(init.run))
    with name_field('config.init.checkpoint'):
        step = run.find_step(init.checkpoint)
        variables_by_ema = state.variables(run.load_weights(step))
    ema = run.experiment.best.ema if init.ema is None else init.ema
    if ema not in variables_by_ema:
        raise UserError(f'the run in {init.run!r} has no moving averages', field='config.init.ema')
    if run.config.model.name == config.model.name:
        for change in cfg.differences(run.config.model, config.model, field='config.model'):
            log.warning('the network of the run in %s has another field: %s', init.run, change)
    names = list(run.info['class_names'])
    if len(names) == len(class_names) and names != list(class_names):
        log.warning('the run in %s has as many, but other classes: its head is taken, too, unless config.init.exclude '
                    'matches it', init.run)
    return _from_variables(variables_by_ema[ema], f'{init.run}, checkpoint {step}{", moving averages" if ema else ""}')


def _from_file(init: cfg.InitConfig, network: Network, shapes: Mapping[str, Any],
               image_shape: tuple[int, int, int]) -> _Source:
    part, classifier = network.classifier_part()
    if part:
        # The images may be smaller than the classifier takes, because R-CNN enlarges their regions. Their size only changes
        # the shape of a dense layer, which `_match` checks.
        (height, width, _), _ = classifier.published_for()
        images = jax.ShapeDtypeStruct((1, height, width, image_shape[2]), jnp.float32)
        shapes = {'batch_stats': {}, **jax.eval_shape(classifier.init, jax.random.key(0), images)}
    path = pretrained.find_file(init.pretrained) if init.pretrained else os.path.expanduser(init.torch or init.safetensors)
    tensors = weights.read_safetensors(path) if init.safetensors else weights.read_torch(path, init.ema)
    named = weights.arrange(classifier, tensors, shapes)
    if named.surplus and not init.include:
        error = weights.surplus_error(named, tensors)
        error.add_hint("config.init.include='.' takes what fits")
        raise error
    title = f'the pretrained weights {os.path.basename(path)}' if init.pretrained else path
    return _Source(title, _file_checksum(path), named.arrays, named.origins, named.unused, named.optional, named.expected,
                   tuple(tensors))


def _head_paths(network: Network, image_shape: tuple[int, int, int]) -> set[str]:
    """Return the paths of the variables whose shape depends on the number of classes."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes, other_shapes = (
        _flatten(jax.eval_shape(network.clone(num_classes=network.num_classes + extra).init, jax.random.key(0), images))
        for extra in (0, 1))
    return {path for path, leaf in shapes.items() if leaf.shape != other_shapes[path].shape}


# ---- matching


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
    field = next(name for name in cfg.INIT_SOURCES if getattr(init, name))
    with name_field(f'config.init.{field}'):
        if init.pretrained and 'standardize(' not in config.data.normalize:
            log.warning('config.data.normalize is %r, but the pretrained weights %s were trained with %r',
                        config.data.normalize, init.pretrained, pretrained.find(init.pretrained).normalize)
        if init.run:
            source = _from_run(config, init, class_names)
        elif not init.variables:
            source = _from_file(init, network, shapes, image_shape)
        elif variables is None:
            raise UserError('the run started from variables of Python',
                            hint='pass them again: train(..., initial_variables=...)')
        else:
            source = _from_variables(variables, 'variables passed from Python')
    part, _ = network.classifier_part()
    if part and not any(_name(path).startswith(f'{part}/') for path in source.arrays):
        source = source.in_part(part, _flatten(shapes))
    if init.checksum and init.checksum != source.checksum:
        raise UserError(f'{source.title} has the checksum {source.checksum}, expected {init.checksum}',
                        field='config.init.checksum', hint='the weights have changed since')
    with name_field(f'config.init.{field}'):
        initial = _match(init, source, _flatten(shapes), _head_paths(network, image_shape))
    if config.whiten:
        _check_whitening(config.whiten, initial, shapes['params'])
    return initial


def _check_whitening(whiten: cfg.WhitenConfig, initial: InitialWeights, params: Any) -> None:
    """Raise a UserError if whitening filters would replace a kernel that is taken."""
    is_whitened = _flatten(path_mask(whiten.match, 'config.whiten.match')(params))
    for parameter in initial.taken:
        if is_whitened.get(parameter.name):
            layer = re.escape(parameter.name.rpartition('/')[0])
            raise UserError(f'{parameter.name}, which starts from {initial.source}, also gets whitening filters',
                            field='config.whiten', hint=f"config.init.exclude='^{layer}/' leaves it to config.whiten")


def _match(init: cfg.InitConfig, source: _Source, targets: Mapping[str, Any], head: set[str]) -> InitialWeights:
    """Return the weights of a source for the network whose variables are `targets`, by path."""
    names = {path: _name(path) for path in targets}
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
                raise unknown('parameter of the source', _name(source_path), map(_name, source.arrays),
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


def _shape_error(source: _Source, targets: Mapping[str, Any], paths: Sequence[str],
                 renamed: Mapping[str, str]) -> UserError:
    """Return the error for variables that have another shape in the source; it names a kernel if there is one."""
    path = next((path for path in paths if path.endswith('/kernel')), paths[0])
    source_path, name = renamed.get(path, path), _name(path)
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
