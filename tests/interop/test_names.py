"""The names of torchvision's and timm's parameters against digests of the names and shapes in their state dicts."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import models
from jaxcnn.errors import UserError
from jaxcnn.interop import matching, names, weights

ALEXNET = {'widths': (64, 192, 384, 256, 256), 'stem': ((11, 4, 2), (5, 1, 2)), 'lrn': False}
TIMM = {'stem_norm': False}
# Number of arrays and digest of the lines 'name shape' of the state dicts of torchvision 0.29.1 and timm 1.0.31, without
# num_batches_tracked; dense layers that timm writes as convolutions count as (features, inputs).
STATE_DICTS = [
    ('resnet18', {}, 102, '9c9c5db5159288ed'), ('resnet50', {}, 267, '57039076f9965c95'),
    ('resnext50_32x4d', {}, 267, 'e241b1c72b65c406'),
    ('preresnet18', TIMM, 90, 'e41bcbcad4b1aca5'), ('preresnet50', TIMM, 251, 'b4ca7986af780470'),
    ('vgg11', {}, 22, 'e5820dec11b6de11'), ('vgg16_bn', {}, 84, 'b47e8a331446cfe1'), ('vgg19', {}, 38, 'd82bcfde802b608e'),
    ('vgg11', {'timm': True}, 22, 'c19fe60fc1203959'), ('alexnet', ALEXNET, 16, '136b9f67b64e75ea'),
    ('googlenet_bn', {'torchvision': True}, 305, '2427a29a83d52f93'),
    ('inception_v3', {}, 484, '76490ece85f51212'), ('inception_v3', {'aux_weight': 0.0}, 472, '55f00267ae6d6eb3'),
    ('inception_v4', {}, 747, '5bb595eb5b3d9f24'), ('inception_resnet_v2', {}, 1102, '38e0de6768fb7347'),
    ('mobilenet_v2', {}, 262, '6058c23a258ebccc'), ('mobilenet_v2', {'timm': True}, 262, '1c822c7464ea1ba8'),
    ('efficientnet_lite0', {'timm': True}, 247, '56cc7ec8dc49dc96'),
    ('efficientnet_lite4', {'timm': True}, 457, '7e5793c7ff4d962c'),
    ('mobilenet_v1', {'activation': 'relu6'}, 137, '4825c499cf7ae5cf'),
]


SLOW = {'resnet50', 'resnext50_32x4d', 'preresnet50', 'vgg19', 'inception_v4', 'inception_resnet_v2',
        'efficientnet_lite4'}


def shapes_of(name, **fields):
    network = models.create(name, 1000, conv_implementation='xla', **fields)  # which is faster to trace
    images = jax.ShapeDtypeStruct((1, *network.published_for()[0]), jnp.float32)
    return network, {'batch_stats': {}, **jax.eval_shape(network.init, jax.random.key(0), images)}


def torch_shapes(pairs, shapes):
    """The name and the shape in PyTorch of each array of the network."""
    result = {}
    for pair in pairs:
        for collection in ('params', 'batch_stats'):
            for name, leaf in shapes[collection].get(pair.flax_path[0], {}).items():
                shape = leaf.shape
                if name == 'kernel':
                    shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
                torch_name = {'kernel': 'weight', 'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var'}
                result[f'{pair.torch_name}.{torch_name.get(name, name)}'] = tuple(shape)
    return result


@pytest.mark.parametrize(('name', 'fields', 'count', 'digest'), [
    pytest.param(*row, marks=[pytest.mark.slow] * (row[0] in SLOW)) for row in STATE_DICTS], ids=str)
def test_names_and_shapes_are_those_of_the_other_librarys_state_dict(name, fields, count, digest):
    fields, timm = {key: value for key, value in fields.items() if key != 'timm'}, 'timm' in fields
    network, shapes = shapes_of(name, **fields)
    naming = names.namings(network)[-1 if timm else 0]
    matching.check_required(network, naming)
    named = torch_shapes(matching.pair_by_name(naming, shapes['params']), shapes)
    assert len(named) == len(jax.tree.leaves(shapes)) == count
    lines = sorted(f'{name} {shape}' for name, shape in named.items())
    assert hashlib.blake2b('\n'.join(lines).encode(), digest_size=8).hexdigest() == digest


def arrays_of(network, shapes, prefix=''):
    """Random arrays with the names and layouts of the other library."""
    rng = np.random.default_rng(0)
    naming = names.namings(network)[0]
    named = torch_shapes(matching.pair_by_name(naming, shapes['params'], prefix), shapes)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in named.items()}


def test_kernels_are_transposed_and_flattened_maps_are_reordered():
    network, shapes = models.create('vgg11', 3, stages=((2,), (4,)), hidden=5), None
    images = jax.ShapeDtypeStruct((1, 8, 12, 3), jnp.float32)
    shapes = {'batch_stats': {}, **jax.eval_shape(network.init, jax.random.key(0), images)}
    arrays = arrays_of(network, shapes)
    params = weights.load_variables(network, arrays, (8, 12, 3))['params']
    np.testing.assert_array_equal(params['Conv_1']['kernel'][2, 0, 1, 3], arrays['features.3.weight'][3, 1, 2, 0])
    kernel = np.asarray(params['Dense_0']['kernel']).reshape(2, 3, 4, 5)  # (row, column, channel, feature)
    np.testing.assert_array_equal(kernel[1, 2, 3, 4], arrays['classifier.0.weight'].reshape(5, 4, 2, 3)[4, 3, 1, 2])


@pytest.mark.parametrize('prefix', ['module.', 'model.backbone.layer1.0.'])
def test_a_prefix_of_all_names_is_found(prefix):
    network, shapes = shapes_of('resnet18', blocks=(1, 1), width=4)
    arrays = {**arrays_of(network, shapes, prefix), f'{prefix}bn1.num_batches_tracked': np.int64(3), 'other': np.zeros(2)}
    assert matching.match_names(network, arrays).prefix == prefix
    named = weights.arrange(network, arrays, shapes)
    assert len(named.arrays) == len(jax.tree.leaves(shapes))
    assert named.unused == {'other': (2,)}


@pytest.mark.parametrize(('name', 'fields', 'line'), [
    ('resnet18', {'shortcut': 'A'}, "torchvision's and timm's ResNets have shortcut='B', and this network has shortcut='A'; "
     r'set these fields in config\.model'),
    ('mobilenet_v1', {}, r"timm's MobileNet v1 have activation='relu6', and this network has activation='relu'"),
    ('alexnet', {}, r"AlexNet have widths=\(64, 192, 384, 256, 256\), stem=\(\(11, 4, 2\), \(5, 1, 2\)\), lrn=False, and"),
    ('googlenet', {}, r"GoogLeNet have batch_norm=True, torchvision=True, and this"),
    ('efficientnet_lite0', {'bn_epsilon': 1e-5}, r'have bn_epsilon=0\.001, and this network has bn_epsilon=1e-05'),
    ('resnet18', {'activation': 'gelu'}, r"ResNets have activation='relu', and this network has activation='gelu'"),
    ('preresnet50', {}, r"timm's resnetv2 networks have stem_norm=False, and"),
    ('vgg11_bn', {'bn_epsilon': 1e-3}, r'VGGs have bn_epsilon=1e-05, and this network has bn_epsilon=0\.001')])
def test_a_network_that_computes_another_function_is_refused(name, fields, line):
    network = models.create(name, **fields)
    with pytest.raises(UserError, match=line) as error:
        matching.check_required(network, names.namings(network)[0])
    assert '\n' not in str(error.value)


def test_weights_of_another_network_are_refused_and_their_network_is_named():
    vgg = {f'{name}.weight': np.zeros(()) for name in names.namings(models.create('vgg11'))[0].layers}
    with pytest.raises(UserError, match=r"no layer has a name that torchvision's and timm's ResNets have, such as conv1; "
                       r"the file's layers are classifier\.0, classifier\.3, .*; the file's names are those of vgg11$"):
        matching.match_names(models.create('resnet18'), vgg)
    with pytest.raises(UserError, match='are not known for a LeNet5; they are for alexnet, '):
        matching.match_names(models.create('lenet5'), vgg)


def test_layers_of_a_larger_network_are_refused_and_auxiliary_classifiers_are_not():
    network, shapes = shapes_of('vgg11', stages=((2,), (3,), (4, 4), (4, 4)), hidden=4)
    deep, deep_shapes = shapes_of('vgg11', stages=((2,), (3,), (4, 4), (4, 4), (4, 4)), hidden=4)
    arrays = arrays_of(deep, deep_shapes)
    assert weights.arrange(deep, arrays, deep_shapes).surplus == []
    assert weights.arrange(network, arrays, shapes).surplus == ['features.16.weight', 'features.18.weight']
    with pytest.raises(UserError, match=r'^2 layers of the file, such as features\.16\.weight, are not in this network; the '
                       r"file's names are those of vgg11$"):
        weights.load_variables(network, arrays, (224, 224, 3))
    network, shapes = shapes_of('inception_v3', multiplier=0.02, aux_weight=0.0)
    with_aux = models.create('inception_v3', multiplier=0.02)
    arrays = arrays_of(network, shapes) | {f'{name}.weight': np.zeros((2, 2)) for name in
                                           names.namings(with_aux)[0].auxiliary}
    assert weights.arrange(network, arrays, shapes).surplus == []
