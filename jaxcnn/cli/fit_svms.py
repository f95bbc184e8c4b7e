"""Fit the second stage of R-CNN and SPP-Net on a trained run: linear SVMs and a regression of boxes.

    jaxcnn fit_svms --workdir=RUN
    jaxcnn fit_svms --workdir=RUN --features=pool5,fc7 --before

For each class, a linear SVM is trained on features of the true boxes, and of proposals whose IoU with boxes of the class is
below 0.3, with hard-negative mining; and a ridge regression of boxes on `pool5`. The command prints the mAP of the SVMs, of
both, and of the network's own softmax, and writes svms.md and svms.npz into the workdir. `jaxcnn predict` and
`jaxcnn evaluate` use the latter with `--svms=fc7`.

The features are what the dense layers of the network get: `pool5`, and `fc6` and `fc7` where it has these layers.
"""

import argparse

from jaxcnn import cli


def run(args: argparse.Namespace) -> int:
    """Run the command with its parsed arguments, and return its exit code."""
    from jaxcnn.region_svms.second_stage import fit_run
    features = [name for name in args.features.split(',') if name]
    rows = fit_run(cli.load_run(args.workdir, args.checkpoint), features, args.split, args.before, args.data_dir)
    cli.print_table(rows)
    return 0


def main() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', required=True, help='folder of a run of rcnn or spp_net')
    parser.add_argument('--features', default='', help='comma-separated features of the SVMs: pool5, fc6, fc7 (default: all '
                        'that the network has)')
    parser.add_argument('--checkpoint', default='best', help='best, latest or a step (default: best)')
    parser.add_argument('--split', default='test', help='split for the evaluation: val or test (default: test)')
    parser.add_argument('--before', action='store_true', help='also use the features of the weights with which the run '
                        'started')
    parser.add_argument('--data_dir', default='', help='another config.data.dir than in training')
    cli.main(parser, run)
