"""The benchmark `faster_rcnn`: Faster R-CNN with a ResNet-18 and a feature pyramid, compared with torchvision's."""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator

import numpy as np

from jaxcnn.benchmarks.measure import Table, TorchPeer, images_per_second, median_and_range, on_cpu, require_packages
from jaxcnn.errors import unknown

STEPS = {'train': 'training step', 'eval': 'inference'}
BOUND = 1.2  # smallest ratio to torchvision's speed that is required
HEIGHT, WIDTH, CLASSES, OBJECTS = 480, 640, 3, 12


def examples(batch: int) -> dict[str, np.ndarray]:
    """Return images of noise with 12 objects each: `image`, `boxes` and `classes`."""
    rng = np.random.default_rng(0)
    sides = np.exp(rng.uniform(3, 5, (batch, OBJECTS, 2)))
    begin = rng.uniform(0, 1, (batch, OBJECTS, 2)) * (np.array([WIDTH, HEIGHT]) - sides)
    return {'image': rng.integers(0, 256, (batch, HEIGHT, WIDTH, 3), np.uint8),
            'boxes': np.concatenate([begin, begin + sides], -1).astype(np.float32),
            'classes': rng.integers(0, CLASSES, (batch, OBJECTS), np.int32)}


class JaxcnnDetector:
    """The training step or the inference of Faster R-CNN in this process, with torchvision's settings.

    Args:
      name: `train` or `eval`.
      arrays: see `examples`.
    """

    def __init__(self, name: str, arrays: dict[str, np.ndarray]):
        import jax

        from jaxcnn import models, optim
        from jaxcnn.config import Choice, OptimConfig, parse
        from jaxcnn.data.normalize import Normalization
        from jaxcnn.preprocessing import Preprocessor
        from jaxcnn.tasks import create
        from jaxcnn.timeline import Timeline
        from jaxcnn.training.state import init_state, variables
        from jaxcnn.training.step import TrainStep
        batch = len(arrays['image'])
        network = models.create('faster_rcnn', num_classes=CLASSES, backbone='resnet18', bn_frozen=True, roi_aligned=False)
        settings = parse({'task': 'detection', 'loss': 'detection', 'batch_size': batch, 'duration': {'steps': 10 ** 6}})
        descent = OptimConfig(optimizer=Choice('sgd', {'momentum': 0.9}), learning_rate=1e-4, l2=1e-4)
        optimizer = optim.make_optimizer(descent, Timeline(settings, batch))
        task = create(settings, [str(i) for i in range(CLASSES)], [1] * CLASSES, batch)
        preprocessor = Preprocessor(None, Normalization.from_mean_std((0.5,) * 3, (0.25,) * 3))
        state = jax.jit(lambda: init_state(network, optimizer, (HEIGHT, WIDTH, 3), np.uint32(0), descent))()
        targets = {**arrays, 'valid': np.ones((batch, OBJECTS), bool), 'difficult': np.zeros((batch, OBJECTS), bool)}
        placed = jax.device_put(targets)
        self.batch = batch
        if name == 'train':
            train = jax.jit(TrainStep(network, optimizer, preprocessor, task), donate_argnums=0)

            def step() -> object:
                nonlocal state
                state, values = train(state, placed, jax.random.key(0))
                return values
        else:
            weights = variables(state)[False]
            detect = jax.jit(lambda weights, images: network.apply(weights, preprocessor(images), train=False))

            def step() -> object:
                return detect(weights, placed['image'])
        self.step = step
        for _ in range(2):
            jax.block_until_ready(step())

    def __call__(self, seconds: float) -> float:
        """Measure for a number of seconds, and return the images/s."""
        return images_per_second(self.step, self.batch, seconds)


def compare(args: argparse.Namespace) -> Iterator[Table]:
    """Measure the training step and the inference, and yield the table after each.

    Args:
      args: arguments of the command line.

    Raises:
      UserError: `--models` has a name other than `train` and `eval`, or PyTorch's environment lacks torchvision.
    """
    selected = args.models.split(',') if args.models else list(STEPS)
    if wrong := [name for name in selected if name not in STEPS]:
        raise unknown('step of the detector', wrong[0], STEPS)
    compares = 'torch' in args.peers.split(',')
    if compares:
        require_packages(args.torch_python, 'torch==2.14.1 and torchvision==0.29.1', 'torch', 'torchvision')
    lines = ['| step | jaxcnn | over torchvision | required |', '|---|---|---|---|']
    results: dict[str, object] = {}
    arrays = examples(args.batch)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(os.path.join(folder, 'examples.npz'), allow_pickle=False, **arrays)
        for name in selected:
            sides: dict[str, JaxcnnDetector | TorchPeer] = {'jaxcnn': JaxcnnDetector(name, arrays)}
            if compares:
                sides['torchvision'] = TorchPeer(
                    args.torch_python, 'faster_rcnn', name, WIDTH, args.batch, f'--folder={folder}',
                    f'--device={"cpu" if on_cpu() else "cuda"}')
            rates: dict[str, list[float]] = {side: [] for side in sides}
            for _ in range(args.rounds):
                for side, measure in sides.items():
                    rates[side].append(measure(args.seconds))
            for measure in sides.values():
                if isinstance(measure, TorchPeer):
                    measure.close()
            ratios = [a / b for a, b in zip(rates['jaxcnn'], rates.get('torchvision', []), strict=False)]
            results[STEPS[name]] = {'images/s': rates, 'required': BOUND}
            cells = median_and_range(rates['jaxcnn']), median_and_range(ratios) if ratios else '', str(BOUND)
            lines.append(f'| {STEPS[name]} | {" | ".join(cells)} |')
            print(lines[-1], file=sys.stderr, flush=True)
            yield Table(f'Faster R-CNN, ResNet-18 with a feature pyramid, {HEIGHT} x {WIDTH} px, batch {args.batch}, '
                        'float32: images/s, then over those of torchvision; median (least to most)', lines, results)
