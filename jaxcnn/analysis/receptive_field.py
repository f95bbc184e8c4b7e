"""Propagate receptive fields from primitive to primitive through a traced computation.

Every array that depends on the images has a `ReceptiveField`. It states which dimensions of the array run over the image,
their step in pixels, and the pixels that the first element depends on. No knowledge of layers is needed.
"""

import dataclasses
import math
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

HEIGHT, WIDTH = 0, 1
_NO_CHANGE: Mapping[int, float] = types.MappingProxyType({})


class Factor(NamedTuple):
    """A factor of a dimension. A dimension that a reshape has merged from several has several factors, the slowest first.

    Attributes:
      size: number of elements.
      axis: image axis, `HEIGHT` or `WIDTH`, that the elements run over, or None.
      step: distance between neighbouring elements, in pixels.
    """

    size: int
    axis: int | None = None
    step: int = 0


Dim = tuple[Factor, ...]


def _nonspatial(size: int) -> Dim:
    return (Factor(size),)


def is_spatial(dim: Dim) -> bool:
    """Return whether a dimension runs over the image."""
    return any(factor.axis is not None for factor in dim)


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """The pixels that the elements of an array depend on.

    Attributes:
      dims: the dimensions of the array.
      low, high: first and last pixel, along each axis, that the first element depends on; pixels of the padding are outside
        the image.
      jump: smallest step along each axis.
    """

    dims: tuple[Dim, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    jump: tuple[int, ...]

    @classmethod
    def of_images(cls, shape: Sequence[int]) -> 'ReceptiveField':
        """Return the receptive field of the images (N, H, W, C) themselves."""
        n, h, w, c = shape
        return cls((_nonspatial(n), (Factor(h, HEIGHT, 1),), (Factor(w, WIDTH, 1),), _nonspatial(c)), (0, 0), (0, 0), (1, 1))

    def with_dims(self, dims: Sequence[Dim], below: Mapping[int, float] = _NO_CHANGE,
                  above: Mapping[int, float] = _NO_CHANGE) -> 'ReceptiveField':
        """Return the receptive field with other dimensions, extended by pixels before and after it along the axes."""
        steps = [[factor.step for dim in dims for factor in dim if factor.axis == axis] for axis in (HEIGHT, WIDTH)]
        return ReceptiveField(
            tuple(dims), tuple(value - below.get(axis, 0) for axis, value in enumerate(self.low)),
            tuple(value + above.get(axis, 0) for axis, value in enumerate(self.high)),
            tuple(min(axis_steps, default=jump) for axis_steps, jump in zip(steps, self.jump, strict=True)))

    def reduced(self, axes: Iterable[int], dims: Sequence[Dim]) -> 'ReceptiveField':
        """Return the receptive field, with dimensions `dims`, of elements that depend on all elements along `axes`."""
        above: dict[int, float] = {}
        for d in axes:
            for factor in self.dims[d]:
                if factor.axis is not None:
                    above[factor.axis] = above.get(factor.axis, 0) + (factor.size - 1) * factor.step
        return self.with_dims(dims, above=above)

    def windowed(self, windows: Sequence[tuple[int, int, int, int, int]], sizes: Sequence[int]) -> 'ReceptiveField':
        """Return the receptive field of the output of a sliding window.

        Args:
          windows: for each dimension, the window's size, dilation and stride, the padding before the first element, and the
            dilation of the input.
          sizes: sizes of the output's dimensions.
        """
        field = self
        for d, (window, size_after) in enumerate(zip(windows, sizes, strict=True)):
            size, dilation, stride, padding, input_dilation = map(int, window)
            dim = field.dims[d]
            if (size, stride, padding, input_dilation, size_after) == (1, 1, 0, 1, _size(dim)):
                continue
            dims = list(field.dims)
            if len(dim) > 1 or input_dilation > 1 or not is_spatial(dim):
                dims[d] = _nonspatial(size_after)
                field = field.reduced([d], dims)
                continue
            factor = dim[0]
            axis = factor.axis
            assert axis is not None
            dims[d] = (Factor(size_after, axis, factor.step * stride),)
            below, above = padding * factor.step, ((size - 1) * dilation - padding) * factor.step
            field = field.with_dims(dims, {axis: below}, {axis: above})
        return field

    def reshaped(self, shape: Sequence[int]) -> 'ReceptiveField':
        """Return the receptive field after a reshape, in which each factor is unchanged or split into two."""
        factors = [factor for dim in self.dims for factor in dim][::-1]
        dims: list[Dim] = []
        for size in shape:
            dim: list[Factor] = []
            missing = size
            while missing > 1 or (not dim and factors and factors[-1].size == 1):
                factor = factors.pop()
                if factor.size > missing:
                    if factor.size % missing:  # the elements have no constant step
                        return self.reduced(range(len(self.dims)), [_nonspatial(n) for n in shape])
                    inner = factor.size // missing
                    factors.append(factor._replace(size=inner))
                    factor = factor._replace(size=missing, step=factor.step * inner)
                elif missing % factor.size:
                    return self.reduced(range(len(self.dims)), [_nonspatial(n) for n in shape])
                dim.append(factor)
                missing //= factor.size
            dims.append(tuple(dim) if is_spatial(tuple(dim)) else _nonspatial(size))
        return self.with_dims(dims)


def _size(dim: Dim) -> int:
    return math.prod(factor.size for factor in dim)


def _union(fields: Sequence[ReceptiveField], shape: Sequence[int]) -> ReceptiveField:
    """Return the receptive field of an array whose elements depend on the elements at the same index of several arrays.

    It is unbounded along an axis that the arrays run over in different ways, as in the product of all pairs of tokens, or
    of a map with its mean.
    """
    dims = [next((f.dims[d] for f in fields if is_spatial(f.dims[d]) and _size(f.dims[d]) == size), _nonspatial(size))
            for d, size in enumerate(shape)]
    low, high = [], []
    for axis in (HEIGHT, WIDTH):
        layouts = {_layout(field, axis) for field in fields}
        low.append(min(f.low[axis] for f in fields) if len(layouts) == 1 else -math.inf)
        high.append(max(f.high[axis] for f in fields) if len(layouts) == 1 else math.inf)
    jump = tuple(max(f.jump[axis] for f in fields) for axis in (HEIGHT, WIDTH))
    return ReceptiveField((), tuple(low), tuple(high), jump).with_dims(dims)


def _layout(field: ReceptiveField, axis: int) -> tuple[tuple[int, int, Factor], ...]:
    """Return the factors of an array that run over an image axis, each with its dimension and its index in it."""
    return tuple((d, i, factor) for d, dim in enumerate(field.dims) for i, factor in enumerate(dim)
                 if factor.axis == axis and factor.size > 1)


# ---- primitives


def called_jaxpr(eqn: Any, operands: Sequence[Any]) -> tuple[Any, Sequence[Any]] | None:
    """Return the jaxpr that an equation calls, with the operands of the call; None for a primitive.

    Calls are those of `jit`, rematerialisation and custom gradients, the last branch of a `cond`, and one iteration of a
    `scan`, unless it runs over the rows of arrays or returns such rows, as `lax.map` does.

    Args:
      eqn: equation of a jaxpr.
      operands: what is known of each of its inputs.
    """
    inner = next((eqn.params[key] for key in ('jaxpr', 'call_jaxpr', 'fun_jaxpr') if key in eqn.params), None)
    if eqn.primitive.name == 'cond':
        inner, operands = eqn.params['branches'][-1], operands[1:]
    if eqn.primitive.name == 'scan':
        carried = eqn.params['num_carry']
        if len(eqn.invars) > eqn.params['num_consts'] + carried or len(eqn.outvars) > carried:
            return None
    inner = getattr(inner, 'jaxpr', inner)
    return (inner, operands) if inner is not None and len(inner.invars) == len(operands) else None


ELEMENTWISE = frozenset((
    'abs', 'acos', 'acosh', 'add', 'add_any', 'and', 'asin', 'asinh', 'atan', 'atan2', 'atanh', 'cbrt', 'ceil',
    'clamp', 'convert_element_type', 'copy', 'copy_p', 'cos', 'cosh', 'div', 'eq', 'erf', 'erf_inv', 'erfc', 'exp',
    'exp2', 'expm1', 'floor', 'ge', 'gt', 'integer_pow', 'is_finite', 'le', 'lgamma', 'log', 'log1p', 'logistic',
    'lt', 'max', 'min', 'mul', 'ne', 'neg', 'nextafter', 'not', 'or', 'pow', 'reduce_precision', 'rem', 'round',
    'rsqrt', 'select_n', 'sign', 'sin', 'sinh', 'sqrt', 'square', 'stop_gradient', 'sub', 'tan', 'tanh', 'xor'))


def propagate(eqn: Any, operands: Sequence[ReceptiveField | None]) -> list[ReceptiveField | None]:
    """Return the receptive fields of a primitive's outputs.

    Args:
      eqn: equation of a jaxpr.
      operands: receptive fields of the operands, None for those that do not depend on the images. At least one operand
        must depend on them.
    """
    name, params = eqn.primitive.name, eqn.params
    shapes = [v.aval.shape for v in eqn.outvars]
    shape, fields = shapes[0], [f for f in operands if f is not None]
    field, input_shape = next((f, v.aval.shape) for f, v in zip(operands, eqn.invars, strict=True) if f is not None)
    if name == 'optimization_barrier':
        return list(operands)
    if name in ELEMENTWISE:  # an operand of fewer dimensions is a scalar
        return [_union([f if len(f.dims) == len(shape) else f.with_dims([_nonspatial(n) for n in shape])
                        for f in fields], shape)]
    if name == 'reshape' and params.get('dimensions') is None:
        return [field.reshaped(shape)]
    if name == 'transpose':
        return [field.with_dims([field.dims[d] for d in params['permutation']])]
    if name == 'squeeze':
        removed = {d % len(input_shape) for d in params['dimensions']}
        return [field.with_dims([dim for d, dim in enumerate(field.dims) if d not in removed])]
    if name == 'broadcast_in_dim':
        dims = [_nonspatial(n) for n in shape]
        for d, output_dim in enumerate(params['broadcast_dimensions']):
            if input_shape[d] == shape[output_dim]:
                dims[output_dim] = field.dims[d]
        return [field.with_dims(dims)]
    if name == 'slice':
        strides = params['strides'] or (1,) * len(input_shape)
        return [field.windowed([(1, 1, stride, -first, 1) for first, stride in zip(
            params['start_indices'], strides, strict=True)], shape)]
    if name == 'pad' and operands[0] is not None:
        return [field.windowed([(1, 1, 1, low, inner + 1) for low, _, inner in params['padding_config']], shape)]
    if name.startswith('reduce_window'):
        return [field.windowed(list(zip(
            params['window_dimensions'], params['window_dilation'], params['window_strides'],
            (low for low, _ in params['padding']), params['base_dilation'], strict=True)), shape)]
    if name.startswith('reduce_') or name in ('argmax', 'argmin'):
        removed = set(params['axes'])
        return [field.reduced(removed, [dim for d, dim in enumerate(field.dims) if d not in removed])] * len(shapes)
    if name in ('concatenate', 'stack'):
        if name == 'stack':
            fields = [f.with_dims([*f.dims[:params['axis']], _nonspatial(1), *f.dims[params['axis']:]]) for f in fields]
        d = params['axis'] if name == 'stack' else params['dimension']
        return [_union([f.reduced([d], [*f.dims[:d], _nonspatial(1), *f.dims[d + 1:]]) for f in fields], shape)]
    if name == 'split':
        d = params['axis']
        return [field.reduced([d], [*field.dims[:d], _nonspatial(s[d]), *field.dims[d + 1:]]) for s in shapes]
    if name == 'conv_general_dilated' and operands[0] is not None:
        return [_convolution(params, field, eqn.invars[1].aval.shape, shape)]
    if name == 'dot_general':
        return [_dot(params['dimension_numbers'], operands, [v.aval.shape for v in eqn.invars], shape)]
    # an unknown primitive: each element may depend on everything
    union = _union([f.reduced(range(len(f.dims)), []) for f in fields], ())
    return [union.with_dims([_nonspatial(n) for n in s]) for s in shapes]


def _convolution(params: Mapping[str, Any], field: ReceptiveField, kernel: Sequence[int],
                 shape: Sequence[int]) -> ReceptiveField:
    (in_batch, in_features, *in_spatial), (_, _, *kernel_spatial), (batch, _, *spatial) = params['dimension_numbers']
    windows = [(kernel[d], dilation, stride, low, input_dilation) for d, dilation, stride, (low, _), input_dilation in zip(
        kernel_spatial, params['rhs_dilation'], params['window_strides'], params['padding'], params['lhs_dilation'],
        strict=True)]
    windowed = field.reduced([in_features], [field.dims[d] for d in in_spatial]).windowed(
        windows, [shape[d] for d in spatial])
    dims = [_nonspatial(n) for n in shape]
    dims[batch] = field.dims[in_batch]
    for d, dim in zip(spatial, windowed.dims, strict=True):
        dims[d] = dim
    return windowed.with_dims(dims)


def _dot(dimension_numbers: Any, operands: Sequence[ReceptiveField | None], operand_shapes: Sequence[Sequence[int]],
         shape: Sequence[int]) -> ReceptiveField:
    contracting, batch = dimension_numbers
    free = [[d for d in range(len(s)) if d not in c and d not in b]
            for s, c, b in zip(operand_shapes, contracting, batch, strict=True)]
    fields = []
    for i, field in enumerate(operands):
        if field is None:
            continue
        dims = [field.dims[d] for d in batch[i]]
        for j in (0, 1):
            dims += [field.dims[d] if j == i else _nonspatial(operand_shapes[j][d]) for d in free[j]]
        fields.append(field.reduced(contracting[i], dims))
    return _union(fields, shape)
