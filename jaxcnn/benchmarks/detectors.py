"""The benchmark `detectors`: the time per image of R-CNN, SPP-Net, Fast R-CNN and Faster R-CNN at test."""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxcnn.benchmarks.measure import Table, images_per_second, median_and_range
from jaxcnn.errors import unknown

HEIGHT, WIDTH, CLASSES, PROPOSALS = 480, 640, 20, 2000
SCALES = 480, 576, 688, 864, 1200
# name -> title, name of the network, and its fields besides the backbone
SYSTEMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    'rcnn': ('R-CNN', 'rcnn', {}),
    'spp_net': ('SPP-Net, one scale', 'spp_net', {}),
    'spp_net_scales': ('SPP-Net, five scales', 'spp_net', {'scales': SCALES}),
    'fast_rcnn': ('Fast R-CNN', 'fast_rcnn', {}),
    'faster_rcnn': ('Faster R-CNN, its own 300 proposals', 'faster_rcnn', {
        'fpn': False, 'roi_pool': 'max', 'anchor_convention': 'paper', 'pre_nms': (12000, 6000), 'post_nms': (2000, 300),
        'min_side': 16.0})}


def inputs(count: int = PROPOSALS, height: int = HEIGHT, width: int = WIDTH) -> dict[str, np.ndarray]:
    """Return an image of noise, and proposals whose sides are from 24 pixels to those of the image."""
    rng = np.random.default_rng(0)
    sides = np.exp(rng.uniform(np.log(24), np.log([width, height]), (count, 2)))
    begin = rng.uniform(0, 1, (count, 2)) * (np.array([width, height]) - sides)
    return {'image': rng.normal(size=(1, height, width, 3)).astype(np.float32),
            'proposals': np.concatenate([begin, begin + sides], -1).astype(np.float32)[None],
            'proposal_valid': np.ones((1, count), bool)}


def detector(name: str, backbone: str, arrays: dict[str, np.ndarray]) -> Callable[[], object]:
    """Return a function that dispatches the detection of objects in one image, with random weights.

    Args:
      name: one of `SYSTEMS`.
      backbone: the network's field `backbone`.
      arrays: see `inputs`.
    """
    import jax

    from jaxcnn import models
    from jaxcnn.training.state import run_once
    _, network_name, fields = SYSTEMS[name]
    if network_name == 'rcnn':
        fields = {'region_size': 227 if backbone.startswith('alexnet') else 224}  # as in the papers
    network = models.create(network_name, num_classes=CLASSES, backbone=backbone, **fields)
    placed = {key: jax.device_put(value) for key, value in arrays.items()}
    variables = jax.jit(network.init, compiler_options=run_once())(jax.random.key(0), placed['image'])

    proposals = {key: placed[key] for key in ('proposals', 'proposal_valid')}
    # compiled without being run, which may take minutes
    run = jax.jit(lambda variables, image, proposals: network.apply(variables, image, proposals=proposals)).lower(
        variables, placed['image'], proposals).compile()
    return lambda: run(variables, placed['image'], proposals)


def compare(args: argparse.Namespace) -> Iterator[Table]:
    """Measure the systems alternately, and yield the table after each round.

    Args:
      args: arguments of the command line.
    """
    selected = args.models.split(',') if args.models else list(SYSTEMS)
    if wrong := [name for name in selected if name not in SYSTEMS]:
        raise unknown('detector', wrong[0], SYSTEMS)
    arrays, steps = inputs(), {}
    for name in selected:
        print(f'compiling {SYSTEMS[name][0]}', file=sys.stderr, flush=True)
        steps[name] = detector(name, args.backbone, arrays)
    times: dict[str, list[float]] = {name: [] for name in selected}
    for _ in range(args.rounds):
        for name, step in steps.items():
            times[name].append(1 / images_per_second(step, 1, args.seconds))
            print(f'{SYSTEMS[name][0]}: {times[name][-1]:.3g} s', file=sys.stderr, flush=True)
        yield _table(times, args.backbone)


def _table(times: dict[str, list[float]], backbone: str) -> Table:
    """Return the table of the times of each system in seconds, one for each round."""
    first = statistics.median(next(iter(times.values())))
    title = SYSTEMS[next(iter(times))][0]
    lines = [f'| system | seconds an image | {title} over it |', '|---|---|---|', *(
        f'| {SYSTEMS[name][0]} | {median_and_range(values)} | {first / statistics.median(values):.3g} |'
        for name, values in times.items())]
    return Table(f'detection in an image of {HEIGHT}x{WIDTH} with {PROPOSALS:,} proposals, {backbone}, {CLASSES} '
                 'classes, without the time of the proposals: median (least to most)', lines, {'seconds': times})
