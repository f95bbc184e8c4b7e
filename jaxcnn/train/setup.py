"""What a run is made of, from its config: its data, its network, its optimizer, its first state, its compiled steps."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxcnn import config as cfg
from jaxcnn import data, experiment, tasks
from jaxcnn.data import feed, normalize
from jaxcnn.errors import UserError
from jaxcnn.timeline import Phase
from jaxcnn.train import parallel, whiten
from jaxcnn.train.evaluate import Evaluator
from jaxcnn.train.state import TrainState, init_state, variables
from jaxcnn.train.step import TrainStep, image_gradient, image_keys, many_steps, step_keys


class Setup:
    """What a run is made of.

    Attributes:
      dataset: its data.
      experiment: the objects that its config stands for.
      timeline: its steps.
      chunk: steps in a dispatch.
      backend: the devices.
      on_device: whether the images are on the device; else the host hands over each batch.
      any_count: whether one program does any number of steps up to a whole dispatch.
      feed: the order of the training images.
      evaluator: counts what is right in a part of the data.

    Raises:
      UserError: the data, or fields that do not go together.
    """

    def __init__(self, config: cfg.Config, folder: str):
        self.config, self.folder = config, folder
        kind = tasks.find(config.task).kind
        self.dataset = parallel.run_on_all_processes(lambda: data.load(config.data, kind))
        train = self.dataset.splits['train']
        self.experiment = experiment.build(config, self.dataset.info(), self._fit)
        self.timeline = self.experiment.timeline
        self.chunk = min(config.parallel.steps_per_dispatch, self.timeline.total)
        self.backend = parallel.make_backend(config.parallel)
        parallel.check_batch_sizes(self.timeline, config.optim.accumulate, self.backend.num_devices)
        size = sum(s.nbytes for s in self.dataset.splits.values())
        self.on_device = config.data.placement == 'device' or (
            config.data.placement == 'auto' and size <= feed.DEVICE_LIMIT)
        self.any_count = self.on_device and jax.default_backend() == 'cpu'
        self.feed = feed.TrainFeed(train, config.seed, self.timeline, on_device=self.on_device,
                                   process_rows=self.backend.process_rows, workers=config.data.workers, max_steps=self.chunk,
                                   classes=kind.strata(train.targets) if config.data.balance == 'sampling' else None)
        self.evaluator = Evaluator(self.experiment, self.dataset, self.backend, self.on_device)
        self._programs: dict[Phase, jax.stages.Wrapped] = {}
        self._epoch = -1  # whose order is on the device

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
        parallel.run_on_all_processes(write)
        return normalize.read(path, ops)

    def init_fn(self, begin: Callable[[Any], Any] = lambda params: params) -> Callable[[jax.Array], TrainState]:
        """The pure function from a seed to the first state."""
        return functools.partial(init_state, self.experiment.network, self.experiment.optimizer, self.experiment.image_shape,
                                 optim=self.config.optim, begin=begin)

    @functools.cached_property
    def template(self) -> TrainState:
        """Shapes and types of the state.

        Raises:
          UserError: the network does not take these images.
        """
        template = jax.eval_shape(self.init_fn(), np.uint32(0))
        if any(0 in x.shape for x in jax.tree.leaves(template.params)):
            raise UserError(f'images of {self.experiment.image_shape[0]}x{self.experiment.image_shape[1]} are too small for '
                            f'{self.config.model.name}: nothing is left of them before its last layers')
        return template

    def check_statistics(self) -> None:
        """Raises a UserError where BatchNorm would take its statistics over one value of each channel, whose variance is 0:
        a phase has one image for them, in maps of 1 x 1."""
        config, template = self.config, self.template
        height, width, _ = self.experiment.image_shape
        micro, parts = config.optim.accumulate, 1 if config.parallel.bn_sync else self.backend.num_devices
        alone = [p.batch_size for p in self.timeline.phases if not p.bn_frozen and p.batch_size == micro * parts]
        if not alone:
            return

        def refuse(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            layer = context.module
            if isinstance(layer, nn.BatchNorm) and not layer.use_running_average and args[0].size == args[0].shape[-1]:
                field = 'batch_size' if alone[0] == self.timeline.phases[0].batch_size else 'batch_schedule'
                devices = f' on {parts} devices with config.parallel.bn_sync=False' if parts > 1 else ''
                raise UserError(
                    f'a batch of {alone[0]}{devices}, config.optim.accumulate={micro} and images of '
                    f'{height} x {width} pixels leave {"/".join(layer.path)} one value of each '
                    f'channel, whose variance is 0. Set a batch size of at least {2 * alone[0]}, a larger '
                    'config.data.image_size, or config.freeze_bn=dict(steps=0)', field=f'config.{field}')
            return call(*args, **kwargs)
        with nn.intercept_methods(refuse):
            jax.eval_shape(lambda weights, x: self.experiment.network.apply(
                weights, x, train=True, mutable=['batch_stats'], rngs={'dropout': jax.random.key(0)}),
                {'params': template.params, 'batch_stats': template.batch_stats},
                jax.ShapeDtypeStruct((1, *self.experiment.image_shape), np.float32))

    def first_state(self) -> TrainState:
        """The state that a run begins with, on the devices."""
        chosen = self.config.whiten
        init = self.init_fn(whiten.initializer(chosen, self.template.params, self._drawn)) if chosen else self.init_fn()
        return self.backend.init(init, self.config.seed)

    def with_all_stages(self, state: TrainState) -> TrainState:
        """A state that was restored, with the first optimizer states of stages that the run has been extended by since."""
        missing = len(self.experiment.optimizer.stages) - len(state.opt_state)
        if not missing:
            return state
        first = self.backend.fetch(self.first_state())
        return dataclasses.replace(state, opt_state=(*state.opt_state, *first.opt_state[-missing:]))

    def _drawn(self, count: int) -> np.ndarray:
        """So many training images, drawn by the seed, as the network sees them in evaluation."""
        train = self.dataset.splits['train']
        rng = np.random.default_rng(self.config.seed)
        return np.asarray(jax.jit(self.experiment.preprocessor)(train.take(np.sort(rng.permutation(len(train))[:count]))))

    @functools.cached_property
    def resident(self) -> dict[str, Any]:
        """The training examples, on the devices; the order of an epoch joins them. Empty with placement on the host."""
        if not self.on_device:
            return {}
        return {'examples': self.backend.replicate(feed.all_examples(self.dataset.splits['train']))}

    def inputs(self, step: int, count: int) -> tuple[Any, Any, np.ndarray, np.uint32]:
        """What the program takes beside the state for `count` steps from `step` on."""
        if self.on_device and self._epoch != (epoch := self.feed.epoch(step)):
            self._epoch = epoch
            self.resident.update(self.backend.replicate({'order': self.feed.epoch_order(epoch), 'epoch': np.int32(epoch)}))
        batches, first = self.feed.batch(step, count), self.feed.batch_offsets(step, count)
        if self.any_count:
            first = np.pad(first, (0, self.chunk - count), constant_values=-1)
        return self.backend.shard_stacked_batches(batches), self.resident, first, np.uint32(self.config.seed)

    def program(self, phase: Phase) -> jax.stages.Wrapped:
        """The compiled steps of a phase."""
        if phase not in self._programs:
            sync, backend = self.config.parallel.bn_sync, self.backend
            network = self.experiment.network.clone(bn_frozen=phase.bn_frozen or self.experiment.network.bn_frozen,
                                         bn_axis=backend.axis_name if sync else None)
            step = TrainStep(network, self.experiment.optimizer, self.experiment.preprocessor, self.experiment.task,
                             self.config.optim.accumulate, self.config.optim.ema_decay, phase.stage,
                             1 if sync or backend.axis_name else backend.num_devices, backend.axis_name,
                             self.config.optim.lookahead, self.timeline.total)
            rows = functools.partial(backend.batch_positions, batch_size=phase.batch_size)
            self._programs[phase] = backend.compile_train(many_steps(step, rows, self.any_count))
        return self._programs[phase]

    def draw_first_batch(self, state: TrainState) -> None:
        """Writes the picture of the first images of the first batch, augmented, with their labels."""
        from jaxcnn.inspect import figures
        positions = self.feed.positions(0)
        experiment, train = self.experiment, self.dataset.splits['train']
        pipeline = experiment.preprocessor.augment
        more = pipeline.mixes if pipeline else 0  # rows that the first ones are mixed with
        rows = np.arange(-more, min(32, len(positions))) % len(positions)
        positions = positions[rows]
        gradient = image_gradient(experiment.network, experiment.preprocessor, experiment.task,
                                  variables(self.backend.fetch(state))[False]) if pipeline and pipeline.attacks else None
        run_key = jax.random.key(np.uint32(self.config.seed))
        key, _ = step_keys(run_key, 0)
        passes = image_keys(run_key, jax.numpy.asarray(positions)), jax.numpy.zeros(len(positions), np.int32)
        in_pixels = dataclasses.replace(experiment.preprocessor, normalize=normalize.Normalization())
        augment = jax.jit(functools.partial(in_pixels.train, mixer=experiment.task, gradient=gradient, passes=passes))
        examples = {'image': train.take(positions), **train.take_targets(positions)}
        augmented = {name: np.asarray(value)[more:] for name, value in augment(examples, key, rows).items()}
        pixels = augmented.pop('image')
        titles = [experiment.task.title({name: value[i] for name, value in augmented.items()}) for i in range(len(pixels))]
        path = os.path.join(self.folder, 'figures', 'first_batch.png')
        with figures.failing_is_a_warning(path):
            figures.image_grid(pixels, titles, path)
