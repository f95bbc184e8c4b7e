"""R-CNN and SPP-Net: warped regions, spatial pyramids at several scales, and what training changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import models
from jaxcnn.errors import UserError
from jaxcnn.models.detection import rcnn, spp_net
from jaxcnn.ops.roi import spatial_pyramid_pool
from jaxcnn.training.state import run_once

BACKBONE = 'alexnet(widths=(4, 6, 8), hidden=8, lrn=False)'
BOXES = np.array([[3, 5, 17, 40], [20, 2, 21, 3], [0, 0, 48, 40], [30.5, 20.25, 46, 30], [5, 5, 5, 9]], np.float32)


def warp(image, box, size, context, mode):
    """Return the region by loops over the pixels of the result and of the image."""
    x0, y0, x1, y1 = map(float, box)
    result = np.zeros((size, size, image.shape[-1]))
    if x1 <= x0 or y1 <= y0:
        return result
    square = mode != 'anisotropic'
    weights = []
    for begin, end, pixels in ((y0, y1, image.shape[0]), (x0, x1, image.shape[1])):
        side = max(x1 - x0, y1 - y0) if square else end - begin
        scale = side / (size - 2 * context)  # pixels of the image for one of the result
        center = (begin + end) / 2
        half = (end - begin if mode == 'square_mean' else side) / 2 + context * scale
        low, high = max(center - half, 0), min(center + half, pixels)
        matrix = np.zeros((size, pixels))
        for i in range(size):
            position = center + (i + 0.5 - size / 2) * scale
            if low < position < high:
                for j in range(pixels):
                    if j + 1 > low and j < high:
                        matrix[i, j] = max(1 - abs(j + 0.5 - position) / max(scale, 1), 0)
                matrix[i] /= matrix[i].sum()
        weights.append(matrix)
    return np.einsum('ph,qw,hwc->pqc', *weights, image)


@pytest.mark.parametrize('mode', rcnn.WARPS)
def test_regions_are_warped_as_by_loops(mode):
    image = np.random.default_rng(0).normal(size=(40, 48, 2)).astype(np.float32)
    warped = jax.jit(functools.partial(rcnn.warp_regions, size=12, context=2, mode=mode))(image, BOXES)
    np.testing.assert_allclose(warped, [warp(image, box, 12, 2, mode) for box in BOXES], atol=1e-5)


def test_shown_pixels_of_the_three_warps_are_those_of_the_paper():
    image, box = jnp.ones((100, 100, 1)), jnp.array([[40.0, 30.0, 60.0, 70.0]])  # 20 wide and 40 high
    shown = {mode: rcnn.warp_regions(image, box, 48, 4, mode)[0, :, :, 0].sum((0, 1)) for mode in rcnn.WARPS}
    assert shown == {'anisotropic': 48 * 48, 'square_context': 48 * 48, 'square_mean': 48 * 28}
    corner = rcnn.warp_regions(image, jnp.array([[0.0, 0.0, 40.0, 40.0]]), 48, 4, 'anisotropic')[0, :, :, 0]
    np.testing.assert_array_equal(corner, np.pad(np.ones((44, 44)), ((4, 0), (4, 0))))


def test_regions_are_pooled_from_the_nearest_scale():
    levels, sizes = (3, 1), [(64, 80), (128, 160), (256, 320)]
    rng = np.random.default_rng(0)
    features = [jnp.asarray(rng.normal(size=(2, h // 16, w // 16, 3)), jnp.float32) for h, w in sizes]
    boxes = rng.uniform(0, 60, (2, 30, 2))
    boxes = np.concatenate([boxes, boxes + rng.uniform(1, 60, boxes.shape)], -1).astype(np.float32)
    pooled = jax.jit(lambda f, b: spp_net.pool_at_nearest_scale(f, b, (64, 80), sizes, 16, 8.0, levels, 60),
                     compiler_options=run_once())(features, boxes)
    pool = jax.jit(lambda f, b: spatial_pyramid_pool(f, b, 16, 8.0, levels), compiler_options=run_once())
    scales = set()
    for i in range(2):
        for box, result in zip(boxes[i], pooled[i], strict=True):
            area = (box[2] - box[0]) * (box[3] - box[1])
            best = min(range(3), key=lambda k: abs(area * 4 ** k - 3600))
            scales.add(best)
            expected = pool(features[best][i], box[None] * 2 ** best)[0]
            np.testing.assert_array_equal(result, expected)
    assert scales == {0, 1, 2}


def make_targets(rng):
    boxes = jnp.asarray([[[8, 8, 40, 40], [0, 0, 0, 0]], [[20, 10, 60, 50], [2, 2, 30, 20]]], jnp.float32)
    proposals = jnp.asarray(rng.uniform(0, 30, (2, 9, 2)), jnp.float32)
    proposals = jnp.concatenate([proposals, proposals + 24], -1)
    return {'boxes': boxes, 'classes': jnp.array([[1, 0], [0, 2]]), 'valid': jnp.array([[True, False], [True, True]]),
            'difficult': jnp.zeros((2, 2), bool), 'proposals': proposals,
            'proposal_valid': jnp.arange(18).reshape(2, 9) != 8, 'key': jax.random.split(jax.random.key(1), 2)}


@pytest.mark.parametrize(('name', 'fields'), [
    ('rcnn', {'region_size': 63, 'context': 4, 'region_part': 4}), ('spp_net', {'scales': (64, 96), 'region_size': 40})])
def test_systems_train_what_the_papers_train_and_detect_proposals(name, fields):
    network = models.create(name, num_classes=3, backbone=BACKBONE, roi_batch=8, conv_implementation='xla',
                            score_threshold=0.0, **fields)
    rng = np.random.default_rng(0)
    images, targets = jnp.asarray(rng.normal(size=(2, 64, 64, 3)), jnp.float32), make_targets(rng)
    variables = jax.jit(network.init, compiler_options=run_once())(jax.random.key(0), images[:1])

    def loss(params):
        output = network.apply({'params': params}, images, train=True, targets=targets, rngs={'dropout': jax.random.key(0)})
        assert list(output) == ['classes'] == list(network.loss_terms())
        return output['classes'].sum()
    value, gradients = jax.jit(jax.value_and_grad(loss), compiler_options=run_once())(variables['params'])
    assert np.isfinite(value)
    trained = {key for key, tree in gradients['backbone'].items() if jnp.abs(tree['kernel']).max() > 0}
    layers = {f'Conv_{i}' for i in range(3)} if name == 'rcnn' else set()
    dense = {f'Dense_{i}' for i in range(3 if name == 'rcnn' else 2)}
    assert trained == layers | dense

    proposals = {key: targets[key] for key in ('proposals', 'proposal_valid')}
    detect = jax.jit(lambda v: network.apply(v, images, proposals=proposals), compiler_options=run_once())
    detections = detect(variables)
    assert detections['valid'].sum() > 10
    if name == 'rcnn':
        def classify(params, box):
            region = network.warp_image(images[1], box[None])
            return jax.nn.softmax(network.backbone_network().clone(num_classes=4).apply({'params': params}, region))[0, :3]
        one_by_one = jax.jit(classify, compiler_options=run_once())
        best = max(one_by_one(variables['params']['backbone'], box).max() for box in proposals['proposals'][1])
        np.testing.assert_allclose(detections['scores'][1].max(), best, rtol=1e-4)
    for i in range(2):  # boxes are those of valid proposals
        boxes = np.clip(targets['proposals'][i], 0, 64)[np.asarray(targets['proposal_valid'][i])]
        allowed = {tuple(box) for box in boxes.tolist()}
        assert {tuple(box) for box in np.asarray(detections['boxes'][i][detections['valid'][i]]).tolist()} <= allowed


@pytest.mark.parametrize(('name', 'fields', 'message'), [
    ('rcnn', {'warp': 'square'}, 'warp'), ('rcnn', {'context': 40, 'region_size': 80}, 'context must be'),
    ('rcnn', {'region_size': 20, 'context': 0}, 'region_size must be at least'),
    ('spp_net', {'scales': (480, 20)}, 'scales must be at'),
    ('spp_net', {'dropout': 0.3}, r'dropout is a field of the backbone.*set dropout=0\.0.*"zfnet\(dropout=0\.3\)"'),
    ('spp_net', {'backbone': 'vgg16', 'hidden': 8}, r'hidden is a field of the backbone.*backbone="vgg16\(hidden=8\)"'),
    ('rcnn', {'kernel_init': 'lecun_normal'}, 'kernel_init is a field of the backbone'),
    ('rcnn', {'roi_pool': 'max'}, "unknown field of model rcnn 'roi_pool'; nearest: .*roi_low"),
    ('rcnn', {'backbone': 'resnet19'}, "backbone: unknown model 'resnet19'"),
    ('rcnn', {'backbone': 'vgg16(head="dense_conv")'}, "^backbone: R-CNN needs one row of logits .*'dense'")])
def test_fields_that_do_not_fit_are_reported(name, fields, message):
    with pytest.raises(UserError, match=message):
        models.create(name, **fields)
