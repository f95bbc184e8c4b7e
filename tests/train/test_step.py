"""The step against plain statements of what it should do."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcnn import config as cfg
from jaxcnn import models, tasks
from jaxcnn.data import Dataset, Split, augment
from jaxcnn.data.normalize import Normalization
from jaxcnn.errors import UserError
from jaxcnn.losses import cross_entropy
from jaxcnn.optim import make_optimizer
from jaxcnn.preprocessing import Preprocessor
from jaxcnn.timeline import Timeline
from jaxcnn.train.state import init_state, run_once, variables
from jaxcnn.train.step import TrainStep, gather, many_steps, step_keys

SHAPE = (16, 16, 1)
KEY = jax.random.key(3)


def task_of(label_smoothing=0.0, class_weights=None):
    config = cfg.parse(dict(loss=dict(name='cross_entropy', label_smoothing=label_smoothing)))
    task = tasks.create(config, [str(i) for i in range(10)], [1] * 10, 10)
    return dataclasses.replace(task, class_weights=class_weights)


TASK = task_of()


def make(dropout=0.0, widths=(4, 4, 4, 4), model=None, optimizer='sgd', augmented='', optim=None, label_smoothing=0.0,
         class_weights=None, **fields):
    chain = dict(optimizer=optimizer, learning_rate=0.1, schedule='constant', ema_decay=fields.get('ema_decay', 0.0),
                 **(optim or {}))
    config = cfg.parse(dict(duration=dict(steps=100), optim=chain))
    optimizer = make_optimizer(config.optim, Timeline(config, 1000))
    network = model or models.create('shallow_cnn', widths=widths, hidden=8, dropout=dropout)
    preprocessor = Preprocessor(augment.pipeline(augmented), Normalization.by((0.5,), (0.25,)))
    step = TrainStep(network, optimizer, preprocessor, task_of(label_smoothing, class_weights), **fields)
    init = jax.jit(lambda seed: init_state(network, optimizer, SHAPE, seed, config.optim),
                   compiler_options=run_once())
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


def test_logits_that_are_nan_are_never_right():
    step, state = make(model=Plain())
    state = state.replace(params=jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), state.params))
    _, metrics = jax.jit(step)(state, {**batch_of(8), 'label': np.zeros(8, int)}, KEY)
    assert metrics['accuracy'] == 0


def test_micro_batches_add_up_to_the_batch():
    batch = batch_of(24)
    whole, parts = (jax.jit(step)(state, batch, KEY) for step, state in
                    (make(model=Plain(), accumulate=n) for n in (1, 4)))
    chex.assert_trees_all_close(whole, parts, rtol=1e-5, atol=1e-6)


def test_micro_batches_have_their_own_statistics():
    batch, (step, state) = batch_of(24), make(accumulate=4)
    found, _ = jax.jit(step)(state, batch, KEY)
    x, stats = (batch['image'] / 255 - 0.5) / 0.25, state.batch_stats
    apply = jax.jit(lambda stats, x: step.network.apply({'params': state.params, 'batch_stats': stats}, x, train=True,
                                                        mutable=['batch_stats'], rngs={'dropout': KEY})[1]['batch_stats'])
    for part in range(4):  # one after the other, each of every fourth image
        stats = apply(stats, x[part::4])
    chex.assert_trees_all_close(found.batch_stats, stats, rtol=1e-4, atol=1e-6)


def test_the_moving_average_follows_its_ramp():
    step, state = make(ema_decay=0.6)
    run, expected = jax.jit(step), jax.tree.map(np.float64, (state.params, state.batch_stats))
    for n in range(18):
        state, _ = run(state, batch_of(8, n), KEY)
        decay = min(0.6, (1 + n) / (10 + n))
        expected = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * p, expected,
                                (state.params, state.batch_stats))
    chex.assert_trees_all_close(state.ema, jax.tree.map(np.float32, expected), rtol=1e-5, atol=1e-6)
    assert variables(state)[True] == {'params': state.ema[0], 'batch_stats': state.ema[1]}
    assert (1 + 11) / (10 + 11) < 0.6 < (1 + 17) / (10 + 17)


@pytest.mark.torch
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_class_weights_are_pytorchs_where_its_losses_are_weighted_and_averaged_as_docs_pytorch_says(smoothing):
    torch = pytest.importorskip('torch')
    cross_entropy_of = torch.nn.functional.cross_entropy
    weights = np.linspace(0.5, 2, 10).astype(np.float32)
    step, state = make(model=Plain(), label_smoothing=smoothing, class_weights=tuple(weights.tolist()))
    batch = batch_of(8)
    _, metrics = jax.jit(step)(state, batch, KEY)
    logits = torch.tensor(np.asarray(step.network.apply({'params': state.params}, (batch['image'] / 255 - 0.5) / 0.25)))
    labels, weight = torch.tensor(batch['label']), torch.tensor(weights)
    equal = (weight[labels] * cross_entropy_of(logits, labels, label_smoothing=smoothing, reduction='none')).mean()
    loss, summed, each = float(metrics['loss']), *(float(cross_entropy_of(
        logits, labels, weight, label_smoothing=smoothing, reduction=by).mean()) for by in ('mean', 'none'))
    np.testing.assert_allclose(loss, equal, rtol=1e-5)
    assert abs(loss / summed - 1) > 0.01
    assert (abs(loss / each - 1) > 0.001) == bool(smoothing)


def test_look_ahead_is_that_of_optax():
    fields = cfg.LookaheadConfig(every=3, slow_step_size=0.3)
    step, state = make(model=Plain(), optim=dict(lookahead=fields), lookahead=fields, total=100)
    theirs = optax.lookahead(optax.sgd(0.1), 3, 0.3)
    both = optax.LookaheadParams.init_synced(state.params)
    memory, run = theirs.init(both), jax.jit(step)
    for n in range(7):
        batch = batch_of(8, n)
        x = (batch['image'] / 255 - 0.5) / 0.25

        def loss(params, x=x, labels=batch['label']):
            return cross_entropy(step.network.apply({'params': params}, x), labels).mean()
        updates, memory = theirs.update(jax.grad(loss)(both.fast), memory, both)
        both = optax.apply_updates(both, updates)
        state, _ = run(state, batch, KEY)
        chex.assert_trees_all_close((state.params, state.slow[0]), (both.fast, both.slow), rtol=1e-4, atol=1e-6)


def test_look_ahead_with_a_ramp_sets_statistics_back_too_and_ends_with_the_slow_ones():
    """airbench's: what stays of the slow ones grows as the cube of the done part of the run, and at its end is all."""
    chosen = cfg.LookaheadConfig(every=2, slow_step_size=0.4, ramp=3.0)
    step, state = make(optim=dict(lookahead=chosen), lookahead=chosen, total=5)
    plain, _ = make()
    slow = (state.params, state.batch_stats)
    for n in range(1, 6):
        state = state.replace(slow=jax.tree.map(jnp.copy, slow))
        fast, _ = jax.jit(plain)(state.replace(slow=None), batch_of(16, n), KEY)
        after, _ = jax.jit(step)(state, batch_of(16, n), KEY)
        fast = (fast.params, fast.batch_stats)
        if n in (2, 4):
            stays = 0.6 * (n / 5) ** 3
            slow = jax.tree.map(lambda s, x, stays=stays: stays * s + (1 - stays) * x, slow, fast)
        expected = slow if n in (2, 4, 5) else fast
        chex.assert_trees_all_close((after.params, after.batch_stats), expected, rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(after.slow, slow, rtol=1e-5, atol=1e-6)
        state = after
    assert max(jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), fast, slow))) > 1e-3


def test_frozen_statistics_stay_and_are_used():
    step, state = make()
    state, _ = jax.jit(step)(state, batch_of(16), KEY)
    frozen = TrainStep(step.network.clone(bn_frozen=True), step.optimizer, step.preprocessor, step.task)
    batch = batch_of(16, 1)
    after, metrics = jax.jit(frozen)(state, batch, KEY)
    chex.assert_trees_all_equal(after.batch_stats, state.batch_stats)
    images = step.preprocessor(batch['image'])
    logits = step.network.apply({'params': state.params, 'batch_stats': state.batch_stats}, images)
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
    preprocessor = Preprocessor(augment.pipeline('pad_crop(3)|flip_lr'), Normalization())
    batch = batch_of(12)
    last_rows = {name: values[8:] for name, values in batch.items()}
    images = preprocessor.train(batch, KEY, mixer=TASK)['image']
    np.testing.assert_array_equal(images[8:], preprocessor.train(last_rows, KEY, np.arange(8, 12), mixer=TASK)['image'])
    assert np.any(images != preprocessor.train(batch, jax.random.key(4), mixer=TASK)['image'])
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


@pytest.mark.parametrize(('count', 'none'), [(1, 0), (3, 0), (3, 2), (1, 4)])
def test_many_steps_are_the_steps_one_after_the_other(count, none):
    step, state = make()
    batches = [batch_of(8, n) for n in range(count)]
    expected, losses = state, []
    for batch in batches:
        expected, metrics = jax.jit(step)(expected, batch, jax.random.key(5))
        losses.append(metrics['loss'])
    stacked = {k: np.stack([b[k] for b in batches]) for k in batches[0]}
    stacked = {k: np.concatenate([v, np.zeros((none, *v.shape[1:]), v.dtype)]) for k, v in stacked.items()}
    run = jax.jit(many_steps(step, lambda order, first: jax.lax.dynamic_slice(order, (first,), (8,)), bool(none)))
    first = np.append(np.arange(count, dtype=np.int32) * 8, np.full(none, -1, np.int32))
    resident = {'examples': {k: v.reshape(-1, *v.shape[2:]) for k, v in stacked.items()}, 'order': np.arange(8 * len(first)),
                'epoch': np.int32(0)}
    for batches, data in ((stacked, {}), ({}, resident)):
        after, metrics = run(state, batches, data, first, np.uint32(5))
        chex.assert_trees_all_close(after, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(metrics['loss'][:count], losses, rtol=1e-5)


def test_an_attack_is_against_the_network_as_it_is_trained():
    """On a network without BatchNorm, fgsm's step by the closed form, through the mean and deviation of the preparation."""
    step, state = make(model=Plain(), augmented='fgsm(0.1)')
    batch = batch_of(8)
    images = np.float32(batch['image'] / 255)

    def loss(images):
        logits = step.network.apply({'params': state.params}, (images - 0.5) / 0.25)
        return cross_entropy(logits, batch['label']).mean()

    attacked = np.clip(images + 0.1 * np.sign(jax.grad(loss)(images)), 0, 1)
    _, metrics = jax.jit(step)(state, batch, KEY)
    np.testing.assert_allclose(metrics['loss'], loss(attacked), rtol=1e-5)
    assert metrics['loss'] > 1.05 * loss(images)
    smaller, state = make(model=Plain(), augmented='fgsm(0.1)|random_crop(12)')
    with pytest.raises(UserError, match=r'an attack comes where images are 12 x 12, .* put it after what changes'):
        jax.jit(smaller)(state, {**batch, 'image': batch['image'][:, 2:14, 2:14]}, KEY)
    with pytest.raises(UserError, match=r'fgsm\(0\.1\): attacks a network, and there is none here'):
        step.preprocessor.train(batch, KEY, mixer=TASK)


def test_mixed_labels_are_learned_from():
    step, state = make(model=Plain(), augmented='mixup(1)')
    batch = batch_of(8)
    augment_key, _ = step_keys(KEY, 0)
    examples = step.preprocessor.train(batch, augment_key, mixer=TASK)
    x, targets = examples['image'], examples['label']
    np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-6)
    logits = step.network.apply({'params': state.params}, x)
    _, metrics = jax.jit(step)(state, batch, KEY)
    np.testing.assert_allclose(metrics['loss'], -(targets * jax.nn.log_softmax(logits)).sum(-1).mean(), rtol=1e-5)
    assert metrics['accuracy'] == np.mean(logits.argmax(-1) == targets.argmax(-1))


def test_evaluation_has_its_own_pipeline_which_draws_nothing_and_makes_images_of_the_same_size():
    images = batch_of(4)['image']

    def of(train, other):
        return Preprocessor.from_config(cfg.DataConfig(augment=train, eval_augment=other), (0.5,), (0.25,), fit=None)
    preprocessor = of('random_crop(12)', 'center_crop(12)')
    np.testing.assert_allclose(preprocessor(images), (images[:, 2:14, 2:14] / 255 - 0.5) / 0.25, atol=1e-6)
    assert preprocessor.shape(SHAPE) == (12, 12, 1)
    with pytest.raises(UserError, match=r'augment: makes images of 12 x 12 pixels, but .*eval_augment makes .* 16 x 16'):
        of('random_crop(12)', '').shape(SHAPE)
    with pytest.raises(UserError, match=r'config.data.eval_augment: center_crop\(20\): images are 16 x 16'):
        of('', 'center_crop(20)').shape(SHAPE)
    with pytest.raises(UserError, match='flip_lr draws at random; evaluation takes center_crop, pad, resize'):
        of('', 'flip_lr')


def test_the_first_rows_want_as_many_before_them_as_there_are_mixes():
    """What the figure of a run's first batch rests on."""
    preprocessor = Preprocessor(augment.pipeline('mixup(1)|flip_lr|cutmix(1)'), Normalization())
    batch = batch_of(8)
    rows = np.arange(-preprocessor.augment.mixes, 3) % 8

    def augmented(rows):
        return preprocessor.train({name: values[rows] for name, values in batch.items()}, KEY, rows, mixer=TASK)
    batch_examples, first_examples = augmented(np.arange(8)), augmented(rows)
    for name, values in batch_examples.items():
        np.testing.assert_allclose(values[:3], first_examples[name][2:], atol=1e-6)
        assert np.any(values[:1] != first_examples[name][1:2])


def test_class_weights_multiply_the_loss_of_each_image_or_part_of_a_mixed_one():
    weights = np.array([0.5, 2.0, *[1.0] * 8])
    step, state = make(model=Plain(), class_weights=tuple(weights), label_smoothing=0.1)
    batch = {**batch_of(8), 'label': np.array([0, 0, 1, 1, 2, 3, 0, 1])}
    x = (batch['image'] / 255 - 0.5) / 0.25

    def loss(params, *parts):
        """Of parts of a label, each with its class."""
        logits = step.network.apply({'params': params}, x)
        return sum(part * weights[labels] * cross_entropy(logits, labels, 0.1) for part, labels in parts).mean()

    before = (batch['label'] - 1) % 10
    soft = np.eye(10)[batch['label']] * 0.75 + 0.25 * np.eye(10)[before]
    for targets, parts in ((batch['label'], [(1.0, batch['label'])]),
                           (np.float32(soft), [(0.75, batch['label']), (0.25, before)])):
        value, grads = jax.value_and_grad(loss)(state.params, *parts)
        found, _, metrics = step._micro_batch(state.params, state.batch_stats, {'image': x, 'label': targets}, KEY)
        np.testing.assert_allclose(metrics['loss'], value, rtol=1e-5)
        chex.assert_trees_all_close(found, grads, rtol=1e-4, atol=1e-6)


def test_weights_balance_the_classes():
    train = Split(np.zeros((40, 1, 1, 1), np.uint8), np.arange(40), {'label': np.repeat([0, 1, 3], [30, 8, 2])})
    counts = Dataset('x', list('abcd'), {'train': train}, (0.0,), (1.0,), None).class_counts('train')
    assert counts == [30, 8, 0, 2]
    weights = np.array(tasks.create(cfg.parse({'data': {'balance': 'loss'}}), list('abcd'), counts, 40).class_weights)
    np.testing.assert_allclose(counts * weights, [40 / 3, 40 / 3, 0, 40 / 3])
