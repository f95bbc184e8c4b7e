"""Trains the network of a config, or goes on with the run that the workdir holds."""

import argparse
import os

from jaxcnn import cli, config


def run(args: argparse.Namespace) -> int:
    settings = config.load(args.config, args.overrides)
    from jaxcnn.train import train_and_evaluate
    from jaxcnn.train.signals import Interrupted
    try:
        summary = train_and_evaluate(settings, args.workdir)
    except Interrupted as e:
        cli.log.warning('%s', e)
        return 128 + e.signum
    join = os.path.join
    if summary['test_accuracy'] is None:
        cli.log.info('validation accuracy %.2f %%  (loss %.4f; checkpoint %d); there is no labelled test part',
                     100 * summary['val_accuracy'], summary['val_loss'], summary['best_step'])
    else:
        cli.log.info('test accuracy %.2f %%  (loss %.4f, top-5 %.2f %%; checkpoint %d)', 100 * summary['test_accuracy'],
                     summary['test_loss'], 100 * summary['test_top5'], summary['best_step'])
    if (several := summary.get('test_views_accuracy')) is not None:
        cli.log.info('test accuracy %.2f %% by the mean of several views of each image', 100 * several)
    cli.log.info('report: %s\nfigures: %s', join(args.workdir, 'report.md'), join(args.workdir, 'figures'))
    return 0


if __name__ == '__main__':
    parser = argparse.ArgumentParser(
        description=__doc__, epilog='Any field of the config can be set: --config.optim.learning_rate=0.05 '
        '--config.duration.epochs=3 (jaxcnn/config.py lists them).')
    parser.add_argument('--config', required=True, help='configs/NAME.py')
    parser.add_argument('--workdir', required=True, help='folder of the run')
    cli.add_distributed_flags(parser)
    cli.main(parser, run)
