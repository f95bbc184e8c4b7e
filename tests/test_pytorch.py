"""What docs/pytorch.md says makes us and PyTorch equal, read from the page; and that without it we differ."""

import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcnn import models, optim
from jaxcnn.config import parse
from jaxcnn.models.layers import BatchNorm
from jaxcnn.timeline import Timeline

pytestmark = pytest.mark.torch
torch = pytest.importorskip('torch')

PAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'docs', 'pytorch.md')
STEPS = 20


def rows(of):
    """By what differs: our fields and PyTorch's expression, of the rows in which the latter matches."""
    with open(PAGE, encoding='utf-8') as page:
        cells = [[cell.strip() for cell in line.strip('|\n ').split('|')] for line in page if line.startswith('|')]
    return {row[0]: (eval(row[3].strip('`')), row[4].strip('`')) for row in cells
            if len(row) == 5 and re.match(of, row[4].strip('`'))}


def make(fields):
    config = parse({'duration': {'steps': STEPS}, 'batch_size': 10, 'optim': {'learning_rate': 0.1, **fields}})
    return optim.make_optimizer(config.optim, Timeline(config, 100))


def trained(fields, grads, start):
    """Our parameters after all gradients; the learning rate falls to 0."""
    optimizer, params = make({'schedule': 'polynomial', **fields}), start
    state, update = optimizer.init(params), jax.jit(lambda g, s, p: optimizer.update(g, s, p, 0, jnp.float32(1)))
    for g in grads:
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params


def theirs_trained(expression, grads, start):
    params = [torch.nn.Parameter(torch.tensor(start[name])) for name in ('kernel', 'bias')]
    optimizer = eval(expression, {'torch': torch, 'params': params})
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, STEPS)
    for g in grads:
        for p, name in zip(params, ('kernel', 'bias'), strict=True):
            p.grad = torch.tensor(g[name])
        optimizer.step()
        schedule.step()
    return dict(zip(('kernel', 'bias'), (p.detach().numpy() for p in params), strict=True))


def difference(a, b):
    return max(float(np.abs(np.asarray(a[name]) - b[name]).max()) for name in b)


def test_optimizers_are_equal_with_the_arguments_of_the_page_and_differ_without():
    rng = np.random.default_rng(0)
    grads = [{'kernel': np.float32(rng.normal(size=(4, 3))), 'bias': np.float32(rng.normal(size=3))} for _ in range(STEPS)]
    start = {'kernel': np.float32(rng.normal(size=(4, 3))), 'bias': np.float32(rng.normal(size=3))}
    found = rows(r'torch\.optim')
    assert {*found} >= {'RMSProp', 'RMSProp with momentum', 'AdaGrad', "AdamW's weight decay", "SGD's weight decay"}
    for what, (fields, expression) in found.items():
        expected = theirs_trained(expression, grads, start)
        assert difference(trained(fields, grads, start), expected) < 2e-5, what
        choice = fields['optimizer']
        plain = choice if isinstance(choice, str) else {
            k: v for k, v in choice.items() if k in ('name', 'momentum')}
        assert difference(trained({'optimizer': plain}, grads, start), expected) > 5e-4, what


def rates(fields, losses=()):
    """Our learning rate at each step; with losses, after each of them."""
    optimizer = make({'optimizer': 'sgd', **fields})
    state, found = optimizer.init({'kernel': jnp.ones(2)}), []
    for step in range(STEPS):
        if len(losses):
            state = optimizer.observe(jax.device_get(state), 0, losses[step])
        found.append(float(optimizer.learning_rate(state, jnp.int32(step), 0)))
    return found


def their_rates(expression, losses=()):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    schedule = eval(expression, {**vars(torch.optim.lr_scheduler), 'optimizer': optimizer, 'T': STEPS})
    found = []
    for step in range(STEPS):
        if len(losses):
            schedule.step(losses[step])
        found.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        if not len(losses):
            schedule.step()
    return found


@pytest.mark.parametrize('what', ['one cycle', 'warm-up of `w` steps', 'plateau'])
def test_schedules_are_equal_with_the_arguments_of_the_page(what):
    fields, expression = rows('OneCycleLR|LinearLR|ReduceLROnPlateau')[what]
    for seed in range(3):
        losses = np.random.default_rng(seed).uniform(0.5, 1, STEPS) if what == 'plateau' else ()
        np.testing.assert_allclose(rates(fields, losses), their_rates(expression, losses), rtol=1e-5, atol=1e-9)


def test_plain_schedules_differ():
    assert np.argmax(rates({'schedule': 'one_cycle'})) == 6
    assert np.argmax(their_rates('OneCycleLR(optimizer, 0.1, total_steps=T, cycle_momentum=False)')) == 5
    same = np.ones(STEPS)
    assert rates({'schedule': {'name': 'plateau', 'patience': 3}}, same)[3] < 0.05
    assert their_rates('ReduceLROnPlateau(optimizer, patience=3)', same)[3] > 0.05


def test_batch_norms_running_statistics_are_as_the_page_says():
    x = np.random.default_rng(0).normal(3, 2, (6, 4)).astype(np.float32)
    theirs = torch.nn.BatchNorm1d(4, momentum=0.1)
    theirs(torch.tensor(x))
    layer = BatchNorm(use_running_average=False, momentum=0.9)
    _, updates = layer.apply(layer.init(jax.random.key(0), x), x, mutable=['batch_stats'])
    stats = updates['batch_stats']
    np.testing.assert_allclose(stats['mean'], theirs.running_mean, rtol=1e-5)
    np.testing.assert_allclose(stats['var'] - 0.9, (theirs.running_var - 0.9) * 5 / 6, rtol=1e-4)


def test_mobilenets_activation():
    x = 30 * np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
    maps = {}
    for name in ('relu', 'relu6'):
        network = models.create('mobilenet_v1', multiplier=0.25, num_classes=10, activation=name)
        maps[name] = jax.jit(lambda x, n=network: n.init_with_output(jax.random.key(0), x, features=True)[0][1]['conv1'])(x)
    np.testing.assert_allclose(maps['relu6'], torch.nn.functional.relu6(torch.tensor(np.asarray(maps['relu']))))
    assert maps['relu'].max() > 6
