"""Locks between processes, with and without `flock`."""

import errno
import fcntl
import logging
import os
import subprocess
import sys

import pytest

from jaxcnn import config as cfg
from jaxcnn import locks
from jaxcnn.errors import UserError
from jaxcnn.locks import LockedError, lock
from jaxcnn.training.workdir import claim


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP])
def without_flock(request, monkeypatch):
    def refuse(*_):
        raise OSError(request.param, os.strerror(request.param))
    monkeypatch.setattr(fcntl, 'flock', refuse)


def ended_process():
    process = subprocess.Popen([sys.executable, '-c', ''])
    process.wait()
    return process.pid


def test_without_flock_a_workdir_is_claimed_with_a_warning_and_a_second_run_is_refused(tmp_path, without_flock, caplog):
    holder = tmp_path / '.lock.holder'
    for _ in range(2):  # the lock is released at the end
        with claim(str(tmp_path), cfg.parse({})):
            assert holder.read_text().split()[:2] == [str(os.getpid()), os.uname().nodename]
            with pytest.raises(UserError, match=rf'in use by another run \(process {os.getpid()}; .*remove {holder}'), \
                    claim(str(tmp_path), cfg.parse({})):
                pass
        assert not holder.exists()
    assert 'its file system has no locks' in caplog.text


def test_without_flock_the_lock_of_an_ended_process_is_taken_over_and_that_of_another_host_is_not(tmp_path, without_flock):
    holder = tmp_path / 'lock.holder'
    for identity in (f'{ended_process()} {os.uname().nodename} 5', f'{os.getpid()} {os.uname().nodename} 5'):
        holder.write_text(identity)  # the second: its number has gone to another process, which is this one
        with lock(str(tmp_path / 'lock')):
            assert holder.read_text() != identity
    holder.write_text('7 node9.example 5')
    with pytest.raises(LockedError, match=r'process 7 on node9\.example'), lock(str(tmp_path / 'lock')):
        pass
    assert holder.read_text() == '7 node9.example 5'


def test_without_flock_a_process_that_waits_goes_on_when_the_lock_is_released(tmp_path, without_flock, monkeypatch, caplog):
    (tmp_path / 'lock.holder').write_text('7 node9.example 5')
    monkeypatch.setattr(locks.time, 'sleep', lambda _: (tmp_path / 'lock.holder').unlink())
    with lock(str(tmp_path / 'lock'), wait=True):
        pass
    assert 'waiting for process 7 on node9.example' in caplog.text


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_on_the_new_file(tmp_path, monkeypatch):
    path, flock = tmp_path / 'lock', fcntl.flock

    def remove_first(*arguments):
        flock(*arguments)
        monkeypatch.undo()
        path.unlink()
    monkeypatch.setattr(fcntl, 'flock', remove_first)
    with lock(str(path)), pytest.raises(LockedError, match=f'^process {os.getpid()}$'), lock(str(path)):
        pass


def test_a_process_that_waits_tells_for_which_one(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO, 'jaxcnn')
    script = ('import sys\nfrom jaxcnn.locks import lock\n'
              'with lock(sys.argv[1]):\n    print(flush=True)\n    sys.stdin.read()')
    other = subprocess.Popen([sys.executable, '-c', script, str(tmp_path / 'lock')], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE)
    other.stdout.readline()
    flock = fcntl.flock

    def release_when_blocking(file, how):
        if not how & fcntl.LOCK_NB:
            other.communicate()
        flock(file, how)
    monkeypatch.setattr(fcntl, 'flock', release_when_blocking)
    with lock(str(tmp_path / 'lock'), wait=True):
        assert f'waiting for process {other.pid}, which holds {tmp_path / "lock"}' in caplog.text
