"""train_step and eval: networks on one batch that is already on the device, beside PyTorch's and other convolutions."""

import argparse
import math
import statistics
import sys
from collections.abc import Iterator

from benchmarks.measure import Table, Torch, bandwidth, need_torch, on_cpu, product_rate, rate, spread, traffic
from jaxcnn import memory
from jaxcnn.errors import unknown

Measured = list[tuple[str, int, int, dict]]  # network, image size, batch, fields
ON_A_CPU: Measured = [
    ('shallow_cnn', 32, 128, {}), ('resnet18', 32, 64, {'stem': 'small'}), ('resnext50_32x4d', 64, 16, {'stem': 'small'}),
    ('mobilenet_v1', 64, 32, {}), ('vgg16_bn', 64, 16, {}), ('resnet50', 224, 8, {}), ('airbench94', 32, 1024, {})]
ON_A_GPU: Measured = [
    ('resnet50', 224, 256, {}), ('shallow_cnn', 32, 1024, {}), ('resnext50_32x4d', 224, 256, {}),
    ('mobilenet_v1', 224, 256, {}), ('t2t_vit_14', 224, 256, {}), ('airbench94', 32, 1024, {})]


class Own:
    """A network's step in this process: `Own(...)(seconds)` gives images/s."""

    def __init__(self, what: str, name: str, size: int, batch: int, fields: dict):
        import jax
        import jax.numpy as jnp
        import numpy as np

        from jaxcnn import models, optim
        from jaxcnn.config import Choice, OptimConfig, parse
        from jaxcnn.data.normalize import Normalization
        from jaxcnn.inspect.complexity import cost
        from jaxcnn.preprocessing import Preprocessor
        from jaxcnn.tasks import create
        from jaxcnn.timeline import Timeline
        from jaxcnn.train.state import init_state, variables
        from jaxcnn.train.step import TrainStep
        network = models.create(name, num_classes=10, **fields)
        settings = parse({'batch_size': batch, 'duration': {'steps': 10 ** 6}})
        descent = OptimConfig(optimizer=Choice('sgd', {'momentum': 0.9}), learning_rate=0.01, l2=1e-4)
        optimizer = optim.make_optimizer(descent, Timeline(settings, batch))
        task = create(settings, [str(i) for i in range(10)], [1] * 10, batch)
        rng = np.random.default_rng(0)
        images = {'image': jnp.asarray(rng.integers(0, 256, (batch, size, size, 3), np.uint8)),
                  'label': jnp.arange(batch) % 10}
        preprocessor = Preprocessor(None, Normalization.by((0.5,) * 3, (0.25,) * 3))
        state = jax.jit(lambda: init_state(network, optimizer, (size, size, 3), np.uint32(0), descent))()
        placed = variables(state)[False]
        self.flops = 2 * (3 if what == 'train_step' else 1) * cost(network, (size, size, 3), 1, ()).multiply_adds
        self.batch = batch
        if what == 'train_step':
            compiled = jax.jit(TrainStep(network, optimizer, preprocessor, task), donate_argnums=0).lower(
                state, images, jax.random.key(0)).compile()

            def step() -> object:
                nonlocal state
                state, values = compiled(state, images, jax.random.key(0))
                return values
        else:
            compiled = jax.jit(lambda v, x: network.apply(v, preprocessor(x), train=False)).lower(
                placed, images['image']).compile()

            def step() -> object:
                return compiled(placed, images['image'])
        text = compiled.as_text()
        self.bytes = traffic(text) / batch if text else math.nan
        self.step = step
        for _ in range(3):
            jax.block_until_ready(step())

    def __call__(self, seconds: float) -> float:
        return rate(self.step, self.batch, seconds)


def compare(args: argparse.Namespace, what: str) -> Iterator[Table]:
    """Its table after each network, so that one that ends badly loses none before it."""
    measured = ON_A_CPU if on_cpu() else ON_A_GPU
    known = [name for name, *_ in measured]
    chosen = args.models.split(',') if args.models else known
    peers = [peer for peer in args.peers.split(',') if peer]
    dtype, device = ('float32', 'cpu') if on_cpu() else ('bfloat16', 'cuda')
    if wrong := [name for name in chosen if name not in known]:
        raise unknown('model', wrong[0], known)
    if {'torch', 'compiled'} & set(peers):
        need_torch(args.torch_python)
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
        for work in sides.values():
            if isinstance(work, Torch):
                work.close()
        title = f'{name}, {size} px, batch {batch}'
        results[title] = {'images/s': rates, 'flops per image': own.flops, 'bytes per image': own.bytes, **parts}
        cells = [spread(rates['jaxcnn'])]
        cells += [spread([a / b for a, b in zip(rates['jaxcnn'], rates[peer], strict=True)]) for peer in peers]
        cells += [f'{statistics.median(part):.2f}' for part in parts.values()]
        lines.append(f'| {title} | {" | ".join(cells)} |')
        print(lines[-1], file=sys.stderr, flush=True)
        del own, sides, work
        memory.give_back()  # before the next network
        yield Table(f'{what}, {dtype}: images/s, then over those of peers; median (least to most)', lines, results)
