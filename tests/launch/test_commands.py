"""The commands as a user runs them."""

import contextlib
import csv
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time

import golden
import jax
import numpy as np
import pytest
from PIL import Image
from tfds_files import write_tfds

from jaxcnn.config import DataConfig
from jaxcnn.config import load as load_config
from jaxcnn.data.sources import find
from jaxcnn.errors import as_text
from jaxcnn.run import load_run
from jaxcnn.training.workdir import claim

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
pytestmark = pytest.mark.launch

CONFIG = '''
from jaxcnn.config import make

def get_config():
    return make(duration=dict(steps=60), batch_size=128,
                model=dict(name='shallow_cnn', widths=(8, 8, 16, 16), hidden=32, dropout=0.0),
                data=dict(name='digits', image_size=16, augment='pad_crop(1)'),
                optim=dict(optimizer='adam', learning_rate=1e-2), eval=dict(every=dict(steps=20)), log_every=dict(steps=10))
'''


def environment(devices=1):
    return {**os.environ, 'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count={devices}'}


def command_line(name, *arguments, draw=True):
    """Return the arguments of a process that runs a command; `draw=False`: without the figures of runs, for speed."""
    programs = [f'launch/{name}.py'] if draw else ['tests/launch/forked.py', f'launch/{name}.py']
    return [sys.executable, *programs, *map(str, arguments)]


@pytest.fixture(scope='module')
def run(command):
    """A function that runs a command, which must succeed, and returns the lines of its standard output and error."""
    def run_command(name, *arguments, devices=1):
        code, out, err = command(name, *arguments, devices=devices)
        assert code == 0, '\n'.join(err)
        return out, err
    return run_command


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp('config') / 'tiny.py'
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope='module')
def watched_run(config, fork, tmp_path_factory):
    """The workdir of a run, its log, and what `evaluate --watch` printed during the run."""
    folder = tmp_path_factory.mktemp('watched')
    out, errors = (tmp_path_factory.mktemp('watcher') / stream for stream in ('out', 'err'))
    watcher = fork('evaluate', f'--workdir={folder}', '--watch', '--interval=0.2', '--json', outputs=[out, errors])
    trained = subprocess.run(command_line('train', f'--config={config}', f'--workdir={folder}'), cwd=ROOT, env=environment(),
                             capture_output=True, text=True)
    assert trained.returncode == 0, trained.stderr
    watcher.join()
    assert watcher.exitcode == 0, errors.read_text()
    return folder, trained.stderr, [json.loads(line) for line in out.read_text().splitlines()]


def test_train_logs_progress_accuracy_and_the_path_of_the_report(watched_run):
    folder, log, _ = watched_run
    assert 'test accuracy' in log
    assert str(folder / 'report.md') in log
    assert 'images/s' in log
    assert 'left' in log
    assert (folder / 'report.md').read_text().startswith('# shallow_cnn on digits\n\nName of the run: tiny.\n')


def test_seeds_are_separate_runs_whose_statistics_are_written(tiny_config, tiny_run, run, tmp_path):
    flags = [f'--config={tiny_config}', f'--workdir={tmp_path}', '--seeds=2', '--config.eval.tta=flip']
    _, log = run('train', *flags)
    runs = [json.loads((tmp_path / f'seed{seed}' / 'summary.json').read_text()) for seed in (0, 1)]
    assert [r['seed'] for r in runs] == [0, 1]
    assert runs[0]['test_loss'] != runs[1]['test_loss']
    statistics = json.loads((tmp_path / 'seeds.json').read_text())
    assert statistics['seeds'] == [0, 1]
    for name in ('test_accuracy', 'test_tta_accuracy', 'test_loss', 'val_accuracy'):
        values = [r[name] for r in runs]
        assert statistics[name]['values'] == values
        assert statistics[name]['mean'] == pytest.approx(np.mean(values))
        assert statistics[name]['std'] == pytest.approx(np.std(values, ddof=1))
        assert (statistics[name]['min'], statistics[name]['max']) == (min(values), max(values))
    assert 'test_accuracy of 2 seeds: mean ' in '\n'.join(log)
    # runs that are skipped: a copy, one with another seed than its folder says, a damaged one, one with another config
    for other in ('seed0_old', 'seed7', 'seed8', 'seed9'):
        shutil.copytree(tmp_path / 'seed0', tmp_path / other)
        (tmp_path / other / 'summary.json').write_text(json.dumps({**runs[0], 'test_loss': -1.0}))
    (tmp_path / 'seed8' / 'config.json').write_text('{')
    settings = json.loads((tmp_path / 'seed9' / 'config.json').read_text())
    (tmp_path / 'seed9' / 'config.json').write_text(json.dumps({**settings, 'seed': 9, 'batch_size': 16}))
    _, log = run('train', *flags, '--config.seed=1')
    assert 'skipped: ' in '\n'.join(log)
    statistics = json.loads((tmp_path / 'seeds.json').read_text())
    assert statistics['seeds'] == [0, 1, 2]
    assert statistics['test_loss']['values'][:2] == [r['test_loss'] for r in runs]
    alone = json.loads((tiny_run / 'summary.json').read_text())
    assert (alone['seed'], alone['test_loss']) == (0, runs[0]['test_loss'])


def test_seeds_that_diverge_are_counted_and_do_not_stop_the_others(tiny_config, command, tmp_path):
    code, _, lines = command('train', f'--config={tiny_config}', f'--workdir={tmp_path}', '--seeds=2',
                             '--config.optim.learning_rate=1e30')
    assert code == 3
    assert [sum(line.startswith(f'seed {seed}: ') for line in lines) for seed in (0, 1)] == [1, 1]
    assert lines[-1] == 'error: 2 of 2 seeds diverged: 0, 1'
    assert json.loads((tmp_path / 'seeds.json').read_text()) == {'seeds': []}


def test_watch_evaluates_checkpoints_until_the_run_is_complete(watched_run):
    folder, _, rows = watched_run
    steps = [row['step'] for row in rows]
    assert steps[-1] == 60
    assert steps == sorted(set(steps))
    assert set(steps) <= {20, 40, 60}
    with open(folder / 'summary.json') as f:
        summary = json.load(f)
    if summary['best_step'] == 60:
        assert rows[-1]['accuracy'] == pytest.approx(summary['test_accuracy'])
    assert rows[-1]['count'] == 359


def test_evaluate_counts_every_image_on_any_number_of_devices(watched_run, run):
    folder, _, _ = watched_run
    rows = [json.loads(run('evaluate', f'--workdir={folder}', '--split=train', '--json', devices=n)[0][0]) for n in (1, 8)]
    assert [r['count'] for r in rows] == [1294, 1294]
    assert rows[0]['accuracy'] == rows[1]['accuracy']


def test_predict_recognises_digits_at_any_place_on_light_and_dark_images(watched_run, run, tmp_path):
    folder, _, _ = watched_run
    examples = find(DataConfig(name='digits')).splits['test']()
    paths, labels = [], []
    for i in range(40):
        image, label = examples[i]['image'], examples[i]['label']
        enlarged = np.asarray(Image.fromarray(image[..., 0]).resize((200, 200), Image.Resampling.BICUBIC), np.float64)
        page = np.zeros((300 + i, 420))
        page[40:240, 100 + i:300 + i] = enlarged
        page = 10 + page * 0.9
        page = page if i % 2 else 255 - page
        paths.append(tmp_path / os.fsdecode(b'%d\xe9.%s' % (i, (b'png', b'jpg')[i // 2 % 2])))  # a name that is not UTF-8
        Image.fromarray(page.clip(0, 255).astype(np.uint8)).convert('RGB').save(paths[-1])
        labels.append(str(label))
    tables = f'--csv={tmp_path / "out.csv"}', f'--submission={tmp_path / "sub.csv"}'
    lines, _ = run('predict', f'--workdir={folder}', *tables, *paths)
    with open(tmp_path / 'out.csv', errors='surrogateescape') as f:
        rows = list(csv.DictReader(f))
    with open(tmp_path / 'sub.csv', errors='surrogateescape') as f:
        expected = [['Id', 'Category'], *([path.stem, row['class_1']] for path, row in zip(paths, rows, strict=True))]
        assert list(csv.reader(f)) == expected
    assert [r['image'] for r in rows] == [str(p) for p in paths]
    accuracy = np.mean([r['class_1'] == label for r, label in zip(rows, labels, strict=True)])
    with open(folder / 'summary.json') as f:
        assert accuracy > json.load(f)['test_accuracy'] - 0.15
    for row, line in zip(rows, lines, strict=True):
        probabilities = [float(row[f'probability_{k}']) for k in range(1, 6)]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) <= 1.00001
        assert line.startswith(f'{as_text(row["image"])}: {row["class_1"]}  (')


def test_watch_fails_after_the_run_is_killed(tiny_config, fork, command, tmp_path):
    process = fork('train', f'--config={tiny_config}', f'--workdir={tmp_path}', '--config.duration.steps=9999',
                   outputs=[os.devnull] * 2)
    while not any(path.name.isdecimal() for path in tmp_path.glob('checkpoints/*')):
        assert process.is_alive()
        time.sleep(0.05)
    process.kill()
    process.join()
    code, out, err = command('evaluate', f'--workdir={tmp_path}', '--watch', '--interval=0.1')
    assert code == 1, err
    assert 'has ended before it was complete, after checkpoint ' in err[-1]
    assert out[0].startswith('checkpoint ')


@pytest.mark.slow
def test_two_processes_with_pmap_train_as_one_with_two_devices(config, run, tmp_path):
    flags = [f'--config={config}', '--config.parallel.backend=pmap', '--config.data.placement=host',
             '--config.duration.steps=20']
    subprocess.run([sys.executable, 'launch/multiprocess.py', '-n', '2', '--',
                    *command_line('train', *flags, f'--workdir={tmp_path / "two"}')],
                   cwd=ROOT, env=environment(), check=True)
    run('train', *flags, f'--workdir={tmp_path / "one"}', devices=2)
    two, one = (load_run(str(tmp_path / n)).load_weights(20) for n in ('two', 'one'))
    flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves((s.params, s.batch_stats))]) for s in (two, one)]
    assert np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1]) < 1e-5


# clusters set such variables; nothing listens on this port
PROXY = {'http_proxy': 'http://127.0.0.1:9', 'https_proxy': 'http://127.0.0.1:9'}


@pytest.fixture
def two_processes(config, tmp_path):
    """Starts a run of two processes: `two_processes(folder)`; its flags are the attribute `flags`."""
    flags = [f'--config={config}', '--config.optim.schedule=constant', '--config.eval.every.steps=60']

    def start_training(name):
        return subprocess.Popen([sys.executable, 'launch/multiprocess.py', '-n', '2', '--', *command_line(
            'train', *flags, '--config.duration.steps=120', f'--workdir={tmp_path / name}', draw=False)],
            cwd=ROOT, env={**environment(), **PROXY}, stderr=subprocess.PIPE, text=True)
    start_training.flags = flags
    return start_training


def stop_after_rows(two_processes, folder, count):
    """Train in the folder, and stop the run when its metrics have `count` rows."""
    process = two_processes(folder.name)
    metrics = folder / 'metrics.jsonl'
    while not (metrics.exists() and metrics.read_text().count('\n') >= count):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert 'stopped by SIGTERM at step' in process.communicate()[1]
    assert load_run(str(folder)).find_step('latest') < 120


def test_two_processes_train_as_one_and_are_stopped(two_processes, run, tmp_path):
    stop_after_rows(two_processes, tmp_path / 'two', 2)
    run('train', *two_processes.flags, '--config.duration.steps=20', f'--workdir={tmp_path / "one"}', devices=2)
    two, one = ([json.loads(line) for line in (tmp_path / name / 'metrics.jsonl').read_text().splitlines()]
                for name in ('two', 'one'))
    rows = [(a, b) for a, b in zip(two, one, strict=False) if 'train_loss' in b]
    assert [[row['step'] for row in pair] for pair in rows] == [[10, 10], [20, 20]]
    for a, b in rows:
        for name in ('train_loss', 'train_grad_norm'):
            assert a[name] == pytest.approx(b[name], rel=1e-4)


@pytest.mark.slow
def test_two_processes_resume_bit_identically(two_processes, tmp_path):
    uninterrupted = two_processes('uninterrupted')
    log = uninterrupted.communicate()[1]
    assert uninterrupted.returncode == 0, log
    stop_after_rows(two_processes, tmp_path / 'stopped', 1)
    resumed = two_processes('stopped')
    assert 'resuming' in resumed.communicate()[1]
    assert resumed.returncode == 0
    states = [{array_name: array.tobytes() for array_name, array in golden.read_state(str(tmp_path / name), 120).items()}
              for name in ('uninterrupted', 'stopped')]
    assert states[0] == states[1]


@pytest.mark.parametrize('failing', [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_stops_when_the_other_one_fails(config, tmp_path, failing):
    """The processes are started without the launcher, which would stop the other one.

    Process 0 fails because the workdir is in use, which only it checks. Process 1 fails because it finds no data, while
    process 0 fits the normalisation.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (40, 28, 28, 1), np.uint8)
    write_tfds(tmp_path / '0', 'mnist', dict.fromkeys(('train', 'test'), (pixels, np.arange(40) % 10)))
    flags = [f'--config={config}', f'--workdir={tmp_path / "run"}', '--num_processes=2']
    flags += ['--config.data.name=mnist', '--config.data.normalize=gcn'] if failing else []
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{s.getsockname()[1]}'
    with contextlib.nullcontext() if failing else claim(str(tmp_path / 'run'), load_config(config)):
        processes = [subprocess.Popen(
            command_line('train', *flags, f'--coordinator={address}', f'--process_id={i}'), cwd=ROOT, text=True,
            stderr=subprocess.PIPE, env={**environment(), 'TFDS_DATA_DIR': str(tmp_path / str(i))}) for i in range(2)]
        errors = [p.communicate()[1].splitlines() for p in processes]
    assert [p.returncode for p in processes] == [2, 2]
    assert ['is in use by another run', "'mnist'"][failing] in errors[failing][-1]
    assert f'process {failing} failed; its output gives the reason' in errors[1 - failing][-1]


def run_multiprocess(num_processes, *arguments, **variables):
    """Run `python arguments...` in several processes by the launcher, and return the completed launcher."""
    return subprocess.run(
        [sys.executable, 'launch/multiprocess.py', '-n', str(num_processes), '--', sys.executable, *arguments], cwd=ROOT,
        capture_output=True, text=True, env={**os.environ, **variables})


@pytest.mark.parametrize(('visible_gpus', 'gpus_by_process'), [
    ('0,1,2,3', ['0,1', '2,3']), ('5,GPU-ab', ['5', 'GPU-ab']), ('', ['', ''])])
def test_gpus_are_divided_among_processes(visible_gpus, gpus_by_process):
    program = 'import os; os.write(1, " ".join(map(os.getenv, ["JAX_PROCESS_ID", "CUDA_VISIBLE_DEVICES"])).encode() + b".")'
    launcher = run_multiprocess(2, '-c', program, JAX_PLATFORMS='', CUDA_VISIBLE_DEVICES=visible_gpus)
    assert launcher.returncode == 0, launcher.stderr
    assert sorted(launcher.stdout.split('.')[:-1]) == [f'{i} {gpus}' for i, gpus in enumerate(gpus_by_process)]


def test_gpus_that_cannot_be_divided_evenly_are_reported():
    launcher = run_multiprocess(2, '-V', JAX_PLATFORMS='', CUDA_VISIBLE_DEVICES='0,1,2')
    assert launcher.returncode == 2
    assert '3 GPUs do not divide over 2 processes' in launcher.stderr


def test_the_launcher_names_the_process_that_fails_and_stops_the_others():
    fail_in_process_1 = 'import os, sys, time; sys.exit(3) if os.environ["JAX_PROCESS_ID"] == "1" else time.sleep(3600)'
    launcher = run_multiprocess(3, '-c', fail_in_process_1)
    assert (launcher.returncode, launcher.stderr) == (3, 'process 1 of 3 failed with exit code 3; stopped: 0, 2\n')
    launcher = run_multiprocess(1, '-c', 'import os; os.kill(os.getpid(), 9)')
    assert (launcher.returncode, launcher.stderr) == (137, 'process 0 of 1 was killed by SIGKILL\n')


PRINTING_COMMAND = '''
import argparse, os, sys
from jaxcnn import cli

def run(args):
    with open(sys.argv[1], 'w') as f:
        assert f.fileno() > 2
        os.write(2, b'noise of a library')
    print('caf\\xe9')
    return 0

parser = argparse.ArgumentParser()
parser.add_argument('path')
cli.main(parser, run)
'''


@pytest.mark.parametrize(('redirection', 'code', 'error'), [
    ('<&- >&- 2>&-', 0, ''), ('> /dev/full', 2, 'error: standard output cannot be written: No space left on device'),
    ('| true', 0, ''), ('> "$1.out"', 0, 'noise of a library')], ids=['closed', 'full', 'a pipe that ends', 'ASCII'])
def test_a_command_works_with_unusual_standard_streams(tmp_path, redirection, code, error):
    path = tmp_path / 'written'
    line = f'set -o pipefail; {sys.executable} "$0" "$1" {redirection}'
    (tmp_path / 'printing.py').write_text(PRINTING_COMMAND)
    process = subprocess.run(['bash', '-c', line, tmp_path / 'printing.py', path], capture_output=True, text=True, env={
        **environment(), 'PYTHONPATH': ROOT, 'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'})
    assert process.returncode == code, process.stderr
    assert process.stderr.removeprefix('noise of a library').strip() == error.removeprefix('noise of a library')
    assert path.read_text() == ''
    if redirection.startswith('> "'):
        assert (tmp_path / 'written.out').read_text() == 'caf\\xe9\n'


def test_a_terminal_shows_one_progress_line(tiny_config, tmp_path):
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 200))
    arguments = [f'--config={tiny_config}', f'--workdir={tmp_path}', '--config.duration.steps=30']
    process = subprocess.Popen(command_line('train', *arguments), cwd=ROOT, env=environment(), stderr=terminal,
                               stdout=terminal)
    os.close(terminal)
    output = b''
    while True:
        try:
            output += os.read(controller, 1 << 16)
        except OSError:  # the other end is closed
            break
    assert process.wait() == 0
    text = output.decode()
    assert '\r\x1b[Kepoch' in text
    last_line = text[text.rindex('\r\x1b[Kepoch'):].split('\r\x1b[K')[1]
    assert all(word in last_line for word in ('step 30/30', 'loss', 'accuracy', 'images/s', 'left'))
