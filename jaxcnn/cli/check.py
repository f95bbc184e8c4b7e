"""Check whether the training of a config is sound: its data, loss, gradients, signals, learning rate, speed.

    jaxcnn check --config=digits_lenet5
    jaxcnn check --config=digits_lenet5 first_loss overfit --config.optim.learning_rate=0.01

Each check prints one line: its verdict (ok, information, warning or failed), what was measured, and what to do. The page
check.html holds the figures. The exit code is 1 if a check has failed.
"""

import argparse
import os

from jaxcnn import cli, config

# without importing them, so that --help is quick
CHECK_NAMES = ('batch', 'data', 'first_loss', 'zero_lr', 'gradients', 'overfit', 'learns', 'signal', 'augmentation',
               'lr_range', 'batch_size', 'determinism', 'throughput')


def run(args: argparse.Namespace) -> int:
    """Run the command with its parsed arguments, and return its exit code."""
    from jaxcnn.checks import FAILED
    from jaxcnn.checks.run import line, run_checks, summary
    settings = config.load(args.config, args.overrides)
    folder = args.out or os.path.join('checks', settings.name)
    verdicts = run_checks(settings, folder, args.checks, args.steps,
                          on_verdict=lambda check, verdict: print(line(check, verdict), flush=True))
    print(f'{summary(verdicts)}; page: {os.path.join(folder, "check.html")}')
    return int(any(verdict.status == FAILED for verdict in verdicts.values()))


def main() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog='Any field of the config can be set: --config.optim.learning_rate=0.05')
    parser.add_argument('--config', required=True, help='a config file, the name of a config that comes with jaxcnn, or the '
                        'config.json of a run')
    parser.add_argument('checks', nargs='*', metavar='CHECK',
                        help=f'checks to carry out (default: all): {", ".join(CHECK_NAMES)}')
    parser.add_argument('--out', default='', metavar='DIR', help='folder of the page and its figures (default: checks/NAME, '
                        'with the name of the config)')
    parser.add_argument('--steps', type=int, default=100, metavar='N', help='number of steps of short trainings (default: '
                        '100); more for large data sets and slow networks')
    cli.main(parser, run)
