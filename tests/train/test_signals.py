"""What a signal does where the loop does not heed it, where it does, and where steps are unsaved."""

import subprocess
import sys

import pytest

# signals are sent again and again where one must be the second: on a busy machine two may count as one
PROGRAM = '''
import os, signal, sys, time
from jaxcnn.train import signals
signals.PATIENCE, signals.AT_ONCE = {patience}, 0.2

def send(signum):
    os.kill(os.getpid(), signum)

def send_for_ever(signum):
    while True:
        send(signum)
        time.sleep(0.3)

with signals.stop_on_signals(end_process={end_process}) as stop:
    {then}
    print('continues', flush=True)
'''


def run(then, patience=0.5, end_process=True):
    program = PROGRAM.format(then=then, patience=patience, end_process=end_process)
    return subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)


@pytest.mark.parametrize(('then', 'patience', 'code'), [
    ('send(signal.SIGTERM); send(signal.SIGTERM); time.sleep(600)', 0.5, 143),  # nobody looks
    ('stop.acknowledged = True; send(signal.SIGHUP); time.sleep(1.5)', 0.5, 0),
    ('stop.unsaved = True; send(signal.SIGTERM); time.sleep(1.5)', 0.5, 0),  # in a long step
    ('stop.acknowledged = True; send_for_ever(signal.SIGTERM)', 0.5, 143),
    ('stop.unsaved = True; send_for_ever(signal.SIGINT)', 0.5, 130),
    ('send_for_ever(signal.SIGTERM)', 600, 143),
], ids=['not heeded', 'heeded', 'unsaved', 'heeded, and a second one', 'unsaved, and a second one', 'a second one'])
def test_a_run_ends_at_once_where_nothing_is_unsaved_or_another_signal_comes(then, patience, code):
    done = run(then, patience)
    assert done.returncode == code, done.stderr
    assert ('ended at once' in done.stderr) == (code != 0) == ('continues' not in done.stdout)


def test_from_python_no_signal_ends_the_process_and_a_second_one_raises():
    done = run('send(signal.SIGINT); time.sleep(1.5)', end_process=False)
    assert (done.returncode, done.stdout) == (0, 'continues\n')
    done = run('send_for_ever(signal.SIGINT)', end_process=False)
    assert done.stderr.endswith('KeyboardInterrupt\n')


@pytest.mark.parametrize(('then', 'last_line'), [
    ('send(signal.SIGTERM); raise RuntimeError("a worker is gone")', 'stopped by SIGTERM at step 7; started again'),
    ('send(signal.SIGTERM); stop.acknowledge(); raise OSError("disk full")', 'OSError: disk full'),
], ids=['before it is heeded', 'while saving'])
def test_an_error_after_a_signal_is_a_stop_unless_it_is_one_of_saving(then, last_line):
    done = run(f'stop.saved_step = 7; {then}')
    assert last_line in done.stderr.splitlines()[-1]


def test_a_hangup_that_nohup_ignores_stays_ignored():
    program = 'import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)' + PROGRAM.format(
        then='send(signal.SIGHUP); print(bool(stop))', patience=0.5, end_process=True)
    assert subprocess.run([sys.executable, '-c', program], capture_output=True, text=True).stdout == 'False\ncontinues\n'
