"""One-shot pruning of the weights of a finished run, without training."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import config as cfg
from jaxcnn.compression import derived_run
from jaxcnn.data import Dataset
from jaxcnn.errors import UserError
from jaxcnn.files import make_output
from jaxcnn.metrics import Metric
from jaxcnn.run import Run, SplitEvaluator
from jaxcnn.training.initial_masks import prunable
from jaxcnn.training.pruning import Tree, apply_masks, layer_table, magnitude_masks, pruned_counts, random_scores, remaining
from jaxcnn.training.state import Weights, variables


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The size of the parameters of a network.

    Attributes:
      parameters: number of parameters.
      nonzero: number of those that are not 0.
      dense: bytes of all parameters.
      compressed_rows: bytes if each kernel is stored as compressed sparse rows, one row for each feature, with indices of 32
        bits, or as it is if that is smaller.
      bitmap: bytes if each kernel is stored as its nonzero values and a bit for each value, or as it is if that is smaller.
    """

    parameters: int
    nonzero: int
    dense: int
    compressed_rows: int
    bitmap: int


def sizes(params: Any) -> Sizes:
    """Return the size of the parameters of a network, which are host arrays."""
    parameters = nonzero = dense = compressed_rows = bitmap = 0
    for x in jax.tree.leaves(params):
        count, item = int(np.count_nonzero(x)), x.dtype.itemsize
        parameters, nonzero, dense = parameters + x.size, nonzero + count, dense + x.nbytes
        rows = x.shape[-1] if x.ndim > 1 else 1
        compressed_rows += min(x.nbytes, count * (item + 4) + (rows + 1) * 4)
        bitmap += min(x.nbytes, count * item + -(-x.size // 8))
    return Sizes(parameters, nonzero, dense, compressed_rows, bitmap)


@dataclasses.dataclass(frozen=True)
class PrunedNetwork:
    """A run's network at one sparsity.

    Attributes:
      sparsity: the sparsity that was asked for.
      pruned: fraction of zeros in the pruned kernels.
      values: metrics of the evaluated split by name.
      sizes: size of the parameters.
      layers: see `layer_table`.
      folder: workdir that holds it; empty for the network before pruning.
    """

    sparsity: float
    pruned: float
    values: Mapping[str, float]
    sizes: Sizes
    layers: list[dict[str, Any]]
    folder: str = ''


@dataclasses.dataclass(frozen=True)
class Result:
    """The pruning of a run.

    Attributes:
      run: the run.
      config: how it was pruned, without the sparsity.
      step: the checkpoint.
      split: split of the evaluation.
      num_images: number of its images.
      metrics: the metrics that are shown, the main one first.
      before: the network as it was.
      after: the pruned networks.
    """

    run: Run
    config: cfg.PruningConfig
    step: int
    split: str
    num_images: int
    metrics: list[Metric]
    before: PrunedNetwork
    after: list[PrunedNetwork]


def check_config(config: cfg.PruningConfig, sparsities: Sequence[float]) -> None:
    """Raise a UserError unless a config describes pruning without training, to each of some sparsities."""
    if config.method == 'movement':
        raise UserError('movement needs gradients, and there is no training here', field='--method',
                        hint='use magnitude, or train with config.pruning.method=movement')
    for sparsity in sparsities:
        if not 0 <= sparsity < 1:
            raise UserError(f'expected at least 0 and below 1, got {sparsity:g}', field='--sparsity')


def prune_run(run: Run, folder: str, sparsities: Sequence[float], config: cfg.PruningConfig, checkpoint: str,
              dataset: Dataset, split: str) -> Result:
    """Set weights of a run to zero, evaluate the pruned networks, and write a workdir for each.

    Args:
      run: the run.
      folder: a new folder. With a single sparsity it is the workdir, and otherwise that of `sparsity0.5` and others.
      sparsities: fractions of the weights that are pruned.
      config: fields `method`, `scope`, `match` and `exclude`.
      checkpoint: checkpoint of the run: best, latest or a step.
      dataset: data for the evaluation.
      split: its split.

    Raises:
      UserError: a sparsity or a pattern is wrong, or the folder is not empty.
    """
    check_config(config, sparsities)
    make_output(folder)
    step = run.find_step(checkpoint)
    weights = run.load_weights(step)
    experiment = run.experiment
    params = variables(weights)[experiment.best.ema]['params']
    names = prunable(config, experiment.network, experiment.image_shape, params)
    without_tta = dataclasses.replace(experiment.preprocessor, tta=None)
    evaluator = SplitEvaluator(dataclasses.replace(experiment, preprocessor=without_tta), dataset, split)
    metrics = experiment.displayed_metrics()

    def network(weights: Weights, sparsity: float, masks: Tree, folder: str = '') -> PrunedNetwork:
        num_images, measured = evaluator(weights)
        values = {m.metric.name: value for m, value in measured.items() if m.ema == experiment.best.ema}
        total, remain = (sum(f(x) for x in jax.tree.leaves(masks)) for f in (np.size, np.count_nonzero))
        counted.append(num_images)
        return PrunedNetwork(sparsity, 1 - remain / total, values, sizes(variables(weights)[experiment.best.ema]['params']),
                             layer_table(masks), folder)

    counted: list[int] = []
    before = network(weights, 0.0, jax.tree.map(lambda x: np.asarray(x) != 0, names))
    after = []
    for sparsity in sparsities:
        masks = _masks(params, names, sparsity, config, run.config.seed)
        ema = None if weights.ema is None else (apply_masks(weights.ema[0], masks), *weights.ema[1:])
        pruned = jax.device_get(Weights(apply_masks(weights.params, masks), weights.batch_stats, ema))
        workdir = folder if len(sparsities) == 1 else os.path.join(folder, f'sparsity{sparsity:g}')
        after.append(network(pruned, sparsity, masks, workdir))
        new_config = derived_run.with_masks(run.config, config, workdir)
        state = {'masks': masks, 'sparsity': np.float32(after[-1].pruned)}
        sizes_after = after[-1].sizes
        summary = derived_run.summary(run, step, split, after[-1].values, params=sizes_after.parameters,
                                      sparsity=after[-1].pruned, nonzero_params=sizes_after.nonzero)
        derived_run.write_run(workdir, run, new_config, step, pruned, summary, state)
    return Result(run, config, step, split, counted[0], metrics, before, after)


def _masks(params: Tree, names: Tree, sparsity: float, config: cfg.PruningConfig, seed: int) -> Tree:
    if config.method == 'magnitude':
        return magnitude_masks(params, names, sparsity, config.scope)
    counts = jnp.array(pruned_counts(names, sparsity, config.scope), jnp.int32)
    masks: Tree = jax.device_get(remaining(random_scores(names, jax.random.key(np.uint32(seed))), counts))
    return masks
