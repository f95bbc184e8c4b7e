"""The runs of a study as jobs, which an executor starts.

A job is one command `jaxcnn train`, and its workdir says how it ended. So a study can be killed at any moment: what is in
the workdirs is all that the next command needs.
"""

import abc
import contextlib
import dataclasses
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence

from jaxcnn.errors import Diverged, UserError
from jaxcnn.studies.definition import Arm
from jaxcnn.studies.results import FAILURE, RunResult, Status, read_run, write_failure

_NUM_LAST_LINES = 5  # of a log, among which the error is
POLL_INTERVAL = 0.2  # seconds between two looks at the running jobs

# exit codes of a run that was stopped, after or before it has installed its signal handlers
STOPPED = {code for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) for code in (128 + signum, -signum)}


@dataclasses.dataclass(frozen=True)
class Job:
    """A run of a study.

    Attributes:
      arm: its arm.
      seed: its seed.
      study_folder: the workdir of the study.
      source_folder: the workdir of the run whose weights it starts from; empty if it starts from no other arm's.
    """

    arm: Arm
    seed: int
    study_folder: str
    source_folder: str = ''

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f'{self.arm.name}, seed {self.seed}'

    @property
    def arm_folder(self) -> str:
        """The folder of the arm, which has its config."""
        return os.path.join(self.study_folder, self.arm.folder)

    @property
    def folder(self) -> str:
        """The workdir of the run."""
        return os.path.join(self.arm_folder, f'seed{self.seed}')

    @property
    def log_file(self) -> str:
        """The file with what the run prints."""
        return f'{self.folder}.log'

    def command(self) -> list[str]:
        """Return the arguments of the command that trains the run, or resumes it."""
        return [sys.executable, '-m', 'jaxcnn.cli', 'train', f'--config={os.path.join(self.arm_folder, "config.json")}',
                f'--workdir={self.folder}', f'--config.seed={self.seed}',
                *[f'--config.init.run={self.source_folder}'] * bool(self.source_folder)]

    def shell_command(self) -> str:
        """Return the command as a line for a shell."""
        _, _, _, *arguments = self.command()
        return shlex.join(['jaxcnn', *arguments])

    def prepare(self) -> None:
        """Forget an earlier failure."""
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(self.folder, FAILURE))

    def result(self) -> RunResult:
        """Return what the workdir of the run says."""
        return read_run(self.folder, self.seed)

    def record(self, exit_code: int, message: str = '') -> RunResult:
        """Return the result of the run after its command has ended, and record why it failed if it did.

        Args:
          exit_code: of the command; -N if signal N ended it.
          message: the reason, if the executor knows it.
        """
        result = self.result()
        if result.status == 'unfinished' and exit_code not in STOPPED:
            status: Status = 'diverged' if exit_code == Diverged.exit_code else 'failed'
            write_failure(self.folder, status, message or self.reason(exit_code))
            result = self.result()
        return result

    def reason(self, exit_code: int) -> str:
        """Return why the command failed: the error in its log, or its exit code."""
        if exit_code < 0:
            return f'killed by {signal.Signals(-exit_code).name}'
        if not os.path.exists(self.log_file):
            return 'it was not started'
        with open(self.log_file, encoding='utf-8', errors='replace') as file:
            lines = [line.strip() for line in file if line.strip()][-_NUM_LAST_LINES:]
        errors = [line.removeprefix('error: ') for line in lines if line.startswith('error: ')]
        last_line = [*lines, *errors][-1] if lines else 'it printed nothing'
        return last_line if exit_code in (UserError.exit_code, Diverged.exit_code) else f'exit code {exit_code}: {last_line}'


class Handle(abc.ABC):
    """A job that was started.

    Attributes:
      message: what the executor says of a job that was lost; otherwise empty.
    """

    message: str = ''

    @abc.abstractmethod
    def poll(self) -> int | None:
        """Return the exit code, or None while the job runs."""

    @abc.abstractmethod
    def stop(self, signum: int) -> None:
        """Ask the job to save its state and to end, as the signal would."""


class Executor(abc.ABC):
    """A way to run jobs.

    Attributes:
      slots: number of jobs that run at once.
      stops_jobs: whether jobs end with the study's command; otherwise they go on without it.
    """

    slots: int
    stops_jobs: bool = True

    @abc.abstractmethod
    def start(self, jobs: Sequence[Job]) -> list[Handle]:
        """Start jobs, at most as many as slots are free."""


class Queue(abc.ABC):
    """The jobs of a study that are to be run."""

    @abc.abstractmethod
    def next(self) -> Job | None:
        """Return the next job, or None if there is none."""

    def should_prune(self, job: Job) -> bool:
        """Return whether a running job is to be stopped for good; called now and then."""
        return False

    def done(self, job: Job, result: RunResult) -> None:  # noqa: B027 (only searches need it)
        """Receive the result of a job."""


class JobList(Queue):
    """Jobs that are known in advance. One that starts from another run's weights waits until that run has finished."""

    def __init__(self, jobs: Sequence[Job]):
        self._jobs = list(jobs)
        self._pending = {job.folder for job in jobs}  # those that have not ended

    def next(self) -> Job | None:
        """Return the next job that does not wait for another one, or None if there is none."""
        for job in list(self._jobs):
            status = read_run(job.source_folder, job.seed).status if job.source_folder else 'finished'
            if status in ('diverged', 'failed') and job.source_folder not in self._pending:
                write_failure(job.folder, 'failed', f'the run that it starts from has {status}')
                self._jobs.remove(job)
            elif status == 'finished':
                self._jobs.remove(job)
                return job
        return None

    def done(self, job: Job, result: RunResult) -> None:
        """Receive the result of a job, for which others may wait."""
        self._pending.discard(job.folder)


class StudyStopped(Exception):
    """A signal has stopped the study.

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
      executor: starts them.
      on_done: called with each job that has ended and with its result.
      on_poll: called now and then.
      stop: the signals that have come; a signal handler appends them.

    Raises:
      StudyStopped: a signal came. The jobs have saved their state, or go on if the executor's jobs do.
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
