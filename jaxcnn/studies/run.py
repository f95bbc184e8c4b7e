"""Training of a study in its workdir."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxcnn import config as cfg
from jaxcnn import data, plugins, tasks
from jaxcnn.errors import UserError, unknown
from jaxcnn.locks import LockedError, lock
from jaxcnn.processes import visible_gpus
from jaxcnn.studies.columns import find_column
from jaxcnn.studies.definition import Arm, Study
from jaxcnn.studies.jobs import Executor, Job, JobList, Queue, run_jobs
from jaxcnn.studies.local import LocalExecutor
from jaxcnn.studies.report import write_study_report
from jaxcnn.studies.results import ArmResult, RunResult, Table
from jaxcnn.training.workdir import STUDY, read_config, read_json, write_json

EXECUTORS = ('local', 'slurm', 'print')


def make_executor(name: str, jobs: int | None, environment: Mapping[str, str], slurm_options: Mapping[str, Any],
                  folder: str) -> Executor | None:
    """Return the executor of a name, or None for `print`.

    Args:
      name: `local`, `slurm` or `print`.
      jobs: number of jobs that run at the same time; None: the default of the executor.
      environment: environment variables of local jobs.
      slurm_options: options of submitit.
      folder: workdir of the study.

    Raises:
      UserError: The executor does not exist, is not installed, or cannot run so many jobs.
    """
    if name not in EXECUTORS:
        raise unknown('executor', name, EXECUTORS, field='--executor')
    if name == 'slurm':
        from jaxcnn.studies.slurm import SlurmExecutor
        return SlurmExecutor(jobs, slurm_options, os.path.join(folder, 'slurm'))
    if slurm_options:
        raise UserError('needs --executor=slurm', field='--slurm')
    return LocalExecutor(jobs or 1, environment, visible_gpus(environment)) if name == 'local' else None


class StudyRun:
    """The training of a study in a workdir. It is a context manager, which locks the workdir while it is entered.

    Args:
      study: the study.
      folder: workdir of the study.

    Attributes:
      study: the study.
      folder: absolute path of the workdir.
      columns: the measurements in the table.
    """

    def __init__(self, study: Study, folder: str):
        self.study, self.folder = study, os.path.abspath(folder)
        self.columns = [find_column(name, study.arms[0].config) for name in study.measurements]
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> 'StudyRun':
        with contextlib.ExitStack() as resources:
            try:
                os.makedirs(self.folder, exist_ok=True)
                resources.enter_context(lock(os.path.join(self.folder, '.lock')))
            except LockedError as e:
                raise UserError(f'workdir {self.folder!r} is in use by another study ({e})') from None
            except OSError as e:
                raise UserError(f'workdir {self.folder!r} cannot be written: {e.strerror}') from e
            self._check_unchanged()
            self._write_definition()
            self._resources = resources.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._resources.close()

    def _check_unchanged(self) -> None:
        """Raise a UserError if the workdir holds a run, or a study with other configs."""
        if os.path.exists(os.path.join(self.folder, 'summary.json')) or (
                os.path.exists(os.path.join(self.folder, 'config.json'))):
            raise UserError(f'workdir {self.folder!r} holds a run, not a study')
        for arm in self.study.arms:
            folder = os.path.join(self.folder, arm.folder)
            if not os.path.exists(os.path.join(folder, 'config.json')):
                continue
            recorded = dataclasses.replace(read_config(folder), seed=arm.config.seed)
            plugins.check_unchanged(recorded.plugins, arm.config.plugins, folder)
            if changes := cfg.differences(recorded, arm.config):
                raise UserError(f'has another config in {self.folder!r}', field=f'arm {arm.name!r}', hint='use its config '
                                f'or a new workdir. Changed: {"; ".join(map(str, changes))}')
        path = os.path.join(self.folder, STUDY)
        recorded_search = read_json(path)['search'] or {} if os.path.exists(path) else self.search_fields
        changed = [f'{name}: {recorded_search.get(name)!r} -> {self.search_fields.get(name)!r}'
                   for name in {**recorded_search, **self.search_fields}
                   if recorded_search.get(name) != self.search_fields.get(name)]
        if changed:
            raise UserError(f'workdir {self.folder!r} holds a study with another search', hint='use a new workdir. '
                            f'Changed: {"; ".join(changed)}')

    @property
    def search_fields(self) -> dict[str, Any]:
        """The settings of a search that must not change when it is continued; a study of given arms has none."""
        return {}

    def _write_definition(self) -> None:
        self.write_arms()
        write_json(os.path.join(self.folder, STUDY), {'search': self.search_fields})

    def write_arms(self) -> None:
        """Write the configs of the arms."""
        for arm in self.study.arms:
            write_arm(arm, os.path.join(self.folder, arm.folder))

    @functools.cached_property
    def queue(self) -> Queue:
        """The runs that remain to be trained."""
        return JobList(self.jobs())

    @property
    def num_runs(self) -> int:
        """Total number of runs."""
        return len(self.study.arms) * len(self.study.seeds)

    def num_done(self) -> int:
        """Return the number of runs that have ended and are not repeated."""
        return sum(run.status not in ('unfinished', 'failed') for arm in self.table().arms for run in arm.runs)

    def all_jobs(self) -> list[Job]:
        """Return the jobs of all runs: those of the first seed of each arm, then those of the second, and so on."""
        folders = {arm.name: arm.folder for arm in self.study.arms}

        def folder(name: str, seed: int) -> str:
            return os.path.join(self.folder, folders[name], f'seed{seed}')
        return [Job(arm, seed, self.folder, arm.source_folders(seed, self.study.seeds, folder))
                for seed in self.study.seeds for arm in self.study.arms]

    def jobs(self) -> list[Job]:
        """Return the jobs of the runs that are unfinished or have failed: those that are trained are only evaluated."""
        return [job.evaluation() or job for job in self.all_jobs() if job.result().status in ('unfinished', 'failed')]

    def train(self, executor: Executor, on_done: Callable[[Job, RunResult], None], on_poll: Callable[[], None],
              stop: Sequence[int]) -> None:
        """Train the remaining runs; see `run_jobs`.

        Raises:
          UserError: The data of all arms is missing on this machine, which is to train them.
        """
        if isinstance(executor, LocalExecutor):
            self._check_data()
        run_jobs(self.queue, executor, on_done, on_poll, stop)

    def _check_data(self) -> None:
        """Raise a UserError if the data of no arm exists. If that of some exists, the others fail as any run may."""
        configs = {arm.config.data: arm.config for arm in self.study.arms}  # one for each data set
        for number, config in enumerate(configs.values(), 1):
            try:
                data.sources.find(config.data, tasks.find(config.task).kind)
            except UserError:
                if number == len(configs):
                    raise
            else:
                return

    def table(self) -> Table:
        """Return the results so far."""
        return Table(self.study.title, self.study.text, self.arm_results(), self.columns, self.study.baseline)

    def arm_results(self) -> list[ArmResult]:
        """Return the results of each arm so far."""
        return [ArmResult(arm.name, arm.config, [Job(arm, seed, self.folder).result() for seed in self.study.seeds],
                          arm.published) for arm in self.study.arms]

    def write_report(self) -> None:
        """Write the report of the results so far."""
        write_study_report(self.table(), self.folder, sections=self.report_sections())

    def report_sections(self) -> list[str]:
        """Return further lines of the report as Markdown."""
        return []


def write_arm(arm: Arm, folder: str) -> None:
    """Write the config of an arm into its folder."""
    os.makedirs(folder, exist_ok=True)
    write_json(os.path.join(folder, 'config.json'), cfg.to_dict(arm.config))
