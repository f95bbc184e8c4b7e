"""The end of a run: its best checkpoint on every part, the summary, the report."""

import dataclasses
import importlib.metadata
import logging
import math
import os
import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax

import jaxcnn
from jaxcnn.train import workdir
from jaxcnn.train.state import TrainState

if TYPE_CHECKING:
    from jaxcnn.train.loop import Run

log = logging.getLogger('jaxcnn')


def finish(run: 'Run') -> dict[str, Any] | None:
    """Evaluates the best checkpoint on every part, writes the report, and returns the summary; None where a signal came."""
    from jaxcnn.inspect.report import write_report
    best, state = _best_state(run)
    row: dict[str, float] = {}
    for split in ('val', 'test'):
        if split in run.dataset.splits:
            evaluated = run.evaluate(state, split, tta=run.experiment.preprocessor.tta is not None)
            if evaluated is None:
                return None
            row.update(evaluated[0])
            accumulated, reported_split = evaluated[1], split
    summary = _summary(run, row, best)
    if run.chief:
        workdir.write_json(os.path.join(run.folder, 'summary.json'), summary)
        write_report(run.folder, run.experiment, summary, workdir.read_metrics(run.folder), reported_split,
                     accumulated[run.experiment.best.ema])
    return summary


def _best_state(run: 'Run') -> tuple[int, TrainState]:
    """The best checkpoint that is not damaged; the last state where none was evaluated."""
    damaged: list[int] = []
    while (best := run.checkpoints.best_step(apart_from=damaged)) not in (None, run.step):
        assert best is not None
        try:
            host_state, _ = run.checkpoints.read(best, run.template)
            return best, run.backend.place(host_state)
        except ValueError as e:
            log.warning('checkpoint %d is damaged and not used: %s', best, e)
            damaged.append(best)
    return run.step, run.state


def _summary(run: 'Run', row: Mapping[str, float], best: int) -> dict[str, Any]:
    """Return what `summary.json` holds.

    A metric without `ema` in its name is by the weights that the run's metric judges.
    """
    run.progress.look_at_memory()
    experiment = run.experiment
    train_rows = [r for r in workdir.read_metrics(run.folder) if 'train_loss' in r]
    last = {name: train_rows[-1][f'train_{name}'] if train_rows else None for name in experiment.task.train_metrics}
    measured = {m.name: row.get(m.name if m.ema else dataclasses.replace(m, ema=experiment.best.ema).name)
                for m in experiment.measurements(tta=experiment.preprocessor.tta is not None).values()}
    versions = {name: importlib.metadata.version(name) for name in ('jax', 'jaxlib', 'flax', 'optax', 'numpy')}
    return {
        'name': run.config.name, 'task': experiment.task.name, 'model': run.config.model.name,
        'dataset': run.config.data.name, 'num_classes': experiment.task.num_classes,
        'seed': run.config.seed, 'steps': run.step, 'epochs': run.timeline.epoch(run.step),
        'params': sum(math.prod(p.shape) for p in jax.tree.leaves(run.template.params)),
        **{f'train_{name}': value for name, value in last.items()},
        **measured,
        'best_step': best,
        'images_per_second': run.progress.images_per_second,
        'train_seconds': run.progress.timed_seconds,
        'wall_seconds': run.progress.wall_seconds,
        'peak_host_bytes': run.progress.peak_host_bytes, 'peak_device_bytes': run.progress.peak_device_bytes,
        'device': jax.devices()[0].device_kind, 'num_devices': run.backend.num_devices,
        'versions': {'jaxcnn': jaxcnn.__version__, 'python': platform.python_version(), **versions},
    }
