"""Simplification of a graph: BatchNorm and biases become part of the convolutions before them."""

import collections
import re
from collections.abc import Callable

import numpy as np

from jaxcnn.export.onnx.graph import Graph, Node

_AFFINE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    'Add': np.add, 'Sub': np.subtract, 'Mul': np.multiply, 'Div': np.divide}

Derived = dict[tuple[str, str, str], str]  # names of computed constants by operand, operation and operand


def fuse(graph: Graph, outputs: set[str]) -> None:
    """Fold additions and multiplications by a constant for each channel into convolutions, and write ReLU6 as one node.

    Args:
      graph: its nodes and constants are replaced.
      outputs: names of the arrays that must remain.
    """
    uses = collections.Counter(name for node in graph.nodes for name in node.inputs)
    uses.update(outputs)
    producers: dict[str, Node] = {}
    derived: Derived = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        if not (_fuse_into_conv(graph, node, producers, uses, derived) or _fuse_into_clip(graph, node, producers, uses)):
            nodes.append(node)
            producers.update(dict.fromkeys(node.outputs, node))
    graph.nodes = nodes
    remove_unused(graph, outputs)
    _restore_names(graph)


def remove_unused(graph: Graph, outputs: set[str]) -> None:
    """Remove the nodes and constants on which no output depends."""
    needed, nodes = set(outputs), []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            nodes.append(node)
            needed.update(node.inputs)
    graph.nodes = nodes[::-1]
    graph.constants = {name: array for name, array in graph.constants.items() if name in needed}


def _restore_names(graph: Graph) -> None:
    """Give weights that replaced others the names of these."""
    names: dict[str, str] = {}
    for name in graph.constants:
        original = re.sub(r'(/\w+?)(_\d+)+$', r'\1', name)
        if name in graph.replacements and original not in graph.constants and original not in names.values():
            names[name] = original
    graph.constants = {names.get(name, name): array for name, array in graph.constants.items()}
    for node in graph.nodes:
        node.inputs = [names.get(name, name) for name in node.inputs]


def _fuse_into_conv(graph: Graph, node: Node, producers: dict[str, Node], uses: collections.Counter,
                    derived: Derived) -> bool:
    """Fold an elementwise node into the convolution that computes one of its operands, and return whether it did."""
    if node.op not in _AFFINE:
        return False
    for position, (name, other) in enumerate((node.inputs, node.inputs[::-1])):
        conv, array = producers.get(name), graph.constants.get(other)
        if conv is None or conv.op != 'Conv' or array is None or uses[name] != 1 or conv.inputs[1] not in graph.constants:
            continue
        if position and node.op in ('Sub', 'Div'):  # the constant is the first operand
            continue
        kernel_name, *bias_names = conv.inputs[1:]
        kernel = graph.constants[kernel_name]
        features = len(kernel)
        if array.size not in (1, features) or (array.size > 1 and (array.ndim != kernel.ndim or array.shape[1] != features)):
            continue
        values = np.broadcast_to(array.reshape(-1).astype(np.float64), features)
        operation = _AFFINE[node.op]
        bias_name = bias_names[0] if bias_names else kernel_name.rpartition('/')[0] + '/bias'
        bias = graph.constants[bias_name] if bias_names else np.zeros(features, kernel.dtype)
        bias_key = (bias_name if bias_names else '', node.op, other)
        new_bias = operation(bias.astype(np.float64), values).astype(kernel.dtype)
        if node.op in ('Mul', 'Div'):
            scaled = operation(kernel.astype(np.float64), values.reshape(-1, *[1] * (kernel.ndim - 1)))
            kernel_name = _derive(graph, kernel_name, (kernel_name, node.op, other), scaled.astype(kernel.dtype), derived)
        conv.inputs[1:] = [kernel_name, _derive(graph, bias_name, bias_key, new_bias, derived)]
        del producers[name]
        conv.outputs = list(node.outputs)
        producers[node.outputs[0]] = conv
        return True
    return False


def _derive(graph: Graph, name: str, key: tuple[str, str, str], array: np.ndarray, derived: Derived) -> str:
    """Return the name of a constant that is computed from others; several convolutions may share it."""
    if key not in derived or not np.array_equal(graph.constants[derived[key]], array):
        derived[key] = graph.unique(name.lstrip('/'))
        graph.constants[derived[key]] = array
        graph.replacements.add(derived[key])
    return derived[key]


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
