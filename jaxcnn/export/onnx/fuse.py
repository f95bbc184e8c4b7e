"""Simplification of a graph: BatchNorm and biases become part of the convolutions before them."""

import collections
from collections.abc import Callable

import numpy as np

from jaxcnn.export.onnx.graph import Graph, Node

_AFFINE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    'Add': np.add, 'Sub': np.subtract, 'Mul': np.multiply, 'Div': np.divide}


def fuse(graph: Graph, outputs: set[str]) -> None:
    """Fold additions and multiplications by a constant for each channel into convolutions, and write ReLU6 as one node.

    Args:
      graph: its nodes and constants are replaced.
      outputs: names of the arrays that must remain.
    """
    uses = collections.Counter(name for node in graph.nodes for name in node.inputs)
    uses.update(outputs)
    producers: dict[str, Node] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        if not (_fuse_into_conv(graph, node, producers, uses) or _fuse_into_clip(graph, node, producers, uses)):
            nodes.append(node)
            producers.update(dict.fromkeys(node.outputs, node))
    graph.nodes = nodes
    remove_unused(graph, outputs)


def remove_unused(graph: Graph, outputs: set[str]) -> None:
    """Remove the nodes and constants on which no output depends."""
    needed, nodes = set(outputs), []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            nodes.append(node)
            needed.update(node.inputs)
    graph.nodes = nodes[::-1]
    graph.constants = {name: array for name, array in graph.constants.items() if name in needed}


def _fuse_into_conv(graph: Graph, node: Node, producers: dict[str, Node], uses: collections.Counter) -> bool:
    """Fold an elementwise node into the convolution that computes one of its operands, and return whether it did."""
    if node.op not in _AFFINE:
        return False
    for position, (name, other) in enumerate((node.inputs, node.inputs[::-1])):
        conv, array = producers.get(name), graph.constants.get(other)
        if conv is None or conv.op != 'Conv' or array is None or uses[name] != 1 or conv.inputs[1] not in graph.constants:
            continue
        if position and node.op in ('Sub', 'Div'):  # the constant is the first operand
            continue
        kernel = graph.constants[conv.inputs[1]]
        features = len(kernel)
        if array.size not in (1, features) or (array.size > 1 and (array.ndim != kernel.ndim or array.shape[1] != features)):
            continue
        values = np.broadcast_to(array.reshape(-1).astype(np.float64), features)
        operation = _AFFINE[node.op]
        bias = graph.constants[conv.inputs[2]] if len(conv.inputs) > 2 else np.zeros(features, kernel.dtype)
        if node.op in ('Mul', 'Div'):
            scaled = operation(kernel.astype(np.float64), values.reshape(-1, *[1] * (kernel.ndim - 1)))
            conv.inputs[1] = _replace(graph, conv.inputs[1], scaled.astype(kernel.dtype), uses)
        label = conv.inputs[2] if len(conv.inputs) > 2 else conv.inputs[1].rpartition('/')[0] + '/bias'
        bias = operation(bias.astype(np.float64), values).astype(kernel.dtype)
        conv.inputs[2:] = [_replace(graph, label, bias, uses)]
        del producers[name]
        conv.outputs = list(node.outputs)
        producers[node.outputs[0]] = conv
        return True
    return False


def _replace(graph: Graph, name: str, array: np.ndarray, uses: collections.Counter) -> str:
    """Store a constant in the place of another one that only one node uses, and return its name."""
    if name in graph.constants and uses[name] > 1:
        uses[name] -= 1
        name = graph.unique(name)
    elif name not in graph.constants:
        name = graph.unique(name.lstrip('/'))
    uses[name] = 1
    graph.constants[name] = array
    return name


def _fuse_into_clip(graph: Graph, node: Node, producers: dict[str, Node], uses: collections.Counter) -> bool:
    """Write the minimum of a ReLU and a number as one node, and return whether it was such a minimum."""
    if node.op != 'Min' or len(node.inputs) != 2:
        return False
    for name, other in (node.inputs, node.inputs[::-1]):
        relu, limit = producers.get(name), graph.constants.get(other)
        if relu is None or relu.op != 'Relu' or limit is None or limit.size != 1 or uses[name] != 1:
            continue
        zero, high = graph.unique('low'), graph.unique('high')
        graph.constants[zero], graph.constants[high] = np.zeros((), limit.dtype), limit.reshape(())
        del producers[name]
        relu.op, relu.inputs, relu.outputs = 'Clip', [relu.inputs[0], zero, high], list(node.outputs)
        producers[node.outputs[0]] = relu
        return True
    return False
