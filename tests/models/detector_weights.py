"""Weights of small detectors that torchvision and jaxcnn both compute from a seed, so that no file holds them."""

import zlib

import numpy as np

WIDTH = 8  # features of the first stage of the ResNet, which has one block in each stage
FEATURES = {'faster_rcnn': 32, 'fcos': 64}  # of the pyramid
HEAD_FEATURES = 32
CLASSES = 3  # without the background
HEIGHT, IMAGE_WIDTH = 64, 128
BOXES = np.array([[5.3, 8.1, 50.2, 47.7], [60.4, 10.9, 90.6, 31.2], [20.7, 3.4, 121.3, 60.8]], np.float32)
LABELS = np.array([0, 2, 1])
# factors of the standard deviations of kernels, by layer, for logits of a few units and offsets below 1
SCALES = {'rpn.head.cls_logits': 0.06, 'rpn.head.bbox_pred': 0.015, 'roi_heads.box_predictor.cls_score': 0.05,
          'roi_heads.box_predictor.bbox_pred': 0.05, 'head.classification_head.cls_logits': 2.0,
          'head.regression_head.bbox_reg': 2.0}


def image():
    """Return an image (3, H, W)."""
    return np.random.RandomState(0).normal(size=(3, HEIGHT, IMAGE_WIDTH)).astype(np.float32)


def weight(name, shape):
    """Return the parameter or the statistic of torchvision's detectors with this name."""
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    layer, _, kind = name.rpartition('.')
    if kind == 'running_var' or (kind == 'weight' and len(shape) == 1):
        values = rng.uniform(0.5, 1.5, shape)
    elif len(shape) == 1:
        values = 0.1 * rng.normal(size=shape)
    else:
        values = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:])) * SCALES.get(layer, 1)
    return values.astype(np.float32)
