"""Measure how robust a trained classifier is: against attacks, on corrupted images, and on images of other kinds.

    jaxcnn robustness --workdir=runs/cifar10
    jaxcnn robustness --workdir=runs/cifar10 --attacks='fgsm, pgd(iterations=20, restarts=5), auto' --eps 2/255 8/255
    jaxcnn robustness --workdir=runs/cifar10 --corruptions noise fog --severities 1 3 5
    jaxcnn robustness --workdir=runs/cifar10 --ood_name=mnist --ood_dir=DIR

The page robustness.html, its figures, and all values as JSON and CSV are written into the folder --output. Without any of
--attacks, --checks, --corruptions and --ood_name, everything but the last is measured.
"""

import argparse
import os
from typing import Any

from jaxcnn import cli
from jaxcnn.errors import UserError

DEFAULT_ATTACKS = 'fgsm, pgd(iterations=20), auto'
DEFAULT_EPS = {'linf': ['2/255', '4/255', '8/255'], 'l2': ['0.25', '0.5', '1']}


def describe_attacks() -> str:
    """Return a table of the attacks with their options."""
    from jaxcnn.robustness import attacks
    return attacks.describe_attacks()


def describe_corruptions() -> str:
    """Return the kinds of corruption by category, a line for each."""
    from jaxcnn.data.augment.corruptions import CORRUPTIONS
    categories = dict.fromkeys(entry.category for entry in CORRUPTIONS.values())
    return '\n'.join(f'  {category}: {", ".join(kind for kind, entry in CORRUPTIONS.items() if entry.category == category)}'
                     for category in categories)


def make_options(args: argparse.Namespace, splits: Any) -> Any:
    """Return the `Options` that the flags describe.

    Args:
      args: the parsed flags.
      splits: names of the splits of the run's data.
    """
    from jaxcnn.data.augment.corruptions import SEVERITIES
    from jaxcnn.errors import name_field, unknown
    from jaxcnn.robustness.attacks import NORMS
    from jaxcnn.robustness.measure import Options
    from jaxcnn.robustness.threat import parse_eps
    if args.norm not in NORMS:
        raise unknown('norm', args.norm, NORMS, field='--norm')
    minima = {'--images': (args.images, 1), '--batch_size': (args.batch_size, 1), '--seed': (args.seed, 0)}
    for flag, (value, minimum) in minima.items():
        if value < minimum:
            raise UserError(f'expected at least {minimum}, got {value}', field=flag)
    severities = args.severities or SEVERITIES
    for severity in severities:
        if not 1 <= severity <= 5:
            raise UserError(f'expected 1 to 5, got {severity}', field='--severities')
    everything = not (args.attacks or args.checks or args.corruptions or args.ood_name)
    attacks = args.attacks or (DEFAULT_ATTACKS if everything else '')
    corruptions = args.corruptions or (['all'] if everything else [])
    needed = {'--target': (args.target, attacks, '--attacks'),
              '--reference': (args.reference, corruptions, '--corruptions'),
              '--severities': (args.severities, corruptions, '--corruptions'),
              '--constants': (args.constants, corruptions, '--corruptions'),
              '--ood_dir': (args.ood_dir, args.ood_name, '--ood_name'),
              '--ood_split': (args.ood_split, args.ood_name, '--ood_name')}
    for flag, (value, required, name) in needed.items():
        if value and not required:
            raise UserError(f'needs {name}', field=flag)
    if args.eps and not (attacks or args.checks or everything):
        raise UserError('needs --attacks or --checks', field='--eps')
    with name_field('--eps'):
        eps = sorted({parse_eps(text, args.norm) for text in args.eps or DEFAULT_EPS[args.norm]})
    return Options(
        attacks=attacks, eps=eps, norm=args.norm, target=args.target, checks=args.checks or everything,
        corruptions=corruptions, severities=sorted({*severities}), constants=args.constants or 'auto',
        reference=args.reference,
        ood_name=args.ood_name, ood_dir=args.ood_dir, ood_split=args.ood_split,
        split=args.split or ('test' if 'test' in splits else 'val'), images=args.images, batch_size=args.batch_size,
        seed=args.seed)


def run(args: argparse.Namespace) -> int:
    """Run the command with its parsed arguments, and return its exit code."""
    if args.list:
        print(f'The attacks, with their options:\n{describe_attacks()}\n\nThe corruptions:\n{describe_corruptions()}')
        return 0
    if not args.workdir:
        raise UserError('expected the workdir of a run', field='--workdir')
    from jaxcnn.errors import from_os_error
    from jaxcnn.evaluation.predictions import check_is_classifier
    from jaxcnn.files import check_output, make_output
    from jaxcnn.robustness import report
    from jaxcnn.robustness.measure import Measuring
    loaded = cli.load_run(args.workdir, args.checkpoint)
    check_is_classifier(loaded)
    options = make_options(args, loaded.info['sizes'])
    folder = args.output or os.path.join(args.workdir, 'robustness')
    check_output(folder)
    measuring = Measuring(loaded, loaded.load_dataset(args.data_dir), options)
    make_output(folder)
    try:
        result = measuring.run()
        path = report.write_report(result, folder, loaded.info['class_names'])
    except OSError as e:
        raise from_os_error(e, folder) from e
    tables = [*([report.attack_table(result.attacks)] if result.attacks else []),
              *([[['check', 'result', 'numbers'], *([c.name, c.verdict, c.numbers] for c in result.masking.checks)]]
                if result.masking else []),
              *([report.corruption_table(result.corruptions)] if result.corruptions else []),
              *([report.outlier_table(result.outliers)] if result.outliers else [])]
    for table in tables:
        cli.print_table(table)
        print()
    print(f'page: {path}')
    return 0


def main() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', default='', help='folder of the run')
    parser.add_argument('--checkpoint', default='best', help='best, latest or a step (default: best)')
    parser.add_argument('--output', default='', metavar='DIR', help='new folder of the report (default: robustness, in the '
                        'workdir)')
    parser.add_argument('--images', type=int, default=1000, help='number of images, drawn by the seed (default: 1000)')
    parser.add_argument('--split', default='', help='train, val or test (default: test, or val if there is no labelled test '
                        'split)')
    parser.add_argument('--seed', type=int, default=0, help='seed of all random numbers (default: 0)')
    parser.add_argument('--batch_size', type=int, default=100,
                        help='images in a batch, which bounds the memory (default: 100)')
    parser.add_argument('--data_dir', default='', help='another config.data.dir than in training')
    group = parser.add_argument_group('attacks')
    group.add_argument('--attacks', default='', metavar='ATTACKS',
                       help="such as 'fgsm, pgd(iterations=20, restarts=5), auto'")
    group.add_argument('--list', action='store_true', help='list the attacks with their options, and the corruptions')
    group.add_argument('--eps', nargs='+', default=[], metavar='EPS',
                       help='largest changes of an image with values in [0, 1] '
                       '(default: 2/255 4/255 8/255, or 0.25 0.5 1 for l2)')
    group.add_argument('--norm', default='linf', help='norm of the changes, linf or l2 (default: linf)')
    group.add_argument('--target', default='', metavar='CLASS', help='a class at which the attacks aim, or random or '
                       'least_likely (default: any wrong class)')
    group.add_argument('--checks', action='store_true', help='check for masked gradients, with the largest of --eps')
    group = parser.add_argument_group('corruptions')
    group.add_argument('--corruptions', nargs='+', default=[], metavar='KIND',
                       help='kinds, or noise, blur, weather, digital, or all')
    group.add_argument('--severities', nargs='+', type=int, default=[], help='1 to 5 (default: all)')
    group.add_argument('--constants', default='', choices=('auto', 'cifar', 'imagenet'),
                       help='those of CIFAR-10-C or of ImageNet-C (default: auto, by the size of the images)')
    group.add_argument('--reference', default='', metavar='DIR',
                       help="another run's report, by whose errors those of this run are divided, or alexnet, "
                       'for ImageNet')
    group = parser.add_argument_group('images of other kinds')
    group.add_argument('--ood_name', default='', metavar='NAME', help='a data set or a layout of files, with any classes')
    group.add_argument('--ood_dir', default='', metavar='DIR', help='its folder')
    group.add_argument('--ood_split', default='', metavar='SPLIT', help='its split (default: test)')
    cli.main(parser, run)
