"""The two golden runs give the figures that were recorded before the training core was rebuilt around tasks."""

import golden
import numpy as np
import pytest

RECORDED = {
    'digits': {
        'batch_stats': 7.22952, 'ema': 12.9797, 'opt_state': 24.247, 'params': 11.097, 'train_loss': 2.25355,
        'train_accuracy': 0.114583, 'val_accuracy': 0.138889, 'val_loss': 2.31766, 'test_accuracy': 0.0807799,
        'test_top5': 0.548747, 'test_loss': 2.37043, 'val_ema_loss': 2.3475, 'val_ema_accuracy': 0.104167,
        'val_ema_top5': 0.506944, 'test_ema_loss': 2.39359, 'test_ema_accuracy': 0.0779944,
        'test_ema_top5': 0.520891,
    },
    'small_set': {
        'batch_stats': 5.97246, 'opt_state': 59.1209, 'params': 10.4524, 'slow': 12.0384, 'train_loss': 1.34232,
        'train_accuracy': 0.359375, 'val_accuracy': 0.375, 'val_loss': 1.2423,
    },
}


def recorded_values(values):
    """Return the norm of each part of the state, and the metrics of the summary."""
    norms = {}
    for name, value in values.items():
        if name.startswith('[') and name != "['step']":
            part = name.split("'")[1]
            norms[part] = norms.get(part, 0.0) + float(np.sum(np.square(value, dtype=np.float64)))
    metrics = {name.removeprefix('summary.'): value for name, value in values.items()
               if name.startswith('summary.') and isinstance(value, float) and name != 'summary.epochs'}
    return {part: norm ** 0.5 for part, norm in norms.items()} | metrics


@pytest.mark.parametrize('name', ['digits', 'small_set'])
def test_golden_run_gives_the_recorded_figures(tmp_path, name, no_pictures):
    values = recorded_values(golden.read(golden.train_runs(str(tmp_path), [name])[name]))
    assert {part: values[part] for part in RECORDED[name]} == pytest.approx(RECORDED[name], rel=1e-4)
