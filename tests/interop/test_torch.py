"""Networks against PyTorch's with the same weights, through the bridge a person brings weights in by."""

import copy
import importlib
import itertools
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import config as cfg
from jaxcnn import models, tasks
from jaxcnn.data.normalize import Normalization
from jaxcnn.errors import UserError
from jaxcnn.losses import cross_entropy
from jaxcnn.optim import make_optimizer
from jaxcnn.preprocessing import Preprocessor
from jaxcnn.timeline import Timeline
from jaxcnn.training import whiten
from jaxcnn.training.state import init_state, run_once
from jaxcnn.training.step import TrainStep

torch = pytest.importorskip('torch')
pytest.importorskip('pytorchcv')
bridge = importlib.import_module('jaxcnn.interop.torch')

pytestmark = pytest.mark.torch


def pytorchcv_network(file, name, **fields):
    """A network of pytorchcv with random weights and statistics, in which no layer is like another."""
    return drawn(getattr(importlib.import_module(f'pytorchcv.models.{file}'), name)(**fields))


def shortened(module):
    """Removes the units between the first and the last of each stage."""
    for name, stage in module.features.named_children():
        if name.startswith('stage') and len(stage) > 2:
            setattr(module.features, name, torch.nn.Sequential(stage[0], stage[-1]))
    return module


def drawn(module):
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            part.running_mean.normal_(0, 0.2)
            part.running_var.uniform_(0.5, 1.5)
            part.weight.data.uniform_(0.5, 1.5)
            part.bias.data.normal_(0, 0.2)
        elif isinstance(part, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(part.weight)
            if part.bias is not None:
                part.bias.data.normal_(0, 0.2)
    return module.eval()


def images_of(count, side, channels=3):
    return np.random.default_rng(0).normal(size=(count, side, side, channels)).astype(np.float32)


def run(module, images):
    with torch.no_grad():
        return module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()


def assert_close(actual, expected):
    assert np.abs(np.asarray(actual) - expected).max() <= 1e-4 * np.abs(expected).max()


def sequential(name):
    """What pytorchcv lacks, as it is written in PyTorch."""
    nn = torch.nn
    if name == 'lenet5':
        return plain(nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2),
                     nn.Flatten(), nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10))
    if name == 'lenet_mnist':
        return plain(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(),
                     nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 10))
    layers, widths = [], {'shallow_cnn': (3, 64, 128, 256, 256), 'leedl_cnn': (3, 64, 128, 256, 512, 512)}[name]
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        size = 7 if (name, i) == ('shallow_cnn', 0) else 3
        layers += [nn.Conv2d(before, after, size, padding=size // 2, bias=name == 'leedl_cnn'), nn.BatchNorm2d(after),
                   nn.ReLU(), nn.MaxPool2d(2)]
    hidden = (1024, 512, 10) if name == 'shallow_cnn' else (8192, 1024, 512, 11)
    for before, after in itertools.pairwise(hidden):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(0.5)]
    return plain(*layers[:4 * (len(widths) - 1)], nn.Flatten(), *layers[4 * (len(widths) - 1):-2])


@pytest.mark.parametrize('name', ['lenet5', 'lenet_mnist', 'shallow_cnn', 'leedl_cnn'])
def test_the_logits_are_those_of_the_network_written_in_pytorch(name):
    network, module = models.create(name), sequential(name)
    shape, classes = network.published_for()
    network = models.create(name, classes)
    variables = bridge.from_torch(network, module, shape)  # raises where the logits differ, as the tests below show
    if name == 'lenet5':
        images = images_of(4, shape[0], shape[2])
        assert_close(network.apply(variables, images), run(module, images))


# our name and fields; pytorchcv's file and name
SAME = [
    ('alexnet', {}, 'alexnet', 'alexnet'), ('zfnet', {}, 'zfnet', 'zfnet'),
    ('vgg19', {}, 'vgg', 'vgg19'), ('vgg16_bn', {}, 'vgg', 'bn_vgg16b'),
    ('nin_cifar', {}, 'nin_cifar', 'nin_cifar10'),
    ('bn_inception', {}, 'bninception', 'bninception'), ('inception_v3', {'aux_weight': 0.0}, 'inceptionv3', 'inceptionv3'),
    ('inception_v4', {}, 'inceptionv4', 'inceptionv4'),
    ('inception_resnet_v1', {}, 'inceptionresnetv1', 'inceptionresnetv1'),
    ('inception_resnet_v2', {}, 'inceptionresnetv2', 'inceptionresnetv2'),
    ('resnet18', {}, 'resnet', 'resnet18'), ('resnet50', {}, 'resnet', 'resnet50b'),
    ('preresnet18', {}, 'preresnet', 'preresnet18'), ('preresnet50', {}, 'preresnet', 'preresnet50b'),
    ('resnext50_32x4d', {}, 'resnext', 'resnext50_32x4d'),
    ('resnet20_cifar', {'shortcut': 'B'}, 'resnet_cifar', 'resnet20_cifar10'),
    ('resnet20_cifar', {'shortcut': 'B', 'preact': True}, 'preresnet_cifar', 'preresnet20_cifar10'),
    ('mobilenet_v1', {'multiplier': 0.25}, 'mobilenet', 'mobilenet_wd4'),
]


SLOW = {'zfnet', 'vgg19', 'bn_vgg16b', 'bninception', 'inceptionv3', 'inceptionv4', 'inceptionresnetv1', 'inceptionresnetv2',
        'resnet50b', 'preresnet50b', 'resnext50_32x4d'}


@pytest.mark.parametrize(('name', 'fields', 'file', 'other'), [
    pytest.param(*same, id=same[-1], marks=[pytest.mark.slow] * (same[-1] in SLOW)) for same in SAME])
def test_at_full_size_the_logits_are_those_of_pytorchcv(name, fields, file, other):
    """`from_torch` raises where they are not: `test_layers_that_are_alike_and_give_another_result_are_named`."""
    shape, classes = models.create(name, **fields).published_for()
    network = models.create(name, classes, **fields)
    variables = bridge.from_torch(network, pytorchcv_network(file, other), shape)
    expected = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *shape)))
    assert jax.tree.map(jnp.shape, variables['params']) == jax.tree.map(jnp.shape, expected['params'])


@pytest.mark.parametrize(('name', 'fields', 'file', 'other', 'side'), [
    ('inception_resnet_v1', {'blocks': (2, 1, 1)}, 'inceptionresnetv1', 'inceptionresnetv1', 139),
    ('resnext50_32x4d', {'blocks': (2, 2, 2, 2)}, 'resnext', 'resnext50_32x4d', 64)])
def test_with_fewer_blocks_the_logits_are_those_of_pytorchcv(name, fields, file, other, side):
    module = shortened(pytorchcv_network(file, other))
    module.features.final_pool = torch.nn.AdaptiveAvgPool2d(1)  # pytorchcv's is for images of the published size
    bridge.from_torch(models.create(name, 1000, **fields), module, (side, side, 3))


@pytest.mark.parametrize('name', ['vgg11', 'vgg11_bn'])
def test_with_fewer_features_the_logits_of_vgg_are_those_of_pytorchcv(name):
    stages = ((4,), (6,), (8, 6), (4, 8), (6, 4))
    module = pytorchcv_network('vgg', 'VGG', channels=stages, use_bn=name == 'vgg11_bn')
    bridge.from_torch(models.create(name, 1000, stages=stages), module, (224, 224, 3))


SMALL_RESNET = {'init_block_channels': 16, 'bottleneck': False, 'conv1_stride': True}


@pytest.mark.parametrize(('name', 'fields', 'file', 'other', 'other_fields', 'side'), [
    ('resnet18', {'blocks': (2, 2), 'width': 16}, 'resnet', 'ResNet',
     {'channels': [[16, 16], [32, 32]], **SMALL_RESNET}, 64),
    ('preresnet18', {'blocks': (1, 1), 'width': 16}, 'preresnet', 'PreResNet',
     {'channels': [[16], [32]], **SMALL_RESNET}, 64),
    pytest.param('resnet18', {}, 'resnet', 'resnet18', {}, 64, marks=pytest.mark.slow),
    pytest.param('preresnet18', {}, 'preresnet', 'preresnet18', {}, 64, marks=pytest.mark.slow),
    pytest.param('resnext50_32x4d', {}, 'resnext', 'resnext50_32x4d', {}, 64, marks=pytest.mark.slow),
    pytest.param('mobilenet_v1', {'multiplier': 0.25}, 'mobilenet', 'mobilenet_wd4', {}, 64, marks=pytest.mark.slow),
    ('nin_cifar', {'dropout': 0.0}, 'nin_cifar', 'nin_cifar10', {}, 32),
], ids=str)
def test_in_training_logits_statistics_and_all_gradients_are_those_of_pytorchcv(
        name, fields, file, other, other_fields, side):
    module = pytorchcv_network(file, other, **other_fields)
    if side == 64:  # pytorchcv's pool is for a map of 7 x 7
        module.features.final_pool = torch.nn.AdaptiveAvgPool2d(1)
    network = models.create(name, 10 if side == 32 else 1000, bn_momentum=0.9, **fields)
    variables = bridge.from_torch(network, module, (side, side, 3))
    pairs = bridge.pair_layers(network, module, (side, side, 3))
    images, labels = images_of(4, side), np.array([1, 5, 3, 7])

    def loss(params):
        logits, new = network.apply({**variables, 'params': params}, images, train=True, mutable=['batch_stats'])
        return cross_entropy(logits, labels, 0.0).mean(), (logits, new)
    (_, (logits, new)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=run_once())(
        variables['params'])
    module.train()
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.eval()

    def gradients(module, dtype):
        logits = module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(dtype))
        module.zero_grad()
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
        return logits, bridge.to_jax(pairs, {name: p.grad for name, p in module.named_parameters()})['params']
    exact_logits, exact = gradients(copy.deepcopy(module).double(), torch.float64)
    _, rounded = gradients(module, torch.float32)
    assert_close(logits, exact_logits.detach().numpy())
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(exact))
    assert jax.tree.structure(grads) == jax.tree.structure(exact)
    for (path, gradient), other, right in zip(jax.tree.leaves_with_path(grads), *map(jax.tree.leaves, (rounded, exact)),
                                          strict=True):
        noise, norm = float(np.linalg.norm(other - right)), float(np.linalg.norm(right))
        # a rectifier's input near zero may be rounded to its other side, which changes a gradient by up to a hundredth
        assert np.linalg.norm(gradient - right) <= 10 * noise + 3e-2 * norm + 1e-6 * largest, path
        assert noise <= 0.1 * norm + 1e-6 * largest, path
    statistics = bridge.to_jax(pairs, module.state_dict()).get('batch_stats', {})
    for path, mean in jax.tree.leaves_with_path(new.get('batch_stats', {})):
        if path[-1].key == 'mean':  # PyTorch's variance is over one less than there are values
            assert_close(mean, np.asarray(statistics[path[0].key]['mean']))


def plain(*layers):
    return drawn(torch.nn.Sequential(*layers))


def shallow(last=10, pad=1, norm=True):
    """A small network as a person writes it: functions in `forward`, shared ReLU, blocks in another order."""
    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = torch.nn.Linear(4 * 4 * 6, last)
            self.norm = torch.nn.BatchNorm2d(6) if norm else torch.nn.Identity()
            self.two = torch.nn.Conv2d(3, 6, 3, padding=1, bias=False)
            self.one = torch.nn.Conv2d(3, 3, 3, padding=pad)

        def forward(self, x):
            x = torch.relu(self.one(x))
            x = torch.nn.functional.max_pool2d(torch.relu(self.norm(self.two(x))), 2)
            return self.dense(x.flatten(1))
    return drawn(Small())


class Small(models.Network):
    """The same."""

    def forward(self, x, train, maps):
        x = nn.relu(self.conv(3, 3)(x))
        x = self.conv_norm(x, train, 6, 3)
        x = nn.max_pool(x, (2, 2), (2, 2))
        return self.dense(self.num_classes)(x.reshape(len(x), -1))


def test_pairs_are_in_the_order_of_execution_and_flattened_maps_are_turned():
    pairs = bridge.pair_layers(Small(num_classes=10), shallow(), (8, 8, 3))
    assert [(p.flax_path, p.torch_name, p.channels) for p in pairs] == [
        (('Conv_0',), 'one', None), (('Conv_1',), 'two', None), (('BatchNorm_0',), 'norm', None), (('Dense_0',), 'dense', 6)]
    module = shallow()
    variables = bridge.from_torch(Small(num_classes=10), module, (8, 8, 3))
    images = images_of(3, 8)
    assert_close(Small(num_classes=10).apply(variables, images), run(module, images))


def test_the_example_in_the_docs_runs_in_the_environment_that_is_tested():
    root = pathlib.Path(__file__).parents[2]
    page = (root / 'docs' / 'pytorch.md').read_text('utf-8')
    section = page.split('## Weights from PyTorch, and back')[1].split('\n## ')[0]
    command, example = re.findall(r'^```\w*\n(.*?)^```$', section, re.DOTALL | re.MULTILINE)
    pins = re.fullmatch(r'pip install (torch==.*)\n', command).group(1).split()
    assert set(pins) <= set((root / '.ci' / 'run').read_text('utf-8').split())
    names = {}
    exec(example, names)
    assert names['logits'].shape == (2, 1000)


def test_there_and_back_is_what_it_was():
    module, other = shallow(), shallow()
    network = Small(num_classes=10)
    variables = bridge.from_torch(network, module, (8, 8, 3))
    doubled = jax.tree.map(lambda x: 2 * x, variables)
    bridge.to_torch(network, doubled, other, (8, 8, 3))
    for name, value in other.state_dict().items():
        if not name.endswith('num_batches_tracked'):
            assert torch.equal(value, 2 * module.state_dict()[name])
    again = bridge.from_torch(network, other, (8, 8, 3))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), again, doubled))
    images = images_of(3, 8)
    assert_close(network.apply(doubled, images), run(other, images))


def test_a_state_dict_is_taken_instead_of_the_modules_own_values():
    state = {name: value.clone() for name, value in shallow().state_dict().items()}
    fresh = shallow()
    with torch.no_grad():
        for p in fresh.parameters():
            p.zero_()
    variables = bridge.from_torch(Small(num_classes=10), fresh, (8, 8, 3), state)
    assert np.array_equal(variables['params']['Dense_0']['bias'], state['dense.bias'])


def test_nothing_of_the_module_changes():
    module = pytorchcv_network('resnet_cifar', 'resnet20_cifar10')
    module.train()
    module.features.stage1.eval()
    modes = [part.training for part in module.modules()]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    bridge.from_torch(models.create('resnet20_cifar', 10, shortcut='B'), module, (32, 32, 3))
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not any(part._forward_hooks for part in module.modules())


class Residual(torch.nn.Module):
    """A block as in torchvision: its projection comes after its own convolutions."""

    def __init__(self, widths, sizes, strides, project):
        super().__init__()
        self.convs = torch.nn.ModuleList(
            torch.nn.Conv2d(*two, size, stride, size // 2, bias=False)
            for two, size, stride in zip(itertools.pairwise(widths), sizes, strides, strict=True))
        self.norms = torch.nn.ModuleList(torch.nn.BatchNorm2d(n) for n in widths[1:])
        self.downsample = torch.nn.Sequential(
            torch.nn.Conv2d(widths[0], widths[-1], 1, max(strides), bias=False), torch.nn.BatchNorm2d(widths[-1])
        ) if project else torch.nn.Identity()

    def forward(self, x):
        y = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(torch.relu(y) if i else y))
        return torch.relu(y + self.downsample(x))


def residual(*blocks):
    """A network of such blocks, with the stem of ours for small images."""
    return plain(torch.nn.Conv2d(3, 8, 3, 1, 1, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), *blocks,
                 torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(blocks[-1].norms[-1].num_features, 5))


@pytest.mark.parametrize(('fields', 'blocks', 'projection'), [
    ({}, [((8, 8, 8), (3, 3), (1, 1), False), ((8, 16, 16), (3, 3), (2, 1), True)], 4),
    ({'bottleneck': True},
     [((8, 8, 8, 32), (1, 3, 1), (1, 1, 1), True), ((32, 16, 16, 64), (1, 3, 1), (1, 2, 1), True)], 4),
    # as resnext101_32x8d: a block's first convolution and its projection differ in nothing but in what they feed
    ({'bottleneck': True, 'group_width': 32, 'shortcut': 'C'},
     [((8, 32, 32, 32), (1, 3, 1), (1, 1, 1), True), ((32, 64, 64, 64), (1, 3, 1), (1, 2, 1), True)], 3),
])
def test_shortcuts_may_come_in_another_order(fields, blocks, projection):
    module = residual(*(Residual(*block) for block in blocks))
    network = models.create('resnet18', 5, stem='small', width=8, blocks=(1, 1), **fields)
    names = [p.torch_name for p in bridge.pair_layers(network, module, (16, 16, 3))]
    assert names.index(f'{projection}.downsample.0') < names.index(f'{projection}.convs.0')
    bridge.from_torch(network, module, (16, 16, 3))


def test_branches_of_one_form_may_come_in_another_order():
    """The first is of the map itself, the second of its mean, as an Inception block's projection after the pool."""
    class FlaxNetwork(models.Network):
        def forward(self, x, train, maps):
            branches = [self.conv(4, 1)(x), self.conv(4, 1)(nn.avg_pool(x, (3, 3), padding='SAME')), self.conv(2, 1)(x)]
            return self.dense(self.num_classes)(nn.relu(jnp.concatenate(branches, -1)).mean((1, 2)))

    class TorchNetwork(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.narrow, self.pooled, self.unpooled = (torch.nn.Conv2d(3, n, 1) for n in (2, 4, 4))
            self.dense = torch.nn.Linear(10, 5)

        def forward(self, x):
            narrow, pooled = self.narrow(x), self.pooled(torch.nn.functional.avg_pool2d(x, 3, 1, 1))
            return self.dense(torch.relu(torch.cat([self.unpooled(x), pooled, narrow], 1)).mean((2, 3)))
    bridge.from_torch(FlaxNetwork(num_classes=5), drawn(TorchNetwork()), (8, 8, 3))


class WithAuxiliary(models.Network):
    """An auxiliary classifier of the form of the last layer."""

    aux_weight: float = 0.3

    def forward(self, x, train, maps):
        early = nn.relu(self.conv(4, 3)(x))
        logits = self.dense(self.num_classes)(nn.relu(self.conv(4, 3)(early)).mean((1, 2)))
        return (logits, self.dense(self.num_classes)(early.mean((1, 2)))) if train else logits


def with_auxiliary(auxiliary=True):
    """The same; the auxiliary classifier is computed before the last layer, as in torchvision's GoogLeNet."""
    class TorchNetwork(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = torch.nn.Conv2d(3, 4, 3, 1, 1), torch.nn.Conv2d(4, 4, 3, 1, 1)
            self.aux, self.dense = torch.nn.Linear(4, 5), torch.nn.Linear(4, 5)

        def forward(self, x):
            early = torch.relu(self.one(x))
            aux = self.aux(early.mean((2, 3))) if auxiliary and self.training else None
            logits = self.dense(torch.relu(self.two(early)).mean((2, 3)))
            return logits if aux is None else (logits, aux)
    return drawn(TorchNetwork())


def test_auxiliary_classifiers_may_come_before_the_last_layer():
    network, module, images = WithAuxiliary(num_classes=5), with_auxiliary(), images_of(2, 8)
    variables = bridge.from_torch(network, module, (8, 8, 3))
    with torch.no_grad():
        expected = module.train()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    for actual, other in zip(network.apply(variables, images, train=True), expected, strict=True):
        assert_close(actual, other.numpy())


def test_a_module_that_keeps_no_graph_is_paired_by_form_and_order():
    module = with_auxiliary(False)
    module.forward = torch.no_grad()(module.forward)
    bridge.from_torch(WithAuxiliary(num_classes=5, aux_weight=0.0), module, (8, 8, 3))


class Head(models.Network):
    """A convolution and two dense layers with normalisation, or these as convolutions of the whole map."""

    convolutions: bool = False

    def forward(self, x, train, maps):
        x = nn.relu(self.conv(6, 3)(x))
        if self.convolutions:
            return self.conv(5, 1)(self.norm(self.conv(7, x.shape[1], padding=0)(x), train)).reshape(len(x), 5)
        return self.dense(5)(self.norm(self.dense(7)(x.reshape(len(x), -1)), train))


def head(convolutions):
    body = torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.ReLU()
    if convolutions:
        return plain(*body, torch.nn.Conv2d(6, 7, 4), torch.nn.BatchNorm2d(7), torch.nn.Conv2d(7, 5, 1), torch.nn.Flatten())
    return plain(*body, torch.nn.Flatten(), torch.nn.Linear(96, 7), torch.nn.BatchNorm1d(7), torch.nn.Linear(7, 5))


@pytest.mark.parametrize(('flax_convolutions', 'torch_convolutions'), itertools.product([False, True], repeat=2))
def test_a_convolution_of_the_whole_map_is_a_dense_layer(flax_convolutions, torch_convolutions):
    network, module = Head(num_classes=5, convolutions=flax_convolutions), head(torch_convolutions)
    variables = bridge.from_torch(network, module, (4, 4, 3))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
        jnp.shape, jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 4, 4, 3))))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    bridge.to_torch(network, variables, module, (4, 4, 3))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_what_is_added_in_place_is_another_array():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = torch.nn.ModuleList(torch.nn.BatchNorm2d(8) for _ in range(2))
            self.convs = torch.nn.ModuleList(torch.nn.Conv2d(8, 8, 3, 1, 1, bias=False) for _ in range(2))

        def forward(self, x):
            y = x
            for norm, conv in zip(self.norms, self.convs, strict=True):
                y = conv(torch.relu(norm(y)))
            y += x
            return y
    module = plain(torch.nn.Conv2d(3, 8, 3, 1, 1, bias=False), Block(), Block(), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
                   torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 5))
    bridge.from_torch(models.create('preresnet18', 5, stem='small', width=8, blocks=(2,)), module, (16, 16, 3))


def test_types_and_rematerialisation_of_the_network_and_no_gradients_of_the_caller():
    module = drawn(torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, 1, 1), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(4, 6, 3, 1, 1), torch.nn.BatchNorm2d(6), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(),
        torch.nn.Linear(24, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 5)))
    fields = {'stages': ((4,), (6,)), 'hidden': 8}
    plain = bridge.from_torch(models.create('vgg11_bn', 5, **fields), module, (8, 8, 3))
    network = models.create('vgg11_bn', 5, param_dtype='bfloat16', remat=True, **fields)
    with torch.no_grad():
        rounded = bridge.from_torch(network, module, (8, 8, 3))
    for path, values in jax.tree.leaves_with_path(rounded):
        kind = jnp.float32 if 'BatchNorm' in jax.tree_util.keystr(path) else jnp.bfloat16
        assert values.dtype == kind, path
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype(b.dtype), b), plain, rounded)
    half = copy.deepcopy(module).bfloat16()
    bridge.to_torch(network, rounded, half, (8, 8, 3))


@pytest.mark.parametrize(('network', 'module', 'parts'), [
    (Small(num_classes=9), shallow, ['Dense_0', '96x9', 'where Small has dense (dense kernel 96x10']),
    (Small(num_classes=10), lambda: shallow(norm=False),
     ['BatchNorm_0', 'after Conv_1', 'where Small has dense', 'after two']),
    (Small(num_classes=10), lambda: shallow(pad=2), ['does not take images (8, 8, 3)', '2x150 and 96x10']),
    (Small(num_classes=10), lambda: plain(torch.nn.PReLU()), ['0 (PReLU)', 'weight']),
    (models.create('t2t_vit_14', 10, depth=1, embed=96, heads=2), shallow, ['parameter']),
])
def test_the_first_difference_is_named(network, module, parts):
    side = 64 if 'T2T' in type(network).__name__ else 8
    with pytest.raises(UserError) as e:
        bridge.from_torch(network, module(), (side, side, 3))
    assert all(part in str(e.value) for part in parts), e.value
    assert '\n' not in str(e.value)


def test_a_difference_is_named_where_it_is_though_later_layers_of_the_same_form_could_be_paired():
    module = residual(Residual((8, 8, 8, 8), (3,) * 3, (1,) * 3, False), Residual((8, 8, 8), (3,) * 2, (1,) * 2, False))
    network = models.create('resnet18', 5, stem='small', width=8, blocks=(2,))
    with pytest.raises(UserError, match=(r'differ: ResNet has Conv_3 \(.*\) after BatchNorm_0 and BatchNorm_2 where '
                                         r'Sequential has 3\.convs\.2 \(.*\) after 3\.norms\.1$')):
        bridge.pair_layers(network, module, (8, 8, 3))


def test_layers_that_are_alike_and_give_another_result_are_named():
    module = shallow()
    module.norm.eps = 1.0
    with pytest.raises(UserError, match=re.escape('in or before Dense_0 of Small, dense of Small')):
        bridge.from_torch(Small(num_classes=10), module, (8, 8, 3))


def test_a_rectifier_in_place_does_not_change_which_layer_is_named():
    module = plain(torch.nn.Conv2d(3, 3, 3, 1, 1), torch.nn.ReLU(inplace=True), torch.nn.Conv2d(3, 6, 3, 1, 1, bias=False),
                   torch.nn.BatchNorm2d(6), torch.nn.ReLU(inplace=True), torch.nn.AvgPool2d(2), torch.nn.Flatten(),
                   torch.nn.Linear(96, 10))
    with pytest.raises(UserError, match=re.escape('in or before Dense_0 of Small, 7 of Sequential')):
        bridge.from_torch(Small(num_classes=10), module, (8, 8, 3))


def test_what_cannot_go_back_leaves_the_module_as_it_was():
    module, network = shallow(), Small(num_classes=10)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    variables = jax.tree.map(jnp.zeros_like, bridge.from_torch(network, module, (8, 8, 3)))
    variables['params']['Conv_0']['kernel'] = jnp.zeros((5, 5, 3, 3))
    with pytest.raises(UserError, match=r'params/Conv_0/kernel must be \(3, 3, 3, 3\), got \(5, 5, 3, 3\)'):
        bridge.to_torch(network, variables, module, (8, 8, 3))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_images_have_three_sizes():
    with pytest.raises(UserError, match=r'image_shape must be \(H, W, C\), got \(8, 8\)'):
        bridge.from_torch(Small(num_classes=10), shallow(), (8, 8))


def test_variables_of_another_network_are_reported_in_one_line():
    module, network = shallow(), Small(num_classes=10)
    variables = bridge.from_torch(network, module, (8, 8, 3))
    with pytest.raises(UserError, match=r'variables have no batch_stats/BatchNorm_0/mean, whose shape is \('):
        bridge.to_torch(network, {'params': variables['params']}, module, (8, 8, 3))


def test_a_module_without_auxiliary_classifiers_is_reported_the_field():
    with pytest.raises(UserError, match='where TorchNetwork has nothing; create the network with aux_weight=0'):
        bridge.pair_layers(WithAuxiliary(num_classes=5), with_auxiliary(False), (8, 8, 3))


def test_a_state_dict_of_another_module_is_reported_in_one_line():
    with pytest.raises(UserError, match=r'state_dict: .*size mismatch') as e:
        bridge.from_torch(Small(num_classes=10), shallow(), (8, 8, 3), shallow(last=7).state_dict())
    assert '\n' not in str(e.value)


def muon_step(weights, speeds, n, rate):
    """The n-th step (from 1) of airbench's Muon: three Newton-Schulz iterations; optax's bias correction, float32."""
    for i, w in enumerate(weights):
        speeds[i] = 0.6 * speeds[i] + 0.4 * w.grad
        ahead = (0.6 * speeds[i] / (1 - 0.6 ** (n + 1)) + 0.4 * w.grad / (1 - 0.6 ** n)).reshape(len(w), -1)
        x = ahead / ahead.norm()
        for _ in range(3):
            square = x @ x.T
            x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
        with torch.no_grad():
            w.mul_(len(w) ** 0.5 / w.norm()).sub_(rate * x.reshape(w.shape))


@pytest.mark.parametrize('by_muon', [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_recipes_train_as_airbenchs_programs_do(by_muon):
    """The configs' network, optimizers, groups and look-ahead, beside airbench 0.1.8's as its `train94` has them, and of
    the later program with Muon (but for the rate of the whitening biases, which falls to zero there when they are frozen);
    narrower, and GELU in its tanh form."""
    nn, steps, size = torch.nn, 10, 64
    slow = 0.01 if by_muon else 1.0  # of all rates: at full ones such small networks make much of rounding
    config = cfg.load(f'configs/cifar10_{"fast" if by_muon else "airbench94"}.py', [
        f'duration.steps={steps}', f'batch_size={size}', 'model.widths=(8, 12, 16)', 'data.augment=',
        f'optim.learning_rate={0.24 * slow if by_muon else 11.5 / (1 + 1 / 0.15) * size / 1024}'])
    timeline = Timeline(config, 2 * size)  # an epoch is two steps
    network, optimizer = models.create('airbench94', **config.model.args), make_optimizer(config.optim, timeline)
    step = TrainStep(network, optimizer, Preprocessor(None, Normalization.from_mean_std((0.5,) * 3, (0.25,) * 3)),
                     tasks.create(config, [str(i) for i in range(10)], [1] * 10, 10), lookahead=config.optim.lookahead,
                     total=timeline.total)
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 200, (steps, size, 8, 8, 3)).repeat(4, 2).repeat(4, 3)
    images = np.uint8(coarse + rng.integers(0, 50, coarse.shape))
    batches = [{'image': x, 'label': rng.integers(0, 10, size)} for x in images]
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))['params']
    begin = whiten.initializer(config.whiten, shapes, lambda count: np.asarray(step.preprocessor(images[0])))
    options = run_once()
    state = jax.jit(lambda: init_state(network, optimizer, (32, 32, 3), np.uint32(0), config.optim, begin),
                    compiler_options=options)()

    class Scaled(nn.Module):
        def forward(self, x):
            return x / (256 if by_muon else 9)

    def norm(width):
        batch_norm = nn.BatchNorm2d(width, eps=1e-12, momentum=1 - 0.6)
        batch_norm.weight.requires_grad = False
        return batch_norm

    layers, before = [nn.Conv2d(3, 24, 2), nn.GELU('tanh')], 24
    for width in (8, 12, 16):
        layers += [nn.Conv2d(before, width, 3, padding='same', bias=False), nn.MaxPool2d(2), norm(width), nn.GELU('tanh'),
                   nn.Conv2d(width, width, 3, padding='same', bias=False), norm(width), nn.GELU('tanh')]
        before = width
    module = nn.Sequential(*layers, nn.MaxPool2d(3), nn.Flatten(), nn.Linear(16, 10, bias=False), Scaled())
    convolutions = [m for m in module if isinstance(m, nn.Conv2d)]
    kernels = [state.params['whiten'], *(state.params[f'Conv_{i}'] for i in range(6))]
    with torch.no_grad():
        for layer, values in zip(convolutions, kernels, strict=True):
            layer.weight.copy_(torch.from_numpy(np.array(values['kernel']).transpose(3, 2, 0, 1)))
        convolutions[0].bias.zero_()
        last = 256 / 9 if by_muon else 1.0
        module[-2].weight.copy_(torch.from_numpy(last * np.array(state.params['Dense_0']['kernel']).T))
    convolutions[0].weight.requires_grad = False
    biases = [m.bias for m in module if isinstance(m, nn.BatchNorm2d)]
    others = [p for p in module.parameters() if p.requires_grad and all(p is not b for b in biases)]
    kilostep = 1024 * (1 + 1 / (1 - 0.85))
    lr, wd = 11.5 / kilostep, 0.0153 * size / kilostep
    moments, factors = ([0, steps], [1, 0]) if by_muon else ([0, int(0.23 * steps), steps], [0.2, 1, 0.07])
    parts = [([module[-2].weight], 0.67), ([convolutions[0].bias, *biases], 0.053)] if by_muon else [
        (biases, 64 * lr), (others, lr)]
    wd = 2e-6 * 2000 if by_muon else wd
    descent = torch.optim.SGD([dict(params=params, lr=slow * rate, weight_decay=wd / rate) for params, rate in parts],
                              momentum=0.85, nesterov=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(descent, lambda i: float(np.interp(i, moments, factors)))
    speeds = [0.0] * 6
    behind = {k: v.clone() for k, v in module.state_dict().items()}

    def look_ahead(decay):
        for k, v in module.state_dict().items():
            if v.dtype == torch.float32:
                behind[k].lerp_(v, 1 - decay)
                v.copy_(behind[k])

    loss = nn.CrossEntropyLoss(label_smoothing=0.2, reduction='none')
    run = jax.jit(step, compiler_options=options)
    for i, batch in enumerate(batches):
        state, _ = run(state, batch, jax.random.key(0))
        convolutions[0].bias.requires_grad = i // 2 < 3
        descent.zero_grad(set_to_none=True)
        x = torch.from_numpy(np.float32((batch['image'] / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2).copy())
        total = loss(module(x), torch.from_numpy(batch['label'])).sum()
        (total * (2000 / size if by_muon else 1)).backward()
        descent.step()
        if by_muon:
            muon_step([m.weight for m in convolutions[1:]], speeds, i + 1, slow * 0.24 * (1 - i / steps))
            module.zero_grad()
        elif (i + 1) % 5 == 0:
            look_ahead(0.95 ** 5 * ((i + 1) / steps) ** 3)
        schedule.step()
    if not by_muon:
        look_ahead(1.0)
    expected = [*(m.weight.permute(2, 3, 1, 0) for m in convolutions), module[-2].weight.T / last, convolutions[0].bias,
              *biases, *(m.running_mean for m in module if isinstance(m, nn.BatchNorm2d))]
    p, norms = state.params, [f'BatchNorm_{i}' for i in range(6)]
    actual = [p['whiten']['kernel'], *(p[f'Conv_{i}']['kernel'] for i in range(6)), p['Dense_0']['kernel'],
             p['whiten']['bias'], *(p[name]['bias'] for name in norms), *(state.batch_stats[name]['mean'] for name in norms)]
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert np.linalg.norm(a - b.detach().numpy()) <= 1e-3 * np.linalg.norm(a), i
    assert np.abs(p['whiten']['bias']).max() > 1e-4
