"""Extension of a run: what must hold so that it equals a run that was started with the longer config."""

import contextlib
import logging
import os
from typing import Any

import jax
import numpy as np

from jaxcnn import config as cfg
from jaxcnn import optim
from jaxcnn.errors import UserError
from jaxcnn.timeline import Timeline
from jaxcnn.train import workdir
from jaxcnn.train.checkpoint import Checkpoints

log = logging.getLogger('jaxcnn')


def _evaluations(timeline: Timeline, every: cfg.Duration, end: int) -> list[int]:
    """Steps up to `end` after which the run evaluates."""
    steps, step = [], timeline.next_multiple(0, every)
    while step <= end:
        steps.append(step)
        if step == timeline.total:
            break
        step = timeline.next_multiple(step, every)
    return steps


def _rates(stage: Any, end: int) -> np.ndarray:
    """Learning rates of the steps from the beginning of a stage up to `end`."""
    return np.asarray(jax.vmap(stage.schedule)(np.arange(max(0, end - stage.start))))


def check(old: cfg.Config, new: cfg.Config, num_train: int, step: int) -> str:
    """Compares all that the first `step` steps of a run depend on by two configs that differ in `workdir.EXTENDED`.

    Returns:
      What becomes of the learning rate, in a sentence.

    Raises:
      UserError: by the new config these steps would have been others; the line says in what.
    """
    before, after = Timeline(old, num_train), Timeline(new, num_train)
    name = f'a run of {new.duration.value:g} {new.duration.unit}'
    if after.total <= step:
        raise UserError(f'{name} has {after.total} steps; the run in the workdir has already made {step}',
                        field='config.duration')
    if new.optim.switch[:len(old.optim.switch)] != old.optim.switch:
        raise UserError('stages can be added behind those of the run, which must stay as they are',
                        field='config.optim.switch')
    phases = [[p for p in timeline.phases if p.start < step] for timeline in (before, after)]
    if phases[0] != phases[1]:
        start = next(x.start for x in phases[0] + phases[1] if x not in phases[0] or x not in phases[1])
        raise UserError(f'in {name}, batch size, optimizer or BatchNorm change at other steps than step {start}',
                        field='config.duration',
                        hint='give config.batch_schedule, config.freeze_bn and config.optim.switch in epochs or steps')
    optimizers = [optim.make_optimizer(c.optim, t) for c, t in ((old, before), (new, after))]
    ends = [*before.stages[1:], step]
    for i, (a, b, end) in enumerate(zip(*(o.stages for o in optimizers), ends, strict=False)):
        had, has = (_rates(stage, min(end, step)) for stage in (a, b))
        if len(different := np.flatnonzero(had != has)):
            at, where = int(different[0]), f'config.optim.switch[{i - 1}]' if i else 'config.optim'
            raise UserError(
                f'{name} has a learning rate of {has[at]:.6g} at step {a.start + at}, and this run had '
                f'{had[at]:.6g}, as its schedule was made for {before.total} steps', field=f'{where}.schedule',
                hint=f'a further stage can follow: --config.optim.switch="[{"..., " * bool(old.optim.switch)}dict(at=dict('
                     f'steps={before.total}), learning_rate={new.optim.learning_rate:g}, schedule=\'cosine\')]"')
    for i, (x, y) in enumerate(zip(*(o.groups.ends for o in optimizers), strict=True)):
        if x != y and min(x or 0, y or 0) < step:
            raise UserError(f'{name} stops them at step {y}, and this run did at step {x}',
                            field=f'config.optim.groups[{i}].until', hint='give it in epochs or steps')
    ahead = new.optim.lookahead
    if ahead and (ahead.ramp or (step == before.total and step % ahead.every)):
        raise UserError(f'the slow parameters of this run were moved as its {before.total} steps '
                        f'required, and those of {name} would have been elsewhere', field='config.optim.lookahead')
    due, due_after = (_evaluations(timeline, new.eval.every, step) for timeline in (before, after))
    extra = due != due_after
    if extra and due[:-1] != due_after:
        raise UserError(f'{name} is evaluated at other steps than this run was', field='config.eval.every',
                        hint='give it in epochs or steps')
    if extra and (new.checkpoint.patience or any(stage.observer for stage in optimizers[0].stages)):
        raise UserError(f'this run was evaluated at its end, step {step}, where {name} is not, and evaluations act on it '
                        '(config.checkpoint.patience, the schedule plateau)', field='config.eval.every')
    return _outlook(optimizers[1], after, before.total) + (
        f'; it was evaluated at step {step}, too, where {name} is not' if extra else '')


def _outlook(optimizer: optim.Optimizer, timeline: Timeline, end: int) -> str:
    """What becomes of the learning rate from step `end` on."""
    stage = optimizer.stages[timeline.phase(end).stage]
    first, last = (float(stage.schedule(step - stage.start)) for step in (end, timeline.total - 1))
    what = 'a new stage begins' if stage.start == end else 'its schedule goes on'
    rates = f'a learning rate of {first:.4g}' if first == last else f'learning rates from {first:.4g} to {last:.4g}'
    return f'{what}, with {rates}' + (', scaled as the plateau has observed so far' if stage.observer else '')


def check_run(folder: str, config: cfg.Config, num_train: int) -> bool:
    """Whether `config` extends the run in `folder`, whose config is another one.

    Raises:
      UserError: see `check`; or the run has ended before its last step.
    """
    path = os.path.join(folder, 'config.json')
    if not os.path.exists(path) or not cfg.differences(old := workdir.read_config(folder), config):
        return False
    with contextlib.closing(Checkpoints(folder, config.checkpoint, read_only=True)) as checkpoints:
        step = max(checkpoints.steps(), default=0)
    total, summary = Timeline(old, num_train).total, os.path.join(folder, 'summary.json')
    if os.path.exists(summary) and (ended := workdir.read_json(summary)['steps']) < total:
        raise UserError(f'the run in {folder!r} ended at step {ended} of {total}, by config.checkpoint.patience: a longer '
                        'one would have ended there, too')
    outlook = check(old, config, num_train, step)
    log.info('the run in %s is extended from %d to %d steps: %s', folder, total, Timeline(config, num_train).total, outlook)
    return True


def set_aside(folder: str) -> None:
    """Renames the report and the summary of the run's end so far: `report.step<N>.md`, `summary.step<N>.json`."""
    summary = os.path.join(folder, 'summary.json')
    if not os.path.exists(summary):
        return
    ending = f'step{workdir.read_json(summary)["steps"]}'
    for name, kind in (('report', 'md'), ('summary', 'json')):
        with contextlib.suppress(FileNotFoundError):
            os.replace(os.path.join(folder, f'{name}.{kind}'), os.path.join(folder, f'{name}.{ending}.{kind}'))
