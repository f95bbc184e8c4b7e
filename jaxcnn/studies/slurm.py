"""Run jobs through SLURM, by submitit. Jobs that are pre-empted or run out of time are requeued and resume."""

import dataclasses
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from jaxcnn.config import parse_assignment
from jaxcnn.errors import UserError
from jaxcnn.processes import shell_exit_code
from jaxcnn.studies.jobs import Executor, Handle, Job

_STOP_TIMEOUT = 60.0  # seconds that a run has to save its state


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """Return the options `KEY=VALUE` of the command line by their names."""
    return dict(parse_assignment('--slurm', option) for option in options)


@dataclasses.dataclass
class SubmittedJob:
    """What submitit pickles, and calls on a node: it trains a run."""

    job: Job

    def __call__(self) -> int:
        """Train the run, and return the exit code of its command."""
        with open(self.job.log_file, 'ab') as log_file:
            self._process = subprocess.Popen(self.job.command(), stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file)
            return shell_exit_code(self._process.wait())

    def checkpoint(self) -> Any:
        """Stop the run, which saves its state, and return the submission that resumes it.

        submitit calls this on pre-emption and before the time is over; without it, only some jobs would be requeued.
        """
        import submitit
        self._process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_TIMEOUT
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        return submitit.helpers.DelayedSubmission(SubmittedJob(self.job))


class SlurmHandle(Handle):
    """A job of submitit."""

    def __init__(self, job: Any):
        self._job = job

    def poll(self) -> int | None:
        """Return the exit code, or None while the job waits or runs."""
        if not self._job.done():
            return None
        try:
            return int(self._job.result())
        except Exception:  # submitit's errors of a job that has no result: cancelled, out of memory, a node that failed
            return 1

    def stop(self, signum: int) -> None:
        """Cancel the job."""
        self._job.cancel()


class SlurmExecutor(Executor):
    """Runs jobs as one array of SLURM jobs, which go on if the study's command ends.

    Args:
      jobs: number of jobs at once; None: no limit.
      options: of submitit, such as `timeout_min`; `cluster` is slurm or, to try it, local.
      folder: for submitit's files.

    Raises:
      UserError: submitit is not installed, there is no SLURM, or an option is wrong.
    """

    stops_jobs = False

    def __init__(self, jobs: int | None, options: Mapping[str, Any], folder: str):
        try:
            import submitit
        except ModuleNotFoundError:
            raise UserError("'slurm' needs submitit: pip install 'jaxcnn[slurm]'", field='--executor') from None
        self.slots = jobs or 1_000_000
        options = {'name': 'jaxcnn', 'slurm_array_parallelism': self.slots, **options}
        cluster = options.pop('cluster', 'slurm')
        if cluster not in ('slurm', 'local'):
            raise UserError(f'expected slurm or local, got {cluster!r}', field='--slurm=cluster')
        try:
            self._executor = submitit.AutoExecutor(folder, cluster=cluster)
            self._executor.update_parameters(**options)
        except (RuntimeError, NameError, TypeError, ValueError) as e:
            raise UserError(' '.join(str(e).split())[:300], field='--executor=slurm') from e

    def start(self, jobs: Sequence[Job]) -> list[Handle]:
        """Submit the jobs as an array."""
        with self._executor.batch():
            submitted = [self._executor.submit(SubmittedJob(job)) for job in jobs]
        return [SlurmHandle(job) for job in submitted]
