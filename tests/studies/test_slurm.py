"""Jobs of SLURM, with commands that stand in for SLURM's."""

import os

import pytest

from jaxcnn.errors import UserError
from jaxcnn.studies import make_study
from jaxcnn.studies.run import StudyRun
from jaxcnn.studies.slurm import SlurmExecutor

pytest.importorskip('submitit')


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """The folder of stand-ins for the commands of SLURM. `state` is the state of all jobs, `submitted` has the scripts."""
    folder = tmp_path / 'slurm_commands'
    folder.mkdir()
    for name, script in {
        'sbatch': f'cat "$1" >> {folder}/submitted; echo Submitted batch job 7',
        'sacct': f'echo "JobID|State|NodeList"; for i in 0 1; do echo "7_$i|$(cat {folder}/state)|n"; done',
        'scancel': 'exit 0', 'srun': 'exit 0',
    }.items():
        (folder / name).write_text(f'#!/bin/sh\n{script}\n')
        (folder / name).chmod(0o755)
    (folder / 'state').write_text('RUNNING')
    monkeypatch.setattr('submitit.SlurmJob._results_timeout_s', 0)  # it waits for results of failed jobs
    monkeypatch.setenv('PATH', f'{folder}:{os.environ["PATH"]}')
    return folder


def test_jobs_that_are_queued_already_are_not_submitted_again(slurm, tmp_path):
    study = make_study(dict(model='lenet5', data=dict(name='digits')), {'a': {}, 'b': {}}, seeds=1)
    options = {'slurm_partition': 'gpu', 'timeout_min': 5}

    def start():
        with StudyRun(study, str(tmp_path / 'study')) as run:
            handles = SlurmExecutor(None, options, str(tmp_path / 'study' / 'slurm')).start(run.jobs())
            return [handle.poll() for handle in handles], (slurm / 'submitted').read_text()
    running, script = start()
    assert running == [None, None]
    assert script.count('#SBATCH --array=0-1') == 1
    assert '#SBATCH --partition=gpu' in script
    assert '#SBATCH --signal=USR2@' in script
    assert start() == (running, script)  # by another command
    (slurm / 'state').write_text('FAILED')
    assert start()[1].count('#SBATCH --array=0-1') == 2


def test_a_wrong_option_is_one_line(slurm, tmp_path):
    with pytest.raises(UserError, match=r'--executor=slurm: .*gpus_per_nod') as error:
        SlurmExecutor(None, {'gpus_per_nod': 1}, str(tmp_path))
    assert '\n' not in str(error.value)
