"""Pruning during training, compared with NumPy, and runs that are pruned."""


import jax
import numpy as np
import pytest

from jaxcnn import config as cfg
from jaxcnn import models, tasks
from jaxcnn.data.normalize import Normalization
from jaxcnn.losses import cross_entropy
from jaxcnn.optim import make_optimizer
from jaxcnn.preprocessing import Preprocessor
from jaxcnn.timeline import Timeline
from jaxcnn.training.initial_masks import prunable
from jaxcnn.training.pruning import Pruning, remaining
from jaxcnn.training.state import init_state
from jaxcnn.training.step import TrainStep

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


@pytest.mark.parametrize('method', METHODS)
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
