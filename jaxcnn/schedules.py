"""Learning-rate schedules by name, their arguments, and the warm-up before them."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optax

from jaxcnn import config as cfg
from jaxcnn.errors import UserError, check_bool, name_field, unknown
from jaxcnn.timeline import Timeline


class Span(NamedTuple):
    """The steps that a schedule covers: `steps` of them, from `start` of the run on."""

    start: int
    steps: int
    timeline: Timeline

    def at(self, moment: Any, where: str) -> int:
        """The step of the schedule at a moment, a duration from the start of the run, given as its argument."""
        return self.timeline.steps(cfg.parse_duration(moment, where)) - self.start

    def length(self, duration: Any, where: str) -> int:
        """The steps of a duration given as its argument, anywhere in the schedule."""
        built, timeline = cfg.parse_duration(duration, where), self.timeline
        starts = self.start, *timeline.batch_size_changes(self.start, self.start + self.steps)
        found = {timeline.steps(built, s) for s in starts}
        if len(found) > 1:
            raise UserError(f'{cfg.to_dict(built)} is no fixed number of steps, as config.batch_schedule changes the batch '
                            'size meanwhile', field=where, hint='give it in steps')
        return found.pop()


def _constant(lr: float, span: Span) -> optax.Schedule:
    """The learning rate throughout."""
    return optax.constant_schedule(lr)


def _exponential(lr: float, span: Span, decay_rate: float = 0.94, every: Any = cfg.Duration('epochs', 2),  # noqa: B008
                 staircase: bool = False) -> optax.Schedule:
    """Times `decay_rate` after each `every`: smoothly, or in steps where `staircase`."""
    if not decay_rate > 0:
        raise UserError(f'schedule exponential: decay_rate must be above 0, got {decay_rate!r}')
    return optax.exponential_decay(lr, span.length(every, 'schedule exponential: every'), decay_rate,
                                   staircase=staircase)


def _step(lr: float, span: Span, at: Sequence[Any] = ({'fraction': 0.5}, {'fraction': 0.75}),
          factor: float = 0.1) -> optax.Schedule:
    """Times `factor` at each of the moments `at`, durations from the start of the run."""
    if not isinstance(at, (list, tuple)):
        raise UserError(f'schedule step: at must be a sequence of durations, got {at!r}')
    moments = [span.at(a, f'schedule step: at[{i}]') for i, a in enumerate(at)]
    if len(set(moments)) < len(moments):
        raise UserError(f'schedule step: two of {at!r} fall on one step')
    return optax.piecewise_constant_schedule(lr, dict.fromkeys(moments, factor))


def _cosine(lr: float, span: Span, end_factor: float = 0.0) -> optax.Schedule:
    """Half a cosine from the learning rate down to `end_factor` of it (Loshchilov & Hutter 2017)."""
    return optax.cosine_decay_schedule(lr, span.steps, alpha=end_factor)


def _polynomial(lr: float, span: Span, power: float = 1.0, end_factor: float = 0.0) -> optax.Schedule:
    """Down to `end_factor` of the learning rate, as (1 - t)^power."""
    if not power > 0:
        raise UserError(f'schedule polynomial: power must be above 0, got {power!r}')
    return optax.polynomial_schedule(lr, lr * end_factor, power, span.steps)


def _one_cycle(lr: float, span: Span, pct_start: float = 0.3, div_factor: float = 25.0,
               final_div_factor: float = 1e4, reach_end: bool = False) -> optax.Schedule:
    """Cosine up from lr / div_factor during `pct_start` of the steps, then down to lr / (div_factor * final_div_factor)
    (Smith & Topin 2018); see `optax.cosine_onecycle_schedule`. With `reach_end` the last step has the lowest rate, and the
    peak comes one step sooner, too, as in PyTorch."""
    if not 0 < pct_start < 1:
        raise UserError(f'schedule one_cycle: pct_start is a part of the steps, between 0 and 1, got {pct_start!r}')
    if reach_end:
        top = pct_start * span.steps - 1
        if not 0 < top < span.steps - 1:
            raise UserError(f'schedule one_cycle: with reach_end, pct_start must leave a step on both sides of the peak, '
                            f'got {pct_start!r} of {span.steps} steps')
        return optax.piecewise_interpolate_schedule('cosine', lr / div_factor, {
            top: div_factor, span.steps - 1: 1 / (div_factor * final_div_factor)})
    return optax.cosine_onecycle_schedule(span.steps, lr, pct_start, div_factor, final_div_factor)


def _triangle(lr: float, span: Span, peak: float = 0.23, start_factor: float = 0.2,
              end_factor: float = 0.07) -> optax.Schedule:
    """Straight up from `start_factor` of the learning rate, at the part `peak` of the steps down to `end_factor` of it."""
    top = int(peak * span.steps)
    if not 0 < top < span.steps:
        raise UserError(f'schedule triangle: peak must leave steps on both sides, got {peak!r} of {span.steps} steps')
    return optax.join_schedules([optax.linear_schedule(lr * start_factor, lr, top),
                                 optax.linear_schedule(lr, lr * end_factor, span.steps - top)], [top])


def _plateau(lr: float, span: Span, factor: float = 0.1, patience: int = 5, rtol: float = 1e-4, atol: float = 0.0,
             cooldown: int = 0, min_scale: float = 0.0) -> optax.Schedule:
    """Times `factor` when the validation loss has not improved for `patience` evaluations (see
    `optax.contrib.reduce_on_plateau` for the arguments)."""
    return optax.constant_schedule(lr)


PLATEAU_DEFAULTS = {name: p.default for name, p in list(inspect.signature(_plateau).parameters.items())[2:]}

SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    'constant': _constant, 'exponential': _exponential, 'step': _step, 'cosine': _cosine,
    'polynomial': _polynomial, 'one_cycle': _one_cycle, 'triangle': _triangle, 'plateau': _plateau,
}


def names() -> list[str]:
    """Schedules that a config may name."""
    return sorted(SCHEDULES)


def find(choice: cfg.Choice) -> Callable[..., optax.Schedule]:
    """What makes the schedule that is chosen, of a learning rate, a span and its arguments.

    Raises:
      UserError: an unknown schedule or argument.
    """
    if choice.name not in SCHEDULES:
        raise unknown('schedule', choice.name, names())
    kind = SCHEDULES[choice.name]
    known = list(inspect.signature(kind).parameters)[2:]
    for name, value in choice.args.items():
        if name not in known:
            raise unknown(f'argument of schedule {choice.name}', name, known)
        check_bool(f'schedule {choice.name}: {name}', inspect.signature(kind).parameters[name].default, value)
    return kind


def make(choice: cfg.Choice, lr: float, warmup: cfg.Duration | None, timeline: Timeline, start: int, end: int,
         where: str = 'config.optim') -> optax.Schedule:
    """Learning rate by step of a stage that runs from `start` to `end`; step 0 of it is `start`; `where` has its fields.

    The n-th of w warm-up steps (n = 1..w) has n/w of the peak; the schedule covers the steps after it.

    Raises:
      UserError: an unknown schedule or argument, or a warm-up as long as the stage.
    """
    kind = find(choice)
    ramp = timeline.steps(warmup, start) if warmup else 0
    if ramp >= end - start:
        raise UserError(f'{cfg.to_dict(warmup)} is {ramp} steps, and the stage is over after {end - start}',
                        field=f'{where}.warmup', hint='train longer, or set a shorter warm-up or None')
    steps = end - start - ramp
    try:
        with name_field(f'{where}.schedule'):
            main = kind(lr, Span(start + ramp, steps, timeline), **choice.args)
        rates = {n: float(main(n)) for n in {0, 1, steps // 4, steps // 2, 3 * steps // 4, steps - 1}}
    except (TypeError, ValueError, ZeroDivisionError, OverflowError) as e:
        raise UserError(f'{choice.name} with {dict(choice.args)}: {e}', field=f'{where}.schedule') from e
    for n, rate in rates.items():
        if not 0 <= rate < math.inf:
            raise UserError(f'{choice.name} with {dict(choice.args)}: a learning rate of {rate:.4g} at step '
                            f'{start + ramp + n}', field=f'{where}.schedule')
    if not ramp:
        return main
    return optax.join_schedules([optax.linear_schedule(lr / ramp, lr * (ramp + 1) / ramp, ramp), main], [ramp])
