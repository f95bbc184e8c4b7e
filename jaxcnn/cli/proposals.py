"""Compare object proposals by the fraction of objects that they cover: a table, curves over IoU and number, and a sheet.

    jaxcnn proposals --config=CONFIG
    jaxcnn proposals --config=CONFIG 'selective_search(mode="fast")' 'sliding_windows(stride=0.25)' --images=20
    jaxcnn proposals --workdir=RUN 'selective_search(mode="fast")'
    jaxcnn proposals --workdir=RUN --save=proposals.npz

The methods are those of config.data.proposals. By default they are selective search in its three modes and by each of its
similarities, and sliding windows.
"""

import argparse
import os

from jaxcnn import cli, config
from jaxcnn.errors import UserError


def run(args: argparse.Namespace) -> int:
    """Run the command with its parsed arguments, and return its exit code."""
    if not args.workdir:
        os.environ['JAX_PLATFORMS'] = 'cpu'  # this process must not reserve GPU memory
    from jaxcnn.analysis.proposal_report import METHODS, compare_methods, save_proposals
    if args.images < 0:
        raise UserError(f'expected 0 or more, got {args.images}', field='--images')
    if bool(args.config) == bool(args.workdir):
        raise UserError('give one of them', field='--config, --workdir')
    if args.save and not args.save.endswith('.npz'):
        raise UserError(f'expected a file that ends in .npz, got {args.save!r}', field='--save')
    runs = [cli.load_run(args.workdir, args.checkpoint)] if args.workdir else []
    settings = runs[0].config if runs else config.load(args.config, args.overrides)
    if args.save:
        if not runs:
            raise UserError('saves the proposals of a run; name it by --workdir', field='--save')
        print(f'{args.save}: proposals for {save_proposals(runs[0], args.save)} images')
        return 0
    folder = args.out or os.path.join('proposals', settings.name or os.path.basename(os.path.abspath(args.workdir)))
    methods = args.methods or (() if runs else METHODS)
    try:
        rows = compare_methods(settings.data, methods, args.split, args.images, folder, runs)
    except OSError as e:
        raise UserError(f'{folder!r} cannot be written: {e.strerror}', field='--out') from e
    cli.print_table(rows)
    print(f'\nreport: {os.path.join(folder, "proposals.md")}')
    return 0


def main() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog='Any field of the config can be set: --config.data.image_size=320')
    parser.add_argument('--config', default='', help='a config file, the name of a config that comes with jaxcnn, or the '
                        'config.json of a run; its data set must have boxes')
    parser.add_argument('--workdir', default='', help='a run of a detector that makes proposals itself, such as '
                        'faster_rcnn, instead of --config: its proposals are compared, too')
    parser.add_argument('--checkpoint', default='best', help='of --workdir: best, latest or a step (default: best)')
    parser.add_argument('--save', default='', metavar='FILE.npz', help='write the proposals of --workdir for all images of '
                        'its data set to this file, for config.data.proposals=\'saved("FILE.npz")\'')
    parser.add_argument('methods', nargs='*', metavar='METHOD', help='a method of proposals with its arguments')
    parser.add_argument('--split', default='val', help='split of the data set: train, val or test (default: val)')
    parser.add_argument('--images', type=int, default=100, metavar='N',
                        help='number of images, evenly spaced over the split; 0: all (default: 100)')
    parser.add_argument('--out', default='', metavar='DIR', help='folder of the report (default: proposals/NAME, with the '
                        'name of the config)')
    cli.main(parser, run, needs_jax=False)
