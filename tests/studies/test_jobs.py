"""The loop over jobs, its queues and the local executor, with small commands in place of trainings."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from jaxcnn import config, processes
from jaxcnn.errors import Diverged, UserError
from jaxcnn.studies import jobs, make_study
from jaxcnn.studies.jobs import Executor, Job, JobList, StudyStopped, run_jobs
from jaxcnn.studies.local import LocalExecutor, make_slots
from jaxcnn.studies.run import StudyRun
from jaxcnn.training import protocol_results
from jaxcnn.training.workdir import claim

FINISH = 'import json, os; os.makedirs(F, exist_ok=True); json.dump({"test_accuracy": 0.5}, open(F + "/summary.json", "w"))'


@dataclasses.dataclass(frozen=True)
class ScriptJob(Job):
    """A job that runs a Python script, in which F is its workdir, instead of a training."""

    script: str = FINISH

    def command(self):
        return [sys.executable, '-c', f'F = {self.folder!r}\n{self.script}']


@pytest.fixture
def make_job(tmp_path):
    def make(name, script=FINISH, **fields):
        arm = make_study(dict(model='lenet5', data=dict(name='digits')), {name: {}},
                         protocols=fields.pop('protocols', None)).arms[0]
        os.makedirs(tmp_path / arm.folder, exist_ok=True)
        return ScriptJob(arm, 0, str(tmp_path), script=script, **fields)
    return make


@pytest.fixture(autouse=True)
def poll_often(monkeypatch):
    monkeypatch.setattr(jobs, 'POLL_INTERVAL', 0.01)


def run(queue, slots=1, stop=(), on_poll=lambda: None):
    results = []
    executor = LocalExecutor(slots, os.environ, [])
    run_jobs(queue, executor, lambda job, result: results.append((job.arm.name, result)), on_poll, stop)
    return dict(results)


def test_each_result_says_how_its_job_ended(make_job):
    results = run(JobList([
        make_job('good'), make_job('diverges', f'print("error: loss is nan"); exit({Diverged.exit_code})'),
        make_job('wrong', 'print("error: no data"); exit(2)'), make_job('raises', 'raise ValueError("oh")'),
        make_job('killed', 'import os; os.kill(os.getpid(), 9)'),
        make_job('stopped early', 'import os; os.kill(os.getpid(), 15)')]))
    assert {name: (result.status, result.reason) for name, result in results.items()} == {
        'good': ('finished', ''), 'diverges': ('diverged', 'loss is nan'), 'wrong': ('failed', 'no data'),
        'raises': ('failed', 'exit code 1: ValueError: oh'), 'killed': ('failed', 'killed by SIGKILL'),
        'stopped early': ('unfinished', '')}


def test_jobs_run_at_once_in_their_slots(make_job):
    wait = ('import glob, os, time; os.makedirs(F); end = time.monotonic() + 30\n'
            'while len(glob.glob(F + "/../../*/seed0")) < 2:\n    assert time.monotonic() < end; time.sleep(0.01)\n'
            + FINISH)
    results = run(JobList([make_job('a', wait), make_job('b', wait)]), slots=2)  # each waits for the other
    assert {result.status for result in results.values()} == {'finished'}


def test_a_job_waits_for_the_run_it_starts_from(make_job):
    source = make_job('source')
    check = f'import os; assert os.path.exists({source.folder!r} + "/summary.json")\n{FINISH}'
    results = run(JobList([make_job('grown', check, source_folders={'init.run': (source.folder,)}), source]), slots=2)
    assert list(results) == ['source', 'grown']
    assert results['grown'].status == 'finished'


PROTOCOLS = {'one': 'center(32)', 'two': {'a': 'ten_crop(32)', 'b': 'dense(32)'}}


def test_a_trained_run_is_evaluated_by_the_protocols_that_are_not_recorded(tmp_path):
    with StudyRun(study({'a': {}, 'b': {}, 'c': {}}, seeds=1, protocols=PROTOCOLS), str(tmp_path / 'study')) as opened:
        job = opened.all_jobs()[1]
        assert job.shell_command().endswith(
            "--split=test --save '--protocol=center(32)' '--protocol=dense(32)'")
        finish(job, best_step=7)
        protocol_results.save(job.folder, 'center(32)', 7, '', {'test_accuracy': 0.6, 'test_loss': 1.0})
        protocol_results.save(job.folder, 'dense(32)', 6, '', {'test_accuracy': 0.7})  # of another checkpoint
        left = opened.jobs()[1]
        assert left.is_evaluation
        assert left.command()[4:] == [f'--workdir={job.folder}', '--split=test', '--save', '--protocol=dense(32)']
        assert job.result().status == 'unfinished'
        protocol_results.save(job.folder, 'dense(32)', 7, '', {'val_accuracy': 0.7})  # of another split
        assert job.result().status == 'unfinished'
        protocol_results.save(job.folder, 'dense(32)', 7, '', {'test_accuracy': 0.8})
        assert [column.name for column in opened.columns[1:]] == [
            "by_protocol('test_accuracy', 'one')", "by_protocol('test_accuracy', 'two')"]
        values = [[arm.mean(column) for column in opened.columns] for arm in opened.table().arms]
        assert values == [[None] * 3, [0.5, 0.6, 0.8], [None] * 3]
        assert [other.arm.name for other in opened.jobs()] == ['a', 'c']
        assert [name for name, _ in opened.study.arms[2].protocols] == ['one']


def test_the_evaluation_follows_the_training_and_its_failure_leaves_the_training(make_job, tmp_path):
    entry = {'center(32)': {'step': 0, 'values': {'test_accuracy': 0.6}}}
    script = FINISH + f"""
if os.path.exists(F + "/trained"):
    if not os.path.exists({str(tmp_path / 'now')!r}): exit('error: no')
    json.dump({entry!r}, open(F + "/protocols.json", "w"))
open(F + "/trained", "w")"""
    job = make_job('a', script, protocols={'one': 'center(32)'})
    grown = make_job('grown', source_folders={'init.run': (job.folder,)})
    results = run(JobList([job, grown]))
    assert (results['a'].status, results['a'].reason) == ('failed', 'exit code 1: no')
    assert results['a'].summary['test_accuracy'] == 0.5
    assert results['grown'].status == 'finished'  # it needs the training only
    (tmp_path / 'now').touch()
    assert run(JobList([job.evaluation()]))['a'].summary['protocols'] == {'one': {'test_accuracy': 0.6}}


def test_the_command_names_the_runs_of_other_arms(tmp_path):
    arm = make_study(dict(model='lenet5', data=dict(name='digits')), {'a': {}}).arms[0]
    job = Job(arm, 0, str(tmp_path), source_folders={'init.run': ('/runs/x',), 'distillation.teachers': ('/runs/x', 'y')})
    assert job.command()[-2:] == ['--config.init.run=/runs/x', "--config.distillation.teachers=('/runs/x', 'y')"]


def test_a_job_does_not_start_from_a_run_without_a_result(make_job):
    source, later = make_job('source', f'exit({Diverged.exit_code})'), make_job('later')
    grown = make_job('grown', source_folders={'init.run': (source.folder,)})
    results = run(JobList([source, grown, later]))
    assert list(results) == ['source', 'later']
    assert (grown.result().status, grown.result().reason) == ('failed', 'the run that it starts from has diverged')
    assert list(run(JobList([grown]))) == []  # nor does the next command start it


def test_a_job_waits_for_the_runs_of_its_teachers(make_job):
    teacher, lost = make_job('teacher'), make_job('lost', f'exit({Diverged.exit_code})')
    student = make_job('student', source_folders={'distillation.teachers': (teacher.folder, '/elsewhere')})
    orphan = make_job('orphan', source_folders={'distillation.teachers': (teacher.folder, lost.folder)})
    results = run(JobList([student, orphan, teacher, lost]))
    assert list(results) == ['teacher', 'student', 'lost']
    assert orphan.result().reason == 'the run that it uses has diverged'


def test_an_arm_is_taught_by_the_run_of_the_same_seed_or_by_those_of_all_seeds(tmp_path):
    arms = {'big one': {}, 'small': {'distillation': {'teachers': ('arm:big one', 'runs/other')}},
            'ensemble': {'distillation': {'teachers': ('seeds:big one',)}}}
    study = make_study(dict(model='lenet5', data=dict(name='digits')), arms, seeds=2)
    commands = {job.name: Job.command(job) for job in StudyRun(study, str(tmp_path)).all_jobs()}
    big = [str(tmp_path / 'big_one' / f'seed{seed}') for seed in range(2)]
    assert not any('distillation' in argument for argument in commands['big one, seed 1'])
    fields = {name: config.parse(config.override(study.arms[1].config, [
        argument.removeprefix('--config.') for argument in command if 'distillation' in argument]))
        for name, command in commands.items() if not name.startswith('big')}
    assert {name: fields[name].distillation.teachers for name in fields} == {
        **{f'small, seed {seed}': (big[seed], 'runs/other') for seed in range(2)},
        **{f'ensemble, seed {seed}': tuple(big) for seed in range(2)}}


def test_jobs_that_outlive_the_study_are_not_stopped_by_a_signal(make_job):
    class Elsewhere(Executor):
        slots, stops_jobs = 2, False

        def start(self, started):
            return [self for _ in started]

        def poll(self):
            return None

        def stop(self, signum):
            pytest.fail('the job was stopped')
    stop = []
    with pytest.raises(StudyStopped):
        run_jobs(JobList([make_job('a')]), Elsewhere(), None, lambda: stop.append(signal.SIGINT), stop)


def test_a_signal_stops_jobs_that_save_and_starts_no_more(make_job):
    stop = []
    save = ('import os, signal, time; os.makedirs(F)\ndef save(*_): open(F + "/saved", "w"); exit(143)\n'
            'signal.signal(15, save); open(F + "/ready", "w"); time.sleep(60)')
    job = make_job('stopped', save)

    def send():
        if not stop and os.path.exists(f'{job.folder}/ready'):
            stop.append(signal.SIGTERM)
    with pytest.raises(StudyStopped, match='SIGTERM'):
        run(JobList([job, make_job('later')]), stop=stop, on_poll=send)
    assert os.path.exists(f'{job.folder}/saved')
    assert job.result().status == 'unfinished'
    assert not os.path.exists(make_job('later').folder)


@pytest.mark.skipif(not os.path.exists('/proc'), reason='only Linux ends processes with their parent')
def test_local_jobs_end_with_the_process_that_started_them(tmp_path):
    script = ('import os, subprocess, sys, time; from jaxcnn.processes import bound_command\n'
              'command = [sys.executable, "-c", "import time; time.sleep(60)"]\n'
              'core = min(os.sched_getaffinity(0))\n'
              'child = subprocess.Popen(bound_command(command, os.getpid(), [core]))\n'
              'print(child.pid, flush=True); time.sleep(60)')
    parent = subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    core = {min(os.sched_getaffinity(0))}
    deadline = time.monotonic() + 30
    while os.sched_getaffinity(pid) != core and time.monotonic() < deadline:  # until the job is bound
        time.sleep(0.01)
    assert os.sched_getaffinity(pid) == core
    parent.kill()
    parent.wait()
    for _ in range(200):
        with open(f'/proc/{pid}/stat') as stat:
            if stat.read().split()[2] in 'ZX':  # ended; nobody may have waited for it
                return
        time.sleep(0.01)
        if not os.path.exists(f'/proc/{pid}'):
            return
    pytest.fail('the job is still running')


def test_cores_and_gpus_are_divided():
    slots = make_slots(2, [0, 1, 2, 3, 4], ['a', 'b', 'c'])
    assert [slot.cores for slot in slots] == [{0, 1}, {2, 3, 4}]
    assert [slot.gpus for slot in slots] == [('a',), ('b', 'c')]
    assert make_slots(1, [0, 1], ['a'])[0].cores is None
    with pytest.raises(UserError, match='--jobs: 3 jobs at once need a GPU each, and there are 2'):
        make_slots(3, range(8), ['a', 'b'])
    assert processes.visible_gpus({'CUDA_VISIBLE_DEVICES': '0,-1,3'}) == ['0', '3']


def finish(job, **summary):
    os.makedirs(job.folder, exist_ok=True)
    with open(f'{job.folder}/summary.json', 'w') as file:
        json.dump({'test_accuracy': 0.5, **summary}, file)


def study(arms, **fields):
    return make_study(config.make(model='lenet5', data=dict(name='digits')), arms, **fields)


def test_finished_and_diverged_runs_are_not_repeated_and_failed_ones_are(tmp_path):
    folder = str(tmp_path / 'study')
    with StudyRun(study({'a': {}, 'b': {}}, seeds=2), folder) as first:
        finish(first.all_jobs()[0])
        jobs.write_failure(first.all_jobs()[1].folder, 'diverged', '')
        jobs.write_failure(first.all_jobs()[2].folder, 'failed', '')
        with pytest.raises(UserError, match='in use by another study'), StudyRun(first.study, folder):
            pass
    with StudyRun(study({'a': {}, 'b': {}, 'c': {}}, seeds=2), folder) as second:
        assert [(job.arm.name, job.seed) for job in second.jobs()] == [('c', 0), ('a', 1), ('b', 1), ('c', 1)]
        assert second.num_done() == 2


def test_a_study_refuses_changed_arms_and_the_folder_of_a_run(tmp_path):
    folder = str(tmp_path / 'study')
    with StudyRun(study({'a': {}}), folder) as run:
        finish(run.all_jobs()[0])
    with pytest.raises(UserError, match=r"arm 'a': has another config.*config.batch_size: 128 -> 64"), \
            StudyRun(study({'a': {'batch_size': 64}}), folder):
        pass
    with pytest.raises(UserError, match='holds a study'), claim(folder, run.study.arms[0].config):
        pass
    with pytest.raises(UserError, match='holds a run, not a study'), StudyRun(study({'a': {}}), f'{folder}/a/seed0'):
        pass


def test_missing_data_stops_a_study_before_its_runs(tmp_path):
    arms = {name: {'data.name': name, 'data.dir': str(tmp_path)} for name in ('cifar10', 'mnist')}
    with StudyRun(study(arms), str(tmp_path / 'study')) as run, pytest.raises(UserError, match=r"^config.data.dir: "):
        run.train(LocalExecutor(1, {}, []), lambda *_: None, lambda: None, [])
    assert not os.path.exists(tmp_path / 'study' / 'cifar10' / 'seed0')
