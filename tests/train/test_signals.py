"""What a signal does when the loop does not heed it, and when it does."""

import subprocess
import sys

import pytest

PROGRAM = '''
import os, signal, sys, threading, time
from jaxcnn.train import signals
signals.PATIENCE, signals.AT_ONCE = {patience}, 0.2
with signals.stop_on_signals() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    {then}
    print('goes on', flush=True)
'''


@pytest.mark.parametrize(('then', 'patience', 'code'), [
    ('time.sleep(20)', 0.5, 143),  # nobody looks
    ('stop.acknowledge(); time.sleep(1.5)', 0.5, 0),
    ('stop.acknowledge(); time.sleep(0.5); os.kill(os.getpid(), signal.SIGTERM); time.sleep(20)', 0.6, 143),
    ('threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start(); time.sleep(20)', 60, 143),
], ids=['not heeded', 'heeded', 'heeded, and a second one', 'a second one while nobody looks'])
def test_a_run_ends_at_once_where_it_does_not_heed_a_signal_or_another_comes(then, patience, code):
    done = subprocess.run([sys.executable, '-c', PROGRAM.format(then=then, patience=patience)], timeout=60,
                          capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert ('ended at once' in done.stderr) == (code != 0) == ('goes on' not in done.stdout)
