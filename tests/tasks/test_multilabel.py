"""Several classes for each image: tables and arrays of them, the loss, the metrics, and a whole run."""

import csv
import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as sklearn_metrics

from jaxcnn import config as cfg
from jaxcnn import data, experiment, losses, metrics, tasks
from jaxcnn.cli import predict
from jaxcnn.config import DataConfig
from jaxcnn.data.sources import stratified_split
from jaxcnn.data.targets import LABELS
from jaxcnn.errors import UserError
from jaxcnn.run import load_run
from jaxcnn.training import train

NAMES = ['cat', 'dog', 'owl']
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def task_of(**fields):
    return tasks.create(cfg.parse({'task': 'multilabel', 'loss': 'bce', **fields}), NAMES, [4, 2, 0], 8)


@pytest.fixture
def tables(tmp_path):
    """Writes images and `train.csv`, `test.csv`: `tables(rows)`, rows without paths, of which the first names columns."""
    def write(*rows):
        rng = np.random.default_rng(0)
        lines = [['path', *rows[0]]]
        for i, row in enumerate(rows[1:]):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / f'{i}.png')
            lines.append([f'{i}.png', *row])
        for split in ('train', 'test'):
            with open(tmp_path / f'{split}.csv', 'w', newline='') as f:
                csv.writer(f).writerows(lines)
        return DataConfig('csv', dir=str(tmp_path), val_fraction=0.0)
    return write


def labels_of(config):
    return data.load(config, LABELS)


@pytest.mark.parametrize('rows', [
    (['label'], ['cat;dog'], ['dog'], [''], ['owl; cat'], ['-1']),
    (['cat', 'dog', 'owl'], [1, 1, 0], [0, 1, 0], [0, 0, 0], ['1.0', 0, 1]),
])
def test_names_with_semicolons_and_columns_of_0_and_1_are_the_same_labels(tables, rows):
    dataset = labels_of(tables(*rows))
    assert dataset.class_names == NAMES
    np.testing.assert_array_equal(dataset.splits['train'].targets['labels'], [[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 1]])
    assert dataset.class_counts('train') == [2, 2, 1]


@pytest.mark.parametrize(('rows', 'line'), [
    ((['cat', 'dog'], [1, 0], [0, 2]),
     r"train\.csv: line 3: the column 'dog' holds '2'; columns of classes hold 0 and 1"),
    ((['label', 'cat'], ['cat', 1], ['dog', 0]),
     r"train\.csv: has both a column 'label' of names and columns of 0 and 1 \(cat\); remove one of the two"),
    ((['label'], ['cat', 'dog']), r'line 2: has 3 cells, but the first row names 2 columns; .* in double quotes'),
    ((['cat', 'cat'], [1, 0]), r'train\.csv: two columns have the same name; they are called path, cat, cat'),
])
def test_wrong_tables_are_refused_in_one_line(tables, rows, line):
    with pytest.raises(UserError, match=line):
        labels_of(tables(*rows))


def test_columns_of_classes_keep_their_order_and_must_be_the_same_in_each_part(tables, tmp_path):
    config = tables(['owl', 'ant', 'cat'], [1, 0, 0], [0, 1, 0])
    dataset = labels_of(config)
    assert dataset.class_names == ['owl', 'ant', 'cat']
    assert dataset.class_counts('train') == [1, 1, 0]
    (tmp_path / 'test.csv').write_text('path,owl,ant\n0.png,1,0\n')
    line = r'test\.csv: has columns of the classes owl, ant, but .*train\.csv of owl, ant, cat'
    with pytest.raises(UserError, match=line):
        labels_of(config)


def test_a_table_of_single_names_is_cached_for_each_task_by_itself(tables):
    config = tables(['label'], ['cat'], ['dog'])
    assert data.load(config).splits['train'].targets['label'].tolist() == [0, 1]
    assert labels_of(config).splits['train'].targets['labels'].tolist() == [[1, 0], [0, 1]]
    assert data.load(config).splits['train'].targets['label'].tolist() == [0, 1]


def test_a_cut_does_not_prefer_sets_without_the_first_classes():
    sets = np.unpackbits(np.arange(1, 200, dtype=np.uint8)[:, None], axis=1)
    labels = np.repeat(sets, 2, axis=0)
    _, val = stratified_split(LABELS.strata({'labels': labels}), 0.2, seed=0)
    assert np.abs(labels[val].mean(0) - labels.mean(0)).max() < 0.15


def test_data_with_the_labels_of_another_task_is_refused(tables, tmp_path):
    config = tables(['label'], ['cat;dog'], ['dog'])
    with pytest.raises(UserError, match=r"line 2: the label 'cat;dog' names several classes; config\.task='multilabel' "):
        data.load(config)
    with pytest.raises(UserError, match=r"config\.data\.name: 'digits' does not have several classes .*: arrays, csv"):
        data.load(DataConfig('digits'), LABELS)
    images, labels = np.zeros((4, 8, 8), np.uint8), np.array([[1, 0], [0, 1], [1, 1], [0, 0]])
    arrays = dict(train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    np.savez(tmp_path / 'a.npz', **arrays)
    config = DataConfig('arrays', dir=str(tmp_path / 'a.npz'), val_fraction=0.0)
    np.testing.assert_array_equal(data.load(config, LABELS).splits['test'].targets['labels'], labels)
    with pytest.raises(UserError, match=r'train_labels must be 4 integers, .* config\.task='):
        data.load(config)
    np.savez(tmp_path / 'a.npz', **arrays | {'test_labels': labels + 1})
    with pytest.raises(UserError, match=r'test_labels must be 0 and 1, got 2 for image 0 and class 0'):
        data.load(config, LABELS)


@pytest.mark.parametrize(('fields', 'line'), [
    ({'loss': 'cross_entropy'}, r"config\.loss: the loss 'cross_entropy' does not fit the task 'multilabel'; these do: bce"),
    ({'checkpoint': {'metric': 'val_accuracy'}},
     r"config\.checkpoint\.metric: unknown metric 'val_accuracy'; known: val_loss, val_mean_average_precision, "
     r'val_micro_f1, val_macro_f1, val_exact_match$'),
    ({'checkpoint': {'metric': 'val_f1'}, 'optim': {'ema_decay': 0.9}}, r"unknown metric 'val_f1'; known: val_loss, .*, "
     r'val_exact_match, val_ema_loss, .*val_ema_exact_match$'),
    ({'checkpoint': {'metric': 'val_loss'}, 'data': {'name': 'csv', 'val_fraction': 0}},
     r"config\.checkpoint\.metric: 'val_loss' needs a validation split; set config\.data\.val_fraction above 0, or leave "
     r'config\.checkpoint\.metric out, which uses the last checkpoint$'),
    ({'task': {'name': 'multilabel', 'threshold': 1.5}},
     r'config\.task\.threshold: expected a number between 0 and 1, got 1\.5'),
    ({'task': {'name': 'multilabel', 'treshold': 0.4}}, r"config\.task: unknown argument .* 'treshold'; nearest: threshold"),
    ({'task': 'multilable'}, r"config\.task: unknown task 'multilable'; nearest: multilabel"),
    ({'loss': {'name': 'bce', 'gama': 1}}, r"config\.loss: unknown argument of loss bce 'gama'; nearest: gamma"),
    ({'loss': {'name': 'bce', 'alpha': 2}}, r'config\.loss\.alpha: expected a number from 0 to 1, got 2'),
    ({'data': {'name': 'csv', 'balance': 'sampling'}}, r"config\.data\.balance: 'sampling' needs one class for each image"),
])
def test_fields_that_do_not_go_with_the_task_are_refused(fields, line):
    with pytest.raises(UserError, match=line) as error:
        experiment.check(cfg.parse({'task': 'multilabel', 'loss': 'bce', 'data': {'name': 'csv', 'dir': 'x'}, **fields}))
    assert '\n' not in str(error.value)


def test_metrics_are_scikit_learns():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (40, 3))
    probabilities = np.round(rng.uniform(size=(40, 3)) * 0.6 + 0.4 * labels, 2)  # rounded, so that some are equal
    scores = metrics.LabelScores(probabilities, labels, 0.6)
    predicted = probabilities >= 0.6
    for name, expected in {
            'mean_average_precision': sklearn_metrics.average_precision_score(labels, probabilities, average='macro'),
            'micro_f1': sklearn_metrics.f1_score(labels, predicted, average='micro'),
            'macro_f1': sklearn_metrics.f1_score(labels, predicted, average='macro'),
            'exact_match': sklearn_metrics.accuracy_score(labels, predicted)}.items():
        assert metrics.of_targets('labels')[name].compute(scores) == pytest.approx(expected), name
    absent = metrics.LabelScores(probabilities, labels * [1, 1, 0], 0.6)
    assert metrics.mean_average_precision(absent) == pytest.approx(
        sklearn_metrics.average_precision_score(labels[:, :2], probabilities[:, :2], average='macro'))


def test_class_weights_are_pytorchs_pos_weight():
    task = task_of(data={'balance': 'loss'})
    np.testing.assert_allclose(task.class_weights, [1, 3, 1])  # 4 of 8, 2 of 8 images, and none
    logits, labels = jnp.array([[0.5, -1.0, 2.0], [1.5, 0.3, -0.7]]), jnp.array([[1, 0, 1], [0, 1, 0]])
    weight = np.array([1, 3, 1])
    expected = -(weight * labels * jax.nn.log_sigmoid(logits) + (1 - labels) * jax.nn.log_sigmoid(-logits)).mean()
    assert float(task.loss(logits, {'labels': labels})) == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(task.weights_of_classes(np.array([8, 0, 6]), 8), [1, 1, 1 / 3])  # of all images, and none
    plain = dataclasses.replace(task, class_weights=None)
    assert float(plain.loss(logits, {'labels': labels})) == pytest.approx(float(losses.bce(logits, labels).mean()))


def test_predict_takes_another_threshold():
    task, prediction = task_of(), np.array([0.4, 0.2, 0.9])
    assert task.category(prediction) == 'owl'
    assert predict.with_threshold(task, 0.3).category(prediction) == 'cat;owl'
    with pytest.raises(UserError, match=r'^--threshold: expected a number between 0 and 1, got 1\.5$'):
        predict.with_threshold(task, 1.5)
    classification = tasks.create(cfg.parse({}), NAMES, [4, 2, 0], 8)
    with pytest.raises(UserError, match=r"^--threshold: the task 'classification' of this run has no threshold; leave "):
        predict.with_threshold(classification, 0.3)


@pytest.mark.parametrize('backend', ['sharded', pytest.param('pmap', marks=pytest.mark.slow)])
def test_a_run_learns_what_each_image_shows_and_is_evaluated_and_predicted(tmp_path, no_pictures, small, backend):
    """Each class is a bright square in a corner of its own."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (150, 3))
    images = rng.integers(0, 100, (150, 16, 16, 1))
    for c, (y, x) in enumerate([(0, 0), (0, 10), (10, 0)]):
        images[labels[:, c] == 1, y:y + 6, x:x + 6] += 120
    images = images.astype(np.uint8)
    np.savez(tmp_path / 'a.npz', train_images=images[:110], train_labels=labels[:110], test_images=images[110:],
             test_labels=labels[110:], class_names=NAMES)
    fields = small(data=dict(name='arrays', dir=str(tmp_path / 'a.npz'), image_size=0, augment='mixup(0.2, 0.5)'),
                   duration=dict(steps=40), parallel=dict(devices=2, backend=backend), eval=dict(every=dict(steps=20)))
    folder = str(tmp_path / 'run')
    summary = train({**fields.to_dict(), 'task': 'multilabel', 'loss': 'bce'}, folder)
    assert summary['test_mean_average_precision'] > 0.95
    trained = load_run(folder)
    state = trained.load_weights(trained.find_step('best'))
    probabilities = trained.predict(images[110:])
    scores = metrics.LabelScores(probabilities, labels[110:])
    assert metrics.mean_average_precision(scores) == pytest.approx(summary['test_mean_average_precision'], abs=1e-3)
    assert metrics.exact_match(scores) == pytest.approx(summary['test_exact_match'], abs=0.026)  # of 40, one near 1/2
    count, measured = trained.evaluator('test')(state)
    assert count == 40
    assert {m.name: value for m, value in measured.items()} == pytest.approx(
        {m.name: summary[m.name] for m in measured}, abs=1e-5)
    assert json.loads((tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()[0])['train_exact_match'] >= 0
    report = (tmp_path / 'run' / 'report.md').read_text()
    assert '| test mean average precision |' in report
    assert '| owl |' in report
    assert set(trained.experiment.task.category(np.array([0.9, 0.1, 0.6])).split(';')) == {'cat', 'owl'}
    with pytest.raises(UserError, match=r"--tta: needs runs with one class for each image.*'multilabel'"):
        predict.run(predict.make_parser().parse_args([f'--workdir={folder}', '--tta=flip_lr', 'a.png']))
