"""Networks that locate objects in images."""

from jaxcnn.models.detection import fast_rcnn, faster_rcnn, fcos, rcnn, spp_net
from jaxcnn.models.detection.base import Detections, Detector

__all__ = ['MODELS', 'Detections', 'Detector']

MODELS = {**rcnn.MODELS, **spp_net.MODELS, **fast_rcnn.MODELS, **faster_rcnn.MODELS, **fcos.MODELS}
