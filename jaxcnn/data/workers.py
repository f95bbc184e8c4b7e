"""Worker processes that read or decode images: they ignore a stop signal to their process group, and end with their parent.

SLURM, `timeout`, systemd and Ctrl-C signal the whole process group. Workers that died of such a signal would take the run
with them before it is saved.
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

_QUIET = 'ignore:resource_tracker:UserWarning'  # it would warn of the shared memory of a killed worker, which it frees
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _initialize(parent: int, *_: int) -> None:
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    logging.getLogger('absl').setLevel(logging.ERROR)  # TFDS warns in each process that Pillow is slower than OpenCV

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)
    threading.Thread(target=end_with_parent, daemon=True).start()


@functools.cache  # joblib's pool is used again where its initializer is the same object
def initializer() -> Callable[..., None]:
    """The function that a worker process of this process calls first; it ignores its arguments."""
    return functools.partial(_initialize, os.getpid())


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """Blocks stop signals in worker processes that this thread starts, until they have called `initializer()`."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        if _QUIET not in sys.warnoptions:
            sys.warnoptions.append(_QUIET)
        resource_tracker.ensure_running()  # when it starts, it unblocks SIGINT and SIGTERM in this thread
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def ended_worker(exit_code: int | None, remedy: str) -> UserError:
    """The error for a worker process that ended by itself.

    Args:
      exit_code: of the process; -N where signal N killed it; None where it is not known.
      remedy: what the user can do about it.
    """
    if exit_code == -signal.SIGKILL:
        cause = 'was killed by SIGKILL (exit code -9), probably because the machine ran out of memory'
    elif exit_code == -signal.SIGBUS:
        cause = ('was killed by SIGBUS (exit code -7), because the shared memory in /dev/shm is too small for its batches '
                 '(docker run --shm-size makes it larger)')
    else:
        cause = f'ended with exit code {exit_code}; what it wrote is above' if exit_code else 'ended unexpectedly'
    return UserError(f'a worker process {cause}; {remedy}')
