"""The check of gradients: numerical ones against those of automatic differentiation, in float64 where possible."""

import dataclasses
import unittest.mock
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.checks.base import FAILED, INFORMATION, Findings, Verdict
from jaxcnn.checks.context import Context
from jaxcnn.checks.layers import training_arguments, training_loss

MAX_PARAMETERS = 40
NUM_IMAGES = 4
STEP = 1e-5  # relative to the deviation of the parameters of a tensor
TOLERANCE = 1e-4  # relative
FLOAT32_STEP, FLOAT32_TOLERANCE = 1e-2, 5e-2  # where a part of the network computes in float32


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The two derivatives of the loss by one parameter.

    Attributes:
      name: path and index of the parameter, such as `Conv_0/kernel[0, 0, 0, 3]`.
      analytic, numerical: the derivatives.
      error: their difference relative to the larger of them; gradients below a thousandth of the largest of their tensor
        count as that.
    """

    name: str
    analytic: float
    numerical: float
    error: float


def _as_float64(tree: Any) -> Any:
    """Return a tree of arrays with those of real numbers in float64."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def _moved(params: Any, seed: int) -> Any:
    """Return parameters that are moved a little at random.

    Initial biases of 0 would leave a ReLU at its kink, where it has no derivative, wherever its input is padded with zeros.
    """
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + (0.01 + 0.1 * float(x.std())) * rng.normal(size=x.shape), params)


def compare_gradients(loss: Callable[[Any], jax.Array], params: Any, count: int = MAX_PARAMETERS,
                      seed: int = 0) -> list[Comparison]:
    """Compare the gradient of a function with central differences.

    In each tensor, or in evenly spread ones if there are more than `count`, the parameter with the largest gradient and
    further ones that are drawn at random are compared.

    Args:
      loss: function from parameters to a scalar.
      params: the parameters at which the gradient is computed.
      count: number of parameters that are compared.
      seed: seed of the choice.
    """
    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    is_exact = value.dtype == jnp.float64
    step = STEP if is_exact else FLOAT32_STEP
    paths = [(jax.tree_util.keystr(path, simple=True, separator='/'), np.asarray(x), np.asarray(g, float))
             for (path, x), g in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(grads), strict=True)]
    structure = jax.tree.structure(params)
    rng = np.random.default_rng(seed)
    tensors = np.unique(np.linspace(0, len(paths) - 1, min(count, len(paths))).astype(int))
    per_tensor = max(1, count // len(tensors))

    @jax.jit
    def shifted_loss(params: Any, tensor: jax.Array, index: jax.Array, shift: jax.Array) -> jax.Array:
        leaves = [jnp.where(i == tensor, x.ravel().at[index].add(shift).reshape(x.shape), x) if x.size else x
                  for i, x in enumerate(jax.tree.leaves(params))]
        return loss(jax.tree.unflatten(structure, leaves))

    comparisons = []
    for tensor in tensors:
        name, x, g = paths[tensor]
        indices = {int(np.abs(g).argmax()), *map(int, rng.permutation(x.size)[:per_tensor - 1])}
        scale = step * max(float(x.std()), 0.1)
        floor = max(1e-3 * float(np.abs(g).max()), 1e-9 if is_exact else 1e-4)
        for index in sorted(indices):
            analytic, best = float(g.ravel()[index]), None
            for shift in (scale, scale / 30, scale * 10):  # a kink of a ReLU or of max pooling may be within the first one
                plus, minus = (float(shifted_loss(params, tensor, index, s)) for s in (shift, -shift))
                numerical = (plus - minus) / (2 * shift)
                error = abs(numerical - analytic) / max(abs(numerical), abs(analytic), floor)
                if best is None or error < best[1]:
                    best = numerical, error
                if error < (TOLERANCE if is_exact else FLOAT32_TOLERANCE):
                    break
            position = ', '.join(map(str, np.unravel_index(index, x.shape)))
            assert best is not None
            comparisons.append(Comparison(f'{name}[{position}]', analytic, best[0], best[1]))
    return comparisons


def check_gradients(context: Context) -> Verdict:
    """Compare gradients of the training loss with central differences, for some parameters of each layer.

    The parameters are near the initial ones. Both are computed in float64 unless a part of the network computes in float32.
    """
    findings = Findings()
    setup = context.setup
    task = setup.experiment.task
    if setup.experiment.network.left_out_gradient:
        return findings.verdict(f'gradients leave out {setup.experiment.network.left_out_gradient}, so that numerical ones '
                                'differ', status=INFORMATION)
    examples = jax.tree.map(np.asarray, context.train_examples(NUM_IMAGES))
    params, stats = (jax.tree.map(np.asarray, tree) for tree in (context.host_state.params, context.host_state.batch_stats))
    # casts of losses and of normalisation layers to float32 would round the differences
    with jax.enable_x64(True), unittest.mock.patch.object(jnp, 'float32', jnp.float64):
        network = setup.experiment.network.clone(conv_implementation='xla', dtype='float64', param_dtype='float64')
        images = jnp.asarray(examples['image'], jnp.float64)
        targets = {name: jnp.asarray(value) for name, value in examples.items() if name != 'image'}
        batch_stats, weights = _as_float64(stats), _moved(_as_float64(params), context.config.seed)

        def loss(params: Any) -> jax.Array:
            outputs, _ = network.apply({'params': params, 'batch_stats': batch_stats}, images, train=True,
                                       mutable=['batch_stats'], rngs={'dropout': jax.random.key(0)},
                                       **training_arguments(task, targets))
            return training_loss(network, task, outputs, targets)
        is_exact = jax.eval_shape(loss, weights).dtype == jnp.float64
        comparisons = compare_gradients(loss, weights, seed=context.config.seed)
    worst = max(comparisons, key=lambda c: c.error)
    tolerance = TOLERANCE if is_exact else FLOAT32_TOLERANCE
    wrong = [c for c in comparisons if not c.error < tolerance]
    if wrong:
        findings.add(FAILED, f'{len(wrong)} differ by more than {tolerance:g}',
                     f'check the gradient of the layer of {worst.name}: a custom_vjp, a stop_gradient or an operation '
                     'without a derivative')
    if all(c.analytic == 0 for c in comparisons):
        findings.add(INFORMATION, 'all of these gradients are 0', 'see signal')
    precision = 'float64' if is_exact else 'float32, in which a part of the network computes'
    lines = ['The largest differences between gradients and central differences of the training loss of '
             f'{NUM_IMAGES} images in {precision}.', '', '| parameter | gradient | numerical | relative difference |',
             '|---|---|---|---|',
             *(f'| `{c.name}` | {c.analytic:.6g} | {c.numerical:.6g} | {c.error:.1e} |'
               for c in sorted(comparisons, key=lambda c: -c.error)[:10])]
    return findings.verdict(f'the gradients of {len(comparisons)} parameters differ from numerical ones by at most '
                            f'{worst.error:.1e} ({worst.name})', lines)
