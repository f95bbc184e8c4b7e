"""Indexing by known positions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcnn.export.onnx.graph import Graph, Tensor
from jaxcnn.export.onnx.primitives.registry import converts, unsupported
from jaxcnn.export.onnx.primitives.shapes import slice_axes


@converts('gather')
def _gather(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    """Write indexing in which each axis has positions of its own, such as `x[:, 0]` or `x[:, ::2, ::2]`."""
    x, index = operands
    numbers, sizes = eqn.params['dimension_numbers'], eqn.params['slice_sizes']
    shape = eqn.outvars[0].aval.shape
    if not index.is_constant or numbers.operand_batching_dims:
        raise unsupported(graph, eqn, 'the positions depend on the images')
    x, positions = graph.full(x), np.broadcast_to(index.value, index.shape)
    collapsed = numbers.collapsed_slice_dims
    index_axes = [axis for axis in range(len(shape)) if axis not in numbers.offset_dims]
    remaining = [axis for axis in range(len(x.shape)) if axis not in collapsed]
    output_axes = dict(zip(remaining, numbers.offset_dims, strict=True))  # axis of the result by axis of the operand
    slices: dict[int, tuple[int, int, int]] = {}
    lookups: dict[int, np.ndarray] = {}
    for i, axis in enumerate(numbers.start_index_map):
        size, limit = int(sizes[axis]), int(x.shape[axis])
        first = np.clip(positions[..., i], 0, limit - size)
        varying = [a for a in range(first.ndim) if (first != first.take([0], a)).any()]
        if not varying:
            start = int(first.flat[0])
            slices[axis] = start, start + size, 1
            continue
        if len(varying) > 1 or axis not in collapsed:
            raise unsupported(graph, eqn, 'the positions are no grid')
        output_axes[axis] = index_axes[varying[0]]
        along = np.moveaxis(first, varying[0], -1).reshape(-1, first.shape[varying[0]])[0]
        step = int(along[1] - along[0])
        if step > 0 and (np.diff(along) == step).all():
            slices[axis] = int(along[0]), int(along[-1]) + 1, step
        else:
            lookups[axis] = along
    missing = sorted(set(range(len(shape))) - set(output_axes.values()))
    vanishing = [axis for axis in collapsed if axis not in output_axes]
    if len(missing) > len(vanishing) or any(shape[axis] != 1 for axis in missing):
        raise unsupported(graph, eqn, 'the positions are no grid')
    output_axes.update(zip(vanishing, missing, strict=False))
    x = slice_axes(graph, x, {axis: entry for axis, entry in slices.items() if entry != (0, x.shape[axis], 1)})
    for axis, along in lookups.items():
        new_shape = (*x.shape[:axis], len(along), *x.shape[axis + 1:])
        x = graph.add('Gather', [x, graph.ints(along.tolist())], new_shape, x.dtype, channels_first=x.channels_first,
                      axis=x.axis(axis))
    order = sorted(output_axes)
    if len(order) < len(x.shape):  # axes with one position vanish
        x = graph.reshape(graph.in_order(x), tuple(x.shape[axis] for axis in order))
    permutation = [order.index(axis) for axis in sorted(output_axes, key=lambda axis: output_axes[axis])]
    if permutation != [*range(len(permutation))]:
        x = graph.add('Transpose', [graph.in_order(x)], shape, x.dtype, perm=permutation)
    return x
