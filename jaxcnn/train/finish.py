"""The end of a run: its best checkpoint, the summary, the report."""

import dataclasses
import importlib.metadata
import logging
import os
import platform
from collections.abc import Mapping
from typing import Any

import jax

import jaxcnn
from jaxcnn.experiment import Experiment
from jaxcnn.tasks import Accumulated
from jaxcnn.train import workdir
from jaxcnn.train.checkpoint import Checkpoints
from jaxcnn.train.state import TrainState

log = logging.getLogger('jaxcnn')


def best_state(checkpoints: Checkpoints, template: TrainState, last_step: int) -> tuple[int, TrainState | None]:
    """Return the step and the state of the best checkpoint that is not damaged.

    Args:
      checkpoints: of the run.
      template: shapes and types of the state.
      last_step: at which the run has ended.

    Returns:
      `last_step` and None where that is the best one, or where no checkpoint was evaluated.
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


def summarize(experiment: Experiment, folder: str, row: Mapping[str, float], step: int, best_step: int,
              num_devices: int) -> dict[str, Any]:
    """Return what `summary.json` holds, but for what the loop has measured of its own.

    A metric without `ema` in its name is by the weights that the run's metric judges.

    Args:
      experiment: of the run.
      folder: the workdir.
      row: the metrics of the best checkpoint by the names of their measurements.
      step: at which the run has ended.
      best_step: the step of the best checkpoint.
      num_devices: of the run.
    """
    config, task = experiment.config, experiment.task
    train_rows = [r for r in workdir.read_metrics(folder) if 'train_loss' in r]
    last = {name: train_rows[-1][f'train_{name}'] if train_rows else None for name in task.train_metrics}
    measured = {m.name: row.get(m.name if m.ema else dataclasses.replace(m, ema=experiment.best.ema).name)
                for m in experiment.measurements(tta=experiment.preprocessor.tta is not None).values()}
    versions = {name: importlib.metadata.version(name) for name in ('jax', 'jaxlib', 'flax', 'optax', 'numpy')}
    return {
        'name': config.name, 'task': task.name, 'model': config.model.name, 'dataset': config.data.name,
        'num_classes': task.num_classes, 'seed': config.seed, 'steps': step, 'epochs': experiment.timeline.epoch(step),
        **{f'train_{name}': value for name, value in last.items()},
        **measured,
        'best_step': best_step,
        'device': jax.devices()[0].device_kind, 'num_devices': num_devices,
        'versions': {'jaxcnn': jaxcnn.__version__, 'python': platform.python_version(), **versions},
    }


def write_results(experiment: Experiment, folder: str, summary: Mapping[str, Any], split: str,
                  accumulated: Accumulated) -> None:
    """Write `summary.json`, and the report with its figures.

    Args:
      experiment: of the run.
      folder: the workdir.
      summary: of the run.
      split: the part that the report shows in detail.
      accumulated: the evaluation of that part.
    """
    from jaxcnn.analysis.report import write_report
    workdir.write_json(os.path.join(folder, 'summary.json'), summary)
    write_report(folder, experiment, summary, workdir.read_metrics(folder), split, accumulated)
