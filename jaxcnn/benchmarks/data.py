"""The benchmark `data`: throughput of the training images of a config, compared with a PyTorch DataLoader and PIL."""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from jaxcnn import config
from jaxcnn.benchmarks.measure import (
    TRAIN_COMMAND,
    Table,
    TorchPeer,
    clean_environment,
    images_per_second,
    require_torch,
    table,
)
from jaxcnn.errors import UserError, unknown

PEER_OPS = ('flip_lr', 'pad_crop', 'random_resized_crop', 'auto_augment')


def peer_op(text: str, size: int) -> tuple[str, dict]:
    """Return the name and the arguments of an augmentation for the class `Images` of `torch_peer`.

    Args:
      text: the augmentation, as in a config.
      size: height and width of the images.
    """
    from jaxcnn.data import augment
    policies = augment.policies
    name, positional, keywords = config.parse_call(text, 'config.data.augment')
    if name not in PEER_OPS:
        raise unknown('augmentation of the PyTorch peer', name, PEER_OPS)
    op = getattr(policies if name == 'auto_augment' else augment.geometry, name)
    fields = config.bind(op, positional, keywords, name)
    if name == 'auto_augment':
        values = policies.AugmentationSpace(10).values((size, size)).tolist()
        fields = {'policy': [[(op, chance, values[policies.OPS.index(op)][magnitude], op in policies.SIGNED)
                              for op, chance, magnitude in sub] for sub in policies.POLICIES[fields['policy']]]}
    return name, fields


def peak_memory(*arguments: str) -> float:
    """Return the peak memory of 20 steps of `jaxcnn train` in MB, without mapped files, sampled 50 times per second."""
    peak = 0.0
    command = [*TRAIN_COMMAND, *arguments, '--config.duration.steps=20', '--config.optim.warmup=None',
               '--config.log_every.steps=20']
    process = subprocess.Popen(command, env=clean_environment(), stderr=subprocess.PIPE, text=True)

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            with contextlib.suppress(OSError), open(f'/proc/{process.pid}/status', encoding='utf-8', errors='replace') as f:
                sizes = {line.split(':')[0]: int(line.split()[1]) for line in f if line.startswith('Rss')}
                peak = max(peak, (sizes.get('RssAnon', 0) + sizes.get('RssShmem', 0)) / 1e3)
            time.sleep(0.02)

    threading.Thread(target=watch).start()
    last_line = 'no output'
    assert process.stderr is not None
    for line in process.stderr:
        last_line = line.strip()
        if ' step 20/20 ' in line:
            process.kill()
            return peak
    raise UserError(f'jaxcnn train ended with {process.wait()}: {last_line}')


def compare(args: argparse.Namespace) -> Table:
    """Measure the throughput of the training images, and compare it with that of the peers."""
    import jax
    import numpy as np

    from jaxcnn import experiment
    from jaxcnn.data import cache, image_files, sources
    from jaxcnn.training.loop import TrainingRun
    from jaxcnn.training.signals import StopRequest
    from jaxcnn.training.step import gather
    base_config = config.load(args.config, args.overrides)
    is_streamed = base_config.data.keeps_sizes or base_config.data.placement == 'stream'
    settings = {p: config.load(args.config, [*args.overrides, f'data.placement={p}', 'duration.steps=100000000'])
                for p in (('stream',) if is_streamed else ('device', 'host'))}
    main_placement = next(iter(settings))
    experiment.check(base_config)
    torch = 'torch' in args.peers.split(',')
    ops = base_config.data.augment.split('|') if base_config.data.augment.strip() else []
    for part in ops if torch else []:
        peer_op(part, 32)
    if torch:
        require_torch(args.torch_python)
    source = sources.find(base_config.data)
    examples = source.splits['train']()
    files = examples if isinstance(examples, image_files.ImageFiles) else None
    has_cache = files is not None and not is_streamed
    notes: dict[str, object] = {}
    sides: dict[str, Callable[[float], float]] = {}
    peers: dict[str, TorchPeer] = {}
    runs: dict[str, TrainingRun] = {}
    inputs: dict[str, Iterator[Any]] = {}
    with contextlib.ExitStack() as resources:
        folder = resources.enter_context(tempfile.TemporaryDirectory())
        for placement, placement_config in settings.items():
            os.makedirs(os.path.join(folder, placement, 'figures'))
            run = TrainingRun(placement_config, os.path.join(folder, placement), StopRequest())
            resources.enter_context(run)

            def batch(batches: dict, resident: dict, first: jax.Array, seed: jax.Array, run: TrainingRun = run) -> jax.Array:
                rows = {k: v[0] for k, v in batches.items()} or gather(
                    run.setup.backend.batch_positions(resident['order'], first[0], run.setup.config.batch_size),
                    resident['examples'])
                examples = {name: rows[name] for name in ('image', *run.setup.dataset.splits['train'].targets)}
                key = jax.random.fold_in(jax.random.key(seed), first[0])
                return run.setup.experiment.preprocessor.train(examples, key, mixer=run.setup.experiment.task)['image']

            inputs[placement] = map(functools.partial(run.setup.inputs, count=1), itertools.count())
            prepared = itertools.starmap(jax.jit(batch), inputs[placement])
            sides[f'{placement} placement'] = functools.partial(images_per_second, functools.partial(next, prepared),
                                                                placement_config.batch_size)
            runs[placement] = run
        program, state = runs[main_placement].setup.program(run.setup.timeline.phase(0)), runs[main_placement].state
        if is_streamed:  # with one batch again and again, as the data is measured by itself
            inputs[main_placement] = itertools.repeat(run.setup.inputs(0, count=1))

        def step() -> object:
            nonlocal state
            state, values = program(state, *next(inputs[main_placement]))
            return values
        sides['training step'] = functools.partial(images_per_second, step, run.setup.config.batch_size)
        for side in sides.values():
            side(1)  # compile

        def build(seconds: float) -> float:
            with tempfile.TemporaryDirectory() as empty:
                began = time.perf_counter()
                _, parts = cache.open_cache(source, dataclasses.replace(base_config.data, cache_dir=empty))
                return sum(len(part.usable) for part in parts.values()) / (time.perf_counter() - began)

        if has_cache:
            sides['building the cache'] = build
        if torch:
            train, size = run.setup.dataset.splits['train'], run.setup.dataset.image_shape[0]
            content: dict[str, Any] = {'ops': [peer_op(part, size) for part in ops]}
            if files is not None:
                content['files'] = [os.path.join(files.root, path) for path in files.paths]
            else:
                content['array'] = os.path.join(folder, 'images.npy')
                np.save(content['array'], train.take(np.arange(len(train))))
            with open(path := os.path.join(folder, 'images.json'), 'w', encoding='utf-8') as f:
                json.dump(content, f)
            peers['torch DataLoader'] = TorchPeer(args.torch_python, 'data', path, size, run.setup.config.batch_size)
            if is_streamed:
                with open(fast_path := os.path.join(folder, 'simplejpeg.json'), 'w', encoding='utf-8') as f:
                    json.dump({**content, 'decoder': 'simplejpeg'}, f)
                peers['torch DataLoader with simplejpeg'] = TorchPeer(args.torch_python, 'data', fast_path, size,
                                                                      run.setup.config.batch_size)
            if has_cache:
                peers['PIL in processes'] = TorchPeer(args.torch_python, 'decode', path, size, run.setup.config.batch_size)
        rates: dict[str, list[float]] = {name: [] for name in (*sides, *peers)}
        for _ in range(args.rounds):
            for name in rates:
                rates[name].append((sides.get(name) or peers[name])(args.seconds))
                print(f'{name}: {rates[name][-1]:.4g} images/s', file=sys.stderr, flush=True)
        for peer in peers.values():
            peer.close()

        def ratio(a: str, b: str) -> list[float]:
            return [x / y for x, y in zip(rates[a], rates[b], strict=True)]

        compared = [f'{placement} placement' for placement in settings]
        if has_cache:
            rates['first epoch'] = [1 / (1 / a + 1 / b) for a, b in zip(
                rates['building the cache'], rates['device placement'], strict=True)]
            compared.append('first epoch')
        for name in compared if peers else []:
            for loader in [peer for peer in peers if peer.startswith('torch DataLoader')]:
                rates[f'{name} / {loader}'] = ratio(name, loader)
        if 'PIL in processes' in peers:
            rates['building / PIL in processes'] = ratio('building the cache', 'PIL in processes')
        rates['data, as a fraction of the training step'] = ratio('training step', f'{main_placement} placement')
        if has_cache:
            arguments = [f'--config={args.config}', *(f'--config.{o}' for o in args.overrides)]
            memory = {}
            for name, options in (('all', []), ('one image of each class', ['--config.data.per_class=1'])):
                memory[name] = peak_memory(*arguments, f'--workdir={folder}/memory {name}',
                                           f'--config.data.cache_dir={folder}/cache {name}', *options)
            notes['peak memory of jaxcnn train in MB, without mapped files'] = memory
    result = table(f'data of {run.setup.config.name}', 'images/s', rates, **notes)
    result.lines += ['', *(f'{name}: {value}' for name, value in notes.items())] if notes else []
    return result
