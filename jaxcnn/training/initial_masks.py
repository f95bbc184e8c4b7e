"""The parameters that a run prunes, and the masks of another run that it starts with (`config.pruning.masks`)."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import config as cfg
from jaxcnn.errors import UserError, name_field
from jaxcnn.models import Network
from jaxcnn.optim import path_mask, path_name
from jaxcnn.run import Run, load_run
from jaxcnn.training.initialize import head_paths
from jaxcnn.training.pruning import Pruning, Tree, magnitude_masks
from jaxcnn.training.state import TrainState, init_state, variables

log = logging.getLogger('jaxcnn')


def first_layer(network: Network, image_shape: tuple[int, int, int]) -> str:
    """Return the path of the first layer with a kernel that the images pass."""
    layers = []

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        outputs = call(*args, **kwargs)
        if context.module.scope is not None and context.module.has_variable('params', 'kernel'):
            layers.append('/'.join(context.module.path))
        return outputs
    with nn.intercept_methods(record):
        jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    return layers[0]


def prunable(config: cfg.PruningConfig, network: Network, image_shape: tuple[int, int, int], params: Tree) -> Tree:
    """Return the tree of the parameters that a config prunes.

    Args:
      config: fields `match` and `exclude`.
      network: the network.
      image_shape: (H, W, C) of its images.
      params: its parameters, or their shapes.

    Raises:
      UserError: `match` is no regular expression, or there is no such parameter.
    """
    matches = path_mask(config.match, 'config.pruning.match')(params)
    excluded: set[str] = set()
    if config.exclude in ('first', 'first_and_last'):
        excluded.add(first_layer(network, image_shape))
    if config.exclude in ('last', 'first_and_last'):
        excluded |= {path.partition('/')[2].rpartition('/')[0] for path in head_paths(network, image_shape)}

    def keep(tree: Tree, matches: Tree, layer: str) -> Tree:
        entries: Tree = {}
        for name, x in tree.items():
            path = f'{layer}/{name}' if layer else name
            if isinstance(x, Mapping):
                if inner := keep(dict(x), matches[name], path):
                    entries[name] = inner
            elif matches[name] and layer not in excluded:
                entries[name] = x
        return entries
    selected = keep(params, matches, '')
    if not selected:
        raise UserError(f'{config.match!r} matches only layers that {config.exclude!r} excludes',
                        field='config.pruning.exclude', hint="exclude='none' prunes them, too")
    return selected


def read_pruning(run: Run, step: int) -> Tree:
    """Return the state of pruning of a checkpoint of a run, as host arrays; see `pruning`.

    Args:
      run: a run whose config has `pruning`.
      step: step of the checkpoint.

    Raises:
      UserError: the checkpoint is damaged.
    """
    experiment, config = run.experiment, run.config.pruning
    assert config is not None

    def begin() -> TrainState:
        state = init_state(experiment.network, experiment.optimizer, experiment.image_shape, np.uint32(0), run.config.optim)
        names = prunable(config, experiment.network, experiment.image_shape, state.params)
        masks = jax.tree.map(lambda x: jnp.ones(x.shape, bool), names)
        return Pruning.from_config(config, experiment.timeline, names).begin(state, masks, jax.random.key(0))
    try:
        pruning: Tree = run.checkpoints.read_pruning(step, jax.eval_shape(begin).pruning)
    except ValueError as e:
        raise UserError(f'checkpoint {step} in {run.workdir!r} is damaged: {e}') from e
    return pruning


def read_masks(config: cfg.Config, all_masks: Tree) -> Tree:
    """Return the masks that `config.pruning.masks` stands for, as host arrays.

    Args:
      config: config of the run.
      all_masks: masks of the parameters that the config prunes.

    Raises:
      UserError: there is no such run, it is of another network, or it is not pruned and the config has no sparsity.
    """
    pruning = config.pruning
    assert pruning is not None
    with name_field('config.pruning.masks'):
        run = load_run(os.path.expanduser(pruning.masks))
    with name_field('config.pruning.checkpoint'):
        step = run.find_step(pruning.checkpoint)
    with name_field('config.pruning.masks'):
        if pruning.sparsity is not None:
            params = variables(run.load_weights(step))[run.experiment.best.ema]['params']
            _check_shapes(all_masks, params, run)
            masks = magnitude_masks(params, all_masks, pruning.sparsity, pruning.scope)
        elif run.config.pruning is None:
            raise UserError(f'the run in {run.workdir!r} is not pruned',
                            hint='config.pruning.sparsity computes masks from the magnitudes of its weights')
        else:
            masks = read_pruning(run, step)['masks']
            _check_shapes(masks, all_masks, run)
            masks = _merge(all_masks, masks)
        log.info('masks of %s, checkpoint %d: %d of %d weights remain', run.workdir, step,
                 sum(int(x.sum()) for x in jax.tree.leaves(masks)), sum(x.size for x in jax.tree.leaves(masks)))
    return masks


def _check_shapes(names: Tree, arrays: Tree, run: Run) -> None:
    """Raise a UserError unless all parameters of a tree are in another one with the same shape."""
    shapes = {path_name(path): x.shape for path, x in jax.tree.leaves_with_path(arrays)}
    for path, x in jax.tree.leaves_with_path(names):
        name = path_name(path)
        if shapes.get(name) != x.shape:
            raise UserError(f'the run in {run.workdir!r} is of another network, or prunes other layers: {name} is '
                            f'{shapes.get(name, "not in it")}, expected {x.shape}',
                            hint='config.model, config.pruning.match and config.pruning.exclude must be the same')


def _merge(all_masks: Tree, masks: Tree) -> Tree:
    """Return the masks of all parameters, those that `masks` lacks from `all_masks`."""
    return {name: x if name not in masks else _merge(x, masks[name]) if isinstance(x, dict) else masks[name]
            for name, x in all_masks.items()}
