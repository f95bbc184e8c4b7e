"""Prune a finished run without training, and report what is gained and lost.

    jaxcnn prune --workdir=runs/digits --output=runs/digits_pruned --sparsity 0.5 0.8 0.9
    jaxcnn prune --workdir=runs/digits --output=runs/digits_half --structure=channels --target_multiply_adds=0.5

The output holds a report, and the pruned run as a workdir that `evaluate`, `predict` and `config.init.run` take: the output
folder itself or, with several sparsities, a folder in it for each. To train while pruning weights, see `config.pruning`; to
start a training by removing channels, `config.init.channels`.
"""

import argparse
from typing import Any

from jaxcnn import cli
from jaxcnn.errors import UserError, unknown

# methods by structure, the default first, and the flags that one structure has, with their defaults
METHODS = {'weights': ('magnitude', 'random'), 'channels': ('taylor', 'bn_scale', 'l1')}
QUANTITIES = {'multiply_adds': 'multiply-adds', 'parameters': 'parameters', 'channels': 'features of all layers'}
FLAGS: dict[str, dict[str, Any]] = {
    'weights': {'sparsity': [], 'scope': 'global', 'match': r'kernel$', 'exclude': 'first_and_last'},
    'channels': {**{f'target_{name}': None for name in QUANTITIES}, 'min_remaining': 0.1, 'multiple_of': 1, 'images': 1024,
                 'bn_images': 1024, 'benchmark': 0}}


def run(args: argparse.Namespace) -> int:
    """Run the command with its parsed arguments, and return its exit code."""
    for structure, flags in FLAGS.items():
        for flag, default in flags.items():
            if getattr(args, flag, None) is None:
                setattr(args, flag, default)
            elif structure != args.structure:
                raise UserError(f'--{flag}: is for --structure={structure} only')
    methods = METHODS[args.structure]
    args.method = args.method or methods[0]
    if args.method not in methods:
        raise unknown(f'method for --structure={args.structure}', args.method, methods, '--method')
    return STRUCTURES[args.structure](args)


def prune_weights(args: argparse.Namespace) -> int:
    """Set single weights to zero."""
    from jaxcnn import config as cfg
    from jaxcnn.cli.evaluate import choose_split, load_data
    from jaxcnn.compression.pruned_run import check_config, prune_run
    from jaxcnn.compression.pruning_report import summary_rows, write_report
    config = cfg.PruningConfig(method=args.method, scope=args.scope, match=args.match, exclude=args.exclude)
    if not args.sparsity:
        raise UserError('must be set', field='--sparsity', hint='for example --sparsity 0.5 0.8 0.9')
    check_config(config, args.sparsity)
    loaded_run = cli.load_run(args.workdir, args.checkpoint)
    dataset = load_data(loaded_run, args.data_dir, '')
    split = choose_split(args.split, dataset)
    try:
        result = prune_run(loaded_run, args.output, args.sparsity, config, args.checkpoint, dataset, split)
    except UserError as e:
        e.field = e.field and e.field.replace('config.pruning.', '--')
        raise
    cli.print_table(summary_rows(result))
    print(f'\nreport: {write_report(result, args.output)}')
    for network in result.after:
        print(f'workdir: {network.folder}')
    return 0


def prune_channels(args: argparse.Namespace) -> int:
    """Remove channels, so that the network becomes narrower."""
    from jaxcnn import config as cfg
    from jaxcnn.cli.evaluate import choose_split, load_data
    from jaxcnn.compression.narrowed_run import remove_channels, summary_rows, write_report
    targets = {name: value for name in QUANTITIES if (value := getattr(args, f'target_{name}')) is not None}
    if len(targets) > 1:
        raise UserError(f'--target_{list(targets)[1]} cannot be combined with --target_{next(iter(targets))}')
    (quantity, target), = targets.items() or [('multiply_adds', 0.5)]
    if not 0 < target <= 1:
        raise UserError(f'expected above 0 and at most 1, got {target:g}', field=f'--target_{quantity}')
    for flag in ('benchmark', 'bn_images'):
        if getattr(args, flag) < 0:
            raise UserError(f'expected a number of images, got {getattr(args, flag)}', field=f'--{flag}')
    if not 0 <= args.min_remaining <= 1:
        raise UserError(f'expected 0 to 1, got {args.min_remaining:g}', field='--min_remaining')
    for flag in ('multiple_of', 'images'):
        if getattr(args, flag) < 1:
            raise UserError(f'expected at least 1, got {getattr(args, flag)}', field=f'--{flag}')
    config = cfg.ChannelsConfig(args.method, quantity, target, args.min_remaining, args.multiple_of, args.images)
    loaded_run = cli.load_run(args.workdir, args.checkpoint)
    dataset = load_data(loaded_run, args.data_dir, '')
    result = remove_channels(loaded_run, args.output, config, args.checkpoint, dataset, choose_split(args.split, dataset),
                             args.data_dir, args.benchmark, args.bn_images)
    cli.print_table(summary_rows(result))
    print(f'\nreport: {write_report(result)}\nworkdir: {args.output}\ntrain it on: jaxcnn train '
          f'--config={args.output}/config.json --config.init.run={args.output} --workdir=NEW')
    return 0


STRUCTURES = {'weights': prune_weights, 'channels': prune_channels}


def main() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', required=True, help='folder of the run')
    parser.add_argument('--output', required=True, metavar='DIR', help='new folder for the report and the pruned run')
    parser.add_argument('--structure', default='weights', choices=STRUCTURES, help='what is removed (default: weights)')
    parser.add_argument('--method', default='', help='weights: magnitude (default) or random; channels: taylor (default), '
                        'bn_scale or l1, see config.init.channels')
    weights = parser.add_argument_group('weights')
    weights.add_argument('--sparsity', nargs='+', type=float, metavar='FRACTION',
                         help='fraction of zeros in the pruned layers; several are compared')
    weights.add_argument('--scope', choices=('global', 'layer'),
                         help='compare all layers with each other (default), or prune each to the same sparsity')
    weights.add_argument('--match', help="regular expression searched in 'path/of/parameter' (default: kernels)")
    weights.add_argument('--exclude', choices=('none', 'first', 'last', 'first_and_last'),
                         help='layers that are not pruned (default: first_and_last)')
    channels = parser.add_argument_group('channels')
    for name, description in QUANTITIES.items():
        channels.add_argument(f'--target_{name}', type=float, metavar='FRACTION', help=f'fraction of the {description} that '
                              f'remains at most{" (default: 0.5)" if name == "multiply_adds" else ""}')
    channels.add_argument('--min_remaining', type=float, metavar='FRACTION',
                          help='fraction of its features that each layer keeps at least (default: 0.1)')
    channels.add_argument('--multiple_of', type=int, metavar='N', help='leave each layer a multiple of N features '
                          '(default: 1)')
    channels.add_argument('--images', type=int, metavar='N', help='training images for the method taylor (default: 1024)')
    channels.add_argument('--bn_images', type=int, metavar='N', help='training images from which the statistics of '
                          'BatchNorm are estimated after the removal; 0 keeps those of the run (default: 1024)')
    channels.add_argument('--benchmark', type=int, metavar='N', help='also measure predictions of batches of N images '
                          'before and after')
    parser.add_argument('--checkpoint', default='best', help='best, latest or a step (default: best)')
    parser.add_argument('--split', default='', help='split of the evaluation: train, val or test (default: test)')
    parser.add_argument('--data_dir', default='', help='another config.data.dir than in training')
    cli.main(parser, run)
