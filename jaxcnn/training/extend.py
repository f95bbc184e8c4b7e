"""Extension of runs: checks that an extended run equals one that was started with the longer config."""

import contextlib
import logging
import os
from typing import Any

import jax
import numpy as np

from jaxcnn import config as cfg
from jaxcnn import models, optim
from jaxcnn.errors import UserError
from jaxcnn.timeline import Timeline
from jaxcnn.training import workdir
from jaxcnn.training.checkpoint import Checkpoints

log = logging.getLogger('jaxcnn')


def _evaluation_steps(timeline: Timeline, every: cfg.Duration, end: int) -> list[int]:
    """Return the steps up to `end` after which the run evaluates."""
    steps, step = [], timeline.next_multiple(0, every)
    while step <= end:
        steps.append(step)
        if step == timeline.total:
            break
        step = timeline.next_multiple(step, every)
    return steps


def _learning_rates(stage: Any, end: int) -> np.ndarray:
    """Return the learning rates of the steps from the beginning of a stage up to `end`."""
    return np.asarray(jax.vmap(stage.schedule)(np.arange(max(0, end - stage.start))))


def check(old: cfg.Config, new: cfg.Config, num_train: int, step: int) -> str:
    """Check that the first `step` steps of a run are the same with two configs that differ in `workdir.EXTENDED`.

    Args:
      old: config of the run.
      new: config of the extended run.
      num_train: number of training images.
      step: number of steps that the run has made.

    Returns:
      A sentence that describes the learning rate after these steps.

    Raises:
      UserError: the steps would have been different with the new config; the message describes the difference.
    """
    old_timeline, new_timeline = Timeline(old, num_train), Timeline(new, num_train)
    new_run = f'a run of {new.duration.value:g} {new.duration.unit}'
    if new_timeline.total <= step:
        raise UserError(f'{new_run} has {new_timeline.total} steps; the run in the workdir has already made {step}',
                        field='config.duration')
    if new.optim.switch[:len(old.optim.switch)] != old.optim.switch:
        raise UserError('the stages of the run must stay as they are', field='config.optim.switch',
                        hint='further stages can be added after them')
    _check_phases(old_timeline, new_timeline, new_run, step)
    old_optimizer = optim.make_optimizer(old.optim, old_timeline)
    new_optimizer = optim.make_optimizer(new.optim, new_timeline)
    _check_learning_rates(old_timeline, old_optimizer, new, new_optimizer, new_run, step)
    for i, (old_end, new_end) in enumerate(zip(old_optimizer.groups.ends, new_optimizer.groups.ends, strict=True)):
        if old_end != new_end and min(old_end or 0, new_end or 0) < step:
            raise UserError(f'{new_run} stops the group at step {new_end}, and this run stopped it at step {old_end}',
                            field=f'config.optim.groups[{i}].until', hint='give it in epochs or steps')
    if old_timeline.pruning_steps != new_timeline.pruning_steps:
        raise UserError(f'{new_run} would have been pruned at other steps than this run', field='config.pruning',
                        hint='give begin, end and every in epochs or steps')
    if new.distillation and new.distillation.hints_alone:
        old_end, new_end = (timeline.steps(new.distillation.hints_alone) for timeline in (old_timeline, new_timeline))
        if old_end != new_end and min(old_end, new_end) < step:
            raise UserError(f'{new_run} trains the hints alone until step {new_end}, and this run did until step {old_end}',
                            field='config.distillation.hints_alone', hint='give it in epochs or steps')
    lookahead = new.optim.lookahead
    if lookahead and (lookahead.ramp or (step == old_timeline.total and step % lookahead.every)):
        raise UserError(f'the slow parameters of this run moved as its {old_timeline.total} steps required, and those of '
                        f'{new_run} would have moved otherwise', field='config.optim.lookahead')
    _check_aux_schedule(old_timeline, new_timeline, new, new_run)
    has_extra_evaluation = _check_evaluations(old_timeline, new_timeline, new, old_optimizer, new_run, step)
    outlook = _describe_learning_rates(new_optimizer, new_timeline, old_timeline.total)
    return outlook + f'; it was also evaluated at step {step}, where {new_run} is not' * has_extra_evaluation


def _check_phases(old_timeline: Timeline, new_timeline: Timeline, new_run: str, step: int) -> None:
    """Raise a UserError if the phases that begin before `step` differ."""
    old_phases, new_phases = ([p for p in timeline.phases if p.start < step] for timeline in (old_timeline, new_timeline))
    if old_phases != new_phases:
        start = next(p.start for p in old_phases + new_phases if p not in old_phases or p not in new_phases)
        raise UserError(f'in {new_run}, batch size, optimizer, BatchNorm or the size of images change at other steps than '
                        f'step {start}', field='config.duration',
                        hint='give config.batch_schedule, config.data.train_size, config.freeze_bn and config.optim.switch '
                        'in epochs or steps')


def _check_aux_schedule(old_timeline: Timeline, new_timeline: Timeline, new: cfg.Config, new_run: str) -> None:
    """Raise a UserError if the weight of auxiliary classifiers depends on the length of the run."""
    schedule = getattr(models.create(new.model.name, **new.model.args), 'aux_schedule', 'constant')
    if schedule != 'constant' and old_timeline.total != new_timeline.total:
        raise UserError(f'the weight of auxiliary classifiers fell over the {old_timeline.total} steps of this run, and in '
                        f'{new_run} it would have fallen more slowly', field='config.model.aux_schedule')


def _check_learning_rates(old_timeline: Timeline, old_optimizer: optim.Optimizer, new: cfg.Config,
                          new_optimizer: optim.Optimizer, new_run: str, step: int) -> None:
    """Raise a UserError if the learning rates of the first `step` steps differ."""
    ends = [*old_timeline.stages[1:], step]
    for i, (old_stage, new_stage, end) in enumerate(zip(old_optimizer.stages, new_optimizer.stages, ends, strict=False)):
        old_rates, new_rates = (_learning_rates(stage, min(end, step)) for stage in (old_stage, new_stage))
        differing = np.flatnonzero(old_rates != new_rates)
        if len(differing):
            first = int(differing[0])
            field = f'config.optim.switch[{i - 1}]' if i else 'config.optim'
            stages = '..., ' if len(old_optimizer.stages) > 1 else ''
            raise UserError(
                f'{new_run} has a learning rate of {new_rates[first]:.6g} at step {old_stage.start + first}, and this run '
                f'had {old_rates[first]:.6g}, because its schedule was made for {old_timeline.total} steps',
                field=f'{field}.schedule',
                hint='a further stage can follow: '
                     f'--config.optim.switch="[{stages}dict(at=dict(steps={old_timeline.total}), '
                     f'learning_rate={new.optim.learning_rate:g}, schedule=\'cosine\')]"')


def _check_evaluations(old_timeline: Timeline, new_timeline: Timeline, new: cfg.Config, optimizer: optim.Optimizer,
                       new_run: str, step: int) -> bool:
    """Return whether the old run was evaluated once more than the new one, at its end.

    Raises:
      UserError: evaluations differ otherwise, or the additional one has changed the run.
    """
    old_steps, new_steps = (_evaluation_steps(timeline, new.eval.every, step) for timeline in (old_timeline, new_timeline))
    if old_steps == new_steps:
        return False
    if old_steps[:-1] != new_steps:
        raise UserError(f'{new_run} is evaluated at other steps than this run was', field='config.eval.every',
                        hint='give it in epochs or steps')
    if new.checkpoint.patience or any(stage.observer for stage in optimizer.stages):
        raise UserError(f'this run was evaluated at its end, step {step}, where {new_run} is not, and evaluations act on it '
                        '(config.checkpoint.patience, the schedule plateau)', field='config.eval.every')
    return True


def _describe_learning_rates(optimizer: optim.Optimizer, timeline: Timeline, step: int) -> str:
    """Return a sentence that describes the learning rate from `step` on."""
    stage = optimizer.stages[timeline.phase(step).stage]
    first, last = (float(stage.schedule(s - stage.start)) for s in (step, timeline.total - 1))
    event = 'a new stage begins' if stage.start == step else 'its schedule goes on'
    rates = f'a learning rate of {first:.4g}' if first == last else f'learning rates from {first:.4g} to {last:.4g}'
    scaling = ', scaled as the plateau has observed so far' if stage.observer else ''
    return f'{event}, with {rates}{scaling}'


def check_run(folder: str, config: cfg.Config, num_train: int) -> bool:
    """Return whether a config extends the run in a workdir; False if there is no run or its config is the same.

    Raises:
      UserError: the run cannot be extended, see `check`, or it ended before its last step.
    """
    path = os.path.join(folder, 'config.json')
    if not os.path.exists(path):
        return False
    old = workdir.read_config(folder)
    if not cfg.differences(old, config):
        return False
    with contextlib.closing(Checkpoints(folder, config.checkpoint, read_only=True)) as checkpoints:
        step = max(checkpoints.steps(), default=0)
    total, summary_path = Timeline(old, num_train).total, os.path.join(folder, 'summary.json')
    if os.path.exists(summary_path):
        last_step = workdir.read_json(summary_path)['steps']
        if last_step < total:
            raise UserError(f'the run in {folder!r} ended at step {last_step} of {total}, by config.checkpoint.patience: '
                            'a longer one would have ended there, too')
    outlook = check(old, config, num_train, step)
    log.info('the run in %s is extended from %d to %d steps: %s', folder, total, Timeline(config, num_train).total, outlook)
    return True


def archive_results(folder: str) -> None:
    """Rename the report and the summary of the run before it is extended: `report.step<N>.md`, `summary.step<N>.json`."""
    summary_path = os.path.join(folder, 'summary.json')
    if not os.path.exists(summary_path):
        return
    step = workdir.read_json(summary_path)['steps']
    for name, extension in (('report', 'md'), ('summary', 'json')):
        with contextlib.suppress(FileNotFoundError):
            os.replace(os.path.join(folder, f'{name}.{extension}'), os.path.join(folder, f'{name}.step{step}.{extension}'))
