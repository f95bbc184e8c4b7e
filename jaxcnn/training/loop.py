"""The training loop: it dispatches steps, logs, evaluates, saves and resumes.

The loop waits for the device only where values are due and where enough dispatches are under way. Scalars stay on the device
until a logged interval is over, and are fetched after the next steps have been dispatched.
"""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxcnn import config as cfg
from jaxcnn import plugins
from jaxcnn.data import Source
from jaxcnn.errors import Diverged, UserError
from jaxcnn.metrics import Measurement
from jaxcnn.tasks import Accumulated
from jaxcnn.timeline import Phase, displayed_epoch
from jaxcnn.training import distillation, initialize, parallel, signals
from jaxcnn.training.callbacks import Callback, CallbackList
from jaxcnn.training.checkpoint import Checkpoints
from jaxcnn.training.dispatch import Dispatch, DispatchQueue, dispatch_end
from jaxcnn.training.extend import archive_results, check_run
from jaxcnn.training.finish import best_state, summarize, summarize_pruning, write_results
from jaxcnn.training.monitor import Monitor
from jaxcnn.training.progress import ProgressDisplay
from jaxcnn.training.run_progress import RunProgress
from jaxcnn.training.setup import Setup
from jaxcnn.training.state import TrainState, variables
from jaxcnn.training.workdir import MetricsLog, read_json, write_json


class TrainingRun:
    """A run: the loop over its steps. It must be entered as a context manager, which closes what it has opened.

    Args:
      config: config of the run.
      folder: the workdir.
      stop: the request of a signal to stop the run.
      source: the data; None: what the config names.
      callbacks: see `callbacks.Callback`.
      initial_variables: see `Setup`.

    Attributes:
      setup: the objects that the run needs.
      step: number of steps that are dispatched.
      state: state after these steps.
      dispatches: dispatches whose scalars are not recorded yet.
      checkpoints: checkpoints of the run.
      progress: progress that checkpoints save beside the state.
      monitored_split: the split that is evaluated during training.
      is_main_process: whether this process writes the files of the run.
    """

    def __init__(self, config: cfg.Config, folder: str, stop: signals.StopRequest, source: Source | None = None,
                 callbacks: Sequence[Callback] = (), initial_variables: Mapping[str, Any] | None = None):
        self._start_time = self._wall_seconds_until = time.monotonic()
        self._callbacks = CallbackList(callbacks)  # checks them before the data is loaded
        self.setup = Setup(config, folder, source, initial_variables)
        self._stop = stop
        self._resources = contextlib.ExitStack()
        self.monitored_split = 'val' if 'val' in self.setup.dataset.splits else 'test'
        self.is_main_process = jax.process_index() == 0
        self.progress = RunProgress()
        self.dispatches = DispatchQueue()
        self._display = ProgressDisplay(self.setup.timeline.total, self._displayed_epoch(self.setup.timeline.total))
        self._last_metrics: dict[str, float] | None = None  # of the last evaluation
        self._timed_until = 0.0
        self._interval_images, self._interval_seconds = 0, 0.0
        self._num_stop_checks = 0
        self._compiled: set[tuple[Phase, int]] = set()

    def __enter__(self) -> 'TrainingRun':
        with contextlib.ExitStack() as resources:
            self._open(resources)
            self._resources = resources.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._resources.close()

    def _open(self, resources: contextlib.ExitStack) -> None:
        """Restore the newest undamaged checkpoint or make the initial state, and open the logs."""
        setup, folder = self.setup, self.setup.folder
        setup.check_train_sizes()
        setup.check_batch_norm()
        template, data_path = setup.template, os.path.join(folder, 'data.json')
        if os.path.exists(data_path):
            setup.dataset.check_same(read_json(data_path), folder)
        is_extended = check_run(folder, setup.config, setup.timeline.num_train)
        self.checkpoints = Checkpoints(folder, setup.config.checkpoint, setup.experiment.best,
                                       permanent_steps=setup.timeline.permanent_checkpoints)
        resources.callback(self.checkpoints.close)
        resources.callback(lambda: setup.feed.close())  # pseudo-labels replace the feed
        newest = next(self.checkpoints.undamaged(template), None)
        self.step = newest[0] if newest else 0
        damaged_steps = [step for step in self.checkpoints.steps() if step > self.step]
        self._check_restored_step(newest is not None)
        config = initialize.with_recorded_checksum(setup.config, folder)
        config = distillation.with_checksums(config, folder, setup.loss_terms)
        # before any file is written, because both may need weights that cannot be read
        if newest:
            setup.check_initial_variables(config)
            restored_state = setup.add_optimizer_stages(newest[1], config)
            initial_weights = None
        else:
            initial_weights = setup.read_initial_weights(config)
            _ = setup.initial_masks
            if initial_weights:
                config = initialize.with_checksum(config, initial_weights.checksum)
        if self.is_main_process:
            if is_extended:
                archive_results(folder)
            plugins.save_copies(setup.config.plugins, folder)
            write_json(os.path.join(folder, 'config.json'), cfg.to_dict(config))
            write_json(data_path, setup.dataset.info())
            if initial_weights:
                initialize.write_table(initial_weights, folder)
        if newest:
            self.state = setup.backend.replicate(restored_state)
            self.progress = RunProgress(**newest[2])
            if self.progress.pseudo_labels is not None:
                setup.set_pseudo_labels(self.progress.read_pseudo_labels(len(self.progress.pseudo_labels)))
            self._display.log(f'resuming {folder} from step {self.step} of {setup.timeline.total}')
        else:
            batch_size_divisor = setup.config.optim.accumulate * setup.backend.num_devices
            if message := setup.timeline.rounding_message(batch_size_divisor):
                self._display.log(message)
            self.state = setup.initial_state(initial_weights)
        for step in damaged_steps:
            self.checkpoints.discard(step)
        self._saved = (self.step, self.progress.evaluated_step == self.step)
        self._stop.saved_step = self.step
        self.metrics_log = MetricsLog(folder, self.step) if self.is_main_process else None
        self._monitor = Monitor(setup, self.metrics_log) if self.metrics_log else None
        if self.metrics_log:
            resources.callback(self.metrics_log.close)
        if not newest and self.is_main_process:
            setup.draw_first_batch(self.state)
        self._callbacks.call('on_begin', setup.config, folder, self.step)

    def _check_restored_step(self, is_restored: bool) -> None:
        """Raise a UserError if processes restore different checkpoints, or if there are checkpoints but none can be read.

        When it returns, all processes have looked at the checkpoints, so that damaged ones can be moved.
        """
        folder = self.setup.folder
        process_steps = parallel.process_allgather(self.step)
        if len(set(process_steps)) > 1:
            raise UserError('the processes see different checkpoints in this workdir and would resume from the steps '
                            f'{", ".join(map(str, process_steps))}', field=folder, hint='they must share the folder')
        unreadable = [] if is_restored else self.checkpoints.steps()
        if unreadable:
            raise UserError(f'none of the checkpoints in {folder!r}, {", ".join(map(str, unreadable))}, can be read: they '
                            'are damaged or of another version, see above', hint='use a new workdir')

    # the loop

    def train(self) -> None:
        """Train to the end of the run.

        Raises:
          Interrupted: a signal came; the state is saved.
          Diverged: the loss or a parameter is not finite.
          UserError: a file could not be written.
        """
        config, timeline = self.setup.config, self.setup.timeline
        save_every = config.checkpoint.every or config.eval.every
        while True:
            if self.progress.evaluated_step != self.step and timeline.is_multiple(self.step, config.eval.every):
                self._evaluate()
            if self.step in timeline.pseudo_label_steps and self.progress.pseudo_label_step != self.step:
                self._predict_labels()
            is_finished = self.step == timeline.total or self._is_out_of_patience()
            is_stopped = self.should_stop()
            is_best = (self.progress.evaluated_step == self.step and self.progress.evaluations_since_best == 0
                       and self._is_pruned())
            is_due = self.step in timeline.permanent_checkpoints or timeline.is_multiple(self.step, save_every)
            if is_stopped or is_finished or is_due or (is_best and self.monitored_split == 'val'):
                self._save()
            if is_finished:
                break
            if is_stopped:
                self.checkpoints.wait()
                raise signals.Interrupted(self._stop.signum, self.step)
            self.advance(save_every)
        self.checkpoints.wait()

    def should_stop(self) -> bool:
        """Return whether a signal has asked the run to stop. Several processes agree on it in every tenth call."""
        if jax.process_count() == 1:
            return self._stop.acknowledge()
        self._num_stop_checks += 1
        if self._num_stop_checks % 10:
            return False
        signum = int(parallel.process_allgather(self._stop.signum).max())
        if not signum:  # without an assignment, which would undo a signal that came meanwhile
            return False
        self._stop.signum = signum
        return self._stop.acknowledge()

    def _is_pruned(self) -> bool:
        """Return whether the final sparsity of `config.pruning` is reached, from which on a checkpoint may be the best."""
        return self.step >= max(self.setup.timeline.pruning_steps, default=0)

    def _is_out_of_patience(self) -> bool:
        patience = self.setup.config.checkpoint.patience
        return 0 < patience <= self.progress.evaluations_since_best

    def advance(self, save_every: cfg.Duration) -> None:
        """Dispatch the next steps, and record the scalars of earlier ones that are due."""
        setup, start = self.setup, self.step
        end = dispatch_end(setup.timeline, start, setup.steps_per_dispatch, [setup.config.eval.every, save_every],
                           setup.variable_length)
        inputs = self._next_inputs(end)
        program = self._compiled_program(inputs)
        self._dispatch(program, inputs, end)
        for dispatch in self.dispatches.pop_due(lambda: self._display.is_due):
            self._record(dispatch)
        if self._monitor and self._monitor.is_due(start, end):
            self.drain()
            self._monitor.write(start, end, self.state)
            self._timed_until = time.monotonic()

    def _next_inputs(self, end: int) -> tuple:
        """Return the program's arguments for the steps up to `end`; if the data fails, the state is saved first."""
        try:
            return self.setup.inputs(self.step, end - self.step)
        except Exception:
            if jax.process_count() == 1:
                try:
                    self._save()
                    self.checkpoints.wait()
                except UserError as e:  # perhaps a full disk, which is the cause of both errors
                    self._display.log(str(e))
            raise

    def _compiled_program(self, inputs: tuple) -> jax.stages.Wrapped:
        """Return the program of the phase, compiled for the number of steps of `inputs`."""
        phase = self.setup.timeline.phase(self.step)
        program = self.setup.program(phase)
        offsets = inputs[2]
        key = (phase.program, len(offsets))
        if key in self._compiled:
            return program
        self._compiled.add(key)
        self.drain()
        self.checkpoints.wait()  # a signal may end the process while it compiles
        compiled = program.lower(self.state, *inputs).compile()  # calls of the program find it in the cache
        if jax.default_backend() == 'cpu':
            self.dispatches.limit_memory(getattr(compiled.memory_analysis(), 'temp_size_in_bytes', 0))
        parallel.process_allgather(0)  # wait for the slowest process
        self._timed_until = time.monotonic()
        self._display.log(f'step {self.step}: compiled, {self._timed_until - self._start_time:.1f} s after the start')
        return program

    def _dispatch(self, program: jax.stages.Wrapped, inputs: tuple, end: int) -> None:
        """Hand the steps up to `end` to the device."""
        timeline, step = self.setup.timeline, self.step
        self.state, scalars = program(self.state, *inputs)
        self.step, self._stop.unsaved = end, True
        num_images = timeline.examples(end) - timeline.examples(step)
        self.dispatches.append(Dispatch(step, end - step, num_images, scalars, timeline.next_logged(step) <= end))

    def _is_interrupted(self) -> bool:
        """Return whether a signal came and this process may stop without asking others."""
        return bool(self._stop) and jax.process_count() == 1

    def drain(self) -> None:
        """Wait for all dispatched steps, and record their scalars."""
        while self.dispatches:
            self._record(self.dispatches.popleft())

    def _record(self, dispatch: Dispatch) -> None:
        """Fetch the scalars of a dispatch, and log their means where an interval ends."""
        timeline, progress = self.setup.timeline, self.progress
        values = self.setup.backend.fetch(dispatch.scalars)
        learning_rates = values.pop('learning_rate')
        now = time.monotonic()
        seconds, self._timed_until = now - self._timed_until, now
        progress.timed_images += dispatch.num_images
        progress.timed_seconds += seconds
        self._interval_images += dispatch.num_images
        self._interval_seconds += seconds
        rate = self._interval_images / self._interval_seconds
        scaling = {name: values.pop(name) for name in ('loss_scale', 'skipped_steps', 'has_failed') if name in values}
        is_skipped = values.pop('is_skipped', np.zeros_like(learning_rates, bool))
        self._check_loss_scale(dispatch.start, scaling)
        not_finite = np.flatnonzero(~np.isfinite(values['loss']) & ~is_skipped)
        if len(not_finite):
            step = dispatch.start + int(not_finite[0])
            message = f'the loss at step {step} is {float(values["loss"][not_finite[0]])}'
            if not step:
                raise Diverged(f'{message}, before the first update: training stopped',
                               hint='the learning rate has no part in it; check the network, its initialisation, the loss '
                               'and the data')
            self._raise_diverged(message)
        for i, step in enumerate(range(dispatch.start + 1, dispatch.end + 1)):
            step_scalars = {} if is_skipped[i] else {name: float(of_steps[i]) for name, of_steps in values.items()}
            means = progress.add_step(step_scalars)
            if dispatch.is_logged and timeline.next_logged(step - 1) == step:
                if self.metrics_log:
                    row = self.metrics_log.write(step, timeline.epoch(step), 'train', means,
                                                 learning_rate=float(learning_rates[i]), images_per_second=rate,
                                                 **{name: float(of_steps[i]) for name, of_steps in scaling.items()})
                    self._callbacks.on_log(step, row)
                progress.start_interval()
                self._interval_images, self._interval_seconds = 0, 0.0
        overall_rate = progress.timed_images / progress.timed_seconds
        seconds_left = (timeline.examples(timeline.total) - timeline.examples(dispatch.end)) / overall_rate
        task_means = {name: mean for name, mean in means.items() if name != 'grad_norm'}
        self._display.show(dispatch.end, self._displayed_epoch(dispatch.end), task_means, rate, seconds_left,
                           dispatch.is_logged)

    def _displayed_epoch(self, step: int) -> float:
        return displayed_epoch(self.setup.timeline.epoch(step), self.setup.config.duration)

    def _check_loss_scale(self, start: int, scaling: dict[str, np.ndarray]) -> None:
        """Raise `Diverged` if a step was skipped that no smaller scale of the loss could have saved.

        Args:
          start: first step of the dispatch.
          scaling: scalars of the loss scaling, (steps,) each, from which `has_failed` is removed.
        """
        failed = np.flatnonzero(scaling.pop('has_failed', []))
        if len(failed):
            self._raise_diverged(f'the gradients at step {start + int(failed[0])} are not finite, with a loss scale of '
                                 f'{float(scaling["loss_scale"][failed[0]]):g}', ', or another config.optim.loss_scale')

    def _raise_diverged(self, message: str, remedy: str = '') -> None:
        self.checkpoints.wait()
        steps = self.checkpoints.steps()
        checkpoint = f'the last good checkpoint is step {steps[-1]}' if steps else 'there is no checkpoint yet'
        raise Diverged(f'{message}: training stopped; {checkpoint}',
                       hint=f'a lower config.optim.learning_rate or config.optim.clip_norm{remedy} may help')

    def evaluate(self, state: TrainState, split: str,
                 tta: bool = False) -> tuple[dict[Measurement, float], dict[bool, Accumulated]] | None:
        """Return the metrics of a split and what the task has accumulated, or None; see `Evaluator.measure`."""
        return self.setup.evaluator.measure(variables(state), split, self._is_interrupted, tta)

    def _evaluate(self) -> None:
        """Evaluate the monitored split, log its metrics, and update what depends on them."""
        setup, split = self.setup, self.monitored_split
        while self.dispatches and not self._is_interrupted():
            self._record(self.dispatches.popleft())
        evaluated = self.evaluate(self.state, split)
        if evaluated is None:
            return
        values, _ = evaluated
        for measurement, value in values.items():
            if not math.isfinite(value):
                self._raise_diverged(f'{measurement.name} after step {self.step} is {value}')
        self._last_metrics = {measurement.name: value for measurement, value in values.items()}
        if self.metrics_log:
            self.metrics_log.write(self.step, setup.timeline.epoch(self.step), split,
                                   {measurement.name_in_split: value for measurement, value in values.items()})
        self._callbacks.call('on_evaluate', self.step, self._last_metrics)
        if split == 'val':
            best, optimizer = setup.experiment.best, setup.experiment.optimizer
            if self._is_pruned():
                self.progress.observe(values[best], best.metric)
            stage = setup.timeline.phase(min(self.step, setup.timeline.total - 1)).stage
            if optimizer.observed_metric(stage):
                metric = setup.experiment.task.metrics[optimizer.observed_metric(stage)]
                value = values[Measurement('val', metric)]
                loss = 1 - value if metric.better == 'max' else value
                opt_state = optimizer.observe(setup.backend.fetch(self.state.opt_state), stage, loss)
                self.state = self.state.replace(opt_state=setup.backend.replicate(jax.device_get(opt_state)))
        self.progress.evaluated_step = self.step
        texts = [f'{measurement.name} {value:.4f}' for measurement, value in values.items()
                 if setup.experiment.informs(measurement.metric)]
        self._display.log(f'step {self.step}: {"  ".join(texts)}')
        self._timed_until = time.monotonic()

    def _predict_labels(self) -> None:
        """Predict the labels of the unlabelled images, with which the training continues."""
        while self.dispatches and not self._is_interrupted():
            self._record(self.dispatches.popleft())
        labels = self.setup.predict_labels(self.state, self._is_interrupted)
        if labels is None:
            return
        timeline = self.setup.timeline
        new_labels = self.progress.read_pseudo_labels(len(labels)).replaced(
            labels, timeline.examples(self.step), timeline.num_train)
        self.setup.set_pseudo_labels(new_labels)
        self.progress.write_pseudo_labels(new_labels, self.step)
        self._display.log(f'step {self.step}: {(labels >= 0).sum():,} of {len(labels):,} unlabelled images have a '
                          'pseudo-label')
        self._timed_until = time.monotonic()

    def _save(self) -> None:
        """Save a checkpoint, unless that of this step is saved already."""
        is_evaluated = self.progress.evaluated_step == self.step
        if self._saved == (self.step, is_evaluated):
            return
        self.drain()
        state = self.setup.backend.fetch(self.state)
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)):
            self._raise_diverged(f'a parameter after step {self.step} is nan or infinite')
        now = time.monotonic()
        self.progress.wall_seconds += now - self._wall_seconds_until
        self._wall_seconds_until = now
        self.progress.record_memory()
        metrics = self._last_metrics if is_evaluated and self.monitored_split == 'val' and self._is_pruned() else None
        self.checkpoints.save(self.step, state, dataclasses.asdict(self.progress), metrics)
        if self.metrics_log:
            self.metrics_log.flush()
        if self._callbacks.uses('on_checkpoint'):
            self.checkpoints.wait()
            self._callbacks.call('on_checkpoint', self.step, os.path.join(self.checkpoints.folder, str(self.step)))
        self._saved = (self.step, is_evaluated)
        self._stop.saved_step, self._stop.unsaved = self.step, False
        self._timed_until = time.monotonic()

    def finish(self) -> dict[str, Any] | None:
        """Evaluate the best checkpoint on all splits, write the report, and return the summary; None if a signal came."""
        setup, experiment = self.setup, self.setup.experiment
        best_step, host_state = best_state(self.checkpoints, setup.template, self.step)
        state = self.state if host_state is None else setup.backend.replicate(host_state)
        values: dict[Measurement, float] = {}
        for split in ('val', 'test'):
            if split in setup.dataset.splits:
                evaluated = self.evaluate(state, split, tta=experiment.preprocessor.tta is not None)
                if evaluated is None:
                    return None
                split_values, accumulated_by_ema = evaluated
                values.update(split_values)
                reported_split, accumulated = split, accumulated_by_ema[experiment.best.ema]
        teachers = setup.evaluate_teachers(self._is_interrupted)
        if teachers is None:
            return None
        self.progress.record_memory()
        summary = {**summarize(experiment, setup.folder, values, self.step, best_step, setup.backend.num_devices),
                   'params': sum(math.prod(p.shape) for p in jax.tree.leaves(setup.template.params)),
                   **teachers, **self.progress.summary()}
        if setup.pruning:
            summary |= summarize_pruning(setup.folder, setup.backend.fetch(state), self.is_main_process)
        if self.is_main_process:
            write_results(experiment, setup.folder, summary, reported_split, accumulated, setup.dataset)
        self._callbacks.call('on_end', summary)
        return summary
