"""What training changes: one plain pytree."""

from collections.abc import Callable
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.config import OptimConfig
from jaxcnn.errors import UserError
from jaxcnn.optim import Optimizer


def run_once() -> dict[str, bool | int | str]:
    """Compiler options of programs that run once: optimising the random numbers of an initialisation takes seconds on a CPU.
    For a GPU XLA has optimised programs alone."""
    return {'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else {}


@flax.struct.dataclass
class TrainState:
    """All that a run has to remember between two steps; Orbax saves and restores it whole.

    Attributes:
      step: updates done, int32 scalar.
      params: trainable parameters.
      batch_stats: running statistics of BatchNorm; empty without.
      opt_state: of every stage's optimizer, side by side.
      ema: exponential moving averages of `params` and `batch_stats`, in float32, or None.
      slow: parameters and running statistics that look-ahead sets the others back to, or None.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    slow: Any = None


@flax.struct.dataclass
class Weights:
    """The part of a `TrainState` that evaluation and prediction use, with the same fields."""

    params: Any
    batch_stats: Any
    ema: Any = None


def init_weights(network: nn.Module, image_shape: tuple[int, ...], seed: Any, ema: bool,
                 begin: Callable[[Any], Any] = lambda params: params) -> Weights:
    """Return the weights before the first step, a pure function of the seed.

    Args:
      network: takes images (N, *image_shape).
      image_shape: (H, W, C).
      seed: scalar.
      ema: whether moving averages are kept; they start at the first weights.
      begin: maps the parameters that are drawn to those to begin with.

    Raises:
      UserError: The network gives a map of scores.
    """
    images = jnp.zeros((1, *image_shape), jnp.float32)
    output, variables = network.init_with_output(jax.random.key(seed), images)
    logits = output[0] if isinstance(output, tuple) else output
    if logits.ndim != 2:
        raise UserError("training wants one row of logits for an image, and 'dense_conv' gives a map of scores "
                        f'{logits.shape[1:]}', field='config.model.head',
                        hint="train with head='dense', whose parameters are the same")
    params, batch_stats = begin(variables['params']), variables.get('batch_stats', {})
    # bfloat16 would not hold the little by which the averages move
    averages = jax.tree.map(lambda x: jnp.array(x, jnp.float32), (params, batch_stats)) if ema else None
    return Weights(params, batch_stats, averages)


def init_state(network: nn.Module, optimizer: Optimizer, image_shape: tuple[int, ...], seed: Any,
               optim: OptimConfig, begin: Callable[[Any], Any] = lambda params: params) -> TrainState:
    """Return the state before the first step, a pure function of the seed.

    Args:
      network, image_shape, seed, begin: see `init_weights`.
      optimizer: of the run.
      optim: says whether moving averages, and look-ahead's slow parameters, are kept; both start at the first ones.
    """
    weights = init_weights(network, image_shape, seed, bool(optim.ema_decay), begin)
    slow = jax.tree.map(jnp.copy, (weights.params, weights.batch_stats)) if optim.lookahead else None
    return TrainState(jnp.zeros((), jnp.int32), weights.params, weights.batch_stats, optimizer.init(weights.params),
                      weights.ema, slow)


def variables(state: TrainState | Weights) -> dict[bool, dict[str, Any]]:
    """Return what of a state is evaluated: parameters and statistics (False), and their moving averages (True) where the run
    keeps them."""
    by_average = {False: {'params': state.params, 'batch_stats': state.batch_stats}}
    if state.ema is not None:
        by_average[True] = dict(zip(('params', 'batch_stats'), state.ema, strict=True))
    return by_average
