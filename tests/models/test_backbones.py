"""Classifiers as backbones of detectors: their feature maps, and their other layers applied to regions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxcnn import models
from jaxcnn.analysis.layer_fields import map_fields
from jaxcnn.errors import UserError
from jaxcnn.models.vgg import VGG
from jaxcnn.training.state import run_once

BACKBONES = {
    'resnet18': dict(blocks=(1, 2, 1), width=4),
    'preresnet50': dict(blocks=(1, 1), width=4),
    'vgg11_bn': dict(stages=((4,), (6,)), hidden=8),
    'alexnet': dict(widths=(4, 6, 8, 6), hidden=8),
    'efficientnet_lite0': dict(multiplier=0.1, blocks=(1,) * 7, stem='small'),
}
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64, 64, 3)), jnp.float32)


class Detector(nn.Module):
    """A layer, and a backbone that gets each image's last feature map as a region, or with `last` only computes maps."""

    network: models.Network
    last: str = ''

    @nn.compact
    def __call__(self, x):
        layer = nn.Conv(2, (1, 1), name='layer')
        backbone = self.network.clone(name='backbone', parent=self)
        if self.last:
            return backbone.feature_maps(x, last=self.last)

        def pool(maps):
            regions = list(maps.values())[-1]
            layer(regions)
            if isinstance(backbone, VGG):
                return nn.max_pool(regions, (2, 2), (2, 2))
            return nn.max_pool(regions, (3, 3), (2, 2)) if name == 'conv4' else regions
        name = backbone.region_input()[0]
        return backbone.region_features(x, False, pool)


def create(name):
    return models.create(name, conv_implementation='xla', **BACKBONES[name])


@pytest.mark.parametrize('name', BACKBONES)
def test_a_backbone_computes_what_its_classifier_computes(name):
    network = create(name)
    variables = jax.jit(network.init, compiler_options=run_once())(jax.random.key(0), IMAGES)
    logits, maps = jax.jit(lambda v: network.apply(v, IMAGES, features=True), compiler_options=run_once())(variables)
    dense = max(key for key in variables['params'] if key.startswith('Dense'))
    for last in ('', network.region_input()[0]):
        detector = Detector(network, last)
        needed = jax.eval_shape(detector.init, jax.random.key(0), IMAGES)
        inside = {kind: {key: variables[kind][key] for key in needed[kind]['backbone']} for kind in variables}
        assert jax.tree.map(jnp.shape, inside) == {
            kind: jax.tree.map(jnp.shape, needed[kind]['backbone']) for kind in variables}
        missing = set(variables['params']) - set(inside['params'])
        assert missing == {dense} if not last else dense in missing
        placed = {kind: {'backbone': tree} for kind, tree in inside.items()}
        if not last:
            placed['params']['layer'] = jax.tree.map(lambda x: jnp.zeros(x.shape), needed['params']['layer'])
        result = jax.jit(detector.apply, compiler_options=run_once())(placed, IMAGES)
        if last:
            np.testing.assert_allclose(result[last], maps[last], rtol=1e-5, atol=1e-5)
            names = [step.name for step in network.steps(False)]
            assert set(result) == set(names[:names.index(last) + 1])
        else:
            weights = variables['params'][dense]
            np.testing.assert_allclose(result @ weights['kernel'] + weights['bias'], logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('name', 'fields'), [
    ('resnet18', {}), ('resnet18', {'stem': 'small', 'preact': True}), ('vgg11', {'hidden': 8}), ('alexnet', {'hidden': 8}),
    ('zfnet', {'hidden': 8}), ('efficientnet_lite0', {}), ('mobilenet_v2', {'stem': 'small'})])
def test_the_geometry_of_maps_is_that_of_their_receptive_fields(name, fields):
    network = models.create(name, conv_implementation='xla', **fields)
    shape = (128, 128, 3)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *shape)))
    fields = map_fields(network, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes), shape)
    assert list(fields) == [step.name for step in network.steps(False)]
    for map_name, field in fields.items():
        stride, first_center = network.map_geometry(map_name)
        low, high = field.first[0]
        assert (stride, first_center) == (field.stride[0], (low + high + 1) / 2)


def test_networks_without_steps_and_unknown_maps_are_reported():
    with pytest.raises(UserError, match='cannot be the backbone'):
        models.create('lenet5').map_geometry('conv1')
    with pytest.raises(UserError, match='stage9'):
        models.create('resnet18').map_geometry('stage9')
