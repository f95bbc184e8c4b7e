"""The benchmark `operators`: the array functions of object detection, compared with torchvision's operators."""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator

import numpy as np

from jaxcnn.benchmarks.measure import Table, TorchPeer, images_per_second, median_and_range, on_cpu, require_packages
from jaxcnn.errors import unknown

OPERATORS = {
    'nms': 'NMS of 6,000 boxes, the best 2,000', 'nms_all': 'NMS of 6,000 boxes, all',
    'roi_align': 'RoIAlign of 1,000 regions',
    'roi_align_gradient': 'RoIAlign of 1,000 regions and its gradient', 'roi_max_pool': 'RoI max pooling of 1,000 regions',
    'roi_max_pool_gradient': 'RoI max pooling of 1,000 regions and its gradient'}


def inputs() -> dict[str, np.ndarray]:
    """Return proposals around 60 objects of an image of 600x800 pixels with their scores, regions and a feature map."""
    rng = np.random.default_rng(0)
    objects = rng.integers(0, 60, 6000)
    centers = rng.uniform([0, 0], [800, 600], (60, 2))[objects]
    sides = np.exp(rng.uniform(3, 5.5, (60, 2)))[objects]
    centers = centers + rng.normal(size=(6000, 2)) * sides * 0.15
    sides = sides * np.exp(rng.normal(size=(6000, 2)) * 0.2)
    boxes = np.clip(np.concatenate([centers - sides / 2, centers + sides / 2], axis=1), 0, [800, 600, 800, 600])
    return {'boxes': boxes.astype(np.float32), 'scores': rng.random(6000, np.float32),
            'regions': boxes[:1000].astype(np.float32), 'features': rng.normal(size=(38, 50, 256)).astype(np.float32)}


def operator(name: str, arrays: dict[str, np.ndarray]) -> Callable[[], object]:
    """Return a function that dispatches one call of a compiled operator."""
    import jax

    from jaxcnn.ops import nms, roi
    placed = {key: jax.device_put(value) for key, value in arrays.items()}
    if name in ('nms', 'nms_all'):
        count = 2000 if name == 'nms' else len(arrays['boxes'])
        compiled = jax.jit(lambda boxes, scores: nms.nms(boxes, scores, 0.7, count))
        return lambda: compiled(placed['boxes'], placed['scores'])
    pool = roi.roi_align if name.startswith('roi_align') else roi.roi_max_pool

    @jax.jit
    def run(features: jax.Array, regions: jax.Array) -> object:
        if not name.endswith('gradient'):
            return pool(features, regions, 7, 1 / 16)
        pooled, vjp = jax.vjp(lambda features: pool(features, regions, 7, 1 / 16), features)
        return pooled, vjp(pooled)
    return lambda: run(placed['features'], placed['regions'])


def compare(args: argparse.Namespace) -> Iterator[Table]:
    """Measure the operators one after another, and yield the table after each.

    Args:
      args: arguments of the command line.
    """
    import jax
    selected = args.models.split(',') if args.models else list(OPERATORS)
    if wrong := [name for name in selected if name not in OPERATORS]:
        raise unknown('operator', wrong[0], OPERATORS)
    compares = 'torch' in args.peers.split(',')
    if compares:
        require_packages(args.torch_python, 'torch==2.14.1 and torchvision==0.29.1', 'torch', 'torchvision')
    lines = ['| operator | jaxcnn, ms | over torchvision |', '|---|---|---|']
    results: dict[str, object] = {}
    arrays = inputs()
    with tempfile.TemporaryDirectory() as folder:
        np.savez(os.path.join(folder, 'inputs.npz'), allow_pickle=False, **arrays)
        for name in selected:
            step = operator(name, arrays)
            jax.block_until_ready(step())
            peer = TorchPeer(args.torch_python, 'operator', name, 0, 1, f'--folder={folder}',
                             f'--device={"cpu" if on_cpu() else "cuda"}') if compares else None
            rates: dict[str, list[float]] = {'jaxcnn': [], **({'torchvision': []} if peer else {})}
            for _ in range(args.rounds):
                rates['jaxcnn'].append(images_per_second(step, 1, args.seconds))
                if peer:
                    rates['torchvision'].append(peer(args.seconds))
            if peer:
                peer.close()
            ratios = [a / b for a, b in zip(rates['jaxcnn'], rates.get('torchvision', []), strict=False)]
            results[OPERATORS[name]] = {'calls/s': rates}
            times = median_and_range([1e3 / rate for rate in rates['jaxcnn']])
            lines.append(f'| {OPERATORS[name]} | {times} | {median_and_range(ratios) if ratios else ""} |')
            print(lines[-1], file=sys.stderr, flush=True)
            yield Table('operators of object detection, float32: median (least to most)', lines, results)
