"""Reductions over axes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcnn.export.onnx.graph import Graph, Tensor
from jaxcnn.export.onnx.primitives.elementwise import apply
from jaxcnn.export.onnx.primitives.registry import CONVERTERS, converts


def _remaining_order(x: Tensor, axes: Sequence[int]) -> bool:
    """Return whether the axes that are not reduced have the channels first."""
    last_axis = len(x.shape) - 1
    return x.channels_first and last_axis not in axes and len(x.shape) - len(axes) > 2 and 0 not in axes


def _reduce(op: str) -> Any:
    def convert(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
        x = graph.full(operands[0])
        axes = [int(axis) for axis in eqn.params['axes']]
        if 0 in axes:
            x = graph.in_order(x)
        return graph.add(op, [x, graph.ints(sorted(x.axis(axis) for axis in axes))], eqn.outvars[0].aval.shape, x.dtype,
                         channels_first=_remaining_order(x, axes), keepdims=0)
    return convert


CONVERTERS.update({f'reduce_{name}': _reduce(op) for name, op in (
    ('sum', 'ReduceSum'), ('max', 'ReduceMax'), ('min', 'ReduceMin'), ('prod', 'ReduceProd'))})


@converts('argmax', 'argmin')
def _arg(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    import onnx
    x = graph.in_order(graph.full(operands[0]))
    axis, = eqn.params['axes']
    op = 'ArgMax' if eqn.primitive.name == 'argmax' else 'ArgMin'
    index = graph.add(op, [x], eqn.outvars[0].aval.shape, np.int64, axis=int(axis), keepdims=0)
    dtype = np.dtype(eqn.params['index_dtype'])
    return apply(graph, 'Cast', [index], dtype, to=onnx.helper.np_dtype_to_tensor_dtype(dtype))
