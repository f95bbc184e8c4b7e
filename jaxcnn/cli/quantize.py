"""Quantise the network of a run: int8 weights and activations, or weights of 16 bits.

    jaxcnn quantize --workdir=runs/digits --output=runs/digits_int8 --calibration=entropy --images=512
    jaxcnn quantize --workdir=runs/digits --output=runs/digits_bfloat16 --method=bfloat16
    jaxcnn predict --workdir=runs/digits_int8 image.png

The new folder holds the quantised weights, what predictions need of the run, and a page with the accuracy before and after,
the size, and the sensitivity of each layer.
"""

import argparse

from jaxcnn import cli
from jaxcnn.files import make_output


def run(args: argparse.Namespace) -> int:
    """Run the command with its parsed arguments, and return its exit code."""
    from jaxcnn.compression.quantization_report import summary, write_report
    from jaxcnn.compression.quantize_run import check_arguments, quantize_run
    loaded_run = cli.load_run(args.workdir, args.checkpoint)
    check_arguments(loaded_run, args.method, args.calibration, args.images)
    make_output(args.output)
    result = quantize_run(loaded_run, args.output, method=args.method, calibration=args.calibration, images=args.images,
                          float_layers=args.float_layers, split=args.split, data_dir=args.data_dir)
    page = write_report(result, args.output)
    cli.print_table(summary(result))
    print(f'\npage: {page}')
    return 0


def main() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', required=True, help='folder of the run')
    parser.add_argument('--output', required=True, metavar='FOLDER', help='new folder for the quantised network')
    parser.add_argument('--checkpoint', default='best', help='best, latest or a step (default: best)')
    parser.add_argument('--method', default='int8', help='int8; or bfloat16 or float16, for weights alone (default: int8)')
    parser.add_argument('--calibration', default='', help='how int8 finds the ranges of activations: minmax, percentile '
                        '(99.99 %%) or entropy (default: percentile)')
    parser.add_argument('--images', type=int, default=512, help='number of training images for the calibration, and of '
                        'validation images for the sensitivity of the layers (default: 512)')
    parser.add_argument('--float_layers', default='', metavar='REGEX', help='layers that stay in float32: a regular '
                        'expression that is searched in their names')
    parser.add_argument('--split', default='test', help='the split whose metrics are compared (default: test)')
    parser.add_argument('--data_dir', default='', help='another config.data.dir than in training')
    cli.main(parser, run)
