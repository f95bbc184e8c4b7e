"""Networks written as strings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import models
from jaxcnn.analysis.complexity import cost
from jaxcnn.config import parse_calls
from jaxcnn.errors import UserError
from jaxcnn.models.layers import ACTIVATIONS
from jaxcnn.models.network import Network
from jaxcnn.models.sequential_layers import LAYERS
from jaxcnn.ops.lrn import local_response_norm
from jaxcnn.ops.pool import avg_pool, max_pool
from jaxcnn.training.state import run_once


def sequential(layers, num_classes=10, **fields):
    return models.create('sequential', num_classes, layers=layers, **fields)


def shallow_layers(widths, hidden):
    convs = [f'conv({width}, {size}, use_bias=False)|norm|relu|max_pool(2)'
             for width, size in zip(widths, (7, 3, 3, 3), strict=True)]
    return '|'.join([*convs, 'flatten', f'dense({hidden})', 'relu', 'dropout(0.5)', 'dense'])


def test_a_known_network_as_a_string_is_that_network():
    """The variables have the same names; logits, feature maps and costs are equal."""
    fields = {'dtype': 'bfloat16', 'kernel_init': 'lecun_normal', 'conv_implementation': 'xla'}
    known = models.create('shallow_cnn', widths=(4, 6, 8, 8), hidden=16, **fields)
    network = sequential(shallow_layers((4, 6, 8, 8), 16), **fields)
    images = np.random.default_rng(0).normal(size=(4, 33, 32, 3)).astype(np.float32)

    def run(network):
        key, keys = jax.random.key(0), {'dropout': jax.random.key(1)}
        variables = network.init(key, images)
        return variables, network.apply(variables, images, train=True, features=True, rngs=keys, mutable=['batch_stats'])
    (variables, (expected, _)), (same_variables, (actual, _)) = jax.jit(
        lambda: (run(known), run(network)), compiler_options=run_once())()
    jax.tree.map(np.testing.assert_array_equal, same_variables, variables)
    assert set(actual[1]) == {'conv1', 'conv2', 'conv3', 'conv4'}
    jax.tree.map(np.testing.assert_array_equal, actual[1], expected[1])  # without the logits, whose dropout differs
    assert cost(network, (32, 32, 3), 4) == cost(known, (32, 32, 3), 4)
    assert network.min_image_size() == known.min_image_size() == 16


class EveryLayer(Network):
    """What the string in the test below stands for."""

    def forward(self, x, train, maps):
        x = self.conv(6, (3, 5), 2, ((1, 1), (2, 2)), use_bias=False)(x)
        x = local_response_norm(ACTIVATIONS['relu6'](self.norm(x, train)), 3, 0.1, 0.5, 1.0)
        x = maps['conv1'] = x
        x = max_pool(x, 3, 2, 1)
        x = maps['conv2'] = self.conv(4, 3, 1, ((2, 2), (2, 2)), kernel_dilation=2, feature_group_count=2)(x)
        x = avg_pool(x, 2, 1)
        x = maps['conv3'] = ACTIVATIONS['gelu'](self.conv(8, 3, 2, 'SAME')(x))
        x = maps['conv4'] = self.conv(8, 2, padding='VALID')(x)
        x = self.dense(5)(x.mean((1, 2)))
        return self.dense(self.num_classes)(ACTIVATIONS['tanh'](self.norm(x, train)))


def test_every_argument_has_its_effect():
    layers = ('conv(6, kernel=(3, 5), stride=2, use_bias=False) | norm | relu6 | lrn(3, 0.1, beta=0.5, k=1) | '
              'max_pool(3, stride=2, padding=1) | conv(4, dilation=2, groups=2) | avg_pool(2, 1) | '
              "conv(8, 3, 2, padding='same') | gelu | conv(8, 2, padding='valid') | global_avg_pool | dense(5) | norm | "
              'tanh | dropout(0) | dense')
    images = np.random.default_rng(0).normal(size=(3, 21, 22, 3)).astype(np.float32)

    def run(network):
        variables = network.init(jax.random.key(0), images)
        return variables, *network.apply(variables, images, features=True)
    actual, expected = jax.jit(lambda: (run(sequential(layers, 7)), run(EveryLayer(num_classes=7))),
                               compiler_options=run_once())()
    assert actual[1].shape == (3, 7)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize(('layers', 'smallest'), [
    ('conv(2, 5, padding=0)|max_pool(2)|conv(2, 4, 3, padding=1)|flatten|dense', 8),
    ('avg_pool(3, 2, 1)|conv(2, 2)|max_pool(4)|flatten|dense', 5), ('conv(2, padding=3)|max_pool(4, 3, 2)|flatten|dense', 1),
    ("conv(2, 3, padding='same', stride=2)|conv(2, (1, 4), padding='valid', dilation=2)|global_avg_pool|dense", 13)])
def test_the_smallest_image_is_the_smallest_for_which_no_layer_is_empty(layers, smallest):
    network = sequential(layers)
    assert network.min_image_size() == smallest
    sizes = []

    class Recorder(Network):
        """Applies the layers to images of every size, without the check."""

        def forward(self, x, train, maps):
            for name, args, kwargs in parse_calls(layers, ''):
                layer = LAYERS[name](*args, **kwargs)
                x = layer.apply(self, x, train)
                sizes.append(x.size)
            return x
    for side in {smallest, max(smallest - 1, 1)}:
        sizes.clear()
        try:
            jax.eval_shape(lambda side=side: Recorder(conv_implementation='xla').init_with_output(
                jax.random.key(0), jnp.zeros((1, side, side, 4))))
        except (ValueError, TypeError, ZeroDivisionError):
            sizes.append(0)
        assert (min(sizes) > 0) == (side == smallest), (side, sizes)


@pytest.mark.parametrize(('layers', 'line'), [
    (' ', r"the string is empty; a network is, for example, 'conv\(32\)\|relu\|flatten\|dense'"),
    ('conv(8)||dense', r"'' is not a name, or name\(value.*; several are separated by '\|'"),
    ('conv(8)|max_pol(2)|flatten|dense', r"layer 2: unknown layer 'max_pol'; nearest: max_pool"),
    ('conv|flatten|dense', r"layer 1, conv: missing a required argument: 'features'; it takes \(features, kernel, "),
    ('conv(8, kernal=3)|flatten|dense', r"layer 1, conv\(8, kernal=3\) 'kernal'; nearest: kernel"),
    ('conv("8")|flatten|dense', r"layer 1, conv\(\"8\"\): conv\.features: expected a whole number of at least 1, got '8'$"),
    ('conv(8, 0)|flatten|dense', r'conv\.kernel: expected a whole number of at least 1, got 0$'),
    ('conv(8, (3, 0))|flatten|dense', r'conv\.kernel\[1\]: expected a whole number of at least 1, got 0$'),
    ('conv(8, (3, 3, 3))|flatten|dense', r'conv\.kernel: expected a whole number or \(height, width\), got \(3, 3, 3\)$'),
    ('conv(8, stride=True)|flatten|dense', r'conv\.stride: expected a whole number of at least 1, got True$'),
    ('conv(8, padding="sme")|flatten|dense', r"unknown padding of conv 'sme'; nearest: same"),
    ('conv(8, padding=-1)|flatten|dense', r'conv\.padding: expected a whole number of at least 0, got -1$'),
    ('conv(8, use_bias=1)|flatten|dense', r'conv\.use_bias: expected True or False, got 1$'),
    ('conv(8, groups=3)|flatten|dense', r'layer 1, .*3 groups do not divide 8 features'),
    ('conv(8)|conv(6, groups=3)|flatten|dense', r'layer 2, .*3 groups do not divide the channels of its input, 8'),
    ('max_pool(2, padding=2)|flatten|dense', r'max_pool\.padding: expected at most half the size of 2, got 2$'),
    ('flatten|dropout(1)|dense', r'layer 2, dropout\(1\): dropout\.rate: expected a number below 1, got 1'),
    ('lrn(beta="a")|flatten|dense', r"lrn\.beta: expected a number of at least 0, got 'a'$"),
    ('flatten|relu|conv(8)|dense', r'layer 3, conv\(8\): it needs a feature map, and its input is a vector; move it before'),
    ('global_avg_pool|max_pool(2)|dense', r'layer 2, max_pool\(2\): it needs a feature map'),
    ('conv(8)|relu|dense', r'layer 3, dense: its input is a feature map; put flatten or global_avg_pool before it'),
    ('flatten|dense|dense', r'layer 2, dense: it needs a number of features, as in dense\(256\); only the last layer'),
    ('conv(8)|relu', r"layer 2, relu: the last layer must be dense without an .*; append '\|global_avg_pool\|dense'"),
    ('flatten|dense(10)', r"layer 2, dense\(10\): the last layer must be dense without .*; append '\|dense'"),
])
def test_a_string_that_makes_no_network_gives_one_line(layers, line):
    with pytest.raises(UserError, match=rf'^config\.model\.layers: (.*[ :])?{line}') as error:
        sequential(layers)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(('layers', 'shape', 'line'), [
    ('conv(8)|max_pool(2)|relu|conv(8, 5, padding=0)|avg_pool(2)|flatten|dense', (11, 40, 3),
     r'Sequential needs images of at least 12 x 12 pixels, got 11 x 40; layer 5, avg_pool\(2\): its window of 2 x 2 pixels '
     r'does not fit into its input of 1 x 16'),
    ('conv(8, groups=2)|flatten|dense', (8, 8, 3), r'layer 1, .*: 2 groups do not divide the channels of its input, 3')])
def test_images_that_a_layer_does_not_take_give_one_line_that_names_it(layers, shape, line):
    with pytest.raises(UserError, match=rf'^config\.model\.layers: {line}') as error:
        sequential(layers).init(jax.random.key(0), np.zeros((1, *shape), np.float32))
    assert '\n' not in str(error.value)


def test_a_rectangular_kernel_may_take_a_rectangular_image():
    network = sequential("conv(4, (1, 9), padding='valid')|flatten|dense")
    assert network.min_image_size() == 9
    logits = jax.eval_shape(lambda: network.init_with_output(jax.random.key(0), jnp.zeros((2, 1, 9, 3)))[0])
    assert logits.shape == (2, 10)


def test_dropout_without_an_argument_has_the_rate_of_the_network():
    ones = jnp.ones((1, 50, 20, 1))
    for layers, rate in (('dropout|flatten|dense', 0.25), ('dropout(0.75)|flatten|dense', 0.75)):
        network = sequential(layers, 1, dropout=0.25)
        variables = {'params': {'Dense_0': {'kernel': jnp.ones((1000, 1)), 'bias': jnp.zeros(1)}}}
        total = network.apply(variables, ones, train=True, rngs={'dropout': jax.random.key(0)}).item()
        assert abs(total * (1 - rate) - 1000 * (1 - rate)) < 60  # four standard deviations
