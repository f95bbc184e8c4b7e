"""Searches: the choices of a resumed search, pruning, and the report. The runs are files; nothing is trained."""

import json
import os

import pytest

from jaxcnn import config
from jaxcnn.errors import UserError
from jaxcnn.studies import choice, integer, log_uniform, make_study, search
from jaxcnn.studies.results import write_failure
from jaxcnn.studies.search import SearchRun

pytest.importorskip('optuna')
SPACE = {'optim.learning_rate': log_uniform(1e-4, 1e-1), 'batch_size': integer(8, 64),
         'optim.optimizer': choice(['adam', {'name': 'sgd', 'momentum': 0.9}])}


def make(trials, sampler='tpe', pruner='none', seeds=1, compare=None, **fields):
    base = config.make(model='lenet5', data=dict(name='digits'), **fields)
    return make_study(base, search(SPACE, trials, sampler, pruner), seeds=seeds, compare=compare)


def write_run(job, rows=()):
    """Write what a run with a good learning rate of 0.01 would leave."""
    rate = job.arm.config.optim.learning_rate
    value = 1 - abs(rate - 0.01) - (job.arm.config.optim.optimizer.name == 'sgd') * 0.1 + job.seed / 1000
    os.makedirs(job.folder, exist_ok=True)
    with open(f'{job.folder}/summary.json', 'w') as file:
        json.dump({'val_accuracy': value, 'params': 10, 'train_seconds': 1.0}, file)
    return value


def write_rows(job, values):
    os.makedirs(job.folder, exist_ok=True)
    with open(f'{job.folder}/metrics.jsonl', 'w') as file:
        for step, value in enumerate(values):
            file.write(json.dumps({'step': step, 'epoch': float(step), 'val_accuracy': value}) + '\n')


def run(study, folder, stop_after=None):
    """Run a search, or its first jobs. Return its configs in the order of the jobs."""
    configs = []
    with SearchRun(study, str(folder)) as study_run:
        while job := study_run.queue.next():
            if len(configs) == stop_after:  # killed while this one runs
                return configs
            configs.append((job.folder.removeprefix(str(folder)), config.to_dict(job.arm.config)))
            write_run(job)
            study_run.queue.done(job, job.result())
    return configs


@pytest.mark.parametrize('sampler', ['tpe', 'random', 'qmc'])
def test_a_search_that_was_killed_makes_the_choices_of_one_that_was_not(tmp_path, sampler):
    study = make(14, sampler, seeds=2)  # more than the ten random trials with which TPE begins
    uninterrupted = run(study, tmp_path / 'uninterrupted')
    assert len(uninterrupted) == 28
    assert len({str(configs['optim']) for _, configs in uninterrupted}) == 14
    parts = [run(study, tmp_path / 'parts', stop_after) for stop_after in (3, 19, None)]
    assert [job for part in parts for job in part] == uninterrupted
    assert run(study, tmp_path / 'uninterrupted') == []
    assert len(run(make(15, sampler, seeds=2), tmp_path / 'uninterrupted')) == 2  # more trials


@pytest.mark.parametrize(('changed', 'change'), [
    (make(1, 'random'), "sampler: 'tpe' -> 'random'"), (make(1, seeds=2), r'seeds: \[0\] -> \[0, 1\]'),
    (make(1, compare='val_loss'), "compare: 'val_accuracy' -> 'val_loss'"),
    (make(1, duration=dict(epochs=3)), r"config.duration: None -> \{'epochs': 3.*\}")])
def test_a_changed_search_is_refused(tmp_path, changed, change):
    run(make(1), tmp_path)
    with pytest.raises(UserError, match=f'holds a study with another search.*Changed: {change}$'):
        run(changed, tmp_path)


def test_a_bad_trial_is_pruned_and_a_failed_one_has_no_value(tmp_path):
    with SearchRun(make(7, pruner='median'), str(tmp_path)) as study_run:
        queue = study_run.queue
        for value in (0.5, 0.6, 0.7, 0.8, 0.9):
            job = queue.next()
            write_rows(job, [value, value])
            assert not queue.should_prune(job)
            write_run(job)
            queue.done(job, job.result())
        job = queue.next()
        assert not queue.should_prune(job)
        write_rows(job, [0.1])  # below the median at the first evaluation, 0.7
        assert queue.should_prune(job)
        write_failure(job.folder, 'pruned', '')
        queue.done(job, job.result())
        job = queue.next()
        write_failure(job.folder, 'failed', 'no memory')
        queue.done(job, job.result())
        assert queue.next() is None
        statuses = {arm.name: arm.runs[0].status for arm in study_run.table().arms}
        assert (statuses.pop('trial5'), statuses.pop('trial6')) == ('pruned', 'failed')
        assert set(statuses.values()) == {'finished'}


def test_the_report_ranks_the_trials_and_draws_what_mattered(tmp_path, monkeypatch):
    monkeypatch.setattr('jaxcnn.studies.report._multiply_adds', lambda arm: 1)
    study = make(6)
    run(study, tmp_path)
    with SearchRun(study, str(tmp_path)) as study_run:
        study_run.write_report()
        means = [arm.mean(study_run.columns[0]) for arm in study_run.table().arms]
    assert means == sorted(means, reverse=True)
    text = (tmp_path / 'study.md').read_text()
    for name in ('importance', 'parallel', 'history'):
        assert f'figures/search_{name}.png' in text
