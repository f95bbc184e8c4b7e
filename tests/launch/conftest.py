"""Fixtures that run the commands in processes of their own."""

import multiprocessing
import os
import subprocess
import sys

import forked
import pytest

TINY = '''
from jaxcnn.config import make

def get_config():
    return make(duration=dict(steps=4), batch_size=32,
                model=dict(name='shallow_cnn', widths=(4, 4, 8, 8), hidden=16, dropout=0.0),
                data=dict(name='digits', image_size=16),
                optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.05, schedule='constant'),
                eval=dict(every=dict(steps=2)), log_every=dict(steps=1))
'''


@pytest.fixture(scope='session')
def environment(caches):
    """A function that returns the environment of a command with so many devices and the caches of the session."""
    def make_environment(devices=1):
        return {**os.environ, 'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count={devices}',
                'PYTHONWARNINGS': 'ignore::DeprecationWarning'}
    return make_environment


@pytest.fixture(scope='session')
def start(environment):
    """A function that starts a command as a user does, and does not wait: `start('train', '--workdir=...', devices=8)`."""
    def start_command(name, *arguments, devices=1):
        return subprocess.Popen([sys.executable, f'launch/{name}.py', *map(str, arguments)], cwd=forked.ROOT, text=True,
                                env=environment(devices), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return start_command


@pytest.fixture(scope='session')
def fork(environment):
    """A function that forks a command, which draws no figures, and does not wait.

    `fork('train', '--workdir=...', outputs=[path, path], devices=8)` appends standard output and error to the two files.
    `folder` is the working directory, by default that of the repository.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(forked.LIBRARIES)

    def fork_command(name, *arguments, outputs, devices=1, file_limit=0, folder=forked.ROOT):
        process = context.Process(target=forked.main, args=(
            [os.path.join(forked.ROOT, 'launch', f'{name}.py'), *map(str, arguments)], environment(devices), file_limit,
            list(map(str, outputs)), str(folder)))
        process.start()
        return process
    return fork_command


@pytest.fixture(scope='session')
def command(start, fork, tmp_path_factory):
    """A function that runs a command and returns its exit code, and the lines of its standard output and error.

    `command('train', '--workdir=...', devices=8)` is forked, for speed; `fresh=True` runs it as a user does. `folder` is the
    working directory, by default that of the repository.
    """
    def run_command(name, *arguments, devices=1, file_limit=0, fresh=False, folder=forked.ROOT):
        if fresh:
            process = start(name, *arguments, devices=devices)
            out, err = process.communicate()
            return process.returncode, out.splitlines(), err.splitlines()
        outputs = [tmp_path_factory.mktemp('command') / stream for stream in ('out', 'err')]
        process = fork(name, *arguments, outputs=outputs, devices=devices, file_limit=file_limit, folder=folder)
        process.join()
        return process.exitcode, *(path.read_text().splitlines() for path in outputs)
    return run_command


@pytest.fixture(scope='session')
def tiny_config(tmp_path_factory):
    """A config file whose run takes seconds: digits at 16x16, 4 steps, checkpoints at 2 and 4."""
    path = tmp_path_factory.mktemp('config') / 'tiny.py'
    path.write_text(TINY)
    return path


@pytest.fixture(scope='session')
def tiny_run(tiny_config, command, tmp_path_factory):
    """The workdir of a finished run of `tiny_config`; tests that change it copy it."""
    folder = tmp_path_factory.mktemp('runs') / 'tiny'
    code, _, err = command('train', f'--config={tiny_config}', f'--workdir={folder}')
    assert code == 0, '\n'.join(err)
    return folder


@pytest.fixture(scope='session')
def snapshot():
    """A function that returns the content of every file in a folder, except its lock, by path."""
    def read_files(folder):
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*'))
                if p.is_file() and p.name != '.lock'}
    return read_files
