"""Locks between processes, on file systems with `flock` and on those without it."""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from typing import IO

_POLL = 1.0  # seconds between two looks at a lock file of another process
_FOREIGN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)  # EACCES: from fcntl, by which NFS emulates flock
log = logging.getLogger('jaxcnn')


class LockedError(Exception):
    """Another process holds the lock; the message says which one."""


def _started(pid: int) -> str | None:
    """When the kernel started a process of this host, in its own units; None: there is no such process."""
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
    return f'{os.getpid()} {socket.gethostname()} {_started(os.getpid())}'


def _describe(identity: str) -> str:
    pid, host, *_ = [*identity.split(), '?', '?']
    return f'process {pid}' + (f' on {host}' if host not in ('?', socket.gethostname()) else '')


def _is_gone(identity: str) -> bool:
    """Whether the process that wrote this is known to have ended; never known of a process on another host."""
    pid, host, started = [*identity.split(), '', '', ''][:3]
    return host == socket.gethostname() and pid.isdecimal() and _started(int(pid)) not in (started, '')


@contextlib.contextmanager
def lock(path: str, wait: bool = False) -> Iterator[None]:
    """Holds the lock of the file at `path`, which is made where it is missing, against other processes.

    A lock by `flock` ends with its process. On a file system without `flock` (NFS without a lock service, some FUSE file
    systems) a warning is logged, and the lock is the file `<path>.holder`, which names host and process and is taken over
    when a process of the same host has ended without removing it.

    Args:
      path: of the lock file; it stays when the lock is released.
      wait: until another process has released the lock.

    Raises:
      LockedError: another process holds the lock, and `wait` is False.
      OSError: the file cannot be written.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, 'a+', encoding='utf-8'))
        try:
            while not _flock(file, wait):  # whoever held it has removed the file: it no longer locks anything
                file = stack.enter_context(open(path, 'a+', encoding='utf-8'))
        except OSError as e:
            if e.errno in _FOREIGN:
                file.seek(0)
                raise LockedError(_describe(file.read())) from None
            log.warning('%s: its file system has no locks (%s); the lock is the file %s.holder', path, e.strerror, path)
            stack.enter_context(_holder(f'{path}.holder', wait))
        file.seek(0)
        file.truncate()
        file.write(f'{_identity()}\n')
        file.flush()
        yield


def holder_has_ended(path: str) -> bool:
    """Whether the process that took the lock last has ended; False where it is on another host, where nobody can tell.

    Nothing is locked for it, so a process that takes the lock meanwhile is not refused.
    """
    try:
        with open(path, encoding='utf-8') as file:
            return _is_gone(file.read())
    except FileNotFoundError:
        return True


def share(path: str) -> IO[str]:
    """Opens a file for reading; until it is closed, `is_shared` of the file is true in every process.

    Raises:
      FileNotFoundError: the file is not there, or is just being removed.
    """
    file = open(path, encoding='utf-8')  # noqa: SIM115 (its holder closes it)
    with contextlib.suppress(OSError):  # without locks, `is_shared` is true in any case
        fcntl.flock(file, fcntl.LOCK_SH)
    if _is_current(file):
        return file
    file.close()
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


@contextlib.contextmanager
def is_shared(path: str) -> Iterator[bool]:
    """Whether a process may have the file open through `share`; while it is not, none can."""
    with open(path, 'r+', encoding='utf-8') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield True
        else:
            yield False


def _flock(file: IO[str], wait: bool) -> bool:
    """Locks an open file; whether it is still the file of that name."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        if not wait or e.errno not in _FOREIGN:
            raise
        file.seek(0)
        log.info('waiting for %s, which holds %s', _describe(file.read()), file.name)
        fcntl.flock(file, fcntl.LOCK_EX)
    return _is_current(file)


def _is_current(file: IO[str]) -> bool:
    """Whether an open file is still the one of its name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _holder(path: str, wait: bool) -> Iterator[None]:
    """Holds a lock file, which only one process can create."""
    waiting = False
    while True:
        try:
            with open(path, 'x', encoding='utf-8') as f:
                f.write(f'{_identity()}\n')
            break
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError), open(path, encoding='utf-8') as f:
                identity = f.read()
                if _is_gone(identity):
                    _take_over(path, identity)
                    continue
                description = f'{_describe(identity)}; without that process, remove {path}'
                if not wait:
                    raise LockedError(description) from None
                if not waiting:
                    log.warning('waiting for %s', description)
                waiting = True
            time.sleep(_POLL)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def _take_over(path: str, identity: str) -> None:
    """Removes the lock file that a process left which has ended, unless another process has just taken its place."""
    moved = f'{path}.{os.getpid()}'
    os.rename(path, moved)
    with open(moved, encoding='utf-8') as f:
        taken = f.read() != identity
    if taken:
        os.link(moved, path)
    os.remove(moved)
