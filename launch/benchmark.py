"""Measures speed, as ratios within one run on one machine.

    python launch/benchmark.py loop --config=configs/mnist_lenet.py [--config.a.b=VALUE ...]
    python launch/benchmark.py startup --config=configs/digits_lenet5.py

loop: images/s of the training loop as `train.py` runs it (feeding, logging, progress) over those of the bare compiled
step on one batch that is already on the device; in turn, A B A B.
startup: seconds from the command to its first finished step, with an empty compilation cache and with a full one.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time

from jaxcnn import cli, config


def machine() -> dict:
    import jax
    return {'device': jax.devices()[0].device_kind, 'devices': jax.device_count(), 'cores': os.cpu_count(),
            'python': platform.python_version(), 'jax': jax.__version__}


def show(title: str, unit: str, columns: dict[str, list[float]], args: argparse.Namespace, **more: object) -> None:
    print(f'{title}, {unit}\n\n| | median | least | most |\n|---|---|---|---|')
    for name, values in columns.items():
        print(f'| {name} | {statistics.median(values):.4g} | {min(values):.4g} | {max(values):.4g} |')
    result = {'benchmark': title, 'unit': unit, 'values': columns, 'machine': machine(), **more}
    print(f'\n{json.dumps(result["machine"])}')
    if args.json:
        with open(args.json, 'w') as f:
            json.dump(result, f, indent=2)


def loop(args: argparse.Namespace) -> int:
    import jax

    from jaxcnn.train.loop import Run, check_config
    from jaxcnn.train.signals import StopRequest
    settings = config.load(args.config, [*args.overrides, 'duration.steps=100000000', 'eval.every.fraction=1'])
    check_config(settings)
    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(os.path.join(folder, 'figures'))
        run = Run(settings, folder, StopRequest())
        run.open()
        run.advance(settings.eval.every)
        program = run.program(run.timeline.phase(0))
        inputs = run.inputs(0, settings.parallel.steps_per_dispatch)
        state = run.backend.place(run.backend.fetch(run.state))

        def bare(dispatches: int) -> None:
            nonlocal state
            values = None
            for _ in range(dispatches):
                state, values = program(state, *inputs)
            jax.block_until_ready(values)

        def looped(dispatches: int) -> None:
            for _ in range(dispatches):
                run.advance(settings.eval.every)
            run.drain()

        began = time.perf_counter()
        bare(3)
        count = max(5, int(args.seconds / ((time.perf_counter() - began) / 3)))
        rates: dict[str, list[float]] = {'bare step': [], 'loop': []}
        images = count * settings.parallel.steps_per_dispatch * settings.batch_size
        for _ in range(args.rounds):
            for name, work in (('bare step', bare), ('loop', looped)):
                began = time.perf_counter()
                work(count)
                rates[name].append(images / (time.perf_counter() - began))
        run.close()
    ratios = [b / a for a, b in zip(rates['bare step'], rates['loop'], strict=True)]
    show(f'loop of {settings.name}', 'images/s', {**rates, 'loop / bare step': ratios}, args, dispatches=count)
    return 0


def startup(args: argparse.Namespace) -> int:
    def first_step(cache: str) -> float:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, os.path.join(os.path.dirname(os.path.abspath(__file__)), 'train.py'),
                 f'--config={args.config}', f'--workdir={folder}/run', *(f'--config.{o}' for o in args.overrides)],
                stderr=subprocess.PIPE, text=True, env={**os.environ, 'JAX_COMPILATION_CACHE_DIR': cache})
            assert process.stderr is not None
            told = []
            for line in process.stderr:
                told.append(line)
                if 'compiled and run' in line:
                    seconds = time.perf_counter() - began
                    process.kill()
                    process.wait()
                    return seconds
            sys.exit(f'the run ended before its first step: {"".join(told)}')

    times: dict[str, list[float]] = {'cold compilation cache': [], 'warm compilation cache': []}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as cache:
            times['cold compilation cache'].append(first_step(cache))
            times['warm compilation cache'].append(first_step(cache))
    show(f'start-up of {args.config}', 'seconds from the command to its first step', times, args)
    return 0


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=('loop', 'startup'))
    parser.add_argument('--config', required=True, help='configs/NAME.py')
    parser.add_argument('--rounds', type=int, default=5, help='how often each is measured (default: 5)')
    parser.add_argument('--seconds', type=float, default=5, help='of each measurement of the loop (default: 5)')
    parser.add_argument('--json', default='', metavar='FILE', help='write the figures there, too')
    cli.main(parser, lambda args: {'loop': loop, 'startup': startup}[args.what](args))
