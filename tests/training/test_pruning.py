"""Pruning during training, compared with NumPy, and runs that are pruned."""

import os
import signal

import golden
import jax
import numpy as np
import pytest

from jaxcnn import config as cfg
from jaxcnn import models, tasks
from jaxcnn.data.normalize import Normalization
from jaxcnn.errors import UserError
from jaxcnn.losses import cross_entropy
from jaxcnn.optim import make_optimizer, path_name
from jaxcnn.preprocessing import Preprocessor
from jaxcnn.run import load_run
from jaxcnn.timeline import Timeline
from jaxcnn.training import train
from jaxcnn.training.callbacks import Callback
from jaxcnn.training.initial_masks import prunable
from jaxcnn.training.loop import TrainingRun
from jaxcnn.training.pruning import Pruning, remaining
from jaxcnn.training.signals import Interrupted, StopRequest
from jaxcnn.training.state import init_state
from jaxcnn.training.step import TrainStep
from jaxcnn.training.workdir import read_json, read_metrics

pytestmark = pytest.mark.usefixtures('no_pictures')
KEY = jax.random.key(3)
LAYERS = dict(name='sequential', layers='flatten|dense(8)|relu|dense(6)|relu|dense')


def numpy_masks(scores, count, scope):
    """Masks of a dict of scores, of which the `count` smallest, or `count[name]` in each, are pruned."""
    groups = [[name] for name in scores] if scope == 'layer' else [list(scores)]
    masks = {}
    for group in groups:
        flat = np.concatenate([scores[name].ravel() for name in group])
        mask = np.ones(len(flat), bool)
        mask[np.argsort(flat, kind='stable')[:count[group[0]] if scope == 'layer' else count]] = False
        for name in group:
            size = scores[name].size
            masks[name], mask = mask[:size].reshape(scores[name].shape), mask[size:]
    return masks


@pytest.mark.parametrize('scope', ['global', 'layer'])
def test_masks_prune_the_smallest_scores(scope):
    rng = np.random.default_rng(0)
    # equal scores, zeros of both signs, and numbers whose bits order otherwise than they
    scores = {'a': rng.integers(-3, 3, (5, 7)).astype(np.float32) * 1e-3, 'b': rng.normal(size=11).astype(np.float32) * 1e30}
    scores['a'][0, :2] = -0.0, 0.0
    for fraction in (0, 0.1, 0.5, 0.97, 1):
        count = {name: round(fraction * x.size) for name, x in scores.items()} if scope == 'layer' else round(fraction * 46)
        counts = np.array(list(count.values()) if scope == 'layer' else [count], np.int32)
        actual = jax.jit(remaining)(scores, counts)
        expected = numpy_masks(scores, count, scope)
        for name in scores:
            np.testing.assert_array_equal(actual[name], expected[name], str((fraction, name)))


METHODS = {'magnitude': {}, 'movement': dict(scope='layer'), 'random': {}}


@pytest.mark.parametrize('method', ['magnitude', 'movement', pytest.param('random', marks=pytest.mark.slow)])
def test_steps_with_momentum_averages_and_look_ahead_equal_numpy(method):
    fields = dict(duration=dict(steps=12), model=LAYERS, optim=dict(
        optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.1, schedule='constant', ema_decay=0.9, l2=1e-2,
        lookahead=dict(every=3)),
        pruning=dict(sparsity=0.8, exclude='none', begin=dict(steps=2), end=dict(steps=9), every=dict(steps=3),
                     method=method, **METHODS[method]))
    config = cfg.parse(fields)
    timeline = Timeline(config, 100)
    assert timeline.pruning_steps == [2, 5, 8, 9]
    task = tasks.create(config, [str(i) for i in range(10)], [1] * 10, 10)
    network = models.create(num_classes=10, **LAYERS)
    optimizer = make_optimizer(config.optim, timeline)
    state = init_state(network, optimizer, (8, 8, 1), np.uint32(0), config.optim)
    names = prunable(config.pruning, network, (8, 8, 1), state.params)
    pruning = Pruning.from_config(config.pruning, timeline, names)
    step = TrainStep(network, optimizer, Preprocessor(None, Normalization.from_mean_std((0.5,), (0.25,))), task,
                     ema_decay=0.9, lookahead=config.optim.lookahead, total=12, pruning=pruning)
    rng = np.random.default_rng(0)
    batch = {'image': rng.integers(0, 256, (16, 8, 8, 1), dtype=np.uint8), 'label': rng.integers(0, 10, 16)}
    x = (batch['image'] / np.float32(255) - 0.5) / np.float32(0.25)
    gradient = jax.jit(jax.grad(lambda params: cross_entropy(network.apply({'params': params}, x), batch['label']).mean()))
    run_step = jax.jit(step)

    weights = {layer: dict(zip(('bias', 'kernel'), map(np.asarray, (leaf['bias'], leaf['kernel'])), strict=True))
               for layer, leaf in state.params.items()}
    sizes = {layer: weights[layer]['kernel'].size for layer in weights}
    slow = averages = weights
    velocity, scores = ({layer: {name: np.zeros_like(w) for name, w in leaves.items()} for layer, leaves in weights.items()}
                        for _ in range(2))
    masks = {layer: np.ones(leaves['kernel'].shape, bool) for layer, leaves in weights.items()}
    pruned_values = {layer: np.zeros(mask.shape, np.float32) for layer, mask in masks.items()}
    all_masks = jax.tree.map(lambda w: np.ones(w.shape, bool), names)
    state = pruning.begin(state, all_masks, KEY)
    num_revived = 0
    for number in range(12):
        grads = jax.tree.map(np.asarray, gradient(weights))
        state, scalars = run_step(state, batch, KEY)
        for layer, mask in masks.items():
            dense = np.where(mask, weights[layer]['kernel'], pruned_values[layer])
            scores[layer]['kernel'] -= dense * grads[layer]['kernel']
            grads[layer]['kernel'] = grads[layer]['kernel'] * mask

        def update(change, *trees):
            return {layer: {name: change(*(tree[layer][name] for tree in trees)) for name in ('bias', 'kernel')}
                    for layer in trees[0]}
        decayed = update(lambda g, w: g + np.float32(1e-2) * w, grads, weights)
        decayed = {layer: {'kernel': decayed[layer]['kernel'], 'bias': grads[layer]['bias']} for layer in decayed}
        velocity = update(lambda v, g: np.float32(0.9) * v + g, velocity, decayed)
        weights = update(lambda w, v: w - np.float32(0.1) * v, weights, velocity)
        decay = np.float32(min(0.9, (1 + number) / (10 + number)))
        averages = update(lambda e, w, d=decay: d * e + (1 - d) * w, averages, weights)
        if number % 3 == 2:
            slow = update(lambda s, w: np.float32(0.5) * s + np.float32(0.5) * w, slow, weights)
            weights = slow
        before = masks
        if number + 1 in (2, 5, 8, 9):
            sparsity = 0.8 * (1 - (1 - (number - 1) / 7) ** 3)
            if method == 'random':  # each step takes the same order, whose keys are those of the step
                number_key = np.uint32(2**32 - 1)
                keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(KEY, number_key), number_key), len(masks))
                values = {layer: np.asarray(jax.random.uniform(k, masks[layer].shape))
                          for k, layer in zip(keys, sorted(masks), strict=True)}
            elif method == 'movement':
                values = {layer: scores[layer]['kernel'] for layer in masks}
            else:
                values = {layer: np.where(mask, abs(weights[layer]['kernel']), -1) for layer, mask in masks.items()}
            count = ({layer: round(sparsity * size) for layer, size in sizes.items()} if method == 'movement'
                     else round(sparsity * sum(sizes.values())))
            masks = numpy_masks(values, count, 'layer' if method == 'movement' else 'global')
        for layer, mask in masks.items():
            dense = np.where(before[layer], weights[layer]['kernel'], pruned_values[layer])
            revived = mask & ~before[layer]
            num_revived += revived.sum()
            pruned_values[layer] = np.where(mask, 0, dense)
            for tree in (slow, averages):
                tree[layer] = {**tree[layer], 'kernel': np.where(revived, dense, tree[layer]['kernel']) * mask}
            weights = {**weights, layer: {**weights[layer], 'kernel': dense * mask}}
        for actual, expected in ((state.params, weights), (state.ema[0], averages), (state.slow[0], slow)):
            for layer, mask in masks.items():
                kernel = np.asarray(actual[layer]['kernel'])
                assert not kernel[~mask].any(), (number, layer)
                np.testing.assert_allclose(kernel, expected[layer]['kernel'], rtol=2e-4, atol=2e-6)
        total = sum(sizes.values())
        np.testing.assert_allclose(scalars['sparsity'], 1 - sum(m.sum() for m in masks.values()) / total, atol=1e-6)
    assert abs(scalars['sparsity'] - 0.8) <= (len(masks) if method == 'movement' else 1) / total
    assert (num_revived > 0) == (method == 'movement')


def digits(**fields):
    """A run of a few steps of a dense network on digits, with a validation split."""
    optim = dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.1, ema_decay=0.9)
    base = dict(duration=dict(steps=12), batch_size=32, model=LAYERS, data=dict(name='digits'), optim=optim,
                eval=dict(every=dict(steps=3)), log_every=dict(steps=3), parallel=dict(devices=1))
    return cfg.parse({**base, **fields})


class Stop(Callback):
    def on_evaluate(self, step, metrics):
        if step == 6:
            os.kill(os.getpid(), signal.SIGINT)


def state_of(folder, step):
    return {name: array.tobytes() for name, array in golden.read_state(str(folder), step).items()}


def test_a_resumed_run_has_the_same_bits_and_its_best_checkpoint_is_sparse(tmp_path):
    config = digits(pruning=dict(method='movement', sparsity=0.7, begin=dict(steps=2), end=dict(steps=8),
                                 every=dict(steps=2)), checkpoint=dict(keep=9))
    with TrainingRun(config, str(tmp_path / 'a'), StopRequest()) as run:
        run.train()
        summary = run.finish()
    with pytest.raises(Interrupted):
        train(config, str(tmp_path / 'b'), callbacks=[Stop()])
    train(config, str(tmp_path / 'b'))
    for step in (9, 12):
        states = [state_of(tmp_path / name, step) for name in 'ab']
        assert states[0] == states[1]
        assert any("['dormant']" in name for name in states[0])
    rows = read_metrics(str(tmp_path / 'a'))
    sparsities = [row['train_sparsity'] for row in rows if 'train_sparsity' in row]
    np.testing.assert_allclose(sparsities[-1], 34 / 48, atol=1e-6)  # one hidden layer is neither the first nor the last
    checkpoints = run.checkpoints
    assert [checkpoints.metrics(step) is None for step in (3, 6, 9, 12)] == [True, True, False, False]
    assert summary['best_step'] >= 9
    assert summary['sparsity'] == np.float32(34 / 48)
    assert summary['nonzero_params'] == summary['params'] - 34
    layers = read_json(str(tmp_path / 'a' / 'sparsity.json'))['layers']
    assert layers == [{'name': 'Dense_1/kernel', 'shape': [8, 6], 'nonzero': 14}]


def test_masks_of_another_run_hold_from_the_start_for_rewound_and_for_other_weights(tmp_path):
    dense = str(tmp_path / 'dense')
    train(digits(checkpoint=dict(at=(dict(steps=2),))), dense)
    tickets = {'rewound': (dict(masks=dense, sparsity=0.6, exclude='none'), dict(init=dict(run=dense, checkpoint='2'))),
               'second round': (dict(masks=str(tmp_path / 'rewound'), sparsity=0.8, exclude='none'), {}),
               'same masks': (dict(masks=str(tmp_path / 'rewound'), exclude='none'), {}),
               'other weights': (dict(masks=str(tmp_path / 'rewound'), exclude='none', reinitialize=True), {})}
    kernels = {}
    for name, (pruning, fields) in tickets.items():
        with TrainingRun(digits(pruning=pruning, **fields, duration=dict(steps=3)), str(tmp_path / name),
                         StopRequest()) as run:
            begin = run.setup.backend.fetch(run.state.params)
            run.train()
            end = run.setup.backend.fetch(run.state.params)
        kernels[name] = [np.concatenate([params[layer]['kernel'].ravel() for layer in sorted(params)])
                         for params in (begin, end)]
        np.testing.assert_array_equal(kernels[name][0] == 0, kernels[name][1] == 0)

    run = load_run(dense)
    early, late = ({layer: leaf['kernel'] for layer, leaf in params.items()}
                   for params in (run.load_weights(2).params, run.weights.params))
    count = round(0.6 * sum(w.size for w in late.values()))
    masks = numpy_masks({layer: abs(w) for layer, w in late.items()}, count, 'global')
    np.testing.assert_array_equal(kernels['rewound'][0], np.concatenate(
        [(early[layer] * masks[layer]).ravel() for layer in sorted(masks)]))
    first, second = (kernels[name][0] == 0 for name in ('rewound', 'second round'))
    assert not (first & ~second).any()
    assert (second.sum(), first.sum()) == (round(0.8 * second.size), round(0.6 * second.size))
    for name in ('same masks', 'other weights'):
        np.testing.assert_array_equal(kernels[name][0] == 0, first)
    assert not np.array_equal(kernels['same masks'][0], kernels['other weights'][0])
    with pytest.raises(UserError, match=r"^config\.pruning\.masks: .* another network, or prunes other layers: Dense_0/k"):
        train(digits(model=dict(name='sequential', layers='flatten|dense(9)|dense'), pruning=dict(
            masks=dense, sparsity=0.5, exclude='none')), str(tmp_path / 'x'))
    with pytest.raises(UserError, match=r"^config\.pruning\.masks: .*dense' is not pruned; config.pruning.sparsity"):
        train(digits(pruning=dict(masks=dense)), str(tmp_path / 'x'))


WRONG = {
    'no sparsity': (dict(), 'sparsity: must be set'),
    'sparsity of 1': (dict(sparsity=1.0), r'sparsity: expected at least 0 and below 1, got 1\.0'),
    'negative sparsity': (dict(sparsity=-0.1), r'sparsity: expected at least 0, got -0\.1'),
    'pattern': (dict(sparsity=0.5, match='konv'), "match: 'konv' matches no parameter"),
    'excluded layers': (dict(sparsity=0.5, match='Dense_2'), "exclude: 'Dense_2' matches only layers that"),
    'end before begin': (dict(sparsity=0.5, begin=dict(steps=6), end=dict(steps=5)), 'end: is step 5, but .* at step 6'),
    'end after the run': (dict(sparsity=0.5, end=dict(steps=13)), 'end: is step 13, but the run ends at step 12'),
    'movement at once': (dict(sparsity=0.5, method='movement', end=dict(steps=0)), 'end: movement needs gradients'),
    'no effect': (dict(masks='x', every=dict(steps=5)), "every: got {'steps': 5}, but masks hold from the"),
    'no masks': (dict(sparsity=0.5, reinitialize=True), r'reinitialize: got True, but there are no .*masks'),
    'no run': (dict(masks='/nowhere'), "masks: workdir '/nowhere' does not exist"),
}


@pytest.mark.parametrize('name', WRONG)
def test_a_wrong_field_gives_one_line(tmp_path, name):
    pruning, message = WRONG[name]
    with pytest.raises(UserError, match=rf'^config\.pruning\.{message}'):
        train({**cfg.to_dict(digits()), 'pruning': pruning}, str(tmp_path))
    assert not os.path.exists(tmp_path / 'config.json')


@pytest.mark.parametrize(('name', 'excluded'), [
    ('lenet5', {'Conv_0/kernel', 'Dense_2/kernel'}),
    pytest.param('fcos', {'backbone/Conv_0/kernel', 'class_logits/kernel'}, marks=pytest.mark.slow)])
def test_the_default_layers_are_those_between_the_first_and_the_last(name, excluded):
    network = models.create(name, num_classes=7)
    params = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))['params']
    selected, kernels = ({path_name(path) for path, _ in jax.tree.leaves_with_path(tree)} for tree in (
        prunable(cfg.PruningConfig(), network, (64, 64, 3), params), params))
    assert {path for path in kernels if path.endswith('kernel')} - selected == excluded
    assert all(path.endswith('kernel') for path in selected)


@pytest.mark.slow
@pytest.mark.parametrize('backend', ['sharded', 'pmap'])
@pytest.mark.parametrize('method', ['magnitude', 'movement', 'random'])
def test_four_devices_prune_as_one_does(tmp_path, backend, method):
    states = []
    for number in (1, 4):
        config = digits(duration=dict(steps=6), pruning=dict(
            method=method, sparsity=0.7, exclude='none', begin=dict(steps=2), end=dict(steps=5), every=dict(steps=1)),
            optim=dict(optimizer='adam', accumulate=2, ema_decay=0.9, lookahead=dict(every=2), groups=(
                dict(match='bias', rate=2.0),)), parallel=dict(devices=number, backend=backend),
            batch_schedule=((dict(steps=3), 64),))
        folder = str(tmp_path / str(number))
        train(config, folder)
        states.append(golden.read_state(folder, 6))
    one, four = states
    assert one.keys() == four.keys()
    for name, array in one.items():
        if "['masks']" in name:
            np.testing.assert_array_equal(array, four[name], name)
        elif name.startswith(("['params']", "['ema']", "['slow']")):
            np.testing.assert_allclose(array, four[name], rtol=1e-4, atol=1e-5, err_msg=name)
