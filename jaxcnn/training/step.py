"""The training step and the evaluation step, each written once as a pure function.

The back ends of `parallel.py` compile them. With `sharded`, a batch is the global batch and `axis_name` is None. With
`pmap`, a batch is this device's part of it, and means are taken over `axis_name`.
"""

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn.config import LookaheadConfig
from jaxcnn.data.augment import Gradient
from jaxcnn.errors import UserError
from jaxcnn.loss_scaling import LossScaling, all_finite, scale_image_gradients
from jaxcnn.models import Network
from jaxcnn.models.quantized_layers import STATISTICS as QUANTIZER_STATISTICS
from jaxcnn.optim import Optimizer
from jaxcnn.preprocessing import Preprocessor
from jaxcnn.tasks import Task
from jaxcnn.training.loss_terms import Forward, LossTerm
from jaxcnn.training.pruning import Pruning
from jaxcnn.training.state import TrainState, split_trained, trained, variables

Batch = dict[str, jax.Array]
Scalars = dict[str, jax.Array]
_IMAGES = ('image', 'pixels')  # in a batch, besides the targets


def image_gradient(network: Network, preprocessor: Preprocessor, task: Task, weights: Any) -> Gradient:
    """Return the function that attacks use: from images in [0, 1] and their targets to the gradients of their losses.

    The gradient of each image's loss is with respect to the image. The network is in evaluation mode. Those of a float16
    network have the right direction only; see `scale_image_gradients`.
    """
    def gradient(images: jax.Array, targets: Batch) -> jax.Array:
        def loss(images: jax.Array) -> jax.Array:
            outputs: Any = network.apply(weights, preprocessor.normalize(images), train=False,
                                         **task.network_arguments(targets, train=False))
            return task.example_losses(scale_image_gradients(outputs, network), targets).sum()
        try:
            return jax.grad(loss)(images)
        except flax.errors.ScopeParamShapeError:
            raise UserError(f'an attack gets images of {images.shape[1]} x {images.shape[2]} pixels, which the network does '
                            'not take', field='config.data.augment',
                            hint='put the attack after the operations that change the size') from None
    return gradient


def step_keys(key: jax.Array, step: Any) -> tuple[jax.Array, jax.Array]:
    """Return the keys of augmentation and dropout at a step below 2^32 - 1, which depend only on the run's key and it."""
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, step))
    return augment_key, dropout_key


def image_keys(key: jax.Array, positions: jax.Array) -> jax.Array:
    """Return the keys of the training images at `positions` (N,), which are the same in all epochs, for the run's key."""
    images_key = jax.random.fold_in(key, np.uint32(2**32 - 1))  # no step has this number
    return jax.vmap(functools.partial(jax.random.fold_in, images_key))(positions)


def row_keys(key: jax.Array, rows: jax.Array) -> jax.Array:
    """Return the keys of the rows (N,) of a batch, which tasks use, for the key of a step's augmentation."""
    key = jax.random.fold_in(key, np.uint32(2**32 - 1))  # no row has this number
    return jax.vmap(functools.partial(jax.random.fold_in, key))(rows)


def gather(position: jax.Array, examples: Batch) -> Batch:
    """Return the examples at `position` (N,) of the resident ones, together with their positions."""
    selected = {name: jnp.take(values, position, axis=0, mode='clip') for name, values in examples.items()}
    return {**selected, 'position': position}


@dataclass(frozen=True)
class TrainStep:
    """One training step: preprocessing, forward and backward pass, optimizer update, moving averages and look-ahead.

    Attributes:
      network: the network.
      optimizer: the optimizer.
      preprocessor: preprocessing of the images.
      task: meaning of the network's outputs.
      accumulate: number of micro-batches whose gradients are averaged.
      ema_decay: decay of the moving averages.
      stage: stage of the optimizer.
      bn_groups: number of equal parts of the batch over each of which BatchNorm computes its statistics.
      axis_name: name of the pmap axis, or None.
      lookahead: how slow parameters follow; or None.
      total: number of steps of the run, at the end of which look-ahead sets the parameters to the slow ones, and a linear
        weight of auxiliary classifiers is 0.
      terms: further terms of the loss, which are applied one after the other.
      pruning: how masks of pruned weights change; or None.
      loss_scaling: how the loss is scaled in the backward pass, or None.
      gradient_dtype: type to which gradients are rounded before devices average them; '': that of the parameters.
    """

    network: Network
    optimizer: Optimizer
    preprocessor: Preprocessor
    task: Task
    accumulate: int = 1
    ema_decay: float = 0.0
    stage: int = 0
    bn_groups: int = 1
    axis_name: str | None = None
    lookahead: LookaheadConfig | None = None
    total: int = 0
    terms: tuple[LossTerm, ...] = ()
    pruning: Pruning | None = None
    loss_scaling: LossScaling | None = None
    gradient_dtype: str = ''

    def _forward(self, params: Any, batch_stats: Any, images: jax.Array, arguments: dict[str, Any],
                 key: jax.Array, names: Sequence[str] = ()) -> tuple[tuple[list[Any], Batch], Any]:
        """Return the outputs, followed by those of auxiliary classifiers, with the feature maps of some names, and the new
        BatchNorm statistics."""
        def apply(x: jax.Array, arguments: dict[str, Any], key: jax.Array) -> tuple[tuple[list[Any], Batch], Any]:
            if names:
                arguments = {**arguments, 'features': True}
            output, updates = self.network.apply({'params': params, 'batch_stats': batch_stats}, x, train=True,
                                                 rngs={'dropout': key}, mutable=['batch_stats'], **arguments)
            output, maps = output if names else (output, {})
            outputs = [*output] if isinstance(output, tuple) else [output]
            return (outputs, {name: maps[name] for name in names}), updates.get('batch_stats', batch_stats)

        if self.bn_groups == 1:
            return apply(images, arguments, key)
        x, of_groups = jax.tree.map(lambda x: x.reshape(self.bn_groups, -1, *x.shape[1:]), (images, arguments))
        outputs, stats = jax.vmap(apply)(x, of_groups, jax.random.split(key, self.bn_groups))
        return (jax.tree.map(lambda x: x.reshape(len(images), *x.shape[2:]), outputs),
                jax.tree.map(lambda s: s.mean(0), stats))

    def _aux_weight(self, step: jax.Array) -> Any:
        """Return the weight of the losses of auxiliary classifiers at a step."""
        weight = getattr(self.network, 'aux_weight', 0)
        if getattr(self.network, 'aux_schedule', 'constant') == 'linear':
            return weight * (1 - step / self.total)
        return weight

    def _micro_batch(self, params: Any, batch_stats: Any, examples: Batch, key: jax.Array, step: jax.Array,
                     arrays: Mapping[str, Any], scale: jax.Array | None = None) -> tuple[Any, Any, Scalars]:
        """Return the gradients, the new BatchNorm statistics and the scalars of a micro-batch, as means over its images.

        With a `scale`, the gradients are those of the loss times the scale.
        """
        images, targets = examples['image'], {name: value for name, value in examples.items() if name not in _IMAGES}
        arguments = self.task.network_arguments(targets, train=True)
        names = tuple(dict.fromkeys(name for term in self.terms for name in term.maps))

        def loss_fn(trained_params: Any) -> tuple[jax.Array, Any]:
            params, term_params = split_trained(trained_params)
            ((outputs, *auxiliary), maps), stats = self._forward(params, batch_stats, images, arguments, key, names)
            loss, *aux_losses = [self.task.loss(x, targets) for x in (outputs, *auxiliary)]
            scalars: Scalars = {}
            for term in self.terms:
                forward = Forward(
                    self.network, self.preprocessor, self.task, step, examples['pixels'], targets, outputs, maps,
                    jax.lax.stop_gradient({'params': params, 'batch_stats': batch_stats}),
                    functools.partial(self._run_again, params, arguments, key))
                loss, term_scalars, stats = term(loss, forward, (term_params or {}).get(term.name), arrays.get(term.name),
                                                 stats)
                scalars.update(term_scalars)
            loss += aux_weight * sum(aux_losses)
            return loss if scale is None else loss * scale, (loss, outputs, stats, scalars)

        aux_weight = self._aux_weight(step)
        (_, (loss, outputs, stats, scalars)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        if self.gradient_dtype:
            grads = optax.tree.cast(grads, self.gradient_dtype)
        return grads, stats, {'loss': loss, **self.task.train_scalars(outputs, targets), **scalars}

    def _run_again(self, params: Any, arguments: dict[str, Any], key: jax.Array, pixels: jax.Array,
                   batch_stats: Any) -> tuple[Any, Any]:
        """Return the outputs for other images, in [0, 1], without auxiliary classifiers, and the BatchNorm statistics."""
        key = jax.random.fold_in(key, np.uint32(2**32 - 1))  # no micro-batch has this number
        images = self.preprocessor.train_inputs(pixels)
        ((outputs, *_), _), stats = self._forward(params, batch_stats, images, arguments, key)
        return outputs, stats

    def batch_gradients(self, params: Any, batch_stats: Any, examples: Batch, key: jax.Array, step: jax.Array,
                        arrays: Mapping[str, Any] = types.MappingProxyType({})) -> Any:
        """Return the gradients of the loss of augmented and normalised examples, which are one micro-batch on one device.

        Args:
          params: all trainable parameters; see `state.trained`.
          batch_stats: BatchNorm statistics of the network.
          examples: `image` and the task's targets, and `pixels` with further terms of the loss.
          key: key of dropout.
          step: number of the step.
          arrays: see `__call__`.
        """
        examples = {**examples, 'key': row_keys(key, jnp.arange(len(examples['image'])))}
        grads, _, _ = self._micro_batch(params, batch_stats, examples, key, step, arrays)
        return grads

    def _previous_rows(self, x: jax.Array) -> jax.Array:
        """Return the row before each row in the global batch, and the last row before the first one."""
        if not self.axis_name:
            return jnp.roll(x, 1, 0)
        devices = jax.lax.axis_size(self.axis_name)
        last = jax.lax.ppermute(x[-1:], self.axis_name, [(i, (i + 1) % devices) for i in range(devices)])
        return jnp.concatenate([last, x[:-1]])

    def _gradients(self, state: TrainState, examples: Batch, key: jax.Array,
                   arrays: Mapping[str, Any]) -> tuple[Any, Any, Scalars]:
        """Return the gradients, the new BatchNorm statistics and the scalars of a batch."""
        params = trained(state)
        micro_batch_gradients = functools.partial(
            self._micro_batch, arrays=arrays, scale=None if self.loss_scaling is None else self._scale(state))
        if self.accumulate == 1:
            return micro_batch_gradients(params, state.batch_stats, examples, key, state.step)

        def split(x: jax.Array) -> jax.Array:  # row r goes to micro-batch r % accumulate, so that devices split alike
            return x.reshape(-1, self.accumulate, *x.shape[1:]).swapaxes(0, 1)

        def add_micro_batch(carry: Any, inputs: Any) -> tuple[Any, None]:
            stats, sums = carry
            micro_batch, index = inputs
            grads, stats, scalars = micro_batch_gradients(params, stats, micro_batch, jax.random.fold_in(key, index),
                                                          state.step)
            return (stats, jax.tree.map(jnp.add, sums, (grads, scalars))), None

        micro_batches = jax.tree.map(split, examples)
        grads, _, scalars = jax.eval_shape(micro_batch_gradients, params, state.batch_stats,
                                           jax.tree.map(lambda x: x[0], micro_batches), key, state.step)
        sums_dtype = jnp.float32 if self.gradient_dtype else None
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, sums_dtype or x.dtype), (grads, scalars))
        indices = jnp.arange(self.accumulate)
        (stats, sums), _ = jax.lax.scan(add_micro_batch, (state.batch_stats, zeros), (micro_batches, indices))
        grads, scalars = jax.tree.map(lambda x: x / self.accumulate, sums)
        return optax.tree.cast(grads, self.gradient_dtype or None), stats, scalars

    def _scale(self, state: TrainState) -> jax.Array:
        """Return the factor of the loss of this device's part of the batch.

        Its mean is over fewer images than that of the batch, so that the gradient of an image is larger by as much.
        """
        return state.loss_scale['scale'] / (jax.lax.axis_size(self.axis_name) if self.axis_name else 1)

    def _unscaled(self, grads: Any, state: TrainState) -> Any:
        """Return the gradients that devices have averaged without the scale of the loss, in the type of the parameters."""
        if self.loss_scaling is None and not self.gradient_dtype:
            return grads
        divisor = 1.0 if self.loss_scaling is None else self._scale(state)
        return jax.tree.map(lambda g, p: (g.astype(jnp.float32) / divisor).astype(p.dtype), grads, trained(state))

    def _skip_overflow(self, state: TrainState, updated: TrainState, grads: Any,
                       loss: jax.Array) -> tuple[TrainState, Scalars]:
        """Undo an update whose loss or gradients are not finite.

        Args:
          state: state before the step.
          updated: state after the update.
          grads: gradients without the scale of the loss.
          loss: the loss.

        Returns:
          The state after the update or, with another scale, before it; and the scalars `loss_scale`, `skipped_steps` so far
          in the run, `is_skipped`, and `has_failed` of the scaling.
        """
        assert self.loss_scaling is not None
        is_finite = all_finite(grads, loss)
        retained = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), updated, state)
        loss_scale = self.loss_scaling.update(state.loss_scale, is_finite,
                                              state.step == self.optimizer.stages[self.stage].start)
        scalars = {'loss_scale': state.loss_scale['scale'], 'skipped_steps': loss_scale['skipped'], 'is_skipped': ~is_finite,
                   'has_failed': self.loss_scaling.has_failed(state.loss_scale, loss_scale)}
        return dataclasses.replace(retained, loss_scale=loss_scale), scalars

    def _num_updates(self, state: TrainState) -> jax.Array:
        """Return the number of the run's steps before this one, without those of the present stage that were skipped."""
        if self.loss_scaling is None:
            return state.step
        begins_stage = state.step == self.optimizer.stages[self.stage].start
        return state.step - jnp.where(begins_stage, 0, state.loss_scale['skipped_in_stage'])

    def __call__(self, state: TrainState, batch: Batch, key: jax.Array,
                 arrays: Mapping[str, Any] = types.MappingProxyType({})) -> tuple[TrainState, Scalars]:
        """Return the state after the step, and its scalars: the loss, those of the task, `grad_norm`, `learning_rate` and,
        if weights are pruned, `sparsity`.

        With loss scaling, an update is undone if the loss or the gradients are not finite, on all devices. Masks of pruned
        weights and slow parameters still change when they are due. See `_skip_overflow` for the further scalars.

        Args:
          state: state before the step.
          batch: `image` (N, H, W, C) uint8 and the task's targets. Augmentations that depend on the epoch also need each
            image's `position` in the training split and its `epoch`, (N,) each.
          key: key of the run. The step folds its number into it, so that its randomness depends on `(key, step)` only.
          arrays: the arrays of further terms of the loss, by the name of the term; see `LossTerm.arrays`.
        """
        augment_key, dropout_key = step_keys(key, state.step)
        rows = jnp.arange(len(batch['image']))
        if self.axis_name:
            device = jax.lax.axis_index(self.axis_name)
            rows += device * len(rows)
            dropout_key = jax.random.fold_in(dropout_key, device)
        passes = (image_keys(key, batch['position']), batch['epoch']) if 'epoch' in batch else None
        examples = {name: value for name, value in batch.items() if name not in ('position', 'epoch')}
        examples = self.preprocessor.train(
            examples, augment_key, rows, passes=passes, mixer=self.task, previous_rows=self._previous_rows,
            with_pixels=bool(self.terms),
            gradient=image_gradient(self.network, self.preprocessor, self.task, variables(state)[False]))
        examples['key'] = row_keys(augment_key, rows)
        grads, stats, scalars = self._gradients(state, examples, dropout_key, arrays)
        if self.axis_name:
            grads, stats, scalars = jax.lax.pmean((grads, stats, scalars), self.axis_name)
        grads, pruning = self._unscaled(grads, state), state.pruning
        if self.pruning:
            grads, pruning = self.pruning.mask_gradients(grads, state.params, pruning)
        grads = self.optimizer.groups.mask_gradients(grads, state.step)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, trained(state), self.stage, scalars['loss'])
        params, term_params = split_trained(optax.apply_updates(trained(state), updates))
        ema = state.ema
        if ema is not None:
            n = state.step.astype(jnp.float32)
            decay = jnp.minimum(self.ema_decay, (1 + n) / (10 + n))  # averages over few steps at first
            ema = jax.tree.map(lambda e, x: (decay * e + (1 - decay) * x).astype(e.dtype), ema, (params, stats))
        updated = dataclasses.replace(state, params=params, batch_stats=stats, opt_state=opt_state, ema=ema,
                                      loss_terms=term_params, pruning=pruning)
        learning_rate = self.optimizer.learning_rate(state.opt_state, self._num_updates(state), self.stage)
        scalars = {**scalars, 'grad_norm': optax.global_norm(grads), 'learning_rate': learning_rate}
        if self.loss_scaling is not None:
            updated, scaling_scalars = self._skip_overflow(state, updated, grads, scalars['loss'])
            scalars.update(scaling_scalars)
        params, stats, slow = updated.params, updated.batch_stats, updated.slow
        if self.lookahead is not None:
            params, stats, slow = self._look_ahead(params, stats, slow, state.step + 1)
        state = dataclasses.replace(updated, step=state.step + 1, params=params, batch_stats=stats, slow=slow)
        if self.pruning:
            state = self.pruning.apply(state, key)
            scalars['sparsity'] = state.pruning['sparsity']
        return state, scalars

    def _look_ahead(self, params: Any, stats: Any, slow: Any, num_steps: jax.Array) -> tuple[Any, Any, Any]:
        """Return parameters, BatchNorm statistics and the slow ones, after `num_steps` steps, with look-ahead.

        Every `lookahead.every` steps the slow ones move towards the others, which are then set to the slow ones. At the end
        of the run, they are set to the slow ones in any case. The slow ranges and steps of quantisation begin at the values
        that the first batch gives them.
        """
        assert self.lookahead is not None
        slow_step_size, ramp = self.lookahead.slow_step_size, self.lookahead.ramp
        moves = num_steps % self.lookahead.every == 0
        retained = jnp.where(moves, (1 - slow_step_size) * (num_steps / self.total) ** ramp, 1.0)
        is_set = moves | (num_steps == self.total)
        slow_params, slow_stats = slow
        slow = slow_params, jax.tree.map_with_path(
            lambda path, s, x: jnp.where(s == 0, x, s) if path[-1].key in QUANTIZER_STATISTICS else s, slow_stats, stats)
        slow = jax.tree.map(lambda s, x: jnp.where(is_set, retained * s + (1 - retained) * x, s).astype(s.dtype),
                            slow, (params, stats))
        params, stats = jax.tree.map(lambda s, x: jnp.where(is_set, s, x), slow, (params, stats))
        return params, stats, slow


def many_steps(step: TrainStep, batch_positions: Callable[[jax.Array, jax.Array], jax.Array],
               variable_length: bool = False) -> Callable[
        [TrainState, Batch, dict[str, Any], jax.Array, jax.Array], tuple[TrainState, Scalars]]:
    """Return the function that runs several steps: `(state, batches, data, offsets, seed) -> (state, scalars)`.

    It runs one step for each offset (steps,), and returns the scalars stacked along the steps, (steps,) each. `batches` are
    stacked batches, or empty if `data` holds the resident examples and the order of their positions. `data` may also hold
    the arrays of further terms of the loss.

    Args:
      step: the step.
      batch_positions: gives this device's part of the positions of the batch that begins at an offset of an order.
      variable_length: whether the last offsets may be -1. No steps are run for them, and their scalars are 0, so that one
        program runs any number of steps. A GPU would wait for the host before each step.
    """
    def run(state: TrainState, batches: Batch, data: dict[str, Any], offsets: jax.Array,
            seed: jax.Array) -> tuple[TrainState, Scalars]:
        key = jax.random.key(seed)

        def run_step(state: TrainState, inputs: tuple[Batch, jax.Array]) -> tuple[TrainState, Scalars]:
            batch, offset = inputs
            if not batch:
                batch = gather(batch_positions(data['order'], offset), data['examples'])
                index = batch_positions(jnp.arange(len(data['order'])), offset)  # of each image in the order
                epoch_length = data['epoch_length'] if 'epoch_length' in data else len(data['examples']['image'])
                batch['epoch'] = data['epoch'] + index // epoch_length
            return step(state, batch, key, data.get('loss_terms', {}))

        first_inputs = jax.tree.map(lambda x: x[0], (batches, offsets))
        if len(offsets) == 1:  # a loop of one step gains nothing
            state, scalars = run_step(state, first_inputs)
            return state, jax.tree.map(lambda x: x[None], scalars)
        if not variable_length:
            return jax.lax.scan(run_step, state, (batches, offsets))

        def run_step_at(i: jax.Array, carry: tuple[TrainState, Scalars]) -> tuple[TrainState, Scalars]:
            state, stacked = carry
            state, scalars = run_step(state, jax.tree.map(lambda x: x[i], (batches, offsets)))
            return state, jax.tree.map(lambda values, x: values.at[i].set(x), stacked, scalars)

        _, shapes = jax.eval_shape(run_step, state, first_inputs)
        zeros = jax.tree.map(lambda x: jnp.zeros((len(offsets), *x.shape), x.dtype), shapes)
        return jax.lax.fori_loop(0, (offsets >= 0).sum(), run_step_at, (state, zeros))
    return run


def eval_step(network: Network, preprocessor: Preprocessor, task: Task, axis_name: str | None = None,
              tta: bool = False) -> Callable[[Any, Batch, Batch, Any], tuple[Any, Batch]]:
    """Return the function that evaluates one batch: `(variables, batch, examples, sums) -> (sums, rows)`.

    It adds the sums over a batch (see `Task.eval_sums`) to the sums so far, and returns the arrays of each image of the
    batch (see `Task.eval_rows`), the same on each device.

    Args:
      network: the network, without a BatchNorm axis.
      preprocessor: preprocessing of the images.
      task: meaning of the network's outputs.
      axis_name: name of the pmap axis, or None.
      tta: whether to evaluate the mean outputs over the variants of test-time augmentation.
    """
    def run(variables: Any, batch: Batch, examples: Batch, sums: Any) -> tuple[Any, Batch]:
        if 'position' in batch:
            batch = {**batch, **gather(batch['position'], examples)}
        batch = preprocessor.move_targets(batch, task)

        def apply(x: jax.Array) -> Any:
            return network.apply(variables, x, train=False, **task.network_arguments(batch, train=False))
        outputs = preprocessor.outputs(apply, batch['image'], tta)
        batch_sums, rows = task.eval_sums(outputs, batch, batch['mask']), task.eval_rows(outputs, batch)
        if axis_name:
            batch_sums = jax.lax.psum(batch_sums, axis_name)
            rows = jax.tree.map(lambda x: jax.lax.all_gather(x, axis_name, tiled=True), rows)
        return jax.tree.map(jnp.add, sums, batch_sums), rows
    return run
