"""Timeline: conversion of durations in steps, epochs or fractions of a run into numbers of steps."""

import bisect
import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple

from jaxcnn.config import Config, Duration
from jaxcnn.errors import UserError


@dataclass(frozen=True)
class Phase:
    """A range of steps, from `start` to the start of the next phase, with one compiled program.

    Attributes:
      start: the first step.
      batch_size: number of images in a step.
      stage: index of the optimizer.
      bn_frozen: whether BatchNorm uses its running statistics.
      image_size: shorter side to which training images are resized after augmentation; 0 leaves them as they are.
    """

    start: int
    batch_size: int
    stage: int
    bn_frozen: bool
    image_size: int = 0

    @property
    def program(self) -> 'Phase':
        """The phase as if it began at step 0. Phases for which it is equal have the same compiled program."""
        return dataclasses.replace(self, start=0)


class _BatchSize(NamedTuple):
    start: int  # first step with this batch size
    examples: int  # images drawn before that step
    size: int


def displayed_epoch(epoch: float, duration: Duration) -> float:
    """Return the epoch as it is displayed: 40 at the end of a run of 40 epochs, although its last batch reaches to 40.01."""
    return duration.value if duration.unit == 'epochs' and 0 < epoch - duration.value < 1 else epoch


class Timeline:
    """The steps of a run: its length, its phases, and the steps of evaluations, checkpoints and logs.

    Images are drawn in one stream, epoch after epoch, in batches that may extend into the next epoch. Each epoch therefore
    contains every image once for any batch size, and `epochs` is the number of drawn images divided by `num_train`.

    Args:
      config: the config of the run.
      num_train: number of training images.

    Attributes:
      config, num_train: the arguments.
      total: number of steps of the run.
      stages: the first step of each stage.
      phases: the phases, in order.
      pseudo_label_steps: the steps before which pseudo-labels are predicted, in order.
      pruning_steps: the steps after which `config.pruning` computes masks, in order.
      permanent_checkpoints: the steps of `config.checkpoint.at`, in order.

    Raises:
      UserError: a stage, a batch size or a size of images begins outside the run, or not after the one before it; or
        pruning ends before it begins.
    """

    def __init__(self, config: Config, num_train: int):
        self.config = config
        self.num_train = num_train
        self._next_multiples: dict[Duration, tuple[int, int]] = {}  # (a, b): the multiple after steps a to b - 1 is b
        self._next_logged = (0, 0)  # likewise
        self._batch_sizes = [_BatchSize(0, 0, config.batch_size)]
        for i, (begin, size) in enumerate(config.batch_schedule):
            self._append_batch_size(begin, size, f'config.batch_schedule[{i}]')
        self.total = self.steps(config.duration)
        self.stages = [0]
        for i, switch in enumerate(config.optim.switch):
            start = self.steps(switch.at)
            if not self.stages[-1] < start < self.total:
                raise UserError(f'step {start} is not between the stage before it and the end of the run at step '
                                f'{self.total}', field=f'config.optim.switch[{i}].at')
            self.stages.append(start)
        freeze = self.total if config.freeze_bn is None else self.steps(config.freeze_bn)
        for field, start in [('config.freeze_bn', 0 if config.freeze_bn is None else freeze),
                             (f'config.batch_schedule[{len(self._batch_sizes) - 2}]', self._batch_sizes[-1].start)]:
            if start >= self.total:
                raise UserError(f'begins at step {start}, but the run ends at step {self.total}', field=field)
        self.permanent_checkpoints = sorted(
            step for step in {self.steps(duration) for duration in config.checkpoint.at} if step <= self.total)
        image_sizes, self.pseudo_label_steps = self._image_sizes(), self._pseudo_label_steps()
        self.pruning_steps = self._pruning_steps()
        starts = sorted({entry.start for entry in self._batch_sizes} | set(self.stages) | {freeze} | set(image_sizes)
                        | set(self.pseudo_label_steps))  # so that a dispatch ends there
        self.phases: list[Phase] = []
        for s in starts:
            if s < self.total:
                image_size = image_sizes.get(s, self.phases[-1].image_size if self.phases else 0)
                self.phases.append(Phase(s, self._batch_size_at(s).size, sum(s >= stage for stage in self.stages) - 1,
                                         s >= freeze, image_size))
        self._phase_starts = [phase.start for phase in self.phases]

    def _image_sizes(self) -> dict[int, int]:
        """Return the sizes of training images by the first steps that have them.

        Sizes that alternate by epoch follow the epoch of the first image of a step.
        """
        sizes: dict[int, int] = {}
        entries = self.config.data.train_size
        if entries and isinstance(entries[0], int):
            for epoch in range(math.ceil(self.epoch(self.total))):
                start = self.steps(Duration('epochs', epoch))
                sizes[start] = entries[self.examples(start) // self.num_train % len(entries)]  # type: ignore[assignment]
            return sizes
        for i, (begin, size) in enumerate(entries):  # type: ignore[misc]
            start, field = self.steps(begin), f'config.data.train_size[{i}]'
            if start <= max(sizes, default=-1):
                raise UserError(f'begins at step {start}, not after the one before it', field=field)
            if start >= self.total:
                raise UserError(f'begins at step {start}, but the run ends at step {self.total}', field=field)
            sizes[start] = size
        return sizes

    def _pseudo_label_steps(self) -> list[int]:
        config = self.config.semi_supervised
        if config is None:
            return []
        steps: list[int] = []
        step = self.steps(config.start)
        if step >= self.total:
            raise UserError(f'begins at step {step}, but the run ends at step {self.total}',
                            field='config.semi_supervised.start')
        while step < self.total:
            duration, last = (config.every, steps[-1]) if steps else (config.start, -1)
            # where an epoch begins within the batch before, its images are to be drawn by the labels
            is_start = self.examples(step) % self.num_train == 0
            begins_within = not is_start and self.epochs_begun(step - 1) < self.epochs_begun(step)
            is_moved = duration.unit != 'steps' and begins_within and step - 1 > last
            steps.append(step - 1 if is_moved else step)
            step = steps[-1] + self.steps(config.every, since=steps[-1])
        return steps

    def _pruning_steps(self) -> list[int]:
        config = self.config.pruning
        if config is None or config.masks:
            return []
        begin, end = self.steps(config.begin), self.steps(config.end)
        if not begin <= end <= self.total:
            reason = f'the run ends at step {self.total}' if begin <= end else f'pruning begins at step {begin}'
            raise UserError(f'is step {end}, but {reason}', field='config.pruning.end')
        if config.method == 'movement' and not end:
            raise UserError('movement needs gradients of earlier steps, and all is pruned before the first step',
                            field='config.pruning.end', hint='set a later one')
        steps = [begin]
        while (step := steps[-1] + self.steps(config.every, since=steps[-1])) < end:
            steps.append(step)
        return steps if begin == end else [*steps, end]

    def epochs_begun(self, step: int) -> int:
        """Return the number of epochs that have begun before `step`."""
        return -(-self.examples(step) // self.num_train)

    def _append_batch_size(self, begin: Duration, size: int, field: str) -> None:
        if size < 1:
            raise UserError(f'expected a batch size of at least 1, got {size!r}', field=field)
        start = self.steps(begin)
        if start <= self._batch_sizes[-1].start:
            raise UserError(f'begins at step {start}, not after the one before it', field=field)
        self._batch_sizes.append(_BatchSize(start, self.examples(start), size))

    def _batch_size_at(self, step: int) -> _BatchSize:
        return [entry for entry in self._batch_sizes if entry.start <= step][-1]

    def examples(self, step: int) -> int:
        """Return the number of images that are drawn before `step`."""
        entry = self._batch_size_at(step)
        return entry.examples + (step - entry.start) * entry.size

    def epoch(self, step: int) -> float:
        """Return the number of passes over the training images before `step`."""
        return self.examples(step) / self.num_train

    def steps(self, duration: Duration, since: int = 0) -> int:
        """Return the number of steps that `duration` takes from step `since` on.

        It is rounded up, and at least 1 unless the duration is 0.
        """
        unit, value = duration.unit, duration.value
        if not value:
            return 0
        if unit == 'fraction':
            unit, value = self.config.duration.unit, value * self.config.duration.value
            if self.config.duration.unit == 'fraction':
                raise UserError('the length of the run cannot be a fraction of itself', field='config.duration')
        if unit == 'steps':
            return max(1, math.ceil(value - 1e-9))
        examples = self.examples(since) + value * self.num_train
        entry = [entry for entry in self._batch_sizes if entry.examples <= examples][-1]
        return max(1, entry.start + math.ceil((examples - entry.examples) / entry.size - 1e-9) - since)

    def rounding_message(self, multiple: int = 1) -> str:
        """Return a message if rounding to whole steps makes the run more than 5 % longer than its epochs, otherwise ''.

        Args:
          multiple: the number that batch sizes must be multiples of.
        """
        duration, examples, epochs = self.config.duration, self.examples(self.total), self.epoch(self.total)
        if duration.unit != 'epochs' or epochs <= 1.05 * duration.value:
            return ''
        exact, size = duration.value * self.num_train, self._batch_sizes[-1].size
        sizes = range(multiple, min(size, self.num_train) + 1, multiple) if len(self._batch_sizes) == 1 else ()
        exact_sizes = [n for n in sizes if exact % n == 0]
        remedy = (f'config.batch_size={exact_sizes[-1]} gives exactly {duration.value:g}' if exact_sizes else
                  'a smaller batch size comes nearer')
        return (f'config.duration: {duration.value:g} epochs are {exact:g} images, which whole steps of {size} round up to '
                f'{examples} images, {epochs:.4g} epochs; {remedy}')

    def batch_size_changes(self, start: int, end: int) -> list[int]:
        """Return the steps between `start` and `end` at which the batch size changes."""
        return [entry.start for entry in self._batch_sizes if start < entry.start < end]

    def phase(self, step: int) -> Phase:
        """Return the phase that contains `step`."""
        return self.phases[bisect.bisect_right(self._phase_starts, step) - 1]

    def phase_end(self, step: int) -> int:
        """Return the start of the phase after the one that contains `step`, or the end of the run."""
        following = bisect.bisect_right(self._phase_starts, step)
        return self._phase_starts[following] if following < len(self.phases) else self.total

    def next_multiple(self, step: int, every: Duration) -> int:
        """Return the first step after `step` that is a multiple of the duration `every`, or the end of the run."""
        begin, end = self._next_multiples.get(every, (0, 0))
        if begin <= step < end:
            return end
        run = self.config.duration
        fraction = (self.epoch(step) if run.unit == 'epochs' else step) / run.value
        passed = {'steps': step, 'epochs': self.epoch(step), 'fraction': fraction}[every.unit]
        count = max(0, math.floor(passed / every.value) - 1)
        multiple = 0
        while multiple <= step:
            count += 1
            multiple = self.steps(Duration(every.unit, count * every.value))
        self._next_multiples[every] = (step, min(multiple, self.total))
        return min(multiple, self.total)

    def is_multiple(self, step: int, every: Duration) -> bool:
        """Return whether `step` is a multiple of the duration `every`, or the end of the run."""
        return step > 0 and self.next_multiple(step - 1, every) == step

    def next_permanent_checkpoint(self, step: int) -> int:
        """Return the first step of `permanent_checkpoints` after `step`, or the end of the run."""
        return next((later_step for later_step in self.permanent_checkpoints if later_step > step), self.total)

    def next_logged(self, step: int) -> int:
        """Return the first step after `step` at which training metrics are logged.

        Metrics are logged at each multiple of `config.log_every`, at the end of each epoch that has no such multiple, and at
        the end of the run.
        """
        begin, end = self._next_logged
        if not begin <= step < end:
            every, epochs = self.config.log_every, math.floor(self.epoch(step))
            epoch_start = self.steps(Duration('epochs', epochs)) if epochs else 0
            epoch_end = self.next_multiple(step, Duration('epochs', 1))
            has_multiple = self.next_multiple(epoch_start, every) <= epoch_end
            end = self.next_multiple(step, every) if has_multiple else epoch_end
            self._next_logged = step, end
        return end
