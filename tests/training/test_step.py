"""The training step, compared with direct computations."""

import dataclasses
import functools

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
from jaxcnn.loss_scaling import LossScaling
from jaxcnn.losses import cross_entropy
from jaxcnn.models.quantized_layers import Quantizer
from jaxcnn.optim import make_optimizer
from jaxcnn.preprocessing import Preprocessor
from jaxcnn.timeline import Timeline
from jaxcnn.training.loss_terms import LossTerm
from jaxcnn.training.state import init_state, run_once, variables
from jaxcnn.training.step import TrainStep, gather, many_steps, step_keys

SHAPE = (16, 16, 1)
KEY = jax.random.key(3)


def task_of(label_smoothing=0.0, class_weights=None):
    config = cfg.parse(dict(loss=dict(name='cross_entropy', label_smoothing=label_smoothing)))
    task = tasks.create(config, [str(i) for i in range(10)], [1] * 10, 10)
    return dataclasses.replace(task, class_weights=class_weights)


TASK = task_of()


STEPS = {}  # by the arguments of `make`, so that each step is compiled once for all tests


def make(**arguments):
    """Return a step and its first state. Equal arguments give the same step, which JAX compiles once."""
    key = repr(arguments)
    if key not in STEPS:
        STEPS[key] = make_step(**arguments)
    return STEPS[key]


def make_step(dropout=0.0, model=None, augmented='', optim=None, label_smoothing=0.0, class_weights=None, **fields):
    chain = dict(optimizer='sgd', learning_rate=0.1, schedule='constant', ema_decay=fields.get('ema_decay', 0.0),
                 **(optim or {}))
    config = cfg.parse(dict(duration=dict(steps=100), optim=chain))
    optimizer = make_optimizer(config.optim, Timeline(config, 1000))
    network = model or models.create('shallow_cnn', widths=(4, 4, 4, 4), hidden=8, dropout=dropout)
    preprocessor = Preprocessor(augment.parse_pipeline(augmented), Normalization.from_mean_std((0.5,), (0.25,)))
    step = TrainStep(network, optimizer, preprocessor, task_of(label_smoothing, class_weights), **fields)
    init = jax.jit(lambda seed: init_state(network, optimizer, SHAPE, seed, config.optim,
                                           loss_scaling=fields.get('loss_scaling')),
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


def test_a_step_is_sgd_on_the_cross_entropy():
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


def test_nan_logits_are_never_correct():
    step, state = make(model=Plain())
    state = state.replace(params=jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), state.params))
    _, metrics = jax.jit(step)(state, {**batch_of(8), 'label': np.zeros(8, int)}, KEY)
    assert metrics['accuracy'] == 0


class Auxiliary(models.Network):
    """A network with an auxiliary classifier."""

    aux_weight: float = 0.4
    aux_schedule: str = 'constant'

    def forward(self, x, train, maps):
        """Logits, and those of the auxiliary classifier."""
        x = x.reshape(len(x), -1)
        logits, auxiliary = self.dense(self.num_classes)(x), self.dense(self.num_classes)(x)
        return (logits, auxiliary) if train else logits


@pytest.mark.parametrize('accumulate', [1, 2])
@pytest.mark.parametrize(('schedule', 'weights'), [('constant', {0: 0.4, 9: 0.4}), ('linear', {0: 0.4, 4: 0.24, 9: 0.04})])
def test_the_weight_of_auxiliary_classifiers_falls_over_the_steps_of_the_run(schedule, weights, accumulate):
    step, state = make(model=Auxiliary(aux_schedule=schedule), total=10, accumulate=accumulate)
    batch = batch_of(8)
    images, run = (batch['image'] / 255 - 0.5) / 0.25, jax.jit(step)
    for number, weight in weights.items():
        def loss(params, weight=weight):
            outputs = step.network.apply({'params': params}, images, train=True)
            main, auxiliary = (cross_entropy(logits, batch['label']).mean() for logits in outputs)
            return main + weight * auxiliary
        value, grads = jax.value_and_grad(loss)(state.params)
        after, metrics = run(state.replace(step=jnp.int32(number)), batch, KEY)
        np.testing.assert_allclose(metrics['loss'], value, rtol=1e-5)
        expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads)
        chex.assert_trees_all_close(after.params, expected, rtol=1e-5, atol=1e-7)


def test_micro_batches_give_the_gradients_of_the_batch():
    batch = batch_of(24)
    at_once, accumulated = (jax.jit(step)(state, batch, KEY) for step, state in
                            (make(model=Plain(), accumulate=n) for n in (1, 4)))
    chex.assert_trees_all_close(at_once, accumulated, rtol=1e-5, atol=1e-6)


def test_each_micro_batch_updates_the_statistics():
    batch, (step, state) = batch_of(24), make(accumulate=4)
    after, _ = jax.jit(step)(state, batch, KEY)
    x, stats = (batch['image'] / 255 - 0.5) / 0.25, state.batch_stats
    apply = jax.jit(lambda stats, x: step.network.apply({'params': state.params, 'batch_stats': stats}, x, train=True,
                                                        mutable=['batch_stats'], rngs={'dropout': KEY})[1]['batch_stats'])
    for i in range(4):  # micro-batch i has every fourth image
        stats = apply(stats, x[i::4])
    chex.assert_trees_all_close(after.batch_stats, stats, rtol=1e-4, atol=1e-6)


def test_decay_of_the_moving_average_has_a_ramp():
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
def test_class_weights_equal_those_of_pytorch_as_docs_pytorch_describes(smoothing):
    torch = pytest.importorskip('torch')
    cross_entropy_of = torch.nn.functional.cross_entropy
    weights = np.linspace(0.5, 2, 10).astype(np.float32)
    step, state = make(model=Plain(), label_smoothing=smoothing, class_weights=tuple(weights.tolist()))
    batch = batch_of(8)
    _, metrics = jax.jit(step)(state, batch, KEY)
    logits = torch.tensor(np.asarray(step.network.apply({'params': state.params}, (batch['image'] / 255 - 0.5) / 0.25)))
    labels, weight = torch.tensor(batch['label']), torch.tensor(weights)
    unweighted = cross_entropy_of(logits, labels, label_smoothing=smoothing, reduction='none')
    loss = float(metrics['loss'])
    np.testing.assert_allclose(loss, (weight[labels] * unweighted).mean(), rtol=1e-5)
    weighted_mean, mean_of_weighted = (
        float(cross_entropy_of(logits, labels, weight, label_smoothing=smoothing, reduction=reduction).mean())
        for reduction in ('mean', 'none'))
    assert abs(loss / weighted_mean - 1) > 0.01
    assert (abs(loss / mean_of_weighted - 1) > 0.001) == bool(smoothing)


def test_look_ahead_equals_that_of_optax():
    fields = cfg.LookaheadConfig(every=3, slow_step_size=0.3)
    step, state = make(model=Plain(), optim=dict(lookahead=fields), lookahead=fields, total=100)
    reference = optax.lookahead(optax.sgd(0.1), 3, 0.3)
    params = optax.LookaheadParams.init_synced(state.params)
    opt_state, run = reference.init(params), jax.jit(step)
    for n in range(7):
        batch = batch_of(8, n)
        x = (batch['image'] / 255 - 0.5) / 0.25

        def loss(params, x=x, labels=batch['label']):
            return cross_entropy(step.network.apply({'params': params}, x), labels).mean()
        updates, opt_state = reference.update(jax.grad(loss)(params.fast), opt_state, params)
        params = optax.apply_updates(params, updates)
        state, _ = run(state, batch, KEY)
        chex.assert_trees_all_close((state.params, state.slow[0]), (params.fast, params.slow), rtol=1e-4, atol=1e-6)


def test_look_ahead_with_a_ramp_includes_statistics_and_ends_with_the_slow_parameters():
    """As in airbench, the weight of the slow parameters grows with the cube of the completed part of the run."""
    fields = cfg.LookaheadConfig(every=2, slow_step_size=0.4, ramp=3.0)
    step, state = make(optim=dict(lookahead=fields), lookahead=fields, total=5)
    plain, _ = make()
    slow = (state.params, state.batch_stats)
    for n in range(1, 6):
        state = state.replace(slow=jax.tree.map(jnp.copy, slow))
        fast, _ = jax.jit(plain)(state.replace(slow=None), batch_of(8, n), KEY)
        after, _ = jax.jit(step)(state, batch_of(8, n), KEY)
        fast = (fast.params, fast.batch_stats)
        if n in (2, 4):
            weight = 0.6 * (n / 5) ** 3
            slow = jax.tree.map(lambda s, x, weight=weight: weight * s + (1 - weight) * x, slow, fast)
        expected = slow if n in (2, 4, 5) else fast
        chex.assert_trees_all_close((after.params, after.batch_stats), expected, rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(after.slow, slow, rtol=1e-5, atol=1e-6)
        state = after
    assert max(jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), fast, slow))) > 1e-3


def test_the_first_batch_sets_the_slow_ranges_of_quantisation():
    fields = cfg.LookaheadConfig(every=1, slow_step_size=0.4)
    step, state = make(model=Plain(quantizer=Quantizer()), optim=dict(lookahead=fields), lookahead=fields, total=100)
    batch = batch_of(8)
    after, _ = jax.jit(step)(state, batch, KEY)
    largest = (batch['image'].max() / 255 - 0.5) / 0.25
    for stats in (after.batch_stats, after.slow[1]):
        np.testing.assert_allclose(stats['Dense_1']['input_high'], largest, rtol=1e-5)


def test_frozen_statistics_are_used_and_do_not_change():
    step, state = make()
    state, _ = jax.jit(step)(state, batch_of(8), KEY)
    frozen = TrainStep(step.network.clone(bn_frozen=True), step.optimizer, step.preprocessor, step.task)
    batch = batch_of(8, 1)
    after, metrics = jax.jit(frozen)(state, batch, KEY)
    chex.assert_trees_all_equal(after.batch_stats, state.batch_stats)
    logits = jax.jit(lambda variables, images: step.network.apply(variables, step.preprocessor(images)))(
        {'params': state.params, 'batch_stats': state.batch_stats}, batch['image'])
    np.testing.assert_allclose(metrics['loss'], cross_entropy(logits, batch['label']).mean(), rtol=1e-5)
    unfrozen, _ = jax.jit(step)(state, batch, KEY)
    assert all(np.any(a != b) for a, b in zip(jax.tree.leaves(unfrozen.batch_stats), jax.tree.leaves(state.batch_stats),
                                              strict=True))


def test_statistics_are_means_over_groups():
    batch = batch_of(16)
    step, state = make(bn_groups=2)
    after, _ = jax.jit(step)(state, batch, KEY)
    single, _ = make()
    halves = [jax.jit(single)(state, {k: v[rows] for k, v in batch.items()}, KEY)[0]
              for rows in (slice(0, 8), slice(8, 16))]
    expected = jax.tree.map(lambda a, b: (a + b) / 2, halves[0].batch_stats, halves[1].batch_stats)
    chex.assert_trees_all_close(after.batch_stats, expected, rtol=1e-5, atol=1e-6)


def test_randomness_depends_only_on_key_step_and_row():
    preprocessor = Preprocessor(augment.parse_pipeline('pad_crop(3)|flip_lr'), Normalization())
    batch = batch_of(12)
    last_rows = {name: values[8:] for name, values in batch.items()}
    train = jax.jit(functools.partial(preprocessor.train, mixer=TASK))
    images = train(batch, KEY)['image']
    np.testing.assert_array_equal(images[8:], train(last_rows, KEY, np.arange(8, 12))['image'])
    assert np.any(images != train(batch, jax.random.key(4))['image'])
    step, state = make(dropout=0.5, augmented='pad_crop(3)')
    run = jax.jit(step)
    chex.assert_trees_all_equal(run(state, batch_of(8), KEY), run(state, batch_of(8), KEY))
    later = state.replace(step=state.step + 1)
    assert run(state, batch_of(8), KEY)[1]['loss'] != run(later, batch_of(8), KEY)[1]['loss']


def test_gather_looks_up_positions_in_the_resident_examples():
    data = batch_of(20)
    gathered = gather(jnp.array([3, 19, 3]), data)
    np.testing.assert_array_equal(gathered['image'], data['image'][[3, 19, 3]])
    np.testing.assert_array_equal(gathered['label'], data['label'][[3, 19, 3]])


@functools.cache
def compiled_many_steps(step, variable_length):
    def batch_positions(order, offset):
        return jax.lax.dynamic_slice(order, (offset,), (8,))
    return jax.jit(many_steps(step, batch_positions, variable_length=variable_length))


@pytest.mark.parametrize(('count', 'padding'), [(1, 0), (3, 0), (3, 2), (1, 4)])
def test_many_steps_equal_single_steps(count, padding):
    step, state = make()
    batches = [batch_of(8, n) for n in range(count)]
    expected, losses = state, []
    for batch in batches:
        expected, metrics = jax.jit(step)(expected, batch, jax.random.key(5))
        losses.append(metrics['loss'])
    stacked = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
    stacked = {name: np.concatenate([x, np.zeros((padding, *x.shape[1:]), x.dtype)]) for name, x in stacked.items()}
    run = compiled_many_steps(step, bool(padding))
    offsets = np.append(np.arange(count, dtype=np.int32) * 8, np.full(padding, -1, np.int32))
    resident = {'examples': {name: x.reshape(-1, *x.shape[2:]) for name, x in stacked.items()},
                'order': np.arange(8 * len(offsets)), 'epoch': np.int32(0)}
    for batches, data in ((stacked, {}), ({}, resident)):
        after, metrics = run(state, batches, data, offsets, np.uint32(5))
        chex.assert_trees_all_close(after, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(metrics['loss'][:count], losses, rtol=1e-5)


def test_an_attack_uses_the_network_that_is_trained():
    """On a network without BatchNorm, FGSM has a closed form, which includes the normalisation."""
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
    cropped, state = make(model=Plain(), augmented='fgsm(0.1)|random_crop(12)')
    with pytest.raises(UserError, match=r'an attack gets images of 12 x 12 pixels, .* put the attack after the operations'):
        jax.jit(cropped)(state, {**batch, 'image': batch['image'][:, 2:14, 2:14]}, KEY)
    with pytest.raises(UserError, match=r'fgsm\(0\.1\).* attacks a network, but no network is given'):
        step.preprocessor.train(batch, KEY, mixer=TASK)


def test_mixed_labels_are_the_targets_of_the_loss():
    step, state = make(model=Plain(), augmented='mixup(1)')
    batch = batch_of(8)
    augment_key, _ = step_keys(KEY, 0)
    examples = jax.jit(functools.partial(step.preprocessor.train, mixer=TASK))(batch, augment_key)
    x, targets = examples['image'], examples['label']
    np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-6)
    logits = step.network.apply({'params': state.params}, x)
    _, metrics = jax.jit(step)(state, batch, KEY)
    np.testing.assert_allclose(metrics['loss'], -(targets * jax.nn.log_softmax(logits)).sum(-1).mean(), rtol=1e-5)
    assert metrics['accuracy'] == np.mean(logits.argmax(-1) == targets.argmax(-1))


def test_evaluation_has_a_deterministic_pipeline_that_gives_the_same_size():
    images = batch_of(4)['image']

    def make_preprocessor(augment, eval_augment):
        config = cfg.DataConfig(augment=augment, eval_augment=eval_augment)
        return Preprocessor.from_config(config, (0.5,), (0.25,), fit=None)
    preprocessor = make_preprocessor('random_crop(12)', 'center_crop(12)')
    np.testing.assert_allclose(preprocessor(images), (images[:, 2:14, 2:14] / 255 - 0.5) / 0.25, atol=1e-6)
    assert preprocessor.shape(SHAPE) == (12, 12, 1)
    with pytest.raises(UserError, match=r'augment: makes images of 12 x 12 pixels, but .*eval_augment makes .* 16 x 16'):
        make_preprocessor('random_crop(12)', '').shape(SHAPE)
    with pytest.raises(UserError, match=r'config.data.eval_augment: center_crop\(20\): images of 16 x 16 are smaller'):
        make_preprocessor('', 'center_crop(20)').shape(SHAPE)
    with pytest.raises(UserError, match=r'flip_lr is random; evaluation takes .* center_crop, pad, resize'):
        make_preprocessor('', 'flip_lr')


def test_the_first_rows_depend_on_one_row_before_them_for_each_mixing_operation():
    """The figure of a run's first batch relies on this."""
    preprocessor = Preprocessor(augment.parse_pipeline('mixup(1)|flip_lr|cutmix(1)'), Normalization())
    batch = batch_of(8)
    rows = np.arange(-preprocessor.augment.num_mixes, 3) % 8

    def augment_rows(rows):
        return preprocessor.train({name: values[rows] for name, values in batch.items()}, KEY, rows, mixer=TASK)
    batch_examples, first_examples = augment_rows(np.arange(8)), augment_rows(rows)
    for name, values in batch_examples.items():
        np.testing.assert_allclose(values[:3], first_examples[name][2:], atol=1e-6)
        assert np.any(values[:1] != first_examples[name][1:2])


def test_class_weights_multiply_the_loss_of_each_image_and_of_each_part_of_a_mixed_one():
    weights = np.array([0.5, 2.0, *[1.0] * 8])
    step, state = make(model=Plain(), class_weights=tuple(weights), label_smoothing=0.1)
    batch = {**batch_of(8), 'label': np.array([0, 0, 1, 1, 2, 3, 0, 1])}
    x = (batch['image'] / 255 - 0.5) / 0.25

    def expected_loss(params, *parts):
        """Return the loss of labels that are mixed from parts, each with its share and its classes."""
        logits = step.network.apply({'params': params}, x)
        return sum(share * weights[labels] * cross_entropy(logits, labels, 0.1) for share, labels in parts).mean()

    def task_loss(params, targets):
        return step.task.loss(step.network.apply({'params': params}, x), {'label': targets})

    other_labels = (batch['label'] - 1) % 10
    mixed = np.eye(10)[batch['label']] * 0.75 + 0.25 * np.eye(10)[other_labels]
    for targets, parts in ((batch['label'], [(1.0, batch['label'])]),
                           (np.float32(mixed), [(0.75, batch['label']), (0.25, other_labels)])):
        expected, expected_grads = jax.value_and_grad(expected_loss)(state.params, *parts)
        value, grads = jax.value_and_grad(task_loss)(state.params, targets)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        chex.assert_trees_all_close(grads, expected_grads, rtol=1e-4, atol=1e-6)
    _, metrics = jax.jit(step)(state, batch, KEY)
    np.testing.assert_allclose(metrics['loss'], expected_loss(state.params, (1.0, batch['label'])), rtol=1e-5)


def test_loss_weights_balance_the_classes():
    train = Split(np.zeros((40, 1, 1, 1), np.uint8), np.arange(40), {'label': np.repeat([0, 1, 3], [30, 8, 2])})
    counts = Dataset('x', list('abcd'), {'train': train}, (0.0,), (1.0,), None).class_counts('train')
    assert counts == [30, 8, 0, 2]
    weights = np.array(tasks.create(cfg.parse({'data': {'balance': 'loss'}}), list('abcd'), counts, 40).class_weights)
    np.testing.assert_allclose(counts * weights, [40 / 3, 40 / 3, 0, 40 / 3])


class Normalized(models.Network):
    """A convolution with BatchNorm, and a classifier."""

    def forward(self, x, train, maps):
        """Logits."""
        x = maps['conv1'] = self.conv_norm(x, train, 4, 3, stride=2)
        return self.dense(self.num_classes)(x.mean((1, 2)))


class OtherNetwork(LossTerm):
    """Adds the distance between a scaled feature map and an array, and the cross-entropy of the inverted images."""

    name, maps, arrays = 'other', ('conv1',), {'target': np.full((), 0.5, np.float32)}

    def init(self, key):
        """The scale."""
        return {'scale': jnp.ones(())}

    def __call__(self, loss, forward, params, arrays, batch_stats):
        """See `LossTerm`."""
        distance = ((params['scale'] * forward.maps['conv1'] - arrays['target']) ** 2).mean()
        outputs, batch_stats = forward.run(1 - forward.pixels, batch_stats)
        inverted = forward.task.loss(outputs, forward.targets)
        return loss + distance + inverted, {'distance': distance, 'evaluated': forward.evaluate(forward.pixels).mean()}, \
            batch_stats


@pytest.mark.parametrize('fields', [{}, pytest.param({'accumulate': 2}, marks=pytest.mark.slow),
                                    pytest.param({'bn_groups': 2}, marks=pytest.mark.slow)], ids=str)
def test_a_term_of_the_loss_sees_images_and_maps_and_runs_the_network_again(fields):
    """Against the same loss written out, for each micro-batch or group of BatchNorm."""
    term, batch = OtherNetwork(), batch_of(8)
    plain, _ = make(model=Normalized(), **fields)
    step = dataclasses.replace(plain, terms=(term,))
    optim = cfg.parse(dict(optim=dict(optimizer='sgd', learning_rate=0.1, schedule='constant'))).optim
    state = jax.jit(lambda: init_state(step.network, step.optimizer, SHAPE, 0, optim,
                                       init_terms=lambda key: {'other': term.init(key)}), compiler_options=run_once())()
    after, metrics = jax.jit(step)(state, batch, KEY, {'other': term.arrays})

    def loss(params, stats, rows):
        variables = {'params': params['network'], 'batch_stats': stats}
        rows, total, outputs = slice(*rows), 0, []
        pixels = batch['image'][rows] / 255
        for x in (pixels, 1 - pixels):
            (logits, maps), updates = step.network.apply(variables, (x - 0.5) / 0.25, train=True, features=True,
                                                         mutable=['batch_stats'], rngs={'dropout': KEY})
            variables.update(updates)
            total += cross_entropy(logits, batch['label'][rows]).mean()
            outputs.append(maps['conv1'])
        return total + ((params['scale'] * outputs[0] - 0.5) ** 2).mean(), variables['batch_stats']

    params, stats = {'network': state.params, 'scale': jnp.ones(())}, state.batch_stats
    accumulate, groups = fields.get('accumulate', 1), fields.get('bn_groups', 1)
    parts = [slice(i, None, accumulate) for i in range(accumulate)] if accumulate > 1 else [
        slice(i * 8 // groups, (i + 1) * 8 // groups) for i in range(groups)]
    results, gradient = [], jax.jit(jax.grad(loss, has_aux=True), static_argnames='rows')
    for rows in parts:
        results.append(gradient(params, stats, rows=(rows.start, rows.stop, rows.step)))
        stats = results[-1][1] if accumulate > 1 else stats
    grads = jax.tree.map(lambda *parts: sum(parts) / len(parts), *[grads for grads, _ in results])
    if groups > 1:
        stats = jax.tree.map(lambda *parts: sum(parts) / len(parts), *[stats for _, stats in results])
    elif accumulate == 1:
        stats = results[0][1]
    chex.assert_trees_all_close(after.params, jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads['network']),
                                rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(after.loss_terms['other']['scale'], 1 - 0.1 * grads['scale'], rtol=1e-5)
    chex.assert_trees_all_close(after.batch_stats, stats, rtol=1e-5, atol=1e-6)
    assert {'distance', 'evaluated'} <= set(metrics)


SCALED = dict(
    model=Plain(dtype='float16'), accumulate=2, ema_decay=0.9, lookahead=cfg.LookaheadConfig(every=3), total=100,
    loss_scaling=LossScaling(2.0 ** 24, every=100, factor=2.0 ** 14),
    optim=dict(clip_norm=0.5, groups=[dict(match='Dense_0', rate=0.5)],
               lookahead=dict(every=3)))


def test_a_step_that_overflows_changes_nothing_but_counts():
    step, state = make(**SCALED)
    run = jax.jit(step)
    state, _ = run(state.replace(loss_scale={**state.loss_scale, 'scale': jnp.float32(1024)}), batch_of(8, 1), KEY)
    overflowing = state.replace(loss_scale={**state.loss_scale, 'scale': jnp.float32(2 ** 24)})
    after, metrics = run(overflowing, batch_of(8), KEY)
    unchanged = dict(loss_scale=None, step=None)
    chex.assert_trees_all_equal(after.replace(**unchanged), state.replace(**unchanged))
    assert (after.step, after.loss_scale['scale'], after.loss_scale['skipped']) == (2, 1024, 1)
    assert (metrics['is_skipped'], metrics['has_failed'], metrics['skipped_steps']) == (True, False, 1)
    assert np.isfinite(metrics['loss'])  # only the gradients overflow
    third, metrics = run(after, batch_of(8, 2), KEY)
    expected, _ = run(state.replace(step=jnp.int32(2)), batch_of(8, 2), KEY)  # its look-ahead moves
    chex.assert_trees_all_equal(third.replace(**unchanged), expected.replace(**unchanged))
    assert not metrics['is_skipped']


def test_the_gradients_of_a_scaled_loss_are_unscaled_before_they_are_clipped():
    step, state = make(**SCALED)
    run, full = jax.jit(step), dataclasses.replace(step, network=Plain(), loss_scaling=None)
    expected, metrics = jax.jit(full)(state.replace(loss_scale=None), batch_of(8), KEY)
    assert metrics['grad_norm'] > 0.5
    for scale in (256, 1024):
        scaled = state.replace(loss_scale={**state.loss_scale, 'scale': jnp.float32(scale)})
        after, scaled_metrics = run(scaled, batch_of(8), KEY)
        assert scaled_metrics['loss_scale'] == scale
        assert scaled_metrics['learning_rate'] == metrics['learning_rate']
        np.testing.assert_allclose(scaled_metrics['grad_norm'], metrics['grad_norm'], rtol=5e-3)
        np.testing.assert_allclose(scaled_metrics['loss'], metrics['loss'], rtol=2e-3)
        chex.assert_trees_all_close((after.params, after.ema), (expected.params, expected.ema), atol=2e-4)


class Tiny(Plain):
    """A network whose gradients are below the smallest number of float16, 2^-24."""

    def __call__(self, x, train=False):
        """Logits."""
        return super().__call__(x, train) * jnp.asarray(2.0 ** -23, self.dtype)


def test_scaling_rescues_gradients_below_the_numbers_of_float16():
    step, state = make(model=Tiny(dtype='float16'), loss_scaling=LossScaling(2.0 ** 14, every=100))
    full = dataclasses.replace(step, network=Tiny(), loss_scaling=None)

    def update(step, loss_scale):
        start = state.replace(loss_scale=loss_scale, params=jax.tree.map(jnp.zeros_like, state.params))
        start = start.replace(params={**start.params, 'Dense_1': state.params['Dense_1']})
        after, _ = jax.jit(step)(start, batch_of(8), KEY)
        return np.asarray(after.params['Dense_0']['kernel'])
    expected = update(full, None)
    errors = [np.linalg.norm(update(step, {**state.loss_scale, 'scale': jnp.float32(scale)}) - expected)
              / np.linalg.norm(expected) for scale in (1, 2 ** 14)]
    assert errors[0] > 0.1
    assert errors[1] < 5e-3


def test_gradients_are_rounded_to_their_type():
    (step, state), (rounding, _) = make(model=Plain()), make(model=Plain(), gradient_dtype='bfloat16')
    after, rounded = (jax.jit(s)(state, batch_of(8), KEY)[0].params for s in (step, rounding))
    gradients = jax.tree.map(lambda old, new: (old - new) * 10, state.params, after)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g.astype(jnp.bfloat16).astype(jnp.float32), state.params, gradients)
    chex.assert_trees_all_close(rounded, expected, rtol=1e-5, atol=1e-5)
    assert {x.dtype for x in jax.tree.leaves(rounded)} == {np.dtype('float32')}
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(rounded), strict=True))
