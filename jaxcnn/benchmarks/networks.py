"""The benchmarks `train_step` and `eval`: networks on one batch, compared with PyTorch and other convolutions."""

import argparse
import math
import statistics
import sys
from collections.abc import Iterator

from jaxcnn import memory
from jaxcnn.benchmarks.measure import (
    Table,
    TorchPeer,
    images_per_second,
    matmul_rate,
    median_and_range,
    memory_bandwidth,
    memory_traffic,
    on_cpu,
    require_torch,
)
from jaxcnn.errors import unknown

Cases = list[tuple[str, int, int, dict]]  # network, image size, batch size, arguments of the network
CPU_CASES: Cases = [
    ('shallow_cnn', 32, 128, {}), ('resnet18', 32, 64, {'stem': 'small'}), ('resnext50_32x4d', 64, 16, {'stem': 'small'}),
    ('mobilenet_v1', 64, 32, {}), ('vgg16_bn', 64, 16, {}), ('resnet50', 224, 8, {}), ('airbench94', 32, 1024, {})]
GPU_CASES: Cases = [
    ('resnet50', 224, 256, {}), ('shallow_cnn', 32, 1024, {}), ('resnext50_32x4d', 224, 256, {}),
    ('mobilenet_v1', 224, 256, {}), ('t2t_vit_14', 224, 256, {}), ('airbench94', 32, 1024, {})]

DTYPES = 'float32', 'bfloat16', 'float16'


class JaxcnnStep:
    """The training step or the inference of a network in this process.

    Args:
      benchmark: `train_step` or `eval`.
      name: name of the network.
      size: height and width of the images.
      batch: batch size.
      fields: arguments of the network.

    Attributes:
      flops: floating-point operations per image.
      bytes: bytes of memory traffic per image.
      batch: batch size.
    """

    def __init__(self, benchmark: str, name: str, size: int, batch: int, fields: dict):
        import jax
        import jax.numpy as jnp
        import numpy as np

        from jaxcnn import models, optim
        from jaxcnn.analysis.complexity import cost
        from jaxcnn.config import Choice, OptimConfig, parse
        from jaxcnn.data.normalize import Normalization
        from jaxcnn.preprocessing import Preprocessor
        from jaxcnn.tasks import create
        from jaxcnn.timeline import Timeline
        from jaxcnn.training.state import init_state, variables
        from jaxcnn.training.step import TrainStep
        network = models.create(name, num_classes=10, **fields)
        settings = parse({'batch_size': batch, 'duration': {'steps': 10 ** 6}})
        descent = OptimConfig(optimizer=Choice('sgd', {'momentum': 0.9}), learning_rate=0.01, l2=1e-4)
        optimizer = optim.make_optimizer(descent, Timeline(settings, batch))
        task = create(settings, [str(i) for i in range(10)], [1] * 10, batch)
        rng = np.random.default_rng(0)
        images = {'image': jnp.asarray(rng.integers(0, 256, (batch, size, size, 3), np.uint8)),
                  'label': jnp.arange(batch) % 10}
        preprocessor = Preprocessor(None, Normalization.from_mean_std((0.5,) * 3, (0.25,) * 3))
        state = jax.jit(lambda: init_state(network, optimizer, (size, size, 3), np.uint32(0), descent))()
        placed = variables(state)[False]
        self.flops = 2 * (3 if benchmark == 'train_step' else 1) * cost(network, (size, size, 3), 1, ()).multiply_adds
        self.batch = batch
        if benchmark == 'train_step':
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
        self.bytes = memory_traffic(text) / batch if text else math.nan
        self.step = step
        for _ in range(3):
            jax.block_until_ready(step())

    def __call__(self, seconds: float) -> float:
        """Measure for a number of seconds, and return the images/s."""
        return images_per_second(self.step, self.batch, seconds)


def compare(args: argparse.Namespace, benchmark: str) -> Iterator[Table]:
    """Measure the networks one after another, and yield the table after each, so that a failure loses no earlier result.

    Args:
      args: arguments of the command line.
      benchmark: `train_step` or `eval`.
    """
    cases = CPU_CASES if on_cpu() else GPU_CASES
    known = [name for name, *_ in cases]
    selected = args.models.split(',') if args.models else known
    peers = [peer for peer in args.peers.split(',') if peer]
    dtype, device = ('float32', 'cpu') if on_cpu() else ('bfloat16', 'cuda')
    dtype = args.dtype or dtype
    if dtype not in DTYPES:
        raise unknown('dtype', dtype, DTYPES)
    if wrong := [name for name in selected if name not in known]:
        raise unknown('model', wrong[0], known)
    if {'torch', 'compiled'} & set(peers):
        require_torch(args.torch_python)
    lines = [f'| network | jaxcnn | {"".join(f"over {peer} | " for peer in peers)}of matmul | of bandwidth |',
             f'|{"---|" * (len(peers) + 4)}']
    results: dict[str, object] = {}
    for name, size, batch, fields in cases:
        if name not in selected:
            continue
        batch = 64 if benchmark == 'eval' and on_cpu() else batch
        fields = {**fields, 'dtype': dtype}
        jaxcnn_step = JaxcnnStep(benchmark, name, size, batch, fields)
        sides: dict[str, JaxcnnStep | TorchPeer] = {'jaxcnn': jaxcnn_step}
        for peer in peers:
            if peer in ('jax', 'xla'):
                sides[peer] = JaxcnnStep(benchmark, name, size, batch, {**fields, 'conv_implementation': peer})
            else:
                options = [f'--{k}={v}' for k, v in fields.items()] + (['--compile'] if peer == 'compiled' else [])
                sides[peer] = TorchPeer(args.torch_python, benchmark, name, size, batch, f'--device={device}', *options)
        rates: dict[str, list[float]] = {side: [] for side in sides}
        fractions: dict[str, list[float]] = {'of matmul': [], 'of bandwidth': []}
        for _ in range(args.rounds):
            limits = matmul_rate(dtype), memory_bandwidth()
            for side, measure in sides.items():
                rates[side].append(measure(args.seconds))
            costs = jaxcnn_step.flops, jaxcnn_step.bytes
            for fraction, cost_per_image, limit in zip(fractions.values(), costs, limits, strict=True):
                fraction.append(rates['jaxcnn'][-1] * cost_per_image / limit)
        for measure in sides.values():
            if isinstance(measure, TorchPeer):
                measure.close()
        title = f'{name}, {size} px, batch {batch}'
        results[title] = {'images/s': rates, 'flops per image': jaxcnn_step.flops, 'bytes per image': jaxcnn_step.bytes,
                          **fractions}
        cells = [median_and_range(rates['jaxcnn'])]
        cells += [median_and_range([a / b for a, b in zip(rates['jaxcnn'], rates[peer], strict=True)]) for peer in peers]
        cells += [f'{statistics.median(fraction):.2f}' for fraction in fractions.values()]
        lines.append(f'| {title} | {" | ".join(cells)} |')
        print(lines[-1], file=sys.stderr, flush=True)
        del jaxcnn_step, sides, measure
        memory.release()
        yield Table(f'{benchmark}, {dtype}: images/s, then over those of peers; median (least to most)', lines, results)
