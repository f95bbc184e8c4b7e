"""Where the elements of a network's arrays are in the image, and what they see: receptive fields, primitive by primitive.

Every array that depends on the images has a `Place`: which of its dimensions run over the image, in steps of how many
pixels, and what its first element sees. So receptive fields need no knowledge of layers.
"""

import dataclasses
import math
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

HEIGHT, WIDTH = 0, 1
_NONE: Mapping[int, float] = types.MappingProxyType({})


class _Run(NamedTuple):
    """A part of a dimension. Dimensions that a reshape merged have several, the slowest first.

    Attributes:
      size: of elements.
      axis: of the image that they run over, or None.
      step: from one to the next, in pixels.
    """

    size: int
    axis: int | None = None
    step: int = 0


Dim = tuple[_Run, ...]


def _plain(size: int) -> Dim:
    return (_Run(size),)


def is_placed(dim: Dim) -> bool:
    """Whether it runs over the image."""
    return any(run.axis is not None for run in dim)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the elements of an array are in the image, and what they see.

    Attributes:
      dims: of the array.
      low, high: first and last pixel that the first element sees, of each axis; in padding they are outside of the image.
      jump: the smallest step along each axis.
    """

    dims: tuple[Dim, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    jump: tuple[int, ...]

    @classmethod
    def of_images(cls, shape: Sequence[int]) -> 'Place':
        """Of the images (N, H, W, C) themselves."""
        n, h, w, c = shape
        return cls((_plain(n), (_Run(h, HEIGHT, 1),), (_Run(w, WIDTH, 1),), _plain(c)), (0, 0), (0, 0), (1, 1))

    def moved(self, dims: Sequence[Dim], low: Mapping[int, float] = _NONE, high: Mapping[int, float] = _NONE) -> 'Place':
        """With other dimensions, and what the first element sees grown by so many pixels to either side."""
        steps = [[run.step for dim in dims for run in dim if run.axis == axis] for axis in (HEIGHT, WIDTH)]
        return Place(tuple(dims), tuple(value - low.get(axis, 0) for axis, value in enumerate(self.low)),
                     tuple(value + high.get(axis, 0) for axis, value in enumerate(self.high)),
                     tuple(min(found, default=old) for found, old in zip(steps, self.jump, strict=True)))

    def gathered(self, which: Iterable[int], dims: Sequence[Dim]) -> 'Place':
        """Each element sees what all elements along the dimensions `which` saw; `dims` are those afterwards."""
        high: dict[int, float] = {}
        for d in which:
            for run in self.dims[d]:
                if run.axis is not None:
                    high[run.axis] = high.get(run.axis, 0) + (run.size - 1) * run.step
        return self.moved(dims, high=high)

    def window(self, windows: Sequence[tuple[int, int, int, int, int]], sizes: Sequence[int]) -> 'Place':
        """After a window moved over each dimension: its size, dilation, stride, padding before, and the input's dilation."""
        place = self
        for d, (window, after) in enumerate(zip(windows, sizes, strict=True)):
            size, dilation, stride, before, spread = map(int, window)
            dim = place.dims[d]
            if (size, stride, before, spread, after) == (1, 1, 0, 1, _size(dim)):
                continue
            dims = list(place.dims)
            if len(dim) > 1 or spread > 1 or not is_placed(dim):
                dims[d] = _plain(after)
                place = place.gathered([d], dims)
                continue
            run = dim[0]
            axis = run.axis
            assert axis is not None
            dims[d] = (_Run(after, axis, run.step * stride),)
            place = place.moved(dims, {axis: before * run.step}, {axis: ((size - 1) * dilation - before) * run.step})
        return place

    def reshaped(self, shape: Sequence[int]) -> 'Place':
        """In another shape; each run stays or is cut in two."""
        runs = [run for dim in self.dims for run in dim][::-1]
        dims: list[Dim] = []
        for size in shape:
            dim: list[_Run] = []
            missing = size
            while missing > 1 or (not dim and runs and runs[-1].size == 1):
                run = runs.pop()
                if run.size > missing:
                    if run.size % missing:  # no step tells where these elements are
                        return self.gathered(range(len(self.dims)), [_plain(n) for n in shape])
                    inner = run.size // missing
                    runs.append(run._replace(size=inner))
                    run = run._replace(size=missing, step=run.step * inner)
                elif missing % run.size:
                    return self.gathered(range(len(self.dims)), [_plain(n) for n in shape])
                dim.append(run)
                missing //= run.size
            dims.append(tuple(dim) if is_placed(tuple(dim)) else _plain(size))
        return self.moved(dims)


def _size(dim: Dim) -> int:
    return math.prod(run.size for run in dim)


def _union(places: Sequence[Place], shape: Sequence[int]) -> Place:
    """Of an array of this shape, each element of which sees what those at its place in each of `places` saw.

    Where these do not run over an axis of the image alike, as in a product of all tokens with all, or of a map with its own
    mean, there is no bound that holds for every element: all see all.
    """
    dims = [next((p.dims[d] for p in places if is_placed(p.dims[d]) and _size(p.dims[d]) == size), _plain(size))
            for d, size in enumerate(shape)]
    low, high = [], []
    for axis in (HEIGHT, WIDTH):
        ways = {tuple((d, i, run) for d, dim in enumerate(p.dims) for i, run in enumerate(dim)
                      if run.axis == axis and run.size > 1) for p in places}
        low.append(min(p.low[axis] for p in places) if len(ways) == 1 else -math.inf)
        high.append(max(p.high[axis] for p in places) if len(ways) == 1 else math.inf)
    jump = tuple(max(p.jump[axis] for p in places) for axis in (HEIGHT, WIDTH))
    return Place((), tuple(low), tuple(high), jump).moved(dims)


# ---- of what a primitive gives

ELEMENTWISE = frozenset((
    'abs', 'acos', 'acosh', 'add', 'add_any', 'and', 'asin', 'asinh', 'atan', 'atan2', 'atanh', 'cbrt', 'ceil',
    'clamp', 'convert_element_type', 'copy', 'copy_p', 'cos', 'cosh', 'div', 'eq', 'erf', 'erf_inv', 'erfc', 'exp',
    'exp2', 'expm1', 'floor', 'ge', 'gt', 'integer_pow', 'is_finite', 'le', 'lgamma', 'log', 'log1p', 'logistic',
    'lt', 'max', 'min', 'mul', 'ne', 'neg', 'nextafter', 'not', 'or', 'pow', 'reduce_precision', 'rem', 'round',
    'rsqrt', 'select_n', 'sign', 'sin', 'sinh', 'sqrt', 'square', 'stop_gradient', 'sub', 'tan', 'tanh', 'xor'))


def places(eqn: Any, operands: Sequence[Place | None]) -> list[Place | None]:
    """Of what a primitive gives, from those of its operands, one of which at least depends on the images.

    Args:
      eqn: of a jaxpr.
      operands: None for those that do not depend on the images.
    """
    name, params = eqn.primitive.name, eqn.params
    shapes = [v.aval.shape for v in eqn.outvars]
    shape, known = shapes[0], [p for p in operands if p is not None]
    place, old = next((p, v.aval.shape) for p, v in zip(operands, eqn.invars, strict=True) if p is not None)
    if name == 'optimization_barrier':
        return list(operands)
    if name in ELEMENTWISE:
        return [_union([p if len(p.dims) == len(shape) else p.moved([_plain(n) for n in shape])  # of fewer: a scalar
                        for p in known], shape)]
    if name == 'reshape' and params.get('dimensions') is None:
        return [place.reshaped(shape)]
    if name == 'transpose':
        return [place.moved([place.dims[d] for d in params['permutation']])]
    if name == 'squeeze':
        gone = {d % len(old) for d in params['dimensions']}
        return [place.moved([dim for d, dim in enumerate(place.dims) if d not in gone])]
    if name == 'broadcast_in_dim':
        dims = [_plain(n) for n in shape]
        for d, to in enumerate(params['broadcast_dimensions']):
            if old[d] == shape[to]:
                dims[to] = place.dims[d]
        return [place.moved(dims)]
    if name == 'slice':
        strides = params['strides'] or (1,) * len(old)
        return [place.window([(1, 1, stride, -first, 1) for first, stride in zip(
            params['start_indices'], strides, strict=True)], shape)]
    if name == 'pad' and operands[0] is not None:
        return [place.window([(1, 1, 1, low, inner + 1) for low, _, inner in params['padding_config']], shape)]
    if name.startswith('reduce_window'):
        return [place.window(list(zip(
            params['window_dimensions'], params['window_dilation'], params['window_strides'],
            (low for low, _ in params['padding']), params['base_dilation'], strict=True)), shape)]
    if name.startswith('reduce_') or name in ('argmax', 'argmin'):
        gone = set(params['axes'])
        return [place.gathered(gone, [dim for d, dim in enumerate(place.dims) if d not in gone])] * len(shapes)
    if name in ('concatenate', 'stack'):
        if name == 'stack':
            known = [p.moved([*p.dims[:params['axis']], _plain(1), *p.dims[params['axis']:]]) for p in known]
        d = params['axis'] if name == 'stack' else params['dimension']
        return [_union([p.gathered([d], [*p.dims[:d], _plain(1), *p.dims[d + 1:]]) for p in known], shape)]
    if name == 'split':
        d = params['axis']
        return [place.gathered([d], [*place.dims[:d], _plain(s[d]), *place.dims[d + 1:]]) for s in shapes]
    if name == 'conv_general_dilated' and operands[0] is not None:
        return [_convolved(params, place, eqn.invars[1].aval.shape, shape)]
    if name == 'dot_general':
        return [_contracted(params['dimension_numbers'], operands, [v.aval.shape for v in eqn.invars], shape)]
    # not known: each element sees what all saw
    every = _union([p.gathered(range(len(p.dims)), []) for p in known], ())
    return [every.moved([_plain(n) for n in s]) for s in shapes]


def _convolved(params: Mapping[str, Any], place: Place, kernel: Sequence[int], shape: Sequence[int]) -> Place:
    (images, features, *inner), (_, _, *sides), (batch, _, *outer) = params['dimension_numbers']
    windows = [(kernel[side], dilation, stride, low, spread) for side, dilation, stride, (low, _), spread in zip(
        sides, params['rhs_dilation'], params['window_strides'], params['padding'], params['lhs_dilation'], strict=True)]
    seen = place.gathered([features], [place.dims[d] for d in inner]).window(windows, [shape[d] for d in outer])
    dims = [_plain(n) for n in shape]
    dims[batch] = place.dims[images]
    for d, dim in zip(outer, seen.dims, strict=True):
        dims[d] = dim
    return seen.moved(dims)


def _contracted(numbers: Any, operands: Sequence[Place | None], old: Sequence[Sequence[int]], shape: Sequence[int]) -> Place:
    (contracted, batched) = numbers
    found = []
    free = [[d for d in range(len(s)) if d not in c and d not in b]
            for s, c, b in zip(old, contracted, batched, strict=True)]
    for i, place in enumerate(operands):
        if place is None:
            continue
        dims = [place.dims[d] for d in batched[i]]
        for other in (0, 1):
            dims += [place.dims[d] if other == i else _plain(old[other][d]) for d in free[other]]
        found.append(place.gathered(contracted[i], dims))
    return _union(found, shape)
