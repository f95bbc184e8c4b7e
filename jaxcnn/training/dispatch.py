"""Dispatches: groups of steps that are handed to the device at once, and the queue of those that are under way."""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from jaxcnn.config import Duration
from jaxcnn.timeline import Timeline

MAX_DISPATCHES = 4  # dispatches that may wait behind the one that is running
MAX_WAITING_BYTES = 1 << 31  # temporary memory of the waiting dispatches on a CPU, which allocates it when they are enqueued


def dispatch_end(timeline: Timeline, step: int, steps_per_dispatch: int, boundaries: Sequence[Duration],
                 variable_length: bool) -> int:
    """Return the step at which the dispatch that begins at `step` ends.

    Full dispatches end at multiples of `steps_per_dispatch`. A dispatch also ends before the next phase, at the checkpoints
    of `config.checkpoint.at`, and where one of `boundaries` has passed a whole number of times. The result depends on `step`
    alone, so that a resumed run has the same dispatches.

    Args:
      timeline: steps of the run.
      step: first step of the dispatch.
      steps_per_dispatch: number of steps of a full dispatch.
      boundaries: times between evaluations, and between checkpoints.
      variable_length: whether one program runs any number of steps. If not, a dispatch that is not full has one step, so
        that a run needs only two programs.
    """
    end = min((step // steps_per_dispatch + 1) * steps_per_dispatch, timeline.phase_end(step),
              timeline.next_permanent_checkpoint(step), *(timeline.next_multiple(step, every) for every in boundaries))
    is_full = end - step == steps_per_dispatch
    return end if is_full or variable_length else step + 1


@dataclasses.dataclass
class Dispatch:
    """Steps that were handed to the device, and their scalars there.

    Attributes:
      start: first step.
      num_steps: number of steps.
      num_images: number of images in all steps.
      scalars: scalars by name, (steps,) each, on the device.
      is_logged: whether a logged interval ends in the dispatch.
    """

    start: int
    num_steps: int
    num_images: int
    scalars: dict[str, Any]
    is_logged: bool

    @property
    def end(self) -> int:
        """The step after the last one."""
        return self.start + self.num_steps


class DispatchQueue:
    """Dispatches whose scalars are still on the device, oldest first.

    Attributes:
      max_waiting: number of dispatches that may wait for the device.
    """

    def __init__(self) -> None:
        self.max_waiting = MAX_DISPATCHES
        self._dispatches: collections.deque[Dispatch] = collections.deque()
        self._log_boundary = 0  # end of the newest logged dispatch that is due

    def __len__(self) -> int:
        return len(self._dispatches)

    def limit_memory(self, bytes_per_dispatch: int) -> None:
        """Reduce `max_waiting` so that waiting dispatches have at most `MAX_WAITING_BYTES` of temporary memory."""
        self.max_waiting = min(self.max_waiting, MAX_WAITING_BYTES // max(1, bytes_per_dispatch))

    def append(self, dispatch: Dispatch) -> None:
        """Append a dispatch, and wait for the device until at most `max_waiting` dispatches wait behind the running one."""
        self._dispatches.append(dispatch)
        if len(self._dispatches) > self.max_waiting:
            jax.block_until_ready(self._dispatches[-self.max_waiting - 1].scalars)

    def popleft(self) -> Dispatch:
        """Remove and return the oldest dispatch."""
        return self._dispatches.popleft()

    def pop_due(self, is_display_due: Callable[[], bool]) -> Iterator[Dispatch]:
        """Remove and yield dispatches whose scalars are to be logged, or displayed if they are ready.

        Scalars of the newest dispatch are logged after the next one is enqueued, so that the device never waits for the
        host.

        Args:
          is_display_due: says whether the display should be updated.
        """
        newest = self._dispatches[-1]
        while self._dispatches and self._dispatches[0].start < self._log_boundary:
            yield self._dispatches.popleft()
        if newest.is_logged:
            self._log_boundary = newest.end
        while is_display_due() and self._dispatches and all(x.is_ready() for x in self._dispatches[0].scalars.values()):
            yield self._dispatches.popleft()
