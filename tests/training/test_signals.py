"""Signals that the loop acknowledges or does not, and signals while steps are unsaved."""

import subprocess
import sys

import pytest

# a second signal is sent repeatedly, because on a busy machine two signals may count as one
PROGRAM = '''
import os, signal, sys, time
from jaxcnn.training import signals
signals.ACKNOWLEDGE_TIMEOUT, signals.SAME_SIGNAL_SECONDS = {timeout}, 0.2

def send(signum):
    os.kill(os.getpid(), signum)

def send_repeatedly(signum):
    while True:
        send(signum)
        time.sleep(0.3)

with signals.stop_on_signals(end_process={end_process}) as stop:
    {code}
    print('continues', flush=True)
'''


def run(code, timeout=0.5, end_process=True):
    program = PROGRAM.format(code=code, timeout=timeout, end_process=end_process)
    return subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)


@pytest.mark.parametrize(('code', 'timeout', 'exit_code'), [
    ('send(signal.SIGTERM); send(signal.SIGTERM); time.sleep(600)', 0.5, 143),
    ('stop.acknowledged = True; send(signal.SIGHUP); time.sleep(1.5)', 0.5, 0),
    ('stop.unsaved = True; send(signal.SIGTERM); time.sleep(1.5)', 0.5, 0),  # as in a long step
    ('stop.acknowledged = True; send_repeatedly(signal.SIGTERM)', 0.5, 143),
    ('stop.unsaved = True; send_repeatedly(signal.SIGINT)', 0.5, 130),
    ('send_repeatedly(signal.SIGTERM)', 600, 143),
], ids=['not acknowledged', 'acknowledged', 'unsaved', 'acknowledged, then a second signal', 'unsaved, then a second signal',
        'second signal'])
def test_process_ends_at_a_second_signal_or_when_nothing_is_unsaved_and_the_first_is_not_acknowledged(
        code, timeout, exit_code):
    result = run(code, timeout)
    assert result.returncode == exit_code, result.stderr
    assert ('ended at once' in result.stderr) == (exit_code != 0) == ('continues' not in result.stdout)


def test_from_python_no_signal_ends_the_process_and_a_second_one_raises_an_exception():
    result = run('send(signal.SIGINT); time.sleep(1.5)', end_process=False)
    assert (result.returncode, result.stdout) == (0, 'continues\n')
    result = run('send_repeatedly(signal.SIGINT)', end_process=False)
    assert result.stderr.endswith('KeyboardInterrupt\n')


@pytest.mark.parametrize(('code', 'last_line'), [
    ('send(signal.SIGTERM); raise RuntimeError("a worker is gone")', 'stopped by SIGTERM at step 7; the same command'),
    ('send(signal.SIGTERM); stop.acknowledge(); raise OSError("disk full")', 'OSError: disk full'),
], ids=['not acknowledged', 'while saving'])
def test_an_error_after_a_signal_counts_as_a_stop_unless_it_comes_from_saving(code, last_line):
    result = run(f'stop.saved_step = 7; {code}')
    assert last_line in result.stderr.splitlines()[-1]


def test_a_hangup_signal_that_nohup_ignores_stays_ignored():
    program = 'import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)' + PROGRAM.format(
        code='send(signal.SIGHUP); print(bool(stop))', timeout=0.5, end_process=True)
    result = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert result.stdout == 'False\ncontinues\n'
