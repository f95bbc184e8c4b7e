"""The cost of networks, compared with published values, counts by hand, and XLA's analysis of the compiled step."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from jaxcnn import models
from jaxcnn.analysis import figures
from jaxcnn.analysis.complexity import cost
from jaxcnn.errors import UserError
from jaxcnn.losses import cross_entropy
from jaxcnn.models.network import Network
from jaxcnn.ops.pool import avg_pool, max_pool
from jaxcnn.training.state import run_once


def layers(network, *shape, batch=2):
    return {layer.name: layer for layer in cost(network, shape, batch, ()).layers}


def network_of(forward):
    """Return a network that computes `forward(self, x)`."""
    class FromFunction(Network):
        def forward(self, x, train, maps):
            return forward(self, x)
    return FromFunction()


# ---- receptive fields


def test_alexnet_equals_the_published_table():
    """The table is that of Dang Ha The Hien 2017, in which the first pixel has the centre 0.5."""
    first_ten = list(layers(models.create('alexnet', 1000), 227, 227, 3).values())[:10]
    assert [layer.name for layer in first_ten] == [
        'Conv_0', 'max_pool_0', 'Conv_1', 'max_pool_1', 'Conv_2', 'Conv_3', 'Conv_4', 'max_pool_2', 'Dense_0', 'Dense_1']
    assert [layer.shape[:-1] for layer in first_ten] == [(n, n) for n in (55, 27, 27, 13, 13, 13, 13, 6)] + [(), ()]
    assert [layer.field for layer in first_ten] == [(n, n) for n in (11, 19, 51, 67, 99, 131, 163, 195, 355, 355)]
    assert [layer.jump for layer in first_ten] == [(n, n) for n in (4, 8, 8, 16, 16, 16, 16, 32, 32, 32)]
    assert [layer.start for layer in first_ten] == [
        (n, n) for n in (5.5, 9.5, 9.5, 17.5, 17.5, 17.5, 17.5, 33.5, 113.5, 113.5)]
    assert [layer.padding and layer.padding[0] for layer in first_ten] == [
        (n, n) for n in (0, 0, 2, 0, 1, 1, 1, 0)] + [None, None]


WINDOWS = {
    'max_pool': lambda x: max_pool(x, 3, 2, padding=1),
    'max_pool, windows apart': lambda x: max_pool(x, 2),
    'avg_pool, ceil': lambda x: avg_pool(x, 3, 2, ceil=True),
    'avg_pool, without its padding': lambda x: avg_pool(x, 3, 1, padding=1, count_padding=False),
    'reduce_window': lambda x: nn.avg_pool(x, (3, 2), (2, 1), ((1, 0), (0, 1))),
    'every other pixel': lambda x: x[:, 1::2, ::3],
    'merged and split': lambda x: max_pool(x.reshape(len(x), -1, x.shape[-1]).reshape(x.shape), 3, 1),
    'concatenated': lambda x: jnp.concatenate([x[:, 1:-1, 1:-1], max_pool(x, 3, 1)], -1),
    'space to depth': lambda x: x.reshape(len(x), 6, 2, 6, 2, -1).swapaxes(2, 3).reshape(len(x), 6, 6, -1),
    'mean over rows': lambda x: jnp.broadcast_to(x.mean(1, keepdims=True), x.shape)[:, :1],
}


@pytest.mark.parametrize('kind', WINDOWS)
def test_receptive_field_equals_the_support_of_the_gradient(kind):
    """The gradient of one output pixel by the images is nonzero exactly in its receptive field."""
    def forward(self, x):
        x = self.conv(2, (3, 2), padding=((1, 1), (1, 0)))(x)
        x = WINDOWS[kind](x)
        x = jnp.pad(x, ((0, 0), (2, 2), (0, 2), (0, 0)))
        return self.conv(2, 2, padding='VALID')(x)
    network = network_of(forward).clone(conv_implementation='xla')
    # a maximum passes the gradient to one pixel, which differs between images
    images = np.random.default_rng(0).uniform(1, 2, (40, 12, 12, 1)).astype(np.float32)
    last = layers(network, 12, 12, 1)['Conv_1']
    no_rows = kind == 'mean over rows'
    position = (2 if no_rows else 3, 1)

    @functools.partial(jax.jit, compiler_options=run_once())
    def gradient(images):
        variables = network.init(jax.random.key(0), images)
        return jax.grad(lambda x: network.apply(variables, x)[:, *position].sum())(images)
    reached = np.any(np.asarray(gradient(images)) != 0, (0, 3))
    for axis in (0, 1):
        pixels = reached.any(1 - axis).nonzero()[0]
        steps = 0 if no_rows and axis == 0 else position[axis]
        low = last.start[axis] - last.field[axis] / 2 + steps * last.jump[axis]
        expected = max(0, low), min(12, low + last.field[axis])
        assert (pixels[0], pixels[-1] + 1) == expected


def test_receptive_field_of_a_mean_is_bounded_and_of_its_product_with_the_map_is_not():
    def gated(self, x):
        x = self.conv(4, 3)(x)
        mean = self.dense(4)(x.mean((1, 2)))
        return self.conv(4, 1)(x * nn.sigmoid(mean)[:, None, None])
    by_name = layers(network_of(gated), 8, 8, 3)
    assert by_name['Conv_0'].field == (3, 3)
    assert by_name['mean_0'].field == by_name['Dense_0'].field == (10, 10)
    assert by_name['mean_0'].start == (4.0, 4.0)
    assert by_name['Conv_1'].field == by_name['Conv_1'].start == (None, None)
    assert by_name['Conv_1'].jump == (1, 1)


# ---- counts


def test_multiply_adds_by_hand():
    total = cost(models.create('lenet5'), (32, 32, 1), 3)
    by_layer = {layer.name: layer.multiply_adds for layer in total.layers if layer.multiply_adds}
    assert by_layer == {'Conv_0': 28 * 28 * 25 * 6, 'Conv_1': 10 * 10 * 25 * 6 * 16, 'Dense_0': 400 * 120,
                        'Dense_1': 120 * 84, 'Dense_2': 84 * 10}
    assert total.multiply_adds == sum(by_layer.values())
    grouped = layers(network_of(lambda self, x: self.conv(8, 3, feature_group_count=4)(x)), 5, 5, 4)
    assert grouped['Conv_0'].multiply_adds == 5 * 5 * 9 * 8


@pytest.mark.parametrize(('name', 'millions'), [('resnet18', 1814), ('mobilenet_v1', 569), ('vgg16', 15470)])
def test_published_multiply_adds(name, millions):
    assert round(cost(models.create(name, 1000), (224, 224, 3), 1, ()).multiply_adds / 1e6) == millions


SMALL = {
    'lenet5': ({}, (32, 32, 1)), 'shallow_cnn': ({'widths': (8, 8, 16, 16), 'hidden': 32}, (32, 32, 3)),
    'resnet18': ({'blocks': (1, 1), 'width': 16, 'stem': 'small'}, (32, 32, 3)),
    'vgg11': ({'stages': ((16,), (32,)), 'hidden': 64}, (32, 32, 3)),
    't2t_vit_14': ({'depth': 1, 'embed': 96, 'heads': 2}, (64, 64, 3)),
}


@pytest.mark.parametrize('name', SMALL)
def test_multiply_adds_are_near_those_of_xla(name):
    fields, shape = SMALL[name]
    network = models.create(name, conv_implementation='xla', **fields)
    if name == 'lenet5':  # XLA counts the arithmetic of tanh, too
        network = network.clone(activation='relu')
    images = jax.ShapeDtypeStruct((4, *shape), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    flops = jax.jit(network.apply).lower(variables, images).cost_analysis()['flops']  # not available on GPUs
    assert 0.8 < flops / 2 / 4 / cost(network, shape, 4, ()).multiply_adds < 1.15


@pytest.mark.parametrize('name', ['lenet5', 'resnet18', pytest.param('vgg11', marks=pytest.mark.slow)])
def test_training_memory_is_near_that_of_xla(name):
    fields, shape = SMALL[name]
    network = models.create(name, **fields)
    estimate = cost(network, shape, 32, ['momentum']).training_memory['momentum']
    images, labels = jax.ShapeDtypeStruct((32, *shape), jnp.float32), jax.ShapeDtypeStruct((32,), jnp.int32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    params, stats = variables['params'], variables.get('batch_stats', {})
    optimizer = optax.sgd(0.1, 0.9)

    def step(params, stats, state, images, labels):
        def loss(params):
            logits, new = network.apply({'params': params, 'batch_stats': stats}, images, train=True,
                                        mutable=['batch_stats'], rngs={'dropout': jax.random.key(0)})
            return cross_entropy(logits, labels, 0.0).mean(), new.get('batch_stats', stats)
        (_, stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), stats, state
    lowered = jax.jit(step, donate_argnums=(0, 1, 2)).lower(
        params, stats, jax.eval_shape(optimizer.init, params), images, labels)
    memory = lowered.compile().memory_analysis()
    measured = (memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
                + memory.temp_size_in_bytes)
    assert 0.65 < measured / estimate < 1.5


def test_training_memory_is_a_sum():
    total = cost(models.create('lenet5'), (32, 32, 1), 8, ['sgd', 'momentum', 'adam', 'rmsprop'])
    weights, images = 4 * 61_706, 4 * 8 * 32 * 32
    assert total.training_memory['sgd'] == 2 * weights + total.activation_memory + images + total.optimizer_memory['sgd']
    moments = {name: round(memory / weights) for name, memory in total.optimizer_memory.items()}
    assert moments == {'sgd': 0, 'momentum': 1, 'adam': 2, 'rmsprop': 1}


def test_activation_memory_by_hand_with_remat_and_in_half_precision():
    """The inputs of all layers are stored, those of BatchNorm included, but the images are in memory anyway."""
    def plain(self, x):
        for _ in range(3):
            x = nn.relu(self.conv(4, 3)(x))
        return self.dense(10)(x.reshape(len(x), -1))
    assert cost(network_of(plain), (8, 8, 3), 2, ()).activation_memory == 3 * 2 * 8 * 8 * 4 * 4
    normed = network_of(lambda self, x: self.conv(4, 3)(self.conv_norm(x, True, 4, 3)))
    assert cost(normed, (8, 8, 3), 2, ()).activation_memory == pytest.approx(2 * 2 * 8 * 8 * 4 * 4, abs=100)
    fields = {'blocks': (3, 3), 'width': 8}
    full, remat, half = (cost(models.create('resnet18', **fields, **more), (64, 64, 3), 8, ()).activation_memory
                         for more in ({}, {'remat': True}, {'dtype': 'bfloat16'}))
    assert remat < 0.8 * full
    assert 0.45 < half / full < 0.8


@pytest.mark.parametrize(('name', 'fields'), [
    ('googlenet', {'blocks': (1, 4, 1)}), ('inception_v3', {'blocks': (1, 1, 1)}), ('resnet50', {'blocks': (2, 2)}),
    ('t2t_vit_14', {'depth': 2}), ('nin_imagenet', {})])
def test_layers_contain_all_parameters_except_those_of_auxiliary_classifiers(name, fields):
    network = models.create(name, 1000, conv_implementation='xla', **fields)
    total = cost(network, (128, 128, 3), 1, ())
    variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 128, 128, 3)))
    assert total.parameters + total.auxiliary_parameters == sum(x.size for x in jax.tree.leaves(variables['params']))
    assert bool(total.auxiliary_parameters) == (getattr(network, 'aux_weight', 0) > 0)
    assert sum(layer.multiply_adds for layer in total.layers) == total.multiply_adds


@pytest.mark.parametrize(('shape', 'batch', 'optimizer', 'message'), [
    ((8, 8, 3), 2, 'sgd', '16 x 16'), ((0, 32, 3), 2, 'sgd', 'image size'), ((32, 32, 3), -1, 'sgd', 'batch size'),
    ((32, 32, 3), 2, 'adm', "'adm'; nearest"), ((32, 32, 3), 2, 'sgd(0.9)', 'need names')])
def test_invalid_arguments_are_refused(shape, batch, optimizer, message):
    with pytest.raises(UserError, match=re.escape(message)):
        cost(models.create('shallow_cnn'), shape, batch, [optimizer])


def test_cost_scatter_writes_an_image(tmp_path):
    costs = {name: cost(models.create(name), (32, 32, 1), 1, ()) for name in ('lenet5', 'lenet_mnist')}
    figures.cost_scatter(costs, str(tmp_path / 'zoo.png'))
    with Image.open(tmp_path / 'zoo.png') as image:
        assert min(image.size) > 600
        assert np.asarray(image.convert('RGB')).std() > 5
