"""The training step and the evaluation step, each written once as a pure function.

Two back ends (`parallel.py`) compile them. Under `sharded` a batch is the global batch and `axis_name` is None;
under `pmap` it is this device's part of it and means are taken over `axis_name`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn.config import DataConfig, LookaheadConfig
from jaxcnn.data import normalize
from jaxcnn.data.augment import Gradient, Pipeline, pipeline
from jaxcnn.data.normalize import Fitted, Normalization, Normalizer
from jaxcnn.data.tta import TestTimeAugmentation
from jaxcnn.errors import UserError, within
from jaxcnn.losses import cross_entropy
from jaxcnn.metrics import Sums, batch_sums, predictions
from jaxcnn.models import Network
from jaxcnn.optim import Optimizer
from jaxcnn.train.state import TrainState, variables

Batch = dict[str, jax.Array]
Fit = Callable[[Sequence[Normalizer], Callable[[jax.Array], jax.Array]], Sequence[Fitted]]
METRICS = ('loss', 'accuracy', 'grad_norm', 'learning_rate')


@dataclass(frozen=True)
class Preparation:
    """From uint8 pixels to what the network sees.

    Attributes:
      augment: of training images, in [0, 1]; or None.
      normalize: after it.
      eval_augment: of all other images, drawing nothing; or None.
      tta: test-time augmentation, which follows it; or None.
    """

    augment: Pipeline | None
    normalize: Normalization
    eval_augment: Pipeline | None = None
    tta: TestTimeAugmentation | None = None

    @classmethod
    def of(cls, config: DataConfig, mean: Sequence[float], std: Sequence[float], fitted: Fit,
           tta: TestTimeAugmentation | None = None) -> 'Preparation':
        """The preparation that a config asks for.

        Args:
          config: the config's part.
          mean, std: per channel, of the training part.
          fitted: gives what normalisation by anything else has learned of it.
          tta: see `Preparation`.
        """
        raw = cls(pipeline(config.augment), Normalization(), pipeline(config.eval_augment, steady=True), tta)
        ops = normalize.parse(config.normalize)
        if ops == [normalize.standardize()]:
            return dataclasses.replace(raw, normalize=Normalization.by(mean, std))
        return dataclasses.replace(raw, normalize=Normalization(ops, fitted(ops, raw)) if ops else Normalization())

    def __call__(self, images: jax.Array) -> jax.Array:
        """Float32 images of uint8 ones (N, H, W, C), as evaluation has them."""
        return self.normalize(self._pixels(images))

    def _pixels(self, images: jax.Array) -> jax.Array:
        x = images.astype(jnp.float32) / 255
        if self.eval_augment is not None:
            x = jax.vmap(functools.partial(self.eval_augment, jax.random.key(0)))(x)
        return x

    def logits(self, of: Callable[[jax.Array], jax.Array], images: jax.Array, tta: bool = True) -> jax.Array:
        """What `of` makes of uint8 images (N, H, W, C) as evaluation has them; with `tta` the mean over the variants of
        test-time augmentation, if there is any."""
        x = self._pixels(images)
        variants = self.tta(x) if self.tta and tta else [(1.0, x)]
        return sum(weight * of(self.normalize(images)).astype(jnp.float32) for weight, images in variants)  # type: ignore[return-value]

    def train(self, images: jax.Array, labels: jax.Array, key: jax.Array, rows: Any = None, *, classes: int,
              before: Callable[[jax.Array], jax.Array] = lambda x: jnp.roll(x, 1, 0),
              gradient: Gradient | None = None, passes: tuple[jax.Array, jax.Array] | None = None) -> tuple[
                  jax.Array, jax.Array]:
        """Float32 images of uint8 ones (N, H, W, C), and their labels, augmented.

        Each image's key is folded from its row in the global batch, `rows` (N,), so that it does not depend on how the batch
        is spread over devices; without `rows` they are the first ones. The others: see `augment.Pipeline.batch`.
        """
        x = images.astype(jnp.float32) / 255
        if self.augment is not None:
            keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(
                jnp.arange(len(x)) if rows is None else rows)
            x, labels = self.augment.batch(keys, x, labels, classes, before, gradient, passes)
        return self.normalize(x), labels

    def shape(self, image_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """What becomes of images (H, W, C).

        Raises:
          UserError: training and evaluation make images of two sizes, or an op does not take these images.
        """
        def of(where: str, pipeline: Pipeline | None) -> tuple[int, ...]:
            with within(where):
                return image_shape if pipeline is None else jax.eval_shape(
                    pipeline, jax.random.key(0), jax.ShapeDtypeStruct(image_shape, jnp.float32)).shape
        train, other = of('config.data.augment', self.augment), of('config.data.eval_augment', self.eval_augment)
        if train != other:
            raise UserError(f'config.data.augment makes images of {train[0]} x {train[1]} pixels, '
                            f'config.data.eval_augment of {other[0]} x {other[1]}: both must be what the network takes')
        if self.tta is not None:
            with within('config.eval.tta'):
                jax.eval_shape(self.tta, jax.ShapeDtypeStruct((1, *other), jnp.float32))
        return tuple(train)  # type: ignore[return-value]


def image_gradient(network: Network, prepare: Preparation, weights: Any) -> Gradient:
    """`(images, labels) -> gradient` of each image's loss by its values in [0, 1], the network being as in evaluation."""
    def of(images: jax.Array, labels: jax.Array) -> jax.Array:
        @jax.grad
        def gradient(images: jax.Array) -> jax.Array:
            logits: Any = network.apply(weights, prepare.normalize(images), train=False)
            return cross_entropy(logits, labels).sum()
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


def gather(position: jax.Array, data: Batch) -> Batch:
    """The images and labels at `position` (N,) of the resident `data`."""
    taken = {name: jnp.take(data[name], position, axis=0, mode='clip') for name in ('image', 'label')}
    return {**taken, 'position': position}


@dataclass(frozen=True)
class TrainStep:
    """One update: augment, normalise, forward, loss, backward, optax, metrics.

    Attributes:
      stage: of the optimizer.
      bn_groups: BatchNorm takes its statistics over each of so many equal parts of the batch.
      axis_name: of the pmap axis, or None.
      class_weights: what an image's loss is multiplied by, for each class; or None.
      lookahead: how slow parameters follow; or None.
      total: steps of the run; look-ahead must know.
    """

    network: Network
    optimizer: Optimizer
    prepare: Preparation
    label_smoothing: float = 0.0
    accumulate: int = 1
    ema_decay: float = 0.0
    stage: int = 0
    bn_groups: int = 1
    axis_name: str | None = None
    class_weights: tuple[float, ...] | None = None
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

    def _micro_batch(self, params: Any, batch_stats: Any, images: jax.Array, labels: jax.Array,
                     key: jax.Array) -> tuple[Any, Any, dict[str, jax.Array]]:
        """Gradients, new BatchNorm statistics and metrics, all means over the images."""
        weights, targets = jnp.ones(()), labels
        if self.class_weights is not None:
            of_class = jnp.asarray(self.class_weights)
            if labels.ndim == 1:
                weights = of_class[labels]
            else:  # each part of a mixed label has the weight of its own class
                targets = labels * of_class
                weights = targets.sum(-1)
                targets /= jnp.maximum(weights, 1e-30)[:, None]

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            (logits, *auxiliary), stats = self._forward(params, batch_stats, images, key)
            losses = [(weights * cross_entropy(x, targets, self.label_smoothing)).mean() for x in (logits, *auxiliary)]
            return losses[0] + getattr(self.network, 'aux_weight', 0) * sum(losses[1:]), (logits, stats)

        (loss, (logits, stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        target = labels if labels.ndim == 1 else labels.argmax(-1)
        accuracy = (predictions(logits) == target).astype(jnp.float32).mean()
        return grads, stats, {'loss': loss, 'accuracy': accuracy}

    def _before(self, x: jax.Array) -> jax.Array:
        """Of each row, the row before it in the global batch."""
        if not self.axis_name:
            return jnp.roll(x, 1, 0)
        devices = jax.lax.axis_size(self.axis_name)
        last = jax.lax.ppermute(x[-1:], self.axis_name, [(i, (i + 1) % devices) for i in range(devices)])
        return jnp.concatenate([last, x[:-1]])

    def _gradients(self, state: TrainState, images: jax.Array, labels: jax.Array, key: jax.Array) -> Any:
        if self.accumulate == 1:
            return self._micro_batch(state.params, state.batch_stats, images, labels, key)

        def split(x: jax.Array) -> jax.Array:  # row r goes to micro-batch r % accumulate, on every device alike
            return x.reshape(-1, self.accumulate, *x.shape[1:]).swapaxes(0, 1)

        def body(carry: Any, part: Any) -> tuple[Any, None]:
            stats, sums = carry
            images, labels, index = part
            grads, stats, metrics = self._micro_batch(state.params, stats, images, labels,
                                                      jax.random.fold_in(key, index))
            return (stats, jax.tree.map(jnp.add, sums, (grads, metrics))), None

        zeros = (jax.tree.map(jnp.zeros_like, state.params), {'loss': jnp.zeros(()), 'accuracy': jnp.zeros(())})
        (stats, sums), _ = jax.lax.scan(body, (state.batch_stats, zeros),
                                        (split(images), split(labels), jnp.arange(self.accumulate)))
        grads, metrics = jax.tree.map(lambda s: s / self.accumulate, sums)
        return grads, stats, metrics

    def __call__(self, state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        """The state after the step, and its scalars `loss, accuracy, grad_norm, learning_rate`.

        Args:
          state: before the step.
          batch: `image` (N, H, W, C) uint8 and `label` (N,); for ops by the epoch also each image's `position` in the
            training part and its `epoch`, (N,).
          key: of the run; the step folds its number in, so that its randomness depends on `(key, step)` alone.
        """
        augment_key, dropout_key = step_keys(key, state.step)
        rows = jnp.arange(len(batch['label']))
        if self.axis_name:
            device = jax.lax.axis_index(self.axis_name)
            rows += device * len(rows)
            dropout_key = jax.random.fold_in(dropout_key, device)
        passes = (image_keys(key, batch['position']), batch['epoch']) if 'epoch' in batch else None
        images, labels = self.prepare.train(
            batch['image'], batch['label'], augment_key, rows, passes=passes, classes=self.network.num_classes,
            before=self._before, gradient=image_gradient(self.network, self.prepare, variables(state)['']))
        grads, stats, metrics = self._gradients(state, images, labels, dropout_key)
        if self.axis_name:
            grads, stats, metrics = jax.lax.pmean((grads, stats, metrics), self.axis_name)
        grads = self.optimizer.groups.trained(grads, state.step)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params, self.stage, metrics['loss'])
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            n = state.step.astype(jnp.float32)
            decay = jnp.minimum(self.ema_decay, (1 + n) / (10 + n))
            ema = jax.tree.map(lambda e, x: (decay * e + (1 - decay) * x).astype(e.dtype), ema, (params, stats))
        slow = state.slow
        if self.lookahead is not None:
            params, stats, slow = self._look_ahead(params, stats, slow, state.step + 1)
        metrics = {**metrics, 'grad_norm': optax.global_norm(grads),
                   'learning_rate': self.optimizer.learning_rate(state.opt_state, state.step, self.stage)}
        return TrainState(state.step + 1, params, stats, opt_state, ema, slow), metrics

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
        [TrainState, Batch, Batch, jax.Array, jax.Array], tuple[TrainState, jax.Array]]:
    """The function that is compiled: `(state, batches, data, first, seed) -> (state, metrics)`, over the leading axis
    of `first`; metrics are stacked along it, with the scalars of `METRICS` (steps, 4).

    Args:
      step: one.
      rows: of an order and the place in it where a batch begins, this device's part of the batch.
      some: `first` may end in -1, where there are no steps, and rows of metrics are 0; so one program does for any number of
        them. A GPU would wait for the host before each step.
    """
    def run(state: TrainState, batches: Batch, data: Batch, first: jax.Array, seed: jax.Array) -> tuple[TrainState, Any]:
        key = jax.random.key(seed)

        def one(state: TrainState, part: tuple[Batch, jax.Array]) -> tuple[TrainState, jax.Array]:
            batch, first = part
            if not batch:
                batch = gather(rows(data['order'], first), data)
                before = rows(jnp.arange(len(data['order'])), first)  # images since the order began
                batch['epoch'] = data['epoch'] + before // len(data['label'])
            state, metrics = step(state, batch, key)
            return state, jnp.stack([metrics[name] for name in METRICS])

        if len(first) == 1:  # a loop of one step gains nothing
            state, metrics = one(state, jax.tree.map(lambda x: x[0], (batches, first)))
            return state, metrics[None]
        if not some:
            return jax.lax.scan(one, state, (batches, first))

        def ith(i: jax.Array, carry: tuple[TrainState, jax.Array]) -> tuple[TrainState, jax.Array]:
            state, metrics = one(carry[0], jax.tree.map(lambda x: x[i], (batches, first)))
            return state, carry[1].at[i].set(metrics)

        return jax.lax.fori_loop(0, (first >= 0).sum(), ith, (state, jnp.zeros((len(first), len(METRICS)))))
    return run


def eval_step(network: Network, prepare: Preparation, axis_name: str | None = None,
              tta: bool = False) -> Callable[[Any, Batch, Batch, Sums], Sums]:
    """The function that is compiled: adds a batch's sums (see `metrics.batch_sums`) to those so far; `tta`: with
    test-time augmentation."""
    def run(variables: Any, batch: Batch, data: Batch, sums: Sums) -> Sums:
        if 'position' in batch:
            batch = {**batch, **gather(batch['position'], data)}
        def of(x: jax.Array) -> jax.Array:
            logits: Any = network.apply(variables, x, train=False)
            return logits
        logits = prepare.logits(of, batch['image'], tta)
        new = batch_sums(logits, batch['label'], batch['mask'])
        if axis_name:
            new = jax.lax.psum(new, axis_name)
        return jax.tree.map(jnp.add, sums, new)
    return run
