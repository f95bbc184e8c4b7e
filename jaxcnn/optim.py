"""Optimizers: optax chains from the config."""

import difflib
import functools
import inspect
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from jaxcnn import config as cfg
from jaxcnn import schedules
from jaxcnn.errors import UserError, check_bool, name_field, unknown
from jaxcnn.timeline import Timeline

log = logging.getLogger('jaxcnn')
OWN: dict[str, Callable[..., optax.GradientTransformation]] = {}  # of a learning rate and arguments, by name; beside optax's

# these need more than gradients (the loss as a function, gradients per example), or other parameters in evaluation
# or take no schedule for their learning rate
_NOT_HERE = {'lbfgs', 'sophia', 'dpsgd', 'schedule_free_sgd', 'schedule_free_adamw', 'optimistic_adam', 'rprop', 'sm3',
             'noisy_sgd',  # its state holds a key, which is no array of numbers
             'polyak_sgd'}  # its step grows as the learning rate falls


def _rmsprop(learning_rate: optax.ScalarOrSchedule, decay: float = 0.9, eps: float = 1e-8, initial_scale: float = 0.0,
             eps_in_sqrt: bool = True, centered: bool = False, momentum: float | None = None, nesterov: bool = False,
             bias_correction: bool = False, rate_last: bool = False) -> optax.GradientTransformation:
    """optax's; with `rate_last` the learning rate multiplies the momentum's sum, as in PyTorch, instead of what is added
    to it."""
    rate = 1.0 if rate_last else learning_rate
    rmsprop = optax.rmsprop(rate, decay, eps, initial_scale, eps_in_sqrt, centered, momentum, nesterov, bias_correction)
    return optax.chain(rmsprop, optax.scale_by_learning_rate(learning_rate, flip_sign=False)) if rate_last else rmsprop


@functools.cache
def _optimizers() -> dict[str, Callable[..., optax.GradientTransformation]]:
    found: dict[str, Callable[..., optax.GradientTransformation]] = {}
    for module in (optax.contrib, optax):
        for name, make in inspect.getmembers(module, lambda x: inspect.isfunction(x) or isinstance(x, functools.partial)):
            if name.startswith(('_', 'scale_by')) or name in _NOT_HERE:
                continue
            if next(iter(inspect.signature(make).parameters), None) == 'learning_rate':
                found[name] = make
    return {**found, 'rmsprop': _rmsprop, **OWN}


def optimizer_names() -> list[str]:
    """Optimizers that a config may name: those of optax and optax.contrib that need gradients alone."""
    return sorted(_optimizers())


def _regex(pattern: str, where: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except re.error as e:
        raise UserError(f'{pattern!r} is no regular expression: {e}', field=where) from e


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
            hint = f'nearest: {", ".join(near)}' if near else f'they are {", ".join(names[:4])}, ...'
            raise UserError(f'{pattern!r} is found in no parameter', field=where, hint=hint)
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
                raise UserError('which parameters? A regular expression, searched in their paths',
                                field=f'config.optim.groups[{i}].match')

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


def _first_state(transform: optax.GradientTransformationExtraArgs, params: Any) -> Any:
    """The state before the first step, in the types it has after one, which may be wider than bfloat16 parameters."""
    state = transform.init(params)
    _, after = jax.eval_shape(lambda p, s: transform.update(p, s, p, value=jnp.zeros(())), params, state)
    return jax.tree.map(lambda x, wide: jnp.asarray(x, wide.dtype), state, after)


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
        return tuple(_first_state(s.transform, params) for s in self.stages)

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
            fields = 'learning_rate' if name == 'learning_rate' else 'weight_decay and decay_mask'
            raise UserError(f'set config.optim.{fields} instead', field=f'{where}.{name}')
        if name not in parameters:
            raise unknown(f'argument of optimizer {choice.name}', name, set(parameters) - taken)
        check_bool(f'{where}.{name}', parameters[name].default, value)
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
        raise UserError(f'{choice.name} with {dict(choice.args)}: {e}', field=where) from e


def check(optim: cfg.OptimConfig) -> None:
    """Raises a UserError for an optimizer, schedule, argument or mask that is not known, before there is any data."""
    _regex(optim.decay_mask, 'config.optim.decay_mask')
    parts: list[tuple[str, Any]] = [('config.optim', optim)]
    for name, several in (('switch', optim.switch), ('groups', Groups(optim.groups).groups)):
        parts += [(f'config.optim.{name}[{i}]', part) for i, part in enumerate(several)]
    for path, part in parts:
        if part.optimizer:
            with name_field(f'{path}.optimizer'):
                _make_core(part.optimizer, optax.constant_schedule(1.0), f'{path}.optimizer')
            theirs = inspect.signature(_optimizers()[part.optimizer.name]).parameters.get('weight_decay')
            if theirs and isinstance(theirs.default, float) and theirs.default and not (optim.weight_decay or optim.l2):
                log.warning('%s.optimizer: %s without decay, for config.optim.weight_decay is 0 (optax would take %g)', path,
                            part.optimizer.name, theirs.default)
        if getattr(part, 'schedule', None):
            with name_field(f'{path}.schedule'):
                schedules.get_factory(part.schedule)


def _make_stage(optim: cfg.OptimConfig, groups: Groups, optimizer: cfg.Choice, lr: float, schedule: cfg.Choice,
                warmup: cfg.Duration | None, timeline: Timeline, start: int, end: int, where: str) -> _Stage:
    by_step = schedules.make_schedule(schedule, lr, warmup, timeline, start, end, where)
    mask = matching(optim.decay_mask, 'config.optim.decay_mask')
    def core(choice: cfg.Choice = optimizer, path: str = f'{where}.optimizer') -> optax.GradientTransformation:
        return _make_core(choice, by_step, path)
    ends = [None if end is None else end - start for end in groups.ends]
    observer = None
    if schedule.name == 'plateau':
        if any(g.normalize for g in optim.groups):
            raise UserError('normalize does not go with the schedule plateau, which scales all updates',
                            field='config.optim.groups')
        try:
            observer = optax.contrib.reduce_on_plateau(**{**schedules.PLATEAU_DEFAULTS, **schedule.args})
        except (TypeError, ValueError) as e:
            raise UserError(f'plateau with {dict(schedule.args)}: {e}', field=f'{where}.schedule') from e
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
