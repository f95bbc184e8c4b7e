"""Processes that the commands start: their GPUs, their exit codes, and their end."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence

_PR_SET_PDEATHSIG = 1  # of Linux's prctl


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the GPUs that processes with this environment may use, as CUDA_VISIBLE_DEVICES names them."""
    names = environment.get('CUDA_VISIBLE_DEVICES')
    if environment.get('JAX_PLATFORMS') == 'cpu':
        return []
    if names is None and shutil.which('nvidia-smi'):
        query = subprocess.run(['nvidia-smi', '--query-gpu=index', '--format=csv,noheader'], capture_output=True, text=True)
        names = '' if query.returncode else ','.join(query.stdout.split())
    return [name for name in (names or '').split(',') if name and not name.startswith('-')]


def shell_exit_code(returncode: int) -> int:
    """Return the exit code that a shell gives to a process: 128 + N if signal N killed it."""
    return returncode if returncode >= 0 else 128 - returncode


def bound_command(command: Sequence[str], parent: int, cores: Collection[int] = ()) -> list[str]:
    """Return a command that starts `command` as a process that ends with its parent.

    A function that runs between fork and exec would do the same, but JAX's threads forbid a fork.

    Args:
      command: the command and its arguments.
      parent: process ID of the parent, whose end, also by SIGKILL, ends the process; only on Linux.
      cores: the processors that it may use; empty: all.
    """
    return [sys.executable, '-m', 'jaxcnn.processes', str(parent), ','.join(map(str, sorted(cores))), *command]


def main(parent: str, cores: str, *command: str) -> None:
    """Bind this process to its parent and its processors, and replace it by the command.

    The command ignores SIGUSR1 and SIGUSR2, by which SLURM tells all processes of a job that its time is nearly over.
    """
    for signum in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)
    if hasattr(libc := ctypes.CDLL(None), 'prctl'):
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):
            sys.exit(1)
    if cores:
        os.sched_setaffinity(0, map(int, cores.split(',')))
    os.execv(command[0], command)


if __name__ == '__main__':
    main(*sys.argv[1:])
