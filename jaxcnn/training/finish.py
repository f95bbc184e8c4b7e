"""The end of a run: its best checkpoint, its summary and its report."""

import dataclasses
import importlib.metadata
import logging
import os
import platform
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxcnn.data.dataset import Dataset
from jaxcnn.experiment import Experiment
from jaxcnn.metrics import Measurement
from jaxcnn.tasks import Accumulated
from jaxcnn.training import workdir
from jaxcnn.training.checkpoint import Checkpoints
from jaxcnn.training.pruning import layer_table
from jaxcnn.training.state import TrainState
from jaxcnn.version import __version__

log = logging.getLogger('jaxcnn')


def best_state(checkpoints: Checkpoints, template: TrainState, last_step: int) -> tuple[int, TrainState | None]:
    """Return the step and the state of the best checkpoint that is not damaged.

    Args:
      checkpoints: checkpoints of the run.
      template: shapes and dtypes of the state.
      last_step: step at which the run has ended.

    Returns:
      The step and the state, or `last_step` and None if that is the best step or no checkpoint was evaluated.
    """
    damaged: list[int] = []
    while (best := checkpoints.best_step(exclude=damaged)) not in (None, last_step):
        assert best is not None
        try:
            return best, checkpoints.read(best, template)[0]
        except ValueError as e:
            log.warning('checkpoint %d is damaged and not used: %s', best, e)
            damaged.append(best)
    return last_step, None


def summarize(experiment: Experiment, folder: str, values: Mapping[Measurement, float], step: int, best_step: int,
              num_devices: int) -> dict[str, Any]:
    """Return the content of `summary.json`, without the durations and the memory that the loop measures.

    Metrics without `ema` in their names are those of the weights by which the best checkpoint is selected.

    Args:
      experiment: experiment of the run.
      folder: the workdir.
      values: metrics of the best checkpoint by their measurements.
      step: step at which the run has ended.
      best_step: step of the best checkpoint.
      num_devices: number of devices of the run.
    """
    task = experiment.task
    train_rows = [row for row in workdir.read_metrics(folder) if 'train_loss' in row]
    train_values = {name: train_rows[-1][f'train_{name}'] if train_rows else None for name in task.train_metrics}
    measured = {m.name: values.get(m if m.ema else dataclasses.replace(m, ema=experiment.best.ema))
                for m in experiment.measurements(tta=experiment.preprocessor.tta is not None).values()}
    versions = {name: importlib.metadata.version(name) for name in ('jax', 'jaxlib', 'flax', 'optax', 'numpy')}
    return {
        **describe(experiment), 'steps': step, 'epochs': experiment.timeline.epoch(step),
        **{f'train_{name}': value for name, value in train_values.items()},
        **measured,
        'best_step': best_step,
        'device': jax.devices()[0].device_kind, 'num_devices': num_devices,
        'versions': {'jaxcnn': __version__, 'python': platform.python_version(), **versions},
    }


def describe(experiment: Experiment) -> dict[str, Any]:
    """Return the entries of `summary.json` that name the run, its task, its network and its data."""
    config, task = experiment.config, experiment.task
    return {'name': config.name, 'task': task.name, 'model': config.model.name, 'dataset': config.data.name,
            'num_classes': task.num_classes, 'seed': config.seed}


def summarize_pruning(folder: str, state: TrainState, is_main_process: bool) -> dict[str, Any]:
    """Return the sparsity and the number of nonzero parameters for `summary.json`, and write those of layers to a file.

    Args:
      folder: the workdir.
      state: state of the best checkpoint, as host arrays, of a run with pruning.
      is_main_process: whether this process writes the file.
    """
    layers = layer_table(state.pruning['masks'])
    nonzero = sum(int(np.count_nonzero(x)) for x in jax.tree.leaves(state.params))
    if is_main_process:
        workdir.write_json(os.path.join(folder, workdir.SPARSITY), {'layers': layers})
    return {'sparsity': float(state.pruning['sparsity']), 'nonzero_params': nonzero}


def write_results(experiment: Experiment, folder: str, summary: Mapping[str, Any], split: str,
                  accumulated: Accumulated, dataset: Dataset) -> None:
    """Write `summary.json`, and the report with its figures.

    Args:
      experiment: experiment of the run.
      folder: the workdir.
      summary: summary of the run.
      split: the split that the report shows in detail.
      accumulated: what the task has accumulated over that split.
      dataset: data set of the run, whose images the report shows.
    """
    from jaxcnn.analysis.report import write_report
    workdir.write_json(os.path.join(folder, 'summary.json'), summary)
    write_report(folder, experiment, summary, workdir.read_metrics(folder), split, accumulated, dataset)
