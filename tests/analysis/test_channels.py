"""Channels that are removed together, and networks without them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import models
from jaxcnn.analysis import channels, complexity
from jaxcnn.training import channel_pruning

NETWORKS = {
    'basic': ('resnet18', (16, 16, 3), dict(blocks=(1, 1), width=8, stem='small')),
    'zero-padded shortcuts': ('resnet20_cifar', (8, 8, 3), dict(blocks=(1, 1), width=4)),
    'groups': ('resnext50_32x4d', (16, 16, 3), dict(blocks=(1,), width=8, groups=2, group_width=4)),
    'depthwise': ('sequential', (8, 8, 3), dict(
        layers='conv(8)|norm|relu|conv(16,groups=8)|norm|relu|conv(6,1)|norm|relu|global_avg_pool|dense')),
    'flattened': ('vgg11_bn', (8, 8, 3), dict(stages=((4, 6), (8,)), hidden=12, dropout=0.0)),
}
SLOW = {
    'mobilenet_v1': ('mobilenet_v1', (32, 32, 3), dict(multiplier=0.125)),
    'mobilenet_v2': ('mobilenet_v2', (16, 16, 3), dict(blocks=(1, 2, 1, 1, 1, 1, 1), multiplier=0.2, stem='small')),
    'concatenation': ('googlenet_bn', (32, 32, 3), dict(blocks=(1, 1, 1), multiplier=0.15)),
    'pre-activation': ('preresnet50', (16, 16, 3), dict(blocks=(1, 1), width=4)),
    'imagenet stem': ('resnet50', (32, 32, 3), dict(blocks=(1, 1), width=4)),
}


AUXILIARY = 'only auxiliary classifiers have them'


def random_variables(network, shape):
    """Return variables with random BatchNorm parameters and statistics."""
    images = jnp.zeros((1, *shape))
    variables = jax.jit(network.init)(jax.random.key(0), images)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.uniform(0.5, 1.5, x.shape).astype('f') if x.ndim == 1 else np.asarray(x), variables)


@pytest.mark.parametrize(('name', 'shape', 'fields'), [
    *(pytest.param(*case, id=name) for name, case in NETWORKS.items()),
    *(pytest.param(*case, id=name, marks=pytest.mark.slow) for name, case in SLOW.items())])
def test_channels_that_give_zeros_can_be_removed(name, shape, fields):
    network = models.create(name, conv_implementation='xla', **fields)
    variables = random_variables(network, shape)
    coupling = channels.couple(network, variables, shape)
    assert set(coupling.reasons.values()) - {AUXILIARY} == {'its features are the outputs of the network'}
    rng = np.random.default_rng(1)
    removed = rng.random(coupling.num_units) < 0.4
    for units in coupling.axes.values():  # one channel of each layer remains
        removed[units[units >= 0][0]] = False
    silenced = jax.tree.map(np.array, variables)
    for (path, axis), units in coupling.axes.items():
        collection, layer, leaf = path.split('/')
        if leaf in ('scale', 'bias') or (layer.startswith('Dense') and axis == 1):
            silenced[collection][layer][leaf][..., (units >= 0) & removed[units]] = 0
    narrow = models.create(name, conv_implementation='xla', **fields, layer_widths=coupling.widths(removed))
    images = np.random.default_rng(2).normal(size=(2, *shape)).astype(np.float32)
    apply = jax.jit(lambda network, variables: network.apply(variables, images), static_argnums=0)
    expected, result = apply(network, silenced), apply(narrow, coupling.narrow(silenced, removed))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
    assert not np.allclose(apply(network, variables), expected, rtol=1e-2)
    for removal, cost in ((np.zeros_like(removed), complexity.cost(network, shape, optimizers=())),
                          (removed, complexity.cost(narrow, shape, optimizers=()))):
        assert coupling.multiply_adds(removal) == cost.multiply_adds
        assert channel_pruning._quantity(coupling, variables, 'parameters')(removal) == cost.parameters


def test_auxiliary_classifiers_lose_inputs_only():
    class Auxiliary(models.Network):
        def forward(self, x, train, maps):
            x = nn.relu(self.conv(4, 3)(x)).mean((1, 2))
            logits = self.dense(self.num_classes)(x)
            auxiliary = self.dense(self.num_classes)(self.dense(5)(x)) if train or self.is_initializing() else None
            return (logits, auxiliary) if train else logits
    network, shape = Auxiliary(), (8, 8, 3)
    variables = random_variables(network, shape)
    coupling = channels.couple(network, variables, shape)
    assert (coupling.layers, coupling.reasons['Dense_2']) == (('Conv_0',), AUXILIARY)
    removed = np.array([True, False, False, True])
    assert coupling.narrow(variables, removed)['params']['Dense_2']['kernel'].shape == (2, 5)
    cost = complexity.cost(network.clone(layer_widths={'Conv_0': 2}), shape, optimizers=())
    assert channel_pruning._quantity(coupling, variables, 'parameters')(removed) == cost.parameters


def test_groups_of_several_channels_stay_where_each_has_one_feature():
    fields = dict(layers='conv(16)|relu|conv(8,groups=8)|relu|global_avg_pool|dense')
    shapes = [jax.eval_shape(models.create('sequential', **fields, layer_widths=widths).init, jax.random.key(0),
                             jnp.zeros((1, 8, 8, 3))) for widths in ({}, {'Conv_0': 16, 'Conv_1': 8})]
    assert shapes[0] == shapes[1]


def test_layers_whose_channels_are_mixed_stay():
    network = models.create('sequential', layers='conv(4)|relu|lrn|conv(5,1)|relu|global_avg_pool|dense')
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    coupling = channels.couple(network, jax.eval_shape(network.init, jax.random.key(0), images), (8, 8, 3))
    assert coupling.layers == ('Conv_1',)
    assert 'sliced by their index' in coupling.reasons['Conv_0']
    assert {key: units.tolist() for key, units in coupling.axes.items()} == {
        ('params/Conv_1/bias', 0): [0, 1, 2, 3, 4], ('params/Conv_1/kernel', 3): [0, 1, 2, 3, 4],
        ('params/Dense_0/kernel', 0): [0, 1, 2, 3, 4]}
