"""The training loop: dispatches steps, logs, evaluates, saves, resumes, and reports at the end.

Nothing in it waits for the device except where figures are due, or where dispatches that wait would take much memory:
metrics stay there until a logged interval is over, and are fetched after the next steps have been dispatched.
"""

import collections
import contextlib
import dataclasses
import functools
import importlib.metadata
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from jaxcnn import config as cfg
from jaxcnn import data, memory, metrics, models, optim
from jaxcnn.data import augment, feed, normalize, sources, views
from jaxcnn.errors import Diverged, UserError, within
from jaxcnn.timeline import Phase, Timeline
from jaxcnn.train import parallel, signals, whiten, workdir
from jaxcnn.train.checkpoint import Checkpoints
from jaxcnn.train.evaluate import Evaluator
from jaxcnn.train.progress import Progress
from jaxcnn.train.state import TrainState, init_state, variables
from jaxcnn.train.step import METRICS, Preparation, TrainStep, image_gradient, image_keys, many_steps, step_keys

log = logging.getLogger('jaxcnn')
RUN_AHEAD = 4  # dispatches in flight
MOST_AHEAD = 1 << 31  # bytes of temporary memory, which a CPU gives to all of them beside the one that is running


def check_config(config: cfg.Config) -> None:
    """Raises a UserError for names and arguments that are in no registry, before any work is done."""
    if config.data.name not in sources.names():  # another prepared TFDS set, perhaps
        with within('config.data.name'):
            parallel.together(lambda: sources.find(config.data))
    for field, reason in (('num_classes', 'it is the number of classes of the data set'),
                          ('bn_axis', 'config.parallel says over which devices'), ('bn_frozen', 'see config.freeze_bn')):
        if field in config.model.args:
            raise UserError(f'config.model.{field}: cannot be set; {reason}')
    with within('config.model'):
        models.create(config.model.name, **config.model.args)
    with within('config.data.augment'):
        augment.pipeline(config.data.augment)
    with within('config.data.eval_augment'):
        augment.pipeline(config.data.eval_augment, steady=True)
    with within('config.data.normalize'):
        normalize.parse(config.data.normalize)
    with within('config.eval.views'):
        views.parse(config.eval.views)
    optim.check(config.optim)
    schedules = [config.optim.schedule, *(s.schedule for s in config.optim.switch)]
    if config.data.val_fraction == 0 and any(s and s.name == 'plateau' for s in schedules):
        raise UserError('config.optim.schedule: plateau follows the validation loss: set config.data.val_fraction')


@dataclasses.dataclass
class RunProgress:
    """What the loop remembers beside the state; saved with each checkpoint."""

    evaluated_step: int = -1
    best_value: float | None = None
    evaluations_since_best: int = 0
    interval_steps: int = 0
    interval_sums: dict[str, float] = dataclasses.field(default_factory=dict)
    timed_images: int = 0
    timed_seconds: float = 0.0
    wall_seconds: float = 0.0
    peak_host_bytes: int = 0
    peak_device_bytes: int | None = None

    @property
    def images_per_second(self) -> float | None:
        """Of all training, compilation, evaluation and saving left out; None before anything was timed."""
        return self.timed_images / self.timed_seconds if self.timed_seconds else None

    def look_at_memory(self) -> None:
        """Takes in what this process has held at most; processes before it may have held more."""
        host, device = memory.peak()
        self.peak_host_bytes = max(self.peak_host_bytes, host)
        if device is not None:
            self.peak_device_bytes = max(self.peak_device_bytes or 0, device)

    def observe(self, value: float, lower_is_better: bool) -> None:
        """Counts an evaluation."""
        better = self.best_value is None or (value < self.best_value if lower_is_better else value > self.best_value)
        if better:
            self.best_value, self.evaluations_since_best = value, 0
        else:
            self.evaluations_since_best += 1


@dataclasses.dataclass
class _Dispatch:
    """Steps that were handed to the device, and their metrics there."""

    start: int
    count: int
    images: int
    metrics: Any
    logs: bool  # a logged interval ends in it


class Run:
    """One run: everything that belongs to it, and the loop over its steps."""

    def __init__(self, config: cfg.Config, folder: str, stop: signals.StopRequest):
        self.started = self._counted = time.monotonic()
        self.config, self.folder, self._stop = config, folder, stop
        self.dataset = parallel.together(lambda: data.load(config.data))
        self.timeline = Timeline(config, len(self.dataset.splits['train']))
        self._chunk = min(config.parallel.steps_per_dispatch, self.timeline.total)
        self.optimizer = optim.make_optimizer(config.optim, self.timeline)
        self.backend = parallel.make_backend(config.parallel)
        parallel.check_batch_sizes(self.timeline, config.optim.accumulate, self.backend.num_devices)
        self.network = models.create(config.model.name, num_classes=self.dataset.num_classes, **config.model.args)
        self.prepare = Preparation.of(config.data, self.dataset.mean, self.dataset.std, self._fit,
                                      views.parse(config.eval.views))
        self.image_shape = self.prepare.shape(self.dataset.image_shape)
        size = sum(s.nbytes for s in self.dataset.splits.values())
        self.on_device = config.data.placement == 'device' or (
            config.data.placement == 'auto' and size <= feed.DEVICE_LIMIT)
        train = self.dataset.splits['train']
        self.feed = feed.TrainFeed(train, config.seed, self.timeline, on_device=self.on_device,
                                   rows=self.backend.rows, workers=config.data.workers,
                                   most_steps=self._chunk,
                                   balanced=config.data.balance == 'sampling')
        self._epoch = -1  # whose order is on the device
        # whether one program does any number of steps up to a whole dispatch
        self._some = self.on_device and jax.default_backend() == 'cpu'
        self.evaluator = Evaluator(self.network, self.dataset, self.prepare, self.backend, config.eval.batch_size,
                                   self.on_device)
        self.watched = 'val' if 'val' in self.dataset.splits else 'test'
        self.chief = jax.process_index() == 0
        self.progress = RunProgress()
        self.last_evaluation: dict[str, float] | None = None
        self._display = Progress(self.timeline.total, self.timeline.epoch(self.timeline.total))
        self._pending: collections.deque[_Dispatch] = collections.deque()
        self._clock = 0.0
        self._interval_images, self._interval_seconds = 0, 0.0
        self._asked = self._logged = 0
        self._programs: dict[Phase, jax.stages.Wrapped] = {}
        self._compiled: set[tuple[Phase, int]] = set()
        self._ahead = RUN_AHEAD

    # setting up

    def _fit(self, ops: Sequence[normalize.Normalizer],
             pixels: Callable[[jax.Array], jax.Array]) -> Sequence[normalize.Fitted]:
        """What normalisation learns of the training part, kept in the workdir from the run's beginning on; what a start that
        failed before then has left may be of another config or other data."""
        path, train = os.path.join(self.folder, 'normalize.npz'), self.dataset.splits['train']
        begun = os.path.exists(os.path.join(self.folder, 'config.json'))
        block = max(1, min(1024, (1 << 23) // train.image_bytes))
        blocks = np.array_split(np.arange(len(train)), -(-len(train) // block))

        def write() -> None:
            if jax.process_index() == 0 and not (begun and os.path.exists(path)):
                prepare = jax.jit(pixels)
                normalize.write(path, normalize.fit(ops, lambda: (np.asarray(prepare(train.take(b))) for b in blocks)))
        parallel.together(write)
        return normalize.read(path, ops)

    def init_fn(self, begin: Callable[[Any], Any] = lambda params: params) -> Callable[[jax.Array], TrainState]:
        """The pure function from a seed to the first state."""
        return functools.partial(init_state, self.network, self.optimizer, self.image_shape, optim=self.config.optim,
                                 begin=begin)

    def _begin(self, params: Any) -> TrainState:
        """The first state; its parameters have these shapes."""
        chosen = self.config.whiten
        init = self.init_fn(whiten.initializer(chosen, params, self._drawn)) if chosen else self.init_fn()
        return self.backend.init(init, self.config.seed)

    def _drawn(self, count: int) -> np.ndarray:
        """So many training images, drawn by the seed, as the network sees them in evaluation."""
        train = self.dataset.splits['train']
        rng = np.random.default_rng(self.config.seed)
        return np.asarray(jax.jit(self.prepare)(train.take(np.sort(rng.permutation(len(train))[:count]))))

    def open(self) -> None:
        """Restores the newest whole checkpoint, or begins; opens the logs."""
        template = jax.eval_shape(self.init_fn(), np.uint32(0))  # the network takes these images, or says why not
        if any(0 in x.shape for x in jax.tree.leaves(template.params)):
            raise UserError(f'images of {self.image_shape[0]}x{self.image_shape[1]} are too small for '
                            f'{self.config.model.name}: nothing is left of them before its last layers')
        data_path = os.path.join(self.folder, 'data.json')
        if os.path.exists(data_path) and not self.dataset.is_that_of(workdir.read_json(data_path)):
            raise UserError(f'the data (config.data.dir: {self.config.data.dir!r}) is not what {self.folder!r} was trained '
                            'on')
        if self.chief:
            workdir.write_json(os.path.join(self.folder, 'config.json'), cfg.to_dict(self.config))
            workdir.write_json(data_path, self.dataset.info())
        self.checkpoints = Checkpoints(self.folder, self.config.checkpoint)
        found = next(self.checkpoints.newest_whole(template), None)
        damaged = [s for s in self.checkpoints.steps() if s > (found[0] if found else 0)]
        steps = parallel.from_all(found[0] if found else 0)  # and all have looked before one is moved
        if len(set(steps)) > 1:
            raise UserError(f'the processes do not see the same checkpoints in {self.folder!r}: they would go on from steps '
                            f'{", ".join(map(str, steps))}; it must be a folder that all of them share')
        if found:
            step, host_state, kept = found
            self.state = self.backend.place(host_state)
            self.progress = RunProgress(**kept)
            self._display.say(f'resuming {self.folder} from step {step} of {self.timeline.total}')
        else:
            step = 0
            if there := self.checkpoints.steps():
                raise UserError(f'none of the checkpoints in {self.folder!r}, {", ".join(map(str, there))}, can be read: '
                                'they are damaged, or of another version, as is told above; a new workdir begins anew')
            self.state = self._begin(template.params)
        for later in damaged:
            self.checkpoints.discard(later)
        self.step, self._saved = step, (step, self.progress.evaluated_step == step)
        self.metrics_log = workdir.MetricsLog(self.folder, step) if self.chief else None
        self.resident = self.backend.place(feed.resident(self.dataset.splits['train'])) if self.on_device else {}
        if not found and self.chief:
            self._draw_first_batch()

    def _draw_first_batch(self) -> None:
        from jaxcnn.inspect.figures import image_grid, label_title
        positions = self.feed.positions(0)
        train, names, pipeline = self.dataset.splits['train'], self.dataset.class_names, self.prepare.augment
        more = pipeline.mixes if pipeline else 0  # rows that the first ones are mixed with
        rows = np.arange(-more, min(32, len(positions))) % len(positions)
        positions = positions[rows]
        gradient = image_gradient(self.network, self.prepare, variables(self.backend.fetch(self.state))['']) if (
            pipeline and pipeline.attacks) else None
        run_key = jax.random.key(np.uint32(self.config.seed))
        key, _ = step_keys(run_key, 0)
        passes = image_keys(run_key, jax.numpy.asarray(positions)), jax.numpy.zeros(len(positions), np.int32)
        in_pixels = dataclasses.replace(self.prepare, normalize=normalize.Normalization())
        prepare = jax.jit(functools.partial(in_pixels.train, classes=len(names), gradient=gradient, passes=passes))
        pixels, labels = (np.asarray(x)[more:] for x in prepare(train.take(positions), train.labels[positions], key, rows))
        titles = [label_title(label, names) for label in labels]
        image_grid(pixels, titles, os.path.join(self.folder, 'figures', 'first_batch.png'))

    def program(self, phase: Phase) -> jax.stages.Wrapped:
        """The compiled steps of a phase."""
        if phase not in self._programs:
            sync, backend = self.config.parallel.bn_sync, self.backend
            network = self.network.clone(bn_frozen=phase.bn_frozen or self.network.bn_frozen,
                                         bn_axis=backend.axis_name if sync else None)
            step = TrainStep(network, self.optimizer, self.prepare, self.config.optim.label_smoothing,
                             self.config.optim.accumulate, self.config.optim.ema_decay, phase.stage,
                             1 if sync or backend.axis_name else backend.num_devices, backend.axis_name,
                             self.dataset.class_weights() if self.config.data.balance == 'loss' else None,
                             self.config.optim.lookahead, self.timeline.total)
            rows = functools.partial(backend.rows_of_batch, batch_size=phase.batch_size)
            self._programs[phase] = backend.compile_train(many_steps(step, rows, self._some))
        return self._programs[phase]

    def inputs(self, step: int, count: int) -> tuple[Any, Any, np.ndarray, np.uint32]:
        """What the program takes beside the state for `count` steps from `step` on."""
        if self.on_device and self._epoch != (epoch := self.feed.epoch(step)):
            self._epoch = epoch
            self.resident.update(self.backend.place({'order': self.feed.order(epoch), 'epoch': np.int32(epoch)}))
        batches, first = self.feed.batch(step, count), self.feed.first(step, count)
        if self._some:
            first = np.pad(first, (0, self._chunk - count), constant_values=-1)
        return self.backend.put_stacked_rows(batches), self.resident, first, np.uint32(self.config.seed)

    # the loop

    def train(self) -> None:
        """Trains to the end of the run.

        Raises:
          Interrupted: a signal came; the state is saved.
          Diverged: the loss is not finite.
          UserError: a file could not be written.
        """
        every, timeline = self.config.checkpoint.every or self.config.eval.every, self.timeline
        while True:
            if self.progress.evaluated_step != self.step and timeline.is_multiple(self.step, self.config.eval.every):
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
        if heard := int(parallel.from_all(self._stop.signum).max()):  # 0 would undo a signal that came meanwhile
            self._stop.signum = heard
        return self._stop.acknowledge() if heard else False

    def _out_of_patience(self) -> bool:
        patience = self.config.checkpoint.patience
        return 0 < patience <= self.progress.evaluations_since_best

    def advance(self, save_every: cfg.Duration) -> None:
        """Dispatches `steps_per_dispatch` steps, or, where an evaluation, a checkpoint or another phase comes before that
        many, as many as there are until then on a CPU with the data on it, elsewhere one by a second program. Where
        dispatches begin depends on the step alone, so that a resumed run repeats them."""
        timeline, step, chunk = self.timeline, self.step, self._chunk
        end = min(step // chunk * chunk + chunk, timeline.phase_end(step),
                  timeline.next_multiple(step, self.config.eval.every), timeline.next_multiple(step, save_every))
        if end - step < chunk and not self._some:
            end = step + 1
        phase = timeline.phase(step)
        inputs = self.inputs(step, end - step)
        kind = (phase, len(inputs[2]))
        program = self.program(phase)
        if kind not in self._compiled:
            self._compiled.add(kind)
            self.drain()
            compiled = program.lower(self.state, *inputs).compile()  # the call below finds it: its time is that of its steps
            if jax.default_backend() == 'cpu':
                temporary = getattr(compiled.memory_analysis(), 'temp_size_in_bytes', 0)
                self._ahead = min(RUN_AHEAD, MOST_AHEAD // max(1, temporary))
            parallel.from_all(0)  # the slowest of several processes
            self._clock = time.monotonic()
            self._display.say(f'step {step}: compiled, {self._clock - self.started:.1f} s after the start')
        self.state, values = program(self.state, *inputs)
        self.step = end
        logs = timeline.next_multiple(step, self.config.log_every) <= end
        self._pending.append(_Dispatch(step, end - step, timeline.examples(end) - timeline.examples(step), values, logs))
        if len(self._pending) > self._ahead:
            jax.block_until_ready(self._pending[-self._ahead - 1].metrics)
        while self._pending and self._pending[0].start < self._logged:
            self._drain_one()
        if logs:
            self._logged = end  # its figures are fetched when the next steps have been dispatched
        while self._display.due and self._pending and self._pending[0].metrics.is_ready():
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
        values = dict(zip(METRICS, self.backend.fetch(done.metrics).T, strict=True))
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
            for name in ('loss', 'accuracy', 'grad_norm'):
                p.interval_sums[name] = p.interval_sums.get(name, 0.0) + float(values[name][i])
            step = done.start + i + 1
            means = {f'train_{name}': total / p.interval_steps for name, total in p.interval_sums.items()}
            if done.logs and self.timeline.is_multiple(step, self.config.log_every):
                if self.metrics_log:
                    self.metrics_log.write(step, {'epoch': self.timeline.epoch(step), **means,
                                                  'learning_rate': float(values['learning_rate'][i]),
                                                  'images_per_second': rate})
                p.interval_steps, p.interval_sums = 0, {}
                self._interval_images, self._interval_seconds = 0, 0.0
        left = (self.timeline.examples(self.timeline.total) - self.timeline.examples(step)) / overall
        self._display.show(step, self.timeline.epoch(step), means['train_loss'], means['train_accuracy'], rate, left,
                           done.logs)

    def _stop_for_nan(self, step: int, value: float, what: str = 'the loss at') -> None:
        self.checkpoints.wait()
        kept = self.checkpoints.steps()
        raise Diverged(f'{what} step {step} is {value}: training stopped; ' + (
            f'the last good checkpoint is step {kept[-1]}' if kept else 'there is no checkpoint yet') +
            '. A lower config.optim.learning_rate or config.optim.clip_norm may help')

    def evaluate(self, state: TrainState, split: str,
                 views: bool = False) -> tuple[dict[str, float], dict[str, np.ndarray]] | None:
        """Figures of a split, named `<split>_<prefix><figure>`, and confusion matrices by prefix; None where a
        signal came. `views`: also with several views of each image."""
        row, confusion = {}, {}
        for of_state, placed in variables(state).items():
            for several in (False, True) if views else (False,):
                prefix = of_state + several * 'views_'
                sums = self.evaluator(placed, split, self._interrupted, several)
                if sums is None:
                    return None
                row.update({f'{split}_{prefix}{name}': value for name, value in metrics.figures(sums).items()})
                confusion[prefix] = sums['confusion']
        return row, confusion

    def _evaluate(self) -> None:
        while self._pending and not self._interrupted():
            self._drain_one()
        found = self.evaluate(self.state, self.watched)
        if found is None:
            return
        row, _ = found
        for name, value in row.items():
            if not math.isfinite(value):
                self._stop_for_nan(self.step, value, f'{name} after')
        self.last_evaluation = row
        if self.metrics_log:
            self.metrics_log.write(self.step, {'epoch': self.timeline.epoch(self.step), **row})
        stage = self.timeline.phase(min(self.step, self.timeline.total - 1)).stage
        if self.watched == 'val':
            metric = self.config.checkpoint.metric
            self.progress.observe(row[metric], metric.endswith('loss'))
            if self.optimizer.observes(stage):
                seen = self.optimizer.observe(self.backend.fetch(self.state.opt_state), stage, row['val_loss'])
                self.state = self.state.replace(opt_state=self.backend.place(jax.device_get(seen)))
        self.progress.evaluated_step = self.step
        self._display.say(f'step {self.step}: ' + '  '.join(f'{k} {v:.4f}' for k, v in row.items()))
        self._clock = time.monotonic()

    def _save(self) -> None:
        evaluated = self.progress.evaluated_step == self.step
        if self._saved == (self.step, evaluated):
            return
        self.drain()
        state = self.backend.fetch(self.state)
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)):
            self._stop_for_nan(self.step, math.nan, 'a parameter after')
        now = time.monotonic()
        self.progress.wall_seconds += now - self._counted
        self._counted = now
        self.progress.look_at_memory()
        if self.metrics_log:
            self.metrics_log.flush()
        self.checkpoints.save(self.step, state, dataclasses.asdict(self.progress),
                              self.last_evaluation if evaluated and self.watched == 'val' else None)
        self._saved = (self.step, evaluated)
        self._clock = time.monotonic()

    # the end

    def finish(self) -> dict[str, Any]:
        """Evaluates the best checkpoint on every part, writes the report, and returns the summary."""
        from jaxcnn.inspect.report import write_report
        best, state = self._best_state()
        row: dict[str, float] = {}
        for split in ('val', 'test'):
            if split in self.dataset.splits:
                found = self.evaluate(state, split, views=self.prepare.views is not None)
                if found is None:
                    raise signals.Interrupted(self._stop.signum, self.step)
                row.update(found[0])
                confusion, shown = found[1], split
        prefix = 'ema_' if '_ema_' in self.config.checkpoint.metric and 'ema_' in confusion else ''
        summary = self._summary(row, prefix, best)
        if self.chief:
            workdir.write_json(os.path.join(self.folder, 'summary.json'), summary)
            write_report(self.folder, self.config, summary, workdir.read_metrics(self.folder), self.dataset, shown,
                         confusion[prefix])
        return summary

    def _best_state(self) -> tuple[int, TrainState]:
        """The best checkpoint that is not damaged; the last state where none was evaluated."""
        damaged: list[int] = []
        while (best := self.checkpoints.best_step(apart_from=damaged)) not in (None, self.step):
            assert best is not None
            try:
                host_state, _ = self.checkpoints.read(best, jax.eval_shape(self.init_fn(), np.uint32(0)))
                return best, self.backend.place(host_state)
            except ValueError as e:
                log.warning('checkpoint %d is damaged and not used: %s', best, e)
                damaged.append(best)
        return self.step, self.state

    def _summary(self, row: Mapping[str, float], prefix: str, best: int) -> dict[str, Any]:
        self.progress.look_at_memory()
        last = next((r for r in reversed(workdir.read_metrics(self.folder)) if 'train_loss' in r), {})
        versions = {name: importlib.metadata.version(name) for name in ('jax', 'jaxlib', 'flax', 'optax', 'numpy')}
        from jaxcnn import __version__
        return {
            'name': self.config.name, 'model': self.config.model.name, 'dataset': self.config.data.name,
            'seed': self.config.seed, 'steps': self.step, 'epochs': self.timeline.epoch(self.step),
            'params': sum(int(np.prod(p.shape)) for p in jax.tree.leaves(
                jax.eval_shape(self.init_fn(), np.uint32(0)).params)),
            'train_loss': last.get('train_loss'), 'train_accuracy': last.get('train_accuracy'),
            'val_accuracy': row.get(f'val_{prefix}accuracy'), 'val_loss': row.get(f'val_{prefix}loss'),
            'test_accuracy': row.get(f'test_{prefix}accuracy'), 'test_top5': row.get(f'test_{prefix}top5'),
            'test_loss': row.get(f'test_{prefix}loss'),
            **{k: v for k, v in row.items() if '_ema_' in k or '_views_' in k},
            **{k.replace(prefix, ''): v for k, v in row.items() if prefix and f'{prefix}views_' in k},
            'best_step': best,
            'images_per_second': self.progress.images_per_second,
            'train_seconds': self.progress.timed_seconds,
            'wall_seconds': self.progress.wall_seconds,
            'peak_host_bytes': self.progress.peak_host_bytes, 'peak_device_bytes': self.progress.peak_device_bytes,
            'device': jax.devices()[0].device_kind, 'num_devices': self.backend.num_devices,
            'versions': {'jaxcnn': __version__, 'python': platform.python_version(), **versions},
        }

    def close(self) -> None:
        """Lets go of the logs and checkpoints."""
        with contextlib.closing(self.checkpoints):
            if self.metrics_log:
                self.metrics_log.close()


def train_and_evaluate(config: cfg.Config | ml_collections.ConfigDict | Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Trains, or goes on with the run in the workdir, and evaluates it.

    Args:
      config: of the run.
      folder: the workdir; made where it is missing.

    Returns:
      The summary, as it is in `summary.json`: accuracies in [0, 1], of the best checkpoint by
      `config.checkpoint.metric`; what was not measured is None.

    Raises:
      UserError: what the person can put right: the config, the data, the workdir; `Diverged`: a loss that is not finite.
      Interrupted: SIGTERM or SIGINT came; the run can be resumed.
    """
    config = cfg.parse(config)
    check_config(config)
    with signals.stop_on_signals() as stop, contextlib.ExitStack() as held:
        parallel.together(lambda: held.enter_context(workdir.claim(folder, config)))
        try:
            run = parallel.together(lambda: Run(config, folder, stop))
            run.open()
            try:
                run.train()
                summary = run.finish()
                if heard := int(parallel.from_all(stop.signum).max()):  # what comes after, another seed, is not to begin
                    raise signals.Interrupted(heard, run.step)
                return summary
            finally:
                run.close()
        except OSError as e:
            raise UserError(f'{e.filename or folder}: {e.strerror or e}') from e
        except jax.errors.JaxRuntimeError as e:
            if 'RESOURCE_EXHAUSTED' not in str(e):
                raise
            raise UserError('the device has not enough memory: a smaller config.batch_size, a larger '
                            'config.optim.accumulate or config.data.placement=host may help') from e
