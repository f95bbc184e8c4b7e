"""An executor that runs jobs on this machine, each on its own cores and GPUs."""

import dataclasses
import os
import subprocess
from collections.abc import Mapping, Sequence

from jaxcnn.errors import UserError
from jaxcnn.processes import bound_command
from jaxcnn.studies.jobs import Executor, Handle, Job


@dataclasses.dataclass(frozen=True)
class Slot:
    """The part of the machine that a job uses.

    Attributes:
      index: number of the slot.
      cores: the CPU cores of the slot; None: all.
      gpus: the GPUs of the slot, as CUDA_VISIBLE_DEVICES names them; None: all.
    """

    index: int
    cores: frozenset[int] | None = None
    gpus: tuple[str, ...] | None = None


def make_slots(count: int, cores: Sequence[int], gpus: Sequence[str]) -> list[Slot]:
    """Divide the cores and the GPUs of the machine among `count` jobs.

    Raises:
      UserError: There are fewer cores or GPUs than jobs.
    """
    for what, devices in (('GPU', gpus), ('core', cores)):
        if devices and count > len(devices):
            raise UserError(f'{count} jobs at once need a {what} each, and there are {len(devices)}', field='--jobs')
    if count == 1:
        return [Slot(0)]

    def share(devices: Sequence, i: int) -> Sequence:
        return devices[i * len(devices) // count:(i + 1) * len(devices) // count]
    return [Slot(i, frozenset(share(cores, i)) if cores else None, tuple(share(gpus, i)) if gpus else None)
            for i in range(count)]


class LocalHandle(Handle):
    """A job that runs as a process on this machine."""

    def __init__(self, process: subprocess.Popen, slot: Slot):
        self._process, self.slot = process, slot

    def poll(self) -> int | None:
        """Return the exit code, or None while the job runs."""
        return self._process.poll()

    def stop(self, signum: int) -> None:
        """Send a signal to the process."""
        self._process.send_signal(signum)


class LocalExecutor(Executor):
    """Runs jobs as processes on this machine, which end together with this process.

    Args:
      jobs: number of jobs that run at the same time.
      environment: environment variables of the jobs.
      gpus: the GPUs of the machine.
    """

    def __init__(self, jobs: int, environment: Mapping[str, str], gpus: Sequence[str]):
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []
        self.slots = jobs
        self._slots = make_slots(jobs, cores, gpus)
        self._handles: list[LocalHandle] = []
        self._environment = dict(environment)

    def start(self, jobs: Sequence[Job]) -> list[Handle]:
        """Start a process for each job in the free slots."""
        used = [handle.slot for handle in self._handles if handle.poll() is None]
        free = [slot for slot in self._slots if slot not in used]
        handles = [LocalHandle(self._start(job, slot), slot) for job, slot in zip(jobs, free, strict=False)]
        self._handles += handles
        return list(handles)

    def _start(self, job: Job, slot: Slot) -> subprocess.Popen:
        environment = dict(self._environment)
        if slot.gpus is not None:
            environment['CUDA_VISIBLE_DEVICES'] = ','.join(slot.gpus)
        command = bound_command(job.command(), os.getpid(), slot.cores or ())
        with open(job.log_file, 'ab') as log_file:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file,
                                    env=environment,
                                    start_new_session=True)  # jobs receive signals from this process only
