"""The commands `study` and `compare`, as a user starts them."""

import json
import os
import signal
import subprocess
import time

import pytest

from jaxcnn.studies.definition import load_study
from jaxcnn.studies.run import StudyRun
from jaxcnn.studies.slurm import SlurmExecutor

pytestmark = pytest.mark.launch

STUDY = '''
from jaxcnn.studies import make_study

def get_study():
    return make_study({config!r}, {{
        'good': {{}}, 'no data': {{'data.name': 'folder', 'data.dir': 'missing'}}}}, seeds=1)

def get_long_study():
    fields = {{'duration.steps': 1500, 'eval.every': {{'steps': 500}}, 'log_every': {{'steps': 50}}}}
    return make_study({config!r}, {{'long': fields}}, seeds=1)
'''


@pytest.fixture(scope='module')
def study_file(tiny_config, tmp_path_factory):
    path = tmp_path_factory.mktemp('study') / 'small.py'
    path.write_text(STUDY.format(config=str(tiny_config)))
    return path


def test_a_killed_study_goes_on_and_failures_are_rows(study_file, start, command, tmp_path, snapshot):
    folder = tmp_path / 'runs'
    process = start('study', f'--study={study_file}', f'--workdir={folder}', '--jobs=1')
    while process.poll() is None and not (folder / 'good' / 'seed0' / 'summary.json').exists():
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = snapshot(folder / 'good')
    code, out, err = command('study', f'--study={study_file}', f'--workdir={folder}')
    assert code == 1  # a run has failed
    assert err[0].startswith('1 of 2 runs are done already')
    assert any("no data, seed 0: failed: config.data.dir: " in line for line in err)
    assert snapshot(folder / 'good') == before
    assert any(line.startswith('good ') for line in out)
    assert out[-1] == f'report: {folder}/study.html'
    report = (folder / 'study.md').read_text()
    assert '| good | ' in report
    assert '- no data, seed 0: failed: ' in report

    code, out, err = command('compare', '--workdirs', folder / 'good', f'--output={tmp_path / "comparison"}')
    assert code == 0, err
    assert (tmp_path / 'comparison' / 'compare.html').exists()
    assert sum(line.startswith('good ') for line in out) == 1


WRONG = {
    'jobs': ('--jobs=0', '--jobs: expected at least 1, got 0'),
    'executor': ('--executor=slrum', "--executor: unknown executor 'slrum'; nearest: slurm"),
    'no SLURM': ('--executor=slurm', '--executor=slurm: Could not detect "srun"'),
    'option': ('--slurm=timeout_min', '--slurm: expected --slurm=NAME=VALUE'),
    'form': ('--study=FILE:quik', 'has no get_quik_study()'),
    'field': ('--config.batchsize=1', "unknown field 'config.batchsize'; nearest: config.batch_size"),
}


@pytest.mark.parametrize(('flag', 'message'), WRONG.values(), ids=WRONG)
def test_a_wrong_use_is_one_line_and_trains_nothing(flag, message, study_file, command, tmp_path):
    code, out, err = command('study', f'--study={study_file}', f'--workdir={tmp_path / "runs"}',
                             flag.replace('FILE', str(study_file)))
    assert (code, out, len(err)) == (2, [], 1), err
    assert message in err[0]
    assert not any(name.startswith('seed') for _, folders, _ in os.walk(tmp_path) for name in folders)


@pytest.mark.slow
def test_a_job_of_submitit_whose_time_is_over_resumes_to_the_same_run(study_file, command, tmp_path, monkeypatch):
    pytest.importorskip('submitit')
    monkeypatch.setenv('XLA_FLAGS', '--xla_force_host_platform_device_count=1')  # as `command` has it
    code, _, err = command('study', f'--study={study_file}:long', f'--workdir={tmp_path / "local"}')
    assert code == 0, err
    study, folder = load_study(f'{study_file}:long'), tmp_path / 'slurm'
    with StudyRun(study, str(folder)) as run:
        job, = run.jobs()
        handle, = SlurmExecutor(1, {'cluster': 'local'}, str(folder / 'slurm')).start([job])
        metrics = folder / 'long' / 'seed0' / 'metrics.jsonl'
        while handle.poll() is None and not (metrics.exists() and metrics.read_text()):
            time.sleep(0.05)
        task, = subprocess.check_output(['pgrep', '-P', handle.job.job_id], text=True).split()  # the ID is its process
        os.kill(int(task), signal.SIGUSR2)  # by which SLURM says that the time is nearly over
        while handle.poll() is None:
            time.sleep(0.1)
        assert job.record(handle.poll()).status == 'finished'
        log = (folder / 'long' / 'seed0.log').read_text()
    assert 'stopped by SIGTERM' in log
    assert 'resuming' in log
    summaries = [json.loads((tmp_path / name / 'long' / 'seed0' / 'summary.json').read_text())
                 for name in ('local', 'slurm')]
    assert summaries[0]['test_loss'] == summaries[1]['test_loss']
