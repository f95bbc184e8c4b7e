"""Workdirs of runs that are made from other runs without training, which `load_run` and the commands take like any other."""

import dataclasses
import os
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import config as cfg
from jaxcnn import plugins
from jaxcnn.run import Run
from jaxcnn.training.checkpoint import Checkpoints
from jaxcnn.training.finish import describe
from jaxcnn.training.run_progress import RunProgress
from jaxcnn.training.state import TrainState, Weights
from jaxcnn.training.workdir import write_json


def summary(run: Run, step: int, split: str, values: Mapping[str, float], **further: Any) -> dict[str, Any]:
    """Return the summary of a run that is made from another one, without what a training measures.

    Args:
      run: the other run.
      step: step of its checkpoint.
      split: split that was evaluated.
      values: metrics of that split by name, without test-time augmentation; other measurements are None.
      **further: further entries.
    """
    measured = {f'{split}_{name}': value for name, value in values.items()}
    names = run.experiment.measurements(tta=run.experiment.preprocessor.tta is not None)
    return {**describe(run.experiment), **{name: measured.get(name) for name in names}, 'steps': step, 'best_step': step,
            **further, 'pruned_run': os.path.abspath(run.workdir)}


def with_masks(config: cfg.Config, pruning: cfg.PruningConfig, folder: str) -> cfg.Config:
    """Return the config of a run whose further training keeps the masks of its checkpoint.

    Args:
      config: config of the run.
      pruning: which parameters are pruned, by `match` and `exclude`.
      folder: its workdir.
    """
    fields = cfg.PruningConfig(match=pruning.match, exclude=pruning.exclude, masks=os.path.abspath(folder))
    return dataclasses.replace(config, pruning=fields)


def write_run(folder: str, run: Run, config: cfg.Config, step: int, weights: Weights, summary: Mapping[str, Any],
              pruning: Any = None) -> None:
    """Write a workdir with other weights, and perhaps another network, than those of a run.

    It has a single checkpoint without the state of an optimizer, so `jaxcnn train` does not continue it; `config.init.run`
    starts from it.

    Args:
      folder: the workdir, which is created if it is missing.
      run: the run, of which the data and the normalisation remain.
      config: config of the new run.
      step: step of the checkpoint.
      weights: its weights, as host arrays.
      summary: content of `summary.json`.
      pruning: state of pruning, see `training.pruning`; or None.
    """
    os.makedirs(folder, exist_ok=True)
    for name in ('data.json', 'normalize.npz'):
        if os.path.exists(path := os.path.join(run.workdir, name)):
            shutil.copy(path, os.path.join(folder, name))
    if os.path.isdir(path := os.path.join(run.workdir, plugins.FOLDER)):
        shutil.copytree(path, os.path.join(folder, plugins.FOLDER), dirs_exist_ok=True)
    write_json(os.path.join(folder, 'config.json'), cfg.to_dict(config))
    state = TrainState(jnp.int32(step), weights.params, weights.batch_stats, (), weights.ema, pruning=pruning)
    checkpoints = Checkpoints(folder, config.checkpoint)
    try:
        checkpoints.save(step, jax.tree.map(np.asarray, state), dataclasses.asdict(RunProgress()), None)
        checkpoints.wait()
    finally:
        checkpoints.close()
    write_json(os.path.join(folder, 'summary.json'), summary)
