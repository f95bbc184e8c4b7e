"""The command that evaluates ensembles, calibration and reports, in this process."""

import argparse
import csv
import json
import shutil

import numpy as np
import pytest

from jaxcnn.analysis import calibration
from jaxcnn.cli import compare, evaluate
from jaxcnn.errors import UserError
from jaxcnn.evaluation.ensemble import average
from jaxcnn.evaluation.predictions import predict_split
from jaxcnn.run import load_run
from jaxcnn.studies.compare import compare_runs


def run_command(*arguments):
    return evaluate.run(evaluate.make_parser().parse_args([str(argument) for argument in arguments]))


def test_an_ensemble_is_evaluated_compared_and_reported(digits_runs, tmp_path, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(calibration, 'reliability_diagram', lambda bins, path, title: drawn.append((bins, title)))
    first, second = digits_runs
    assert run_command(f'--workdir={first}', '--ensemble', second, '--weights', 1, 3, f'--compare={first}',
                       f'--report={tmp_path}', '--json') == 0
    values = json.loads(capsys.readouterr().out)
    members = [predict_split(load_run(workdir), 'test') for workdir in digits_runs]
    expected = average(members, [1, 3])
    assert values['accuracy'] == pytest.approx(expected.correct.mean())
    assert [member['accuracy'] for member in values['members']] == [member.correct.mean() for member in members]
    correct, other = expected.correct, members[0].correct
    assert values['comparison']['only_first'] == (correct & ~other).sum()
    assert values['comparison']['only_second'] == (other & ~correct).sum()
    labels = expected.labels
    loss = -expected.log_probabilities[range(45), labels].mean()
    assert values['negative_log_likelihood'] == pytest.approx(loss, abs=1e-6)
    validation = average([predict_split(load_run(workdir), 'val') for workdir in digits_runs], [1, 3])
    temperature = calibration.fit_temperature(validation.log_probabilities, validation.labels)
    assert values['temperature']['temperature'] == pytest.approx(temperature)
    with open(tmp_path / 'predictions.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['image'] for row in rows] == expected.names
    assert [row['label'] for row in rows] == [expected.class_names[label] for label in labels]
    columns = [f'probability of {name}' for name in expected.class_names]
    np.testing.assert_allclose([[float(row[name]) for name in columns] for row in rows], expected.probabilities, rtol=1e-4)
    assert sum(row['correct'] == '1' for row in rows) == np.trace(values['confusion'])
    assert json.loads((tmp_path / 'results.json').read_text()) == values
    assert [bins.ece for bins, _ in drawn] == pytest.approx([values['ece'], values['temperature']['ece']])
    assert "McNemar's exact test" in (tmp_path / 'report.html').read_text().replace('&#x27;', "'")


def test_a_folder_without_splits_is_evaluated_by_default(digits_runs, digits_folder, capsys):
    folder = digits_folder / 'test'
    assert run_command(f'--workdir={digits_runs[0]}', f'--data_dir={folder}', '--json') == 0
    values = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row['tta'] for row in values] == [False, True]
    assert values[0]['split'] == 'train'
    assert values[0]['accuracy'] == pytest.approx(load_run(digits_runs[0]).evaluate('test')['test_accuracy'])


def test_a_comparison_replaces_only_one_in_the_default_folder(digits_runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(output):
        return compare.run(argparse.Namespace(workdirs=[digits_runs[0]], metric=[], output=output))
    assert [run('comparison'), run('comparison'), run('other')] == [0, 0, 0]
    with pytest.raises(UserError, match="--output: 'other' exists and is not empty"):
        run('other')
    (tmp_path / 'comparison' / 'compare.html').unlink()
    with pytest.raises(UserError, match="--output: 'comparison' exists and is not empty"):
        run('comparison')


def test_recorded_protocols_are_columns_of_comparisons(digits_runs, tmp_path, capsys, caplog):
    workdir = tmp_path / 'run'
    shutil.copytree(digits_runs[0], workdir)
    names = 'center', 'multi_crop(grid=2, scales=(8, 9))'
    for split in ('val', 'test'):
        assert run_command(f'--workdir={workdir}', *(f'--protocol={name}' for name in names), '--save', '--json',
                           f'--split={split}') == 0
        printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        columns = [f'by_protocol({f"{split}_accuracy"!r}, {name!r})' for name in names]
        table = compare_runs([str(workdir)], columns)
        assert [table.arms[0].mean(column) for column in table.columns] == [row['accuracy'] for row in printed]
    assert table.columns[0].title == 'test accuracy, center'
    with pytest.raises(UserError, match=r"^--metric: no run .* protocol 'dense'; recorded: center; multi_crop\(grid=2, "):
        compare_runs([str(workdir)], ["by_protocol('test_accuracy', 'dense')"])
    with pytest.raises(UserError, match=r"^--metric: .*unknown protocol 'centre'; nearest: center"):
        compare_runs([str(workdir)], ["by_protocol('test_accuracy', 'centre')"])
    caplog.set_level('INFO', 'jaxcnn')
    compare_runs([str(workdir), digits_runs[1]], ["by_protocol('val_accuracy', 'center')"])
    assert [record.getMessage() for record in caplog.records] == [
        'validation accuracy, center is not measured; to record it: '
        f'jaxcnn evaluate --workdir={digits_runs[1]} --split=val --protocol=center --save']
    with pytest.raises(UserError, match=rf'^--workdirs: {tmp_path}: holds no run'):
        compare_runs([str(tmp_path)])


@pytest.mark.parametrize(('flags', 'message'), [
    (['--save'], '--save: needs --protocol'),
    (['--save', '--protocol=center', '--data_dir=x'], '--save cannot be combined with --data_dir'),
    (['--protocol=center', '--protocol=dense', '--calibration'], '--calibration takes a single --protocol'),
    (['--calibration', '--watch'], '--watch cannot be combined with --calibration'),
    (['--weights', '1', '2'], '--weights: needs --ensemble'),
    (['--ensemble', 'RUN'], 'is listed twice; --weights gives a run more weight'),
    (['--calibration', '--split=tset'], "no split 'tset'; there are: train, val, test"),
    (['--calibration', '--report=RUN/data.json'], '--report: .*data.json: cannot be made'),
])
def test_flags_that_do_not_fit_are_refused(digits_runs, flags, message):
    with pytest.raises(UserError, match=message):
        run_command(f'--workdir={digits_runs[0]}', *(flag.replace('RUN', digits_runs[0]) for flag in flags))
    with pytest.raises(UserError, match='required: --workdir'):
        run_command()
