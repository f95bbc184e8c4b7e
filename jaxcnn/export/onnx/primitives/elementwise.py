"""Operations on each element."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxcnn.export.onnx.graph import Graph, Shape, Tensor, constant, is_symbolic
from jaxcnn.export.onnx.primitives.registry import CONVERTERS, ELEMENTWISE, converts, unsupported


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """Return the shape that shapes have when dimensions of 1 and missing ones are broadcast."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(next((n for n in sizes if is_symbolic(n) or n != 1), 1) for sizes in zip(*padded, strict=True))


def apply(graph: Graph, op: str, operands: Sequence[Tensor], dtype: Any, **attributes: Any) -> Tensor:
    """Add an elementwise node, whose operands are broadcast."""
    shape, stored_shape = (broadcast([getattr(x, name) for x in operands]) for name in ('shape', 'stored_shape'))
    operands, channels_first = graph.in_one_order(operands)
    return graph.add(op, operands, shape, dtype, channels_first=channels_first, stored_shape=stored_shape, **attributes)


def _scalar(value: float, dtype: Any) -> Tensor:
    return constant(np.asarray(value, dtype), 'scalar')


def _is_value(tensor: Tensor, value: float) -> bool:
    return tensor.is_constant and bool((tensor.value == value).all())


def _direct(op: str, **attributes: Any) -> Any:
    def convert(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
        return apply(graph, op, operands, eqn.outvars[0].aval.dtype, **attributes)
    return convert


_DIRECT = {
    'add': 'Add', 'add_any': 'Add', 'sub': 'Sub', 'mul': 'Mul', 'div': 'Div', 'neg': 'Neg', 'abs': 'Abs', 'sign': 'Sign',
    'exp': 'Exp', 'log': 'Log', 'tanh': 'Tanh', 'logistic': 'Sigmoid', 'sqrt': 'Sqrt', 'erf': 'Erf', 'floor': 'Floor',
    'ceil': 'Ceil', 'sin': 'Sin', 'cos': 'Cos', 'min': 'Min', 'eq': 'Equal', 'lt': 'Less', 'gt': 'Greater',
    'le': 'LessOrEqual', 'ge': 'GreaterOrEqual', 'is_nan': 'IsNaN',
}
CONVERTERS.update({primitive: _direct(op) for primitive, op in _DIRECT.items()})
ELEMENTWISE.update(_DIRECT)


def _composed(*primitives: str) -> Callable[[Any], Any]:
    """Register a converter of elementwise primitives, as a decorator."""
    ELEMENTWISE.update(primitives)
    return converts(*primitives)


@_composed('max')
def _max(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    for x, other in (operands, operands[::-1]):
        if _is_value(other, 0) and not x.is_constant and x.stored_shape == x.shape:
            return apply(graph, 'Relu', [x], x.dtype)
    return apply(graph, 'Max', operands, operands[0].dtype)


@_composed('square')
def _square(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    return apply(graph, 'Mul', [operands[0], operands[0]], operands[0].dtype)


@_composed('integer_pow')
def _integer_pow(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    x, exponent = operands[0], eqn.params['y']
    power = functools.reduce(lambda product, _: apply(graph, 'Mul', [product, x], x.dtype), range(abs(exponent) - 1), x)
    return apply(graph, 'Reciprocal', [power], x.dtype) if exponent < 0 else power


@_composed('pow')
def _pow(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    return apply(graph, 'Pow', operands, operands[0].dtype)


@_composed('rsqrt')
def _rsqrt(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    dtype = operands[0].dtype
    return apply(graph, 'Reciprocal', [apply(graph, 'Sqrt', operands, dtype)], dtype)


@_composed('erfc')
def _erfc(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    dtype = operands[0].dtype
    return apply(graph, 'Sub', [_scalar(1, dtype), apply(graph, 'Erf', operands, dtype)], dtype)


@_composed('log1p')
def _log1p(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    dtype = operands[0].dtype
    return apply(graph, 'Log', [apply(graph, 'Add', [operands[0], _scalar(1, dtype)], dtype)], dtype)


@_composed('expm1')
def _expm1(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    dtype = operands[0].dtype
    return apply(graph, 'Sub', [apply(graph, 'Exp', operands, dtype), _scalar(1, dtype)], dtype)


@_composed('round')
def _round(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    if eqn.params['rounding_method'] != 1:  # ONNX rounds halves to even numbers
        raise unsupported(graph, eqn, 'halves are rounded away from zero')
    return apply(graph, 'Round', operands, operands[0].dtype)


@_composed('rem')
def _rem(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    return apply(graph, 'Mod', operands, operands[0].dtype, fmod=1)


@_composed('ne')
def _ne(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    return apply(graph, 'Not', [apply(graph, 'Equal', operands, np.bool_)], np.bool_)


@_composed('and', 'or', 'not', 'xor')
def _logical(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    if operands[0].dtype != np.bool_:
        raise unsupported(graph, eqn, 'it is an operation on bits')
    return apply(graph, eqn.primitive.name.capitalize(), operands, np.bool_)


@_composed('is_finite')
def _is_finite(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    x = operands[0]
    difference = apply(graph, 'Sub', [x, x], x.dtype)  # NaN for what is not finite
    return apply(graph, 'Equal', [difference, _scalar(0, x.dtype)], np.bool_)


@_composed('clamp')
def _clamp(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    low, x, high = operands
    return apply(graph, 'Min', [apply(graph, 'Max', [x, low], x.dtype), high], x.dtype)


@_composed('select_n')
def _select_n(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    which, *cases = operands
    if which.dtype != np.bool_ or len(cases) != 2:
        raise unsupported(graph, eqn, f'it selects among {len(cases)} arrays by {which.dtype}')
    return apply(graph, 'Where', [which, cases[1], cases[0]], cases[0].dtype)


@_composed('convert_element_type')
def _convert(graph: Graph, eqn: Any, operands: Sequence[Tensor]) -> Tensor:
    import onnx
    dtype = np.dtype(eqn.params['new_dtype'])
    if dtype == operands[0].dtype:
        return operands[0]
    return apply(graph, 'Cast', operands, dtype, to=onnx.helper.np_dtype_to_tensor_dtype(dtype))
