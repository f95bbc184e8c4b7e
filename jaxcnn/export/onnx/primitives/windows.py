"""Pooling: reductions of windows."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcnn.export.onnx.graph import Graph, Tensor, constant
from jaxcnn.export.onnx.primitives.elementwise import apply
from jaxcnn.export.onnx.primitives.registry import converts, unsupported


def _pool(graph: Graph, eqn: Any, x: Tensor, op: str, padding_value: float, **attributes: Any) -> Tensor:
    """Add a pooling over the axes between the first and the last."""
    params = eqn.params
    window, strides, padding = (tuple(params[name]) for name in ('window_dimensions', 'window_strides', 'padding'))
    is_image_window = window[0] == window[-1] == strides[0] == strides[-1] == 1 and not any((*padding[0], *padding[-1]))
    if len(window) < 3 or not is_image_window:
        raise unsupported(graph, eqn, f'the window is {window}')
    if any(d != 1 for d in (*params['base_dilation'], *params['window_dilation'])):
        raise unsupported(graph, eqn, 'it is dilated')
    pads = [int(low) for low, _ in padding[1:-1]] + [int(high) for _, high in padding[1:-1]]
    x = graph.in_order(graph.full(x), channels_first=True)
    if any(pad >= size for pad, size in zip(pads, 2 * window[1:-1], strict=True)):  # which ONNX does not allow
        count = len(window) - 2
        zeros = [0, 0]
        value = constant(np.asarray(padding_value, x.dtype), 'scalar')
        padded = (x.shape[0], *(n + low + high for n, (low, high) in zip(x.shape[1:-1], padding[1:-1], strict=True)),
                  x.shape[-1])
        x = graph.add('Pad', [x, graph.ints([*zeros, *pads[:count], *zeros, *pads[count:]]), value], padded, x.dtype,
                      channels_first=True)
        pads = [0] * len(pads)
    return graph.add(op, [x], eqn.outvars[0].aval.shape, x.dtype, channels_first=True,
                     kernel_shape=[int(n) for n in window[1:-1]], strides=[int(s) for s in strides[1:-1]], pads=pads,
                     **attributes)


@converts('reduce_window_max')
def _max_pool(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    return _pool(graph, eqn, operands[0], 'MaxPool', -np.inf)


@converts('reduce_window_sum')
def _sum_pool(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    mean = _pool(graph, eqn, operands[0], 'AveragePool', 0, count_include_pad=1)
    count = math.prod(eqn.params['window_dimensions'])
    return apply(graph, 'Mul', [mean, constant(np.asarray(count, mean.dtype), 'scalar')], mean.dtype)
