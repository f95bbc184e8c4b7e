"""Prune a finished run without training, and report what is gained and lost.

    jaxcnn prune --workdir=runs/digits --output=runs/digits_pruned --sparsity 0.5 0.8 0.9

The output holds a report, and the pruned run as a workdir that `evaluate`, `predict` and `config.init.run` take: the output
folder itself or, with several sparsities, a folder in it for each. To train while pruning, see `config.pruning`.
"""

import argparse

from jaxcnn import cli
from jaxcnn.errors import UserError


def run(args: argparse.Namespace) -> int:
    """Run the command with its parsed arguments, and return its exit code."""
    return STRUCTURES[args.structure](args)


def prune_weights(args: argparse.Namespace) -> int:
    """Set single weights to zero."""
    from jaxcnn import config as cfg
    from jaxcnn.cli.evaluate import choose_split, load_data
    from jaxcnn.compression.pruned_run import check_config, prune_run
    from jaxcnn.compression.pruning_report import summary_rows, write_report
    from jaxcnn.run import load_run
    config = cfg.PruningConfig(method=args.method, scope=args.scope, match=args.match, exclude=args.exclude)
    if not args.sparsity:
        raise UserError('must be set', field='--sparsity', hint='for example --sparsity 0.5 0.8 0.9')
    check_config(config, args.sparsity)
    loaded_run = load_run(args.workdir)
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


STRUCTURES = {'weights': prune_weights}


def main() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', required=True, help='folder of the run')
    parser.add_argument('--output', required=True, metavar='DIR', help='new folder for the report and the pruned run')
    parser.add_argument('--structure', default='weights', choices=STRUCTURES, help='what is removed (default: weights)')
    parser.add_argument('--sparsity', default=[], nargs='+', type=float, metavar='FRACTION',
                        help='weights: fraction of zeros in the pruned layers; several are compared')
    parser.add_argument('--method', default='magnitude', choices=('magnitude', 'random'),
                        help='weights: which ones are pruned (default: magnitude, the smallest)')
    parser.add_argument('--scope', default='global', choices=('global', 'layer'),
                        help='weights: compare all layers with each other, or prune each to the same sparsity')
    parser.add_argument('--match', default=r'kernel$', help="weights: regular expression searched in 'path/of/parameter' "
                        '(default: kernels)')
    parser.add_argument('--exclude', default='first_and_last', choices=('none', 'first', 'last', 'first_and_last'),
                        help='weights: layers that are not pruned (default: first_and_last)')
    parser.add_argument('--checkpoint', default='best', help='best, latest or a step (default: best)')
    parser.add_argument('--split', default='', help='split of the evaluation: train, val or test (default: test)')
    parser.add_argument('--data_dir', default='', help='another config.data.dir than in training')
    cli.main(parser, run)
