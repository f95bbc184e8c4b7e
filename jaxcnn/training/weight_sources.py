"""The weights that training can start from: those of a run, of a file, or from Python.

`read_source` reads them as arrays in the layout of a network, and `initialize.load_initial_weights` matches these with its
variables.
"""

import dataclasses
import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import config as cfg
from jaxcnn.errors import UserError, name_field
from jaxcnn.files import file_checksum
from jaxcnn.interop import pretrained, weights
from jaxcnn.models import Network
from jaxcnn.run import load_run
from jaxcnn.training import channel_pruning, state
from jaxcnn.training.state import leaves_by_path

log = logging.getLogger('jaxcnn')

_COLLECTIONS = ('params', 'batch_stats')


@dataclasses.dataclass
class Source:
    """Arrays in the layout of a network.

    Attributes:
      title: description of the source, for messages.
      checksum: see `initialize.InitialWeights`.
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

    def in_part(self, part: str, targets: Iterable[str]) -> 'Source':
        """Return the arrays as those of a part of a network.

        Args:
          part: name of the part, such as `backbone`.
          targets: paths of the network's variables; the source may lack those of other parts.
        """
        def moved(path: str) -> str:
            collection, _, name = path.partition('/')
            return f'{collection}/{part}/{name}'
        others = {path for path in targets if not parameter_name(path).startswith(f'{part}/')}
        return dataclasses.replace(
            self, arrays={moved(path): array for path, array in self.arrays.items()},
            origins={moved(path): name for path, name in self.origins.items()},
            optional=None if self.optional is None else frozenset(others | {moved(path) for path in self.optional}),
            expected={moved(path): name for path, name in self.expected.items()})


def parameter_name(path: str) -> str:
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
    for path, leaf in sorted(leaves_by_path({name: variables.get(name, {}) for name in _COLLECTIONS}).items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f'{path}{array.dtype}{array.shape}'.encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _file_checksum(path: str) -> str:
    try:
        return file_checksum(path)
    except OSError as e:
        raise UserError(e.strerror or str(e), field=path) from e


def _from_variables(variables: Any, title: str) -> Source:
    digest = checksum(variables)
    variables = {name: variables[name] for name in _COLLECTIONS if name in variables}
    arrays = {path: np.asarray(leaf) for path, leaf in leaves_by_path(variables).items()}
    return Source(title, digest, arrays, {path: parameter_name(path) for path in arrays})


def _from_run(config: cfg.Config, init: cfg.InitConfig, class_names: Sequence[str]) -> Source:
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
            if not (init.channels and change.field == 'config.model.layer_widths'):
                log.warning('the network of the run in %s has another field: %s', init.run, change)
    names = list(run.info['class_names'])
    if len(names) == len(class_names) and names != list(class_names):
        log.warning('the run in %s has as many, but other classes: its head is taken, too, unless config.init.exclude '
                    'matches it', init.run)
    variables, title = variables_by_ema[ema], f'{init.run}, checkpoint {step}{", moving averages" if ema else ""}'
    if init.channels:
        narrowing = channel_pruning.narrowing_of(run, config)
        variables, title = narrowing.narrow(variables), f'{title}, without {narrowing.num_removed} channels'
    return _from_variables(variables, title)


def _from_file(init: cfg.InitConfig, network: Network, shapes: Mapping[str, Any],
               image_shape: tuple[int, int, int]) -> Source:
    part, classifier = network.classifier_part()
    if part:
        # The images may be smaller than the classifier takes, because R-CNN enlarges their regions. Their size only changes
        # the shape of a dense layer, which is compared when the arrays are matched.
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
    return Source(title, _file_checksum(path), named.arrays, named.origins, named.unused, named.optional, named.expected,
                  tuple(tensors))


def init_source(init: cfg.InitConfig) -> str:
    """Return the name of the field of `config.init` that says from where the weights come."""
    return next(name for name in cfg.INIT_SOURCES if getattr(init, name))


def read_source(config: cfg.Config, network: Network, shapes: Mapping[str, Any], image_shape: tuple[int, int, int],
                class_names: Sequence[str], variables: Mapping[str, Any] | None) -> Source:
    """Read the weights that `config.init` names; for the arguments and errors see `initialize.load_initial_weights`."""
    init = config.init
    assert init is not None
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
    if part and not any(parameter_name(path).startswith(f'{part}/') for path in source.arrays):
        source = source.in_part(part, leaves_by_path(shapes))
    return source
