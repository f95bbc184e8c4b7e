"""A run that is killed, stopped and resumed ends with the same bits as an uninterrupted one."""

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time

import golden
import pytest

from jaxcnn.run import load_run
from jaxcnn.training import workdir

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
KILLS = int(os.environ.get('JAXCNN_KILLS', '1'))  # JAXCNN_KILLS=10 makes the test more thorough
pytestmark = pytest.mark.launch

CONFIG = '''
from jaxcnn.config import make

def get_config():
    return make(duration=dict(steps=70), batch_size=32,
                model=dict(name='shallow_cnn', widths=(8, 8, 16, 16), hidden=16),
                data=dict(name='digits', image_size=16,
                          augment='pad_crop(1)|alternating_flip|mixup(0.2)|cutout(4)',
                          normalize='gcn|zca', balance='sampling', train_size=(16, 20)),
                optim=dict(optimizer='adam', learning_rate=3e-3, schedule='plateau', ema_decay=0.9,
                           lookahead=dict(every=4, ramp=1.0),
                           groups=[dict(match='Conv_0', until=dict(steps=30)), dict(match='Dense_0', optimizer='muon'),
                                   dict(match='bias', rate=4.0), dict(match='Dense_1/kernel', rate=0.0)],
                           switch=[dict(at=dict(steps=30), optimizer=dict(name='sgd', momentum=0.9),
                                        learning_rate=0.01)]),
                batch_schedule=[(dict(steps=30), 64)], parallel=dict(devices=1),
                whiten=dict(match='Conv_0/kernel', images=50),
                eval=dict(every=dict(steps=15), tta='flip_shift'),
                checkpoint=dict(every=dict(steps=6), at=(dict(steps=7), dict(fraction=0.47))), log_every=dict(steps=10))
'''

# less to compile, but everything that a checkpoint must hold for the run to continue: two optimizers, an average, slow
# parameters, a plateau, the position in a balanced epoch, and random numbers
SMALLER = {
    'widths=(8, 8, 16, 16)': 'widths=(4, 4, 4, 4)', '|mixup(0.2)|cutout(4)': '', 'gcn|zca': 'gcn|standardize',
    "dict(match='Dense_0', optimizer='muon'),": '', "whiten=dict(match='Conv_0/kernel', images=50),": '',
    ", tta='flip_shift'": ''}
CHANGES = {
    'one device': SMALLER,
    'all options': {},
    # dispatches of five steps, or of one step if a checkpoint is due before the fifth
    'two devices': {'|mixup(0.2)|cutout(4)': '', "balance='sampling'": "balance='sampling', placement='host', workers=1",
                  'ema_decay=0.9': 'accumulate=2', 'every=dict(steps=6)': 'every=dict(steps=12)',
                  'batch_schedule=[(dict(steps=30), 64)], parallel=dict(devices=1)':
                  "freeze_bn=dict(steps=30), parallel=dict(backend='pmap', devices=2, steps_per_dispatch=5)"},
}


class Optimised(subprocess.Popen):
    """A run with all of XLA's optimisations, which a forked one does not have, with the interface of a forked one."""

    def __init__(self, arguments, log):
        environment = {**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=2'}
        del environment['JAX_DISABLE_MOST_OPTIMIZATIONS']
        with open(log, 'a') as file:
            super().__init__([sys.executable, 'launch/train.py', *arguments], cwd=ROOT, env=environment, stdout=file,
                             stderr=file)

    def is_alive(self):
        return self.poll() is None

    def join(self):
        self.wait()

    @property
    def exitcode(self):
        return self.poll()


def start(fork, optimised, config, name):
    """Start a run in the folder `name` beside the config; `optimised`: with all of XLA's optimisations."""
    folder = config.parent / name
    log, arguments = f'{folder}.log', [f'--config={config}', f'--workdir={folder}']
    return Optimised(arguments, log) if optimised else fork('train', *arguments, outputs=[log, log], devices=2)


def exit_code(process):
    """Wait for the end of a process and return its exit code, or the negative number of the signal that killed it."""
    process.join()
    return process.exitcode


def metric_rows(folder, missing=None):
    path = os.path.join(folder, 'metrics.jsonl')
    if missing is not None and not os.path.exists(path):
        return missing
    with open(path) as lines:
        rows = [json.loads(line) for line in lines if line.endswith('\n')]
    return [{k: v for k, v in row.items() if k != 'images_per_second'} for row in rows]


def assert_same_state(a, b):
    """Check that the last checkpoints of two runs hold the same bits, including the state of the optimizer."""
    states = [{name: array.tobytes() for name, array in golden.read_state(str(folder)).items()} for folder in (a, b)]
    assert states[0] == states[1]


def assert_same_run(a, b):
    assert metric_rows(a) == metric_rows(b)
    runs = [load_run(str(f)) for f in (a, b)]
    assert runs[0].checkpoints.steps()[-1] == runs[1].checkpoints.steps()[-1] == runs[0].experiment.timeline.total
    for run in runs:  # those of checkpoint.at, the newest two and the best one
        assert run.steps() == sorted({7, 33, *run.steps()[-2:], run.find_step('best')})
    assert runs[0].find_step('best') == runs[1].find_step('best')
    assert_same_state(a, b)
    summaries = [workdir.read_json(os.path.join(f, 'summary.json')) for f in (a, b)]
    for name in ('val_accuracy', 'test_accuracy', 'test_loss', 'best_step', 'steps'):
        assert summaries[0][name] == summaries[1][name]


@pytest.fixture(scope='module', params=['one device', *(
    pytest.param(name, marks=pytest.mark.slow) for name in ('all options', 'two devices'))])
def uninterrupted_run(request, tmp_path_factory, fork):
    """The folder of the run `uninterrupted`, and a function that starts or resumes the run of a name in this folder."""
    folder = tmp_path_factory.mktemp('resume')
    config, text = folder / 'config.py', CONFIG
    for old, new in CHANGES[request.param].items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    config.write_text(text)
    start_run = functools.partial(start, fork, request.param == 'two devices', config)
    assert exit_code(start_run('uninterrupted')) == 0, (folder / 'uninterrupted.log').read_text()
    return folder, start_run


def wait_for_rows(process, folder, count):
    """Wait until the metrics have `count` rows, and return whether the process still runs."""
    while process.is_alive() and len(metric_rows(folder, missing=[])) < count:
        time.sleep(0.01)
    return process.is_alive()


def test_a_run_killed_at_random_moments_and_stopped_ends_bit_identical(uninterrupted_run):
    folder, start_run = uninterrupted_run
    stopped, log = folder / 'stopped', folder / 'stopped.log'
    rng, total = random.Random(0), len(metric_rows(folder / 'uninterrupted'))
    process = start_run('stopped')
    time.sleep(1)  # so that it is killed while it starts
    process.kill()
    process.join()
    rows_at_kills = []
    for _ in range(KILLS):
        process = start_run('stopped')
        if wait_for_rows(process, stopped, len(metric_rows(stopped, missing=[])) + rng.uniform(0, total / (KILLS + 1))):
            time.sleep(rng.uniform(0, 0.05))  # not so long that a fast machine ends the run
            process.kill()
        if exit_code(process) == -signal.SIGKILL:
            rows_at_kills.append(len(metric_rows(stopped, missing=[])))
    assert any(0 < rows < total for rows in rows_at_kills), f'rows at kills: {rows_at_kills}'
    process = start_run('stopped')
    assert wait_for_rows(process, stopped, len(metric_rows(stopped, missing=[])) + 1), 'the run ended before it was stopped'
    os.kill(process.pid, signal.SIGTERM)
    assert exit_code(process) == 128 + signal.SIGTERM
    assert 'stopped by SIGTERM at step' in log.read_text()
    assert exit_code(start_run('stopped')) == 0, log.read_text()
    assert 'resuming' in log.read_text()
    assert 'Traceback' not in log.read_text()
    assert_same_run(folder / 'uninterrupted', stopped)


@pytest.mark.parametrize('uninterrupted_run', ['one device'], indirect=True, scope='module')
def test_restarting_a_finished_run_changes_nothing(uninterrupted_run):
    folder, start_run = uninterrupted_run
    before = metric_rows(folder / 'uninterrupted')
    assert exit_code(start_run('uninterrupted')) == 0
    assert metric_rows(folder / 'uninterrupted') == before
