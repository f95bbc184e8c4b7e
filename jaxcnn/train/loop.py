"""The training loop: dispatches steps, logs, evaluates, saves and resumes.

It waits for the device where figures are due, and where `RUN_AHEAD` dispatches, or as many as there is memory for, are under
way: metrics stay there until a logged interval is over, and are fetched after the next steps have been dispatched.
"""

import collections
import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from jaxcnn import config as cfg
from jaxcnn import experiment, plugins
from jaxcnn.cache_folder import cache_folder
from jaxcnn.errors import Diverged, UserError, from_os_error
from jaxcnn.metrics import Measurement
from jaxcnn.tasks import Accumulated
from jaxcnn.timeline import Phase, displayed_epoch
from jaxcnn.train import extend, parallel, signals, workdir
from jaxcnn.train.checkpoint import Checkpoints
from jaxcnn.train.finish import best_state, summarize, write_results
from jaxcnn.train.progress import Progress
from jaxcnn.train.run_progress import RunProgress
from jaxcnn.train.setup import Setup
from jaxcnn.train.state import TrainState, variables

RUN_AHEAD = 4  # dispatches in flight
MOST_AHEAD = 1 << 31  # bytes of temporary memory, which a CPU gives to all of them beside the one that is running


@dataclasses.dataclass
class _Dispatch:
    """Steps that were handed to the device, and their scalars there."""

    start: int
    count: int
    images: int
    scalars: Any
    logs: bool  # a logged interval ends in it


class TrainingRun:
    """One run: the loop over its steps. As a context manager it is opened, and whatever was opened is closed.

    Attributes:
      setup: what the run is made of.
      state: after `step` steps.
      checkpoints: of the run.
      progress: what the loop remembers beside the state.
      watched: the split that is evaluated while the run trains.
      chief: whether this process writes the run's files.
    """

    def __init__(self, config: cfg.Config, folder: str, stop: signals.StopRequest):
        self.started = self._counted = time.monotonic()
        self.setup = Setup(config, folder)
        self._stop = stop
        self._resources = contextlib.ExitStack()
        self.watched = 'val' if 'val' in self.setup.dataset.splits else 'test'
        self.chief = jax.process_index() == 0
        self.progress = RunProgress()
        self.last_evaluation: dict[str, float] | None = None
        self._display = Progress(self.setup.timeline.total, self._displayed_epoch(self.setup.timeline.total))
        self._pending: collections.deque[_Dispatch] = collections.deque()
        self._clock = 0.0
        self._interval_images, self._interval_seconds = 0, 0.0
        self._asked = self._logged = 0
        self._compiled: set[tuple[Phase, int]] = set()
        self._ahead = RUN_AHEAD

    def __enter__(self) -> 'TrainingRun':
        with contextlib.ExitStack() as resources:
            self._open(resources)
            self._resources = resources.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._resources.close()

    def _open(self, resources: contextlib.ExitStack) -> None:
        """Restore the newest whole checkpoint, or begin; open the logs."""
        setup, folder = self.setup, self.setup.folder
        setup.check_batch_norm()
        template, data_path = setup.template, os.path.join(folder, 'data.json')
        if os.path.exists(data_path):
            setup.dataset.check_same(workdir.read_json(data_path), folder)
        extends = extend.check_run(folder, setup.config, setup.timeline.num_train)
        self.checkpoints = Checkpoints(folder, setup.config.checkpoint, setup.experiment.best)
        resources.callback(self.checkpoints.close)
        resources.callback(setup.feed.close)
        newest = next(self.checkpoints.undamaged(template), None)
        damaged = [s for s in self.checkpoints.steps() if s > (newest[0] if newest else 0)]
        steps = parallel.process_allgather(newest[0] if newest else 0)  # and all have looked before one is moved
        if len(set(steps)) > 1:
            raise UserError(f'the processes do not see the same checkpoints in {folder!r}: they would go on from steps '
                            f'{", ".join(map(str, steps))}; it must be a folder that all of them share')
        if not newest and (unreadable := self.checkpoints.steps()):
            raise UserError(f'none of the checkpoints in {folder!r}, {", ".join(map(str, unreadable))}, can be read: '
                            'they are damaged, or of another version, as is told above; a new workdir begins anew')
        if self.chief:
            if extends:
                extend.archive_results(folder)
            plugins.save_copies(setup.config.plugins, folder)
            workdir.write_json(os.path.join(folder, 'config.json'), cfg.to_dict(setup.config))
            workdir.write_json(data_path, setup.dataset.info())
        if newest:
            step, host_state, progress = newest
            self.state = setup.backend.replicate(setup.add_optimizer_stages(host_state))
            self.progress = RunProgress(**progress)
            self._display.say(f'resuming {folder} from step {step} of {setup.timeline.total}')
        else:
            step = 0
            unit = setup.config.optim.accumulate * setup.backend.num_devices
            if rounding := setup.timeline.rounding_message(unit):
                self._display.say(rounding)
            self.state = setup.initial_state()
        for later in damaged:
            self.checkpoints.discard(later)
        self.step, self._saved = step, (step, self.progress.evaluated_step == step)
        self._stop.saved_step = step
        self.metrics_log = workdir.MetricsLog(folder, step) if self.chief else None
        if self.metrics_log:
            resources.callback(self.metrics_log.close)
        if not newest and self.chief:
            setup.draw_first_batch(self.state)

    # the loop

    def train(self) -> None:
        """Trains to the end of the run.

        Raises:
          Interrupted: a signal came; the state is saved.
          Diverged: the loss is not finite.
          UserError: a file could not be written.
        """
        every, timeline = self.setup.config.checkpoint.every or self.setup.config.eval.every, self.setup.timeline
        while True:
            if self.progress.evaluated_step != self.step and timeline.is_multiple(self.step, self.setup.config.eval.every):
                self._evaluate()
            finished = self.step == timeline.total or self._out_of_patience()
            stopping = self._stopping()
            better = self.progress.evaluated_step == self.step and self.progress.evaluations_since_best == 0
            if stopping or finished or (better and self.watched == 'val') or timeline.is_multiple(self.step, every):
                self._save()
            if finished:
                break
            if stopping:
                self.checkpoints.wait()
                raise signals.Interrupted(self._stop.signum, self.step)
            self.advance(every)
        self.checkpoints.wait()

    def _stopping(self) -> bool:
        """Whether a signal came; several processes agree on it, every tenth time they are asked."""
        if jax.process_count() == 1:
            return self._stop.acknowledge()
        self._asked += 1
        if self._asked % 10:
            return False
        if heard := int(parallel.process_allgather(self._stop.signum).max()):  # 0 would undo a signal that came meanwhile
            self._stop.signum = heard
        return self._stop.acknowledge() if heard else False

    def _out_of_patience(self) -> bool:
        patience = self.setup.config.checkpoint.patience
        return 0 < patience <= self.progress.evaluations_since_best

    def advance(self, save_every: cfg.Duration) -> None:
        """Dispatch the next steps, and take in the scalars of steps that are over."""
        end = self.planned_end(save_every)
        inputs = self._next_inputs(end)
        program = self._compiled_program(inputs)
        self._dispatch(program, inputs, end)
        self._drain_due()

    def planned_end(self, save_every: cfg.Duration) -> int:
        """Return the step at which the next dispatch ends.

        A dispatch holds `steps_per_dispatch` steps. Where an evaluation, a checkpoint or another phase comes before that
        many, it holds as many as there are until then on a CPU with the data on it, and elsewhere a single one, by a second
        program. Where dispatches begin depends on the step alone, so that a resumed run repeats them.
        """
        timeline, step, chunk = self.setup.timeline, self.step, self.setup.steps_per_dispatch
        end = min(step // chunk * chunk + chunk, timeline.phase_end(step),
                  timeline.next_multiple(step, self.setup.config.eval.every), timeline.next_multiple(step, save_every))
        return end if end - step == chunk or self.setup.variable_length else step + 1

    def _next_inputs(self, end: int) -> tuple:
        """Return what the program takes for the steps up to `end`; where the data fails, the state is saved first."""
        try:
            return self.setup.inputs(self.step, end - self.step)
        except Exception:
            if jax.process_count() == 1:
                try:
                    self._save()
                    self.checkpoints.wait()
                except UserError as e:  # a full disk, perhaps, which is the cause of both
                    self._display.say(str(e))
            raise

    def _compiled_program(self, inputs: tuple) -> jax.stages.Wrapped:
        """Return the program of the phase, compiled for the number of steps that `inputs` are for."""
        phase = self.setup.timeline.phase(self.step)
        program = self.setup.program(phase)
        kind = (phase, len(inputs[2]))
        if kind in self._compiled:
            return program
        self._compiled.add(kind)
        self.drain()
        self.checkpoints.wait()  # a signal may end the process while it compiles
        compiled = program.lower(self.state, *inputs).compile()  # later calls find it
        if jax.default_backend() == 'cpu':
            temporary = getattr(compiled.memory_analysis(), 'temp_size_in_bytes', 0)
            self._ahead = min(self._ahead, MOST_AHEAD // max(1, temporary))
        parallel.process_allgather(0)  # the slowest of several processes
        self._clock = time.monotonic()
        self._display.say(f'step {self.step}: compiled, {self._clock - self.started:.1f} s after the start')
        return program

    def _dispatch(self, program: jax.stages.Wrapped, inputs: tuple, end: int) -> None:
        """Hand the steps up to `end` to the device, which may have `self._ahead` dispatches waiting."""
        timeline, step = self.setup.timeline, self.step
        self.state, scalars = program(self.state, *inputs)
        self.step, self._stop.unsaved = end, True
        logs = timeline.next_logged(step) <= end
        self._pending.append(_Dispatch(step, end - step, timeline.examples(end) - timeline.examples(step), scalars, logs))
        if len(self._pending) > self._ahead:
            jax.block_until_ready(self._pending[-self._ahead - 1].scalars)

    def _drain_due(self) -> None:
        """Take in the scalars of dispatches in whose intervals something is to be logged, or displayed by now.

        Those of the newest dispatch wait until the next one is under way, so that the device never waits for the host.
        """
        newest = self._pending[-1]
        while self._pending and self._pending[0].start < self._logged:
            self._drain_one()
        if newest.logs:
            self._logged = newest.start + newest.count
        while self._display.due and self._pending and all(x.is_ready() for x in self._pending[0].scalars.values()):
            self._drain_one()

    def _interrupted(self) -> bool:
        """Whether a signal came that this process may heed by itself."""
        return bool(self._stop) and jax.process_count() == 1

    def drain(self) -> None:
        """Waits for all dispatched steps and takes in their metrics."""
        while self._pending:
            self._drain_one()

    def _drain_one(self) -> None:
        """Fetches the metrics of the oldest dispatch; writes a row where an interval ends."""
        done = self._pending.popleft()
        values = self.setup.backend.fetch(done.scalars)
        rates = values.pop('learning_rate')
        now = time.monotonic()
        seconds, self._clock = now - self._clock, now
        self.progress.timed_images += done.images
        self.progress.timed_seconds += seconds
        self._interval_images += done.images
        self._interval_seconds += seconds
        bad = np.flatnonzero(~np.isfinite(values['loss']))
        if len(bad):
            self._stop_for_nan(done.start + int(bad[0]), float(values['loss'][bad[0]]))
        p = self.progress
        rate, overall = self._interval_images / self._interval_seconds, p.timed_images / p.timed_seconds
        for i in range(done.count):
            p.interval_steps += 1
            for name, of_steps in values.items():
                p.interval_sums[name] = p.interval_sums.get(name, 0.0) + float(of_steps[i])
            step = done.start + i + 1
            means = {f'train_{name}': total / p.interval_steps for name, total in p.interval_sums.items()}
            if done.logs and self.setup.timeline.next_logged(step - 1) == step:
                if self.metrics_log:
                    self.metrics_log.write(step, {'epoch': self.setup.timeline.epoch(step), **means,
                                                  'learning_rate': float(rates[i]),
                                                  'images_per_second': rate})
                p.interval_steps, p.interval_sums = 0, {}
                self._interval_images, self._interval_seconds = 0, 0.0
        left = (self.setup.timeline.examples(self.setup.timeline.total) - self.setup.timeline.examples(step)) / overall
        task_means = {name: means[f'train_{name}'] for name in values if name != 'grad_norm'}
        self._display.show(step, self._displayed_epoch(step), task_means, rate, left, done.logs)

    def _displayed_epoch(self, step: int) -> float:
        return displayed_epoch(self.setup.timeline.epoch(step), self.setup.config.duration)

    def _stop_for_nan(self, step: int, value: float, what: str = 'the loss at') -> None:
        self.checkpoints.wait()
        kept = self.checkpoints.steps()
        raise Diverged(f'{what} step {step} is {value}: training stopped; ' + (
            f'the last good checkpoint is step {kept[-1]}' if kept else 'there is no checkpoint yet') +
            '. A lower config.optim.learning_rate or config.optim.clip_norm may help')

    def evaluate(self, state: TrainState, split: str,
                 tta: bool = False) -> tuple[dict[str, float], dict[bool, Accumulated]] | None:
        """Return the metrics of a split by the names of their measurements, and what the task has accumulated, without and
        with (True) the moving average; None where a signal came. `tta`: also with test-time augmentation."""
        row, accumulated, task = {}, {}, self.setup.experiment.task
        for ema, placed in variables(state).items():
            for augmented in (False, True) if tta else (False,):
                result = self.setup.evaluator(placed, split, self._interrupted, augmented)
                if result is None:
                    return None
                for name, value in task.compute(result).items():
                    row[Measurement(split, task.metrics[name], ema, augmented).name] = value
                if not augmented:
                    accumulated[ema] = result
        return row, accumulated

    def _evaluate(self) -> None:
        while self._pending and not self._interrupted():
            self._drain_one()
        evaluated = self.evaluate(self.state, self.watched)
        if evaluated is None:
            return
        row, _ = evaluated
        for name, value in row.items():
            if not math.isfinite(value):
                self._stop_for_nan(self.step, value, f'{name} after')
        self.last_evaluation = row
        if self.metrics_log:
            self.metrics_log.write(self.step, {'epoch': self.setup.timeline.epoch(self.step), **row})
        stage = self.setup.timeline.phase(min(self.step, self.setup.timeline.total - 1)).stage
        if self.watched == 'val':
            best, optimizer = self.setup.experiment.best, self.setup.experiment.optimizer
            self.progress.observe(row[best.name], best.metric)
            if optimizer.observes(stage):
                opt_state = optimizer.observe(self.setup.backend.fetch(self.state.opt_state), stage, row['val_loss'])
                self.state = self.state.replace(opt_state=self.setup.backend.replicate(jax.device_get(opt_state)))
        self.progress.evaluated_step = self.step
        experiment = self.setup.experiment
        hidden = {m.name for m in experiment.measurements(tta=False).values() if not experiment.informs(m.metric)}
        self._display.say(f'step {self.step}: ' + '  '.join(f'{k} {v:.4f}' for k, v in row.items() if k not in hidden))
        self._clock = time.monotonic()

    def _save(self) -> None:
        evaluated = self.progress.evaluated_step == self.step
        if self._saved == (self.step, evaluated):
            return
        self.drain()
        state = self.setup.backend.fetch(self.state)
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)):
            self._stop_for_nan(self.step, math.nan, 'a parameter after')
        now = time.monotonic()
        self.progress.wall_seconds += now - self._counted
        self._counted = now
        self.progress.look_at_memory()
        self.checkpoints.save(self.step, state, dataclasses.asdict(self.progress),
                              self.last_evaluation if evaluated and self.watched == 'val' else None)
        if self.metrics_log:
            self.metrics_log.flush()
        self._saved = (self.step, evaluated)
        self._stop.saved_step, self._stop.unsaved = self.step, False
        self._clock = time.monotonic()

    def finish(self) -> dict[str, Any] | None:
        """Evaluate the best checkpoint on every part, write the report, and return the summary; None where a signal came."""
        setup, experiment = self.setup, self.setup.experiment
        best, state = best_state(self.checkpoints, setup.template, self.step)
        placed = self.state if state is None else setup.backend.replicate(state)
        row: dict[str, float] = {}
        for split in ('val', 'test'):
            if split in setup.dataset.splits:
                evaluated = self.evaluate(placed, split, tta=experiment.preprocessor.tta is not None)
                if evaluated is None:
                    return None
                row.update(evaluated[0])
                accumulated, reported_split = evaluated[1][experiment.best.ema], split
        self.progress.look_at_memory()
        summary = {**summarize(experiment, setup.folder, row, self.step, best, setup.backend.num_devices),
                   'params': sum(math.prod(p.shape) for p in jax.tree.leaves(setup.template.params)),
                   **self.progress.summary()}
        if self.chief:
            write_results(experiment, setup.folder, summary, reported_split, accumulated)
        return summary


def train_and_evaluate(config: cfg.Config | ml_collections.ConfigDict | Mapping[str, Any], folder: str, *,
                       extends: bool = False, end_process: bool = False) -> dict[str, Any]:
    """Trains, or goes on with the run in the workdir, and evaluates it.

    Args:
      config: of the run.
      folder: the workdir; made where it is missing.
      extends: the run there may be continued with a longer `config.duration`, and with further stages in
        `config.optim.switch`, where it then equals a run that was started so.
      end_process: a signal may end the process, as a command's own: see `signals.stop_on_signals`.

    Returns:
      The summary, as it is in `summary.json`: accuracies in [0, 1], of the best checkpoint by
      `config.checkpoint.metric`; what was not measured is None.

    Raises:
      UserError: what the person can put right: the config, the data, the workdir; `Diverged`: a loss that is not finite.
      Interrupted: SIGTERM, SIGINT or SIGHUP came; the state of the step that was under way is saved.
    """
    parsed = cfg.parse(config)
    config = parallel.run_on_all_processes(lambda: experiment.check(parsed))
    with signals.stop_on_signals(end_process) as stop, contextlib.ExitStack() as resources:
        parallel.run_on_all_processes(lambda: resources.enter_context(workdir.claim(folder, config, extends)))
        try:
            with parallel.run_on_all_processes(lambda: TrainingRun(config, folder, stop)) as run:
                run.train()
                summary = run.finish()
                signum = int(parallel.process_allgather(stop.signum).max())
                if summary is None or signum:  # what comes after, another seed, is not to begin
                    raise signals.Interrupted(signum, run.step)
                return summary
        except OSError as e:
            raise from_os_error(e, folder, cache_folder(config.data.cache_dir)) from e
        except jax.errors.JaxRuntimeError as e:
            if 'RESOURCE_EXHAUSTED' not in str(e):
                raise
            raise UserError('the device has not enough memory: a smaller config.batch_size, a larger '
                            'config.optim.accumulate or config.data.placement=host may help') from e
