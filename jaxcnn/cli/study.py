"""Train the arms of a study with several seeds each, and compare them in a table with curves.

    jaxcnn study --study=configs/studies/activations.py:quick --workdir=runs/activations

The workdir contains a run for each arm and seed, and the report as study.html, study.md and study.csv. The same command
continues a study that was stopped: it skips finished runs and resumes stopped ones. It does not repeat runs that diverged,
but tries those again that failed for another reason. The exit code is 1 if a run has failed or was stopped.
"""

import argparse
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

from jaxcnn import cli
from jaxcnn.errors import UserError, counted

if TYPE_CHECKING:
    from jaxcnn.studies.jobs import Job
    from jaxcnn.studies.results import RunResult
    from jaxcnn.studies.run import StudyRun


def run(args: argparse.Namespace) -> int:
    """Run the command with its parsed arguments, and return its exit code."""
    environment = dict(os.environ)
    os.environ['JAX_PLATFORMS'] = 'cpu'  # this process must not reserve GPU memory
    from jaxcnn.studies import slurm
    from jaxcnn.studies.definition import load_study
    from jaxcnn.studies.jobs import StudyStopped
    from jaxcnn.studies.run import StudyRun, make_executor
    from jaxcnn.studies.search import SearchRun
    for flag in ('jobs', 'seeds'):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            raise UserError(f'--{flag}: expected at least 1, got {getattr(args, flag)}')
    study = load_study(args.study, args.overrides, args.seeds)
    executor = make_executor(args.executor, args.jobs, environment, slurm.parse_options(args.slurm), args.workdir)
    with (SearchRun if study.search else StudyRun)(study, args.workdir) as study_run:
        if executor is None:
            for job in study_run.jobs():
                print(job.shell_command())
            return 0
        stop: list[int] = []
        listen_for_signals(stop)
        display = Display(study_run, args.watch)
        try:
            study_run.train(executor, display.show_result, display.show_table, stop)
        except StudyStopped as e:
            cli.log.warning('%s', e)
            return 128 + e.signum
        finally:
            study_run.write_report()
            display.show_end()
        is_complete = all(run.status not in ('failed', 'unfinished') for arm in study_run.table().arms for run in arm.runs)
    return 0 if is_complete else 1


def listen_for_signals(stop: list[int]) -> None:
    """Append each signal that asks the study to stop to `stop`; a second signal raises KeyboardInterrupt."""
    first_time = 0.0

    def handle(signum: int, frame: object) -> None:
        nonlocal first_time
        if stop and time.monotonic() - first_time > 1:  # `timeout` sends two signals at once
            raise KeyboardInterrupt
        first_time = first_time or time.monotonic()
        stop.append(signum)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, handle)


class Display:
    """The output of the command: a line for each run that ends, or with `--watch` a table that is updated.

    Args:
      study_run: the training of the study.
      watch: whether to show the table while the study runs.
    """

    def __init__(self, study_run: 'StudyRun', watch: bool):
        self._run, self._watch = study_run, watch
        self._table_time = 0.0
        self._number = study_run.num_done()
        if self._number:
            cli.log.info('%d of %s are done already', self._number, counted(study_run.num_runs, 'run'))
        if self._number < study_run.num_runs and not watch:
            cli.log.info('the output of the runs is in %s', os.path.join(study_run.folder, '*', 'seed*.log'))

    def show_result(self, job: 'Job', result: 'RunResult') -> None:
        """Print the result of a run that has ended, unless the table is shown."""
        self._number += result.status != 'unfinished'
        if self._watch:
            return
        if result.status == 'unfinished':
            is_trained = result.summary and not job.is_evaluation
            cli.log.info('%s: %s', job.name, 'trained, and evaluated by protocols next' if is_trained else 'stopped')
            return
        column = self._run.columns[0]
        text = (f'{column.title} {column.format(column.value(result.summary, result.rows))}' if result.status == 'finished'
                else f'{result.status}: {result.reason}')
        cli.log.info('[%d/%d] %s: %s', self._number, self._run.num_runs, job.name, text)

    def show_table(self) -> None:
        """Update the table if it is shown and at least two seconds old."""
        if self._watch and time.monotonic() - self._table_time > 2:
            self._table_time = time.monotonic()
            sys.stdout.write('\x1b[H\x1b[J')  # clear the terminal
            self._print_table()
            sys.stdout.flush()

    def show_end(self) -> None:
        """Print the final table and the path of the report."""
        print()
        self._print_table()
        print(f'\nreport: {os.path.join(self._run.folder, "study.html")}')

    def _print_table(self) -> None:
        from jaxcnn.studies.report import table_rows
        cli.print_table(table_rows(self._run.table()))


def main() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog='Any field of the config can be set for all arms, as in --config.data.dir=DIR.')
    parser.add_argument('--study', required=True, help='a study file, or the name of a study that comes with jaxcnn (jaxcnn '
                        'configs lists them); the suffix :quick selects the quick form')
    parser.add_argument('--workdir', required=True, help='folder of the study')
    parser.add_argument('--seeds', type=int, help='number of seeds of each arm (default: that of the study)')
    parser.add_argument('--jobs', type=int, help='number of runs that are trained at the same time, which divide the cores '
                        'and GPUs of this machine (default: 1; with SLURM: all)')
    parser.add_argument('--executor', default='local', help='local: train on this machine (default); slurm: submit SLURM '
                        'jobs, which continue if this command ends; print: only print the commands')
    parser.add_argument('--slurm', action='append', default=[], metavar='KEY=VALUE',
                        help='an option of submitit, such as slurm_partition=gpu, timeout_min=600, gpus_per_node=1, '
                        'or cluster=local to run without SLURM; may be repeated')
    parser.add_argument('--watch', action='store_true', help='show a table that is updated, instead of a line for each run')
    cli.main(parser, run, needs_jax=False)
