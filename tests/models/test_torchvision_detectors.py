"""Faster R-CNN and FCOS against torchvision's, with the same weights, image and boxes."""

import pathlib
import re

import detector_weights
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import models
from jaxcnn.errors import UserError
from jaxcnn.models.detection.faster_rcnn import FasterRCNN
from jaxcnn.models.detection.fcos import FCOS
from jaxcnn.models.detection.spp_net import SPPNet
from jaxcnn.training.state import run_once

REFERENCE = np.load(pathlib.Path(__file__).with_name('torchvision_detectors.npz'))
BACKBONE = f'resnet18(blocks=(1, 1, 1, 1), width={detector_weights.WIDTH})'
IMAGES = jnp.asarray(np.stack([detector_weights.image()[:, ::-1], detector_weights.image()]).transpose(0, 2, 3, 1))
FIELDS = dict(num_classes=detector_weights.CLASSES, backbone=BACKBONE, conv_implementation='xla', bn_frozen=True)
TARGETS = {'boxes': jnp.zeros((2, 5, 4)).at[1, :3].set(detector_weights.BOXES),
           'classes': jnp.zeros((2, 5), int).at[1, :3].set(detector_weights.LABELS),
           'valid': jnp.zeros((2, 5), bool).at[1, :3].set(True), 'difficult': jnp.zeros((2, 5), bool),
           'key': jax.random.split(jax.random.key(0), 2)}
captured: dict[str, jax.Array] = {}  # what the stages of the last traced detector return


class RecordedFasterRCNN(FasterRCNN):
    """Keeps what the stages return."""

    @nn.nowrap
    def predict_anchors(self, levels):
        logits, deltas, anchors = super().predict_anchors(levels)
        captured.update(rpn_logits=jnp.concatenate(logits, 1), rpn_deltas=jnp.concatenate(deltas, 1))
        return logits, deltas, anchors

    @nn.nowrap
    def region_detections(self, regions, logits, deltas, shape):
        captured.update(proposals=regions.boxes, class_logits=logits, box_deltas=deltas)
        return super().region_detections(regions, logits, deltas, shape)


class RecordedFCOS(FCOS):
    """Keeps the predictions, the offsets in strides."""

    @nn.nowrap
    def predict(self, x, train, maps):
        result = classes, sides, centerness, _, strides, _ = super().predict(x, train, maps)
        captured.update(cls_logits=classes, bbox_regression=sides / strides[:, None], bbox_ctrness=centerness[..., None])
        return result


def layer(name, shape):
    """Return the parameters of a layer, of which torchvision's kernel has this shape."""
    kernel = detector_weights.weight(f'{name}.weight', shape)
    kernel = kernel.T if len(shape) == 2 else kernel.transpose(2, 3, 1, 0)
    return {'kernel': kernel, 'bias': detector_weights.weight(f'{name}.bias', shape[:1])}


def backbone_variables(prefix):
    """Return the parameters and the statistics of the ResNet."""
    params, statistics = {}, {}

    def add(conv, norm, shape):
        index = len(statistics)
        kernel = detector_weights.weight(f'{prefix}{conv}.weight', shape).transpose(2, 3, 1, 0)
        scale, bias, mean, var = (detector_weights.weight(f'{prefix}{norm}.{kind}', shape[:1])
                                  for kind in ('weight', 'bias', 'running_mean', 'running_var'))
        params.update({f'Conv_{index}': {'kernel': kernel}, f'BatchNorm_{index}': {'scale': scale, 'bias': bias}})
        statistics[f'BatchNorm_{index}'] = {'mean': mean, 'var': var}
    width = detector_weights.WIDTH
    add('conv1', 'bn1', (width, 3, 7, 7))
    for stage in range(4):
        inputs, outputs, name = width << max(stage - 1, 0), width << stage, f'layer{stage + 1}.0'
        if stage:
            add(f'{name}.downsample.0', f'{name}.downsample.1', (outputs, inputs, 1, 1))
        add(f'{name}.conv1', f'{name}.bn1', (outputs, inputs, 3, 3))
        add(f'{name}.conv2', f'{name}.bn2', (outputs, outputs, 3, 3))
    return params, statistics


def pyramid(features, stages):
    prefix = 'backbone.fpn'
    return {f'{ours}{i}': layer(f'{prefix}.{theirs}_blocks.{i}.0', shape) for i, stage in enumerate(stages)
            for ours, theirs, shape in (('lateral', 'inner', (features, detector_weights.WIDTH << stage, 1, 1)),
                                        ('output', 'layer', (features, features, 3, 3)))}


def faster_rcnn_variables():
    features, hidden = detector_weights.FEATURES['faster_rcnn'], detector_weights.HEAD_FEATURES
    classes = detector_weights.CLASSES
    backbone, statistics = backbone_variables('backbone.body.')
    head = layer('roi_heads.box_head.fc6', (hidden, features * 49))
    head['kernel'] = head['kernel'].reshape(features, 49, hidden).transpose(1, 0, 2).reshape(-1, hidden)  # channels last
    logits = jax.tree.map(lambda x: np.roll(x, -1, -1), layer('roi_heads.box_predictor.cls_score', (classes + 1, hidden)))
    offsets = jax.tree.map(lambda x: x[..., 4:], layer('roi_heads.box_predictor.bbox_pred', (4 * classes + 4, hidden)))
    params = {'backbone': backbone, 'fpn': pyramid(features, range(4)), 'head1': head,
              'head2': layer('roi_heads.box_head.fc7', (hidden, hidden)), 'classes': logits, 'boxes': offsets,
              'rpn': {'conv': layer('rpn.head.conv.0.0', (features, features, 3, 3)),
                      'objectness': layer('rpn.head.cls_logits', (3, features, 1, 1)),
                      'boxes': layer('rpn.head.bbox_pred', (12, features, 1, 1))}}
    return {'params': params, 'batch_stats': {'backbone': statistics}}


def fcos_variables():
    features, square = detector_weights.FEATURES['fcos'], (detector_weights.FEATURES['fcos'],) * 2 + (3, 3)
    backbone, statistics = backbone_variables('backbone.body.')
    extra = {f'extra{i}': layer(f'backbone.fpn.extra_blocks.p{i + 6}', square) for i in range(2)}
    params = {'backbone': backbone, 'fpn': pyramid(features, range(1, 4)) | extra, 'scales': np.ones(5, np.float32)}
    for tower, theirs in (('classes', 'classification'), ('boxes', 'regression')):
        for i in range(4):
            name = f'head.{theirs}_head.conv.{{}}'.format
            params[f'{tower}{i}'] = layer(name(3 * i), square)
            params[f'{tower}_norm{i}'] = {ours: detector_weights.weight(f'{name(3 * i + 1)}.{theirs}', (features,))
                                          for ours, theirs in (('scale', 'weight'), ('bias', 'bias'))}
    for ours, theirs, count in (('class_logits', 'classification_head.cls_logits', detector_weights.CLASSES),
                                ('sides', 'regression_head.bbox_reg', 4), ('centerness', 'regression_head.bbox_ctrness', 1)):
        params[ours] = layer(f'head.{theirs}', (count, features, 3, 3))
    return {'params': params, 'batch_stats': {'backbone': statistics}}


@pytest.mark.parametrize('name', ['faster_rcnn', 'fcos'])
def test_a_detector_computes_what_torchvisions_computes(name):
    """Of the second image of a batch; the first one, which is upside down, has no objects in training."""
    network, variables, terms = {
        'faster_rcnn': lambda: (RecordedFasterRCNN(
            **FIELDS, fpn_features=detector_weights.FEATURES[name], head_features=detector_weights.HEAD_FEATURES,
            anchor_sizes=(8, 16, 32, 64, 128), pre_nms=(200, 100), post_nms=(100, 50), rpn_batch=8192, roi_batch=512,
            roi_aligned=False), faster_rcnn_variables(),
            {'classes': 'loss_classifier', 'boxes': 'loss_box_reg', 'rpn_objectness': 'loss_objectness',
             'rpn_boxes': 'loss_rpn_box_reg'}),
        'fcos': lambda: (RecordedFCOS(
            **FIELDS, fpn_features=detector_weights.FEATURES[name], nms_threshold=0.6, pre_nms=50,
            point_convention='torchvision', weighted_boxes=False), fcos_variables(),
            {'classes': 'classification', 'boxes': 'bbox_regression', 'centerness': 'bbox_ctrness'})}[name]()
    shapes = jax.eval_shape(network.init, jax.random.key(0), IMAGES)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)

    def detect(variables):
        captured.clear()
        return network.apply(variables, IMAGES), dict(captured)
    detections, stages = jax.jit(detect, compiler_options=run_once())(variables)
    for key, value in stages.items():
        expected = REFERENCE[key]
        if key == 'class_logits':
            expected = np.roll(expected, -1, -1)
        elif key == 'box_deltas':
            expected = expected[:, 4:].reshape(value.shape[1:])
        np.testing.assert_allclose(value[1], expected, rtol=1e-4, atol=1e-3, err_msg=key)
    expected = {key: REFERENCE[f'{name}_{key}'] for key in ('boxes', 'scores', 'labels')}
    has_area = (expected['boxes'][:, 2:] > expected['boxes'][:, :2]).all(1)  # torchvision's FCOS has empty boxes, too
    expected = {key: values[has_area] for key, values in expected.items()}
    count = len(expected['scores'])
    assert detections['valid'][1].sum() == count > 20
    assert (detections['classes'][1, :count] + (name == 'faster_rcnn')).tolist() == expected['labels'].tolist()
    np.testing.assert_allclose(detections['scores'][1, :count], expected['scores'], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(detections['boxes'][1, :count], expected['boxes'], rtol=1e-4, atol=1e-3)

    losses = jax.jit(lambda v: network.apply(v, IMAGES, True, targets=TARGETS), compiler_options=run_once())(variables)
    assert set(losses) == set(terms) == set(network.loss_terms())
    assert all(np.isfinite(values).all() for values in losses.values())
    for term, key in terms.items():
        np.testing.assert_allclose(losses[term][1], REFERENCE[f'{name}_{key}'], rtol=1e-4, err_msg=term)


@pytest.mark.parametrize(('detector', 'outputs'), [
    (FasterRCNN, {'boxes', 'classes', 'rpn/boxes', 'rpn/objectness'}), (FCOS, {'centerness', 'class_logits', 'sides'}),
    (SPPNet, {'classes'})])
def test_images_have_any_size_and_the_last_layers_alone_compute_in_float32(detector, outputs):
    """The sides of the images are no multiples of the strides of a pyramid."""
    dtypes = {}

    def record(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if isinstance(context.module, nn.Conv | nn.Dense):
            dtypes['/'.join(context.module.path)] = output.dtype.name
        return output
    with nn.intercept_methods(record):
        init = detector(**FIELDS, dtype='bfloat16').init_with_output
        detections = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 100, 76, 3)))[0]
    assert detections['boxes'].shape == (1, 100, 4)
    assert {name for name, dtype in dtypes.items() if dtype == 'float32'} == outputs
    assert {dtype for name, dtype in dtypes.items() if name not in outputs} == {'bfloat16'}


@pytest.mark.parametrize(('name', 'fields', 'message'), [
    ('fcos', {'backbone': 'resnet20_cifar'}, 'no feature map of stride 8'),
    ('faster_rcnn', {'backbone': "resnet18(stem='small')"}, 'its strides are 1, 2, 4, 8'),
    ('faster_rcnn', {'bn_momentum': 0.99}, 'backbone="resnet18(bn_momentum=0.99)"'),
    ('faster_rcnn', {'roi_size': -1}, 'roi_size'), ('faster_rcnn', {'rpn_features': -1}, 'rpn_features')])
def test_fields_with_which_no_detector_can_be_built_are_reported(name, fields, message):
    with pytest.raises(UserError, match=re.escape(message)):
        jax.eval_shape(models.create(name, **fields).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))


def test_positions_within_difficult_objects_are_ignored_unless_they_belong_to_another_object():
    points, strides = jnp.array([[4.0, 4], [28, 28], [100, 60]]), jnp.full(3, 8)
    targets = {'boxes': jnp.array([[10.0, 10, 50, 50], [0, 0, 90, 90], [0, 0, 128, 64]]),
               'valid': jnp.array([True, True, False]), 'difficult': jnp.array([False, True, False])}
    index, is_object, is_ignored = FCOS(**FIELDS).assign(points, strides, targets)
    assert (index[1], is_object.tolist(), is_ignored.tolist()) == (0, [False, True, False], [True, False, False])


def test_regions_and_anchors_on_difficult_objects_are_neither_objects_nor_background():
    """The second and the third region are on a difficult object."""
    network = FasterRCNN(**FIELDS, roi_batch=8, rpn_batch=8)
    boxes = jnp.array([[0.0, 0, 20, 20], [40, 0, 60, 20], [40, 0, 60, 18], [0, 40, 20, 60]])
    targets = {'boxes': boxes[None, :2], 'classes': jnp.array([[1, 0]]), 'valid': jnp.array([[True, True]]),
               'difficult': jnp.array([[False, True]]), 'key': jax.random.split(jax.random.key(0), 1)}

    def rpn_loss(logits, deltas):
        return sum(values.sum() for values in network.rpn_losses(logits, deltas, boxes, targets, (64, 64, 3)).values())

    def compute():
        regions = network.sample_regions(boxes[None], jnp.ones((1, 4), bool), targets)
        return regions, jax.grad(rpn_loss, (0, 1))(jnp.zeros((1, 4)), jnp.ones((1, 4, 4)))
    regions, (objectness, deltas) = jax.jit(compute, compiler_options=run_once())()
    labels = {tuple(box): int(label) for box, label in
              zip(regions.boxes[0][regions.valid[0]].tolist(), regions.labels[0][regions.valid[0]], strict=True)}
    assert labels == {(0, 0, 20, 20): 1, (0, 40, 20, 60): network.num_classes}
    np.testing.assert_array_equal(np.sign(objectness[0]), [-1, 0, 0, 1])  # the gradient raises the logit of the object
    np.testing.assert_array_equal(np.abs(deltas[0]).max(-1) > 0, [True, False, False, False])
