"""A run that is killed and stopped, and begun again with the same command, ends as if nothing had happened."""

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
KILLS = int(os.environ.get('JAXCNN_KILLS', '1'))  # JAXCNN_KILLS=10 for a longer trial
pytestmark = pytest.mark.launch

CONFIG = '''
from jaxcnn.config import make

def get_config():
    return make(duration=dict(steps=60), batch_size=32,
                model=dict(name='shallow_cnn', widths=(8, 8, 16, 16), hidden=16),
                data=dict(name='digits', image_size=16,
                          augment='pad_crop(1)|alternating_flip|mixup(0.2)|cutout(4)',
                          normalize='gcn|zca', balance='sampling'),
                optim=dict(optimizer='adam', learning_rate=3e-3, schedule='plateau', ema_decay=0.9,
                           lookahead=dict(every=4, ramp=1.0),
                           groups=[dict(match='Conv_0', until=dict(steps=30)), dict(match='Dense_0', optimizer='muon'),
                                   dict(match='bias', rate=4.0), dict(match='Dense_1/kernel', rate=0.0)],
                           switch=[dict(at=dict(steps=30), optimizer=dict(name='sgd', momentum=0.9),
                                        learning_rate=0.01)]),
                batch_schedule=[(dict(steps=30), 64)], parallel=dict(devices=1),
                whiten=dict(match='Conv_0/kernel', images=50),
                eval=dict(every=dict(steps=15), tta='flip_shift'),
                checkpoint=dict(every=dict(steps=6)), log_every=dict(steps=10))
'''

CHANGES = {
    'one device': {},
    # dispatches of five steps, and of one where a checkpoint comes before the fifth
    'otherwise': {'|mixup(0.2)|cutout(4)': '', "balance='sampling'": "balance='sampling', placement='host', workers=1",
                  'ema_decay=0.9': 'accumulate=2', 'every=dict(steps=6)': 'every=dict(steps=12)',
                  'batch_schedule=[(dict(steps=30), 64)], parallel=dict(devices=1)':
                  "freeze_bn=dict(steps=30), parallel=dict(backend='pmap', devices=2, steps_per_dispatch=5)"},
}


def start(optimised, config, name):
    """Trains in the folder `name` beside the config; `optimised`: with all of XLA's optimisations, as a person does."""
    folder = config.parent / name
    environment = {**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=2'}
    if optimised:
        del environment['JAX_DISABLE_MOST_OPTIMIZATIONS']
    with open(f'{folder}.log', 'a') as log:
        return subprocess.Popen([sys.executable, 'launch/train.py', f'--config={config}', f'--workdir={folder}'],
                                cwd=ROOT, env=environment, stdout=log, stderr=log)


def metric_rows(folder, missing=None):
    path = os.path.join(folder, 'metrics.jsonl')
    if missing is not None and not os.path.exists(path):
        return missing
    with open(path) as lines:
        rows = [json.loads(line) for line in lines if line.endswith('\n')]
    return [{k: v for k, v in row.items() if k != 'images_per_second'} for row in rows]


def assert_same_state(a, b):
    """The last checkpoints hold the same bits, those of the optimizer included."""
    states = [{name: array.tobytes() for name, array in golden.read_state(str(folder)).items()} for folder in (a, b)]
    assert states[0] == states[1]


def assert_same_run(a, b):
    assert metric_rows(a) == metric_rows(b)
    runs = [load_run(str(f)) for f in (a, b)]
    assert runs[0].checkpoints.steps()[-1] == runs[1].checkpoints.steps()[-1] == runs[0].experiment.timeline.total
    assert runs[0].find_step('best') == runs[1].find_step('best')
    assert_same_state(a, b)
    summaries = [workdir.read_json(os.path.join(f, 'summary.json')) for f in (a, b)]
    for name in ('val_accuracy', 'test_accuracy', 'test_loss', 'best_step', 'steps'):
        assert summaries[0][name] == summaries[1][name]


@pytest.fixture(scope='module', params=['one device', pytest.param('otherwise', marks=pytest.mark.slow)])
def uninterrupted(request, tmp_path_factory):
    """Folder with the run `whole`, and what begins, or goes on with, another beside it by its name."""
    folder = tmp_path_factory.mktemp('resume')
    config, text = folder / 'config.py', CONFIG
    for part, other in CHANGES[request.param].items():
        assert text.count(part) == 1
        text = text.replace(part, other)
    config.write_text(text)
    begin = functools.partial(start, bool(CHANGES[request.param]), config)
    assert begin('whole').wait() == 0, (folder / 'whole.log').read_text()
    return folder, begin


def wait_for_rows(process, folder, count):
    """Returns whether the process still runs when its metrics have `count` rows."""
    while process.poll() is None and len(metric_rows(folder, missing=[])) < count:
        time.sleep(0.01)
    return process.poll() is None


def test_a_run_killed_at_random_moments_and_stopped_ends_bit_identical(uninterrupted):
    folder, begin = uninterrupted
    stopped, log = folder / 'stopped', folder / 'stopped.log'
    rng, total = random.Random(0), len(metric_rows(folder / 'whole'))
    process = begin('stopped')
    time.sleep(2)  # it is killed while it starts
    process.kill()
    process.wait()
    rows_at_kills = []
    for _ in range(KILLS):
        process = begin('stopped')
        if wait_for_rows(process, stopped, len(metric_rows(stopped, missing=[])) + rng.uniform(0, total / (KILLS + 1))):
            time.sleep(rng.uniform(0, 0.5))
            process.kill()
        if process.wait() == -signal.SIGKILL:
            rows_at_kills.append(len(metric_rows(stopped, missing=[])))
    assert any(0 < rows < total for rows in rows_at_kills), f'rows at kills: {rows_at_kills}'
    process = begin('stopped')
    assert wait_for_rows(process, stopped, len(metric_rows(stopped, missing=[])) + 1), 'over before it could be stopped'
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    assert 'stopped by SIGTERM at step' in log.read_text()
    assert begin('stopped').wait() == 0, log.read_text()
    assert 'resuming' in log.read_text()
    assert 'Traceback' not in log.read_text()
    assert_same_run(folder / 'whole', stopped)


@pytest.mark.parametrize('uninterrupted', ['one device'], indirect=True, scope='module')
def test_a_finished_run_started_again_changes_nothing(uninterrupted):
    folder, begin = uninterrupted
    before = metric_rows(folder / 'whole')
    assert begin('whole').wait() == 0
    assert metric_rows(folder / 'whole') == before
