"""Measures speed, as ratios within one run on one machine.

    python launch/benchmark.py train_step [--models shallow_cnn,resnet18,...] [--peers torch,compiled,jax,xla]
    python launch/benchmark.py eval [--models ...] [--peers ...]
    python launch/benchmark.py data --config=configs/cifar10_shallow.py [--peers torch]
    python launch/benchmark.py train --config=configs/mnist_lenet.py [--config.model=lenet5 --config.duration.epochs=2]
    python launch/benchmark.py checkpoint [--models resnet50] [--peers torch]
    python launch/benchmark.py loop --config=configs/mnist_lenet.py [--config.a.b=VALUE ...]
    python launch/benchmark.py startup --config=configs/digits_lenet5.py
    python launch/benchmark.py train_step loop --config=configs/cifar10_fast.py --write=docs/performance.md

Several may be given. With --write each one's table goes into FILE, in the place of the one that was written there before.

train_step, eval: images/s of a network's whole training step, or of its inference, over those of peers: PyTorch
(`torch`, and `compiled` by torch.compile; channels_last; by --torch_python, which needs torch and pytorchcv==0.0.67), and
jaxcnn with other convolutions: `jax` in plain JAX, `xla` as plain Flax has them. In turn, A B A B. On a GPU in bfloat16
(autocast in PyTorch), at sizes and batches for one; on a CPU in float32. `of matmul` and `of bandwidth`: the parts of the
machine's matrix product rate and of its memory bandwidth, both measured in the same run, that the network's multiply-adds,
and the bytes that XLA says the program reads and writes, make up.
data: images/s of a config's training images, augmented and normalised, from either placement, over those of a PyTorch
DataLoader with a worker a core that does the same by PIL (pad_crop, random_resized_crop, flip_lr, auto_augment); and data's
part of the training step. Of images in files: a first epoch, which builds the cache, against the DataLoader that reads the
files; building the cache against PIL in a plain loop in as many processes; memory of the whole `train.py`, 20 steps, with
all images and with one of each class.
train: seconds of the whole `train.py`, from the command to the report, over those of the plain PyTorch script with a
DataLoader (of no workers and of one a core) that trains and tests the same network on the same images for as many epochs.
checkpoint: seconds to save (until it is on the disk), to hand over (while the loop waits) and to read a network's state with
SGD's momentum, beside torch.save and torch.load of the same, synchronised to the disk.
loop: images/s of the training loop as `train.py` runs it (feeding, logging, progress) over those of the bare compiled
step on one batch that is already on the device; in turn, A B A B.
startup: seconds from the command to its first finished step, with an empty compilation cache and with a full one.
"""

import argparse
import collections
import contextlib
import dataclasses
import datetime
import functools
import itertools
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable

from jaxcnn import cli, config
from jaxcnn.errors import UserError, unknown


def machine() -> dict:
    import jax
    return {'device': jax.devices()[0].device_kind, 'devices': jax.device_count(), 'cores': os.cpu_count(),
            'python': platform.python_version(), 'jax': jax.__version__}


@dataclasses.dataclass
class Table:
    """What was measured: Markdown for a person, figures for a program."""

    title: str
    lines: list[str]
    figures: dict[str, object]


def table(title: str, unit: str, columns: dict[str, list[float]], **more: object) -> Table:
    return Table(f'{title}, {unit}', ['| | median | least | most |', '|---|---|---|---|', *(
        f'| {name} | {statistics.median(values):.4g} | {min(values):.4g} | {max(values):.4g} |'
        for name, values in columns.items())], {'unit': unit, 'values': columns, **more})


def write(path: str, made: Table) -> None:
    """Puts the table into a Markdown file: where it was when it was written before, else at the end."""
    begin, end = f'<!-- launch/benchmark.py: {made.title}, {machine()["device"]} -->', '<!-- end -->'
    held = ''
    if os.path.exists(path):
        with open(path) as f:
            held = f.read()
    before, found, after = held.partition(begin)
    after = after.partition(end)[2] if found else '\n'
    told = f'`{shlex.join(["python", *sys.argv])}`, {datetime.date.today()}, {json.dumps(machine())}'
    section = [begin, f'**{made.title}**, {told}:', '', *made.lines, end]
    with open(path, 'w') as f:
        f.write((before if found or not before else before.rstrip('\n') + '\n\n') + '\n'.join(section) + after)


# what train_step and eval measure: model, image size, batch, fields
NETWORKS = [('shallow_cnn', 32, 128, {}), ('resnet18', 32, 64, {'stem': 'small'}),
            ('resnext50_32x4d', 64, 16, {'stem': 'small'}), ('mobilenet_v1', 64, 32, {}), ('vgg16_bn', 64, 16, {}),
            ('resnet50', 224, 8, {}), ('airbench94', 32, 1024, {})]
ON_A_GPU = [('resnet50', 224, 256, {}), ('shallow_cnn', 32, 1024, {}), ('resnext50_32x4d', 224, 256, {}),
            ('mobilenet_v1', 224, 256, {}), ('t2t_vit_14', 224, 256, {}), ('airbench94', 32, 1024, {})]
PEERS = ('torch', 'compiled', 'jax', 'xla')


def on_cpu() -> bool:
    import jax
    return jax.default_backend() == 'cpu'


class Own:
    """A network's step in this process: `Own(...)(seconds)` gives images/s."""

    def __init__(self, what: str, name: str, size: int, batch: int, fields: dict):
        import jax
        import jax.numpy as jnp
        import numpy as np

        from jaxcnn import models, optim
        from jaxcnn.config import Choice, OptimConfig, Timeline, parse
        from jaxcnn.data.normalize import Normalization
        from jaxcnn.train.state import init_state, variables
        from jaxcnn.train.step import Preparation, TrainStep
        network = models.create(name, num_classes=10, **fields)
        settings = parse({'batch_size': batch, 'duration': {'steps': 10 ** 6}})
        descent = OptimConfig(optimizer=Choice('sgd', {'momentum': 0.9}), learning_rate=0.01, l2=1e-4)
        optimizer = optim.make_optimizer(descent, Timeline(settings, batch))
        rng = np.random.default_rng(0)
        images = {'image': jnp.asarray(rng.integers(0, 256, (batch, size, size, 3), np.uint8)),
                  'label': jnp.arange(batch) % 10}
        prepare = Preparation(None, Normalization.by((0.5,) * 3, (0.25,) * 3))
        state = jax.jit(lambda: init_state(network, optimizer, (size, size, 3), np.uint32(0), descent))()
        placed = variables(state)['']
        flat = models.create(name, num_classes=10, **{**fields, 'conv_implementation': 'xla'})
        self.flops = jax.jit(lambda v, x: flat.apply(v, x, train=False)).lower(
            placed, jnp.zeros((1, size, size, 3))).cost_analysis()['flops'] * (3 if what == 'train_step' else 1)
        self.batch = batch
        if what == 'train_step':
            compiled = jax.jit(TrainStep(network, optimizer, prepare), donate_argnums=0).lower(
                state, images, jax.random.key(0)).compile()

            def step() -> object:
                nonlocal state
                state, values = compiled(state, images, jax.random.key(0))
                return values
        else:
            compiled = jax.jit(lambda v, x: network.apply(v, prepare(x), train=False)).lower(
                placed, images['image']).compile()

            def step() -> object:
                return compiled(placed, images['image'])
        self.bytes = compiled.cost_analysis()['bytes accessed'] / batch
        self.step = step
        for _ in range(3):
            jax.block_until_ready(step())

    def __call__(self, seconds: float) -> float:
        return rate(self.step, self.batch, seconds)


def rate(step: Callable[[], object], images: int, seconds: float) -> float:
    """Images/s of a step of so many, over that long; a GPU is given two steps ahead."""
    import jax
    ahead, under_way = 0 if on_cpu() else 2, collections.deque[object]()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        under_way.append(step())
        count += 1
        if len(under_way) > ahead:
            jax.block_until_ready(under_way.popleft())
    jax.block_until_ready(under_way)
    return count * images / (time.perf_counter() - began)


def as_a_person_does() -> dict[str, str]:
    """The environment without what we have set in this process."""
    return {k: v for k, v in os.environ.items() if k not in ('GLIBC_TUNABLES', 'OMP_WAIT_POLICY', 'JAXCNN_STARTED_ANEW')}


class Torch:
    """The same by PyTorch, in a process of its own: what it takes is in `torch_peer.py`."""

    def __init__(self, python: str, *arguments: object):
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'torch_peer.py')
        try:
            self.process = subprocess.Popen(
                [python, script, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env=as_a_person_does())
        except OSError as e:
            raise UserError(f'--torch_python: {python!r} cannot be run: {e.strerror}') from e
        self.answer()

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f'the PyTorch process ended with {self.process.wait()}; '
                            'it needs torch==2.13.0 and pytorchcv==0.0.67')
        return line

    def __call__(self, seconds: float) -> float:
        print(seconds, file=self.process.stdin, flush=True)
        return float(self.answer())

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def quickest(work: Callable[..., object], *operands: object) -> float:
    """Seconds, the best of ten."""
    import jax
    compiled, times = jax.jit(work), []
    jax.block_until_ready(compiled(*operands))
    for _ in range(10):
        began = time.perf_counter()
        jax.block_until_ready(compiled(*operands))
        times.append(time.perf_counter() - began)
    return min(times)


def product_rate(dtype: str) -> float:
    """FLOP/s of a matrix product of 2048 x 2048, on a GPU 8192 x 8192."""
    import jax
    side = 2048 if on_cpu() else 8192
    a = jax.random.normal(jax.random.key(0), (side, side), dtype)
    return 2 * side ** 3 / quickest(lambda a: a @ a, a)


def bandwidth() -> float:
    """Bytes/s read and written in adding 1 to 64 million numbers, on a GPU 512 million; float32."""
    import jax.numpy as jnp
    x = jnp.zeros(2 ** 26 if on_cpu() else 2 ** 29)
    return 2 * x.nbytes / quickest(lambda x: x + 1, x)


def networks(args: argparse.Namespace, what: str) -> Table:
    measured = NETWORKS if on_cpu() else ON_A_GPU
    known = [name for name, *_ in measured]
    chosen = args.models.split(',') if args.models else known
    peers = [peer for peer in args.peers.split(',') if peer]
    dtype, device = ('float32', 'cpu') if on_cpu() else ('bfloat16', 'cuda')
    if wrong := [name for name in chosen if name not in known]:
        raise unknown('model', wrong[0], known)
    lines = [f'| network | jaxcnn | {"".join(f"over {peer} | " for peer in peers)}of matmul | of bandwidth |',
             f'|{"---|" * (len(peers) + 4)}']
    results: dict[str, object] = {}
    for name, size, batch, fields in measured:
        if name not in chosen:
            continue
        batch = 64 if what == 'eval' and on_cpu() else batch
        fields = {**fields, 'dtype': dtype}
        own = Own(what, name, size, batch, fields)
        sides: dict[str, Own | Torch] = {'jaxcnn': own}
        for peer in peers:
            if peer in ('jax', 'xla'):
                sides[peer] = Own(what, name, size, batch, {**fields, 'conv_implementation': peer})
            else:
                options = [f'--{k}={v}' for k, v in fields.items()] + (['--compile'] if peer == 'compiled' else [])
                sides[peer] = Torch(args.torch_python, what, name, size, batch, f'--device={device}', *options)
        rates: dict[str, list[float]] = {side: [] for side in sides}
        parts: dict[str, list[float]] = {'of matmul': [], 'of bandwidth': []}
        for _ in range(args.rounds):
            limits = product_rate(dtype), bandwidth()
            for side, work in sides.items():
                rates[side].append(work(args.seconds))
            for part, a_image, limit in zip(parts.values(), (own.flops, own.bytes), limits, strict=True):
                part.append(rates['jaxcnn'][-1] * a_image / limit)
        for side in sides.values():
            if isinstance(side, Torch):
                side.close()
        title = f'{name}, {size} px, batch {batch}'
        results[title] = {'images/s': rates, 'flops per image': own.flops, 'bytes per image': own.bytes, **parts}
        cells = [spread(rates['jaxcnn'])]
        cells += [spread([a / b for a, b in zip(rates['jaxcnn'], rates[peer], strict=True)]) for peer in peers]
        cells += [f'{statistics.median(part):.2f}' for part in parts.values()]
        lines.append(f'| {title} | {" | ".join(cells)} |')
        print(lines[-1], file=sys.stderr, flush=True)
    return Table(f'{what}, {dtype}: images/s, then over those of peers; median (least to most)', lines, results)


def spread(values: list[float]) -> str:
    return f'{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})'


PEER_OPS = ('flip_lr', 'pad_crop', 'random_resized_crop', 'auto_augment')


def peer_op(text: str, size: int) -> tuple[str, dict]:
    """An op of the pipeline as `torch_peer.Images` takes it: its name and arguments."""
    from jaxcnn.data import augment
    policies = augment.policies
    name, positional, keywords = config.parse_call(text, 'config.data.augment')
    if name not in PEER_OPS:
        raise unknown('augmentation of the PyTorch peer', name, PEER_OPS)
    op = getattr(policies if name == 'auto_augment' else augment.geometry, name)
    fields = config.bind(op, positional, keywords, name)
    if name == 'auto_augment':
        values = policies.Space(10).values((size, size)).tolist()
        fields = {'policy': [[(op, chance, values[policies.OPS.index(op)][magnitude], op in policies.SIGNED)
                              for op, chance, magnitude in sub] for sub in policies.POLICIES[fields['policy']]]}
    return name, fields


def most_memory(*arguments: str) -> float:
    """MB of `train.py`, files mapped into memory left out, at its height in 20 steps; sampled 50 times a second."""
    script, most = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'train.py'), 0.0
    command = [sys.executable, script, *arguments, '--config.duration.steps=20', '--config.optim.warmup=None',
               '--config.log_every.steps=20']
    process = subprocess.Popen(command, env=as_a_person_does(), stderr=subprocess.PIPE, text=True)

    def watch() -> None:
        nonlocal most
        while process.poll() is None:
            with contextlib.suppress(OSError), open(f'/proc/{process.pid}/status') as f:
                held = {line.split(':')[0]: int(line.split()[1]) for line in f if line.startswith('Rss')}
                most = max(most, (held.get('RssAnon', 0) + held.get('RssShmem', 0)) / 1e3)
            time.sleep(0.02)

    threading.Thread(target=watch).start()
    told = []
    assert process.stderr is not None
    for line in process.stderr:
        told.append(line)
        if ' step 20/20 ' in line:
            process.kill()
            return most
    raise UserError(f'train.py ended with {process.wait()}: {told[-1].strip() if told else "nothing said"}')


def data(args: argparse.Namespace) -> Table:
    import jax
    import numpy as np

    from jaxcnn.data import cache, layouts, sources
    from jaxcnn.train.loop import Run, check_config
    from jaxcnn.train.signals import StopRequest
    from jaxcnn.train.step import gather
    settings = {p: config.load(args.config, [*args.overrides, f'data.placement={p}', 'duration.steps=100000000'])
                for p in ('device', 'host')}
    check_config(settings['host'])
    torch = 'torch' in args.peers.split(',')
    ops = settings['host'].data.augment.split('|') if settings['host'].data.augment.strip() else []
    for part in ops if torch else []:
        peer_op(part, 32)
    found = sources.find(settings['host'].data)
    examples = found.splits['train']()
    listed = examples if isinstance(examples, layouts.Files) else None
    more: dict[str, object] = {}
    sides: dict[str, Callable[[float], float]] = {}
    peers: dict[str, Torch] = {}
    runs, inputs = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for placement, chosen in settings.items():
            os.makedirs(os.path.join(folder, placement, 'figures'))
            run = Run(chosen, os.path.join(folder, placement), StopRequest())
            run.open()

            def batch(batches: dict, resident: dict, first: jax.Array, seed: jax.Array, run: Run = run) -> jax.Array:
                rows = {k: v[0] for k, v in batches.items()} or gather(
                    run.backend.rows_of_batch(resident['order'], first[0], run.config.batch_size), resident)
                return run.prepare.train(rows['image'], rows['label'], jax.random.fold_in(jax.random.key(seed), first[0]),
                                         classes=run.dataset.num_classes)[0]

            inputs[placement] = (run.inputs(step, 1) for step in itertools.count())
            prepared = itertools.starmap(jax.jit(batch), inputs[placement])
            sides[f'{placement} placement'] = functools.partial(rate, functools.partial(next, prepared), chosen.batch_size)
            runs[placement] = run
        program, state = runs['device'].program(run.timeline.phase(0)), runs['device'].state

        def step() -> object:
            nonlocal state
            state, values = program(state, *next(inputs['device']))
            return values
        sides['training step'] = functools.partial(rate, step, run.config.batch_size)
        for side in sides.values():
            side(1)  # compiled

        def build(seconds: float) -> float:
            with tempfile.TemporaryDirectory() as empty:
                began = time.perf_counter()
                _, parts = cache.open_cache(found, dataclasses.replace(settings['host'].data, cache_dir=empty))
                return sum(len(labels) for _, labels in parts.values()) / (time.perf_counter() - began)

        if listed is not None:
            sides['building the cache'] = build
        if torch:
            train, size = run.dataset.splits['train'], run.dataset.image_shape[0]
            content: dict[str, object] = {'ops': [peer_op(part, size) for part in ops]}
            if listed is not None:
                content['files'] = [os.path.join(listed.root, path) for path in listed.paths]
            else:
                content['array'] = os.path.join(folder, 'images.npy')
                np.save(content['array'], train.take(np.arange(len(train))))
            with open(path := os.path.join(folder, 'images.json'), 'w') as f:
                json.dump(content, f)
            peers['torch DataLoader'] = Torch(args.torch_python, 'data', path, size, run.config.batch_size)
            if listed is not None:
                peers['PIL in processes'] = Torch(args.torch_python, 'decode', path, size, run.config.batch_size)
        rates: dict[str, list[float]] = {side: [] for side in (*sides, *peers)}
        for _ in range(args.rounds):
            for side, measured in {**sides, **peers}.items():
                rates[side].append(measured(args.seconds))
                print(f'{side}: {rates[side][-1]:.4g} images/s', file=sys.stderr, flush=True)
        for peer in peers.values():
            peer.close()
        run.close()

        def ratio(a: str, b: str) -> list[float]:
            return [x / y for x, y in zip(rates[a], rates[b], strict=True)]

        own = ['device placement', 'host placement']
        if listed is not None:
            rates['first epoch'] = [1 / (1 / a + 1 / b) for a, b in zip(
                rates['building the cache'], rates['device placement'], strict=True)]
            own = [*own, 'first epoch']
        for side in own if peers else []:
            rates[f'{side} / torch DataLoader'] = ratio(side, 'torch DataLoader')
        if 'PIL in processes' in peers:
            rates['building / PIL in processes'] = ratio('building the cache', 'PIL in processes')
        rates['data, as part of the training step'] = ratio('training step', 'device placement')
        if listed is not None:
            given = [f'--config={args.config}', *(f'--config.{o}' for o in args.overrides)]
            memory = {}
            for name, options in (('all', []), ('one image of each class', ['--config.data.per_class=1'])):
                memory[name] = most_memory(*given, f'--workdir={folder}/memory {name}',
                                           f'--config.data.cache_dir={folder}/cache {name}', *options)
            more['MB of train.py at its height, files mapped into memory left out'] = memory
    made = table(f'data of {run.config.name}', 'images/s', rates, **more)
    made.lines += ['', *(f'{name}: {value}' for name, value in more.items())] if more else []
    return made


def train(args: argparse.Namespace) -> Table:
    import numpy as np

    from jaxcnn.data.dataset import load
    from jaxcnn.train.loop import check_config
    settings = config.load(args.config, args.overrides)
    check_config(settings)
    if (settings.model.name not in ('lenet5', 'lenet_mnist') or settings.duration.unit != 'epochs' or
            settings.duration.value % 1 or settings.data.name not in ('mnist', 'fashion_mnist') or settings.data.image_size):
        raise UserError(f'the PyTorch script has lenet5 and lenet_mnist for images of 28 x 28, and whole epochs; got '
                        f'{settings.model.name} on {settings.data.name} for {settings.duration}')
    here = os.path.dirname(os.path.abspath(__file__))
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        dataset = load(settings.data)
        for part, split in dataset.splits.items():
            np.save(os.path.join(folder, f'{part}_images.npy'), split.take(np.arange(len(split))))
            np.save(os.path.join(folder, f'{part}_labels.npy'), split.labels.astype(np.int64))
        size, cores = dataset.image_shape[0], len(os.sched_getaffinity(0))
        for round_ in range(args.rounds):
            commands = {'train.py': [sys.executable, os.path.join(here, 'train.py'), f'--config={args.config}',
                                     f'--workdir={folder}/{round_}', *(f'--config.{o}' for o in args.overrides)]}
            for workers in (0, cores):
                commands[f'torch, {workers} workers'] = [
                    args.torch_python, os.path.join(here, 'torch_peer.py'), 'train', settings.model.name, str(size),
                    str(settings.batch_size), f'--epochs={int(settings.duration.value)}', f'--workers={workers}',
                    f'--folder={folder}']
            for side, command in commands.items():
                began = time.perf_counter()
                done = subprocess.run(command, capture_output=True, text=True, env=as_a_person_does())
                seconds.setdefault(side, []).append(time.perf_counter() - began)
                last = (done.stdout + done.stderr).strip().splitlines() or ['nothing']
                if done.returncode:
                    raise UserError(f'{side} ended with {done.returncode}: {last[-1]}')
                print(f'{side}: {seconds[side][-1]:.1f} s: {next((x for x in last[::-1] if "test acc" in x), last[-1])}',
                      file=sys.stderr, flush=True)
    best = [min(t[i] for side, t in seconds.items() if side != 'train.py') for i in range(args.rounds)]
    seconds['best torch / train.py'] = [b / a for a, b in zip(seconds['train.py'], best, strict=True)]
    return table(f'{settings.model.name} on {settings.data.name}, {settings.duration}', 'seconds', seconds)


def checkpoint(args: argparse.Namespace) -> Table:
    import jax
    import numpy as np

    from jaxcnn import models, optim
    from jaxcnn.config import CheckpointConfig, Choice, OptimConfig, Timeline, parse
    from jaxcnn.train.checkpoint import Checkpoints
    from jaxcnn.train.state import init_state
    name = args.models or 'resnet50'
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
        if 'torch' in args.peers.split(','):
            peer = Torch(args.torch_python, 'checkpoint', name, 224, 0, f'--folder={folder}')
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
        for _ in range(args.rounds):
            began = time.perf_counter()
            bare(count)
            images = count * settings.parallel.steps_per_dispatch * settings.batch_size
            rates['bare step'].append(images / (time.perf_counter() - began))
            before, began = run.timeline.examples(run.step), time.perf_counter()
            looped(count)
            rates['loop'].append((run.timeline.examples(run.step) - before) / (time.perf_counter() - began))
        run.close()
    ratios = [b / a for a, b in zip(rates['bare step'], rates['loop'], strict=True)]
    return table(f'loop of {settings.name}', 'images/s', {**rates, 'loop / bare step': ratios}, dispatches=count)


def startup(args: argparse.Namespace) -> Table:
    def first_step(cache: str) -> float:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, os.path.join(os.path.dirname(os.path.abspath(__file__)), 'train.py'),
                 f'--config={args.config}', f'--workdir={folder}/run', *(f'--config.{o}' for o in args.overrides)],
                stderr=subprocess.PIPE, text=True, env={**as_a_person_does(), 'JAX_COMPILATION_CACHE_DIR': cache})
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
    return table(f'start-up of {args.config}', 'seconds from the command to its first step', times)


BENCHMARKS: dict[str, Callable[[argparse.Namespace], Table]] = {
    'train_step': functools.partial(networks, what='train_step'), 'eval': functools.partial(networks, what='eval'),
    'data': data, 'train': train, 'checkpoint': checkpoint, 'loop': loop, 'startup': startup}


def run(args: argparse.Namespace) -> int:
    for name, least in (('rounds', 1), ('seconds', 0.01)):
        if not getattr(args, name) >= least:
            raise UserError(f'--{name}: expected at least {least}, got {getattr(args, name)}')
    for peer in filter(None, args.peers.split(',')):
        if peer not in PEERS:
            raise unknown('peer', peer, PEERS)
    for flag, path in (('json', args.json), ('write', args.write)):
        if path and not os.path.isdir(folder := os.path.dirname(os.path.abspath(path))):
            raise UserError(f'--{flag}: there is no folder {folder}')
    found: dict[str, object] = {'machine': machine()}
    for what in args.what:
        made = BENCHMARKS[what](args)
        print(made.title, '', *made.lines, '', json.dumps(machine()), sep='\n', flush=True)
        found[what] = made.figures
        if args.write:
            write(args.write, made)
        if args.json:
            with open(args.json, 'w') as f:
                json.dump(found, f, indent=2)
    return 0


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # of a GPU, which PyTorch's process shares
    parser.add_argument('what', nargs='+', choices=BENCHMARKS)
    parser.add_argument('--config', default='', help='configs/NAME.py, of data, train, loop and startup')
    parser.add_argument('--models', default='', help='of train_step, eval and checkpoint, with commas between')
    parser.add_argument('--peers', default='torch,compiled', help='see above (default: torch,compiled)')
    parser.add_argument('--torch_python', default=sys.executable, help='of an environment with PyTorch (default: this one)')
    parser.add_argument('--rounds', type=int, default=5, help='how often each is measured (default: 5)')
    parser.add_argument('--seconds', type=float, default=5, help='of each measurement (default: 5)')
    parser.add_argument('--json', default='', metavar='FILE', help='write the figures there, too')
    parser.add_argument('--write', default='', metavar='FILE', help='write the tables into this Markdown file, too')
    cli.main(parser, run)
