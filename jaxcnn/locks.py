"""Locks between processes, on file systems with and without `flock`."""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from typing import IO

_POLL_INTERVAL = 1.0  # seconds between two checks of another process's lock file
_LOCKED_ERRNOS = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)  # EACCES: from fcntl, with which NFS emulates flock
log = logging.getLogger('jaxcnn')


class LockedError(Exception):
    """Another process holds the lock; the message says which one."""


def _start_time(pid: int) -> str | None:
    """Return when the kernel started a process of this host, in its own units, or '' if it is unknown; None: no process."""
    try:
        with open(f'/proc/{pid}/stat', encoding='utf-8', errors='replace') as f:
            return f.read().rpartition(')')[2].split()[19]
    except FileNotFoundError:
        pass
    except OSError:
        return ''
    if os.path.exists('/proc/self/stat'):
        return None
    try:
        os.kill(pid, 0)  # a system without /proc
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return ''


def _identity() -> str:
    """Return what a lock file says of its process: process id, host and start time."""
    return f'{os.getpid()} {socket.gethostname()} {_start_time(os.getpid())}'


def _describe(identity: str) -> str:
    pid, host, *_ = [*identity.split(), '?', '?']
    return f'process {pid}' + (f' on {host}' if host not in ('?', socket.gethostname()) else '')


def _has_ended(identity: str) -> bool:
    """Return whether the process with this identity is known to have ended; False for a process of another host."""
    pid, host, start_time = [*identity.split(), '', '', ''][:3]
    return host == socket.gethostname() and pid.isdecimal() and _start_time(int(pid)) not in (start_time, '')


@contextlib.contextmanager
def lock(path: str, wait: bool = False) -> Iterator[None]:
    """Hold a lock against other processes in the block.

    A lock by `flock` ends with its process. On a file system without `flock` (NFS without a lock service, some FUSE file
    systems) a warning is logged, and the lock is the file `<path>.holder`, which names the host and the process. It is taken
    over if a process of the same host has ended without removing it.

    Args:
      path: the lock file. It is created if it is missing, and not removed when the lock is released.
      wait: whether to wait until another process has released the lock.

    Raises:
      LockedError: another process holds the lock, and `wait` is False.
      OSError: the file cannot be written.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, 'a+', encoding='utf-8'))
        try:
            while not _lock_file(file, wait):  # its last holder has removed the file, so it locks nothing
                file = stack.enter_context(open(path, 'a+', encoding='utf-8'))
        except OSError as e:
            if e.errno in _LOCKED_ERRNOS:
                file.seek(0)
                raise LockedError(_describe(file.read())) from None
            log.warning('%s: its file system has no locks (%s); the lock is the file %s.holder', path, e.strerror, path)
            stack.enter_context(_create_holder_file(f'{path}.holder', wait))
        file.seek(0)
        file.truncate()
        file.write(f'{_identity()}\n')
        file.flush()
        yield


def holder_has_ended(path: str) -> bool:
    """Return whether the last process that took the lock has ended; False for a process of another host.

    Nothing is locked meanwhile, so another process can take the lock at any time.
    """
    try:
        with open(path, encoding='utf-8') as file:
            return _has_ended(file.read())
    except FileNotFoundError:
        return True


def open_shared(path: str) -> IO[str]:
    """Open a file for reading. Until it is closed, `is_shared` gives True for it in every process.

    Raises:
      FileNotFoundError: the file does not exist, or is being removed.
    """
    file = open(path, encoding='utf-8')  # noqa: SIM115 (the caller closes it)
    with contextlib.suppress(OSError):  # without locks, `is_shared` always gives True
        fcntl.flock(file, fcntl.LOCK_SH)
    if _is_current(file):
        return file
    file.close()
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


@contextlib.contextmanager
def is_shared(path: str) -> Iterator[bool]:
    """Yield whether a process may have the file open through `open_shared`; if not, none can open it in the block."""
    with open(path, 'r+', encoding='utf-8') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield True
        else:
            yield False


def _lock_file(file: IO[str], wait: bool) -> bool:
    """Lock an open file, and return whether its path still leads to this file."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        if not wait or e.errno not in _LOCKED_ERRNOS:
            raise
        file.seek(0)
        log.info('waiting for %s, which holds %s', _describe(file.read()), file.name)
        fcntl.flock(file, fcntl.LOCK_EX)
    return _is_current(file)


def _is_current(file: IO[str]) -> bool:
    """Return whether the path of an open file still leads to this file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _create_holder_file(path: str, wait: bool) -> Iterator[None]:
    """Hold a lock by a file in the block: only one process can create it."""
    is_waiting = False
    while True:
        try:
            with open(path, 'x', encoding='utf-8') as f:
                f.write(f'{_identity()}\n')
            break
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError), open(path, encoding='utf-8') as f:
                identity = f.read()
                if _has_ended(identity):
                    _remove_stale(path, identity)
                    continue
                description = f'{_describe(identity)}; if that process is gone, remove {path}'
                if not wait:
                    raise LockedError(description) from None
                if not is_waiting:
                    log.warning('waiting for %s', description)
                is_waiting = True
            time.sleep(_POLL_INTERVAL)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def _remove_stale(path: str, identity: str) -> None:
    """Remove the lock file of a process that has ended, unless another process has replaced it meanwhile."""
    renamed = f'{path}.{os.getpid()}'
    os.rename(path, renamed)
    with open(renamed, encoding='utf-8') as f:
        is_replaced = f.read() != identity
    if is_replaced:
        os.link(renamed, path)
    os.remove(renamed)
