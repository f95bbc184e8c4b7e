"""Detectors have as many parameters as torchvision's, and `jaxcnn models` counts each of them."""

import pytest

from jaxcnn import models
from jaxcnn.analysis import complexity

# torchvision's figures are for 91 classes, without the scales and biases of BatchNorm. In Faster R-CNN, the classes include
# the background, which has boxes there and none here. Only our FCOS has scales of its five levels.
BATCH_NORM, BOX_OF_A_CLASS, SCALES = 53_120, 4 * (1024 + 1), 5
VGG16, DENSE_1000, RPN = 138_357_544, 4_097_000, 512 * 512 * 9 + 512 + 9 * 5 * (512 + 1)


@pytest.mark.parametrize(('name', 'classes', 'backbone', 'parameters'), [
    ('faster_rcnn', 90, 'resnet50', 41_755_286 + BATCH_NORM - BOX_OF_A_CLASS),
    ('fcos', 91, 'resnet50', 32_269_600 + BATCH_NORM + SCALES),
    ('faster_rcnn_vgg16', 20, 'vgg16', VGG16 - DENSE_1000 + RPN + (21 + 80) * (4096 + 1))])
def test_detectors_have_the_published_number_of_parameters(name, classes, backbone, parameters):
    cost = complexity.cost(models.create(name, classes, backbone=backbone), (128, 128, 3), 1)
    assert (cost.parameters, cost.auxiliary_parameters) == (parameters, 0)
    layers = {layer.name: layer for layer in cost.layers}
    head = layers['class_logits' if name == 'fcos' else 'rpn/conv']
    assert head.parameters == 3 * 3 * (512 if name == 'faster_rcnn_vgg16' else 256) * (head.shape[-1]) + head.shape[-1]
