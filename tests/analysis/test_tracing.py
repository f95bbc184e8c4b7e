"""Changes of a traced network, on networks whose answer is known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import models
from jaxcnn.analysis import tracing
from jaxcnn.errors import UserError
from jaxcnn.ops.pool import max_pool


@pytest.fixture(scope='module')
def network_and_variables():
    network = models.create('resnet20_cifar', 3, width=4, blocks=(1, 1, 1))
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    return network, jax.jit(network.init)(jax.random.key(1), images), images


def test_the_parts_before_and_after_a_map_are_the_network(network_and_variables):
    network, variables, images = network_and_variables
    logits, maps = network.apply(variables, images, features=True)
    assert list(tracing.map_shapes(network, variables, (16, 16, 3))) == list(maps) == ['stem', 'stage1', 'stage2', 'stage3']
    for name, feature_map in maps.items():
        before, after = tracing.split_at(network, variables, images, name)
        np.testing.assert_allclose(before(images), feature_map, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(after(images, feature_map), logits, rtol=1e-5, atol=1e-5)
        assert abs(after(images, 0 * feature_map) - logits).max() > 0.01


def test_wrong_maps_name_the_nearest(network_and_variables):
    network, variables, images = network_and_variables
    with pytest.raises(UserError, match="unknown feature map 'stage9'; nearest: stage"):
        tracing.split_at(network, variables, images, 'stage9')


def test_relu_gradients_are_those_of_the_papers():
    weights = jnp.asarray([1.0, -1.0, 2.0, -2.0])
    x = jnp.asarray([3.0, 4.0, -5.0, -6.0])

    def gradient(rule):
        return jax.grad(tracing.with_relu_gradient(lambda x: (weights * jax.nn.relu(x)).sum(), x, rule))(x)
    np.testing.assert_array_equal(gradient('guided'), [1, 0, 0, 0])
    np.testing.assert_array_equal(gradient('deconvnet'), [1, 0, 2, 0])
    with pytest.raises(UserError, match='the network has none'):
        tracing.with_relu_gradient(jnp.tanh, x, 'guided')
    clipped = tracing.with_relu_gradient(lambda x: jnp.maximum(jax.nn.relu(x), 3.5).sum(), x, 'guided')
    np.testing.assert_array_equal(jax.grad(clipped)(x), [0, 1, 0, 0])
    with pytest.raises(UserError, match=r'does not reach a ReLU or a pooling in a loop or a condition \(scan\)'):
        tracing.with_relu_gradient(lambda x: jax.lax.scan(lambda c, _: (jax.nn.relu(c), None), x, length=2)[0], x, 'guided')


def test_unpooling_puts_a_value_at_the_switch_of_its_window():
    x = jax.random.normal(jax.random.key(0), (1, 6, 6, 2)).at[0, :2, :2, 0].set(7)  # four equal values in a window
    pooled = max_pool(x, 2)
    unpool = jax.vjp(tracing.with_relu_gradient(lambda x: max_pool(jax.nn.relu(x), 2), x, 'deconvnet'), x)[1]
    unpooled, = unpool(jnp.abs(pooled))
    np.testing.assert_array_equal(max_pool(unpooled, 2), jnp.abs(pooled))
    assert (unpooled != 0).sum() <= pooled.size


@pytest.mark.parametrize('fields', [{'remat': True}, {'conv_implementation': 'xla'}])
def test_the_gradient_rules_reach_relus_within_blocks_and_normalisation(fields):
    network = models.create('sequential', 3, layers='conv(4)|norm|relu|conv(4)|norm|relu|global_avg_pool|dense', **fields)
    images = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
    variables = jax.jit(network.init)(jax.random.key(1), images)

    def score(x):
        return network.apply(variables, x)[:, 0].sum()
    guided = jax.grad(tracing.with_relu_gradient(score, images, 'guided'))(images)
    assert abs(guided - jax.grad(score)(images)).max() > 1e-4
