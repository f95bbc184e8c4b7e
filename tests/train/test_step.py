"""The step against plain statements of what it should do."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcnn import config as cfg
from jaxcnn import models, optim
from jaxcnn.data import augment
from jaxcnn.losses import cross_entropy
from jaxcnn.train.state import RUN_ONCE, init_state
from jaxcnn.train.step import METRICS, Preparation, TrainStep, gather, many_steps

SHAPE = (16, 16, 1)
KEY = jax.random.key(3)


def make(dropout=0.0, widths=(4, 4, 4, 4), model=None, optimizer='sgd', augmented='', **fields):
    chain = dict(optimizer=optimizer, learning_rate=0.1, schedule='constant')
    config = cfg.parse(dict(duration=dict(steps=100), optim=chain))
    optimizer = optim.make_optimizer(config.optim, cfg.Timeline(config, 1000))
    network = model or models.create('shallow_cnn', widths=widths, hidden=8, dropout=dropout)
    step = TrainStep(network, optimizer, Preparation(augment.pipeline(augmented), (0.5,), (0.25,)), **fields)
    init = jax.jit(lambda seed: init_state(network, optimizer, SHAPE, seed, bool(fields.get('ema_decay'))),
                   compiler_options=RUN_ONCE)
    return step, init(np.uint32(0))


def batch_of(n, seed=0):
    rng = np.random.default_rng(seed)
    return {'image': rng.integers(0, 256, (n, *SHAPE), dtype=np.uint8), 'label': rng.integers(0, 10, n)}


class Plain(models.Network):
    """No BatchNorm: examples do not see each other."""

    @models.layers.nn.compact
    def __call__(self, x, train=False):
        """Logits."""
        return self.dense(self.num_classes)(jnp.tanh(self.dense(8)(x.reshape(len(x), -1))))


def test_one_step_is_sgd_on_the_cross_entropy():
    step, state = make(model=Plain(), label_smoothing=0.1)
    batch = batch_of(8)
    x = (batch['image'] / 255 - 0.5) / 0.25

    def loss(params):
        return cross_entropy(step.network.apply({'params': params}, x), batch['label'], 0.1).mean()

    value, grads = jax.value_and_grad(loss)(state.params)
    after, metrics = jax.jit(step)(state, batch, KEY)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads)
    chex.assert_trees_all_close(after.params, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(metrics['loss'], value, rtol=1e-6)
    np.testing.assert_allclose(metrics['grad_norm'], optax.global_norm(grads), rtol=1e-5)
    assert metrics['learning_rate'] == np.float32(0.1)
    assert after.step == 1


def test_micro_batches_add_up_to_the_batch():
    batch = batch_of(24)
    whole, parts = (jax.jit(step)(state, batch, KEY) for step, state in
                    (make(model=Plain(), accumulate=n) for n in (1, 4)))
    chex.assert_trees_all_close(whole, parts, rtol=1e-5, atol=1e-6)


def test_micro_batches_have_their_own_statistics():
    batch = batch_of(24)
    (whole, _), (parts, _) = (jax.jit(step)(state, batch, KEY) for step, state in (make(accumulate=n) for n in (1, 4)))
    difference = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), whole.batch_stats, parts.batch_stats)
    assert max(jax.tree.leaves(difference)) > 1e-3


def test_the_moving_average_follows_its_ramp():
    step, state = make(model=Plain(), ema_decay=0.6)
    run, expected = jax.jit(step), jax.tree.map(np.float64, state.params)
    for n in range(12):
        state, _ = run(state, batch_of(8, n), KEY)
        decay = min(0.6, (1 + n) / (10 + n))
        expected = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * p, expected, state.params)
    chex.assert_trees_all_close(state.ema_params, jax.tree.map(np.float32, expected), rtol=1e-5, atol=1e-6)
    assert (1 + 11) / (10 + 11) < 0.6 < (1 + 14) / (10 + 14)


def test_frozen_statistics_stay_and_are_used():
    step, state = make()
    state, _ = jax.jit(step)(state, batch_of(16), KEY)
    frozen = TrainStep(step.network.clone(bn_frozen=True), step.optimizer, step.prepare)
    batch = batch_of(16, 1)
    after, metrics = jax.jit(frozen)(state, batch, KEY)
    chex.assert_trees_all_equal(after.batch_stats, state.batch_stats)
    logits = step.network.apply({'params': state.params, 'batch_stats': state.batch_stats}, step.prepare(batch['image']))
    np.testing.assert_allclose(metrics['loss'], cross_entropy(logits, batch['label']).mean(), rtol=1e-5)
    moving, _ = jax.jit(step)(state, batch, KEY)
    assert all(np.any(a != b) for a, b in zip(jax.tree.leaves(moving.batch_stats), jax.tree.leaves(state.batch_stats),
                                              strict=True))


def test_statistics_by_group_are_means_over_the_groups():
    batch = batch_of(16)
    step, state = make(bn_groups=2)
    after, _ = jax.jit(step)(state, batch, KEY)
    single, _ = make()
    halves = [jax.jit(single)(state, {k: v[rows] for k, v in batch.items()}, KEY)[0]
              for rows in (slice(0, 8), slice(8, 16))]
    expected = jax.tree.map(lambda a, b: (a + b) / 2, halves[0].batch_stats, halves[1].batch_stats)
    chex.assert_trees_all_close(after.batch_stats, expected, rtol=1e-5, atol=1e-6)


def test_randomness_depends_on_key_step_and_row_alone():
    prepare = Preparation(augment.pipeline('pad_crop(3)|flip_lr'), (0.0,), (1.0,))
    images = batch_of(12)['image']
    labels = np.zeros(len(images), np.int32)
    whole, _ = prepare.train(images, labels, KEY, classes=2)
    np.testing.assert_array_equal(whole[8:], prepare.train(images[8:], labels[8:], KEY, first_row=8, classes=2)[0])
    assert np.any(whole != prepare.train(images, labels, jax.random.key(4), classes=2)[0])
    step, state = make(dropout=0.5, augmented='pad_crop(3)')
    run = jax.jit(step)
    chex.assert_trees_all_equal(run(state, batch_of(8), KEY), run(state, batch_of(8), KEY))
    later = state.replace(step=state.step + 1)
    assert run(state, batch_of(8), KEY)[1]['loss'] != run(later, batch_of(8), KEY)[1]['loss']


def test_positions_are_looked_up_in_the_resident_data():
    data = batch_of(20)
    found = gather(jnp.array([3, 19, 3]), data)
    np.testing.assert_array_equal(found['image'], data['image'][[3, 19, 3]])
    np.testing.assert_array_equal(found['label'], data['label'][[3, 19, 3]])


@pytest.mark.parametrize('count', [1, 3])
def test_many_steps_are_the_steps_one_after_the_other(count):
    step, state = make()
    batches = [batch_of(8, n) for n in range(count)]
    expected, losses = state, []
    for batch in batches:
        expected, metrics = jax.jit(step)(expected, batch, jax.random.key(5))
        losses.append(metrics['loss'])
    stacked = {k: np.stack([b[k] for b in batches]) for k in batches[0]}
    run = jax.jit(many_steps(step, lambda order, first: jax.lax.dynamic_slice(order, (first,), (8,))))
    first = np.arange(count, dtype=np.int32) * 8
    resident = {**{k: v.reshape(-1, *v.shape[2:]) for k, v in stacked.items()}, 'order': np.arange(8 * count)}
    for batches, data in ((stacked, {}), ({}, resident)):
        after, metrics = run(state, batches, data, first, np.uint32(5))
        chex.assert_trees_all_close(after, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(metrics[:, METRICS.index('loss')], losses, rtol=1e-5)
