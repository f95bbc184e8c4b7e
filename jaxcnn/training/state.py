"""The training state: one plain pytree of arrays."""

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.config import OptimConfig
from jaxcnn.loss_scaling import LossScaling
from jaxcnn.models import Network
from jaxcnn.optim import Optimizer, path_name


def run_once() -> dict[str, bool | int | str]:
    """Return compiler options for programs that run once.

    On a CPU they turn optimisations off, because optimising the random numbers of an initialisation takes seconds. On a GPU
    XLA cannot compile without optimisations.
    """
    return {'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else {}


@flax.struct.dataclass
class TrainState:
    """The arrays that a training step changes. A checkpoint holds them under the names of these fields.

    Attributes:
      step: number of updates so far, int32 scalar.
      params: trainable parameters.
      batch_stats: running statistics of BatchNorm; empty if there is none.
      opt_state: tuple of the optimizer states of all stages.
      ema: exponential moving averages of `params` and `batch_stats`, in float32, or None.
      slow: slow parameters and running statistics of look-ahead, or None.
      pruning: masks of pruned parameters and what their method needs, see `pruning.Pruning`, or None.
      loss_terms: trainable parameters of further terms of the loss, by the name of the term, or None.
      loss_scale: state of `loss_scaling.LossScaling`, or None.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    slow: Any = None
    pruning: Any = None
    loss_terms: Any = None
    loss_scale: Any = None


_LOSS_TERMS = 'loss_terms'  # among the parameters that the optimizer gets


def trained(state: TrainState) -> Any:
    """Return all trainable parameters: those of the network and, under `loss_terms`, those of further terms of the loss."""
    return state.params if state.loss_terms is None else {**state.params, _LOSS_TERMS: state.loss_terms}


def split_trained(params: Any) -> tuple[Any, Any]:
    """Return the parameters of the network and those of further terms of the loss, or None; the inverse of `trained`."""
    if _LOSS_TERMS not in params:
        return params, None
    return {name: value for name, value in params.items() if name != _LOSS_TERMS}, params[_LOSS_TERMS]


@flax.struct.dataclass
class Weights:
    """The fields of a `TrainState` that evaluation and prediction need."""

    params: Any
    batch_stats: Any
    ema: Any = None


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """Return the leaves of variables by path, such as `params/Conv_0/kernel`."""
    return {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def init_weights(network: Network, image_shape: tuple[int, ...], seed: Any, ema: bool,
                 transform_params: Callable[[Any], Any] = lambda params: params,
                 arrays: Mapping[str, Any] = types.MappingProxyType({})) -> Weights:
    """Return the weights before the first step. This is a pure function of the seed.

    Args:
      network: takes images (N, *image_shape).
      image_shape: (H, W, C).
      seed: integer scalar.
      ema: whether to return moving averages, which start at the initial weights.
      transform_params: maps the parameters that are drawn at random to the initial ones.
      arrays: arrays by their path in the variables, which replace those that are drawn at random.

    Raises:
      UserError: see `Network.check_output`.
    """
    images = jnp.zeros((1, *image_shape), jnp.float32)
    output, variables = network.init_with_output(jax.random.key(seed), images)
    network.check_output(output)
    variables = replace_arrays(variables, arrays)
    params, batch_stats = transform_params(variables['params']), variables.get('batch_stats', {})
    # in float32, because averages move by less than bfloat16 resolves
    averages = jax.tree.map(lambda x: jnp.array(x, jnp.float32), (params, batch_stats)) if ema else None
    return Weights(params, batch_stats, averages)


def replace_arrays(variables: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return variables with arrays in place of those with the same path, such as `params/Conv_0/kernel`; dtypes stay."""
    def replace(path: Any, leaf: jax.Array) -> jax.Array:
        name = path_name(path)
        return jnp.array(arrays[name], leaf.dtype) if name in arrays else leaf
    return jax.tree_util.tree_map_with_path(replace, dict(variables))


def init_state(network: Network, optimizer: Optimizer, image_shape: tuple[int, ...], seed: Any,
               optim: OptimConfig, transform_params: Callable[[Any], Any] = lambda params: params,
               arrays: Mapping[str, Any] = types.MappingProxyType({}),
               init_terms: Callable[[jax.Array], Any] = lambda key: None,
               loss_scaling: LossScaling | None = None) -> TrainState:
    """Return the state before the first step. This is a pure function of the seed.

    Args:
      network, image_shape, seed, transform_params, arrays: see `init_weights`.
      optimizer: optimizer of the run.
      optim: optimisation fields of the config. Moving averages and slow parameters of look-ahead start at the initial
        weights.
      init_terms: returns the parameters of further terms of the loss, or None, for a random key.
      loss_scaling: how the loss is scaled, or None.
    """
    weights = init_weights(network, image_shape, seed, bool(optim.ema_decay), transform_params, arrays)
    slow = jax.tree.map(jnp.copy, (weights.params, weights.batch_stats)) if optim.lookahead else None
    term_params = init_terms(jax.random.fold_in(jax.random.key(seed), np.uint32(2**32 - 1)))
    state = TrainState(jnp.zeros((), jnp.int32), weights.params, weights.batch_stats, (), weights.ema, slow,
                       loss_terms=term_params, loss_scale=loss_scaling.init() if loss_scaling else None)
    return dataclasses.replace(state, opt_state=optimizer.init(trained(state)))


def variables(state: TrainState | Weights) -> dict[bool, dict[str, Any]]:
    """Return the variables that are evaluated, by whether they are moving averages.

    The key False gives parameters and BatchNorm statistics, the key True their moving averages if the run has them.
    """
    variables_by_ema = {False: {'params': state.params, 'batch_stats': state.batch_stats}}
    if state.ema is not None:
        variables_by_ema[True] = dict(zip(('params', 'batch_stats'), state.ema, strict=True))
    return variables_by_ema
