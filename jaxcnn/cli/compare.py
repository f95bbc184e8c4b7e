"""Compare existing runs in a report: a table, curves, and the fields in which the configs differ.

    jaxcnn compare --workdirs runs/a runs/b --output runs/comparison

Runs whose configs differ only in the seed share a row.
"""

import argparse
import os

from jaxcnn import cli
from jaxcnn.errors import UserError
from jaxcnn.files import make_output

OUTPUT = 'comparison'
os.environ['JAX_PLATFORMS'] = 'cpu'  # this process must not reserve GPU memory


def run(args: argparse.Namespace) -> int:
    """Run the command with its parsed arguments, and return its exit code."""
    from jaxcnn.studies.compare import compare_runs
    from jaxcnn.studies.report import table_rows, write_study_report
    table = compare_runs(args.workdirs, args.metric)
    if args.output != OUTPUT or not os.path.exists(os.path.join(OUTPUT, 'compare.html')):
        make_output(args.output)
    try:
        write_study_report(table, args.output, 'compare')
    except OSError as e:
        raise UserError(f'{args.output!r} cannot be written: {e.strerror}', field='--output') from e
    cli.print_table(table_rows(table))
    print(f'\nreport: {os.path.join(args.output, "compare.html")}')
    return 0


def main() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdirs', required=True, nargs='+', metavar='DIR', help='workdirs of runs, of '
                        'several seeds of a run (jaxcnn train --seeds=N), or of studies')
    parser.add_argument('--metric', default=[], action='append', help="a measurement, such as test_accuracy or "
                        "epochs_to('val_accuracy', 0.9); may be repeated, and the first one is compared (default: the "
                        "first metric of the task on the test split)")
    parser.add_argument('--output', default=OUTPUT, metavar='DIR', help=f'new folder for the report (default: {OUTPUT}, '
                        'where it replaces that of an earlier comparison)')
    cli.main(parser, run, needs_jax=False)
