"""Optimizers: chains of optax transformations from the config."""

import difflib
import functools
import inspect
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from jaxcnn import config as cfg
from jaxcnn import schedules
from jaxcnn.errors import UserError, check_bool, name_field, unknown
from jaxcnn.registry import Registry
from jaxcnn.timeline import Timeline

F = TypeVar('F', bound=Callable[..., optax.GradientTransformation])
log = logging.getLogger('jaxcnn')

# optimizers of optax that need more than gradients (the loss as a function, gradients per example), evaluate other
# parameters than they train, or take no schedule for their learning rate
EXCLUDED = {'lbfgs', 'sophia', 'dpsgd', 'schedule_free_sgd', 'schedule_free_adamw', 'optimistic_adam', 'rprop', 'sm3',
            'noisy_sgd',  # its state holds a key, which is not an array of numbers
            'polyak_sgd'}  # its step grows as the learning rate falls


def _rmsprop(learning_rate: optax.ScalarOrSchedule, decay: float = 0.9, eps: float = 1e-8, initial_scale: float = 0.0,
             eps_in_sqrt: bool = True, centered: bool = False, momentum: float | None = None, nesterov: bool = False,
             bias_correction: bool = False, rate_last: bool = False) -> optax.GradientTransformation:
    """Return `optax.rmsprop`; with `rate_last` the learning rate multiplies the accumulated momentum, as in PyTorch, and not
    each update that is added to it."""
    rate = 1.0 if rate_last else learning_rate
    rmsprop = optax.rmsprop(rate, decay, eps, initial_scale, eps_in_sqrt, centered, momentum, nesterov, bias_correction)
    return optax.chain(rmsprop, optax.scale_by_learning_rate(learning_rate, flip_sign=False)) if rate_last else rmsprop


def _optax_optimizers() -> dict[str, Callable[..., optax.GradientTransformation]]:
    factories: dict[str, Callable[..., optax.GradientTransformation]] = {}
    for module in (optax.contrib, optax):
        for name, make in inspect.getmembers(module, lambda x: inspect.isfunction(x) or isinstance(x, functools.partial)):
            if name.startswith(('_', 'scale_by')) or name in EXCLUDED:
                continue
            if next(iter(inspect.signature(make).parameters), None) == 'learning_rate':
                factories[name] = make
    return {**factories, 'rmsprop': _rmsprop}


_OPTIMIZERS: Registry[Callable[..., optax.GradientTransformation]] = Registry('optimizer')
for _name, _factory in _optax_optimizers().items():
    _OPTIMIZERS.add(_name, _factory, getattr(_factory, 'func', _factory))


def register(factory: F) -> F:
    """Make a function `(learning_rate, ...) -> optax.GradientTransformation` known to `config.optim.optimizer` by its name.

    The learning rate is a schedule. Further arguments of the function can be set in the config; those called
    `weight_decay` are 0, as `config.optim.weight_decay` means the same for every optimizer.
    """
    _OPTIMIZERS.add(factory.__name__, factory)
    return factory


def optimizer_names() -> list[str]:
    """Return the names of the optimizers of optax and optax.contrib that need gradients alone, and of registered ones."""
    return _OPTIMIZERS.names()


def _compile_regex(pattern: str, field: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except re.error as e:
        raise UserError(f'{pattern!r} is no regular expression: {e}', field=field) from e


def path_name(path: Any) -> str:
    """Return a parameter's path in a tree as configs write it, 'a/b/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator='/')


def path_mask(pattern: str, field: str) -> Callable[[Any], Any]:
    """Return the function from a tree of parameters to a tree of Booleans: whether `pattern` matches the parameter's path.

    Args:
      pattern: a regular expression, searched in paths such as `'a/b/kernel'`.
      field: the field of the config that holds it, for errors.

    Raises:
      UserError: the pattern is no regular expression; the returned function raises it if the pattern matches no path.
    """
    regex = _compile_regex(pattern, field)

    def mask(params: Any) -> Any:
        matches = jax.tree_util.tree_map_with_path(lambda path, _: regex.search(path_name(path)) is not None, params)
        if not any(jax.tree.leaves(matches)):
            names = [path_name(path) for path, _ in jax.tree.leaves_with_path(params)]
            nearest = difflib.get_close_matches(pattern, names, n=4, cutoff=0.4)
            hint = f'nearest: {", ".join(nearest)}' if nearest else f'parameters are {", ".join(names[:4])}, ...'
            raise UserError(f'{pattern!r} matches no parameter', field=field, hint=hint)
        return matches
    return mask


@dataclass(frozen=True)
class Groups:
    """The parameter groups of a config, and the step of the run at which the training of each ends, or None.

    A group is identified by its index; -1 stands for the parameters of no group.
    """

    groups: tuple[cfg.GroupConfig, ...]
    ends: tuple[int | None, ...] = ()

    def __post_init__(self) -> None:
        for i, group in enumerate(self.groups):
            field = f'config.optim.groups[{i}].match'
            _compile_regex(group.match, field)
            if not group.match:
                raise UserError('expected a regular expression, which is searched in the paths of parameters', field=field)

    def indices(self, params: Any) -> Any:
        """Return the tree of group indices of the parameters.

        Raises:
          UserError: a pattern matches no parameter.
        """
        masks = [path_mask(g.match, f'config.optim.groups[{i}].match')(params) for i, g in enumerate(self.groups)]
        return jax.tree.map(lambda _, *matches: next((i for i, match in enumerate(matches) if match), -1), params, *masks)

    def rate(self, index: int) -> float:
        """Return the learning-rate factor of a group."""
        return self.groups[index].rate if index >= 0 else 1.0

    def mask_gradients(self, grads: Any, step: jax.Array) -> Any:
        """Return the gradients with zeros for parameters that are not trained, or not trained any more at `step`."""
        def mask(g: jax.Array, index: int) -> jax.Array:
            end = self.ends[index] if index >= 0 and self.ends else None
            if not self.rate(index):
                g = jnp.zeros_like(g)
            return g if end is None else jnp.where(step < end, g, 0)
        return jax.tree.map(mask, grads, self.indices(grads)) if self.groups else grads


def _add_penalty(weight: float, gradient: Callable[[jax.Array], jax.Array], mask: Callable[[Any], Any],
                 groups: Groups) -> optax.GradientTransformation:
    """Add the gradient of a penalty, times its weight and divided by the group's rate, which multiplies the update later."""
    def init(params: Any) -> optax.EmptyState:
        mask(params)  # raises an error if it matches no parameter
        return optax.EmptyState()

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        return jax.tree.map(lambda u, p, m, i: u + weight / groups.rate(i) * gradient(p) if m and groups.rate(i) else u,
                            updates, params, mask(params), groups.indices(params)), state
    return optax.GradientTransformation(init, update)


def _group_optimizers(make: Callable[..., optax.GradientTransformation], groups: Groups) -> optax.GradientTransformation:
    """Apply the optimizer of each group and multiply the updates by its rate.

    `make()` returns the optimizer of the stage, and `make(choice, field)` another one. The labels are keys of the state.
    """
    def label(index: int) -> str:
        if not groups.rate(index):
            return 'still'
        return str(index) if index >= 0 and groups.groups[index].optimizer else 'all'

    optimizers = {label(i): make(g.optimizer, f'config.optim.groups[{i}].optimizer')
                  for i, g in enumerate(groups.groups) if g.optimizer and g.rate}
    scale_by_rate = optax.stateless(lambda updates, params: jax.tree.map(
        lambda u, i: groups.rate(i) * u, updates, groups.indices(params)))
    return optax.chain(optax.partition({'all': make(), 'still': optax.set_to_zero(), **optimizers},
                                       lambda params: jax.tree.map(label, groups.indices(params))), scale_by_rate)


def _normalize_kernels(groups: Groups) -> optax.GradientTransformation:
    """Change the updates so that they start from kernels scaled to the norm sqrt(features)."""
    def update(updates: Any, params: Any) -> Any:
        def add_scaling(u: jax.Array, p: jax.Array, i: int) -> jax.Array:
            is_normalized = i >= 0 and groups.groups[i].normalize and groups.rate(i) and p.ndim > 1
            return u + (p.shape[-1] ** 0.5 / jnp.linalg.norm(p) - 1) * p if is_normalized else u
        return jax.tree.map(add_scaling, updates, params, groups.indices(params))
    return optax.stateless(update)


def _stop_groups(groups: Groups, ends: Sequence[int | None]) -> optax.GradientTransformation:
    """Set the updates of each group to zero from its end on, which is a step of the stage."""
    def update(updates: Any, state: optax.ScaleByScheduleState, params: Any = None) -> tuple[Any, Any]:
        updates = jax.tree.map(lambda u, i: u if i < 0 or ends[i] is None else jnp.where(state.count < ends[i], u, 0),
                               updates, groups.indices(updates))
        return updates, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))
    return optax.GradientTransformation(lambda params: optax.ScaleByScheduleState(jnp.zeros([], jnp.int32)), update)


def _decoupled_decay(rate: float, mask: Callable[[Any], Any], schedule: optax.Schedule,
                     groups: Groups) -> optax.GradientTransformation:
    """Subtract `schedule(n) * rate * parameter` from updates that are already scaled (Loshchilov & Hutter 2019)."""
    def init(params: Any) -> optax.ScaleByScheduleState:
        mask(params)  # raises an error if it matches no parameter
        return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

    def update(updates: Any, state: optax.ScaleByScheduleState, params: Any = None) -> tuple[Any, Any]:
        decay = schedule(state.count) * rate
        updates = jax.tree.map(lambda u, p, m, i: u - (decay * p).astype(u.dtype) if m and groups.rate(i) else u,
                               updates, params, mask(params), groups.indices(params))
        return updates, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))
    return optax.GradientTransformation(init, update)


def _scale_by_plateau(observer: optax.GradientTransformationExtraArgs) -> optax.GradientTransformation:
    """Scale updates by the factor in the state, which only `Optimizer.observe` changes."""
    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(lambda u: u * state.scale.astype(u.dtype), updates), state
    return optax.GradientTransformation(observer.init, update)


@dataclass(frozen=True)
class _Stage:
    start: int
    transform: optax.GradientTransformationExtraArgs
    schedule: optax.Schedule
    observer: optax.GradientTransformationExtraArgs | None  # for the schedule plateau
    observed_metric: str  # that the observer follows; '' without one


def _initial_state(transform: optax.GradientTransformationExtraArgs, params: Any) -> Any:
    """Return the state before the first step in the types it has after a step, which may be wider than the parameters'."""
    state = transform.init(params)
    _, after = jax.eval_shape(lambda p, s: transform.update(p, s, p, value=jnp.zeros(())), params, state)
    return jax.tree.map(lambda x, wide: jnp.asarray(x, wide.dtype), state, after)


@dataclass(frozen=True)
class Optimizer:
    """The optimizers of a run, one for each stage. The state is a tuple of their states.

    Attributes:
      stages: the stages in order.
      groups: the parameter groups.
    """

    stages: tuple[_Stage, ...]
    groups: Groups = Groups(())

    def init(self, params: Any) -> tuple:
        """Return the state before the first step."""
        return tuple(_initial_state(s.transform, params) for s in self.stages)

    def update(self, grads: Any, state: tuple, params: Any, stage: int, loss: jax.Array) -> tuple[Any, tuple]:
        """Return the updates, which are to be added to the parameters, and the next state."""
        updates, new = self.stages[stage].transform.update(grads, state[stage], params, value=loss)
        return updates, (*state[:stage], new, *state[stage + 1:])

    def learning_rate(self, state: tuple, step: jax.Array, stage: int) -> jax.Array:
        """Return the learning rate at `step`."""
        s = self.stages[stage]
        lr = jnp.asarray(s.schedule(step - s.start), jnp.float32)
        return lr * state[stage][-1].scale if s.observer else lr

    def observed_metric(self, stage: int) -> str:
        """Return the validation metric on which the learning rate of the stage depends; '' if there is none."""
        return self.stages[stage].observed_metric

    def observe(self, state: tuple, stage: int, value: float) -> tuple:
        """Return the state, of host arrays, after an evaluation, which the schedule plateau takes into account.

        Args:
          state: the state before it.
          stage: the stage of the evaluation.
          value: the validation loss or error.
        """
        observer = self.stages[stage].observer
        if observer is None:
            return state
        _, plateau = observer.update({}, state[stage][-1], value=jnp.float32(value))
        return (*state[:stage], (*state[stage][:-1], plateau), *state[stage + 1:])


def _muon_dimensions(params: Any) -> Any:
    """Return how Muon turns parameters into matrices: kernels become (all other axes, last axis).

    Other parameters are updated by Adam.
    """
    def dimensions(path: Any, x: Any) -> optax.contrib.MuonDimensionNumbers | None:
        is_kernel = path_name(path).endswith('kernel') and x.ndim > 1
        return optax.contrib.MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1) if is_kernel else None
    return jax.tree_util.tree_map_with_path(dimensions, params)


def _make_base_optimizer(choice: cfg.Choice, schedule: optax.Schedule, field: str) -> optax.GradientTransformation:
    """Return the optimizer that the config names, without decay, groups and clipping."""
    make = _OPTIMIZERS.get(choice.name)
    parameters = {k: p for k, p in inspect.signature(make).parameters.items() if k != 'muon_weight_dimension_numbers'}
    # weight decay is applied by `_decoupled_decay`, so that it means the same for every optimizer
    reserved = {'learning_rate', 'mask', *(p for p in parameters if 'weight_decay' in p)}
    for name, value in choice.args.items():
        if name in reserved:
            replacement = 'learning_rate' if name == 'learning_rate' else 'weight_decay and decay_mask'
            raise UserError(f'cannot be set; set config.optim.{replacement} instead', field=f'{field}.{name}')
        if name not in parameters:
            raise unknown(f'argument of optimizer {choice.name}', name, set(parameters) - reserved)
        check_bool(f'{field}.{name}', parameters[name].default, value)
    extra: dict[str, Any] = {p: 0.0 for p in parameters if 'weight_decay' in p and isinstance(parameters[p].default, float)}
    if choice.name == 'muon':
        extra['muon_weight_dimension_numbers'] = _muon_dimensions
    try:
        optimizer = make(schedule, **choice.args, **extra)
        if not isinstance(optimizer, optax.GradientTransformation):
            raise UserError(f'the function of {choice.name!r} returns {type(optimizer).__name__}, and must return an '
                            'optax.GradientTransformation', field=field)
        trial = {'kernel': jnp.zeros((1, 1))}
        jax.eval_shape(lambda: optax.with_extra_args_support(optimizer).update(
            trial, optimizer.init(trial), trial, value=jnp.zeros(())))
        return optimizer
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as e:
        raise UserError(f'{choice.name} with {dict(choice.args)}: {e}', field=field) from e


def check_float16(optim: cfg.OptimConfig) -> None:
    """Check that the optimizers update float16 parameters, in which the small constants of many of them are 0.

    Raises:
      UserError: one of them makes an update that is not finite of a gradient of 0 or of 0.0001.
    """
    params = {'kernel': jnp.ones((2, 2), jnp.float16)}
    grads = {'kernel': jnp.array([[0, 1e-4], [0, -1e-4]], jnp.float16)}
    for field, entry in _entries(optim):
        if not entry.optimizer:
            continue
        transform = optax.with_extra_args_support(
            _make_base_optimizer(entry.optimizer, optax.constant_schedule(1.0), f'{field}.optimizer'))
        updates, _ = transform.update(grads, transform.init(params), params, value=jnp.zeros(()))
        if not all(np.isfinite(x).all() for x in jax.tree.leaves(updates)):
            raise UserError(f'{entry.optimizer.name} divides by 0 where parameters are in float16',
                            field=f'{field}.optimizer', hint="set config.model.param_dtype='float32', and "
                            "config.model.dtype='float16' to compute in float16; or take sgd")


def _entries(optim: cfg.OptimConfig) -> list[tuple[str, Any]]:
    """Return the parts of the config that may choose an optimizer, by their fields."""
    entries: list[tuple[str, Any]] = [('config.optim', optim)]
    for name, values in (('switch', optim.switch), ('groups', Groups(optim.groups).groups)):
        entries += [(f'config.optim.{name}[{i}]', value) for i, value in enumerate(values)]
    return entries


def check(optim: cfg.OptimConfig) -> None:
    """Check the names and the arguments of optimizers and schedules, and the regular expressions, without any data.

    Raises:
      UserError: one of them is wrong.
    """
    _compile_regex(optim.decay_mask, 'config.optim.decay_mask')
    _compile_regex(optim.l1_mask, 'config.optim.l1_mask')
    for field, entry in _entries(optim):
        if entry.optimizer:
            with name_field(f'{field}.optimizer'):
                _make_base_optimizer(entry.optimizer, optax.constant_schedule(1.0), f'{field}.optimizer')
            decay = inspect.signature(_OPTIMIZERS.get(entry.optimizer.name)).parameters.get('weight_decay')
            if decay and isinstance(decay.default, float) and decay.default and not (optim.weight_decay or optim.l2):
                log.warning('%s.optimizer: %s is used without weight decay, as config.optim.weight_decay is 0 (by default '
                            'optax has %g)', field, entry.optimizer.name, decay.default)
        if getattr(entry, 'schedule', None):
            with name_field(f'{field}.schedule'):
                schedules.get_factory(entry.schedule)


def _make_observer(schedule: cfg.Choice, field: str) -> optax.GradientTransformationExtraArgs:
    """Return what follows the validation loss or error for the schedule plateau."""
    arguments = {**schedules.PLATEAU_DEFAULTS, **schedule.args}
    del arguments['metric']
    try:
        return optax.contrib.reduce_on_plateau(**arguments)
    except (TypeError, ValueError) as e:
        raise UserError(f'plateau with {dict(schedule.args)}: {e}', field=field) from e


def _make_stage(optim: cfg.OptimConfig, groups: Groups, optimizer: cfg.Choice, lr: float, schedule: cfg.Choice,
                warmup: cfg.Duration | None, timeline: Timeline, start: int, end: int, field: str) -> _Stage:
    rate_by_step = schedules.make_schedule(schedule, lr, warmup, timeline, start, end, field)
    mask = path_mask(optim.decay_mask, 'config.optim.decay_mask')
    l1_mask = path_mask(optim.l1_mask, 'config.optim.l1_mask')

    def make(choice: cfg.Choice = optimizer, field: str = f'{field}.optimizer') -> optax.GradientTransformation:
        return _make_base_optimizer(choice, rate_by_step, field)

    ends = [None if group_end is None else group_end - start for group_end in groups.ends]
    observer = None
    if schedule.name == 'plateau':
        if any(g.normalize for g in optim.groups):
            raise UserError('normalize cannot be combined with the schedule plateau, which scales all updates',
                            field='config.optim.groups')
        observer = _make_observer(schedule, f'{field}.schedule')
    transforms = [
        optax.clip_by_global_norm(optim.clip_norm) if optim.clip_norm else None,
        _add_penalty(optim.l2, lambda p: p, mask, groups) if optim.l2 else None,
        _add_penalty(optim.l1, jnp.sign, l1_mask, groups) if optim.l1 else None,
        _group_optimizers(make, groups) if optim.groups else make(),
        _decoupled_decay(optim.weight_decay, mask, rate_by_step, groups) if optim.weight_decay else None,
        _normalize_kernels(groups) if any(g.normalize for g in optim.groups) else None,
        _stop_groups(groups, ends) if any(g.until for g in optim.groups) else None,
        _scale_by_plateau(observer) if observer else None,
    ]
    return _Stage(start, optax.chain(*(t for t in transforms if t is not None)), rate_by_step, observer,
                  schedules.plateau_metric(schedule))


def make_optimizer(optim: cfg.OptimConfig, timeline: Timeline) -> Optimizer:
    """Return the optimizer of a config.

    In each step the gradients are clipped, the penalties are added, the optimizer of the stage is applied, and decoupled
    decay is added.

    Raises:
      UserError: an optimizer, a schedule or an argument is unknown, or a moment is outside the run.
    """
    groups = Groups(optim.groups, tuple(timeline.steps(g.until) if g.until else None for g in optim.groups))
    stages = []
    settings: dict[str, Any] = {'optimizer': optim.optimizer, 'lr': optim.learning_rate, 'schedule': optim.schedule,
                                'warmup': optim.warmup}
    ends = [*timeline.stages[1:], timeline.total]
    for i, (start, end) in enumerate(zip(timeline.stages, ends, strict=True)):
        if i:
            switch = optim.switch[i - 1]
            settings = {'optimizer': switch.optimizer or settings['optimizer'],
                        'lr': switch.learning_rate or settings['lr'],
                        'schedule': switch.schedule or settings['schedule'], 'warmup': switch.warmup}
        field = f'config.optim.switch[{i - 1}]' if i else 'config.optim'
        stages.append(_make_stage(optim, groups, **settings, timeline=timeline, start=start, end=end, field=field))
    return Optimizer(tuple(stages), groups)
