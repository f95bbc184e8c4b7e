"""Networks of convolutions and then dense layers: AlexNet, ZFNet, VGG, the food classifier; their heads; and NIN."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import models
from jaxcnn.errors import UserError
from jaxcnn.models import alexnet, vgg
from jaxcnn.models.plain import spatial_pyramid
from jaxcnn.ops.lrn import local_response_norm
from jaxcnn.ops.pool import max_pool
from jaxcnn.training.state import run_once

WIDTHS = {'widths': (4, 6, 8, 6, 4), 'hidden': 8}
STAGES = {'stages': ((4, 4), (6, 6, 6)), 'hidden': 8}
SMALL = {
    'alexnet': WIDTHS, 'zfnet': WIDTHS, 'convnet5': WIDTHS, 'overfeat7': {'widths': (4, 6, 8, 6, 6, 4, 4), 'hidden': 8},
    'vgg16_c': STAGES, 'vgg19_bn': STAGES,
    'leedl_cnn': {'widths': (4, 6, 4), 'hidden': (8, 6, 5)},
}
SMALLEST = {'alexnet': 39, 'zfnet': 47, 'convnet5': 35, 'overfeat7': 41, 'vgg16_c': 4, 'vgg19_bn': 4, 'leedl_cnn': 8}
SMALLEST_SPP = {  # without the last pooling
    'alexnet': 23, 'zfnet': 31, 'convnet5': 19, 'overfeat7': 17, 'vgg16_c': 2, 'vgg19_bn': 2, 'leedl_cnn': 4}
LAST = {  # features of the last map
    'alexnet': 4, 'zfnet': 4, 'convnet5': 4, 'overfeat7': 4, 'vgg16_c': 6, 'vgg19_bn': 6, 'leedl_cnn': 4}
NIN = {'nin_cifar': {'stages': ((6, 4), (4, 4), (4,))},
       'nin_imagenet': {'stages': ((4, 4), (4,), (4, 4), (6,))}}


def create(name, **fields):
    return models.create(name, **{**{**SMALL, **NIN}.get(name, {}), **fields})


def shapes(network, *size, channels=3):
    network = network.clone(conv_implementation='xla')  # faster to trace
    return jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, *size, channels))))


def count(tree):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def pictures(*size, n=2):
    return np.random.default_rng(1).normal(size=(n, *size, 3)).astype(np.float32)


def drawn(network, *size):
    """Variables for images of a size."""
    rng = np.random.default_rng(0)

    def values(x):
        if x.ndim > 1:
            return np.float32(rng.normal(0, (2 / math.prod(x.shape[:-1])) ** 0.5, x.shape))
        return np.float32(rng.uniform(0.5, 1.5, x.shape))
    return jax.tree.map(values, shapes(network, *size))


def run(network, variables, images):
    """Output and named feature maps."""
    apply = jax.jit(functools.partial(network.apply, features=True), compiler_options=run_once())
    return jax.tree.map(np.asarray, apply(variables, images))


def map_shapes(network, *size):
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    (_, maps), _ = jax.eval_shape(lambda x: network.init_with_output(jax.random.key(0), x, features=True), images)
    return {name: x.shape[1:] for name, x in maps.items()}


def dense_layers(variables, x):
    """The dense layers' logits of rows of features."""
    layers = [p for name, p in variables['params'].items() if name.startswith('Dense')]
    for i, layer in enumerate(layers):
        x = x @ layer['kernel'] + layer['bias']
        x = jnp.maximum(x, 0) if i < len(layers) - 1 else x
    return x


# ---- spatial pyramid


def pyramid_by_hand(x, levels):
    n, h, w = x.shape[:3]
    bins = [x[:, i * h // k:math.ceil((i + 1) * h / k), j * w // k:math.ceil((j + 1) * w / k)].max((1, 2))
            for k in levels for i in range(k) for j in range(k)]
    return np.stack(bins, 1).reshape(n, -1)


@pytest.mark.parametrize('side', [(13, 10), (3, 7), (1, 1)], ids=str)
def test_a_spatial_pyramid_has_the_maximum_of_every_bin(side):
    x, levels = np.random.default_rng(0).normal(size=(2, *side, 3)).astype(np.float32), (4, 2, 1, 6, 5)
    np.testing.assert_array_equal(jax.jit(spatial_pyramid, static_argnums=1)(x, levels), pyramid_by_hand(x, levels))


def test_the_bins_of_the_papers_maps_are_windows_at_a_fixed_stride():
    """Section 2.3 of SPP-Net's paper: windows of ceil(a / n) at a stride of floor(a / n), for maps of a = 13 pixels."""
    x, levels = np.random.default_rng(0).normal(size=(2, 13, 13, 3)).astype(np.float32), (6, 4, 3, 2, 1)

    def windows(n):
        size = math.ceil(13 / n)
        views = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::13 // n, ::13 // n]
        assert views.shape[1:3] == (n, n)
        return views.max((-2, -1)).reshape(2, -1)
    bins = jax.jit(spatial_pyramid, static_argnums=1)(x, levels)
    np.testing.assert_array_equal(bins, np.concatenate([windows(n) for n in levels], 1))


@pytest.mark.torch
def test_a_level_of_a_spatial_pyramid_is_the_adaptive_pooling_of_pytorch():
    torch = pytest.importorskip('torch')
    x = np.random.default_rng(0).normal(size=(2, 13, 10, 3)).astype(np.float32)
    theirs = torch.nn.functional.adaptive_max_pool2d(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), 6)
    np.testing.assert_array_equal(jax.jit(spatial_pyramid, static_argnums=1)(x, (6,)),
                                  theirs.permute(0, 2, 3, 1).flatten(1).numpy())


@pytest.mark.parametrize('name', SMALL)
def test_a_spatial_pyramid_makes_one_network_for_images_of_all_sizes(name):
    network = create(name, head='spp', pyramid=(3, 1))
    params = shapes(network, 70, 64)['params']
    assert params == shapes(network, 93, 117)['params'] == shapes(network, *[SMALLEST_SPP[name]] * 2)['params']
    assert params['Dense_0']['kernel'].shape == (10 * LAST[name], 8)


def test_zf_5_pools_maps_of_13_and_10_pixels_and_has_the_parameters_of_the_paper():
    network = models.create('zfnet', 1000, head='spp', pyramid=(6, 3, 2, 1))
    assert [map_shapes(network, side, side)['conv5'] for side in (224, 180)] == [(13, 13, 256), (10, 10, 256)]
    convolutions = [(7, 3, 96), (5, 96, 256), (3, 256, 384), (3, 384, 384), (3, 384, 256)]
    dense = [(50 * 256, 4096), (4096, 4096), (4096, 1000)]
    weights = sum(k * k * i * o + o for k, i, o in convolutions) + sum(i * o + o for i, o in dense)
    assert count(shapes(network, 180, 180)['params']) == weights


def test_the_networks_of_spp_nets_paper_have_its_maps_and_its_parameters():
    """Table 1 of He et al. 2014: kernels, widths and sizes of maps, and the bins of its pyramid."""
    stem = [(11, 3, 96), (5, 96, 256)], [(7, 3, 96), (5, 96, 256)]
    convolutions = {
        'convnet5': [*stem[0], (3, 256, 384), (3, 384, 384), (3, 384, 256)],
        'overfeat5': [*stem[1], (3, 256, 512), *[(3, 512, 512)] * 2],
        'overfeat7': [*stem[1], (3, 256, 512), *[(3, 512, 512)] * 4]}
    # a convolution, before the pooling that follows it
    sides = {'convnet5': [55, 55, 27, 13, 13], 'overfeat5': [109, 36, 18, 18, 18],
             'overfeat7': [109, 36, 18, 18, 18, 18, 18]}
    for name, layers in convolutions.items():
        network = models.create(name, 1000, head='spp', pyramid=(6, 3, 2, 1))
        assert [map_shapes(network, 224, 224)[f'conv{i}'] for i in range(1, len(layers) + 1)] == [
            (side, side, width) for side, (_, _, width) in zip(sides[name], layers, strict=True)]
        dense = [(50 * layers[-1][2], 4096), (4096, 4096), (4096, 1000)]
        weights = sum(k * k * i * o + o for k, i, o in layers) + sum(i * o + o for i, o in dense)
        assert count(shapes(network, 224, 224)['params']) == weights


def test_the_pyramid_takes_the_place_of_the_last_pooling():
    network = create('vgg16_c', head='spp')
    variables = drawn(network, 32, 32)
    logits, maps = run(network, variables, pictures(21, 28))
    assert maps['stage2'].shape[1:3] == (10, 14)
    expected = dense_layers(variables, pyramid_by_hand(maps['stage2'], (4, 2, 1)))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


# ---- fully convolutional


@pytest.mark.parametrize(('name', 'side', 'window'), [
    pytest.param('zfnet', 80, 2, marks=pytest.mark.slow), ('vgg19_bn', 12, 3), ('alexnet', 71, 2),
    pytest.param('leedl_cnn', 24, 3, marks=pytest.mark.slow)])
def test_dense_layers_as_convolutions_have_the_same_parameters_and_the_same_score(name, side, window):
    fields = {'hidden_layers': 0, 'widths': (4, 6, 4)} if name == 'alexnet' else {}
    dense = create(name, **fields)
    network = create(name, head='dense_conv', window=window, **fields)
    assert shapes(network, side, side) == shapes(dense, side, side)
    variables, images = drawn(dense, side, side), pictures(side, side)
    logits, scores = run(dense, variables, images)[0], run(network, variables, images)[0]
    assert scores.shape == (2, 1, 1, 10)
    np.testing.assert_allclose(scores[:, 0, 0], logits, rtol=1e-4, atol=1e-5 * np.abs(logits).max())


def test_every_place_of_a_score_map_is_that_of_the_dense_layers_on_its_window():
    network = create('vgg19_bn', head='dense_conv', window=3)
    variables = drawn(network, 12, 12)
    scores, maps = run(network, variables, pictures(21, 28))
    last = maps['stage2'][:, :10].reshape(2, 5, 2, 7, 2, 6).max((2, 4))
    assert scores.shape == (2, 3, 5, 10)
    for i, j in np.ndindex(3, 5):
        expected = dense_layers(variables, last[:, i:i + 3, j:j + 3].reshape(2, -1))
        np.testing.assert_allclose(scores[:, i, j], expected, rtol=1e-4, atol=1e-5)
    assert np.abs(scores - scores[:, :1, :1]).max() > 0.1


def test_gradients_through_a_score_map_are_the_sum_over_its_windows():
    network = create('vgg16_c', head='dense_conv', window=3, stages=((4,), (6,)))
    variables = drawn(network, 12, 12)
    images, weights = pictures(16, 20), np.random.default_rng(2).normal(size=(2, 2, 3, 10)).astype(np.float32)

    def weighted(variables, images, scores_of):
        scores, maps = network.apply(variables, images, features=True)
        return (weights * scores_of(scores, variables, maps['stage2'])).sum()

    def by_window(scores, variables, stage):
        last = max_pool(stage, 2)
        return jnp.stack([jnp.stack([dense_layers(variables, last[:, i:i + 3, j:j + 3].reshape(2, -1)) for j in range(3)], 1)
                          for i in range(2)], 1)

    def gradients(scores_of):
        return jax.jit(jax.grad(functools.partial(weighted, scores_of=scores_of), (0, 1)), compiler_options=run_once())(
            variables, images)
    expected = jax.tree_util.tree_leaves_with_path(gradients(by_window))
    for (path, b), a in zip(expected, jax.tree.leaves(gradients(lambda scores, *_: scores)), strict=True):
        assert np.any(b != 0), path
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max(), err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize('name', ['alexnet', 'zfnet', 'vgg16', 'leedl_cnn'])
def test_the_window_is_that_of_the_paper(name):
    size = {'leedl_cnn': 128}.get(name, 224)
    network = models.create(name, head='dense_conv')
    assert shapes(network, size, size) == shapes(models.create(name), size, size)
    assert shapes(network, size + 64, size) == shapes(network, size, size)


@pytest.mark.parametrize('head', ['dense', 'spp', 'dense_conv'])
def test_heads_compute_in_their_type(head):
    network = create('leedl_cnn', head=head, window=2, dtype='bfloat16')
    images = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
    logits, variables = jax.eval_shape(lambda x: network.init_with_output(jax.random.key(0), x), images)
    assert logits.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


# ---- sizes


@pytest.mark.parametrize('head', ['dense', 'spp', 'dense_conv'])
@pytest.mark.parametrize('name', SMALL)
def test_the_smallest_image_works_and_one_that_is_smaller_is_refused(name, head):
    network = create(name, head=head, window=3)
    side = network.min_image_size()
    if head != 'dense_conv':
        assert side == {'dense': SMALLEST, 'spp': SMALLEST_SPP}[head][name]
    assert network.last_map_size(side) == (3 if head == 'dense_conv' else 1)
    assert shapes(network, side, side + 5)
    with pytest.raises(UserError, match=f'needs images of at least {side} x {side} pixels, got {side} x {side - 1}'):
        shapes(network, side, side - 1)


@pytest.mark.parametrize('name', SMALL)
def test_the_side_of_the_last_map_is_what_the_dense_layers_see(name):
    network = create(name)
    for side in (SMALLEST[name], SMALLEST[name] + 21):
        features = network.last_map_size(side) ** 2 * LAST[name]
        assert shapes(network, side, side)['params']['Dense_0']['kernel'].shape[0] == features


@pytest.mark.parametrize(('name', 'side'), [('nin_cifar', 1), ('nin_imagenet', 39)])
def test_nin_works_on_all_images_from_the_smallest(name, side):
    network = create(name)
    assert network.min_image_size() == side
    for pixels in (side, side + 1, side + 37):
        assert map_shapes(network, pixels, pixels)['classes'] == (network.last_map_size(pixels),) * 2 + (10,)
    if side > 1:
        with pytest.raises(UserError, match='NIN needs images of at least 39 x 39 pixels, got 38 x 50'):
            shapes(network, 38, 50)


# ---- layers


@pytest.mark.parametrize(('name', 'side', 'parameters'), [
    ('alexnet_grouped', 227, 60_965_224), ('alexnet', 227, 62_378_344), ('nin_imagenet', 224, 7_595_176),
    ('vgg11_bn', 224, 132_868_840), ('vgg13_bn', 224, 133_053_736), ('vgg16_c_bn', 224, 133_638_952 + 2 * 4224)])
def test_parameters_of_forms_that_the_published_table_leaves_out(name, side, parameters):
    assert count(shapes(models.create(name, num_classes=1000), side, side)['params']) == parameters


@pytest.mark.parametrize('name', [
    'vgg11_lrn', 'vgg13', 'vgg16_bn', 'vgg16_c', 'vgg19', *(pytest.param(name, marks=pytest.mark.slow) for name in (
        'vgg11', 'vgg11_bn', 'vgg13_bn', 'vgg16', 'vgg16_c_bn', 'vgg19_bn'))])
def test_vgg_has_as_many_layers_as_its_name_says(name):
    params = shapes(models.create(name), 32, 32)['params']
    layers = [layer for layer in params if not layer.startswith('BatchNorm')]
    convolutions = len(layers) - 3
    assert len(layers) == int(name[3:5])
    assert len(params) - len(layers) == (convolutions if name.endswith('_bn') else 0)
    assert all('bias' in params[layer] for layer in layers)
    small = [i for i in range(convolutions) if params[f'Conv_{i}']['kernel'].shape[0] == 1]
    assert small == ([6, 9, 12] if '_c' in name else [])


def test_maps_have_the_sizes_of_the_papers():
    alexnet = {'conv1': (55, 55, 96), 'conv2': (27, 27, 256), 'conv3': (13, 13, 384), 'conv4': (13, 13, 384),
               'conv5': (13, 13, 256)}
    assert map_shapes(models.create('alexnet'), 227, 227) == alexnet
    assert map_shapes(models.create('alexnet'), 224, 224) == {**alexnet, 'conv1': (54, 54, 96)}
    assert map_shapes(models.create('zfnet'), 224, 224) == {**alexnet, 'conv1': (110, 110, 96), 'conv2': (26, 26, 256)}
    assert map_shapes(models.create('nin_imagenet', num_classes=1000), 224, 224) == {
        'stage1': (54, 54, 96), 'stage2': (27, 27, 256), 'stage3': (13, 13, 384), 'stage4': (6, 6, 1024),
        'classes': (6, 6, 1000)}
    assert map_shapes(models.create('nin_cifar'), 32, 32) == {
        'stage1': (32, 32, 96), 'stage2': (16, 16, 192), 'stage3': (8, 8, 192), 'classes': (8, 8, 10)}
    assert map_shapes(models.create('leedl_cnn'), 128, 128) == {
        'conv1': (128, 128, 64), 'conv2': (64, 64, 128), 'conv3': (32, 32, 256), 'conv4': (16, 16, 512),
        'conv5': (8, 8, 512)}


def test_groups_are_of_the_second_fourth_and_fifth_convolution():
    params = shapes(models.create('alexnet_grouped'), 227, 227)['params']
    assert [params[f'Conv_{i}']['kernel'].shape[2] for i in range(5)] == [3, 48, 256, 192, 192]


@pytest.mark.parametrize(('name', 'expected'), [
    ('alexnet', [(55, 55, 96), (27, 27, 256)]), ('zfnet', [(112, 112, 96), (26, 26, 256)]), ('vgg11', []),
    ('vgg11_lrn', [(227, 227, 64)])])
def test_the_first_maps_are_normalised_before_pooling(name, expected, monkeypatch):
    recorded = []

    def normalise(x, *_):
        recorded.append(x.shape[1:])
        return x
    for family in (alexnet, vgg):
        monkeypatch.setattr(family, 'local_response_norm', normalise)
    shapes(models.create(name), 227, 227)
    assert recorded == expected


def test_normalisation_is_after_the_rectifier():
    network, without = create('alexnet'), create('alexnet', lrn=False)
    variables, images = drawn(network, 39, 39), 100 * pictures(39, 39)
    plain = run(without, variables, images)[1]['conv1']
    assert plain.min() == 0 < plain.max()
    np.testing.assert_allclose(run(network, variables, images)[1]['conv1'], local_response_norm(plain), rtol=1e-5)


@pytest.mark.parametrize('position', ['before_activation', 'after_pool'])
def test_normalisation_may_be_before_the_activation_or_after_pooling(position):
    constants = {'lrn_size': 3, 'lrn_alpha': 0.5, 'lrn_beta': 0.6, 'lrn_k': 1.5}
    network = create('alexnet', lrn_position=position, **constants)
    variables, images = drawn(network, 39, 39), 10 * pictures(39, 39)
    _, maps = run(network, variables, images)
    first = variables['params']['Conv_0']
    before = jax.lax.conv_general_dilated(images, first['kernel'], (4, 4), 'VALID',
                                          dimension_numbers=('NHWC', 'HWIO', 'NHWC')) + first['bias']
    normalise = functools.partial(local_response_norm, size=3, alpha=0.5, beta=0.6, k=1.5)
    expected = np.maximum(normalise(before) if position == 'before_activation' else before, 0)
    np.testing.assert_allclose(maps['conv1'], expected, rtol=1e-4, atol=1e-5)
    if position == 'after_pool':  # the second layer's input
        kernel, bias = (variables['params']['Conv_1'][name] for name in ('kernel', 'bias'))
        second = jax.lax.conv_general_dilated(normalise(max_pool(expected, 3, 2, ceil=True)), kernel, (1, 1), [(2, 2)] * 2,
                                              dimension_numbers=('NHWC', 'HWIO', 'NHWC')) + bias
        np.testing.assert_allclose(maps['conv2'], np.maximum(second, 0), rtol=1e-3, atol=1e-4)


def test_ablations_of_zfnet_remove_convolutions_and_dense_layers():
    """Section 4.3 of the paper; each layer's size is computed from that of the map and the widths."""
    def sizes(**fields):
        params = shapes(models.create('zfnet', num_classes=1000, **fields), 224, 224)['params']
        return [math.prod(layer['kernel'].shape) for layer in params.values()]
    first, second = 7 * 7 * 3 * 96, 5 * 5 * 96 * 256
    middle, last = [9 * 256 * 384, 9 * 384 * 384, 9 * 384 * 256], [9 * 256 * 256]
    dense = [36 * 256 * 4096, 4096 * 4096, 4096 * 1000]
    assert sizes() == [first, second, *middle, *dense]
    assert sizes(widths=(96, 256, 256)) == [first, second, *last, *dense]
    assert sizes(hidden_layers=0) == [first, second, *middle, 36 * 256 * 1000]
    assert sizes(widths=(96, 256, 256), hidden_layers=0) == [first, second, *last, 36 * 256 * 1000]
    assert sizes(hidden_layers=1, hidden=2048)[-2:] == [36 * 256 * 2048, 2048 * 1000]


@pytest.mark.parametrize(('name', 'size', 'expected'), [
    ('nin_cifar', 32, [(16, 16, 96), (8, 8, 192)]), ('nin_imagenet', 224, [(6, 6, 384)])])
def test_nin_drops_features_before_the_stages_that_its_authors_say(name, size, expected, monkeypatch):
    recorded = []

    def drop(_, x, train):
        if train:
            recorded.append(x.shape[1:])
        return x
    monkeypatch.setattr(models.Network, 'drop', drop)
    network, key = models.create(name), jax.random.key(0)
    jax.eval_shape(lambda: network.init(key, jnp.zeros((1, size, size, 3)), train=True))
    assert recorded == expected


@pytest.mark.parametrize('name', NIN)
def test_the_logits_of_nin_are_means_of_maps_without_negative_values(name):
    network = create(name)
    logits, maps = run(network, drawn(network, 48, 48), pictures(48, 48))
    np.testing.assert_allclose(logits, maps['classes'].mean((1, 2)), rtol=1e-5, atol=1e-6)
    assert maps['classes'].min() == 0 < maps['classes'].max()


def test_the_dense_head_of_nin_is_a_layer_on_the_maps_of_the_classes():
    network = create('nin_cifar', head='dense')
    assert count(shapes(models.create('nin_cifar', head='dense'), 32, 32)) - 966_986 == 8 * 8 * 10 * 10 + 10
    variables = drawn(network, 16, 16)
    logits, maps = run(network, variables, pictures(16, 16))
    np.testing.assert_allclose(logits, dense_layers(variables, maps['classes'].reshape(2, -1)), rtol=1e-4, atol=1e-5)


def test_the_dense_head_of_nin_drops_values_in_training_alone():
    network = create('nin_cifar', head='dense', head_dropout=0.5, dropout=0.0)
    variables = drawn(network, 16, 16)
    variables['params']['Dense_0'] = {'kernel': np.eye(160, 10, dtype=np.float32),  # the logits are the first pixel's values
                                      'bias': np.zeros(10, np.float32)}

    def outputs(variables, images):
        return (network.apply(variables, images, train=True, rngs={'dropout': jax.random.key(0)}),
                network.apply(variables, images))
    trained, evaluated = map(np.asarray, jax.jit(outputs, compiler_options=run_once())(variables, pictures(16, 16)))
    dropped = trained == 0
    np.testing.assert_allclose(np.where(dropped, 0, 2 * evaluated), trained, rtol=1e-5)
    assert 0 < (dropped & (evaluated > 0)).sum() < (evaluated > 0).sum()


# ---- what is refused


@pytest.mark.parametrize(('name', 'fields', 'line'), [
    ('vgg16', {'head': 'dens'}, r"unknown head 'dens'; nearest: dense"),
    ('vgg16', {'head': 'spp', 'pyramid': (4, 0)}, r'pyramid must be positive integers, got \(4, 0\)'),
    ('vgg16', {'head': 'spp', 'pyramid': ()}, r'pyramid must be positive integers, got \(\)'),
    ('vgg16', {'head': 'dense_conv', 'window': 0}, r'window must be at least 1, got 0'),
    ('vgg13', {'stages': (4, 8)}, r'stages must be lists of positive integers and hidden one, got \(4, 8\) and 4096'),
    ('vgg13', {'hidden': 0}, r'stages must be lists of positive integers and hidden one'),
    ('alexnet', {'widths': (1, 2)}, r'widths must be three or more positive integers and hidden one, got \(1, 2\) and 4096'),
    ('alexnet', {'hidden': -1}, r'widths must be three or more positive integers and hidden one, .* -1'),
    ('alexnet', {'hidden_layers': -1}, r'hidden_layers must be at least 0, got -1'),
    ('alexnet', {'lrn_position': 'after_pooling'}, r"unknown lrn_position 'after_pooling'; nearest: after_pool"),
    ('zfnet', {'lrn_size': 0}, r'lrn_size must be at least 1, got 0'),
    ('zfnet', {'lrn_alpha': -1e-4}, r'lrn_alpha must be at least 0, got -0\.0001'),
    ('zfnet', {'lrn_beta': -1.0}, r'lrn_beta must be at least 0, got -1\.0'),
    ('zfnet', {'lrn_k': 0.0}, r'lrn_k must be above 0, got 0\.0'),
    ('alexnet', {'groups': 8, 'widths': (96, 100, 384, 384, 256)}, r'8 groups do not divide 100 features'),
    ('alexnet', {'groups': 0}, r'groups must be at least 1, got 0'),
    ('zfnet', {'stem': ((7, 2, 4), (5, 2, 0))}, r'stem must be 2 tuples .* less than half the size, got \(\(7, 2, 4\)'),
    ('zfnet', {'stem': (7, 2)}, r'stem must be 2 tuples \(size, stride, padding\)'),
    ('nin_cifar', {'stages': ((4,), ())}, r'stages must be lists of positive integers, got \(\(4,\), \(\)\)'),
    ('nin_cifar', {'stages': ((4,), (4,))}, r'kernels must be 2 tuples \(size, stride, padding\)'),
    ('nin_cifar', {'pools': ('max', 'mean')}, r"pools must be 'max' or 'avg' for each of 2 poolings, got \('max', 'mean'\)"),
    ('nin_cifar', {'pools': ('max',)}, r"pools must be 'max' or 'avg' for each of 2 poolings, got \('max',\)"),
    ('nin_cifar', {'pool_padding': 2}, r'pool_padding must be 0 or 1, got 2'),
    ('nin_cifar', {'head': 'avg_pool'}, r"unknown head 'avg_pool'; nearest: global_avg_pool"),
    ('nin_cifar', {'head': 'dense', 'head_dropout': 1.0}, r'head_dropout must be in \[0, 1\), got 1\.0'),
    ('nin_cifar', {'head_dropout': 0.5}, r"head_dropout=0\.5 needs head='dense', got 'global_avg_pool'"),
    ('nin_imagenet', {'dropped': 4}, r'dropped must be in \[0, 4\), got 4'),
    ('leedl_cnn', {'widths': ()}, r'widths and hidden must be positive integers, got \(\)'),
    ('leedl_cnn', {'hidden': (8, 0)}, r'widths and hidden must be positive integers')])
def test_what_makes_no_plain_network_is_reported_in_one_line(name, fields, line):
    with pytest.raises(UserError, match=line) as error:
        models.create(name, **fields)
    assert '\n' not in str(error.value)
