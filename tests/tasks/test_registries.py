"""A loss and a metric are each one registered function: training, evaluation, checkpoints, reports and tables know it."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import losses, metrics
from jaxcnn.training import train


def test_a_registered_loss_and_metric_need_nothing_else(small, tmp_path, no_pictures, new_registrations):
    @losses.register('label')
    def scaled_cross_entropy(outputs, labels, factor=2.0, reduction='none'):
        assert reduction == 'sum'
        return factor * losses.cross_entropy(outputs, labels)

    @metrics.split_metric('label', title='balanced accuracy')
    def balanced_accuracy(confusion):
        return float(np.mean(np.diag(confusion) / np.maximum(confusion.sum(1), 1)))

    @metrics.example_metric('label', better='min', percent=False)
    def confidence(logits, labels):
        return jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]

    summary = train(small(loss=dict(name='scaled_cross_entropy', factor=3.0, reduction='sum'),
                                       checkpoint=dict(metric='val_balanced_accuracy')), str(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    best = max((row for row in rows if 'val_loss' in row), key=lambda row: (row['val_balanced_accuracy'], row['step']))
    assert summary['best_step'] == best['step']
    assert summary['val_balanced_accuracy'] == pytest.approx(best['val_balanced_accuracy'])
    assert 'test_confidence' in summary
    report = (tmp_path / 'report.md').read_text()
    assert f'| test balanced accuracy | {100 * summary["test_balanced_accuracy"]:.2f} % |' in report
    assert f'| test confidence | {summary["test_confidence"]:.4f} |' in report
    assert 'by `val_balanced_accuracy`' in report
    plain = train(small(), str(tmp_path / 'plain'))
    assert summary['train_loss'] > 1.5 * plain['train_loss']
