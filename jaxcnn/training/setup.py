"""The objects that a training run needs, made from its config: data, devices, initial state and compiled steps."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxcnn import config as cfg
from jaxcnn import data, experiment, tasks
from jaxcnn.data import feed, normalize, pseudo_labels
from jaxcnn.data.pseudo_labels import PseudoLabels
from jaxcnn.errors import UserError, name_field
from jaxcnn.metrics import Measurement
from jaxcnn.timeline import Phase
from jaxcnn.training import initialize, parallel, pruning, weight_sources, whiten
from jaxcnn.training.distillation import Distillation
from jaxcnn.training.evaluate import Evaluator
from jaxcnn.training.initial_masks import prunable, read_masks
from jaxcnn.training.loss_terms import LossTerm, init_params
from jaxcnn.training.state import TrainState, init_state, variables
from jaxcnn.training.step import Batch, TrainStep, image_gradient, image_keys, many_steps, step_keys
from jaxcnn.training.trades import Trades


class Setup:
    """The objects that a training run needs.

    Args:
      config: config of the run.
      folder: workdir of the run.
      source: the data; None: what the config names.
      initial_variables: variables of the network to start from, for `config.init.variables`.
      dataset: the data set, if it is loaded already.

    Attributes:
      config: config of the run.
      folder: workdir of the run.
      dataset: the data set.
      experiment: the objects that the config stands for.
      timeline: steps of the run.
      steps_per_dispatch: number of steps in a full dispatch.
      backend: spreads the steps over devices.
      on_device: whether the images are on the devices; if not, the host provides each batch.
      variable_length: whether one program runs any number of steps up to `steps_per_dispatch`.
      train_split: the training images, with `config.semi_supervised` followed by the unlabelled ones.
      feed: provides the training batches.
      evaluator: evaluates splits of the data set.

    Raises:
      UserError: the data cannot be used, or fields of the config contradict each other.
    """

    def __init__(self, config: cfg.Config, folder: str, source: data.Source | None = None,
                 initial_variables: Mapping[str, Any] | None = None, dataset: data.Dataset | None = None):
        self.config, self.folder = config, folder
        self._initial_variables = initial_variables
        kind = tasks.find(config.task).kind
        self.dataset = dataset or parallel.run_on_all_processes(
            lambda: data.load(config.data, kind, source, unlabelled=config.semi_supervised is not None))
        unlabelled = self.dataset.unlabelled
        self._set_train_split(None if unlabelled is None else PseudoLabels.none(len(unlabelled)))
        self.experiment = experiment.build(config, self.dataset.info(), self._fit_normalizers)
        self.timeline = self.experiment.timeline
        self.steps_per_dispatch = min(config.parallel.steps_per_dispatch, self.timeline.total)
        self.backend = parallel.make_backend(config.parallel)
        parallel.check_batch_sizes(self.timeline, config.optim.accumulate, self.backend.num_devices)
        self.on_device = config.data.placement == 'device' or (
            config.data.placement == 'auto' and feed.fits_on_device([*self.dataset.splits.values(), self.train_split]))
        self.variable_length = self.on_device and jax.default_backend() == 'cpu'
        self.feed = self._make_feed()
        self.evaluator = Evaluator(self.experiment, self.dataset, self.backend, self.on_device)
        self._augmenters: dict[tuple[bool, int, bool], Callable[..., Batch]] = {}
        self._programs: dict[Phase, jax.stages.Wrapped] = {}  # by `Phase.program`
        self._resident_epoch = -1  # the epoch whose order is on the devices

    def _set_train_split(self, labels: PseudoLabels | None) -> None:
        train, unlabelled = self.dataset.splits['train'], self.dataset.unlabelled
        self._pseudo_labels, self.train_split = labels, train
        if labels is not None and unlabelled is not None:
            self.train_split = pseudo_labels.join(train, unlabelled, labels.used)

    def _make_feed(self) -> feed.TrainFeed:
        config, labels = self.config, self._pseudo_labels
        if labels is None:
            order = self._make_order(self.train_split.targets)
        else:
            earlier, newest = ({'label': pseudo_labels.join_labels(self.dataset.splits['train'], values)}
                               for values in (labels.previous, labels.newest))
            order = self._make_order(newest, self._make_order(earlier), labels.first_epoch)
        return feed.TrainFeed(self.train_split, config.seed, self.timeline, on_device=self.on_device,
                              process_rows=self.backend.process_rows, workers=config.data.workers,
                              max_steps=self.steps_per_dispatch, order=order)

    def _make_order(self, targets: Mapping[str, np.ndarray], earlier: feed.Order | None = None,
                    first_epoch: int = 0) -> feed.Order:
        """Return the order of images with these targets; see `Order`. Those without a label are not drawn."""
        is_balanced, strata = self.config.data.balance == 'sampling', self.experiment.task.kind.strata
        available = None if self.dataset.unlabelled is None else np.flatnonzero(targets['label'] != pseudo_labels.NO_LABEL)
        return feed.Order(self.config.seed, self.timeline, strata(targets) if is_balanced else None, available, earlier,
                          first_epoch)

    def predict_labels(self, state: TrainState, should_stop: Callable[[], bool]) -> np.ndarray | None:
        """Return pseudo-labels (M,) of the unlabelled images, of which `NO_LABEL` is none; None if `should_stop` is True.

        Args:
          state: state with the network that predicts them, by its moving averages if there are any.
          should_stop: see `Evaluator`.
        """
        assert self.config.semi_supervised is not None
        accumulated = self._labeller(variables(state)[state.ema is not None], 'unlabelled', should_stop)
        if accumulated is None:
            return None
        rows = accumulated.rows
        return np.where(rows['confidence'] >= self.config.semi_supervised.threshold, rows['predicted'],
                        pseudo_labels.NO_LABEL)

    @functools.cached_property
    def _labeller(self) -> Evaluator:
        assert self.dataset.unlabelled is not None
        dataset = dataclasses.replace(self.dataset, splits={'unlabelled': self.dataset.unlabelled})
        return Evaluator(self.experiment, dataset, self.backend, on_device=False)

    def set_pseudo_labels(self, labels: PseudoLabels) -> None:
        """Draw the epochs from now on from the labelled images and the unlabelled ones that have a label."""
        self.feed.close()
        self._set_train_split(labels)
        self.feed = self._make_feed()
        self._resident_epoch = -1
        if self.on_device:
            self.resident_data['examples'].update(self.backend.replicate(dict(self.train_split.targets)))

    def _fit_normalizers(self, ops: Sequence[normalize.Normalizer],
                         pixels: Callable[[jax.Array], jax.Array]) -> Sequence[normalize.Fitted]:
        """Fit normalisers to the training images, or read what a run that is resumed was fitted to.

        A file in a workdir without a `config.json` is from a start that failed, perhaps with another config or other data,
        so it is replaced.
        """
        path, train = os.path.join(self.folder, 'normalize.npz'), self.dataset.splits['train']
        is_resumed = os.path.exists(os.path.join(self.folder, 'config.json'))
        block_size = max(1, min(1024, (1 << 23) // train.image_bytes))
        blocks = np.array_split(np.arange(len(train)), -(-len(train) // block_size))

        def write() -> None:
            if jax.process_index() == 0 and not (is_resumed and os.path.exists(path)):
                prepare = jax.jit(pixels)
                normalize.write(path, normalize.fit(ops, lambda: (np.asarray(prepare(train.take(b))) for b in blocks)))
        parallel.run_on_all_processes(write)
        return normalize.read(path, ops)

    @functools.cached_property
    def loss_terms(self) -> tuple[LossTerm, ...]:
        """Further terms of the loss.

        Raises:
          UserError: what they need cannot be read, or does not fit the run.
        """
        terms: list[LossTerm] = []
        if distillation := self.config.distillation:
            terms.append(parallel.run_on_all_processes(
                lambda: Distillation.load(distillation, self.experiment, self.folder)))
        if self.config.trades:
            terms.append(Trades(self.config.trades))
        return tuple(terms)

    def evaluate_teachers(self, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        """Return what the summary of the run says about the teachers of `config.distillation`; empty if there are none.

        Args:
          should_stop: see `Evaluator`; None is returned if it returns True.
        """
        values: dict[Measurement, float] = {}
        for term in self.loss_terms:
            if not isinstance(term, Distillation):
                continue
            evaluator = Evaluator(term.together(self.experiment), self.dataset, self.backend, self.on_device)
            variables = self.resident_data['loss_terms'][term.name]
            for split in ('val', 'test'):
                if split in self.dataset.splits:
                    measured = evaluator.measure({False: variables}, split, should_stop, tta=False)
                    if measured is None:
                        return None
                    values.update(measured[0])
            return {'teachers': term.summary(values)}
        return {}

    def init_fn(self, transform_params: Callable[[Any], Any] = lambda params: params) -> Callable[..., TrainState]:
        """Return the pure function from a seed to the initial state.

        Args:
          transform_params: maps the parameters that are drawn at random to the initial ones.
        """
        return functools.partial(init_state, self.experiment.network, self.experiment.optimizer, self.experiment.image_shape,
                                 optim=self.config.optim, transform_params=transform_params,
                                 init_terms=functools.partial(init_params, self.loss_terms),
                                 loss_scaling=self.experiment.loss_scaling)

    @functools.cached_property
    def template(self) -> TrainState:
        """The shapes and dtypes of the state.

        Raises:
          UserError: the network cannot take images of this size.
        """
        template = jax.eval_shape(self.init_fn(), np.uint32(0))
        if any(0 in x.shape for x in jax.tree.leaves(template.params)):
            height, width, _ = self.experiment.image_shape
            raise UserError(f'images of {height} x {width} pixels are too small for {self.config.model.name}: its last '
                            'layers get no pixels', hint='set a larger config.data.image_size')
        return jax.eval_shape(self._begin_pruning, template, self.all_masks, np.uint32(0)) if self.pruning else template

    @functools.cached_property
    def all_masks(self) -> Any:
        """Masks, as host arrays, of the parameters that `config.pruning` prunes, by which they all remain."""
        params = jax.eval_shape(self.init_fn(), np.uint32(0)).params
        experiment = self.experiment
        assert self.config.pruning is not None
        return jax.tree.map(lambda x: np.ones(x.shape, bool), prunable(
            self.config.pruning, experiment.network, experiment.image_shape, params))

    @functools.cached_property
    def pruning(self) -> pruning.Pruning | None:
        """How the masks of pruned weights change, or None."""
        if self.config.pruning is None:
            return None
        return pruning.Pruning.from_config(self.config.pruning, self.timeline, self.all_masks)

    @functools.cached_property
    def initial_masks(self) -> Any:
        """The masks before the first step, as host arrays; None without pruning.

        Raises:
          UserError: those of `config.pruning.masks` cannot be used.
        """
        if self.config.pruning is None or not self.config.pruning.masks:
            return self.all_masks if self.config.pruning else None
        return parallel.run_on_all_processes(lambda: read_masks(self.config, self.all_masks))

    def _begin_pruning(self, state: TrainState, masks: Any, seed: Any) -> TrainState:
        assert self.pruning is not None
        return self.pruning.begin(state, masks, jax.random.key(seed))

    def check_train_sizes(self) -> None:
        """Raise a UserError if the network does not take images of all sizes of `config.data.train_size`."""
        sizes = {phase.image_size for phase in self.timeline.phases}
        experiment.check_train_sizes(self.experiment.network,
                                     [self.experiment.image_shape, *map(self.experiment.train_shape, sizes)])

    def check_batch_norm(self) -> None:
        """Raise a UserError if BatchNorm would compute the variance of one value of each channel, which is 0.

        That happens if a phase has one image for its statistics, in feature maps of 1 x 1.
        """
        config, template = self.config, self.template
        accumulate = config.optim.accumulate
        num_parts = 1 if config.parallel.bn_sync else self.backend.num_devices
        phases = [p for p in self.timeline.phases if not p.bn_frozen and p.batch_size == accumulate * num_parts]
        if not phases:
            return
        batch_size = phases[0].batch_size
        height, width, channels = min(self.experiment.train_shape(phase.image_size) for phase in phases)

        def check_layer(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            layer = context.module
            if isinstance(layer, nn.BatchNorm) and not layer.use_running_average and args[0].size == args[0].shape[-1]:
                field = 'batch_size' if batch_size == self.timeline.phases[0].batch_size else 'batch_schedule'
                devices = f' on {num_parts} devices with config.parallel.bn_sync=False' if num_parts > 1 else ''
                raise UserError(
                    f'a batch of {batch_size}{devices}, config.optim.accumulate={accumulate} and images of '
                    f'{height} x {width} pixels leave {"/".join(layer.path)} one value of each '
                    'channel, whose variance is 0', field=f'config.{field}',
                    hint=f'set a batch size of at least {2 * batch_size}, a larger config.data.image_size, or '
                    'config.freeze_bn=dict(steps=0)')
            return call(*args, **kwargs)
        with nn.intercept_methods(check_layer):
            jax.eval_shape(lambda weights, x: self.experiment.network.apply(
                weights, x, train=True, mutable=['batch_stats'], rngs={'dropout': jax.random.key(0)}),
                {'params': template.params, 'batch_stats': template.batch_stats},
                jax.ShapeDtypeStruct((1, height, width, channels), np.float32))

    def initial_state(self, weights: initialize.InitialWeights | None) -> TrainState:
        """Return the state before the first step, on the devices.

        Args:
          weights: weights that replace those that are drawn at random; see `read_initial_weights`.
        """
        init = self.init_fn()
        if self.config.whiten:
            init = self.init_fn(whiten.initializer(self.config.whiten, self.template.params, self._sample_images))
        arrays = {} if weights is None else weights.arrays
        reinitialize = self.config.pruning is not None and self.config.pruning.reinitialize

        def begin(seed: jax.Array, arrays: Any, masks: Any) -> TrainState:
            state = init(seed + np.uint32(2**31) if reinitialize else seed, arrays=arrays)
            return self._begin_pruning(state, masks, seed) if self.pruning else state
        return self.backend.init(begin, self.config.seed, arrays, self.initial_masks)

    def read_initial_weights(self, config: cfg.Config) -> initialize.InitialWeights | None:
        """Return the weights that `config.init` names, or None without it.

        Args:
          config: config of the run, with the checksum that the weights must have if its `config.json` records one.

        Raises:
          UserError: they cannot be used; or the processes read different ones.
        """
        if config.init is None or not config.init.weights:
            return None
        shapes = {'params': self.template.params, 'batch_stats': self.template.batch_stats}
        weights = parallel.run_on_all_processes(lambda: initialize.load_initial_weights(
            config, self.experiment.network, shapes, self.experiment.image_shape, self.experiment.info['class_names'],
            self._initial_variables))
        if len(set(parallel.process_allgather(int(weights.checksum[:7], 16)))) > 1:
            raise UserError('the processes read different weights', field='config.init')
        return weights

    def check_initial_variables(self, config: cfg.Config) -> None:
        """Check that the variables passed from Python are those that the run to resume started from.

        Args:
          config: config of the run, with the checksum that its `config.json` records.

        Raises:
          UserError: they have another checksum, or are no variables of a network.
        """
        if self._initial_variables is None or config.init is None:
            return
        with name_field('config.init.variables'):
            checksum = weight_sources.checksum(self._initial_variables)
            if checksum != config.init.checksum:
                raise UserError(f'the run in {self.folder!r} started from variables with the checksum '
                                f'{config.init.checksum}, got ones with {checksum}',
                                hint='pass the same variables, or use a new workdir')

    def add_optimizer_stages(self, state: TrainState, config: cfg.Config) -> TrainState:
        """Return a restored state with the initial optimizer states of stages by which the run has been extended since.

        Their initial states depend on the initial parameters, so the weights that `config.init` names are read again.

        Args:
          state: the restored state.
          config: config of the run; see `read_initial_weights`.
        """
        num_missing = len(self.experiment.optimizer.stages) - len(state.opt_state)
        if not num_missing:
            return state
        initial = self.backend.fetch(self.initial_state(self.read_initial_weights(config)))
        return dataclasses.replace(state, opt_state=(*state.opt_state, *initial.opt_state[-num_missing:]))

    def _sample_images(self, count: int) -> np.ndarray:
        """Return `count` random training images, as the network sees them in evaluation."""
        return whiten.sample_images(self.dataset.splits['train'], self.experiment.preprocessor, self.config.seed, count)

    @functools.cached_property
    def resident_data(self) -> dict[str, Any]:
        """The training examples and the order of the current epoch, on the devices; neither with placement on the host.

        The arrays of further terms of the loss are beside them, under `loss_terms`.
        """
        arrays = {term.name: term.arrays for term in self.loss_terms if term.arrays}
        of_terms = {'loss_terms': self.backend.replicate(arrays)} if arrays else {}
        if not self.on_device:
            return of_terms
        length = {} if self.dataset.unlabelled is None else {'epoch_length': np.int32(self.timeline.num_train)}
        return {'examples': self.backend.replicate(feed.all_examples(self.train_split)), **self.backend.replicate(length),
                **of_terms}

    def inputs(self, step: int, count: int) -> tuple[Any, Any, np.ndarray, np.uint32]:
        """Return the program's arguments after the state, for `count` steps from `step` on."""
        if self.on_device and self._resident_epoch != (epoch := self.feed.epoch(step)):
            self._resident_epoch = epoch
            order = {'order': self.feed.epoch_order(epoch), 'epoch': np.int32(epoch)}
            self.resident_data.update(self.backend.replicate(order))
        batches, offsets = self.feed.batch(step, count), self.feed.batch_offsets(step, count)
        if self.variable_length:
            offsets = np.pad(offsets, (0, self.steps_per_dispatch - count), constant_values=-1)
        return self.backend.shard_stacked_batches(batches), self.resident_data, offsets, np.uint32(self.config.seed)

    def program(self, phase: Phase) -> jax.stages.Wrapped:
        """Return the jitted function that runs the steps of a phase."""
        if phase.program not in self._programs:
            sync, backend = self.config.parallel.bn_sync, self.backend
            network = self.experiment.network
            network = network.clone(bn_frozen=phase.bn_frozen or network.bn_frozen,
                                    bn_axis=backend.axis_name if sync else None)
            preprocessor = dataclasses.replace(self.experiment.preprocessor, train_size=phase.image_size)
            step = TrainStep(network, self.experiment.optimizer, preprocessor, self.experiment.task,
                             self.config.optim.accumulate, self.config.optim.ema_decay, phase.stage,
                             1 if sync or backend.axis_name else backend.num_devices, backend.axis_name,
                             self.config.optim.lookahead, self.timeline.total, self.loss_terms, self.pruning,
                             self.experiment.loss_scaling, self.config.optim.gradient_dtype)
            batch_positions = functools.partial(backend.batch_positions, batch_size=phase.batch_size)
            program = backend.compile_train(many_steps(step, batch_positions, self.variable_length))
            self._programs[phase.program] = program
        return self._programs[phase.program]

    def draw_first_batch(self, state: TrainState) -> None:
        """Write the figure of the first images of the first batch, augmented, with their targets."""
        from jaxcnn.analysis import figures
        path = os.path.join(self.folder, 'figures', 'first_batch.png')
        with figures.warn_on_error(path):
            self.draw_batch(0, state, path)

    def draw_batch(self, step: int, state: TrainState, path: str) -> None:
        """Draw the first images of the batch of a step, augmented and not normalised, with their targets.

        Args:
          step: number of the step.
          state: state whose network attacks use, on the devices.
          path: the PNG file.
        """
        augmented = self.augmented_batch(step, 32, state, normalized=False)
        pixels = augmented.pop('image')
        targets = [{name: values[i] for name, values in augmented.items()} for i in range(len(pixels))]
        self.experiment.task.draw_examples(pixels, targets, path)

    def augmented_batch(self, step: int, count: int, state: TrainState, normalized: bool = True,
                        with_pixels: bool = False) -> dict[str, np.ndarray]:
        """Return the first `count` examples of the batch of a step as the network gets them; one device computes them.

        Args:
          step: number of the step.
          count: maximum number of examples.
          state: state whose network attacks use, on the devices.
          normalized: whether the images are normalised; otherwise, their pixels are in [0, 1].
          with_pixels: whether the images before normalisation are returned, too; see `Preprocessor.train`.
        """
        experiment, train = self.experiment, self.train_split
        pipeline = experiment.preprocessor.augment
        batch, epochs = self.feed.positions(step), self.feed.epochs(step)
        num_mixed = pipeline.num_mixes if pipeline else 0  # rows before the first one that are mixed into the returned ones
        rows = np.arange(-num_mixed, min(count, len(batch))) % len(batch)
        positions = batch[rows]
        has_attack = pipeline is not None and pipeline.has_attack
        weights = variables(self.backend.fetch(state))[False] if has_attack else None
        run_key = jax.random.key(np.uint32(self.config.seed))
        key, _ = step_keys(run_key, step)
        passes = image_keys(run_key, jax.numpy.asarray(positions)), jax.numpy.asarray(epochs[rows])
        images = train.take_for_training(positions, self.config.seed, self.feed.numbers(step)[rows])
        examples = {'image': images, **train.take_targets(positions)}
        image_size = self.timeline.phase(step).image_size
        arguments = normalized, image_size, with_pixels
        if arguments not in self._augmenters:
            self._augmenters[arguments] = self._make_augmenter(*arguments)
        augmented = self._augmenters[arguments](weights, examples, key, rows, passes)
        return {name: np.asarray(value)[num_mixed:] for name, value in augmented.items()}

    def _make_augmenter(self, normalized: bool, image_size: int, with_pixels: bool) -> Callable[..., Batch]:
        """Return the jitted function that augments examples; see `augmented_batch` and `Phase.image_size`."""
        experiment = self.experiment
        preprocessor = dataclasses.replace(experiment.preprocessor, train_size=image_size)
        if not normalized:
            preprocessor = dataclasses.replace(preprocessor, normalize=normalize.Normalization())

        def augment(weights: Any, examples: Batch, key: jax.Array, rows: jax.Array, passes: Any) -> Batch:
            gradient = None
            if weights is not None:
                gradient = image_gradient(experiment.network, experiment.preprocessor, experiment.task, weights)
            return preprocessor.train(examples, key, rows, mixer=experiment.task, gradient=gradient, passes=passes,
                                      with_pixels=with_pixels)
        return jax.jit(augment)
