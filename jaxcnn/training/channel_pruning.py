"""Remove the least important channels of the network of a run, which becomes narrower (`config.init.channels`).

`analysis/channels.py` says which channels are removed together, as units. Here, each unit gets a score from the weights, and
those with the lowest scores are removed until the network has the target's cost.
"""

import bisect
import collections
import dataclasses
import functools
import itertools
import logging
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jaxcnn import config as cfg
from jaxcnn.errors import UserError, name_field
from jaxcnn.run import Run, load_run
from jaxcnn.training import state
from jaxcnn.training.state import leaves_by_path
from jaxcnn.training.workdir import has_result, read_config

log = logging.getLogger('jaxcnn')
_BATCH_SIZE = 64  # of the gradients; each batch gives one estimate
_LOGGED = 4  # layers that a message names


@dataclasses.dataclass(frozen=True)
class Narrowing:
    """The channels that are removed from a network.

    Attributes:
      coupling: the units of the network, an `analysis.channels.Coupling`.
      scores: importance of each unit (units,); NaN for units that the method cannot score, which stay.
      removed: whether a unit is removed (units,).
    """

    coupling: Any
    scores: np.ndarray
    removed: np.ndarray

    @property
    def num_removed(self) -> int:
        """Number of channels that are removed; those that layers share count once."""
        return int(self.removed.sum())

    @property
    def layer_widths(self) -> dict[str, int]:
        """The features of each layer of the narrower network, for `Network.layer_widths`."""
        widths: dict[str, int] = self.coupling.widths(self.removed)
        return widths

    def narrow(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Return variables of the network without the removed channels."""
        narrow: dict[str, Any] = self.coupling.narrow(variables, self.removed)
        return narrow


def with_layer_widths(config: cfg.Config, workdir: str) -> cfg.Config:
    """Return the config of a run with the widths of the run that it starts from, without the channels that it removes.

    A run that goes on has those that its `config.json` records. Widths that `config.model` sets are not changed.

    Raises:
      UserError: The run cannot be loaded or narrowed, or is of another network.
    """
    init = config.init
    if init is None or not init.run or 'layer_widths' in config.model.args:
        return config
    if has_result(workdir) and os.path.exists(os.path.join(workdir, 'config.json')):
        widths = read_config(workdir).model.args.get('layer_widths')
    else:
        with name_field('config.init.run'):
            run = load_run(os.path.expanduser(init.run))
        if init.channels:
            widths = narrowing_of(run, config).layer_widths
        else:
            widths = run.config.model.args.get('layer_widths') if run.config.model.name == config.model.name else None
            if widths:
                log.info('the network has the features of the run in %s', init.run)
    if not widths:
        return config
    model = dataclasses.replace(config.model, args={**config.model.args, 'layer_widths': dict(widths)})
    return dataclasses.replace(config, model=model)


def narrowing_of(run: Run, config: cfg.Config) -> Narrowing:
    """Return the channels that `config.init.channels` removes from the run that `config.init.run` names.

    Raises:
      UserError: The run is of another network, or cannot be narrowed.
    """
    init = config.init
    assert init is not None
    assert init.channels is not None
    if run.config.model.name != config.model.name:
        name = run.config.model.name
        raise UserError(f'narrows the network {name} of the run in {init.run!r}, and config.model is {config.model.name}',
                        field='config.init.channels', hint=f'set config.model={name}')
    with name_field('config.init.checkpoint'):
        step = run.find_step(init.checkpoint)
    ema = run.experiment.best.ema if init.ema is None else init.ema
    data_dir = config.data.dir if config.data.name == run.config.data.name else ''
    with name_field('config.init.channels'):
        return narrow_run(os.path.abspath(run.workdir), step, ema, init.channels, data_dir)


@functools.lru_cache(maxsize=4)
def narrow_run(workdir: str, step: int, ema: bool, config: cfg.ChannelsConfig, data_dir: str = '') -> Narrowing:
    """Return the channels that are removed from the network of a run.

    Args:
      workdir: workdir of the run.
      step: its checkpoint.
      ema: whether the moving averages are narrowed.
      config: method and target.
      data_dir: another `config.data.dir` than in training, for the method `taylor`.

    Raises:
      UserError: The network cannot be narrowed, or not to the target.
    """
    from jaxcnn.analysis.channels import couple
    run = load_run(workdir)
    network, image_shape = run.experiment.network, run.experiment.image_shape
    if network.outputs != 'logits':
        raise UserError(f'the network {run.config.model.name} is a detector, and channels are removed from classifiers only')
    if run.config.quantization:
        raise UserError(f'the run in {workdir!r} was trained with config.quantization, and its ranges are for all channels',
                        hint='remove channels from a run in float32, and train the narrower network with quantisation')
    variables = state.variables(run.load_weights(step))[ema]
    coupling = couple(network, variables, image_shape)
    _log_reasons(run, coupling)
    scores = SCORES[config.method](run, variables, coupling, config, data_dir)
    removed = select(coupling, variables, scores, config)
    narrowing = Narrowing(coupling, scores, removed)
    _check_shapes(run, narrowing, variables)
    return narrowing


def _log_reasons(run: Run, coupling: Any) -> None:
    by_reason: dict[str, list[str]] = {}
    for layer, reason in coupling.reasons.items():
        by_reason.setdefault(reason, []).append(layer)
    for reason, layers in by_reason.items():
        names = ', '.join(layers[:_LOGGED]) + (f' and {len(layers) - _LOGGED} more' if len(layers) > _LOGGED else '')
        log.info('all features of %s stay: %s', names, reason)
    if not coupling.num_units:
        raise UserError(f'no channel of the network {run.config.model.name} can be removed: '
                        f'{"; ".join(by_reason) or "it has no layers"}')


def _check_shapes(run: Run, narrowing: Narrowing, variables: Any) -> None:
    """Raise a UserError unless the network with the new widths has the shapes of the narrowed variables."""
    network = run.experiment.network.clone(layer_widths=narrowing.layer_widths)
    images = jax.ShapeDtypeStruct((1, *run.experiment.image_shape), np.float32)
    expected = jax.tree.map(lambda x: x.shape, dict(narrowing.narrow(variables)))
    try:
        shapes = jax.tree.map(lambda x: x.shape, jax.eval_shape(network.init, jax.random.key(0), images))
        fits = {**{'batch_stats': {}}, **shapes} == {**{'batch_stats': {}}, **expected}
        reason = 'its layers do not follow the number of channels of their inputs'
    except (TypeError, ValueError) as e:
        fits, reason = False, ' '.join(str(e).split())[:200]
    if not fits:
        raise UserError(f'the network {run.config.model.name} has fixed shapes, so no channels can be removed: {reason}')


# ---- importance


def _sums(coupling: Any, values: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of the values that belong to each unit, and their number, (units,) each.

    Args:
      coupling: the units.
      values: by the path of a variable, a value for each element of its last axis.
    """
    sums, counts = np.zeros(coupling.num_units), np.zeros(coupling.num_units)
    for path, array in values.items():
        if path in coupling.features:
            units = coupling.features[path]
            is_member = units >= 0
            sums += np.bincount(units[is_member], np.asarray(array, float)[is_member], coupling.num_units)
            counts += np.bincount(units[is_member], minlength=coupling.num_units)
    return sums, counts


def _means(coupling: Any, values: Mapping[str, np.ndarray]) -> np.ndarray:
    sums, counts = _sums(coupling, values)
    return np.divide(sums, counts, out=np.full(coupling.num_units, np.nan), where=counts > 0)


def _over_last_axis(arrays: np.ndarray) -> np.ndarray:
    """Return the sums of an array (..., features) for each feature."""
    return arrays.reshape(-1, arrays.shape[-1]).sum(0)


def _batch_norm_paths(leaves: Mapping[str, Any]) -> list[str]:
    """Return the paths of the scales and biases of BatchNorm layers."""
    return [f'params/{name}/{leaf}' for path in leaves if path.startswith('batch_stats/') and path.endswith('/var')
            for name in [path.removeprefix('batch_stats/').removesuffix('/var')] for leaf in ('scale', 'bias')
            if f'params/{name}/{leaf}' in leaves]


def _bn_scale(run: Run, variables: Any, coupling: Any, config: cfg.ChannelsConfig, data_dir: str) -> np.ndarray:
    """Return the mean magnitude of the BatchNorm scales of each unit (Liu et al. 2017, "Learning efficient convolutional
    networks through network slimming")."""
    leaves = leaves_by_path(variables)
    scales = {path: np.abs(leaves[path]) for path in _batch_norm_paths(leaves) if path.endswith('/scale')}
    return _means(coupling, scales)


def _l1(run: Run, variables: Any, coupling: Any, config: cfg.ChannelsConfig, data_dir: str) -> np.ndarray:
    """Return the L1 norm of the filters of each unit, divided by the mean of the layer, as a mean over its layers (Li et al.
    2017, "Pruning filters for efficient ConvNets")."""
    leaves = leaves_by_path(variables)
    norms = {path: _over_last_axis(np.abs(leaves[path]))
             for path in (f'params/{layer}/kernel' for layer in coupling.layers)}
    return _means(coupling, {path: norm / (norm.mean() or 1) for path, norm in norms.items()})


def _taylor(run: Run, variables: Any, coupling: Any, config: cfg.ChannelsConfig, data_dir: str) -> np.ndarray:
    """Return the squared first-order change of the loss without each unit, as a mean over batches of training images.

    It is divided by the mean of the units of the same layers.

    The change is the sum of parameter times gradient over the scales and biases of BatchNorm, or, for units without
    BatchNorm, over kernels and biases (Molchanov et al. 2019, "Importance estimation for neural network pruning"). The paper
    compares layers without the division, and removes few channels at a time with training in between. All at once, the
    layers with the smallest gradients would lose almost all of their channels.
    """
    experiment = run.experiment
    task, preprocessor, network = experiment.task, experiment.preprocessor, experiment.network
    train = run.load_dataset(data_dir).splits['train']
    positions = np.sort(np.random.default_rng(run.config.seed).permutation(len(train))[:config.images])
    batches = np.array_split(positions, max(1, len(positions) // _BATCH_SIZE))

    @jax.jit
    def changes(params: Any, images: jax.Array, targets: dict[str, jax.Array]) -> Any:
        def loss(params: Any) -> jax.Array:
            examples = preprocessor.move_targets({'image': images, **targets}, task)
            moved = {name: value for name, value in examples.items() if name != 'image'}
            outputs: Any = network.apply({**variables, 'params': params}, preprocessor(images), train=False,
                                    **task.network_arguments(moved, train=False))
            return task.example_losses(outputs, moved).mean()
        return jax.tree.map(lambda p, g: (p * g).reshape(-1, p.shape[-1]).sum(0), params, jax.grad(loss)(params))

    leaves = leaves_by_path(variables)
    norms = _batch_norm_paths(leaves)
    has_norm = _sums(coupling, {path: leaves[path] for path in norms})[1] > 0
    kernels = [f'params/{layer}/{name}' for layer in coupling.layers for name in ('kernel', 'bias')]
    total = np.zeros(coupling.num_units)
    for batch in batches:
        targets = {name: values[batch] for name, values in train.targets.items()}
        by_path = leaves_by_path({'params': jax.device_get(changes(variables['params'], train.take(batch), targets))})
        by_norms, by_kernels = (_sums(coupling, {path: by_path[path] for path in paths if path in by_path})[0]
                                for paths in (norms, kernels))
        total += np.where(has_norm, by_norms, by_kernels) ** 2
    for units in _groups(_keys_by_unit(coupling), range(coupling.num_units)).values():
        total[units] /= total[units].mean() or 1
    return total


SCORES: dict[str, Callable[..., np.ndarray]] = {'bn_scale': _bn_scale, 'l1': _l1, 'taylor': _taylor}


# ---- the selection


def select(coupling: Any, variables: Any, scores: np.ndarray, config: cfg.ChannelsConfig) -> np.ndarray:
    """Return which units are removed (units,): those with the lowest scores, as few as reach the target.

    Units that belong to the same layers are removed in blocks of `multiple_of` channels.

    Args:
      coupling: the units of the network.
      variables: its variables.
      scores: importance of each unit; NaN for units that stay.
      config: the target and the limits.

    Raises:
      UserError: No unit has a score, or the limits do not allow the target.
    """
    if np.isnan(scores).all():
        raise UserError(f'the method {config.method!r} needs BatchNorm with scales, and the network has none that a channel '
                        'could lose', hint='use l1 or taylor')
    measure = _quantity(coupling, variables, config.quantity)
    remaining = {key: len(units) for key, units in coupling.axes.items()}
    smallest = {key: math.ceil(config.min_remaining * len(units)) for key, units in coupling.axes.items()
                if key[0].endswith('/kernel') and units is coupling.features.get(key[0])}
    keys_by_unit = _keys_by_unit(coupling)
    removable: list[list[int]] = []
    for block in _blocks(keys_by_unit, smallest, scores, config.multiple_of):
        lost = collections.Counter(key for unit in block for key in keys_by_unit[unit])
        if all(remaining[key] - count >= max(1, smallest.get(key, 1)) for key, count in lost.items()):
            remaining.update({key: remaining[key] - count for key, count in lost.items()})
            removable.append(block)

    def removed(count: int) -> np.ndarray:
        mask = np.zeros(coupling.num_units, bool)
        mask[[unit for block in removable[:count] for unit in block]] = True
        return mask
    total, least = measure(removed(0)), measure(removed(len(removable)))
    if least > config.target * total:
        raise UserError(f'{config.target:g} of the {config.quantity.replace("_", "-")} cannot be reached: '
                        f'{math.ceil(1000 * least / total) / 1000} remain if each layer keeps {config.min_remaining:g} of '
                        'its features', hint='set a larger target or a smaller min_remaining')
    count = bisect.bisect_left(range(len(removable)), True, key=lambda n: measure(removed(n)) <= config.target * total)
    return removed(count)


Key = tuple[str, int]  # path of a variable, and one of its axes


def _keys_by_unit(coupling: Any) -> list[list[Key]]:
    """Return the axes that each unit has elements of, as often as it has elements of them."""
    keys: list[list[Key]] = [[] for _ in range(coupling.num_units)]
    for key, units in coupling.axes.items():
        for unit in units[units >= 0]:
            keys[unit].append(key)
    return keys


def _groups(keys_by_unit: list[list[Key]], units: Iterable[int]) -> dict[tuple[Key, ...], list[int]]:
    """Return the units that belong to the same axes, in their order, by these axes."""
    groups: dict[tuple[Key, ...], list[int]] = {}
    for unit in units:
        groups.setdefault(tuple(keys_by_unit[unit]), []).append(unit)
    return groups


def _blocks(keys_by_unit: list[list[Key]], features: Collection[Key], scores: np.ndarray, multiple: int) -> list[list[int]]:
    """Return blocks of units of the same layers, by increasing mean score.

    With a block removed after the ones before it, the number of channels of its layers is a multiple of `multiple`.

    Args:
      keys_by_unit: see `_keys_by_unit`.
      features: the axes of features of layers.
      scores: importance of each unit; those with NaN are left out.
      multiple: see above.
    """
    blocks = []
    for keys, units in _groups(keys_by_unit, np.argsort(scores, kind='stable').tolist()).items():
        channels = max((keys.count(key) for key in set(keys) if key in features), default=1)
        size = multiple // math.gcd(multiple, channels)
        first = len(units) % size or size
        bounds = [0, *range(first, len(units) + 1, size)]
        blocks += [units[start:stop] for start, stop in itertools.pairwise(bounds)]
    means = [scores[block].mean() for block in blocks]
    return [blocks[i] for i in np.argsort(means, kind='stable') if not np.isnan(means[i])]


def _quantity(coupling: Any, variables: Any, name: str) -> Callable[[np.ndarray], float]:
    """Return the function that measures a network, given which units are removed."""
    if name == 'multiply_adds':
        measure: Callable[[np.ndarray], float] = coupling.multiply_adds
        return measure
    if name == 'channels':
        return lambda removed: sum(coupling.widths(removed).values())
    shapes = {path: np.shape(leaf) for path, leaf in leaves_by_path(variables).items()
              if path.startswith('params/') and path in coupling.evaluated}

    def parameters(removed: np.ndarray) -> float:
        stays = np.append(~removed, True)
        return sum(math.prod(int(stays[coupling.axes[path, axis]].sum()) if (path, axis) in coupling.axes else size
                             for axis, size in enumerate(shape)) for path, shape in shapes.items())
    return parameters
