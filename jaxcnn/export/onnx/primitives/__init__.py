"""The conversion of JAX's primitives to nodes of ONNX, one module for each kind."""

from jaxcnn.export.onnx.primitives import convolution, elementwise, gather, products, reductions, shapes, windows
from jaxcnn.export.onnx.primitives.registry import CONVERTERS, ELEMENTWISE, IDENTITIES

__all__ = ['CONVERTERS', 'ELEMENTWISE', 'IDENTITIES', 'convolution', 'elementwise', 'gather', 'products', 'reductions',
           'shapes', 'windows']
