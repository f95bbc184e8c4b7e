"""The speed of int8 inference, and its ratio to that of float32 on the same machine."""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import memory, models
from jaxcnn.benchmarks.measure import Table, images_per_second, median_and_range, on_cpu
from jaxcnn.compression import activation_ranges, int8_execution, layer_graph
from jaxcnn.compression.quantized_run import Quantization, QuantizedNetwork, quantize_layers
from jaxcnn.errors import UserError, unknown
from jaxcnn.ops.quantized_conv import instruction_set

# title, network, side of the images, fields
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    'resnet18': ('resnet18', 224, {}),
    'resnet18_small': ('resnet18', 32, {'stem': 'small', 'num_classes': 10}),
    'resnet50': ('resnet50', 224, {}),
    'mobilenet_v2': ('mobilenet_v2', 224, {}),
    'vgg16_bn': ('vgg16_bn', 224, {}),
}
_DEFAULT = 'resnet18,resnet18_small'
_SEED = 0


def variables_of(network: Any, shape: tuple[int, ...]) -> Any:
    """Return variables as at the start of a training, drawn by NumPy; the time of a network does not depend on them."""
    rng = np.random.default_rng(_SEED)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))

    def draw(path: Any, leaf: Any) -> np.ndarray:
        if len(leaf.shape) > 1:  # a kernel, as he_normal draws it
            return rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape).astype(np.float32)
        return np.full(leaf.shape, path[-1].key in ('scale', 'var'), np.float32)
    return jax.tree_util.tree_map_with_path(draw, dict(shapes))


def steps(name: str, batch: int) -> Mapping[str, Callable[[], Any]]:
    """Return the inferences of a network in float32 and in int8, compiled, for one batch of images.

    Args:
      name: one of `CASES`.
      batch: number of images.
    """
    model, side, fields = CASES[name]
    network = models.create(model, **fields)
    shape = (batch, side, side, 3)
    variables = variables_of(network.clone(conv_implementation='xla'), shape)
    images = np.random.default_rng(_SEED).normal(size=shape).astype(np.float32)
    graph = layer_graph.trace(network, variables, shape)
    folded = layer_graph.fold(graph, variables)
    histograms = activation_ranges.collect(lambda _: graph, folded, lambda: [images])
    tensors = {tensor: activation_ranges.calibrate(histogram, 'minmax') for tensor, histogram in histograms.items()}
    int8 = QuantizedNetwork(network, variables, Quantization('int8', 'minmax', batch, (), tensors, '', 0),
                            quantize_layers(folded, bool))
    placed, x = jax.device_put(variables), jax.device_put(images)
    float32 = jax.jit(lambda v, x: network.apply(v, x, train=False)).lower(placed, x).compile()
    folded_float32 = jax.jit(lambda a, x: layer_graph.evaluate(graph, a, x)).lower(folded, x).compile()
    placed_arrays = jax.device_put(folded)
    quantized = jax.jit(lambda x: int8.apply({'params': {}}, x)).lower(x).compile()
    return {'float32': lambda: float32(placed, x), 'folded': lambda: folded_float32(placed_arrays, x),
            'int8': lambda: quantized(x)}


def compare(args: argparse.Namespace) -> Iterator[Table]:
    """Measure float32 and int8 alternately, and yield the table after each network.

    Args:
      args: arguments of the command line.
    """
    if not on_cpu():
        raise UserError('the benchmark int8 is for CPUs')
    int8_execution.check_available(8)
    names = (args.models or _DEFAULT).split(',')
    for name in names:
        if name not in CASES:
            raise unknown('model', name, CASES)
    batch = args.batch if args.batch > 2 else 32
    lines = ['| network | float32 | float32, BatchNorm folded | int8 | int8 over float32 | over folded float32 |',
             '|---|---|---|---|---|---|']
    results: dict[str, object] = {'instruction set': instruction_set()[0]}
    for name in names:
        sides = steps(name, batch)
        for step in sides.values():
            for _ in range(2):
                jax.block_until_ready(step())
        rates: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(args.rounds):
            for side, step in sides.items():
                rates[side].append(images_per_second(step, batch, args.seconds))
        title = f'{name}, {CASES[name][1]} px, batch {batch}'
        ratios = {side: [a / b for a, b in zip(rates['int8'], rates[side], strict=True)] for side in ('float32', 'folded')}
        results[title] = {'images/s': rates, 'ratio': statistics.median(ratios['float32'])}
        cells = [median_and_range(values) for values in (*rates.values(), *ratios.values())]
        lines.append(f'| {title} | {" | ".join(cells)} |')
        print(lines[-1], file=sys.stderr, flush=True)
        del sides
        memory.release()
        yield Table(f'int8 inference, {instruction_set()[0]}: images/s; median (least to most)', lines, results)
