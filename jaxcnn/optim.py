"""Optimizers and learning-rate schedules: optax chains from the config."""

import difflib
import functools
import inspect
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from jaxcnn import config as cfg
from jaxcnn.errors import UserError, unknown, within
from jaxcnn.timeline import Timeline

# these need more than gradients (the loss as a function, gradients per example), or other parameters in evaluation
# or take no schedule for their learning rate
_NOT_HERE = {'lbfgs', 'sophia', 'dpsgd', 'schedule_free_sgd', 'schedule_free_adamw', 'optimistic_adam', 'rprop', 'sm3',
             'noisy_sgd'}  # its state holds a key, which is no array of numbers


@functools.cache
def _optimizers() -> dict[str, Callable[..., optax.GradientTransformation]]:
    found: dict[str, Callable[..., optax.GradientTransformation]] = {}
    for module in (optax.contrib, optax):
        for name, make in inspect.getmembers(module, inspect.isfunction):
            if name.startswith(('_', 'scale_by')) or name in _NOT_HERE:
                continue
            if next(iter(inspect.signature(make).parameters), None) == 'learning_rate':
                found[name] = make
    return found


def optimizer_names() -> list[str]:
    """Optimizers that a config may name: those of optax and optax.contrib that need gradients alone."""
    return sorted(_optimizers())


class _Span(NamedTuple):
    """The steps that a schedule covers: `steps` of them, from `start` of the run on."""

    start: int
    steps: int
    timeline: Timeline

    def at(self, moment: Any, where: str) -> int:
        """The step of the schedule at a moment, a duration from the start of the run, given as its argument."""
        return self.timeline.steps(cfg._build_duration(moment, where)) - self.start

    def length(self, duration: Any, where: str) -> int:
        """The steps of a duration given as its argument, anywhere in the schedule."""
        built, timeline = cfg._build_duration(duration, where), self.timeline
        found = {timeline.steps(built, s) for s in (self.start, *timeline.growth(self.start, self.start + self.steps))}
        if len(found) > 1:
            raise UserError(f'{where}: {cfg.to_dict(built)} is no fixed number of steps, as config.batch_schedule changes '
                            'the batch size meanwhile; give it in steps')
        return found.pop()


def _constant(lr: float, span: _Span) -> optax.Schedule:
    """The learning rate throughout."""
    return optax.constant_schedule(lr)


def _exponential(lr: float, span: _Span, decay_rate: float = 0.94, every: Any = cfg.Duration('epochs', 2),  # noqa: B008
                 staircase: bool = False) -> optax.Schedule:
    """Times `decay_rate` after each `every`: smoothly, or in steps where `staircase`."""
    if not decay_rate > 0:
        raise UserError(f'schedule exponential: decay_rate must be above 0, got {decay_rate!r}')
    return optax.exponential_decay(lr, span.length(every, 'schedule exponential: every'), decay_rate,
                                   staircase=staircase)


def _step(lr: float, span: _Span, at: Sequence[Any] = ({'fraction': 0.5}, {'fraction': 0.75}),
          factor: float = 0.1) -> optax.Schedule:
    """Times `factor` at each of the moments `at`, durations from the start of the run."""
    if not isinstance(at, (list, tuple)):
        raise UserError(f'schedule step: at must be a sequence of durations, got {at!r}')
    moments = [span.at(a, f'schedule step: at[{i}]') for i, a in enumerate(at)]
    if len(set(moments)) < len(moments):
        raise UserError(f'schedule step: two of {at!r} fall on one step')
    return optax.piecewise_constant_schedule(lr, dict.fromkeys(moments, factor))


def _cosine(lr: float, span: _Span, end_factor: float = 0.0) -> optax.Schedule:
    """Half a cosine from the learning rate down to `end_factor` of it (Loshchilov & Hutter 2017)."""
    return optax.cosine_decay_schedule(lr, span.steps, alpha=end_factor)


def _polynomial(lr: float, span: _Span, power: float = 1.0, end_factor: float = 0.0) -> optax.Schedule:
    """Down to `end_factor` of the learning rate, as (1 - t)^power."""
    if not power > 0:
        raise UserError(f'schedule polynomial: power must be above 0, got {power!r}')
    return optax.polynomial_schedule(lr, lr * end_factor, power, span.steps)


def _one_cycle(lr: float, span: _Span, pct_start: float = 0.3, div_factor: float = 25.0,
               final_div_factor: float = 1e4) -> optax.Schedule:
    """Cosine up from lr / div_factor during `pct_start` of the steps, then down to lr / (div_factor * final_div_factor)
    (Smith & Topin 2018); see `optax.cosine_onecycle_schedule`."""
    if not 0 < pct_start < 1:
        raise UserError(f'schedule one_cycle: pct_start is a part of the steps, between 0 and 1, got {pct_start!r}')
    return optax.cosine_onecycle_schedule(span.steps, lr, pct_start, div_factor, final_div_factor)


def _triangle(lr: float, span: _Span, peak: float = 0.23, start_factor: float = 0.2,
              end_factor: float = 0.07) -> optax.Schedule:
    """Straight up from `start_factor` of the learning rate, at the part `peak` of the steps down to `end_factor` of it."""
    top = int(peak * span.steps)
    if not 0 < top < span.steps:
        raise UserError(f'schedule triangle: peak must leave steps on both sides, got {peak!r} of {span.steps} steps')
    return optax.join_schedules([optax.linear_schedule(lr * start_factor, lr, top),
                                 optax.linear_schedule(lr, lr * end_factor, span.steps - top)], [top])


_PLATEAU_DEFAULTS: dict[str, Any] = dict(factor=0.1, patience=5, rtol=1e-4, atol=0.0, cooldown=0, min_scale=0.0)


def _plateau(lr: float, span: _Span, factor: float = 0.1, patience: int = 5, rtol: float = 1e-4, atol: float = 0.0,
             cooldown: int = 0, min_scale: float = 0.0) -> optax.Schedule:
    """Times `factor` when the validation loss has not improved for `patience` evaluations (see
    `optax.contrib.reduce_on_plateau` for the arguments)."""
    return optax.constant_schedule(lr)


_SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    'constant': _constant, 'exponential': _exponential, 'step': _step, 'cosine': _cosine,
    'polynomial': _polynomial, 'one_cycle': _one_cycle, 'triangle': _triangle, 'plateau': _plateau,
}


def schedule_names() -> list[str]:
    """Schedules that a config may name."""
    return sorted(_SCHEDULES)


def _check_switch(where: str, parameter: inspect.Parameter, value: Any) -> None:
    """`--config.optim.optimizer.nesterov=false` is a string, and true."""
    if isinstance(parameter.default, bool) and not isinstance(value, bool):
        raise UserError(f'{where}: expected True or False, got {value!r}')


def _find_schedule(choice: cfg.Choice) -> Callable[..., optax.Schedule]:
    if choice.name not in _SCHEDULES:
        raise unknown('schedule', choice.name, schedule_names())
    make = _SCHEDULES[choice.name]
    known = list(inspect.signature(make).parameters)[2:]
    for name, value in choice.args.items():
        if name not in known:
            raise unknown(f'argument of schedule {choice.name}', name, known)
        _check_switch(f'schedule {choice.name}: {name}', inspect.signature(make).parameters[name], value)
    return make


def make_schedule(choice: cfg.Choice, lr: float, warmup: cfg.Duration | None, timeline: Timeline, start: int,
                  end: int, where: str = 'config.optim') -> optax.Schedule:
    """Learning rate by step of a stage that runs from `start` to `end`; step 0 of it is `start`; `where` has its fields.

    The n-th of w warm-up steps (n = 1..w) has n/w of the peak; the schedule covers the steps after it.

    Raises:
      UserError: an unknown schedule or argument, or a warm-up as long as the stage.
    """
    make = _find_schedule(choice)
    ramp = timeline.steps(warmup, start) if warmup else 0
    if ramp >= end - start:
        raise UserError(f'{where}.warmup: {cfg.to_dict(warmup)} is {ramp} steps, and the stage is over after '
                        f'{end - start}: train longer, or set a shorter warm-up or None')
    steps = end - start - ramp
    try:
        main = make(lr, _Span(start + ramp, steps, timeline), **choice.args)
        rates = {n: float(main(n)) for n in {0, 1, steps // 4, steps // 2, 3 * steps // 4, steps - 1}}
    except (TypeError, ValueError, ZeroDivisionError, OverflowError) as e:
        raise UserError(f'{where}.schedule: {choice.name} with {dict(choice.args)}: {e}') from e
    for n, rate in rates.items():
        if not 0 <= rate < math.inf:
            raise UserError(f'{where}.schedule: {choice.name} with {dict(choice.args)}: a learning rate of {rate:.4g} at '
                            f'step {start + ramp + n}')
    if not ramp:
        return main
    return optax.join_schedules([optax.linear_schedule(lr / ramp, lr * (ramp + 1) / ramp, ramp), main], [ramp])


def _regex(pattern: str, where: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except re.error as e:
        raise UserError(f'{where}: {pattern!r} is no regular expression: {e}') from e


def path_name(path: Any) -> str:
    """A parameter's path as configs name it, 'a/b/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator='/')


def matching(pattern: str, where: str) -> Callable[[Any], Any]:
    """Of parameters, the tree of booleans: whether `pattern` is found in the parameter's path, `'a/b/kernel'`.

    Raises:
      UserError: the pattern is no regular expression, or, of the tree: it is found nowhere.
    """
    regex = _regex(pattern, where)

    def mask(params: Any) -> Any:
        found = jax.tree_util.tree_map_with_path(lambda path, _: regex.search(path_name(path)) is not None, params)
        if not any(jax.tree.leaves(found)):
            names = [path_name(path) for path, _ in jax.tree.leaves_with_path(params)]
            near = difflib.get_close_matches(pattern, names, n=4, cutoff=0.4)
            raise UserError(f'{where}: {pattern!r} is found in no parameter; ' + (
                f'nearest: {", ".join(near)}' if near else f'they are {", ".join(names[:4])}, ...'))
        return found
    return mask


@dataclass(frozen=True)
class Groups:
    """Which parameters are updated in a way of their own, and the steps of the run at which their training ends."""

    groups: tuple[cfg.GroupConfig, ...]
    ends: tuple[int | None, ...] = ()

    def __post_init__(self) -> None:
        for i, group in enumerate(self.groups):
            _regex(group.match, f'config.optim.groups[{i}].match')
            if not group.match:
                raise UserError(f'config.optim.groups[{i}].match: which parameters? A regular expression, searched in '
                                'their paths')

    def of(self, params: Any) -> Any:
        """The tree of group numbers; -1: of none.

        Raises:
          UserError: a pattern is no regular expression, or found nowhere.
        """
        masks = [matching(g.match, f'config.optim.groups[{i}].match')(params) for i, g in enumerate(self.groups)]
        return jax.tree.map(lambda p, *found: next((i for i, here in enumerate(found) if here), -1), params, *masks)

    def rate(self, group: int) -> float:
        """Of a group."""
        return self.groups[group].rate if group >= 0 else 1.0

    def trained(self, grads: Any, step: jax.Array) -> Any:
        """Gradients, zero for parameters that stay as they begin, or as they are from before `step` on."""
        def of(g: jax.Array, group: int) -> jax.Array:
            end = self.ends[group] if group >= 0 and self.ends else None
            here = g if self.rate(group) else jnp.zeros_like(g)
            return here if end is None else jnp.where(step < end, here, 0)
        return jax.tree.map(of, grads, self.of(grads)) if self.groups else grads


def _l2(l2: float, mask: Callable[[Any], Any], groups: Groups) -> optax.GradientTransformation:
    """Adds the penalty's gradient, over the group's rate, which it is multiplied by later."""
    def init(params: Any) -> optax.EmptyState:
        mask(params)  # says so where it is found nowhere
        return optax.EmptyState()

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        return jax.tree.map(lambda u, p, m, g: u + l2 / groups.rate(g) * p if m and groups.rate(g) else u,
                            updates, params, mask(params), groups.of(params)), state
    return optax.GradientTransformation(init, update)


def _of_groups(core: Callable[..., optax.GradientTransformation], groups: Groups) -> optax.GradientTransformation:
    """The optimizer of each group, and its rate."""
    def label(group: int) -> str:
        if not groups.rate(group):
            return 'still'
        return str(group) if group >= 0 and groups.groups[group].optimizer else 'all'

    own = {label(i): core(g.optimizer, f'config.optim.groups[{i}].optimizer')
           for i, g in enumerate(groups.groups) if g.optimizer and g.rate}
    rates = optax.stateless(lambda updates, params: jax.tree.map(
        lambda u, g: groups.rate(g) * u, updates, groups.of(params)))
    return optax.chain(optax.partition({'all': core(), 'still': optax.set_to_zero(), **own},
                                       lambda params: jax.tree.map(label, groups.of(params))), rates)


def _normalize(groups: Groups) -> optax.GradientTransformation:
    """The step is taken from kernels of a norm of sqrt(features)."""
    def update(updates: Any, params: Any) -> Any:
        def of(u: jax.Array, p: jax.Array, g: int) -> jax.Array:
            chosen = g >= 0 and groups.groups[g].normalize and groups.rate(g) and p.ndim > 1
            return u + (p.shape[-1] ** 0.5 / jnp.linalg.norm(p) - 1) * p if chosen else u
        return jax.tree.map(of, updates, params, groups.of(params))
    return optax.stateless(update)


def _until(groups: Groups, ends: Sequence[int | None]) -> optax.GradientTransformation:
    """No updates of a group from its end on, in steps of the stage."""
    def update(updates: Any, state: optax.ScaleByScheduleState, params: Any = None) -> tuple[Any, Any]:
        updates = jax.tree.map(lambda u, g: u if g < 0 or ends[g] is None else jnp.where(state.count < ends[g], u, 0),
                               updates, groups.of(updates))
        return updates, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))
    return optax.GradientTransformation(lambda params: optax.ScaleByScheduleState(jnp.zeros([], jnp.int32)), update)


def _decoupled_decay(rate: float, mask: Callable[[Any], Any], schedule: optax.Schedule,
                     groups: Groups) -> optax.GradientTransformation:
    """Subtracts `schedule(n) * rate * parameter` from updates that are already scaled (Loshchilov & Hutter 2019)."""
    def init(params: Any) -> optax.ScaleByScheduleState:
        mask(params)  # says so where it is found nowhere
        return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

    def update(updates: Any, state: optax.ScaleByScheduleState, params: Any = None) -> tuple[Any, Any]:
        step = schedule(state.count) * rate
        updates = jax.tree.map(lambda u, p, m, g: u - (step * p).astype(u.dtype) if m and groups.rate(g) else u,
                               updates, params, mask(params), groups.of(params))
        return updates, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))
    return optax.GradientTransformation(init, update)


def _scale_by_plateau(observer: optax.GradientTransformationExtraArgs) -> optax.GradientTransformation:
    """Scales updates by the state's factor, which `Optimizer.observe` alone changes."""
    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(lambda u: u * state.scale.astype(u.dtype), updates), state
    return optax.GradientTransformation(observer.init, update)


@dataclass(frozen=True)
class _Stage:
    start: int
    transform: optax.GradientTransformationExtraArgs
    schedule: optax.Schedule
    observer: optax.GradientTransformationExtraArgs | None  # of a plateau


@dataclass(frozen=True)
class Optimizer:
    """The optax chains of a run, one for each stage. Their states are kept side by side: a tuple.

    Attributes:
      stages: of the run.
      groups: of parameters.
    """

    stages: tuple[_Stage, ...]
    groups: Groups = Groups(())

    def init(self, params: Any) -> tuple:
        """The state before the first step."""
        return tuple(s.transform.init(params) for s in self.stages)

    def update(self, grads: Any, state: tuple, params: Any, stage: int, loss: jax.Array) -> tuple[Any, tuple]:
        """Updates to add to the parameters, and the state after them."""
        updates, new = self.stages[stage].transform.update(grads, state[stage], params, value=loss)
        return updates, (*state[:stage], new, *state[stage + 1:])

    def learning_rate(self, state: tuple, step: jax.Array, stage: int) -> jax.Array:
        """The learning rate in force at `step`."""
        s = self.stages[stage]
        lr = jnp.asarray(s.schedule(step - s.start), jnp.float32)
        return lr * state[stage][-1].scale if s.observer else lr

    def observes(self, stage: int) -> bool:
        """Whether the stage follows the validation loss."""
        return self.stages[stage].observer is not None

    def observe(self, state: tuple, stage: int, val_loss: float) -> tuple:
        """The state after an evaluation: a plateau counts it. Works on host arrays."""
        observer = self.stages[stage].observer
        if observer is None:
            return state
        _, plateau = observer.update({}, state[stage][-1], value=jnp.float32(val_loss))
        return (*state[:stage], (*state[stage][:-1], plateau), *state[stage + 1:])


def _matrices(params: Any) -> Any:
    """Muon's matrices: kernels, as products of their last axis and all others; the rest goes the way of Adam."""
    def of(path: Any, x: Any) -> optax.contrib.MuonDimensionNumbers | None:
        kernel = path_name(path).endswith('kernel') and x.ndim > 1
        return optax.contrib.MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1) if kernel else None
    return jax.tree_util.tree_map_with_path(of, params)


def _make_core(choice: cfg.Choice, schedule: optax.Schedule,
               where: str = 'config.optim.optimizer') -> optax.GradientTransformation:
    known = _optimizers()
    if choice.name not in known:
        raise unknown('optimizer', choice.name, known)
    make = known[choice.name]
    # decay is ours, so that it means the same for each of them
    parameters = {k: p for k, p in inspect.signature(make).parameters.items() if k != 'muon_weight_dimension_numbers'}
    taken = {'learning_rate', 'mask', *(p for p in parameters if 'weight_decay' in p)}
    for name, value in choice.args.items():
        if name in taken:
            raise UserError(f'{where}.{name}: set config.optim.'
                            f'{"learning_rate" if name == "learning_rate" else "weight_decay and decay_mask"} instead')
        if name not in parameters:
            raise unknown(f'argument of optimizer {choice.name}', name, set(parameters) - taken)
        _check_switch(f'{where}.{name}', parameters[name], value)
    extra: dict[str, Any] = {p: 0.0 for p in parameters if 'weight_decay' in p and isinstance(parameters[p].default, float)}
    if choice.name == 'muon':
        extra['muon_weight_dimension_numbers'] = _matrices
    try:
        core = make(schedule, **choice.args, **extra)
        trial = {'kernel': jnp.zeros((1, 1))}
        jax.eval_shape(lambda: optax.with_extra_args_support(core).update(
            trial, core.init(trial), trial, value=jnp.zeros(())))
        return core
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as e:
        raise UserError(f'{where}: {choice.name} with {dict(choice.args)}: {e}') from e


def check(optim: cfg.OptimConfig) -> None:
    """Raises a UserError for an optimizer, schedule, argument or mask that is not known, before there is any data."""
    _regex(optim.decay_mask, 'config.optim.decay_mask')
    parts: list[tuple[str, Any]] = [('config.optim', optim)]
    for name, several in (('switch', optim.switch), ('groups', Groups(optim.groups).groups)):
        parts += [(f'config.optim.{name}[{i}]', part) for i, part in enumerate(several)]
    for path, part in parts:
        if part.optimizer:
            with within(f'{path}.optimizer'):
                _make_core(part.optimizer, optax.constant_schedule(1.0), f'{path}.optimizer')
        if getattr(part, 'schedule', None):
            with within(f'{path}.schedule'):
                _find_schedule(part.schedule)


def _make_stage(optim: cfg.OptimConfig, groups: Groups, optimizer: cfg.Choice, lr: float, schedule: cfg.Choice,
                warmup: cfg.Duration | None, timeline: Timeline, start: int, end: int, where: str) -> _Stage:
    by_step = make_schedule(schedule, lr, warmup, timeline, start, end, where)
    mask = matching(optim.decay_mask, 'config.optim.decay_mask')
    def core(choice: cfg.Choice = optimizer, path: str = f'{where}.optimizer') -> optax.GradientTransformation:
        return _make_core(choice, by_step, path)
    ends = [None if end is None else end - start for end in groups.ends]
    observer = None
    if schedule.name == 'plateau':
        if any(g.normalize for g in optim.groups):
            raise UserError('config.optim.groups: normalize does not go with the schedule plateau, which scales all updates')
        try:
            observer = optax.contrib.reduce_on_plateau(**{**_PLATEAU_DEFAULTS, **schedule.args})
        except (TypeError, ValueError) as e:
            raise UserError(f'{where}.schedule: plateau with {dict(schedule.args)}: {e}') from e
    parts = [
        optax.clip_by_global_norm(optim.clip_norm) if optim.clip_norm else None,
        _l2(optim.l2, mask, groups) if optim.l2 else None,
        _of_groups(core, groups) if optim.groups else core(),
        _decoupled_decay(optim.weight_decay, mask, by_step, groups) if optim.weight_decay else None,
        _normalize(groups) if any(g.normalize for g in optim.groups) else None,
        _until(groups, ends) if any(g.until for g in optim.groups) else None,
        _scale_by_plateau(observer) if observer else None,
    ]
    return _Stage(start, optax.chain(*(p for p in parts if p is not None)), by_step, observer)


def make_optimizer(optim: cfg.OptimConfig, timeline: Timeline) -> Optimizer:
    """The optimizer of a config: gradients are clipped, L2 is added, the optimizer of the stage follows, then
    decoupled decay.

    Raises:
      UserError: an unknown optimizer, schedule or argument, or moments outside the run.
    """
    groups = Groups(optim.groups, tuple(timeline.steps(g.until) if g.until else None for g in optim.groups))
    stages = []
    now: dict[str, Any] = {'optimizer': optim.optimizer, 'lr': optim.learning_rate, 'schedule': optim.schedule,
                           'warmup': optim.warmup}
    ends = [*timeline.stages[1:], timeline.total]
    for i, (start, end) in enumerate(zip(timeline.stages, ends, strict=True)):
        if i:
            switch = optim.switch[i - 1]
            now = {'optimizer': switch.optimizer or now['optimizer'], 'lr': switch.learning_rate or now['lr'],
                   'schedule': switch.schedule or now['schedule'], 'warmup': switch.warmup}
        where = f'config.optim.switch[{i - 1}]' if i else 'config.optim'
        stages.append(_make_stage(optim, groups, **now, timeline=timeline, start=start, end=end, where=where))
    return Optimizer(tuple(stages), groups)
