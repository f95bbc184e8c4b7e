"""Write a run into a folder that other programs use without jaxcnn: the program with its preprocessing, the names of the
classes, an example script and a model card. It is checked at once, in an empty process, on images of the run's data."""

import argparse

from jaxcnn import cli
from jaxcnn.export import FORMATS


def run(args: argparse.Namespace) -> int:
    """Run the command with its parsed arguments, and return its exit code."""
    from jaxcnn.export.folder import check_request, export_run
    check_request(args.format, args.output, args.dtype)
    for line in export_run(cli.load_run(args.workdir, args.checkpoint), args.format, args.output, args.dtype, args.data_dir):
        print(line)
    return 0


def main() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--workdir', required=True, help='folder of the run')
    parser.add_argument('--format', required=True, help=f'{", ".join(FORMATS)}')
    parser.add_argument('--output', required=True, metavar='FOLDER', help='new folder that is written')
    parser.add_argument('--checkpoint', default='best', help='best, latest or a step (default: best)')
    parser.add_argument('--dtype', default='float32', help='type of the stored weights: float32, float16 or bfloat16; the '
                        'program computes in float32 (default: float32)')
    parser.add_argument('--data_dir', default='', help='another config.data.dir than in training')
    cli.main(parser, run)
