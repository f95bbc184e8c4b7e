"""Worker processes that read or decode images.

SLURM, `timeout`, systemd and Ctrl-C signal the whole process group. A run whose workers ended at such a signal would fail
before it is saved. So workers ignore stop signals, and end when their parent process has ended.
"""

import contextlib
import functools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker

from jaxcnn.errors import UserError

# the resource tracker would warn of the shared memory of a killed worker, which it frees
_TRACKER_WARNING_FILTER = 'ignore:resource_tracker:UserWarning'
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _initialize(parent_pid: int, *_: int) -> None:
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    logging.getLogger('absl').setLevel(logging.ERROR)  # TFDS warns in each process that Pillow is slower than OpenCV

    def end_with_parent() -> None:
        while os.getppid() == parent_pid:
            time.sleep(0.5)
        os._exit(1)
    threading.Thread(target=end_with_parent, daemon=True).start()


@functools.cache  # joblib reuses its pool only for the same initializer object
def initializer() -> Callable[..., None]:
    """Return the function that each worker process of this process must call first. It ignores its arguments."""
    return functools.partial(_initialize, os.getpid())


@contextlib.contextmanager
def block_stop_signals() -> Iterator[None]:
    """Block stop signals in worker processes that this thread starts in the block, until they call `initializer()`."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        if _TRACKER_WARNING_FILTER not in sys.warnoptions:
            sys.warnoptions.append(_TRACKER_WARNING_FILTER)
        resource_tracker.ensure_running()  # when it starts, it unblocks SIGINT and SIGTERM in this thread
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def worker_error(exit_code: int | None, hint: str) -> UserError:
    """Return the error for a worker process that ended unexpectedly.

    Args:
      exit_code: exit code of the process, -N if signal N killed it, or None if it is unknown.
      hint: what the user can do about it.
    """
    if exit_code == -signal.SIGKILL:
        cause = 'was killed by SIGKILL (exit code -9), probably because the machine ran out of memory'
    elif exit_code == -signal.SIGBUS:
        cause = ('was killed by SIGBUS (exit code -7), because the shared memory in /dev/shm is too small for its batches '
                 '(docker run --shm-size makes it larger)')
    else:
        cause = f'ended with exit code {exit_code}; its output is above' if exit_code else 'ended unexpectedly'
    return UserError(f'a worker process {cause}', hint=hint)
