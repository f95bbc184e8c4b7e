"""What networks cost: parameters, multiply-adds, memory in training; and for networks that are named, layer by layer, the
output's shape and the receptive field. Without names: all networks. Nothing is computed, the networks are only traced."""

import argparse
import concurrent.futures
import dataclasses
import functools
import json
import multiprocessing
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxcnn import cli

if TYPE_CHECKING:
    from jaxcnn.inspect.complexity import Cost

os.environ['JAX_PLATFORMS'] = 'cpu'  # of the processes, too, which take no memory of an accelerator so


def cost_of(name: str, args: argparse.Namespace) -> 'Cost | str':
    """The network's cost, or what is wrong with the image's size for it."""
    from jaxcnn import models
    from jaxcnn.errors import UserError
    from jaxcnn.inspect import complexity
    (height, width, channels), classes = models.create(name).published_for()
    if args.image_size is not None:
        height = width = args.image_size
    network = models.create(name, classes if args.num_classes is None else args.num_classes)
    if height < network.min_image_size():
        return f'{name} needs images of at least {network.min_image_size()} pixels, got {height}'
    try:
        return complexity.cost(network, (height, width, channels), args.batch_size,
                               dict.fromkeys([*complexity.OPTIMIZERS, args.optimizer]))
    except UserError as e:
        raise UserError(f'{name}: {e}') from e


def run(args: argparse.Namespace) -> int:
    from jaxcnn import models
    from jaxcnn.data import workers
    from jaxcnn.errors import UserError, unknown
    from jaxcnn.inspect import figures
    for name in args.names:
        if name not in models.names():
            raise unknown('model', name, models.names())
    for flag in ('image_size', 'batch_size', 'num_classes'):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            raise UserError(f'--{flag}: expected at least 1, got {getattr(args, flag)}')
    names = list(dict.fromkeys(args.names)) or sorted(models.names(), key=lambda name: [
        int(part) if part.isdecimal() else part for part in re.split(r'(\d+)', name)])
    first = cost_of(names[0], args)  # what is wrong with the flags is told before there are processes
    processes = min(os.cpu_count() or 1, (len(names) + 3) // 4)
    found: dict[str, Cost | str] = {names[0]: first}
    rest = names[1:]
    if processes > 1:
        with concurrent.futures.ProcessPoolExecutor(processes, multiprocessing.get_context('spawn'),
                                                    workers.initializer()) as pool:
            with workers.starting_workers():
                costs_of_rest = pool.map(functools.partial(cost_of, args=args), rest)
            try:
                found.update(zip(rest, costs_of_rest, strict=True))
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    else:
        found.update((name, cost_of(name, args)) for name in rest)
    costs = {}
    for name, cost in found.items():
        if not isinstance(cost, str):
            costs[name] = cost
        elif args.names:
            raise UserError(cost)
        else:
            cli.log.warning('left out: %s', cost)
    if not costs:
        raise UserError(f'--image_size: {args.image_size} is too small for every network')
    if args.figure:
        try:
            figures.costs(costs, args.figure)
        except (OSError, ValueError) as e:
            raise UserError(f'--figure: {args.figure} cannot be written: {e}') from e
    layers = args.layers or bool(args.names)
    if args.json:
        print(json.dumps({name: {k: v for k, v in dataclasses.asdict(cost).items() if layers or k != 'layers'}
                          for name, cost in costs.items()}))
        return 0
    show_all(costs, args)
    if layers:
        for name, cost in costs.items():
            show_layers(name, cost)
    return 0


def show_all(costs: 'dict[str, Cost]', args: argparse.Namespace) -> None:
    """A line for each network."""
    optimizers = next(iter(costs.values())).training_memory
    rows = [['', 'image', 'classes', 'parameters', 'multiply-adds', 'activations', *optimizers]]
    for name, cost in costs.items():
        rows.append([name, 'x'.join(map(str, cost.image_shape)), str(cost.num_classes), f'{cost.parameters:,}',
                     f'{cost.multiply_adds:,}', size(cost.activation_memory), *map(size, cost.training_memory.values())])
    table(rows, 2)
    print(f'\nmultiply-adds of one image; memory in training with a batch of {args.batch_size}: activations; all, by '
          'optimizer')
    for name, cost in costs.items():
        if cost.auxiliary_parameters and args.names:
            print(f'{name}: its auxiliary classifiers have {cost.auxiliary_parameters:,} more parameters, in training alone')


def show_layers(name: str, cost: 'Cost') -> None:
    """A table of a network's layers."""
    rows = [[name, 'output', 'parameters', 'multiply-adds', 'field', 'jump', 'padding', 'start']]
    for layer in cost.layers:
        padding = '' if layer.padding is None else pair([pair(p) for p in layer.padding])
        rows.append([layer.name, 'x'.join(map(str, layer.shape)), f'{layer.parameters:,}', f'{layer.multiply_adds:,}',
                     pair(['all' if n is None else n for n in layer.field]), pair(layer.jump), padding,
                     pair(['' if n is None else f'{n:g}' for n in layer.start])])
    print()
    table(rows, 2)


def pair(values: Sequence[object]) -> str:
    """Two values, or one where they are the same."""
    return ','.join(map(str, values if len(set(values)) > 1 else values[:1]))


def size(count: int) -> str:
    """Bytes, to read."""
    return f'{count / 2 ** 30:,.2f} GiB' if count >= 2 ** 30 else f'{count / 2 ** 20:,.1f} MiB'


def table(rows: list[list[str]], left: int) -> None:
    """Columns side by side; the first `left` begin at the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print('  '.join(cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(
            zip(row, widths, strict=True))).rstrip())


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('names', nargs='*', metavar='NAME', help='networks (default: all)')
    parser.add_argument('--image_size', type=int, help="pixels of the images' sides (default: as published)")
    parser.add_argument('--batch_size', type=int, default=32, help='images in a training step (default: 32)')
    parser.add_argument('--num_classes', type=int, help='classes (default: as published)')
    parser.add_argument('--optimizer', default='sgd', help='one more whose memory is told, as adam or sgd(momentum=0.9)')
    parser.add_argument('--layers', action='store_true', help='layer by layer without names, too')
    parser.add_argument('--json', action='store_true', help='one JSON object, by name; memory in bytes')
    parser.add_argument('--figure', metavar='FILE.png', help='draw parameters and multiply-adds')
    cli.main(parser, run)
