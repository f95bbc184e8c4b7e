"""Convolutions of images."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcnn.export.onnx.graph import Graph, Tensor, constant
from jaxcnn.export.onnx.primitives.registry import converts, unsupported


@converts('conv_general_dilated')
def _conv(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    x, kernel = map(graph.full, operands)
    params = eqn.params
    numbers = params['dimension_numbers']
    last_axis = len(x.shape) - 1
    is_channels_last = all(tuple(spec) == (0, last_axis, *range(1, last_axis)) for spec in (
        numbers.lhs_spec, numbers.out_spec))
    if not is_channels_last:
        raise unsupported(graph, eqn, f'the dimensions are {numbers}')
    if any(d != 1 for d in params['lhs_dilation']) or params['batch_group_count'] != 1:
        raise unsupported(graph, eqn, 'its input is dilated, or the batch is divided into groups')
    if any(n < 0 for pair in params['padding'] for n in pair):
        raise unsupported(graph, eqn, 'its padding is negative')
    order = numbers.rhs_spec
    if kernel.is_constant:
        kernel = constant(kernel.value.transpose(order), kernel.label)
    else:
        kernel = graph.add('Transpose', [graph.in_order(kernel)], tuple(kernel.shape[i] for i in order), kernel.dtype,
                           perm=[int(i) for i in order])
    pads = [int(low) for low, _ in params['padding']] + [int(high) for _, high in params['padding']]
    return graph.add('Conv', [graph.in_order(x, channels_first=True), kernel], eqn.outvars[0].aval.shape, np.dtype(x.dtype),
                     channels_first=True, strides=[int(s) for s in params['window_strides']], pads=pads,
                     dilations=[int(d) for d in params['rhs_dilation']], group=int(params['feature_group_count']),
                     kernel_shape=[int(n) for n in kernel.shape[2:]])
