"""Operations that move elements."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcnn.export.onnx.graph import Graph, Tensor, is_symbolic
from jaxcnn.export.onnx.primitives.registry import converts, unsupported


@converts('broadcast_in_dim')
def _broadcast_in_dim(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    x, shape = operands[0], tuple(eqn.params['shape'])
    axes = tuple(eqn.params['broadcast_dimensions'])
    stored = [1] * len(shape)
    for axis, size in zip(axes, x.stored_shape, strict=True):
        stored[axis] = size
    if len(axes) == len(shape):
        return dataclasses.replace(x, shape=shape)
    x = graph.in_order(x)
    if x.is_constant:
        return dataclasses.replace(x, shape=shape, stored_shape=tuple(stored), array=x.value.reshape(stored))
    return dataclasses.replace(graph.reshape(x, tuple(stored)), shape=shape, stored_shape=tuple(stored))


@converts('reshape')
def _reshape(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    x, shape = graph.full(operands[0]), tuple(eqn.params['new_sizes'])
    if x.channels_first and all(not is_symbolic(n) and n == 1 for n in x.shape[1:-1]):
        x = dataclasses.replace(x, channels_first=False)  # both orders are the same
    return graph.reshape(graph.in_order(x), shape)


@converts('squeeze')
def _squeeze(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    return _reshape_to(graph, eqn, operands[0])


@converts('expand_dims')
def _expand_dims(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    return _reshape_to(graph, eqn, operands[0])


def _reshape_to(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    return graph.reshape(graph.in_order(graph.full(x)), eqn.outvars[0].aval.shape)


@converts('transpose')
def _transpose(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    x = graph.in_order(graph.full(operands[0]))
    return graph.add('Transpose', [x], eqn.outvars[0].aval.shape, x.dtype, perm=[int(i) for i in eqn.params['permutation']])


@converts('concatenate')
def _concatenate(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    tensors, channels_first = graph.in_one_order([graph.full(x) for x in operands])
    return graph.add('Concat', tensors, eqn.outvars[0].aval.shape, tensors[0].dtype, channels_first=channels_first,
                     axis=tensors[0].axis(int(eqn.params['dimension'])))


@converts('stack')
def _stack(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    axis, shape = int(eqn.params['axis']), eqn.outvars[0].aval.shape
    row_shape = (*shape[:axis], 1, *shape[axis + 1:])
    rows = [graph.reshape(graph.in_order(graph.full(x)), row_shape) for x in operands]
    return graph.add('Concat', rows, shape, rows[0].dtype, axis=axis)


def slice_axes(graph: Graph, x: Tensor, slices: dict[int, tuple[int, int, int]]) -> Tensor:
    """Return a part of a tensor.

    Args:
      graph: the graph.
      x: the tensor.
      slices: start, stop and step by axis; a negative step ends before the axis begins if the stop is -1.
    """
    if not slices:
        return x
    axes = sorted(slices)
    starts, stops, steps = zip(*(slices[axis] for axis in axes), strict=True)
    shape = list(x.shape)
    for axis in axes:
        shape[axis] = len(range(*slices[axis]))
    last = np.iinfo(np.int64).min  # so that a slice with a negative step includes the first element
    ends = [int(last) if stop < 0 else stop for stop in stops]
    return graph.add('Slice', [x, graph.ints(starts), graph.ints(ends), graph.ints([x.axis(axis) for axis in axes]),
                               graph.ints(steps)], tuple(shape), x.dtype, channels_first=x.channels_first)


@converts('slice')
def _slice(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    x = graph.full(operands[0])
    starts, stops = eqn.params['start_indices'], eqn.params['limit_indices']
    steps = eqn.params['strides'] or (1,) * len(starts)
    slices = {}
    for axis, (start, stop, step) in enumerate(zip(starts, stops, steps, strict=True)):
        if is_symbolic(stop) or is_symbolic(start):
            if start != 0 or stop != x.shape[axis] or step != 1:
                raise unsupported(graph, eqn, 'it slices the batch')
        elif (start, stop, step) != (0, x.shape[axis], 1):
            slices[axis] = int(start), int(stop), int(step)
    return slice_axes(graph, x, slices)


@converts('rev')
def _rev(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    x = graph.full(operands[0])
    axes = [int(axis) for axis in eqn.params['dimensions']]
    if any(is_symbolic(x.shape[axis]) for axis in axes):
        raise unsupported(graph, eqn, 'it reverses the batch')
    return slice_axes(graph, x, {axis: (int(x.shape[axis]) - 1, -1, -1) for axis in axes})


@converts('dynamic_slice')
def _dynamic_slice(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    x, *starts = operands
    x, sizes = graph.full(x), eqn.params['slice_sizes']
    slices = {}
    for axis, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        if size == x.shape[axis]:
            continue
        if not start.is_constant or is_symbolic(size):
            raise unsupported(graph, eqn, 'the position of the slice depends on the images')
        first = int(np.clip(start.value, 0, x.shape[axis] - size))
        slices[axis] = first, first + int(size), 1
    return slice_axes(graph, x, slices)


@converts('pad')
def _pad(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    x, value = operands
    config = [tuple(map(int, entry)) for entry in eqn.params['padding_config']]
    if all(entry == (0, 0, 0) for entry in config):
        return x
    if any(interior for _, _, interior in config):
        raise unsupported(graph, eqn, 'it pads between elements')
    x = graph.full(x)
    crops = {axis: (max(-low, 0), int(x.shape[axis]) - max(-high, 0), 1)
             for axis, (low, high, _) in enumerate(config) if low < 0 or high < 0}
    x = slice_axes(graph, x, crops)
    pads = np.zeros((2, len(config)), np.int64)
    for axis, (low, high, _) in enumerate(config):
        pads[:, x.axis(axis)] = max(low, 0), max(high, 0)
    return graph.add('Pad', [x, graph.ints(pads.reshape(-1).tolist()), value], eqn.outvars[0].aval.shape, x.dtype,
                     channels_first=x.channels_first)


@converts('split')
def _split(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> list[Tensor]:
    x = graph.full(operands[0])
    sizes = [int(n) for n in eqn.params['sizes']]
    names = graph.add_outputs('Split', [x, graph.ints(sizes)], len(sizes), axis=x.axis(int(eqn.params['axis'])))
    shapes = [v.aval.shape for v in eqn.outvars]
    return [Tensor(shape, x.dtype, shape, name, channels_first=x.channels_first)
            for name, shape in zip(names, shapes, strict=True)]
