"""Show the cost of networks: parameters, multiply-adds and memory in training. For networks given by name, and for that of a
config or a run, also show the output shape and the receptive field of each layer. Networks are traced, not computed. A name
that contains '|' is the layers of a `sequential` network, such as 'conv(32)|relu|flatten|dense'."""

import argparse
import concurrent.futures
import dataclasses
import functools
import json
import multiprocessing
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxcnn import cli

if TYPE_CHECKING:
    from jaxcnn import config as cfg
    from jaxcnn.analysis.complexity import Cost
    from jaxcnn.models import Network

BATCH_SIZE = 32
os.environ['JAX_PLATFORMS'] = 'cpu'  # also for worker processes, so that they take no memory of an accelerator


def cost_of(name: str, args: argparse.Namespace) -> 'Cost | str':
    """Return the cost of a network, or an error message if the images are too small for it."""
    from jaxcnn import models
    from jaxcnn.analysis import complexity
    from jaxcnn.errors import UserError
    model, fields = name, dict[str, Any]()
    if '|' in name:
        model, fields = 'sequential', {'layers': name}
    (height, width, channels), classes = models.create(model, **fields).published_for()
    if args.image_size is not None:
        height = width = args.image_size
    network = models.create(model, classes if args.num_classes is None else args.num_classes, **fields)
    try:
        network.check_image((height, width, channels))
    except UserError as e:
        return f'{name}: {e}'
    try:
        return complexity.cost(network, (height, width, channels), args.batch_size,
                               dict.fromkeys([*complexity.OPTIMIZERS, args.optimizer]))
    except UserError as e:
        raise UserError(f'{name}: {e}') from e


def network_of(args: argparse.Namespace) -> 'tuple[cfg.Config, Network, tuple[int, int, int]]':
    """Return the config, the network and the image shape of `--workdir` or `--config`.

    Images and classes of a run are those of its data. The data of a config is not read: `config.data.image_size`,
    `--image_size` and `--num_classes` replace the size and the classes that the network was published for.
    """
    from jaxcnn import config as cfg
    from jaxcnn import experiment, models
    from jaxcnn.data import augment
    from jaxcnn.errors import UserError
    if args.workdir:
        if args.image_size or args.num_classes:
            raise UserError('--image_size and --num_classes are those of the run with --workdir')
        run = cli.load_run(args.workdir)
        return run.config, run.experiment.network, run.experiment.image_shape
    config = experiment.check(cfg.load(args.config))
    name, fields = config.model.name, config.model.args
    (height, width, channels), classes = models.create(name, **fields).published_for()
    crops, _ = augment.split_pipeline(config.data, train=False)
    size = (args.image_size, args.image_size) if args.image_size else crops.size if crops else config.data.fixed_size
    image_shape = (*(size or (height, width)), channels)
    network = models.create(name, args.num_classes or classes, **fields)
    network.check_image(image_shape)
    return config, network, image_shape


def run(args: argparse.Namespace) -> int:
    """Run the command with its parsed arguments, and return its exit code."""
    from jaxcnn import models
    from jaxcnn.analysis import complexity, figures
    from jaxcnn.errors import UserError, unknown
    for name in args.names:
        if name not in models.names() and '|' not in name:
            error = unknown('model', name, models.names())
            if os.path.exists(os.path.join(name, 'config.json')):
                error.hint = f'--workdir={name} shows the network of the run in that folder'
            raise error
    for flag in ('image_size', 'batch_size', 'num_classes'):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            raise UserError(f'--{flag}: expected at least 1, got {getattr(args, flag)}')
    if sum(map(bool, (args.names, args.config, args.workdir))) > 1:
        raise UserError('expected one of NAME, --config and --workdir')
    if args.config or args.workdir:
        config, network, image_shape = network_of(args)
        args.batch_size, args.names = args.batch_size or config.batch_size, [config.model.name]
        results: Mapping[str, Cost | str] = {config.model.name: complexity.cost(
            network, image_shape, args.batch_size, dict.fromkeys([*complexity.OPTIMIZERS, args.optimizer]))}
    else:
        args.batch_size = args.batch_size or BATCH_SIZE
        results = costs_of(list(dict.fromkeys(args.names)) or sorted(models.names(), key=natural_order), args)
    costs = {}
    for name, result in results.items():
        if not isinstance(result, str):
            costs[name] = result
        elif args.names:
            raise UserError(result)
        else:
            cli.log.warning('skipped: %s', result)
    if not costs:
        raise UserError(f'--image_size: {args.image_size} is too small for every network')
    if args.figure:
        try:
            figures.cost_scatter(costs, args.figure)
        except (OSError, ValueError) as e:
            raise UserError(f'--figure: {args.figure} cannot be written: {e}') from e
    with_layers = args.layers or bool(args.names)
    if args.json:
        print(json.dumps({name: {k: v for k, v in dataclasses.asdict(cost).items() if with_layers or k != 'layers'}
                          for name, cost in costs.items()}))
        return 0
    print_networks(costs, args)
    if with_layers:
        for name, cost in costs.items():
            print_layers(name, cost)
    return 0


def display_name(name: str) -> str:
    """Return the name of a network for a table, which is short for one that is given by its layers."""
    return name if len(name) <= 40 else f'{name[:37]}...'


def natural_order(name: str) -> list[int | str]:
    """Return a key that sorts numbers in names by value, so that `resnet18` comes before `resnet101`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r'(\d+)', name)]


def costs_of(names: list[str], args: argparse.Namespace) -> 'dict[str, Cost | str]':
    """Return `cost_of` each network by name, computed in several processes if there are more than four."""
    from jaxcnn.data import workers
    results = {names[0]: cost_of(names[0], args)}  # before processes start, so that wrong flags are reported at once
    others = names[1:]
    processes = min(os.cpu_count() or 1, (len(names) + 3) // 4)
    if processes == 1:
        results.update((name, cost_of(name, args)) for name in others)
        return results
    with concurrent.futures.ProcessPoolExecutor(processes, multiprocessing.get_context('spawn'),
                                                workers.initializer()) as pool:
        with workers.block_stop_signals():
            other_results = pool.map(functools.partial(cost_of, args=args), others)
        try:
            results.update(zip(others, other_results, strict=True))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results


def print_networks(costs: 'dict[str, Cost]', args: argparse.Namespace) -> None:
    """Print a table with a row for each network."""
    optimizers = next(iter(costs.values())).training_memory
    rows = [['', 'image', 'classes', 'parameters', 'multiply-adds', 'activations', *optimizers]]
    for name, cost in costs.items():
        rows.append([display_name(name), 'x'.join(map(str, cost.image_shape)), str(cost.num_classes), f'{cost.parameters:,}',
                     f'{cost.multiply_adds:,}', format_bytes(cost.activation_memory),
                     *map(format_bytes, cost.training_memory.values())])
    cli.print_table(rows)
    print(f'\nmultiply-adds are for one image; memory is for training with a batch of {args.batch_size}: activations alone, '
          'and in total by optimizer')
    for name, cost in costs.items():
        if cost.auxiliary_parameters and args.names:
            print(f'{name}: training has {cost.auxiliary_parameters:,} more parameters, in auxiliary classifiers')


def print_layers(name: str, cost: 'Cost') -> None:
    """Print a table with a row for each layer of a network."""
    rows = [[display_name(name), 'output', 'parameters', 'multiply-adds', 'field', 'jump', 'padding', 'start']]
    for layer in cost.layers:
        padding = '' if layer.padding is None else format_pair([format_pair(p) for p in layer.padding])
        rows.append([layer.name, 'x'.join(map(str, layer.shape)), f'{layer.parameters:,}', f'{layer.multiply_adds:,}',
                     format_pair(['all' if n is None else n for n in layer.field]), format_pair(layer.jump), padding,
                     format_pair(['' if n is None else f'{n:g}' for n in layer.start])])
    print()
    cli.print_table(rows)


def format_pair(values: Sequence[object]) -> str:
    """Return two values separated by a comma, or one if they are equal."""
    return ','.join(map(str, values if len(set(values)) > 1 else values[:1]))


def format_bytes(count: int) -> str:
    """Return a number of bytes in MiB or GiB."""
    return f'{count / 2 ** 30:,.2f} GiB' if count >= 2 ** 30 else f'{count / 2 ** 20:,.1f} MiB'


def main() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('names', nargs='*', metavar='NAME', help='networks (default: all)')
    parser.add_argument('--image_size', type=int,
                        help='height and width of images in pixels (default: those the network was published for)')
    parser.add_argument('--config', default='', help='show the network of a config instead of named ones')
    parser.add_argument('--workdir', default='', help='show the network of a run, for its images and classes')
    parser.add_argument('--batch_size', type=int, help=f'images in a training step (default: that of the config, or '
                        f'{BATCH_SIZE})')
    parser.add_argument('--num_classes', type=int, help='number of classes (default: that the network was published for)')
    parser.add_argument('--optimizer', default='sgd', help='optimizer whose memory is shown beside the usual ones, such '
                        'as adamw or sgd(momentum=0.9, nesterov=True)')
    parser.add_argument('--layers', action='store_true', help='show the layers even if no network is named')
    parser.add_argument('--json', action='store_true', help='print a JSON object with the costs by name; memory is in bytes')
    parser.add_argument('--figure', metavar='FILE.png', help='draw parameters and multiply-adds of the networks')
    cli.main(parser, run)
