"""MobileNet v2 and EfficientNet-Lite."""

import functools
import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import models
from jaxcnn.errors import UserError
from jaxcnn.models.mobilenet import round_features
from jaxcnn.training.state import run_once

LITE_SIZES = (224, 240, 260, 280, 300)


def test_features_are_rounded_to_multiples_of_eight():
    """The numbers are those of tensorflow/tpu's `round_filters`; 35.2 would become 32, which is below 90 % of it at 36."""
    assert [round_features(x) for x in (1, 11, 12, 35.2, 36, 123.2, 44.8)] == [8, 16, 16, 32, 40, 120, 48]


@pytest.mark.parametrize(('name', 'fields', 'shape', 'classes'), [
    *((f'efficientnet_lite{i}', {}, (size, size, 3), 1000) for i, size in enumerate(LITE_SIZES)),
    ('mobilenet_v2', {}, (224, 224, 3), 1000), ('mobilenet_v2', {'stem': 'small'}, (32, 32, 3), 10),
    ('efficientnet_lite4', {'stem': 'small'}, (32, 32, 3), 10)])
def test_the_images_that_a_network_was_published_for(name, fields, shape, classes):
    assert models.create(name, **fields).published_for() == (shape, classes)


@pytest.mark.parametrize(('name', 'stem', 'sizes'), [
    ('mobilenet_v2', 'small', (64, 64, 64, 32, 16, 16, 8, 8, 8)),
    ('efficientnet_lite0', 'imagenet', (32, 32, 16, 8, 4, 4, 2, 2, 2))])
def test_the_sizes_of_maps(name, stem, sizes):
    network = models.create(name, blocks=(1,) * 7, stem=stem, conv_implementation='xla')
    images = jnp.zeros((1, 64, 64, 3))
    (_, maps), _ = jax.eval_shape(lambda x: network.init_with_output(jax.random.key(0), x, features=True), images)
    names = 'stem', *(f'stage{i}' for i in range(1, 8)), 'head'
    assert {name: m.shape[1:3] for name, m in maps.items()} == {
        name: (size, size) for name, size in zip(names, sizes, strict=True)}


def test_drop_connect_skips_a_block_for_some_images_and_scales_it_for_the_others():
    """A network with one shortcut, in the block at position 2 of 8, which is skipped with probability 0.8 * 2 / 8."""
    fields = {'multiplier': 0.25, 'blocks': (1, 2, 1, 1, 1, 1, 1), 'dropout': 0.0, 'conv_implementation': 'xla'}
    network = models.create('mobilenet_v2', drop_connect=0.8, bn_frozen=True, **fields)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(400, 8, 8, 3)).astype(np.float32)

    def draw(path, x):
        if path[-1].key == 'kernel':
            return np.float32(rng.normal(0, math.sqrt(2 / math.prod(x.shape[:-1])), x.shape))
        return np.full(x.shape, path[-1].key in ('scale', 'var'), np.float32)
    variables = jax.tree_util.tree_map_with_path(
        draw, jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.asarray(images[:1]))))
    without_block = jax.tree.map(lambda x: x, variables)
    without_block['params']['BatchNorm_8']['scale'] = np.zeros(8, np.float32)  # the block's last one, whose bias is 0

    @functools.partial(jax.jit, compiler_options=run_once())
    def stage2(variables, without_block):
        def apply(v, train):
            return network.apply(v, images, train=train, features=True, rngs={'dropout': jax.random.key(1)})[1]['stage2']
        return apply(variables, True), apply(variables, False), apply(without_block, False)
    trained, evaluated, shortcut = stage2(variables, without_block)
    branch = evaluated - shortcut
    assert np.abs(branch).max() > 0.1
    skipped = np.asarray([np.allclose(a, b, atol=1e-5) for a, b in zip(trained, shortcut, strict=True)])
    np.testing.assert_allclose(trained[~skipped], (shortcut + branch / 0.8)[~skipped], atol=1e-4)
    assert 40 < skipped.sum() < 120  # 80 is expected, with a standard deviation of 8


@pytest.mark.parametrize(('name', 'fields', 'line'), [
    ('mobilenet_v2', {'multiplier': 0.0}, r'multiplier must be above 0, got 0\.0'),
    ('mobilenet_v2', {'blocks': (1, 2)}, r'blocks must be 7 positive integers, got \(1, 2\)'),
    ('mobilenet_v2', {'stem': 'cifar'}, r"unknown stem 'cifar'; known: imagenet, small"),
    ('efficientnet_lite0', {'padding': 'SAME'}, r"unknown padding 'SAME'; .*same"),
    ('efficientnet_lite0', {'drop_connect': 1.0}, r'drop_connect must be in \[0, 1\), got 1\.0'),
])
def test_wrong_fields_give_one_line(name, fields, line):
    with pytest.raises(UserError, match=line) as error:
        models.create(name, **fields)
    assert '\n' not in str(error.value)


# ---- against PyTorch


def drawn(module):
    """Give every parameter and statistic a random value."""
    torch = importlib.import_module('torch')
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 1.5)
            layer.weight.data.uniform_(0.5, 1.5)
            layer.bias.data.normal_(0, 0.2)
        elif isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                layer.bias.data.normal_(0, 0.2)
    return module.eval()


def pytorchcv_mobilenet(small, blocks):
    """pytorchcv's network, with the bias that its last layer lacks."""
    torch, cv = importlib.import_module('torch'), importlib.import_module('pytorchcv.models.mobilenetv2')
    widths = [[width] * count for width, count in zip((16, 24, 32, 64, 96, 160, 320), blocks, strict=True)]
    module = cv.MobileNetV2([*widths[:3], widths[3] + widths[4], widths[5] + widths[6]], 32, 1280, remove_exp_conv=True)
    module.features.final_pool = torch.nn.AdaptiveAvgPool2d(1)  # pytorchcv's is for a map of 7 x 7
    module.output = torch.nn.Conv2d(1280, 1000, 1)
    if small:
        module.features.init_block.conv.stride = module.features.stage2.unit1.conv2.conv.stride = (1, 1)
    return drawn(module)


def pytorchcv_lite(padding, blocks):
    """EfficientNet-Lite, made of pytorchcv's blocks for EfficientNet and MobileNet v2."""
    torch, cv = importlib.import_module('torch'), importlib.import_module('pytorchcv.models.efficientnet')
    from pytorchcv.models.common import conv1x1_block
    from pytorchcv.models.mobilenetv2 import LinearBottleneck
    same = padding == 'same'
    layers = [cv.EffiInitBlock(3, 32, 1e-3, 'relu6', same), LinearBottleneck(32, 16, 1, False, True)]
    before = 16
    for width, count, size, stride in zip((24, 40, 80, 112, 192, 320), blocks[1:], (3, 5, 3, 5, 5, 3), (2, 2, 2, 1, 2, 1),
                                          strict=True):
        for i in range(count):
            layers.append(cv.EffiInvResUnit(before, width, size, 1 if i else stride, 6, 0, 1e-3, 'relu6', same))
            before = width
    module = torch.nn.Sequential(*layers, conv1x1_block(before, 1280, activation='relu6'), torch.nn.AdaptiveAvgPool2d(1),
                                 torch.nn.Flatten(), torch.nn.Linear(1280, 1000))
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eps = 1e-3
    return drawn(module)


SHORT = (1, 2, 1, 1, 2, 1, 1)


@pytest.mark.torch
@pytest.mark.parametrize(('name', 'fields', 'side'), [
    ('mobilenet_v2', {'blocks': SHORT, 'stem': 'small'}, 16),
    ('efficientnet_lite0', {'blocks': SHORT}, 45),  # stride 2 on maps of an odd and of an even size
    pytest.param('efficientnet_lite0', {'blocks': SHORT, 'padding': 'symmetric'}, 45, marks=pytest.mark.slow),
    pytest.param('mobilenet_v2', {}, 224, marks=pytest.mark.slow),
    pytest.param('efficientnet_lite0', {}, 224, marks=pytest.mark.slow),
    pytest.param('efficientnet_lite1', {}, 240, marks=pytest.mark.slow)])
def test_the_logits_are_those_of_pytorchcv(name, fields, side):
    """`from_torch` raises where they differ."""
    pytest.importorskip('torch')
    pytest.importorskip('pytorchcv')
    network = models.create(name, 1000, **fields)
    if name == 'mobilenet_v2':
        module = pytorchcv_mobilenet(network.stem == 'small', network.blocks)
    else:
        module = pytorchcv_lite(network.padding, network.blocks)
    variables = importlib.import_module('jaxcnn.interop.torch').from_torch(network, module, (side, side, 3))
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(variables['params']))
    assert count == sum(p.numel() for p in module.parameters())
