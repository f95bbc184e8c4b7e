"""Jobs, each of which trains or evaluates one run of a study, and the executors that start them.

A job is one `jaxcnn train` command or, for a study with protocols, one `jaxcnn evaluate` command after it. Its outcome is
read from its workdir, so a study keeps no state of its own and can be killed and continued at any time.
"""

import abc
import contextlib
import dataclasses
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from jaxcnn.errors import Diverged, UserError
from jaxcnn.studies.definition import SINGLE_RUN_FIELDS, Arm
from jaxcnn.studies.results import FAILURE, RunResult, Status, read_run, write_failure

_NUM_LAST_LINES = 5  # number of lines at the end of a log that are searched for the error
POLL_INTERVAL = 0.2  # seconds between two checks of the running jobs

# Exit codes of a stopped run: 128 + N if it has handled signal N, and -N if its handlers were not installed yet.
STOPPED = {code for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) for code in (128 + signum, -signum)}


@dataclasses.dataclass(frozen=True)
class Job:
    """The training of one arm with one seed, or the evaluation by protocols after it.

    Attributes:
      arm: the arm.
      seed: the seed.
      study_folder: workdir of the study.
      source_folders: workdirs of other runs that this run uses, by the field of the config that names them.
      is_evaluation: whether the job evaluates the trained run by the protocols of the arm that are not recorded yet.
    """

    arm: Arm
    seed: int
    study_folder: str
    source_folders: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict, hash=False)
    is_evaluation: bool = False

    @property
    def needed_folders(self) -> list[str]:
        """Workdirs of the runs of the study that must have finished before this one starts."""
        inside = os.path.join(self.study_folder, '')
        return [folder for folders in self.source_folders.values() for folder in folders if folder.startswith(inside)]

    @property
    def name(self) -> str:
        """Name of the job in messages."""
        return f'{self.arm.name}, seed {self.seed}'

    @property
    def arm_folder(self) -> str:
        """Folder of the arm, which contains its config."""
        return os.path.join(self.study_folder, self.arm.folder)

    @property
    def folder(self) -> str:
        """Workdir of the run."""
        return os.path.join(self.arm_folder, f'seed{self.seed}')

    @property
    def log_file(self) -> str:
        """File to which the output of the run is written."""
        return f'{self.folder}.log'

    def command(self) -> list[str]:
        """Return the command that trains or resumes the run, or that evaluates it."""
        if self.is_evaluation:
            recorded = self.result().summary['protocols']
            return self._evaluation(text for name, text in self.arm.protocols if name not in recorded)
        return self._training()

    def _evaluation(self, protocols: Iterable[str]) -> list[str]:
        return [sys.executable, '-m', 'jaxcnn.cli', 'evaluate', f'--workdir={self.folder}', f'--split={self.arm.split}',
                '--save', *(f'--protocol={text}' for text in dict.fromkeys(protocols))]

    def _training(self) -> list[str]:
        return [sys.executable, '-m', 'jaxcnn.cli', 'train', f'--config={os.path.join(self.arm_folder, "config.json")}',
                f'--workdir={self.folder}', f'--config.seed={self.seed}',
                *(f'--config.{field}={folders[0] if field in SINGLE_RUN_FIELDS else repr(folders)}'
                  for field, folders in self.source_folders.items())]

    def shell_command(self) -> str:
        """Return the command as a line for the shell; that of a training includes the evaluation after it."""
        commands = [self.command()]
        if self.arm.protocols and not self.is_evaluation:
            commands.append(self._evaluation(text for _, text in self.arm.protocols))
        return ' && '.join(shlex.join(['jaxcnn', *arguments]) for _, _, _, *arguments in commands)

    def prepare(self) -> None:
        """Delete the record of an earlier failure."""
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(self.folder, FAILURE))

    def result(self) -> RunResult:
        """Read the result from the workdir of the run."""
        return read_run(self.folder, self.seed, dict(self.arm.protocols), self.arm.split)

    def evaluation(self) -> 'Job | None':
        """Return the job that evaluates the run by the protocols that are left; None if it is not trained, or none is."""
        result = self.result()
        is_left = bool(result.summary) and result.status != 'finished'
        return dataclasses.replace(self, is_evaluation=True) if is_left else None

    def record(self, exit_code: int, message: str = '') -> RunResult:
        """Return the result of the run after its command has ended, and record the reason of a failure.

        Args:
          exit_code: exit code of the command; -N if signal N ended it.
          message: reason of a failure; empty: it is read from the log.
        """
        result = self.result()
        if not self.is_evaluation and exit_code == 0 and result.summary:
            return result  # its evaluation may be left
        if result.status == 'unfinished' and exit_code not in STOPPED:
            status: Status = 'diverged' if exit_code == Diverged.exit_code else 'failed'
            write_failure(self.folder, status, message or self.reason(exit_code))
            result = self.result()
        return result

    def reason(self, exit_code: int) -> str:
        """Return the reason why the command failed: the error in its log, or its exit code."""
        if exit_code < 0:
            return f'killed by {signal.Signals(-exit_code).name}'
        if not os.path.exists(self.log_file):
            return 'the command was not started'
        with open(self.log_file, encoding='utf-8', errors='replace') as file:
            lines = [line.strip() for line in file if line.strip()][-_NUM_LAST_LINES:]
        errors = [line.removeprefix('error: ') for line in lines if line.startswith('error: ')]
        last_line = [*lines, *errors][-1] if lines else 'the command printed nothing'
        return last_line if exit_code in (UserError.exit_code, Diverged.exit_code) else f'exit code {exit_code}: {last_line}'


class Handle(abc.ABC):
    """A job that has been started.

    Attributes:
      message: error message of the executor if the job was lost; otherwise empty.
    """

    message: str = ''

    @abc.abstractmethod
    def poll(self) -> int | None:
        """Return the exit code, or None while the job runs."""

    @abc.abstractmethod
    def stop(self, signum: int) -> None:
        """Ask the job to save its state and exit, as if it had received the signal."""


class Executor(abc.ABC):
    """A way to run jobs.

    Attributes:
      slots: number of jobs that run at the same time.
      stops_jobs: whether the jobs end together with the study command; otherwise they continue without it.
    """

    slots: int
    stops_jobs: bool = True

    @abc.abstractmethod
    def start(self, jobs: Sequence[Job]) -> list[Handle]:
        """Start some jobs, no more than there are free slots."""


class Queue(abc.ABC):
    """The jobs of a study that remain to be run."""

    @abc.abstractmethod
    def next(self) -> Job | None:
        """Return the next job, or None if none can start now."""

    def should_prune(self, job: Job) -> bool:
        """Return whether to stop a running job for good. `run_jobs` calls this at each poll."""
        return False

    def done(self, job: Job, result: RunResult) -> None:  # noqa: B027 (optional)
        """Handle the result of a job that has ended."""


class JobList(Queue):
    """A fixed list of jobs. A job that uses other runs, such as their weights, waits until they have finished."""

    def __init__(self, jobs: Sequence[Job]):
        self._jobs = list(jobs)
        self._pending = {job.folder for job in jobs}  # workdirs of the jobs that have not ended

    def next(self) -> Job | None:
        """Return the next job that does not wait for another run, or None if there is none."""
        for job in list(self._jobs):
            statuses = {folder: read_run(folder, job.seed).status for folder in job.needed_folders}
            lost = [folder for folder, status in statuses.items()
                    if status in ('diverged', 'failed') and folder not in self._pending]
            if lost:
                use = 'that it starts from' if lost[0] in job.source_folders.get('init.run', ()) else 'that it uses'
                write_failure(job.folder, 'failed', f'the run {use} has {statuses[lost[0]]}')
                self._jobs.remove(job)
            elif all(status == 'finished' for status in statuses.values()):
                self._jobs.remove(job)
                return job
        return None

    def done(self, job: Job, result: RunResult) -> None:
        """Release the jobs that wait for this one, and add the evaluation of a run that has been trained."""
        self._pending.discard(job.folder)
        if not job.is_evaluation and result.status == 'unfinished' and (evaluation := job.evaluation()):
            self._jobs.insert(0, evaluation)


class StudyStopped(Exception):
    """Raised when a signal has stopped the study.

    Attributes:
      signum: the signal.
    """

    def __init__(self, signum: int):
        super().__init__(f'stopped by {signal.Signals(signum).name}; the same command continues the study')
        self.signum = signum


def run_jobs(queue: Queue, executor: Executor, on_done: Callable[[Job, RunResult], None], on_poll: Callable[[], None],
             stop: Sequence[int]) -> None:
    """Run all jobs of a queue.

    Args:
      queue: the jobs.
      executor: the executor that starts the jobs.
      on_done: called with each job that has ended and its result.
      on_poll: called after each check of the running jobs.
      stop: the signals received so far; a signal handler appends to this list.

    Raises:
      StudyStopped: A signal was received. The jobs have saved their state, or continue if `executor.stops_jobs` is false.
    """
    running: dict[Job, Handle] = {}
    pruned: set[Job] = set()
    num_signals = 0
    while True:
        jobs: list[Job] = []
        while not stop and len(running) + len(jobs) < executor.slots and (job := queue.next()):
            jobs.append(job)
        if jobs:
            for job in jobs:
                job.prepare()
            running.update(zip(jobs, executor.start(jobs), strict=True))
        if not running:
            break
        time.sleep(POLL_INTERVAL)
        if stop and not executor.stops_jobs:
            break
        for signum in stop[num_signals:]:
            for handle in running.values():
                handle.stop(signum)
        num_signals = len(stop)
        for job, handle in list(running.items()):
            exit_code = handle.poll()
            if exit_code is not None:
                if job in pruned and job.result().status == 'unfinished':
                    write_failure(job.folder, 'pruned', 'stopped early by the search')
                result = job.record(exit_code, handle.message)
                queue.done(job, result)
                on_done(job, result)
                del running[job]
            elif job not in pruned and queue.should_prune(job):
                pruned.add(job)
                handle.stop(signal.SIGTERM)
        on_poll()
    if stop:
        raise StudyStopped(stop[0])
