"""An executor that submits jobs to SLURM through submitit.

Jobs that are preempted or run out of time are requeued and resume.
"""

import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from jaxcnn.config import parse_assignment
from jaxcnn.errors import UserError
from jaxcnn.processes import bound_command
from jaxcnn.studies.jobs import Executor, Handle, Job
from jaxcnn.training.workdir import read_json, write_json

_STOP_TIMEOUT = 60.0  # seconds in which a run must save its state
_POLL_INTERVAL = 0.2  # seconds
_MAX_JOBS = 10_000
_MAX_TIMEOUTS = 1_000  # number of timeouts after which a job is not requeued


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """Parse the `KEY=VALUE` options of the command line."""
    return dict(parse_assignment('--slurm', option) for option in options)


@dataclasses.dataclass
class SubmittedJob:
    """The callable that submitit pickles and calls on a node to train a run."""

    job: Job

    def __call__(self) -> int:
        """Train the run, and return the exit code of its command; -N if signal N ended it."""
        with open(self.job.log_file, 'ab') as log_file:
            command = bound_command(self.job.command(), os.getpid())
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file)
        while (returncode := self._process.poll()) is None:  # wait() would hold a lock that `checkpoint` needs
            time.sleep(_POLL_INTERVAL)
        return returncode

    def checkpoint(self) -> Any:
        """Stop the run so that it saves its state, and return the submission that resumes it.

        submitit calls this method when a job is preempted or about to run out of time. It requeues preempted jobs without
        this method too, but not those that run out of time.
        """
        import submitit
        self._process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_TIMEOUT
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        return submitit.helpers.DelayedSubmission(SubmittedJob(self.job))


class SlurmHandle(Handle):
    """A submitted job, where `job` is the object of submitit."""

    def __init__(self, job: Any):
        self.job = job

    def poll(self) -> int | None:
        """Return the exit code, or None while the job waits or runs."""
        if not self.job.done():
            return None
        try:
            return int(self.job.result())
        except Exception as e:  # the job has no result: cancelled, out of memory, or failed node
            self.message = ' '.join(str(e).split())[:300]
            return 1

    def stop(self, signum: int) -> None:
        """Cancel the job."""
        self.job.cancel()


class SlurmExecutor(Executor):
    """Runs jobs as arrays of SLURM jobs, which continue if the study command ends.

    Args:
      jobs: number of jobs that run at the same time; None: the default of submitit.
      options: options of submitit, such as `timeout_min`. The option `cluster` is `slurm`, or `local` to run without SLURM.
      folder: folder for the files of submitit and for `jobs.json`, which has the job ID of each workdir.

    Raises:
      UserError: submitit is not installed, SLURM is not available, or an option is invalid.
    """

    stops_jobs = False

    def __init__(self, jobs: int | None, options: Mapping[str, Any], folder: str):
        try:
            import submitit
        except ModuleNotFoundError:
            raise UserError("'slurm' needs submitit: pip install 'jaxcnn[slurm]'", field='--executor') from None
        options = dict(options)
        self._cluster = options.pop('cluster', 'slurm')
        if self._cluster not in ('slurm', 'local'):
            raise UserError(f'expected slurm or local, got {self._cluster!r}', field='--slurm=cluster')
        self.slots = jobs or _MAX_JOBS
        limit = {'slurm_array_parallelism': jobs} if jobs else {}
        try:
            self._executor = submitit.AutoExecutor(folder, cluster=self._cluster, slurm_max_num_timeout=_MAX_TIMEOUTS)
            self._executor.update_parameters(name='jaxcnn', **limit, **options)
        except (RuntimeError, NameError, TypeError, ValueError) as e:
            raise UserError(' '.join(str(e).split())[:300], field='--executor=slurm') from e
        self._folder, self._ids_file = folder, os.path.join(folder, 'jobs.json')

    def start(self, jobs: Sequence[Job]) -> list[Handle]:
        """Submit the jobs as an array, except those that an earlier command has submitted and that have not ended."""
        ids: dict[str, str] = read_json(self._ids_file) if os.path.exists(self._ids_file) else {}
        submitted = {job: earlier for job in jobs if (earlier := self._earlier_job(ids.get(job.folder)))}
        new = [job for job in jobs if job not in submitted]
        if new:
            with self._executor.batch():
                submitted.update({job: self._executor.submit(SubmittedJob(job)) for job in new})
        write_json(self._ids_file, {**ids, **{job.folder: submitted[job].job_id for job in new}})
        return [SlurmHandle(submitted[job]) for job in jobs]

    def _earlier_job(self, job_id: str | None) -> Any:
        """Return the job with this ID if it is pending or running, and otherwise None."""
        if job_id is None or self._cluster != 'slurm':
            return None
        import submitit
        job: Any = submitit.SlurmJob(self._folder, job_id)
        return None if job.done(force_check=True) else job
