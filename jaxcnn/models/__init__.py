"""Networks and their registry: `create` builds a network by name, `names` lists the names."""

from jaxcnn.models import (
    airbench,
    alexnet,
    detection,
    efficientnet,
    googlenet,
    inception,
    inception_resnet,
    leedl,
    lenet,
    mobilenet,
    nin,
    resnet,
    sequential,
    shallow,
    t2t_vit,
    vgg,
)
from jaxcnn.models.network import Network
from jaxcnn.models.registry import add_family, create, names, register

__all__ = ['Network', 'create', 'names', 'register']

for _family in (
        lenet, shallow, alexnet, vgg, nin, leedl, googlenet, inception, inception_resnet, resnet, mobilenet, efficientnet,
        t2t_vit, airbench, sequential, detection):
    add_family(_family.MODELS)
