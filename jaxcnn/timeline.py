"""Where a run stands at each step: durations in steps, epochs or fractions of the run, as numbers of steps."""

import math
from dataclasses import dataclass

from jaxcnn.config import Config, Duration
from jaxcnn.errors import UserError


@dataclass(frozen=True)
class Phase:
    """A stretch of steps, from `start` up to the next phase, that runs one compiled program."""

    start: int
    batch_size: int
    stage: int  # which optimizer
    bn_frozen: bool


def shown_epoch(epoch: float, duration: Duration) -> float:
    """`epoch` as people read it: what a run's last batch has of the next epoch is left out, not 40.01 of 40 epochs."""
    return duration.value if duration.unit == 'epochs' and 0 < epoch - duration.value < 1 else epoch


class Timeline:
    """Where a run stands at each step: the one place that turns durations into steps.

    Images are drawn in one stream, epoch after epoch, in batches that may reach over an epoch's end; so each
    epoch holds every image once whatever the batch size, and `epochs` are passed images over `num_train`.

    Args:
      config: the run.
      num_train: images in the training part.
    """

    def __init__(self, config: Config, num_train: int):
        self._config = config
        self.num_train = num_train
        self._next: dict[Duration, tuple[int, int]] = {}  # every -> (from, next): the answer for all steps between
        self._next_logged = (0, 0)  # the same, of `next_logged`
        self._sizes = [(0, 0, config.batch_size)]  # (first step, images before it, batch size)
        for i, (when, size) in enumerate(config.batch_schedule):
            where = f'config.batch_schedule[{i}]'
            if size < 1:
                raise UserError(f'expected a batch size of at least 1, got {size!r}', field=where)
            start = self.steps(when)
            if start <= self._sizes[-1][0]:
                raise UserError(f'begins at step {start}, not after the one before it', field=where)
            self._sizes.append((start, self.examples(start), size))
        self.total = self.steps(config.duration)
        self.stages = [0]
        for i, switch in enumerate(config.optim.switch):
            start = self.steps(switch.at)
            if not self.stages[-1] < start < self.total:
                raise UserError(f'step {start} is not between the stage before it and the end of the run at step '
                                f'{self.total}', field=f'config.optim.switch[{i}].at')
            self.stages.append(start)
        frozen = self.total if config.freeze_bn is None else self.steps(config.freeze_bn)
        for where, start in [('config.freeze_bn', 0 if config.freeze_bn is None else frozen),
                             (f'config.batch_schedule[{len(self._sizes) - 2}]', self._sizes[-1][0])]:
            if start >= self.total:
                raise UserError(f'begins at step {start}, but the run ends at step {self.total}', field=where)
        starts = sorted({s for s, _, _ in self._sizes} | set(self.stages) | {frozen})
        self.phases = [Phase(s, self._size_at(s)[2], sum(s >= b for b in self.stages) - 1, s >= frozen)
                       for s in starts if s < self.total]

    def _size_at(self, step: int) -> tuple[int, int, int]:
        return [entry for entry in self._sizes if entry[0] <= step][-1]

    def examples(self, step: int) -> int:
        """Images drawn before `step`."""
        start, before, size = self._size_at(step)
        return before + (step - start) * size

    def epoch(self, step: int) -> float:
        """Passes over the training part before `step`."""
        return self.examples(step) / self.num_train

    def steps(self, duration: Duration, since: int = 0) -> int:
        """The steps, from step `since` on, in which `duration` passes: rounded up, at least 1 unless the duration is 0."""
        unit, value = duration.unit, duration.value
        if not value:
            return 0
        if unit == 'fraction':
            unit, value = self._config.duration.unit, value * self._config.duration.value
            if self._config.duration.unit == 'fraction':
                raise UserError('the length of the run cannot be a fraction of itself', field='config.duration')
        if unit == 'steps':
            return max(1, math.ceil(value - 1e-9))
        images = self.examples(since) + value * self.num_train
        start, before, size = [entry for entry in self._sizes if entry[1] <= images][-1]
        return max(1, start + math.ceil((images - before) / size - 1e-9) - since)

    def rounding(self, multiple: int = 1) -> str:
        """One line for a run whose length in epochs is exceeded by more than 5 %, as its last step is a whole one; else ''.

        Args:
          multiple: batch sizes must be multiples of it.
        """
        duration, images, passed = self._config.duration, self.examples(self.total), self.epoch(self.total)
        if duration.unit != 'epochs' or passed <= 1.05 * duration.value:
            return ''
        wanted, size = duration.value * self.num_train, self._sizes[-1][2]
        sizes = range(multiple, min(size, self.num_train) + 1, multiple) if len(self._sizes) == 1 else ()
        whole = [n for n in sizes if wanted % n == 0]
        remedy = (f'config.batch_size={whole[-1]} gives exactly {duration.value:g}' if whole else
                  'a smaller batch size comes nearer')
        return (f'config.duration: {duration.value:g} epochs are {wanted:g} images, which whole steps of {size} round up to '
                f'{images} images, {passed:.4g} epochs; {remedy}')

    def growth(self, start: int, end: int) -> list[int]:
        """The steps between `start` and `end` at which the batch size changes."""
        return [first for first, _, _ in self._sizes if start < first < end]

    def phase(self, step: int) -> Phase:
        """The phase that `step` belongs to."""
        return [p for p in self.phases if p.start <= step][-1]

    def phase_end(self, step: int) -> int:
        """The first step after `step` that belongs to another phase, or the end of the run."""
        return min((p.start for p in self.phases if p.start > step), default=self.total)

    def next_multiple(self, step: int, every: Duration) -> int:
        """The first step after `step` at which `every` has passed a whole number of times, or the end."""
        known = self._next.get(every, (0, 0))
        if known[0] <= step < known[1]:
            return known[1]
        run = self._config.duration
        share = (self.epoch(step) if run.unit == 'epochs' else step) / run.value
        passed = {'steps': step, 'epochs': self.epoch(step), 'fraction': share}[every.unit]
        count = max(0, math.floor(passed / every.value) - 1)
        at = 0
        while at <= step:
            count += 1
            at = self.steps(Duration(every.unit, count * every.value))
        self._next[every] = (step, min(at, self.total))
        return min(at, self.total)

    def is_multiple(self, step: int, every: Duration) -> bool:
        """Whether `every` has just passed a whole number of times, or the run has ended."""
        return step > 0 and self.next_multiple(step - 1, every) == step

    def next_logged(self, step: int) -> int:
        """The first step after `step` that ends an interval of logged metrics: a multiple of `config.log_every`, the end of
        an epoch that no such multiple falls into, or the end of the run."""
        known = self._next_logged
        if not known[0] <= step < known[1]:
            every, passed = self._config.log_every, math.floor(self.epoch(step))
            begin = self.steps(Duration('epochs', passed)) if passed else 0
            end = self.next_multiple(step, Duration('epochs', 1))
            at = end if self.next_multiple(begin, every) > end else self.next_multiple(step, every)
            self._next_logged = known = (step, at)
        return known[1]
