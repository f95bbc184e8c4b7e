"""GoogLeNet, BN-Inception, Inception v3 and v4, Inception-ResNet."""

import importlib
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import models
from jaxcnn.errors import UserError
from jaxcnn.models import inception, inception_resnet
from jaxcnn.training.state import run_once


def create(name, **fields):
    """A network that is traced and compiled in less time."""
    return models.create(name, kernel_init='normal(0.1)', conv_implementation='xla', **fields)


def variables_of(network, *sides):
    return jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, *sides, 3))))


def count(tree):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def maps_of(network, *sides):
    shape_by_name = {}

    def run(x):  # what comes out of eval_shape is in alphabetical order
        _, maps = network.init_with_output(jax.random.key(0), x, features=True)[0]
        shape_by_name.update({name: x.shape[1:] for name, x in maps.items()})
    jax.eval_shape(run, jax.ShapeDtypeStruct((2, *sides, 3), jnp.float32))
    return shape_by_name


# ---- shapes


def test_the_maps_of_googlenet_are_those_of_its_table():
    expected = {'stem': (28, 28, 192)}
    for stage, side, widths in ((3, 28, (256, 480)), (4, 14, (512, 512, 512, 528, 832)), (5, 7, (832, 1024))):
        for letter, width in zip('abcde', widths, strict=False):
            expected[f'inception_{stage}{letter}'] = (side, side, width)
        if stage < 5:
            expected[f'pool_{stage}'] = (side // 2, side // 2, widths[-1])
    assert maps_of(create('googlenet'), 224, 224) == expected


def test_the_maps_of_bn_inception_are_those_of_its_table():
    assert maps_of(create('bn_inception'), 224, 224) == {
        'stem': (28, 28, 192), 'inception_3a': (28, 28, 256), 'inception_3b': (28, 28, 320), 'inception_3c': (14, 14, 576),
        'inception_4a': (14, 14, 576), 'inception_4b': (14, 14, 576), 'inception_4c': (14, 14, 608),
        'inception_4d': (14, 14, 608), 'inception_4e': (7, 7, 1056), 'inception_5a': (7, 7, 1024),
        'inception_5b': (7, 7, 1024)}


@pytest.mark.parametrize(('name', 'stem', 'widths', 'last'), [
    ('inception_v3', 192, (256, 288, 768, 768, 1280, 2048), {}),
    ('inception_v4', 384, (384, 384, 1024, 1024, 1536, 1536), {}),
    ('inception_resnet_v1', 256, (256, 256, 896, 896, 1792, 1792), {}),
    ('inception_resnet_v2', 320, (320, 320, 1088, 1088, 2080, 2080), {'final_conv': (8, 8, 1536)})])
def test_later_networks_have_maps_of_35_17_and_8_pixels(name, stem, widths, last):
    names = ('inception_a1', 'inception_a2', 'reduction_a', 'inception_b1', 'reduction_b', 'inception_c1')
    shapes = ((side, side, width) for side, width in zip((35, 35, 17, 17, 8, 8), widths, strict=True))
    maps = maps_of(create(name, blocks=(2, 1, 1)), 299, 299)
    assert maps == {'stem': (35, 35, stem), **dict(zip(names, shapes, strict=True)), **last}


LOWER_RESOLUTIONS = {299: {}, 151: {'stem_stride': 1}, 79: {'stem_stride': 1, 'stem_pool': False}}


def test_inception_v3_at_lower_resolutions_has_the_same_parameters_and_about_the_same_maps():
    """Section 8 of the paper; without the first pooling, the maps of the first stage have a pixel more."""
    networks = {side: create('inception_v3', blocks=(1, 1, 1), num_classes=1000, **fields)
                for side, fields in LOWER_RESOLUTIONS.items()}
    params = [variables_of(network, side, side)['params'] for side, network in networks.items()]
    assert params[0] == params[1] == params[2]
    maps = {side: [shape[0] for shape in maps_of(network, side, side).values()] for side, network in networks.items()}
    assert maps == {299: [35, 35, 17, 17, 8, 8], 151: [35, 35, 17, 17, 8, 8], 79: [36, 36, 17, 17, 8, 8]}


@pytest.mark.parametrize(('name', 'fields'), [
    *((name, {}) for name in ('googlenet', *inception.MODELS, *inception_resnet.MODELS)),
    ('inception_v3', LOWER_RESOLUTIONS[151]), ('inception_v3', LOWER_RESOLUTIONS[79])])
def test_the_smallest_image_leaves_a_pixel_and_one_less_leaves_none(name, fields, monkeypatch):
    network = create(name, blocks=(1, 1, 1), multiplier=0.01, **fields)
    side = network.min_image_size()
    assert list(maps_of(network, side, side + 1).values())[-1][:2] == (1, 1)
    with pytest.raises(UserError, match=f'at least {side} x {side} pixels, got {side - 1} x {side}'):
        variables_of(network, side - 1, side)
    monkeypatch.setattr(type(network), 'min_image_size', lambda self: 1)
    try:
        maps = maps_of(network, side - 1, side)
    except (TypeError, ValueError, ZeroDivisionError):
        return
    assert min(min(shape) for shape in maps.values()) < 1


@pytest.mark.parametrize('sides', [(40, 33), (7, 95)])
def test_branches_of_bn_inception_fit_on_odd_maps(sides):
    sizes = [shape[:2] for shape in maps_of(create('bn_inception', multiplier=0.05, blocks=(1, 1, 1)), *sides).values()]
    for before, after in itertools.pairwise(sizes):
        assert after in (before, tuple((side + 1) // 2 for side in before))


def test_pooling_beside_convolutions_has_a_last_window_on_odd_maps():
    x = np.random.default_rng(0).normal(size=(2, 7, 10, 3)).astype(np.float32)
    expected = np.array([[x[:, 2 * i:2 * i + 3, 2 * j:2 * j + 3].max((1, 2)) for j in range(5)] for i in range(4)])
    np.testing.assert_array_equal(inception.half_up(jnp.asarray(x)), expected.transpose(2, 0, 1, 3))


def test_more_blocks_repeat_the_last_of_the_table_and_fewer_are_the_first():
    more, table = (variables_of(create('googlenet', blocks=(1, 1, n)), 32, 32)['params'] for n in (3, 2))
    widths = (1024, 384, 192, 384, 48, 128, 128)  # what 5b gives, and what is in it
    before, one, three_in, three, five_in, five, pooled = widths
    assert count(more) - count(table) == (before * (one + three_in + five_in + pooled) + 9 * three_in * three
                                          + 25 * five_in * five + sum(widths[1:]))
    short = maps_of(create('googlenet', blocks=(1, 2, 1)), 32, 32)
    assert [name for name in short if name.startswith('inception')] == [
        'inception_3a', 'inception_4a', 'inception_4b', 'inception_5a']
    assert [short[name][-1] for name in ('inception_3a', 'inception_4b', 'inception_5a')] == [256, 512, 832]


def test_widths_are_rounded_down_and_at_least_one():
    maps = maps_of(create('googlenet', multiplier=0.1, blocks=(1, 1, 1)), 32, 32)
    assert maps['stem'][-1] == 19
    assert maps['inception_3a'][-1] == 6 + 12 + 3 + 3
    assert maps_of(create('googlenet', multiplier=0.01, blocks=(1, 1, 1)), 32, 32)['stem'][-1] == 1


# ---- auxiliary classifiers


@pytest.mark.parametrize(('name', 'side', 'blocks', 'parameters'), [
    ('googlenet', 224, (1, 4, 1), 13_378_280 - 6_998_552), ('inception_v3', 299, (1, 1, 1), 27_161_264 - 23_834_568)])
def test_auxiliary_classifiers_have_their_published_sizes_and_names_after_all_others(name, side, blocks, parameters):
    with_heads, without = (variables_of(create(name, num_classes=1000, blocks=blocks, **fields), side, side)['params']
                           for fields in ({}, {'aux_weight': 0.0}))
    assert count(with_heads) - count(without) == parameters
    assert {layer: with_heads[layer] for layer in without} == without


@pytest.mark.parametrize(('name', 'blocks', 'heads'), [
    ('googlenet', (1, 4, 1), 2), ('googlenet', (1, 3, 1), 1), ('inception_v3', (1, 1, 1), 1)])
def test_auxiliary_classifiers_are_there_in_training_alone(name, blocks, heads):
    network = create(name, multiplier=0.05, blocks=blocks, dropout=0.0, num_classes=7,
                     **({'aux_dropout': 0.0} if name == 'googlenet' else {}))

    def run(images):
        key = jax.random.key(0)
        return network.init_with_output(key, images), network.init_with_output(key, images, train=True)
    (logits, variables), (trained, same) = jax.eval_shape(run, jax.ShapeDtypeStruct((3, 96, 80, 3), jnp.float32))
    assert logits.shape == (3, 7)
    assert [x.shape for x in trained] == [(3, 7)] * (1 + heads)
    assert jax.tree.map(jnp.shape, same) == jax.tree.map(jnp.shape, variables)


# ---- residues


def test_residues_are_scaled_and_the_last_is_not_and_may_be_negative():
    network = create('inception_resnet_v1', multiplier=0.02, blocks=(1, 1, 2))
    tree = variables_of(network, 75, 75)
    convs = sorted((layer for layer in tree['params'] if layer.startswith('Conv')), key=lambda layer: int(layer[5:]))
    projections = [layer for layer in convs if 'bias' in tree['params'][layer]]
    assert len(projections) == 4

    def fill(path, x):  # projections alone have biases: with 1 or -1 there, and 0 else, they are the residues
        _, layer, part = (key.key for key in path)
        if part == 'bias' and layer in projections:
            return np.full(x.shape, -1 if layer == projections[-1] else 1, np.float32)
        return np.full(x.shape, part == 'var', np.float32)
    _, maps = jax.jit(lambda v, x: network.apply(v, x, features=True), compiler_options=run_once())(
        jax.tree_util.tree_map_with_path(fill, tree), np.ones((1, 75, 75, 3), np.float32))
    value = 0.0  # of the last features, those of the pool in a reduction
    for name, residue in (('stem', 0), ('inception_a1', 0.17), ('reduction_a', 0), ('inception_b1', 0.1),
                          ('reduction_b', 0), ('inception_c1', 0.2), ('inception_c2', -1)):
        value += residue
        np.testing.assert_allclose(maps[name][..., -1], value, atol=1e-6)


# ---- PyTorch

STAGES = (  # 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool proj (the paper's table 1); None: max pooling
    ('3a', 64, 96, 128, 16, 32, 32), ('3b', 128, 128, 192, 32, 96, 64), None,
    ('4a', 192, 96, 208, 16, 48, 64), ('4b', 160, 112, 224, 24, 64, 64), ('4c', 128, 128, 256, 24, 64, 64),
    ('4d', 112, 144, 288, 32, 64, 64), ('4e', 256, 160, 320, 32, 128, 128), None,
    ('5a', 256, 160, 320, 32, 128, 128), ('5b', 384, 192, 384, 48, 128, 128))


def torch_googlenet(torch, batch_norm, side, blocks, classes=10, torchvision=False):
    """GoogLeNet, a quarter as wide and without dropout; gives the logits of all three classifiers."""
    def conv(before, after, size, stride=1):
        layers = [torch.nn.Conv2d(before, after, size, stride, size // 2, bias=not batch_norm)]
        return torch.nn.Sequential(*layers, *[torch.nn.BatchNorm2d(after, 1e-3)] * batch_norm, torch.nn.ReLU())

    def pool(stride):
        return torch.nn.MaxPool2d(3, stride, padding=2 - stride, ceil_mode=True)

    class Block(torch.nn.Module):
        def __init__(self, before, one, three_in, three, five_in, five, pooled):
            super().__init__()
            self.branches = torch.nn.ModuleList([
                conv(before, one, 1), torch.nn.Sequential(conv(before, three_in, 1), conv(three_in, three, 3)),
                torch.nn.Sequential(conv(before, five_in, 1), conv(five_in, five, 3 if torchvision else 5)),
                torch.nn.Sequential(pool(1), conv(before, pooled, 1))])

        def forward(self, x):
            return torch.cat([branch(x) for branch in self.branches], 1)

    class Head(torch.nn.Sequential):
        def __init__(self, before):
            grid = ((side // 16 - 5) // 3 + 1) ** 2
            super().__init__(torch.nn.AvgPool2d(5, 3), conv(before, 32, 1), torch.nn.Flatten(),
                             torch.nn.Linear(32 * grid, 256), torch.nn.ReLU(), torch.nn.Linear(256, classes))

    class GoogLeNet(torch.nn.Module):
        def __init__(self):
            super().__init__()
            norm = [] if batch_norm else [torch.nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)]
            self.stem = torch.nn.Sequential(
                conv(3, 16, 7, 2), pool(2), *norm, conv(16, 16, 1), conv(16, 48, 3), *norm, pool(2))
            self.blocks, before = torch.nn.ModuleDict(), 48
            for row in STAGES:
                if row is None:
                    last = 'pool3' in self.blocks
                    self.blocks['pool4' if last else 'pool3'] = (
                        torch.nn.MaxPool2d(2, 2, ceil_mode=True) if last and torchvision else pool(2))
                    continue
                stage, block = int(row[0][0]) - 3, ord(row[0][1]) - ord('a')
                if block >= blocks[stage]:
                    continue
                widths = [width // 4 for width in row[1:]]
                self.blocks[row[0]] = Block(before, *widths)
                before = widths[0] + widths[2] + widths[4] + widths[5]
            self.classes = torch.nn.Linear(before, classes)
            self.heads = torch.nn.ModuleList([Head(128), Head(132)])

        def forward(self, x):
            x, at = self.stem(x), {}
            for name, block in self.blocks.items():
                x = at[name] = block(x)
            return self.classes(x.mean((2, 3))), self.heads[0](at['4a']), self.heads[1](at['4d'])
    return GoogLeNet()


@pytest.mark.torch
@pytest.mark.parametrize(('batch_norm', 'torchvision', 'blocks'), [
    (False, False, (1, 4, 1)),  # as few blocks as leave both auxiliary classifiers
    pytest.param(False, True, (2, 5, 2), marks=pytest.mark.slow),
    pytest.param(True, False, (2, 5, 2), marks=pytest.mark.slow)])
def test_all_logits_of_googlenet_are_those_of_pytorch_with_the_same_weights(batch_norm, torchvision, blocks):
    torch = pytest.importorskip('torch')
    torch.manual_seed(0)
    side = 128
    torch_network = torch_googlenet(torch, batch_norm, side, blocks, torchvision=torchvision).eval()
    for module in torch_network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(module.weight)
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
        if getattr(module, 'bias', None) is not None:
            module.bias.data.normal_(0, 0.2)
    images = 30 * np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)  # so that LRN counts
    with torch.no_grad():
        expected = [x.numpy() for x in torch_network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))]
    network = create('googlenet', batch_norm=batch_norm, multiplier=0.25, blocks=blocks, bn_frozen=True, dropout=0.0,
                  aux_dropout=0.0, torchvision=torchvision)
    variables = importlib.import_module('jaxcnn.interop.torch').from_torch(network, torch_network, (side, side, 3))
    logits = jax.jit(lambda v, x: network.apply(v, x, train=True), compiler_options=run_once())(variables, images)
    assert len(logits) == len(expected) == 3
    for a, b in zip(logits, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())


# ---- what is refused


@pytest.mark.parametrize(('name', 'fields', 'line'), [
    ('googlenet', {'aux_weight': -0.3}, r'aux_weight must be at least 0, got -0\.3'),
    ('googlenet', {'aux_dropout': 1.0}, r'aux_dropout must be in \[0, 1\), got 1\.0'),
    ('inception_v3', {'aux_weight': -1}, r'aux_weight must be at least 0, got -1'),
    ('inception_v4', {'aux_weight': 0.4}, r"unknown field of model inception_v4 'aux_weight'"),
    ('googlenet', {'aux_schedule': 'liner'}, r"unknown aux_schedule 'liner'; nearest: linear"),
    ('inception_v3', {'stem_stride': 3}, r'stem_stride must be 1 or 2, got 3'),
    ('inception_v4', {'stem_stride': 1}, r"unknown field of model inception_v4 'stem_stride'"),
    ('inception_v4', {'multiplier': 0.0}, r'multiplier must be above 0, got 0\.0'),
    ('inception_v4', {'blocks': [4, 7]}, r'blocks must be three positive integers, got \(4, 7\)'),
    ('bn_inception', {'blocks': [2, 0, 2]}, r'blocks must be three positive integers, got \(2, 0, 2\)')])
def test_what_makes_no_network_is_reported_in_one_line(name, fields, line):
    with pytest.raises(UserError, match=line) as error:
        models.create(name, **fields)
    assert '\n' not in str(error.value)
