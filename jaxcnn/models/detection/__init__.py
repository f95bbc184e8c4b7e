"""Networks that locate objects in images."""

from jaxcnn.models.detection import fast_rcnn, faster_rcnn, fcos
from jaxcnn.models.detection.base import Detections, Detector

__all__ = ['MODELS', 'Detections', 'Detector']

MODELS = {**fast_rcnn.MODELS, **faster_rcnn.MODELS, **fcos.MODELS}
