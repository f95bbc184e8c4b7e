"""Every registered network, and the parts that they share."""

import dataclasses
import functools
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from jaxcnn import models
from jaxcnn.errors import UserError
from jaxcnn.losses import cross_entropy
from jaxcnn.models.inception import Inception
from jaxcnn.models.layers import ACTIVATIONS, INITIALIZERS, Conv, activation, initializer
from jaxcnn.training.state import run_once

# fields that keep a network small here, where its published size would take long: of a name, or of all of a class
SMALL = {
    'shallow_cnn': {'widths': (4, 4, 8, 8), 'hidden': 16},
    'AlexNet': {'widths': (4, 6, 8, 6, 4), 'hidden': 8},
    'VGG': {'stages': ((4,), (8,)), 'hidden': 16},
    'NIN': {'stages': ((6, 4), (4, 4), (4,))},
    'nin_ima': {'stages': ((16, 8), (8,), (16, 8), (8,))},
    'AirBench': {'widths': (4, 6, 8)},
    'LeeDL': {'widths': (4, 6, 4), 'hidden': (8, 6, 5)},
    'MobileNetV1': {'multiplier': 0.25},
    'InvertedResidualNetwork': {'multiplier': 0.25, 'blocks': (1, 2, 1, 1, 1, 1, 1), 'stem': 'small', 'drop_connect': 0.0,
                                'dropout': 0.2},
    'Sequential': {'layers': 'conv(6)|norm|relu|max_pool(2)|conv(8)|norm|relu|flatten|dense(16)|relu|dropout|dense'},
    'ResNet': {'blocks': (1, 1), 'width': 8},
    'resnext': {'blocks': (1, 1), 'width': 8, 'groups': 2, 'group_width': 4},
    'T2TViT': {'depth': 1, 'embed': 12, 'heads': 3, 'token_dim': 8, 'token_dropout': 0.0, 'splits': ((7, 4, 2), (3, 2, 1))},
    'GoogLeNet': {'multiplier': 0.1, 'blocks': (1, 1, 1), 'aux_dropout': 0.0},
    'Inception': {'multiplier': 0.1, 'blocks': (1, 1, 1)},
}
SIZE = 32
# networks that take long to compile and resemble another one; tests that compile them are marked as slow
SLOW = {'bn_inception', 'inception_resnet_v1', 'inception_resnet_v2', 'googlenet', 'inception_v3', 'inception_v4', 'zfnet',
        'resnext101_32x8d', 'airbench96', 'resnet110_cifar', 'preresnet101', 'resnet152', 'preresnet152', 'alexnet_grouped',
        'convnet5', 'overfeat5', 'overfeat7',
        *(f'efficientnet_lite{i}' for i in range(5))}


def mark_slow(names, *more):
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW.union(more) else name for name in names]


def create(name, **fields):
    kinds = name, name[:7], *(kind.__name__ for kind in type(models.create(name)).mro())  # a name, a variant, classes
    small = next((SMALL[kind] for kind in kinds if kind in SMALL), {})
    return models.create(name, **{**small, **fields})


def distinct_networks():
    """One name for each set of networks that are equal when they are made small."""
    name_by_fields = {}
    for name in models.names('logits'):
        network = create(name)
        name_by_fields.setdefault(repr((type(network), dataclasses.astuple(network))), name)
    return sorted(name_by_fields.values())


def network_kinds():
    """One name for each class of networks and set of layers; Inception has three classes: with auxiliary classifiers,
    without them, and residual."""
    name_by_kind = {}
    for name in distinct_networks():
        network = models.create(name)
        kind = type(network)
        layers = [bool(getattr(network, field, False)) for field in ('batch_norm', 'preact', 'bottleneck', 'residual')]
        name_by_kind.setdefault((kind.__mro__[1] if issubclass(kind, Inception) else kind, *layers,
                                 getattr(network, 'groups', 1) > 1), name)
    return sorted(name_by_kind.values())


def deepest_networks():
    """The deepest of each set of networks that differ in nothing but their number of blocks."""
    deepest = {}
    for name in sorted(set(models.names('logits')) - {'resnet1202_cifar'}):  # which takes a minute
        network = models.create(name)
        depth_fields = {'blocks', 'stages', 'parent', 'name'}
        kind = repr([type(network), *((f.name, getattr(network, f.name)) for f in dataclasses.fields(network)
                                      if f.name not in depth_fields)])
        blocks = sum(getattr(network, 'blocks', ())) + len(jax.tree.leaves(getattr(network, 'stages', ())))
        deepest[kind] = max(deepest.get(kind, (0, '')), (blocks, name))
    return sorted(name for _, name in deepest.values())


def shapes(network, *shape):
    """Shapes of the variables, without computing them."""
    network = network.clone(conv_implementation='xla')  # faster to trace
    return jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, *shape))))


def count(tree):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def drawn(network, *shape):
    """Variables drawn by NumPy with the variance of LeCun; scales and statistics are around one and zero.

    Initialising them by the network would take most of the time of these tests, in compilation.
    """
    rng = np.random.default_rng(0)

    def draw(path, x):
        if path[-1].key in ('scale', 'var'):
            values = rng.uniform(0.5, 1.5, x.shape)
        else:
            values = rng.normal(size=x.shape) / math.sqrt(math.prod(x.shape[:-1]))
        return jnp.asarray(values, x.dtype)
    return jax.tree_util.tree_map_with_path(draw, shapes(network, *(shape or (SIZE, SIZE, 3))))


def batch(count=8, size=SIZE):
    rng = np.random.default_rng(0)
    return jnp.float32(rng.normal(size=(count, size, size, 3))), jnp.asarray(rng.integers(0, 10, count))


def heads(output):
    """The network's own logits, and those of heads that train alone."""
    return output if isinstance(output, tuple) else (output,)


def once(function):
    """Compiled in little time, to slower code."""
    return jax.jit(function, compiler_options=run_once())


# ---- published sizes


@pytest.mark.parametrize(('name', 'shape', 'layers'), [
    ('lenet5', (32, 32, 1), {
        'Conv_0': 5 * 5 * 1 * 6 + 6, 'Conv_1': 5 * 5 * 6 * 16 + 16, 'Dense_0': 400 * 120 + 120, 'Dense_1': 120 * 84 + 84,
        'Dense_2': 84 * 10 + 10}),
    ('lenet_mnist', (28, 28, 1), {
        'Conv_0': 5 * 5 * 1 * 32 + 32, 'Conv_1': 5 * 5 * 32 * 64 + 64, 'Dense_0': 7 * 7 * 64 * 512 + 512,
        'Dense_1': 512 * 10 + 10}),
    ('shallow_cnn', (32, 32, 3), {
        'Conv_0': 7 * 7 * 3 * 64, 'BatchNorm_0': 2 * 64, 'Conv_1': 3 * 3 * 64 * 128, 'BatchNorm_1': 2 * 128,
        'Conv_2': 3 * 3 * 128 * 256, 'BatchNorm_2': 2 * 256, 'Conv_3': 3 * 3 * 256 * 256, 'BatchNorm_3': 2 * 256,
        'Dense_0': 2 * 2 * 256 * 512 + 512, 'Dense_1': 512 * 10 + 10}),
])
def test_every_layer_has_its_published_size(name, shape, layers):
    params = shapes(models.create(name), *shape)['params']
    assert {layer: count(tree) for layer, tree in params.items()} == layers
    assert count(params) == {'lenet5': 61_706, 'lenet_mnist': 1_663_370, 'shallow_cnn': 1_499_210}[name]


# at as many classes, and for images of the size, that it was published for, where nothing else is said
PUBLISHED = [
    ('resnet18', {}, 11_689_512), ('resnet34', {}, 21_797_672), ('resnet50', {}, 25_557_032), ('resnet101', {}, 44_549_160),
    ('resnet152', {}, 60_192_808), ('resnext50_32x4d', {}, 25_028_904), ('resnext101_32x8d', {}, 88_791_336),
    ('preresnet18', {}, 11_687_848), ('preresnet34', {}, 21_796_008), ('preresnet50', {}, 25_549_480),
    ('preresnet18', {'stem_norm': False}, 11_687_720),
    ('preresnet101', {}, 44_541_608), ('preresnet152', {}, 60_185_256),
    ('mobilenet_v1', {}, 4_231_976), ('mobilenet_v1', {'multiplier': 0.25}, 470_072),
    ('mobilenet_v1', {'multiplier': 0.5}, 1_331_592), ('mobilenet_v1', {'multiplier': 0.75}, 2_585_560),
    ('mobilenet_v2', {}, 3_504_872), ('mobilenet_v2', {'multiplier': 0.75}, 2_636_424),
    ('mobilenet_v2', {'multiplier': 1.4}, 6_108_776),
    ('efficientnet_lite0', {}, 4_652_008), ('efficientnet_lite1', {}, 5_416_680), ('efficientnet_lite2', {}, 6_092_072),
    ('efficientnet_lite3', {}, 8_197_096), ('efficientnet_lite4', {}, 13_006_568),
    ('alexnet', {}, 62_378_344), ('zfnet', {}, 62_357_608), ('convnet5', {}, 62_378_344),
    ('overfeat5', {}, 102_908_520), ('overfeat7', {}, 107_628_136),
    ('vgg11', {}, 132_863_336), ('vgg11_lrn', {}, 132_863_336),
    ('vgg13', {}, 133_047_848), ('vgg16_c', {}, 133_638_952), ('vgg16', {}, 138_357_544), ('vgg19', {}, 143_667_240),
    ('vgg16_bn', {}, 138_365_992), ('vgg19_bn', {}, 143_678_248), ('nin_cifar', {}, 966_986),
    ('leedl_cnn', {}, 12_833_803),
    ('airbench94', {}, 1_971_640), ('airbench95', {}, 4_604_728), ('airbench96', {}, 12_717_752),  # airbench 0.1.8's
    ('googlenet', {'aux_weight': 0.0}, 6_998_552), ('googlenet', {}, 13_378_280), ('bn_inception', {}, 11_295_240),
    ('inception_v3', {'aux_weight': 0.0}, 23_834_568), ('inception_v3', {}, 27_161_264), ('inception_v4', {}, 42_679_816),
    ('googlenet_bn', {}, 13_378_280 + 7_536),  # a scale and a bias for each convolution's feature, in place of a bias
    ('inception_resnet_v1', {}, 23_995_624), ('inception_resnet_v2', {}, 55_843_464),
    ('t2t_vit_14', {}, 21_465_806), ('t2t_vit_14', {'tokens': 'transformer'}, 21_465_422),
    *((name, {'stem': 'small', 'num_classes': 200, 'size': 64, **fields}, parameters) for name, fields, parameters in (
        ('resnet18', {}, 11_271_432), ('resnet34', {}, 21_379_592), ('resnet50', {}, 23_910_152),
        ('resnext50_32x4d', {}, 23_382_024), ('resnet50', {'shortcut': 'none'}, 21_133_576))),
    *((f'resnet{depth}_cifar', {}, parameters) for depth, parameters in (
        (20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962))),
]


@pytest.mark.parametrize(('name', 'fields', 'parameters'), [
    pytest.param(*row, marks=pytest.mark.slow) if row[0] in (
        'resnet101', 'resnet152', 'preresnet101', 'preresnet152', 'resnext101_32x8d', 'resnet110_cifar', 'inception_v4',
        'inception_resnet_v2', 'efficientnet_lite2', 'efficientnet_lite3') else row for row in PUBLISHED])
def test_parameters_are_as_many_as_published(name, fields, parameters):
    (height, width, channels), classes = models.create(name).published_for()
    fields = {'num_classes': classes, 'size': height, **fields}
    size = fields.pop('size')
    assert (height, channels) == (width, 3)
    network = models.create(name, **fields)
    assert count(shapes(network, size, size, 3)['params']) == parameters


def test_lenet5_has_the_sizes_of_the_paper_layer_by_layer():
    params = shapes(models.create('lenet5'), 32, 32, 1)['params']
    assert [count(params[layer]) for layer in ('Conv_0', 'Conv_1', 'Dense_0', 'Dense_1', 'Dense_2')] == [
        156, 2416, 48120, 10164, 850]


def test_lenet5_frames_small_images_with_zeros():
    network = models.create('lenet5')
    variables = drawn(network, 32, 32, 1)
    small = np.random.default_rng(0).normal(size=(2, 28, 25, 1)).astype(np.float32)
    framed = np.zeros((2, 32, 32, 1), np.float32)
    framed[:, 2:30, 3:28] = small
    np.testing.assert_array_equal(network.apply(variables, small), network.apply(variables, framed))
    assert count(shapes(network, 36, 36, 1)['params']['Dense_0']) == 6 * 6 * 16 * 120 + 120


# ---- every network: a new one joins by being registered


@pytest.mark.parametrize('name', distinct_networks())
def test_logits_maps_and_types_for_images_of_one_channel_that_are_not_square(name):
    """The type of parameters leaves BatchNorm alone. Images that are too small are refused."""
    network = create(name, num_classes=7, param_dtype='bfloat16', conv_implementation='xla')  # faster to trace
    smallest = network.min_image_size()
    images = jnp.zeros((3, smallest + 8, smallest + 1, 1))
    (logits, maps), variables = jax.eval_shape(
        functools.partial(network.init_with_output, features=True), jax.random.key(0), images)
    assert (logits.shape, logits.dtype) == ((3, 7), jnp.float32)
    assert maps
    assert all(len(m) == 3 and m.ndim == 4 for m in maps.values())
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        assert leaf.dtype == (jnp.float32 if 'BatchNorm' in jax.tree_util.keystr(path) else jnp.bfloat16), path
    if smallest > 1:
        with pytest.raises(UserError, match=rf'at least {smallest} x {smallest} pixels, got {smallest - 1} x {smallest}'):
            shapes(network, smallest - 1, smallest, 3)


def test_an_image_without_its_batch_is_reported():
    with pytest.raises(UserError, match=r'LeNet5 takes images \(N, H, W, C\), got an array of shape \(32, 32, 1\)'):
        models.create('lenet5').init(jax.random.key(0), np.zeros((32, 32, 1), np.float32))


def side_of(network):
    return max(SIZE, network.min_image_size())


def loss_and_gradient(network, variables, labels):
    """Of parameters and images: the loss and its updates of statistics; the gradients."""
    def loss(params, images):
        output, updates = network.apply({**variables, 'params': params}, images, train=True, mutable=['batch_stats'])
        return sum(cross_entropy(logits, labels).mean() for logits in heads(output)), updates
    return once(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize('name', mark_slow(
    distinct_networks(), 'alexnet', 'lenet_mnist', 'mobilenet_v1', 'nin_imagenet', 'resnet18', 'vgg11', 'vgg11_lrn',
    'vgg16_c', 'vgg16_c_bn'))
def test_a_step_of_gradient_descent_lowers_the_loss_and_moves_every_parameter(name):
    """And changes all statistics."""
    network = create(name, dropout=0.0)
    side = side_of(network)
    variables, (images, labels) = drawn(network, side, side, 3), batch(8, side)
    run, params = loss_and_gradient(network, variables, labels), jax.tree.map(np.asarray, variables['params'])
    (before, updates), grads = jax.tree.map(np.asarray, run(params, images))
    for a, b in zip(*(jax.tree.leaves(v.get('batch_stats', {})) for v in (variables, updates)), strict=True):
        assert np.any(a != b)
    length = math.sqrt(sum(float((g ** 2).sum()) for g in jax.tree.leaves(grads)))
    (after, _), _ = run(jax.tree.map(lambda p, g: p - np.float32(1e-4 / length) * g, params, grads), images)
    assert np.isfinite(before)
    assert after < before
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all(), path
        assert np.any(grad != 0), path


@pytest.mark.parametrize('kind', mark_slow(
    network_kinds(), 'airbench94', 'alexnet', 'googlenet_bn', 'leedl_cnn', 'lenet5', 'lenet_mnist', 'mobilenet_v1',
    'mobilenet_v2', 'nin_cifar', 'preresnet18', 'resnet18', 'shallow_cnn', 't2t_vit_14', 'vgg11', 'vgg11_bn'))
def test_with_rematerialisation_and_on_four_devices_gradients_are_the_same(kind):
    network, remat = create(kind, dropout=0.0), create(kind, dropout=0.0, remat=True)
    side = side_of(network)
    variables, (images, labels) = drawn(network, side, side, 3), batch(8, side)
    params = jax.tree.map(np.asarray, variables['params'])
    _, grads = loss_and_gradient(network, variables, labels)(params, images)
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:4]), ('data',))
    split = jax.device_put(images, jax.NamedSharding(mesh, jax.P('data')))
    traced = loss_and_gradient(remat, variables, labels).trace(params, split)
    assert any(eqn.primitive.name in ('remat', 'remat2', 'checkpoint') for eqn in traced.jaxpr.eqns)
    _, again = traced.lower().compile()(params, split)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(grads), strict=True):
        assert len(a.devices()) == 4
        assert np.abs(a - b).max() <= 3e-3 * max(np.abs(b).max(), 1e-3)  # XLA's own differ by 1.6e-3


@pytest.mark.parametrize('kind', mark_slow(
    network_kinds(), 'alexnet', 'googlenet_bn', 'leedl_cnn', 'lenet_mnist', 'mobilenet_v1', 'mobilenet_v2', 'nin_cifar',
    't2t_vit_14', 'vgg11', 'vgg11_bn'))
def test_statistics_types_and_dropout(kind):
    """Statistics change in training and only there, and not when they are frozen; bfloat16 is near float32; dropout draws
    in training alone."""
    network, frozen = create(kind, dropout=0.0), create(kind, dropout=0.0, bn_frozen=True)
    half, dropping = create(kind, dtype='bfloat16'), create(kind, dropout=0.5)
    side = side_of(network)
    variables = drawn(network, side, side, 3)
    images, _ = batch(8, side)

    @once
    def run(v, x):
        trained, updates = network.apply(v, x, train=True, mutable=['batch_stats'])
        fixed, left = frozen.apply(v, x, train=True, mutable=['batch_stats'])
        evaluated, same = network.apply(v, x, mutable=['batch_stats'])

        def drop(key):
            return heads(dropping.apply(v, x, train=True, rngs={'dropout': key}, mutable=['batch_stats'])[0])[0]
        drops = jax.lax.map(drop, jax.random.split(jax.random.key(1)))  # compiled once for both keys
        return heads(trained)[0], heads(fixed)[0], evaluated, (updates, left, same), drops, half.apply(v, x)

    trained, fixed, evaluated, statistics, drops, rounded = run(variables, images)
    old = jax.tree.leaves(variables.get('batch_stats', {}))
    changed, *unchanged = (jax.tree.leaves(tree.get('batch_stats', {})) for tree in statistics)
    assert len(old) == len(changed)
    assert all(np.any(a != b) for a, b in zip(old, changed, strict=True))
    for tree in unchanged:
        assert all(np.array_equal(a, b) for a, b in zip(old, tree, strict=True))
    assert np.allclose(trained, evaluated, rtol=1e-5) == (not old)
    np.testing.assert_allclose(fixed, evaluated, rtol=1e-5, atol=1e-5 * np.abs(evaluated).max())
    assert np.abs(drops[0] - drops[1]).max() > 1e-3 * np.abs(drops[0]).max()
    assert rounded.dtype == jnp.bfloat16
    assert 0 < np.linalg.norm(evaluated - np.float32(rounded)) < 0.06 * np.linalg.norm(evaluated)


def narrow(network):
    """The network at its published depth, a quarter as wide."""
    def quarter(value):
        if isinstance(value, tuple):
            return tuple(map(quarter, value))
        return value / 4 if isinstance(value, float) else max(value // 4, 16)
    names = {field.name for field in dataclasses.fields(network)}
    widths = {'widths', 'stages', 'hidden', 'width', 'multiplier', 'embed'} & names
    return network.clone(**{name: quarter(getattr(network, name)) for name in widths})


def deviation(kernel_init, shape):
    """Of a kernel's values, as the two tests of initialisers below have it."""
    fan_in, fan_out = math.prod(shape[:-1]), math.prod(shape) // shape[-2]
    name, _, argument = kernel_init.rstrip(')').partition('(')
    return {'he_normal': math.sqrt(2 / fan_in), 'dirac': math.sqrt(1 / 3 / fan_in),
            'xavier_uniform': math.sqrt(2 / (fan_in + fan_out)),
            'normal': float(argument or 0), 'truncated_normal': math.sqrt(CUT) * float(argument or 0)}[name]


@pytest.mark.parametrize('name', mark_slow(
    deepest_networks(), 'airbench95', 'alexnet', 'googlenet_bn', 'leedl_cnn', 'mobilenet_v1', 'mobilenet_v2', 'nin_imagenet',
    'preresnet34', 'resnext50_32x4d', 't2t_vit_14', 'vgg11_lrn', 'vgg16_c', 'vgg16_c_bn', 'vgg19_bn'))
def test_activations_neither_vanish_nor_explode_through_depth(name):
    """As training starts: with the kernels' first values, and the batch's statistics."""
    unscaled = {'logit_scale': 1.0} if name.startswith('airbench') else {}  # whose logits are small by design
    network = narrow(models.create(name, conv_implementation='xla', dropout=0.0, **unscaled))
    side = side_of(network)
    rng = np.random.default_rng(0)

    def draw(path, x):
        if path[-1].key == 'kernel':
            return np.float32(rng.normal(0, deviation(network.kernel_init, x.shape), x.shape))
        return np.full(x.shape, path[-1].key in ('scale', 'var'), np.float32)

    @once
    def deviations(variables, images):
        (output, maps), _ = network.apply(variables, images, train=True, features=True, mutable=['batch_stats'],
                                          rngs={'dropout': jax.random.key(0)})
        return jax.tree.map(jnp.std, {**maps, **{f'logits {i}': x for i, x in enumerate(heads(output))}})
    variables = jax.tree_util.tree_map_with_path(draw, shapes(network, side, side, 3))
    for array, value in deviations(variables, batch(8, side)[0]).items():
        assert 0.1 < value < 20, (array, value)


# ---- activations


def elu(x):
    return np.where(x > 0, x, np.expm1(x))


def gelu(x):  # Hendrycks & Gimpel 2016, with their tanh
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))


FORMS = {
    'relu': lambda x: np.maximum(x, 0), 'leaky_relu': lambda x: np.where(x > 0, x, 0.01 * x), 'elu': elu,
    'selu': lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),  # Klambauer et al. 2017
    'relu6': lambda x: np.clip(x, 0, 6), 'swish': lambda x: x * expit(x), 'silu': lambda x: x * expit(x),
    'hard_swish': lambda x: x * np.clip(x + 3, 0, 6) / 6, 'mish': lambda x: x * np.tanh(np.log1p(np.exp(x))),
    'tanh': np.tanh, 'sigmoid': expit, 'gelu': gelu, 'softplus': lambda x: np.log1p(np.exp(x)),
}


@pytest.mark.parametrize('name', ACTIVATIONS)
def test_an_activation_is_its_closed_form(name):
    x = np.linspace(-9, 9, 73)
    np.testing.assert_allclose(activation(name)(jnp.float32(x)), FORMS[name](x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('model', ['lenet5', pytest.param('shallow_cnn', marks=pytest.mark.slow)])
def test_every_activation_makes_a_network_of_its_own(model):
    networks = [create(model, activation=name) for name in ACTIVATIONS if name != 'silu']  # which is swish
    variables = drawn(networks[0])
    logits = once(lambda v, x: [network.apply(v, x) for network in networks])(variables, 100 * batch(2)[0])
    assert np.isfinite(logits).all()
    for i, j in np.ndindex(len(logits), len(logits)):
        assert i == j or np.abs(logits[i] - logits[j]).max() > 1e-5


@pytest.mark.parametrize(('name', 'fields'), [
    ('lenet5', {}), ('lenet5', {'batch_norm': True}), ('lenet_mnist', {'batch_norm': True}), ('shallow_cnn', {}),
    ('shallow_cnn', {'batch_norm': False}), ('alexnet', {}), ('vgg11', {}), ('vgg11_bn', {}), ('leedl_cnn', {}),
    ('resnet18', {'shortcut': 'A'}), ('resnet50', {'shortcut': 'none'}),
    ('preresnet18', {'shortcut': 'A', 'stem': 'small'})])
def test_the_activation_follows_every_convolution_and_dense_layer_but_the_last(name, fields, monkeypatch):
    calls = []
    monkeypatch.setitem(ACTIVATIONS, 'counted', lambda x: calls.append(x.shape) or x)
    network = create(name, activation='counted', **fields)
    layers = shapes(network, *(side_of(network),) * 2, 3)['params']
    assert len(calls) == sum(not layer.startswith('BatchNorm') for layer in layers) - 1


@pytest.mark.parametrize(('name', 'features'), [('lenet5', (6, 16, 120, 84)), ('lenet_mnist', (32, 64, 512))])
def test_lenets_normalise_before_each_activation(name, features):
    network = models.create(name, batch_norm=True, activation='tanh', kernel_init='normal(0.05)', dropout=0.0)
    plain = models.create(name)
    images = batch(16, 28)[0][..., :1]
    parameters, without = (count(shapes(network, 28, 28, 1)['params']) for network in (network, plain))
    assert parameters - without == 2 * sum(features)

    @once
    def conv1(images):
        ((_, maps), _) = network.init_with_output(jax.random.key(0), images, train=True, features=True)
        return maps['conv1']
    before = np.arctanh(np.float64(conv1(images)))
    np.testing.assert_allclose(before.mean((0, 1, 2)), 0, atol=1e-3)
    np.testing.assert_allclose(before.std((0, 1, 2)), 1, atol=2e-3)


def test_without_batchnorm_the_convolutions_of_the_shallow_network_have_biases():
    layers = shapes(models.create('shallow_cnn', batch_norm=False), 32, 32, 3)['params']
    assert count(layers) == 1_499_210 - sum((64, 128, 256, 256))  # a bias in place of a scale and a bias
    assert [*layers] == [*(f'Conv_{i}' for i in range(4)), 'Dense_0', 'Dense_1']


# ---- initialisers

FAN_IN, FAN_OUT = 3 * 3 * 40, 3 * 3 * 80
# the variance left of a normal cut off at two deviations: 1 - 2 * 2 * density(2) / (probability within)
CUT = 1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))
VARIANCES = {
    'he_normal': 2 / FAN_IN, 'he_uniform': 2 / FAN_IN, 'xavier_normal': 2 / (FAN_IN + FAN_OUT),
    'xavier_uniform': 2 / (FAN_IN + FAN_OUT), 'glorot_normal': 2 / (FAN_IN + FAN_OUT),
    'glorot_uniform': 2 / (FAN_IN + FAN_OUT), 'lecun_normal': 1 / FAN_IN, 'lecun_uniform': 1 / FAN_IN,
    'torch_uniform': 1 / (3 * FAN_IN), 'truncated_normal(0.1)': CUT * 0.1 ** 2,
    'truncated_normal(std=0.02)': CUT * 0.02 ** 2, 'normal(0.1)': 0.1 ** 2,
}


@pytest.mark.parametrize('text', VARIANCES)
def test_an_initialiser_has_its_variance(text):
    values = np.asarray(initializer(text)(jax.random.key(0), (3, 3, 40, 80)), np.float64)
    deviation = math.sqrt(VARIANCES[text])
    assert values.std() == pytest.approx(deviation, rel=0.03)
    assert abs(values.mean()) < 5 * deviation / math.sqrt(values.size)
    largest = np.abs(values).max() / deviation
    if 'uniform' in text:
        assert largest == pytest.approx(math.sqrt(3), rel=1e-3)
    elif text.startswith('normal'):
        assert largest > 3
    else:  # cut off at two deviations of the normal
        assert largest == pytest.approx(2 / math.sqrt(CUT), rel=1e-2)


def test_every_initialiser_is_in_that_test():
    assert {text.partition('(')[0] for text in VARIANCES} | {'dirac', 'orthogonal', 'constant'} == set(INITIALIZERS)


@pytest.mark.parametrize('shape', [(3, 3, 4, 20), (2, 3, 1, 9), (8, 8)], ids=str)
def test_orthogonal_kernels_are_orthonormal_as_matrices(shape):
    kernel = np.asarray(initializer('orthogonal(scale=2.0)')(jax.random.key(0), shape)).reshape(-1, shape[-1])
    rows, columns = kernel.shape
    products = kernel.T @ kernel if rows >= columns else kernel @ kernel.T
    np.testing.assert_allclose(products, 4 * np.eye(min(rows, columns)), atol=1e-5)


@pytest.mark.parametrize(('side', 'channels', 'features'), [(3, 4, 6), (3, 6, 4), (2, 5, 5)])
def test_dirac_passes_the_input_on(side, channels, features):
    key, shape = jax.random.key(0), (side, side, channels, features)
    kernel, uniform = (np.asarray(jax.jit(initializer(name), static_argnums=1)(key, shape))
                       for name in ('dirac', 'torch_uniform'))
    copied = min(channels, features)
    expected = np.zeros((side, side, channels, copied), np.float32)
    expected[side // 2, side // 2, range(copied), range(copied)] = 1  # a convolution with it is the identity
    np.testing.assert_array_equal(kernel[..., :copied], expected)
    np.testing.assert_array_equal(kernel[..., copied:], uniform[..., copied:])


def test_dirac_is_uniform_for_dense_layers():
    dense, uniform = (initializer(name)(jax.random.key(0), (7, 5)) for name in ('dirac', 'torch_uniform'))
    np.testing.assert_array_equal(dense, uniform)


@pytest.mark.parametrize('name', mark_slow(distinct_networks(), *set(distinct_networks()).difference(network_kinds())))
def test_every_kernel_and_bias_starts_as_named(name):
    """In float32, whatever the type of computation; the biases of normalisation layers start at zero."""
    network = create(name, kernel_init='constant(0.05)', bias_init=0.1, dtype='bfloat16', conv_implementation='xla')
    variables = once(network.init)(jax.random.key(0), batch(1, side_of(network))[0])
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    for path, values in jax.tree_util.tree_leaves_with_path(variables['params']):
        if path[-1].key == 'class_token':
            continue
        is_norm = 'Norm_' in path[-2].key
        expected = {'kernel': 0.05, 'bias': 0 if is_norm else 0.1, 'scale': 1}[path[-1].key]
        np.testing.assert_array_equal(values, np.float32(expected), err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(('fields', 'conv', 'dense'), [
    ({}, 0, 0), ({'bias_init': -2, 'bias_init_layers': 'conv'}, -2, 0), ({'bias_init_layers': 'dense'}, 0, 0),
    ({'bias_init': 0.1, 'bias_init_layers': 'dense', 'head': 'dense_conv', 'window': 2}, 0, 0.1)], ids=str)
def test_biases_of_one_kind_of_layers_start_at_another_value(fields, conv, dense):
    network = create('vgg11', kernel_init='constant(1)', conv_implementation='xla', **fields)
    params = once(network.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))['params']
    assert {(layer[:4], float(bias)) for layer, values in params.items() for bias in values['bias']} == {
        ('Conv', conv), ('Dens', np.float32(dense))}


# ---- what is refused


@pytest.mark.parametrize(('name', 'fields', 'line'), [
    ('lenet', {}, r"unknown model 'lenet'; nearest: .*lenet5"),
    ('xyz', {}, r"unknown model 'xyz'; known: .*shallow_cnn"),
    ('lenet5', {'drop_out': 0.5}, r"unknown field of model lenet5 'drop_out'; nearest: dropout"),
    ('lenet_mnist', {'widths': (4, 8)}, r"unknown field of model lenet_mnist 'widths'"),
    ('lenet_mnist', {'activation': 'rellu'}, r"unknown activation 'rellu'; nearest: relu"),
    ('vgg11', {'activation': 'elo'}, r"unknown activation 'elo'; nearest: elu"),
    ('resnet18', {'activation': 'sigmod'}, r"unknown activation 'sigmod'; nearest: sigmoid"),
    ('lenet5', {'activation': 'rellu'}, r"unknown activation 'rellu'; nearest: relu"),
    ('shallow_cnn', {'activation': 'swisch'}, r"unknown activation 'swisch'; nearest: swish"),
    ('lenet5', {'kernel_init': 'he_norml'}, r"unknown initialiser 'he_norml'; nearest: he_normal"),
    ('lenet5', {'kernel_init': 'normal'}, r"initialiser normal.*missing.*'std'"),
    ('lenet5', {'kernel_init': 'normal(sdt=0.1)'}, r"unknown argument of initialiser normal 'sdt'; nearest: std"),
    ('lenet5', {'kernel_init': 'normal(open("x"))'}, r'initialiser: .* is not a name, or name'),
    ('lenet5', {'pool': 'mean'}, r"unknown pool 'mean'; nearest: max"),
    ('lenet5', {'dtype': 'bfloat'}, r"unknown dtype 'bfloat'; nearest: .*bfloat16"),
    ('lenet5', {'param_dtype': 'int8'}, r"unknown param_dtype 'int8'"),
    ('lenet5', {'bias_init': '0.1'}, r"model lenet5: bias_init must be of type float, got '0\.1'"),
    ('lenet5', {'bias_init_layers': 'dens'}, r"unknown bias_init_layers 'dens'; nearest: dense"),
    ('lenet5', {'dropout': 1.5}, r'dropout must be in \[0, 1\), got 1\.5'),
    ('lenet5', {'dropout': 1}, r'dropout must be in \[0, 1\), got 1'),
    ('lenet5', {'dropout': -0.1}, r'dropout must be in \[0, 1\), got -0\.1'),
    ('lenet5', {'dropout': '0.5'}, r"model lenet5: dropout must be of type float, got '0\.5'"),
    ('shallow_cnn', {'bn_momentum': 1.0}, r'bn_momentum must be in \[0, 1\), got 1\.0'),
    ('shallow_cnn', {'widths': (1, 2, 3)}, r'widths must be four positive integers and hidden one, got \(1, 2, 3\) and 512'),
    ('shallow_cnn', {'widths': (1, 2, 3, 0)}, r'widths must be four positive integers and hidden one'),
    ('shallow_cnn', {'widths': (1, 2, 3, 4.0)}, r'widths must be four positive integers and hidden one'),
    ('shallow_cnn', {'widths': 4}, r'model shallow_cnn: widths must be of type tuple, got 4'),
    ('shallow_cnn', {'hidden': 0}, r'widths must be four positive integers and hidden one'),
    ('lenet5', {'conv_implementation': 'onednn2'}, r"unknown conv_implementation 'onednn2'; nearest: onednn"),
    ('resnet18', {'stem': 'smal'}, r"unknown stem 'smal'; nearest: small"),
    ('resnet18', {'groups': 2}, r'groups and group_width need bottleneck=True, got groups=2 and group_width=0'),
    ('resnet50', {'groups': 3}, r'3 groups do not divide 64 features'),
    ('resnet50', {'blocks': (3, 0)}, r'blocks must be positive integers, got \(3, 0\)'),
    ('vgg16_bn', {'stages': ((64, -1),)}, r'stages must be lists of positive integers'),
    ('resnext50_32x4d', {'width': 100, 'groups': 8, 'group_width': 0}, r'8 groups do not divide 100 features'),
    ('alexnet_grouped', {'widths': (96, 100, 384, 384, 256), 'groups': 8}, r'8 groups do not divide 100 features'),
    ('t2t_vit_14', {'depth': -1}, r'depth.*-1'),
    ('resnet18', {'blocks': (2, -2)}, r'blocks must be positive integers, got \(2, -2\)'),
    ('mobilenet_v1', {'multiplier': 0.01}, r'multiplier must be large enough to leave one of 32 features .*, got 0\.01'),
    ('lenet5', {'num_classes': 0}, r'num_classes must be at least 1, got 0'),
    ('mobilenet_v1', {'multiplier': math.nan}, r'model mobilenet_v1: multiplier must be a finite number, got nan'),
    ('shallow_cnn', {'hidden': True}, r'model shallow_cnn: hidden must be of type int, got True'),
    ('resnet18', {'bn_epsilon': math.inf}, r'bn_epsilon must be a finite number, got inf'),
    ('lenet5', {'num_classes': 'ten'}, r'num_classes'),
    ('lenet5', {'kernel_init': 'normal("a")'}, r'initialiser'),
])
def test_what_makes_no_network_is_reported_in_one_line(name, fields, line):
    with pytest.raises(UserError, match=line) as error:
        models.create(name, **fields)
    assert '\n' not in str(error.value)


def test_widths_may_be_a_list_as_json_has_them():
    assert create('shallow_cnn', widths=[1, 2, 3, 4]).widths == (1, 2, 3, 4)
    assert create('vgg16_bn', stages=[[4, 4], [8]]).stages == ((4, 4), (8,))


def test_an_image_too_small_to_halve_four_times_is_reported():
    assert shapes(create('shallow_cnn'), 16, 17, 1)
    with pytest.raises(UserError, match=r'ShallowCNN needs images of at least 16 x 16 pixels, got 15 x 16'):
        shapes(create('shallow_cnn'), 15, 16, 1)


@pytest.mark.parametrize('fields', [
    dict(), dict(strides=2, padding=1), dict(strides=None, padding='VALID', feature_group_count=2),
    dict(kernel_dilation=2, padding=[(1, 0), (0, 2)], use_bias=False),
    dict(input_dilation=(2, 1), padding=((1, 1), (2, 0))),
    dict(mask=np.tri(3, dtype=np.float32)[:, :, None, None] * np.ones((4, 6), np.float32)),
    dict(bias_init=nn.initializers.normal(), param_dtype=jnp.bfloat16, dtype=jnp.float32)],
    ids=lambda fields: ' '.join(fields) or 'plain')
def test_the_convolution_is_that_of_flax(fields):
    @once
    def run(x):
        modules = [convolution(6, (3, 3), **fields) for convolution in (Conv, nn.Conv)]
        variables = [module.init(jax.random.key(1), x) for module in modules]

        def loss(v, module):
            y = module.apply(v, x)
            return (y ** 2).sum(), y
        return variables, [jax.grad(loss, has_aux=True)(variables[1], module) for module in modules]
    variables, ((gradient, output), (flax_gradient, flax_output)) = run(
        np.random.default_rng(0).normal(size=(3, 7, 6, 4)).astype(np.float32))
    chex.assert_trees_all_equal(*variables)
    chex.assert_trees_all_close(output, flax_output, atol=2e-6)
    rtol = 1e-2 if 'param_dtype' in fields else 1e-4
    chex.assert_trees_all_close(gradient, flax_gradient, rtol=rtol, atol=1e-4)
