"""Learning-rate schedules by name, with their arguments and the warm-up before them."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import optax

from jaxcnn import config as cfg
from jaxcnn.errors import UserError, check_bool, counted, name_field, unknown
from jaxcnn.registry import Registry
from jaxcnn.timeline import Timeline

F = TypeVar('F', bound=Callable[..., optax.Schedule])


class Interval(NamedTuple):
    """The `steps` steps of a run that a schedule covers, from step `start` on."""

    start: int
    steps: int
    timeline: Timeline

    def step_at(self, moment: Any, field: str) -> int:
        """Return the step of the schedule at a moment, which is a duration from the start of the run."""
        return self.timeline.steps(cfg.parse_duration(moment, field)) - self.start

    def steps_of(self, duration: Any, field: str) -> int:
        """Return the number of steps of a duration, wherever in the schedule it begins.

        Raises:
          UserError: the number changes with the batch size during the schedule.
        """
        parsed, timeline = cfg.parse_duration(duration, field), self.timeline
        starts = self.start, *timeline.batch_size_changes(self.start, self.start + self.steps)
        numbers = {timeline.steps(parsed, start) for start in starts}
        if len(numbers) > 1:
            raise UserError(f'{cfg.to_dict(parsed)} is no fixed number of steps, as config.batch_schedule changes the batch '
                            'size meanwhile', field=field, hint='give it in steps')
        return numbers.pop()


def _constant(lr: float, interval: Interval) -> optax.Schedule:
    """Keep the learning rate constant."""
    return optax.constant_schedule(lr)


def _exponential(lr: float, interval: Interval, decay_rate: float = 0.94,
                 every: Any = cfg.Duration('epochs', 2),  # noqa: B008
                 staircase: bool = False) -> optax.Schedule:
    """Multiply the learning rate by `decay_rate` in the course of each `every`, or with `staircase` at its end."""
    if not decay_rate > 0:
        raise UserError(f'schedule exponential: decay_rate must be above 0, got {decay_rate!r}')
    return optax.exponential_decay(lr, interval.steps_of(every, 'schedule exponential: every'), decay_rate,
                                   staircase=staircase)


def _step(lr: float, interval: Interval, at: Sequence[Any] = ({'fraction': 0.5}, {'fraction': 0.75}),
          factor: float = 0.1) -> optax.Schedule:
    """Multiply the learning rate by `factor` at each of the moments `at`, durations from the start of the run."""
    if not isinstance(at, (list, tuple)):
        raise UserError(f'schedule step: at must be a sequence of durations, got {at!r}')
    steps = [interval.step_at(moment, f'schedule step: at[{i}]') for i, moment in enumerate(at)]
    if len(set(steps)) < len(steps):
        raise UserError(f'schedule step: two of {at!r} fall on one step')
    return optax.piecewise_constant_schedule(lr, dict.fromkeys(steps, factor))


def _cosine(lr: float, interval: Interval, end_factor: float = 0.0) -> optax.Schedule:
    """Follow half a cosine from the learning rate down to `end_factor` times it (Loshchilov & Hutter 2017)."""
    return optax.cosine_decay_schedule(lr, interval.steps, alpha=end_factor)


def _polynomial(lr: float, interval: Interval, power: float = 1.0, end_factor: float = 0.0) -> optax.Schedule:
    """Decrease the learning rate to `end_factor` times it, as (1 - t)^power."""
    if not power > 0:
        raise UserError(f'schedule polynomial: power must be above 0, got {power!r}')
    return optax.polynomial_schedule(lr, lr * end_factor, power, interval.steps)


def _one_cycle(lr: float, interval: Interval, pct_start: float = 0.3, div_factor: float = 25.0,
               final_div_factor: float = 1e4, reach_end: bool = False) -> optax.Schedule:
    """Rise by a cosine from lr / div_factor in the first `pct_start` of the steps, then fall to
    lr / (div_factor * final_div_factor) (Smith & Topin 2018).

    See `optax.cosine_onecycle_schedule`. With `reach_end`, as in PyTorch, the last step has the lowest learning rate, and
    the peak is one step earlier.
    """
    if not 0 < pct_start < 1:
        raise UserError(f'schedule one_cycle: pct_start must be between 0 and 1, got {pct_start!r}')
    if not reach_end:
        return optax.cosine_onecycle_schedule(interval.steps, lr, pct_start, div_factor, final_div_factor)
    peak, last = pct_start * interval.steps - 1, interval.steps - 1
    if not 0 < peak < last:
        raise UserError(f'schedule one_cycle: with reach_end, pct_start must leave a step on both sides of the peak, '
                        f'got {pct_start!r} of {interval.steps} steps')
    return optax.piecewise_interpolate_schedule('cosine', lr / div_factor, {
        peak: div_factor, last: 1 / (div_factor * final_div_factor)})


def _triangle(lr: float, interval: Interval, peak: float = 0.23, start_factor: float = 0.2,
              end_factor: float = 0.07) -> optax.Schedule:
    """Rise linearly from `start_factor` times the learning rate, then fall linearly to `end_factor` times it.

    The peak is at the fraction `peak` of the steps.
    """
    top = int(peak * interval.steps)
    if not 0 < top < interval.steps:
        raise UserError(f'schedule triangle: peak must leave steps on both sides, got {peak!r} of {interval.steps} steps')
    return optax.join_schedules([optax.linear_schedule(lr * start_factor, lr, top),
                                 optax.linear_schedule(lr, lr * end_factor, interval.steps - top)], [top])


def _plateau(lr: float, interval: Interval, factor: float = 0.1, patience: int = 5, rtol: float = 1e-4, atol: float = 0.0,
             cooldown: int = 0, min_scale: float = 0.0, metric: str = 'loss') -> optax.Schedule:
    """Multiply the learning rate by `factor` when a validation metric has not improved for `patience` evaluations.

    `metric` is the loss or another metric of the task. Of a metric that is better when it is larger, such as the accuracy,
    the schedule follows the error, 1 less the metric. `optax.contrib.reduce_on_plateau` documents the other arguments. The
    optimizer applies the factor (see `optim`).
    """
    return optax.constant_schedule(lr)


PLATEAU_DEFAULTS = {name: p.default for name, p in list(inspect.signature(_plateau).parameters.items())[2:]}


def plateau_metric(schedule: cfg.Choice) -> str:
    """Return the name of the validation metric that a schedule follows; '' for all schedules but `plateau`."""
    return str({**PLATEAU_DEFAULTS, **schedule.args}['metric']) if schedule.name == 'plateau' else ''


_SCHEDULES: Registry[Callable[..., optax.Schedule]] = Registry('schedule')
for _factory in (_constant, _exponential, _step, _cosine, _polynomial, _one_cycle, _triangle, _plateau):
    _SCHEDULES.add(_factory.__name__.removeprefix('_'), _factory)


def register(factory: F) -> F:
    """Make a function `(learning_rate, interval, ...) -> optax.Schedule` known to `config.optim.schedule` under its name.

    The schedule begins at step 0 of the interval, whose `steps` say how long it is. Further arguments of the function can be
    set in the config.
    """
    _SCHEDULES.add(factory.__name__, factory)
    return factory


def names() -> list[str]:
    """Return the names of the schedules."""
    return _SCHEDULES.names()


def get_factory(choice: cfg.Choice) -> Callable[..., optax.Schedule]:
    """Return the function that makes the schedule from a learning rate, an `Interval` and the arguments.

    Raises:
      UserError: the schedule or one of its arguments is unknown.
    """
    factory = _SCHEDULES.get(choice.name)
    parameters = inspect.signature(factory).parameters
    known = list(parameters)[2:]
    for name, value in choice.args.items():
        if name not in known:
            raise unknown(f'argument of schedule {choice.name}', name, known)
        check_bool(f'schedule {choice.name}: {name}', parameters[name].default, value)
    return factory


def _check_schedule(name: str, schedule: Any) -> None:
    """Raise a UserError unless a schedule can be called in a compiled step and returns a number."""
    if not callable(schedule):
        raise UserError(f'the function of {name!r} returns {type(schedule).__name__}, and must return an optax.Schedule: a '
                        'function from the step to the learning rate')

    def check_rate(step: jax.Array) -> None:
        rate = schedule(step)
        if not isinstance(rate, int | float | np.number | np.ndarray | jax.Array) or np.ndim(rate):
            returned = f'an array of shape {rate.shape}' if hasattr(rate, 'shape') else type(rate).__name__
            raise UserError(f'the schedule of {name!r} returns {returned}, and must return a number, the learning rate')
    try:
        jax.eval_shape(check_rate, jax.ShapeDtypeStruct((), np.int32))
    except jax.errors.ConcretizationTypeError as e:
        raise UserError(f'the schedule of {name!r} cannot be compiled: it uses the step as a Python number, but the step is '
                        'an array', hint='jnp.where(step < n, a, b) replaces `a if step < n else b`') from e


def make_schedule(choice: cfg.Choice, lr: float, warmup: cfg.Duration | None, timeline: Timeline, start: int, end: int,
                  field: str = 'config.optim') -> optax.Schedule:
    """Return the learning rate as a function of the step of a stage, whose step 0 is step `start` of the run.

    Step n = 1..w of the warm-up has n/w of the peak learning rate; the schedule covers the steps after it.

    Args:
      choice: the schedule and its arguments.
      lr: the peak learning rate.
      warmup: length of the warm-up; None for none.
      timeline: that of the run.
      start, end: the first step of the stage, and the first one after it.
      field: the group of the config that holds the schedule, for errors.

    Raises:
      UserError: the schedule or one of its arguments is unknown or wrong, or the warm-up is as long as the stage.
    """
    factory = get_factory(choice)
    warmup_steps = timeline.steps(warmup, start) if warmup else 0
    if warmup_steps == end - start == 1:  # both were rounded up, as with a few images; the step has the peak rate either way
        warmup_steps = 0
    if warmup_steps >= end - start:
        raise UserError(f'{cfg.to_dict(warmup)} is {counted(warmup_steps, "step")}, and the stage is over after '
                        f'{end - start}', field=f'{field}.warmup', hint='train longer, or set a shorter warm-up or None')
    steps = end - start - warmup_steps
    described = f'{choice.name} with {dict(choice.args)}'
    try:
        with name_field(f'{field}.schedule'):
            schedule = factory(lr, Interval(start + warmup_steps, steps, timeline), **choice.args)
            _check_schedule(choice.name, schedule)
        samples = {step: float(schedule(step)) for step in {0, 1, steps // 4, steps // 2, 3 * steps // 4, steps - 1}}
    except (TypeError, ValueError, ZeroDivisionError, OverflowError) as e:
        raise UserError(f'{described}: {e}', field=f'{field}.schedule') from e
    for step, rate in samples.items():
        if not 0 <= rate < math.inf:
            raise UserError(f'{described}: a learning rate of {rate:.4g} at step {start + warmup_steps + step}',
                            field=f'{field}.schedule')
    if not warmup_steps:
        return schedule
    ramp = optax.linear_schedule(lr / warmup_steps, lr * (warmup_steps + 1) / warmup_steps, warmup_steps)
    return optax.join_schedules([ramp, schedule], [warmup_steps])
