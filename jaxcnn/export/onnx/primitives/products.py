"""Matrix products."""

import string
from collections.abc import Sequence
from typing import Any

from jaxcnn.export.onnx.graph import Graph, Tensor
from jaxcnn.export.onnx.primitives.registry import converts


@converts('dot_general')
def _dot_general(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    a, b = (graph.in_order(graph.full(x)) for x in operands)
    (contracted_a, contracted_b), (batch_a, batch_b) = eqn.params['dimension_numbers']
    shape, dtype = eqn.outvars[0].aval.shape, a.dtype
    rank = len(a.shape)
    if not batch_a and len(b.shape) == 2 and tuple(contracted_a) == (rank - 1,) and tuple(contracted_b) == (0,):
        return graph.add('MatMul', [a, b], shape, dtype)
    letters = iter(string.ascii_lowercase)
    axes_a = [next(letters) for _ in a.shape]
    axes_b = ['' for _ in b.shape]
    for i, j in zip((*contracted_a, *batch_a), (*contracted_b, *batch_b), strict=True):
        axes_b[j] = axes_a[i]
    axes_b = [letter or next(letters) for letter in axes_b]
    result = [*(axes_a[i] for i in batch_a),
              *(letter for i, letter in enumerate(axes_a) if i not in (*contracted_a, *batch_a)),
              *(letter for i, letter in enumerate(axes_b) if i not in (*contracted_b, *batch_b))]
    equation = f'{"".join(axes_a)},{"".join(axes_b)}->{"".join(result)}'
    return graph.add('Einsum', [a, b], shape, dtype, equation=equation)
