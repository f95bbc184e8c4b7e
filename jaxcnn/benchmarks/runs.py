"""The benchmarks `train`, `checkpoint`, `loop` and `startup`: the duration of a run, and of its parts outside the steps."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from jaxcnn import config
from jaxcnn.benchmarks.measure import (
    TORCH_PEER,
    TRAIN_COMMAND,
    Table,
    TorchPeer,
    clean_environment,
    on_cpu,
    require_torch,
    table,
)
from jaxcnn.errors import UserError


def train_command(args: argparse.Namespace, workdir: str) -> list[str]:
    """Return the command that trains the config of the command line in a workdir."""
    return [*TRAIN_COMMAND, f'--config={args.config}', f'--workdir={workdir}',
            *(f'--config.{o}' for o in args.overrides)]


def load_config(args: argparse.Namespace) -> config.Config:
    """Return the config of the command line after checking it, so that errors are reported before a measurement."""
    from jaxcnn import experiment
    settings = config.load(args.config, args.overrides)
    experiment.check(settings)
    return settings


def train(args: argparse.Namespace) -> Iterator[Table]:
    """Compare training runs with those of PyTorch.

    The table is yielded after each round, so that a failure loses no earlier round.
    """
    import numpy as np

    from jaxcnn.data.dataset import load
    from jaxcnn.training.workdir import read_json
    settings = load_config(args)
    name, data, airbench = settings.model.name, settings.data, settings.data.name == 'cifar10'
    if data.image_size or (not airbench and (
            name not in ('lenet5', 'lenet_mnist') or set(settings.model.args) - {'kernel_init'} or data.name != 'mnist' or
            settings.duration.unit != 'epochs' or settings.duration.value % 1)):
        raise UserError('PyTorch can train airbench on cifar10, and unmodified lenet5 and lenet_mnist on mnist for a '
                        f'whole number of epochs, on images of their original size; got {name} on {data.name}',
                        field='config.data.name')
    require_torch(args.torch_python, *(['airbench'] if airbench else []))
    values: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        dataset = load(data)
        for part, split in dataset.splits.items():
            np.save(os.path.join(folder, f'{part}_images.npy'), split.take(np.arange(len(split))))
            np.save(os.path.join(folder, f'{part}_labels.npy'), split.targets['label'].astype(np.int64))
        for seed in range(settings.seed, settings.seed + args.rounds):
            workdir = os.path.join(folder, str(seed))
            commands = {'train.py': [*train_command(args, workdir), f'--config.seed={seed}']}
            torch = [args.torch_python, TORCH_PEER, 'train', 'airbench94' if airbench else name, str(dataset.image_shape[0]),
                     str(settings.batch_size), f'--seed={seed}', f'--folder={folder}',
                     f'--device={"cpu" if on_cpu() else "cuda"}']
            if airbench:
                commands['airbench'] = torch
            else:
                for workers in (0, len(os.sched_getaffinity(0))):
                    commands[f'torch, {workers} workers'] = [*torch, f'--epochs={int(settings.duration.value)}',
                                                             f'--workers={workers}']
            for side, command in commands.items():
                began = time.perf_counter()
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=clean_environment())
                seconds = time.perf_counter() - began
                if done.returncode:
                    raise UserError(f'{side} ended with {done.returncode}; its output is above')
                summary = (read_json(os.path.join(workdir, 'summary.json')) if side == 'train.py' else
                           json.loads(done.stdout.splitlines()[-1]))
                for what, value in {'whole command': seconds, 'training steps alone': summary['train_seconds'],
                                    'test accuracy': summary.get('test_tta_accuracy', summary['test_accuracy'])}.items():
                    values.setdefault(f'{what}, {side}', []).append(value)
                    print(f'seed {seed}: {what}, {side}: {value:.4f}', file=sys.stderr, flush=True)
            ratios = {}
            for what in ('whole command', 'training steps alone'):
                by_side = [times for key, times in values.items() if key.startswith(what)]  # jaxcnn's times come first
                ratios[f'{what}, best torch / train.py'] = [
                    min(peer_times) / train_time for train_time, *peer_times in zip(*by_side, strict=True)]
            yield table(f'training of {settings.name}', 'seconds, and parts of the test images', {**values, **ratios})


def checkpoint(args: argparse.Namespace) -> Table:
    """Measure the time to save and to read a checkpoint, and compare it with that of PyTorch."""
    import jax
    import numpy as np

    from jaxcnn import models, optim
    from jaxcnn.config import CheckpointConfig, Choice, OptimConfig, parse
    from jaxcnn.timeline import Timeline
    from jaxcnn.training.checkpoint import Checkpoints
    from jaxcnn.training.state import init_state
    name, torch = args.models or 'resnet50', 'torch' in args.peers.split(',')
    if torch:
        require_torch(args.torch_python)
    descent = OptimConfig(optimizer=Choice('sgd', {'momentum': 0.9}))
    optimizer = optim.make_optimizer(descent, Timeline(parse({'duration': {'steps': 1}}), 128))
    template = jax.eval_shape(lambda: init_state(models.create(name, num_classes=1000), optimizer, (224, 224, 3),
                                                 np.uint32(0), descent))
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: np.asarray(rng.normal(size=x.shape)).astype(x.dtype), template)
    times: dict[str, list[float]] = {'hand over': [], 'save': [], 'read': []}
    with tempfile.TemporaryDirectory(dir='.') as folder:
        checkpoints = Checkpoints(folder, CheckpointConfig(keep=1))
        peer = None
        if torch:
            peer = TorchPeer(args.torch_python, 'checkpoint', name, 224, 0, f'--folder={folder}')
        for step in range(args.rounds):
            began = time.perf_counter()
            checkpoints.save(step, state, {}, None)
            times['hand over'].append(time.perf_counter() - began)
            checkpoints.wait()
            times['save'].append(time.perf_counter() - began)
            began = time.perf_counter()
            checkpoints.read(step, template)
            times['read'].append(time.perf_counter() - began)
            if peer:
                print(0, file=peer.process.stdin, flush=True)
                for what, seconds in zip(('torch save', 'torch read'), peer.answer().split(), strict=True):
                    times.setdefault(what, []).append(float(seconds))
        checkpoints.close()
        if peer:
            peer.close()
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    return table(f'checkpoint of {name}, {size / 1e6:.0f} MB', 'seconds', times, bytes=size)


def loop(args: argparse.Namespace) -> Table:
    """Compare the throughput of the training loop with that of the bare compiled step."""
    import jax

    from jaxcnn import experiment
    from jaxcnn.training.loop import TrainingRun
    from jaxcnn.training.signals import StopRequest
    settings = config.load(args.config, [*args.overrides, 'duration.steps=100000000', 'eval.every.fraction=1'])
    experiment.check(settings)
    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(os.path.join(folder, 'figures'))
        run = TrainingRun(settings, folder, StopRequest())
        with run:
            run.advance(settings.eval.every)
            program = run.setup.program(run.setup.timeline.phase(0))
            inputs = run.setup.inputs(0, settings.parallel.steps_per_dispatch)
            state = run.setup.backend.replicate(run.setup.backend.fetch(run.state))

            def run_bare_steps(dispatches: int) -> None:
                nonlocal state
                values = None
                for _ in range(dispatches):
                    state, values = program(state, *inputs)
                jax.block_until_ready(values)

            def run_loop(dispatches: int) -> None:
                for _ in range(dispatches):
                    run.advance(settings.eval.every)
                run.drain()

            began = time.perf_counter()
            run_bare_steps(3)
            count = max(5, int(args.seconds / ((time.perf_counter() - began) / 3)))
            rates: dict[str, list[float]] = {'bare step': [], 'loop': []}
            for _ in range(args.rounds):
                began = time.perf_counter()
                run_bare_steps(count)
                images = count * settings.parallel.steps_per_dispatch * settings.batch_size
                rates['bare step'].append(images / (time.perf_counter() - began))
                before, began = run.setup.timeline.examples(run.step), time.perf_counter()
                run_loop(count)
                rates['loop'].append((run.setup.timeline.examples(run.step) - before) / (time.perf_counter() - began))
    ratios = [b / a for a, b in zip(rates['bare step'], rates['loop'], strict=True)]
    return table(f'loop of {settings.name}', 'images/s', {**rates, 'loop / bare step': ratios}, dispatches=count)


def startup(args: argparse.Namespace) -> Table:
    """Measure the time from the command to its first step, with an empty and with a full compilation cache."""
    def first_step(cache: str) -> float:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            process = subprocess.Popen(
                [*train_command(args, os.path.join(folder, 'run')), '--config.log_every.steps=1'], stderr=subprocess.PIPE,
                text=True, env={**clean_environment(), 'JAX_COMPILATION_CACHE_DIR': cache})
            assert process.stderr is not None
            last_line = 'no output'
            for line in process.stderr:
                last_line = line.strip()
                if '  step ' in line:
                    seconds = time.perf_counter() - began
                    process.kill()
                    process.wait()
                    return seconds
            raise UserError(f'the run ended before its first step: {last_line}')

    load_config(args)
    times: dict[str, list[float]] = {'cold compilation cache': [], 'warm compilation cache': []}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as cache:
            times['cold compilation cache'].append(first_step(cache))
            times['warm compilation cache'].append(first_step(cache))
    return table(f'start-up of {args.config}', 'seconds from the command to its first step', times)
