"""The training step and the evaluation step, each written once as a pure function.

Two back ends (`parallel.py`) compile them. Under `sharded` a batch is the global batch and `axis_name` is None;
under `pmap` it is this device's part of it and means are taken over `axis_name`.
"""

import functools
from collections.abc import Callable
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
from jaxcnn.models import Network
from jaxcnn.optim import Optimizer
from jaxcnn.preprocessing import Preprocessor
from jaxcnn.tasks import Task
from jaxcnn.train.state import TrainState, variables

Batch = dict[str, jax.Array]
Scalars = dict[str, jax.Array]


def image_gradient(network: Network, preprocessor: Preprocessor, task: Task, weights: Any) -> Gradient:
    """Return the function from images and targets to the gradient of each image's loss by its values in [0, 1], the network
    being as in evaluation."""
    def of(images: jax.Array, targets: Batch) -> jax.Array:
        @jax.grad
        def gradient(images: jax.Array) -> jax.Array:
            outputs: Any = network.apply(weights, preprocessor.normalize(images), train=False)
            return task.example_losses(outputs, targets).sum()
        try:
            return gradient(images)
        except flax.errors.ScopeParamShapeError:
            raise UserError(f'an attack comes where images are {images.shape[1]} x {images.shape[2]}, which is not what the '
                            'network takes', field='config.data.augment',
                            hint='put it after what changes their size') from None
    return of


def step_keys(key: jax.Array, step: Any) -> tuple[jax.Array, jax.Array]:
    """The keys of augmentation and dropout at a step, below 2^32 - 1: a function of the run's key and the step alone."""
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, step))
    return augment_key, dropout_key


def image_keys(key: jax.Array, positions: jax.Array) -> jax.Array:
    """The keys of images at `positions` (N,) of the training part, the same throughout a run, by the run's key."""
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.fold_in(key, np.uint32(2**32 - 1))))(positions)


def gather(position: jax.Array, examples: Batch) -> Batch:
    """Return the examples at `position` (N,) of those that are on the device, with their positions."""
    selected = {name: jnp.take(values, position, axis=0, mode='clip') for name, values in examples.items()}
    return {**selected, 'position': position}


@dataclass(frozen=True)
class TrainStep:
    """One update: augment, normalise, forward, loss, backward, optax, metrics.

    Attributes:
      task: what the network's outputs mean.
      stage: of the optimizer.
      bn_groups: BatchNorm takes its statistics over each of so many equal parts of the batch.
      axis_name: of the pmap axis, or None.
      lookahead: how slow parameters follow; or None.
      total: steps of the run; look-ahead must know.
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

    def _forward(self, params: Any, batch_stats: Any, images: jax.Array, key: jax.Array) -> tuple[list[jax.Array], Any]:
        """Logits, those of auxiliary classifiers after them, and the new BatchNorm statistics."""
        def apply(x: jax.Array, key: jax.Array) -> tuple[list[jax.Array], Any]:
            output, updates = self.network.apply({'params': params, 'batch_stats': batch_stats}, x, train=True,
                                                 rngs={'dropout': key}, mutable=['batch_stats'])
            return [*output] if isinstance(output, tuple) else [output], updates.get('batch_stats', batch_stats)

        if self.bn_groups == 1:
            return apply(images, key)
        groups = images.reshape(self.bn_groups, -1, *images.shape[1:])
        logits, stats = jax.vmap(apply)(groups, jax.random.split(key, self.bn_groups))
        return [x.reshape(len(images), -1) for x in logits], jax.tree.map(lambda s: s.mean(0), stats)

    def _micro_batch(self, params: Any, batch_stats: Any, examples: Batch, key: jax.Array) -> tuple[Any, Any, Scalars]:
        """Return gradients, new BatchNorm statistics and scalars, all means over the images."""
        images, targets = examples['image'], {name: value for name, value in examples.items() if name != 'image'}

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            (outputs, *auxiliary), stats = self._forward(params, batch_stats, images, key)
            losses = [self.task.loss(x, targets) for x in (outputs, *auxiliary)]
            return losses[0] + getattr(self.network, 'aux_weight', 0) * sum(losses[1:]), (outputs, stats)

        (loss, (outputs, stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        return grads, stats, {'loss': loss, **self.task.train_scalars(outputs, targets)}

    def _previous(self, x: jax.Array) -> jax.Array:
        """Of each row, the row before it in the global batch."""
        if not self.axis_name:
            return jnp.roll(x, 1, 0)
        devices = jax.lax.axis_size(self.axis_name)
        last = jax.lax.ppermute(x[-1:], self.axis_name, [(i, (i + 1) % devices) for i in range(devices)])
        return jnp.concatenate([last, x[:-1]])

    def _gradients(self, state: TrainState, examples: Batch, key: jax.Array) -> Any:
        if self.accumulate == 1:
            return self._micro_batch(state.params, state.batch_stats, examples, key)

        def split(x: jax.Array) -> jax.Array:  # row r goes to micro-batch r % accumulate, on every device alike
            return x.reshape(-1, self.accumulate, *x.shape[1:]).swapaxes(0, 1)

        def body(carry: Any, part: Any) -> tuple[Any, None]:
            stats, sums = carry
            micro_batch, index = part
            grads, stats, scalars = self._micro_batch(state.params, stats, micro_batch, jax.random.fold_in(key, index))
            return (stats, jax.tree.map(jnp.add, sums, (grads, scalars))), None

        micro_batches = jax.tree.map(split, examples)
        grads, _, scalars = jax.eval_shape(self._micro_batch, state.params, state.batch_stats,
                                           jax.tree.map(lambda x: x[0], micro_batches), key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (grads, scalars))
        (stats, sums), _ = jax.lax.scan(body, (state.batch_stats, zeros), (micro_batches, jnp.arange(self.accumulate)))
        grads, metrics = jax.tree.map(lambda s: s / self.accumulate, sums)
        return grads, stats, metrics

    def __call__(self, state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Scalars]:
        """Return the state after the step, and its scalars: the loss, those of the task, `grad_norm` and `learning_rate`.

        Args:
          state: before the step.
          batch: `image` (N, H, W, C) uint8 and the targets of the task; for ops by the epoch also each image's `position`
            in the training part and its `epoch`, (N,).
          key: of the run; the step folds its number in, so that its randomness depends on `(key, step)` alone.
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
            examples, augment_key, rows, passes=passes, mixer=self.task, previous_rows=self._previous,
            gradient=image_gradient(self.network, self.preprocessor, self.task, variables(state)[False]))
        grads, stats, scalars = self._gradients(state, examples, dropout_key)
        if self.axis_name:
            grads, stats, scalars = jax.lax.pmean((grads, stats, scalars), self.axis_name)
        grads = self.optimizer.groups.mask_gradients(grads, state.step)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params, self.stage, scalars['loss'])
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            n = state.step.astype(jnp.float32)
            decay = jnp.minimum(self.ema_decay, (1 + n) / (10 + n))
            ema = jax.tree.map(lambda e, x: (decay * e + (1 - decay) * x).astype(e.dtype), ema, (params, stats))
        slow = state.slow
        if self.lookahead is not None:
            params, stats, slow = self._look_ahead(params, stats, slow, state.step + 1)
        scalars = {**scalars, 'grad_norm': optax.global_norm(grads),
                   'learning_rate': self.optimizer.learning_rate(state.opt_state, state.step, self.stage)}
        return TrainState(state.step + 1, params, stats, opt_state, ema, slow), scalars

    def _look_ahead(self, params: Any, stats: Any, slow: Any, done: jax.Array) -> tuple[Any, Any, Any]:
        """Parameters, statistics and the slow ones after so many steps: at times the slow ones go towards the others, which
        then are set to them; at the end they are in any case."""
        chosen = self.lookahead
        assert chosen is not None
        move = done % chosen.every == 0
        stay = jnp.where(move, (1 - chosen.slow_step_size) * (done / self.total) ** chosen.ramp, 1.0)
        now = move | (done == self.total)
        slow = jax.tree.map(lambda s, x: jnp.where(now, stay * s + (1 - stay) * x, s).astype(s.dtype), slow, (params, stats))
        return (*jax.tree.map(lambda s, x: jnp.where(now, s, x), slow, (params, stats)), slow)


def many_steps(step: TrainStep, rows: Callable[[jax.Array, jax.Array], jax.Array], some: bool = False) -> Callable[
        [TrainState, Batch, dict[str, Any], jax.Array, jax.Array], tuple[TrainState, Scalars]]:
    """Return the function that is compiled: `(state, batches, data, first, seed) -> (state, scalars)`, over the leading axis
    of `first`; scalars are stacked along it, (steps,) each.

    Args:
      step: one.
      rows: of an order and the place in it where a batch begins, this device's part of the batch.
      some: `first` may end in -1, where there are no steps, and scalars are 0; so one program does for any number of
        them. A GPU would wait for the host before each step.
    """
    def run(state: TrainState, batches: Batch, data: dict[str, Any], first: jax.Array,
            seed: jax.Array) -> tuple[TrainState, Scalars]:
        key = jax.random.key(seed)

        def one(state: TrainState, part: tuple[Batch, jax.Array]) -> tuple[TrainState, Scalars]:
            batch, first = part
            if not batch:
                batch = gather(rows(data['order'], first), data['examples'])
                before = rows(jnp.arange(len(data['order'])), first)  # images since the order began
                batch['epoch'] = data['epoch'] + before // len(data['examples']['image'])
            return step(state, batch, key)

        if len(first) == 1:  # a loop of one step gains nothing
            state, scalars = one(state, jax.tree.map(lambda x: x[0], (batches, first)))
            return state, jax.tree.map(lambda x: x[None], scalars)
        if not some:
            return jax.lax.scan(one, state, (batches, first))

        def ith(i: jax.Array, carry: tuple[TrainState, Scalars]) -> tuple[TrainState, Scalars]:
            state, scalars = one(carry[0], jax.tree.map(lambda x: x[i], (batches, first)))
            return state, jax.tree.map(lambda stacked, x: stacked.at[i].set(x), carry[1], scalars)

        _, shapes = jax.eval_shape(one, state, jax.tree.map(lambda x: x[0], (batches, first)))
        zeros = jax.tree.map(lambda x: jnp.zeros((len(first), *x.shape), x.dtype), shapes)
        return jax.lax.fori_loop(0, (first >= 0).sum(), ith, (state, zeros))
    return run


def eval_step(network: Network, preprocessor: Preprocessor, task: Task, axis_name: str | None = None,
              tta: bool = False) -> Callable[[Any, Batch, Batch, Any], tuple[Any, Batch]]:
    """Return the function that is compiled: `(variables, batch, examples, sums) -> (sums, rows)`.

    It adds a batch's sums (see `Task.eval_sums`) to those so far, and returns the arrays of each image of the batch
    (see `Task.eval_rows`), the same on each device.

    Args:
      network: without a BatchNorm axis.
      preprocessor: the pixels' preprocessing.
      task: what the network's outputs mean.
      axis_name: of the pmap axis, or None.
      tta: evaluate the mean outputs over the variants of test-time augmentation.
    """
    def run(variables: Any, batch: Batch, examples: Batch, sums: Any) -> tuple[Any, Batch]:
        if 'position' in batch:
            batch = {**batch, **gather(batch['position'], examples)}

        def outputs_of(x: jax.Array) -> jax.Array:
            outputs: Any = network.apply(variables, x, train=False)
            return outputs
        outputs = preprocessor.outputs(outputs_of, batch['image'], tta)
        new, rows = task.eval_sums(outputs, batch, batch['mask']), task.eval_rows(outputs, batch)
        if axis_name:
            new = jax.lax.psum(new, axis_name)
            rows = jax.tree.map(lambda x: jax.lax.all_gather(x, axis_name, tiled=True), rows)
        return jax.tree.map(jnp.add, sums, new), rows
    return run
