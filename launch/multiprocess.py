"""Starts several processes of one command on this machine, joined by jax.distributed.

    python launch/multiprocess.py -n 2 -- python launch/train.py --config=configs/digits_lenet5.py --workdir=runs/two

The machine's GPUs, or those in CUDA_VISIBLE_DEVICES, are shared out evenly. SIGTERM, SIGINT and SIGHUP are passed on.
When one process fails, the others are stopped a second later. The exit code is that of the first failure.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time


def gpus() -> list[str]:
    """The GPUs that are to be shared out, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get('CUDA_VISIBLE_DEVICES')
    if os.environ.get('JAX_PLATFORMS') == 'cpu':
        return []
    if given is None and shutil.which('nvidia-smi'):
        listed = subprocess.run(['nvidia-smi', '--query-gpu=index', '--format=csv,noheader'], capture_output=True, text=True)
        given = '' if listed.returncode else ','.join(listed.stdout.split())
    return [gpu for gpu in (given or '').split(',') if gpu and not gpu.startswith('-')]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-n', type=int, required=True, help='how many processes')
    parser.add_argument('command', nargs='+', help='what each runs, behind --')
    args = parser.parse_args()
    if args.n < 1:
        parser.error(f'-n must be at least 1, got {args.n}')
    shared = gpus()
    if len(shared) % args.n:
        parser.error(f'{len(shared)} GPUs do not divide over {args.n} processes; CUDA_VISIBLE_DEVICES chooses some')
    each = len(shared) // args.n
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{s.getsockname()[1]}'
    processes: list[subprocess.Popen] = []
    passed_on: set[int] = set()

    def pass_on(signum, frame):
        passed_on.add(signum)
        for p in processes:
            if p.poll() is None:
                p.send_signal(signum)

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, pass_on)
    if shutil.which(args.command[0]) is None:
        parser.error(f'{args.command[0]}: no such command')
    for i in range(args.n):
        processes.append(subprocess.Popen(args.command, start_new_session=True, env={
            **os.environ, 'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': str(args.n),
            'JAX_PROCESS_ID': str(i),
            **({'CUDA_VISIBLE_DEVICES': ','.join(shared[i * each:(i + 1) * each])} if shared else {})}))
    return wait_for_all(processes, passed_on)


def wait_for_all(processes: list[subprocess.Popen], passed_on: set[int]) -> int:
    """Waits until all processes have ended, and stops the others a second after one has failed.

    Args:
      passed_on: signals that the processes were sent: one that stops for such a signal has not failed, and the others have a
        minute to stop, too.

    Returns:
      The exit code of the process that failed first, as a shell has it; 0 where none did.
    """
    while True:
        codes = [p.poll() for p in processes]
        first = next((i for i, code in enumerate(codes) if code), None)
        if first is not None:
            break
        if None not in codes:
            return 0
        time.sleep(0.1)
    code = codes[first]
    assert code is not None
    stops = (code if code >= 0 else 128 - code) - 128 in passed_on
    deadline = time.monotonic() + (60 if stops else 1)  # the others may be about to say the same
    while None in [p.poll() for p in processes] and time.monotonic() < deadline:
        time.sleep(0.05)
    stopped = [i for i, p in enumerate(processes) if p.poll() is None]
    for i in stopped:
        processes[i].kill()
    cause = f'was killed by {signal.Signals(-code).name}' if code < 0 else f'failed with exit code {code}'
    others = f'; stopped: {", ".join(map(str, stopped))}' if stopped else ''
    if not stops or stopped:
        print(f'process {first} of {len(processes)} {cause}{others}', file=sys.stderr)
    return code if code >= 0 else 128 - code


if __name__ == '__main__':
    sys.exit(main())
