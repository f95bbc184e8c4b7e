"""Start several processes of one command on this machine, connected by jax.distributed.

    jaxcnn multiprocess -n 2 -- jaxcnn train --config=digits_lenet5 --workdir=runs/two

The GPUs of the machine, or those in CUDA_VISIBLE_DEVICES, are divided evenly. SIGTERM, SIGINT and SIGHUP are forwarded.
If one process fails, the others are stopped a second later. The exit code is that of the first process that fails.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

from jaxcnn.processes import shell_exit_code, visible_gpus


def main() -> int:
    """Run the command with the arguments of the process, and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-n', type=int, required=True, help='number of processes')
    parser.add_argument('command', nargs='+', help='command of each process, after --')
    args = parser.parse_args()
    if args.n < 1:
        parser.error(f'-n must be at least 1, got {args.n}')
    gpus = visible_gpus()
    if len(gpus) % args.n:
        parser.error(f'{len(gpus)} GPUs do not divide over {args.n} processes; CUDA_VISIBLE_DEVICES selects some of them')
    gpus_per_process = len(gpus) // args.n
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{s.getsockname()[1]}'
    processes: list[subprocess.Popen] = []
    forwarded: set[int] = set()

    def forward(signum: int, frame: object) -> None:
        forwarded.add(signum)
        for process in processes:
            if process.poll() is None:
                process.send_signal(signum)

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, forward)
    if shutil.which(args.command[0]) is None:
        parser.error(f'{args.command[0]}: no such command')
    for i in range(args.n):
        environment = {**os.environ, 'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': str(args.n),
                       'JAX_PROCESS_ID': str(i)}
        if gpus:
            environment['CUDA_VISIBLE_DEVICES'] = ','.join(gpus[i * gpus_per_process:(i + 1) * gpus_per_process])
        processes.append(subprocess.Popen(args.command, start_new_session=True, env=environment))
    return wait_for_all(processes, forwarded)


def wait_for_all(processes: list[subprocess.Popen], forwarded: set[int]) -> int:
    """Wait until all processes have ended. The others are stopped a second after one has failed.

    Args:
      processes: the processes.
      forwarded: signals that were sent to the processes. A process that stops because of such a signal has not failed, and
        the others have a minute to stop, too.

    Returns:
      The exit code of the process that failed first, as in a shell; 0 if none failed.
    """
    while True:
        returncodes = [process.poll() for process in processes]
        first = next((i for i, returncode in enumerate(returncodes) if returncode), None)
        if first is not None:
            break
        if None not in returncodes:
            return 0
        time.sleep(0.1)
    returncode = returncodes[first]
    assert returncode is not None
    was_stopped = shell_exit_code(returncode) - 128 in forwarded
    deadline = time.monotonic() + (60 if was_stopped else 1)  # the others may be about to end for the same reason
    while None in [process.poll() for process in processes] and time.monotonic() < deadline:
        time.sleep(0.05)
    running = [i for i, process in enumerate(processes) if process.poll() is None]
    for i in running:
        processes[i].kill()
    cause = (f'was killed by {signal.Signals(-returncode).name}' if returncode < 0 else
             f'failed with exit code {returncode}')
    others = f'; stopped: {", ".join(map(str, running))}' if running else ''
    if not was_stopped or running:
        print(f'process {first} of {len(processes)} {cause}{others}', file=sys.stderr)
    return shell_exit_code(returncode)
