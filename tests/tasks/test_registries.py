"""A loss and a metric are each one registered function: training, evaluation, checkpoints, reports and tables know it."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import losses, metrics, models
from jaxcnn.errors import Diverged, UserError
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


def seven_logits(network, x, train, maps):
    return x.mean((1, 2, 3))[:, None] * jnp.ones(7)


def register_network(**methods):
    models.register(type('Wrong', (models.Network,), methods))


WRONG = dict(model=dict(name='Wrong'))


@pytest.mark.parametrize(('register', 'fields', 'line'), [
    (lambda: register_network(forward=seven_logits), WRONG,
     r'config\.model: Wrong gives an output of shape \(N, 7\) for N images, expected \(N, 10\)'),
    (lambda: register_network(forward=lambda network, x, train, maps: x), WRONG, r'of shape \(N, 16, 16, 1\) for N'),
    (register_network, WRONG, r'the network Wrong has no method forward\(self, x, train, maps\)'),
    (lambda: losses.register('label')(mean_loss), dict(loss='mean_loss'),
     r'config\.loss returns an array of shape \(\) for \d+ images; it must return one value for each image'),
    (lambda: metrics.example_metric('label')(mean_accuracy), {},
     r"the metric 'mean_accuracy' returns an array of shape \(\)")],
    ids=['logits', 'map', 'no forward', 'loss', 'metric'])
def test_a_registered_function_that_returns_a_wrong_shape_is_an_error(
        small, tmp_path, no_pictures, new_registrations, register, fields, line):
    register()
    with pytest.raises(UserError, match=line):
        train(small(**fields, duration=dict(steps=1)), str(tmp_path))


def mean_loss(logits, labels):
    return losses.cross_entropy(logits, labels).mean()


def mean_accuracy(logits, labels):
    return (logits.argmax(-1) == labels).mean()


def test_a_loss_that_is_not_finite_before_the_first_update_is_not_blamed_on_the_learning_rate(
        small, tmp_path, no_pictures, new_registrations):
    @losses.register('label')
    def broken_loss(logits, labels):
        return jnp.log(-jnp.ones(len(labels))) + 0 * logits[:, 0]
    network = dict(name='sequential', layers='flatten|dense')
    with pytest.raises(Diverged, match=r'^the loss at step 0 is nan, before the first update: training stopped; the '
                       r'learning rate has no part in it; check the network, its initialisation, the loss and the data$'):
        train(small(loss='broken_loss', model=network, duration=dict(steps=1)), str(tmp_path))


def test_an_unknown_kind_of_targets_is_an_error():
    for register in (losses.register, metrics.example_metric, metrics.split_metric):
        with pytest.raises(UserError, match=r"unknown kind of targets 'lable'; nearest: label"):
            register('lable')
