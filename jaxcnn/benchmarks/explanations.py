"""The benchmark `integrated_gradients`: an attribution of a batch of images, compared with captum's."""

import argparse
import sys
from collections.abc import Iterator

from jaxcnn.benchmarks.measure import Table, TorchPeer, images_per_second, median_and_range, on_cpu, require_torch
from jaxcnn.errors import UserError, unknown

BATCH = 64
SIZES = {'resnet18': 64, 'shallow_cnn': 32}  # height and width of the images of each network


class IntegratedGradients:
    """The integrated gradients of a network in this process.

    Args:
      name: name of the network.
      steps: number of gradients along the line from the baseline to each image.
    """

    def __init__(self, name: str, steps: int):
        import jax
        import jax.numpy as jnp

        from jaxcnn import models
        from jaxcnn.analysis import attribution
        network = models.create(name, 10)
        images = jax.random.normal(jax.random.key(0), (BATCH, SIZES[name], SIZES[name], 3))
        variables = jax.jit(network.init)(jax.random.key(1), images[:1])
        classes = jnp.arange(BATCH) % 10

        def step() -> object:
            return attribution.integrated_gradients(network, variables, images, classes, steps=steps)
        self.step = step
        jax.block_until_ready(step())

    def __call__(self, seconds: float) -> float:
        """Measure for a number of seconds, and return the images/s."""
        return images_per_second(self.step, BATCH, seconds)


def compare(args: argparse.Namespace) -> Iterator[Table]:
    """Measure the networks one after another, and yield the table after each.

    Args:
      args: arguments of the command line.

    Raises:
      UserError: A network or a peer is none of this benchmark, or PyTorch's environment lacks captum.
    """
    selected = args.models.split(',') if args.models else ['resnet18']
    if wrong := [name for name in selected if name not in SIZES]:
        raise unknown('model', wrong[0], SIZES)
    if args.steps < 1:
        raise UserError(f'--steps: expected at least 1, got {args.steps}')
    has_peer = 'torch' in args.peers.split(',')
    if has_peer:
        require_torch(args.torch_python, 'captum')
    device = 'cpu' if on_cpu() else 'cuda'
    lines = [f'| network | jaxcnn | {"over captum | " if has_peer else ""}', f'|---|---|{"---|" if has_peer else ""}']
    results: dict[str, object] = {}
    for name in selected:
        sides: dict[str, IntegratedGradients | TorchPeer] = {'jaxcnn': IntegratedGradients(name, args.steps)}
        if has_peer:
            sides['captum'] = TorchPeer(args.torch_python, 'integrated_gradients', name, SIZES[name], BATCH,
                                        f'--device={device}', f'--steps={args.steps}')
        rates: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(args.rounds):
            for side, measure in sides.items():
                rates[side].append(measure(args.seconds))
        cells = [median_and_range(rates['jaxcnn'])]
        if has_peer:
            cells.append(median_and_range([a / b for a, b in zip(rates['jaxcnn'], rates['captum'], strict=True)]))
            peer = sides['captum']
            assert isinstance(peer, TorchPeer)
            peer.close()
        title = f'{name}, {SIZES[name]} px, batch {BATCH}'
        results[title] = {'images/s': rates, 'steps': args.steps}
        lines.append(f'| {title} | {" | ".join(cells)} |')
        print(lines[-1], file=sys.stderr, flush=True)
        yield Table(f'integrated gradients, {args.steps} steps, float32: images/s, then over those of captum; median '
                    '(least to most)', lines, results)
