"""Conversion of a jaxpr to an ONNX graph: inlining, and evaluation of what is known."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from jaxcnn.errors import UserError
from jaxcnn.export.onnx.graph import Graph, Tensor, constant, is_symbolic
from jaxcnn.export.onnx.primitives import CONVERTERS, ELEMENTWISE, IDENTITIES
from jaxcnn.export.onnx.primitives.registry import unsupported

_INLINED = {'jit': 'jaxpr', 'pjit': 'jaxpr', 'closed_call': 'call_jaxpr', 'core_call': 'call_jaxpr', 'remat': 'jaxpr',
            'checkpoint': 'jaxpr', 'remat2': 'jaxpr', 'custom_jvp_call': 'call_jaxpr', 'custom_vjp_call': 'call_jaxpr',
            'custom_vjp_call_jaxpr': 'fun_jaxpr', 'custom_lin': 'jaxpr', 'run_state': 'jaxpr'}
_LAZY = {'broadcast_in_dim'}  # not computed, although the operand is known


def convert(graph: Graph, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Tensor], scope: str = '') -> list[Tensor]:
    """Add the equations of a jaxpr to a graph.

    Equations whose operands are known are evaluated.

    Args:
      graph: the graph.
      jaxpr: the jaxpr.
      consts: the values of its constants.
      inputs: its inputs.
      scope: the names of the layers around it.

    Returns:
      The outputs of the jaxpr.

    Raises:
      UserError: A primitive has no converter, or not for these operands.
    """
    values: dict[Any, Tensor] = dict(zip(jaxpr.invars, inputs, strict=True))
    values.update(zip(jaxpr.constvars, map(constant, consts), strict=True))

    def read(variable: Any) -> Tensor:
        if isinstance(variable, core.Literal):
            aval: Any = variable.aval
            return constant(np.asarray(variable.val, aval.dtype), 'scalar')
        return values[variable]

    for eqn in jaxpr.eqns:
        operands = [read(variable) for variable in eqn.invars]
        stack = str(eqn.source_info.name_stack)
        inner_scope = '/'.join(filter(None, (scope, stack)))
        with _in_layer(graph, inner_scope):
            results = _convert_equation(graph, eqn, operands, inner_scope)
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


@contextlib.contextmanager
def _in_layer(graph: Graph, scope: str) -> Iterator[None]:
    """Set the layer of the nodes that the block adds: the names of the modules, without those of their methods."""
    names = [name for name in re.sub(r'\w+\(|\)', '', scope).split('/') if name and not re.search(r'\W', name)]
    before, graph.layer = graph.layer, '/'.join(dict.fromkeys(names))
    yield
    graph.layer = before


def _convert_equation(graph: Graph, eqn: Any, operands: list[Tensor], scope: str) -> list[Tensor]:
    name = eqn.primitive.name
    if name in IDENTITIES:
        return operands
    if name == 'platform_index':
        default = next(i for i, platforms in enumerate(eqn.params['platforms']) if platforms is None)
        return [constant(np.int32(default))]
    if name == 'cond':
        index, *arguments = operands
        if not index.is_constant:
            raise unsupported(graph, eqn, 'the branch depends on the images')
        branches = eqn.params['branches']
        branch = branches[int(np.clip(int(index.value), 0, len(branches) - 1))]
        return convert(graph, branch.jaxpr, branch.consts, arguments, scope)
    if name in _INLINED:
        inner = eqn.params[_INLINED[name]]
        inner_jaxpr, consts = (inner.jaxpr, inner.consts) if hasattr(inner, 'jaxpr') else (inner, ())
        return convert(graph, inner_jaxpr, consts, operands, scope)
    if all(x.is_constant for x in operands) and name not in _LAZY:
        is_static = not any(is_symbolic(n) for v in (*eqn.invars, *eqn.outvars) for n in v.aval.shape)
        if is_static or name in ELEMENTWISE:
            return _evaluate(eqn, operands, name in ELEMENTWISE)
    if name not in CONVERTERS:
        raise unsupported(graph, eqn, 'there is no converter for it')
    results = CONVERTERS[name](graph, eqn, operands)
    results = results if isinstance(results, list) else [results]
    for result, variable in zip(results, eqn.outvars, strict=True):
        if tuple(result.shape) != tuple(variable.aval.shape):
            raise UserError(f'the ONNX exporter made an array of shape {result.shape} of {eqn.primitive.name} in '
                            f'{graph.layer}, expected {variable.aval.shape}')
    return results


def _evaluate(eqn: Any, operands: Sequence[Tensor], elementwise: bool) -> list[Tensor]:
    """Return what an equation computes of known operands; elementwise ones stay as small as these."""
    arrays = [x.value for x in operands]
    if elementwise:
        rank = max(array.ndim for array in arrays)
        shapes = [array.shape for array in arrays if array.ndim == rank]
        arrays = [np.broadcast_to(array, np.broadcast_shapes(*shapes)) if array.ndim == rank else array for array in arrays]
    else:
        arrays = [array if array.shape == x.shape else np.broadcast_to(array, x.shape)
                  for array, x in zip(arrays, operands, strict=True)]
    with jax.default_device(jax.devices('cpu')[0]):
        results = eqn.primitive.bind(*map(jax.numpy.asarray, arrays), **eqn.params)
    labels = [x.label for x in operands if x.label not in ('', 'constant', 'scalar', 'ints')]
    label = labels[-1] if labels else 'constant'
    results = results if eqn.primitive.multiple_results else [results]
    return [dataclasses.replace(constant(result, label), shape=tuple(variable.aval.shape))
            for result, variable in zip(results, eqn.outvars, strict=True)]
