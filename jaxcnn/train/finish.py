"""The end of a run: its best checkpoint on every part, the summary, the report."""

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
            found = run.evaluate(state, split, tta=run.prepare.tta is not None)
            if found is None:
                return None
            row.update(found[0])
            confusion, shown = found[1], split
    prefix = 'ema_' if '_ema_' in run.config.checkpoint.metric and 'ema_' in confusion else ''
    summary = _summary(run, row, prefix, best)
    if run.chief:
        workdir.write_json(os.path.join(run.folder, 'summary.json'), summary)
        write_report(run.folder, run.config, summary, workdir.read_metrics(run.folder), run.dataset, shown,
                     confusion[prefix])
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


def _summary(run: 'Run', row: Mapping[str, float], prefix: str, best: int) -> dict[str, Any]:
    """What `summary.json` holds. `prefix`: of the figures that the run's metric judges."""
    run.progress.look_at_memory()
    last = next((r for r in reversed(workdir.read_metrics(run.folder)) if 'train_loss' in r), {})
    versions = {name: importlib.metadata.version(name) for name in ('jax', 'jaxlib', 'flax', 'optax', 'numpy')}
    return {
        'name': run.config.name, 'model': run.config.model.name, 'dataset': run.config.data.name,
        'num_classes': run.dataset.num_classes,
        'seed': run.config.seed, 'steps': run.step, 'epochs': run.timeline.epoch(run.step),
        'params': sum(math.prod(p.shape) for p in jax.tree.leaves(run.template.params)),
        'train_loss': last.get('train_loss'), 'train_accuracy': last.get('train_accuracy'),
        'val_accuracy': row.get(f'val_{prefix}accuracy'), 'val_loss': row.get(f'val_{prefix}loss'),
        'test_accuracy': row.get(f'test_{prefix}accuracy'), 'test_top5': row.get(f'test_{prefix}top5'),
        'test_loss': row.get(f'test_{prefix}loss'),
        **{k: v for k, v in row.items() if '_ema_' in k or '_tta_' in k},
        **{k.replace(prefix, ''): v for k, v in row.items() if prefix and f'{prefix}tta_' in k},
        'best_step': best,
        'images_per_second': run.progress.images_per_second,
        'train_seconds': run.progress.timed_seconds,
        'wall_seconds': run.progress.wall_seconds,
        'peak_host_bytes': run.progress.peak_host_bytes, 'peak_device_bytes': run.progress.peak_device_bytes,
        'device': jax.devices()[0].device_kind, 'num_devices': run.backend.num_devices,
        'versions': {'jaxcnn': jaxcnn.__version__, 'python': platform.python_version(), **versions},
    }
