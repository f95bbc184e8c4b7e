"""Every registered network, and the parts that they share."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from jaxcnn import models
from jaxcnn.errors import UserError
from jaxcnn.losses import cross_entropy
from jaxcnn.models.layers import ACTIVATIONS, INITIALIZERS, activation, initializer

# fields that keep a network small here, where its published size would take long
SMALL = {
    'shallow_cnn': {'widths': (4, 4, 8, 8), 'hidden': 16},
    'resnet18': {'blocks': (1, 1), 'width': 8},
    'resnet50': {'blocks': (1, 1), 'width': 8},
    'resnext50_32x4d': {'blocks': (1, 1), 'width': 8, 'groups': 2, 'group_width': 4},
    'mobilenet_v1': {'multiplier': 0.25},
    'vgg16_bn': {'stages': ((4,), (8,)), 'hidden': 16},
}
SIZE = 32


def create(name, **fields):
    return models.create(name, **{**SMALL.get(name, {}), **fields})


def shapes(network, *shape):
    """Shapes of the variables, without computing them."""
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


def batch(count=8):
    rng = np.random.default_rng(0)
    return jnp.float32(rng.normal(size=(count, SIZE, SIZE, 3))), jnp.asarray(rng.integers(0, 10, count))


def logits_of(output):
    """Without the heads that train alone."""
    return output[0] if isinstance(output, tuple) else output


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


@pytest.mark.parametrize(('name', 'fields', 'size', 'parameters'), [
    ('resnet18', {}, 224, 11_689_512), ('resnet50', {}, 224, 25_557_032), ('resnext50_32x4d', {}, 224, 25_028_904),
    ('mobilenet_v1', {}, 224, 4_231_976), ('vgg16_bn', {}, 224, 138_365_992),
    ('resnet18', {'stem': 'small', 'num_classes': 200}, 64, 11_271_432),
    ('resnet50', {'stem': 'small', 'num_classes': 200}, 64, 23_910_152),
    ('resnext50_32x4d', {'stem': 'small', 'num_classes': 200}, 64, 23_382_024)])
def test_parameters_are_as_many_as_published(name, fields, size, parameters):
    assert count(shapes(models.create(name, **{'num_classes': 1000, **fields}), size, size, 3)['params']) == parameters


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


@pytest.fixture(scope='module', params=models.names())
def name(request):
    return request.param


@pytest.mark.parametrize(('size', 'channels', 'classes'), [((32, 32), 3, 10), ((28, 28), 1, 7), ((40, 33), 4, 100)])
def test_logits_are_one_for_each_class_whatever_the_image(name, size, channels, classes):
    network = create(name, num_classes=classes)
    variables = shapes(network, *size, channels)
    images = jax.ShapeDtypeStruct((3, *size, channels), jnp.float32)
    logits = jax.eval_shape(network.apply, variables, images)
    assert (logits.shape, logits.dtype) == ((3, classes), jnp.float32)


def test_a_step_of_gradient_descent_lowers_the_loss_and_moves_every_parameter(name):
    network = create(name, dropout=0.0)
    variables = drawn(network)
    images, labels = batch()

    @jax.jit
    def loss_and_gradient(params):
        def loss(params):
            output, _ = network.apply({**variables, 'params': params}, images, train=True, mutable=['batch_stats'])
            return cross_entropy(logits_of(output), labels).mean()
        return jax.value_and_grad(loss)(params)

    params = jax.tree.map(np.asarray, variables['params'])
    before, grads = jax.tree.map(np.asarray, loss_and_gradient(params))
    length = math.sqrt(sum(float((g ** 2).sum()) for g in jax.tree.leaves(grads)))
    after, _ = loss_and_gradient(jax.tree.map(lambda p, g: p - np.float32(1e-4 / length) * g, params, grads))
    assert np.isfinite(before)
    assert after < before
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all(), path
        assert np.any(grad != 0), path


def test_training_changes_statistics_only_where_there_are_any(name):
    network = create(name, dropout=0.0)
    variables = drawn(network)
    images, _ = batch()
    output, updates = jax.jit(lambda v, x: network.apply(v, x, train=True, mutable=['batch_stats']))(variables, images)
    evaluated, unchanged = jax.jit(lambda v, x: network.apply(v, x, train=False, mutable=['batch_stats']))(variables, images)
    old, new = (jax.tree.leaves(v.get('batch_stats', {})) for v in (variables, updates))
    assert len(old) == len(new)
    assert all(np.any(a != b) for a, b in zip(old, new, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(old, jax.tree.leaves(unchanged), strict=True))
    assert np.allclose(logits_of(output), evaluated, rtol=1e-5) == (not old)


def test_frozen_statistics_are_used_and_left_alone_in_training(name):
    network = create(name, dropout=0.0, bn_frozen=True)
    variables = drawn(network)
    images, _ = batch()
    (output, updates), evaluated = jax.jit(lambda v, x: (
        network.apply(v, x, train=True, mutable=['batch_stats']), network.apply(v, x)))(variables, images)
    np.testing.assert_allclose(logits_of(output), evaluated, rtol=1e-5, atol=1e-6)
    for a, b in zip(*(jax.tree.leaves(v.get('batch_stats', {})) for v in (variables, updates)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bfloat16_is_near_float32_and_keeps_parameters_in_float32(name):
    exact, half = create(name), create(name, dtype='bfloat16')
    variables = drawn(exact)
    images, _ = batch()
    a, b = jax.jit(lambda v, x: (exact.apply(v, x), half.apply(v, x)))(variables, images)
    assert b.dtype == jnp.bfloat16
    assert 0 < np.linalg.norm(a - np.float32(b)) < 0.05 * np.linalg.norm(a)
    assert {x.dtype for x in jax.tree.leaves(shapes(half, SIZE, SIZE, 3))} == {jnp.dtype('float32')}


def test_the_type_of_parameters_is_a_field_of_its_own_and_leaves_statistics_alone(name):
    variables = shapes(create(name, param_dtype='bfloat16'), SIZE, SIZE, 3)
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        norm = 'BatchNorm' in jax.tree_util.keystr(path)
        assert leaf.dtype == (jnp.float32 if norm else jnp.bfloat16), path


def test_dropout_draws_in_training_alone(name):
    network = create(name, dropout=0.5)
    variables = drawn(network)
    images, _ = batch()

    @jax.jit
    def run(v, x):
        trained = [network.apply(v, x, train=True, rngs={'dropout': jax.random.key(k)}, mutable=['batch_stats'])[0]
                   for k in (1, 1, 2)]
        return [logits_of(output) for output in trained], [network.apply(v, x) for _ in range(2)]

    trained, evaluated = run(variables, images)
    np.testing.assert_array_equal(trained[0], trained[1])
    assert np.abs(trained[0] - trained[2]).max() > 1e-3
    np.testing.assert_array_equal(*evaluated)


# ---- activations


def elu(x):
    return np.where(x > 0, x, np.expm1(x))


def gelu(x):  # Hendrycks & Gimpel 2016, with their tanh
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))


FORMS = {
    'relu': lambda x: np.maximum(x, 0), 'leaky_relu': lambda x: np.where(x > 0, x, 0.01 * x), 'elu': elu,
    'relu6': lambda x: np.clip(x, 0, 6), 'swish': lambda x: x * expit(x), 'tanh': np.tanh, 'sigmoid': expit, 'gelu': gelu,
}


@pytest.mark.parametrize('name', ACTIVATIONS)
def test_an_activation_is_its_closed_form(name):
    x = np.linspace(-9, 9, 73)
    np.testing.assert_allclose(activation(name)(jnp.float32(x)), FORMS[name](x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('model', ['lenet5', 'shallow_cnn'])
def test_every_activation_makes_a_network_of_its_own(model):
    networks = [create(model, activation=name) for name in ACTIVATIONS]
    variables = drawn(networks[0])
    logits = jax.jit(lambda v, x: [network.apply(v, x) for network in networks])(variables, 100 * batch(2)[0])
    assert np.isfinite(logits).all()
    for i, j in np.ndindex(len(logits), len(logits)):
        assert i == j or np.abs(logits[i] - logits[j]).max() > 1e-5


# ---- initialisers

FAN_IN, FAN_OUT = 3 * 3 * 40, 3 * 3 * 80
# the variance left of a normal cut off at two deviations: 1 - 2 * 2 * density(2) / (probability within)
CUT = 1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))
VARIANCES = {
    'he_normal': 2 / FAN_IN, 'he_uniform': 2 / FAN_IN, 'xavier_normal': 2 / (FAN_IN + FAN_OUT),
    'xavier_uniform': 2 / (FAN_IN + FAN_OUT), 'glorot_normal': 2 / (FAN_IN + FAN_OUT),
    'glorot_uniform': 2 / (FAN_IN + FAN_OUT), 'lecun_normal': 1 / FAN_IN, 'lecun_uniform': 1 / FAN_IN,
    'truncated_normal(0.1)': CUT * 0.1 ** 2, 'truncated_normal(std=0.02)': CUT * 0.02 ** 2, 'normal(0.1)': 0.1 ** 2,
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
    assert {text.partition('(')[0] for text in VARIANCES} == set(INITIALIZERS)


def test_every_kernel_is_drawn_as_named_and_every_bias_is_zero(name, monkeypatch):
    monkeypatch.setitem(INITIALIZERS, 'normal', lambda std: jax.nn.initializers.constant(std))
    network = create(name, kernel_init='normal(0.05)')
    params = jax.jit(network.init)(jax.random.key(0), batch(1)[0])['params']
    for path, values in jax.tree_util.tree_leaves_with_path(params):
        expected = {'kernel': 0.05, 'bias': 0, 'scale': 1}[path[-1].key]
        np.testing.assert_array_equal(values, np.float32(expected), err_msg=jax.tree_util.keystr(path))


# ---- what is refused


@pytest.mark.parametrize(('name', 'fields', 'line'), [
    ('lenet', {}, r"unknown model 'lenet'; nearest: .*lenet5"),
    ('xyz', {}, r"unknown model 'xyz'; known: .*shallow_cnn"),
    ('lenet5', {'drop_out': 0.5}, r"unknown field of model lenet5 'drop_out'; nearest: dropout"),
    ('lenet_mnist', {'activation': 'relu'}, r"unknown field of model lenet_mnist 'activation'"),
    ('lenet5', {'activation': 'rellu'}, r"unknown activation 'rellu'; nearest: relu"),
    ('shallow_cnn', {'activation': 'swisch'}, r"unknown activation 'swisch'; nearest: swish"),
    ('lenet5', {'kernel_init': 'he_norml'}, r"unknown initialiser 'he_norml'; nearest: he_normal"),
    ('lenet5', {'kernel_init': 'normal'}, r"initialiser normal.*missing.*'std'"),
    ('lenet5', {'kernel_init': 'normal(sdt=0.1)'}, r"unknown argument of initialiser normal 'sdt'; nearest: std"),
    ('lenet5', {'kernel_init': 'normal(open("x"))'}, r'initialiser: .* is not name or name'),
    ('lenet5', {'pool': 'mean'}, r"unknown pool 'mean'; nearest: max"),
    ('lenet5', {'dtype': 'bfloat'}, r"unknown dtype 'bfloat'; nearest: .*bfloat16"),
    ('lenet5', {'param_dtype': 'int8'}, r"unknown param_dtype 'int8'"),
    ('lenet5', {'dropout': 1.5}, r'dropout must be in \[0, 1\), got 1\.5'),
    ('lenet5', {'dropout': 1}, r'dropout must be in \[0, 1\), got 1'),
    ('lenet5', {'dropout': -0.1}, r'dropout must be in \[0, 1\), got -0\.1'),
    ('lenet5', {'dropout': '0.5'}, r"model lenet5: dropout must be a float, got '0\.5'"),
    ('shallow_cnn', {'bn_momentum': 1.0}, r'bn_momentum must be in \[0, 1\), got 1\.0'),
    ('shallow_cnn', {'widths': (1, 2, 3)}, r'widths four, got \(1, 2, 3\) and 512'),
    ('shallow_cnn', {'widths': (1, 2, 3, 0)}, r'widths and hidden must be positive'),
    ('shallow_cnn', {'widths': (1, 2, 3, 4.0)}, r'widths and hidden must be positive'),
    ('shallow_cnn', {'widths': 4}, r'model shallow_cnn: widths must be a tuple, got 4'),
    ('shallow_cnn', {'hidden': 0}, r'widths and hidden must be positive'),
    ('lenet5', {'conv_implementation': 'onednn2'}, r"unknown conv_implementation 'onednn2'; nearest: onednn"),
    ('resnet18', {'stem': 'smal'}, r"unknown stem 'smal'; nearest: small"),
    ('resnet18', {'groups': 2}, r'groups are for bottlenecks'),
    ('resnet50', {'groups': 3}, r'3 groups do not divide 64 features'),
    ('resnet50', {'blocks': (3, 0)}, r'blocks must be positive numbers, got \(3, 0\)'),
    ('vgg16_bn', {'stages': ((64, -1),)}, r'stages and hidden must be positive'),
    ('mobilenet_v1', {'multiplier': 0.01}, r'multiplier must leave at least one of 32 features, got 0\.01'),
    ('lenet5', {'num_classes': 0}, r'num_classes must be at least 1, got 0'),
    ('lenet5', {'num_classes': 'ten'}, r'num_classes'),
    ('lenet5', {'kernel_init': 'normal("a")'}, r'initialiser'),
])
def test_what_makes_no_network_is_told_in_one_line(name, fields, line):
    with pytest.raises(UserError, match=line) as error:
        models.create(name, **fields)
    assert '\n' not in str(error.value)


def test_widths_may_be_a_list_as_json_has_them():
    assert create('shallow_cnn', widths=[1, 2, 3, 4]).widths == (1, 2, 3, 4)
    assert create('vgg16_bn', stages=[[4, 4], [8]]).stages == ((4, 4), (8,))


def test_an_image_too_small_to_halve_four_times_is_told():
    assert shapes(create('shallow_cnn'), 16, 17, 1)
    with pytest.raises(UserError, match=r'ShallowCNN needs images of at least 16 x 16 pixels, got 15 x 16'):
        shapes(create('shallow_cnn'), 15, 16, 1)


# ---- PyTorch


def torch_network(torch, name):
    """The network written for PyTorch, with its layers in the order of the flax one's parameters."""
    nn = torch.nn

    class ChannelsLast(nn.Module):  # flattened as (H, W, C)
        def forward(self, x):
            return x.permute(0, 2, 3, 1).flatten(1)

    if name == 'lenet5':
        return nn.Sequential(
            nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2), ChannelsLast(),
            nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10)), (32, 32, 1)
    if name == 'lenet_mnist':
        return nn.Sequential(
            nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(),
            nn.MaxPool2d(2), ChannelsLast(), nn.Linear(3136, 512), nn.ReLU(), nn.Dropout(0.5),
            nn.Linear(512, 10)), (28, 28, 1)
    layers, widths = [], (3, 64, 128, 256, 256)
    for i, size in enumerate((7, 3, 3, 3)):
        layers += [nn.Conv2d(widths[i], widths[i + 1], size, padding=size // 2, bias=False),
                   nn.BatchNorm2d(widths[i + 1]), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, ChannelsLast(), nn.Linear(1024, 512), nn.ReLU(), nn.Dropout(0.5),
                         nn.Linear(512, 10)), (32, 32, 3)


@pytest.mark.torch
@pytest.mark.parametrize('name', ['lenet5', 'lenet_mnist', 'shallow_cnn'])
def test_logits_are_those_of_pytorch_with_the_same_weights(name):
    torch = pytest.importorskip('torch')
    theirs, shape = torch_network(torch, name)
    theirs.eval()
    ours = models.create(name)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(np.asarray, drawn(ours, *shape))
    numbers = {'Conv': 0, 'BatchNorm': 0, 'Dense': 0}
    for layer in theirs:
        kind = {torch.nn.Conv2d: 'Conv', torch.nn.BatchNorm2d: 'BatchNorm', torch.nn.Linear: 'Dense'}.get(type(layer))
        if kind is None:
            continue
        key = f'{kind}_{numbers[kind]}'
        numbers[kind] += 1
        values = {**variables['params'][key], **variables.get('batch_stats', {}).get(key, {})}
        weight = values.pop('scale') if kind == 'BatchNorm' else values.pop('kernel')
        order = {'Conv': (3, 2, 0, 1), 'BatchNorm': (0,), 'Dense': (1, 0)}[kind]
        state = {'weight': weight.transpose(order),
                 **{{'mean': 'running_mean', 'var': 'running_var'}.get(k, k): v for k, v in values.items()}}
        loaded = layer.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in state.items()}, strict=False)
        assert set(loaded.missing_keys) <= {'num_batches_tracked'}
        assert not loaded.unexpected_keys
    images = rng.normal(size=(4, *shape)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    logits = jax.jit(ours.apply)(variables, images)
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
