"""Shortcut options, pre-activation, stems and widths of residual networks."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import models
from jaxcnn.errors import UserError
from jaxcnn.training.state import run_once


def shapes(name, side=32, **fields):
    network = models.create(name, conv_implementation='xla', **fields)  # faster to trace
    return jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, side, side, 3))))


def count(tree):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def projections(blocks, width, wide, norm, everywhere):
    """Parameters of the 1x1 convolutions in shortcuts, `wide` times as many features after a block as in it."""
    total, before = 0, width
    for stage, number in enumerate(blocks):
        for _ in range(number):
            after = wide * width * 2 ** stage
            if everywhere or before != after:
                total += before * after + (2 * after if norm else 0)
            before = after
    return total


# ---- parameters


@pytest.mark.parametrize('preact', [False, True])
@pytest.mark.parametrize(('name', 'wide'), [('resnet34', 1), ('resnet50', 4)])
def test_options_differ_by_their_projections(name, wide, preact):
    blocks = (2, 1, 2)
    a, b, c = (shapes(name, blocks=blocks, preact=preact, shortcut=option)['params'] for option in 'ABC')
    assert count(b) - count(a) == projections(blocks, 64, wide, not preact, False)
    assert count(c) - count(a) == projections(blocks, 64, wide, not preact, True)
    if not preact:
        assert shapes(name, blocks=blocks, shortcut='none')['params'] == a


@pytest.mark.parametrize('depth', [20, 32])
def test_a_cifar_network_has_as_many_layers_as_its_name_says(depth):
    params = shapes(f'resnet{depth}_cifar')['params']
    assert sum(not layer.startswith('BatchNorm') for layer in params) == depth
    n = depth // 6
    assert count(params) == (  # stem, the three stages' convolutions with BatchNorm, classes
        (27 * 16 + 32) + sum((2 * n - first) * (9 * w * w + 2 * w) + first * (9 * w * w // 2 + 2 * w)
                             for w, first in ((16, 0), (32, 1), (64, 1))) + 650)


@pytest.mark.parametrize(('fields', 'kernel'), [
    ({'groups': 8, 'group_width': 6}, (3, 3, 6, 48)), ({'groups': 8}, (3, 3, 4, 32)), ({'group_width': 50}, (3, 3, 50, 50))])
def test_cardinality_and_width_are_free(fields, kernel):
    params = shapes('resnet50', blocks=(1, 1), width=32, **fields)['params']
    grouped = [params[layer]['kernel'].shape for layer in ('Conv_3', 'Conv_7')]
    assert grouped == [kernel, (3, 3, 2 * kernel[2], 2 * kernel[3])]


def test_maps_are_the_stem_and_the_stages_and_what_follows_pre_activation():
    images = jax.ShapeDtypeStruct((2, 64, 48, 3), jnp.float32)

    def maps(**fields):
        network = models.create('resnet50', width=8, conv_implementation='xla', **{'blocks': (1, 1, 1, 1), **fields})
        key = jax.random.key(0)
        (_, named), _ = jax.eval_shape(lambda x: network.init_with_output(key, x, features=True), images)
        return {name: x.shape[1:] for name, x in named.items()}
    stages = {'stage1': (16, 12, 32), 'stage2': (8, 6, 64), 'stage3': (4, 3, 128), 'stage4': (2, 2, 256)}
    assert maps() == {'stem': (32, 24, 8), **stages}
    assert maps(preact=True) == {'stem': (32, 24, 8), **stages, 'activation': (2, 2, 256)}
    assert maps(preact=True, stem_norm=False) == maps(preact=True)
    assert maps(stem='small', blocks=(1, 1)) == {'stem': (64, 48, 8), 'stage1': (64, 48, 32), 'stage2': (32, 24, 64)}


# ---- what a block computes


def drawn(**fields):
    """A network of two blocks, variables and images; the second block halves the image and doubles the features."""
    network = models.create('resnet18', blocks=(1, 1), width=4, stem='small', **fields)
    images = np.random.default_rng(1).normal(size=(2, 9, 9, 3)).astype(np.float32)
    rng = np.random.default_rng(0)

    def values(x):
        if x.ndim > 1:
            return np.float32(rng.normal(0, 2 / math.prod(x.shape[:-1]) ** 0.5, x.shape))
        return np.float32(rng.uniform(0.5, 1.5, x.shape))
    return network, jax.tree.map(values, jax.eval_shape(network.init, jax.random.key(0), images)), images


def norm(variables, layer, x):
    """BatchNorm by running statistics."""
    params, stats = variables['params'][layer], variables['batch_stats'][layer]
    return (x - stats['mean']) / np.sqrt(stats['var'] + 1e-5) * params['scale'] + params['bias']


def silenced(variables, layer):
    """With zeros for the layer's parameters: the last one's of a block's body."""
    params = {**variables['params'], layer: jax.tree.map(np.zeros_like, variables['params'][layer])}
    return {**variables, 'params': params}


def maps_of(network, variables, images):
    _, maps = jax.jit(lambda v, x: network.apply(v, x, features=True))(variables, images)
    return {name: np.asarray(x) for name, x in maps.items()}


def subsampled(x, kernel=None):
    """Option A, or with a kernel (1, 1, C, features) a projection."""
    x = x[:, ::2, ::2]
    return np.concatenate([x, np.zeros_like(x)], -1) if kernel is None else x @ kernel[0, 0]


@pytest.mark.parametrize(('option', 'last'), [('A', 'BatchNorm_4'), ('B', 'BatchNorm_5'), ('C', 'BatchNorm_6'),
                                              ('none', 'BatchNorm_4')])
def test_without_its_body_a_block_is_its_shortcut(option, last):
    network, variables, images = drawn(shortcut=option)
    maps = maps_of(network, silenced(variables, last), images)
    before = maps['stage1']
    if option == 'none':
        expected = np.zeros_like(maps['stage2'])
    elif option == 'A':
        expected = subsampled(before)
    else:  # the projection comes before the body
        layer = {'B': 3, 'C': 4}[option]
        kernel = variables['params'][f'Conv_{layer}']['kernel']
        expected = np.maximum(norm(variables, f'BatchNorm_{layer}', subsampled(before, kernel)), 0)
    np.testing.assert_allclose(maps['stage2'], expected, rtol=1e-4, atol=1e-5)
    assert option == 'none' or (np.abs(expected) > 0.01).any((0, 1, 2)).sum() >= 4
    assert maps['stage2'].shape == (2, 5, 5, 8)


@pytest.mark.parametrize(('option', 'last', 'projection'), [
    ('A', 'Conv_4', None), ('B', 'Conv_4', 'Conv_5'), ('C', 'Conv_5', 'Conv_6')])
def test_a_pre_activated_block_of_another_shape_begins_its_shortcut_activated(option, last, projection):
    network, variables, images = drawn(shortcut=option, preact=True)
    maps = maps_of(network, silenced(variables, last), images)
    active = np.maximum(norm(variables, 'BatchNorm_2', maps['stage1']), 0)
    kernel = projection and variables['params'][projection]['kernel']
    np.testing.assert_allclose(maps['stage2'], subsampled(active, kernel), rtol=1e-4, atol=1e-5)
    assert 0.1 < (active > 0).mean() < 0.9


def test_without_its_body_a_pre_activated_block_of_the_same_shape_is_the_identity():
    network, variables, images = drawn(preact=True)
    maps = maps_of(network, silenced(variables, 'Conv_2'), images)
    np.testing.assert_array_equal(maps['stage1'], maps['stem'])
    assert (maps['stage2'] > 0).any()
    np.testing.assert_allclose(maps['activation'], np.maximum(norm(variables, 'BatchNorm_4', maps['stage2']), 0), rtol=1e-4,
                               atol=1e-5)


def test_a_stem_without_norm_is_a_convolution_alone():
    network, _, images = drawn(preact=True)
    network = network.clone(stem='imagenet', stem_norm=False)
    variables = network.init(jax.random.key(0), images)
    expected = jax.lax.conv_general_dilated(images, variables['params']['Conv_0']['kernel'], (2, 2), [(3, 3)] * 2,
                                            dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    np.testing.assert_allclose(maps_of(network, variables, images)['stem'], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('preact', [False, True])
def test_with_zero_init_every_block_starts_as_its_shortcut(preact):
    network = models.create('resnet18', blocks=(2,), width=4, stem='small', shortcut='A', preact=preact, zero_init=True)
    images = np.random.default_rng(1).normal(size=(2, 5, 5, 3)).astype(np.float32)

    def start(images):
        variables = network.init(jax.random.key(0), images)

        def loss(params):
            return network.apply({**variables, 'params': params}, images, train=True, mutable=['batch_stats'])[0][:, 0].sum()
        return network.apply(variables, images, features=True)[1], jax.grad(loss)(variables['params'])
    maps, grads = jax.jit(start, compiler_options=run_once())(images)
    np.testing.assert_array_equal(maps['stage1'], maps['stem'])
    layer, parameter = ('Conv', 'kernel') if preact else ('BatchNorm', 'scale')
    for last in (2, 4):  # what starts at zero is trained
        assert np.any(grads[f'{layer}_{last}'][parameter] != 0)


# ---- what is refused


@pytest.mark.parametrize(('name', 'fields', 'line'), [
    ('resnet18', {'shortcut': 'non'}, r"unknown shortcut 'non'; nearest: none"),
    ('resnet18', {'shortcut': 'D'}, r"unknown shortcut 'D'; known: A, B, C, none"),
    ('resnet18', {'shortcut': None}, r'model resnet18: shortcut must be of type str, got None'),
    ('preresnet18', {'shortcut': 'none'}, r"preact=True needs a shortcut of 'A', 'B' or 'C', got 'none'"),
    ('resnet18', {'shortcut': 'none', 'zero_init': True}, r"zero_init=True needs a shortcut of 'A', 'B' or 'C', got 'none'"),
    ('resnet50', {'width': 100, 'groups': 8}, r'8 groups do not divide 100 features'),
    ('resnet18', {'stem_norm': False}, r"stem_norm=False needs preact=True and stem='imagenet', got preact=False and"),
    ('resnet34', {'group_width': 4}, r'groups and group_width need bottleneck=True, got groups=1 and group_width=4'),
    ('resnet20_cifar', {'blocks': (3, -3, 3)}, r'blocks must be positive integers, got \(3, -3, 3\)'),
    ('resnet20_cifar', {'blocks': ()}, r'blocks must be positive integers, got \(\)'),
    ('resnext50_32x4d', {'group_width': -4}, r'group_width at least 0, got 64, 32 and -4')])
def test_what_makes_no_residual_network_is_reported_in_one_line(name, fields, line):
    with pytest.raises(UserError, match=line) as error:
        models.create(name, **fields)
    assert '\n' not in str(error.value)
