"""The table of a study: what it computes from the files in workdirs."""

import csv
import json
import statistics

import numpy as np
import pytest
from scipy import stats

from jaxcnn import config
from jaxcnn.errors import UserError
from jaxcnn.studies.columns import find_column
from jaxcnn.studies.report import differing_fields, table_rows, write_study_report
from jaxcnn.studies.results import ArmResult, Table, paired_difference, read_run, write_failure

CONFIG = config.parse(config.make(model='lenet5', data=dict(name='digits', image_size=32)))
COLUMN = find_column('test_accuracy', CONFIG)


def write_run(folder, accuracy, rows=()):
    folder.mkdir(parents=True)
    (folder / 'summary.json').write_text(json.dumps(
        {'test_accuracy': accuracy, 'params': 1000, 'train_seconds': 90.0, 'steps': 5, 'epochs': 1.0, 'wall_seconds': 99.0}))
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))


def make_arm(tmp_path, name, accuracies, changes=(), **fields):
    for seed, accuracy in accuracies.items():
        write_run(tmp_path / name / f'seed{seed}', accuracy)
    runs = [read_run(str(tmp_path / name / f'seed{seed}'), seed) for seed in accuracies]
    return ArmResult(name, config.parse(config.override(CONFIG, dict(changes))), runs, **fields)


def test_differences_of_few_seeds_are_paired_with_students_interval(tmp_path):
    a = make_arm(tmp_path, 'a', {0: 0.5, 1: 0.6, 2: 0.9, 7: 0.1})
    b = make_arm(tmp_path, 'b', {2: 0.95, 1: 0.7, 0: 0.5, 8: 0.9})
    difference = paired_difference(b, a, COLUMN)
    assert difference.mean == pytest.approx(0.05)  # of seeds 0, 1 and 2: 0, 0.1 and 0.05
    expected = stats.ttest_rel([0.5, 0.7, 0.95], [0.5, 0.6, 0.9]).confidence_interval(0.95)
    assert difference.interval == pytest.approx((expected.low, expected.high))


def test_differences_of_many_seeds_have_a_bootstrap_interval(tmp_path):
    values = np.random.default_rng(0).exponential(0.1, 12)  # skewed, unlike Student's interval
    a, b = (make_arm(tmp_path, name, dict(enumerate(accuracies))) for name, accuracies in (('a', 0 * values), ('b', values)))
    expected = stats.bootstrap((values,), np.mean, method='percentile', n_resamples=9999, rng=1).confidence_interval
    assert paired_difference(b, a, COLUMN).interval == pytest.approx((expected.low, expected.high), abs=0.003)


def test_one_common_seed_has_no_interval_and_none_no_difference(tmp_path):
    values = {'a': {0: 0.5, 1: 0.5}, 'b': {1: 0.75}, 'c': {2: 1.0}}
    a, b, c = (make_arm(tmp_path, name, accuracies) for name, accuracies in values.items())
    assert paired_difference(b, a, COLUMN).interval is None
    assert paired_difference(b, a, COLUMN).mean == 0.25
    assert paired_difference(c, a, COLUMN) is None


def test_rows_have_mean_deviation_published_value_and_what_became_of_the_runs(tmp_path):
    values = {0: 0.9, 1: 0.92}
    first = make_arm(tmp_path, 'first', values, published=0.875)
    write_failure(str(tmp_path / 'second' / 'seed1'), 'diverged', 'the loss is nan')
    second = make_arm(tmp_path, 'second', {0: 0.95})
    second = ArmResult('second', second.config, [*second.runs, read_run(str(tmp_path / 'second' / 'seed1'), 1),
                                                 read_run(str(tmp_path / 'second' / 'seed2'), 2)])
    heading, *rows = table_rows(Table('title', '', [first, second], [COLUMN], 'first'))
    assert heading == ['', 'test accuracy', 'published', 'difference to first', 'seeds', 'parameters', 'training time']
    deviation = 100 * statistics.stdev(values.values())
    assert rows[0] == ['first', f'91.00 ± {deviation:.2f} %', '87.50 %', '', '2', '1,000', '90.0 s']
    assert rows[1] == ['second', '95.00 %', '', '+5.00', '1 (1 diverged, 1 not started)', '1,000', '90.0 s']


def test_epochs_to_a_value_are_those_of_the_first_row_that_has_it():
    column = find_column("epochs_to('train_accuracy', 0.75)", CONFIG)
    rows = [{'epoch': 1.0, 'train_accuracy': 0.5}, {'epoch': 1.5, 'val_accuracy': 0.9},
            {'epoch': 2.0, 'train_accuracy': 0.75}, {'epoch': 3.0, 'train_accuracy': 0.9}]
    assert column.value({}, rows) == 2.0
    assert column.value({}, rows[:2]) is None
    loss = find_column("epochs_to('val_loss', 0.1)", CONFIG)
    assert loss.value({}, [{'epoch': 1.0, 'val_loss': 0.2}, {'epoch': 2.0, 'val_loss': 0.1}]) == 2.0
    assert (column.format(2.0), column.format(None), column.better) == ('2.0', 'not reached', 'min')


def test_a_target_that_some_seeds_do_not_reach_is_no_difference(tmp_path):
    column = find_column("epochs_to('val_accuracy', 0.9)", CONFIG)
    for name, accuracies in {'fast': (0.95, 0.5), 'sure': (0.9, 0.9)}.items():
        for seed, accuracy in enumerate(accuracies):
            write_run(tmp_path / name / f'seed{seed}', accuracy, [{'step': 1, 'epoch': 4.0, 'val_accuracy': accuracy}])
    arms = [ArmResult(name, CONFIG, [read_run(str(tmp_path / name / f'seed{seed}'), seed) for seed in (0, 1)])
            for name in ('sure', 'fast')]
    _, sure, fast = table_rows(Table('title', '', arms, [column], 'sure'))
    assert sure[1] == '4.0 ± 0.0'
    assert fast[1:3] == ['4.0 (1 of 2 seeds)', '']


def test_fields_that_differ_are_listed_with_the_value_of_each_config():
    configs = [config.parse(config.override(CONFIG, fields)) for fields in (
        {'seed': 1}, {'batch_size': 7}, {'model.activation': 'relu', 'batch_size': 7})]
    fields = differing_fields(configs)
    assert fields['config.batch_size'] == [CONFIG.batch_size, 7, 7]
    assert str(fields['config.model.activation'][0]) == 'its default'
    assert fields['config.model.activation'][2] == 'relu'
    assert 'config.seed' not in fields


def test_the_report_escapes_names_and_has_a_row_for_each_run(tmp_path, monkeypatch):
    monkeypatch.setattr('jaxcnn.studies.report._multiply_adds', lambda arm: 123)
    arms = [make_arm(tmp_path, 'a|b', {0: 0.5, 1: 0.25}), make_arm(tmp_path, 'c', {0: 0.5}, {'batch_size': 7})]
    write_study_report(Table('T', 'Why?', arms, [COLUMN], 'c'), str(tmp_path / 'report'))
    text = (tmp_path / 'report' / 'study.md').read_text()
    assert '| a\\|b | 37.50 ± 17.68 % |' in text
    assert '| c | 7 |' in text
    rows = list(csv.DictReader((tmp_path / 'report' / 'study.csv').open()))
    assert [(row['arm'], row['seed'], float(row['test_accuracy'])) for row in rows] == [
        ('a|b', '0', 0.5), ('a|b', '1', 0.25), ('c', '0', 0.5)]
    assert '<table>' in (tmp_path / 'report' / 'study.html').read_text()


def test_svms_of_the_best_checkpoint_are_a_column_of_detectors(tmp_path):
    column = find_column('svm_test_map50', config.parse({'task': 'detection', 'loss': 'detection'}))
    assert column.title == 'test mAP@0.5, SVMs'
    with pytest.raises(UserError, match="unknown measurement 'svm_test_accuracy'; nearest: test_accuracy"):
        find_column('svm_test_accuracy', CONFIG)
    (tmp_path / 'summary.json').write_text('{"test_map50": 0.5, "best_step": 8}')
    for step, expected in ((4, None), (8, 0.625)):  # checkpoint 4 is not the best one any more
        (tmp_path / 'svms.json').write_text(json.dumps({'best_step': step, 'svm_test_map50': 0.625}))
        result = read_run(str(tmp_path), 0)
        assert column.value(result.summary, result.rows) == expected
