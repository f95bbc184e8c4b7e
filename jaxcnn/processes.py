"""Utilities for child processes: their GPUs, their exit codes and their termination."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence

_PR_SET_PDEATHSIG = 1  # of Linux's prctl


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the GPUs that a process with this environment may use, as CUDA_VISIBLE_DEVICES names them."""
    names = environment.get('CUDA_VISIBLE_DEVICES')
    if environment.get('JAX_PLATFORMS') == 'cpu':
        return []
    if names is None and shutil.which('nvidia-smi'):
        query = subprocess.run(['nvidia-smi', '--query-gpu=index', '--format=csv,noheader'], capture_output=True, text=True)
        names = '' if query.returncode else ','.join(query.stdout.split())
    return [name for name in (names or '').split(',') if name and not name.startswith('-')]


def shell_exit_code(returncode: int) -> int:
    """Convert a return code of `subprocess` to that of a shell, which is 128 + N if signal N killed the process."""
    return returncode if returncode >= 0 else 128 - returncode


def bound_command(command: Sequence[str], parent: int, cores: Collection[int] = ()) -> list[str]:
    """Return a command that runs `command` in a process that ends together with its parent.

    The `preexec_fn` of `subprocess` would do the same, but it is not safe after JAX has started threads.

    Args:
      command: the command and its arguments.
      parent: process ID of the parent. On Linux, the process is killed when the parent ends, even if SIGKILL ended it.
      cores: the CPU cores that the process may use; empty: all.
    """
    return [sys.executable, '-m', 'jaxcnn.processes', str(parent), ','.join(map(str, sorted(cores))), *command]


def main(parent: str, cores: str, *command: str) -> None:
    """Bind this process to its parent and its cores, and replace it by the command.

    The command ignores SIGUSR1 and SIGUSR2, which SLURM sends to all processes of a job that is about to run out of time.
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
