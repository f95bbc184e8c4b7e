"""What a network costs, and what each of its layers sees: worked out by tracing it, for any network.

`cost(network, shape)` traces the network once, without computing anything, and walks over the primitives. Every array that
depends on the images carries its `Place`: which of its dimensions run over the image, in steps of how many pixels, and what
its first element sees. So receptive fields need no knowledge of layers, and a new network has all of this at once.
"""

import dataclasses
import math
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcnn import config as cfg
from jaxcnn import optim
from jaxcnn.errors import UserError
from jaxcnn.models import Network

OPTIMIZERS = ('sgd', 'momentum', 'adam')


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer with parameters, a pooling (`max_pool`, `avg_pool`, `mean`) or a product of activations (`product`).

    Pairs are of (height, width). `field`, `jump` and `start` are of the layer's output, in pixels of the image, as in Dang
    Ha The Hien 2017, "A guide to receptive field arithmetic for convolutional neural networks".

    Attributes:
      name: the path of its parameters, `Conv_0`; of layers without any their kind and a number, `max_pool_0`.
      shape: of its output, without the batch.
      parameters: trained.
      multiply_adds: of one image.
      field: side of the receptive field, padding included (r); None: it has no bound, as behind attention.
      jump: distance between neighbours (j); where the output has no place, as a dense layer's, the last that there was.
      padding: of its window, ((top, bottom), (left, right)), or None where it has none.
      start: centre of what the first element sees, 0.5 is the first pixel's; None where `field` has no bound.
    """

    name: str
    shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    field: tuple[int | None, int | None]
    jump: tuple[int, int]
    padding: tuple[tuple[int, int], ...] | None
    start: tuple[float | None, float | None]


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a network costs. Memory is in bytes.

    Attributes:
      image_shape: (H, W, C).
      num_classes: logits.
      batch_size: that `activation_memory` and `training_memory` are for.
      parameters: that are used in evaluation.
      auxiliary_parameters: of classifiers that are there in training only.
      multiply_adds: of convolutions and matrix products, for one image, in evaluation.
      activation_memory: of what is kept for the backward pass; see `cost`.
      training_memory: by optimizer: parameters, gradients, the optimizer's state, BatchNorm statistics, activations and the
        batch of images.
      optimizer_memory: by optimizer: its state alone.
      layers: in the order in which they are computed, without auxiliary classifiers.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    batch_size: int
    parameters: int
    auxiliary_parameters: int
    multiply_adds: int
    activation_memory: int
    training_memory: dict[str, int]
    optimizer_memory: dict[str, int]
    layers: tuple[Layer, ...]


def cost(network: Network, image_shape: tuple[int, int, int], batch_size: int = 32,
         optimizers: Iterable[str] = OPTIMIZERS) -> Cost:
    """What the network costs for images of that shape.

    Multiply-adds count the padding, too, and nothing that is element by element. XLA's count leaves the padding out and has
    what is element by element: half its flops were 0.90 to 1.06 times ours for ten small networks.

    Activation memory is of the arrays that the backward pass needs: inputs of convolutions, products and BatchNorm, one
    array for each line of arithmetic from it that has no other operand of its size (XLA computes that again), masks; and
    with `remat` the inputs of blocks and what the largest of them needs. XLA wants workspace beside that, and has done with
    some of it before all gradients are there: on the CPU the steps of the same networks took 0.85 to 1.65 times
    `training_memory`, by its `memory_analysis`, and 0.91 to 1.82 times with its own convolutions.

    Args:
      network: its own `conv_implementation` does not matter.
      image_shape: (H, W, C).
      batch_size: images in a training step.
      optimizers: of `optim.optimizer_names()`, with arguments as in `'sgd(momentum=0.9)'`, or `momentum` for that.

    Raises:
      UserError: an image too small, a batch size below 1, an unknown optimizer.
    """
    for what, number in (('image size', min(image_shape)), ('batch size', batch_size)):
        if number < 1:
            raise UserError(f'{what} must be at least 1, got {number}')
    chosen = {name: _optimizer(name) for name in optimizers}
    # convolutions as primitives; BatchNorm as in evaluation, whose statistics do not see the whole image
    traced = network.clone(conv_implementation='xla', bn_frozen=True)
    images = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.float32)

    def start(images: jax.Array) -> Any:
        keys = {name: jax.random.key(0) for name in ('params', 'dropout')}
        return traced.init_with_output(keys, images, train=True)
    jaxpr, (outputs, variables) = jax.make_jaxpr(start, return_shape=True)(images)
    walk = _Walk(jaxpr.jaxpr, outputs, variables)
    params, stats = variables['params'], variables.get('batch_stats', {})
    parameters, weights = _count(params), _bytes(params)
    state = {name: _bytes(jax.eval_shape(made.init, params)) for name, made in chosen.items()}
    fixed = 2 * weights + _bytes(stats) + walk.kept + _bytes(images)
    live = sum(layer.parameters for layer in walk.layers)
    return Cost(image_shape, network.num_classes, batch_size, live, parameters - live,
                sum(layer.multiply_adds for layer in walk.layers), walk.kept,
                {name: fixed + memory for name, memory in state.items()}, state, walk.layers)


def _optimizer(name: str) -> optim.Optimizer:
    call, args, kwargs = cfg.parse_call('sgd(momentum=0.9)' if name == 'momentum' else name, 'optimizer')
    if args:
        raise UserError(f'optimizer {name!r}: its arguments have names, as in sgd(momentum=0.9)')
    config = cfg.parse({'duration': {'steps': 1}, 'optim': {'optimizer': {'name': call, **kwargs}, 'schedule': 'constant'}})
    return optim.make_optimizer(config.optim, cfg.Timeline(config, config.batch_size))


def _count(tree: Any) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


# ---- where an array's elements are in the image

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


def _placed(dim: Dim) -> bool:
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
            if len(dim) > 1 or spread > 1 or not _placed(dim):
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
            dims.append(tuple(dim) if _placed(tuple(dim)) else _plain(size))
        return self.moved(dims)


def _size(dim: Dim) -> int:
    return math.prod(run.size for run in dim)


def _union(places: Sequence[Place], shape: Sequence[int]) -> Place:
    """Of an array of this shape, each element of which sees what those at its place in each of `places` saw.

    Where these do not run over an axis of the image alike, as in a product of all tokens with all, or of a map with its own
    mean, there is no bound that holds for every element: all see all.
    """
    dims = [next((p.dims[d] for p in places if _placed(p.dims[d]) and _size(p.dims[d]) == size), _plain(size))
            for d, size in enumerate(shape)]
    low, high = [], []
    for axis in (HEIGHT, WIDTH):
        ways = {tuple((d, i, run) for d, dim in enumerate(p.dims) for i, run in enumerate(dim)
                      if run.axis == axis and run.size > 1) for p in places}
        low.append(min(p.low[axis] for p in places) if len(ways) == 1 else -math.inf)
        high.append(max(p.high[axis] for p in places) if len(ways) == 1 else math.inf)
    jump = tuple(max(p.jump[axis] for p in places) for axis in (HEIGHT, WIDTH))
    return Place((), tuple(low), tuple(high), jump).moved(dims)


# ---- the walk over a network's primitives

_ELEMENTWISE = frozenset((
    'abs', 'acos', 'acosh', 'add', 'add_any', 'and', 'asin', 'asinh', 'atan', 'atan2', 'atanh', 'cbrt', 'ceil',
    'clamp', 'convert_element_type', 'copy', 'copy_p', 'cos', 'cosh', 'div', 'eq', 'erf', 'erf_inv', 'erfc', 'exp',
    'exp2', 'expm1', 'floor', 'ge', 'gt', 'integer_pow', 'is_finite', 'le', 'lgamma', 'log', 'log1p', 'logistic',
    'lt', 'max', 'min', 'mul', 'ne', 'neg', 'nextafter', 'not', 'or', 'pow', 'reduce_precision', 'rem', 'round',
    'rsqrt', 'select_n', 'sign', 'sin', 'sinh', 'sqrt', 'square', 'stop_gradient', 'sub', 'tan', 'tanh', 'xor'))
_KEEPS_INPUT = frozenset((
    'abs', 'acos', 'acosh', 'asin', 'asinh', 'atan', 'atan2', 'atanh', 'clamp', 'cos', 'cosh', 'erf', 'erf_inv',
    'erfc', 'integer_pow', 'lgamma', 'log', 'log1p', 'pow', 'reduce_max', 'reduce_min', 'sign', 'sin', 'sinh',
    'square'))
_KEEPS_OUTPUT = frozenset(('cbrt', 'exp', 'exp2', 'expm1', 'logistic', 'rsqrt', 'sqrt', 'tan', 'tanh'))


@dataclasses.dataclass(eq=False)
class _Array:
    """What is known of an array.

    Attributes:
      aval: its shape and type.
      place: None where it does not depend on the images.
      trained: it depends on parameters, so that a gradient passes it.
      source: what it can be computed from again for nothing.
      view: it is `source` in another shape.
      given: in memory in any case, a parameter or the images.
    """

    aval: Any
    place: Place | None = None
    trained: bool = False
    source: '_Array | None' = None
    view: bool = False
    given: bool = False

    def chain(self) -> 'Iterator[_Array]':
        """Itself and all that it comes from for nothing."""
        array: _Array | None = self
        while array is not None:
            yield array
            array = array.source

    def root(self) -> '_Array':
        """The last of them."""
        return list(self.chain())[-1]


class _Memory:
    """What a backward pass keeps."""

    def __init__(self) -> None:
        self.whole: dict[int, _Array] = {}  # by identity
        self.wanted: list[_Array] = []  # they, or what they come from for nothing
        self.block = 0  # bytes of the largest rematerialised block

    def keep(self, array: _Array) -> None:
        """As it is."""
        while array.view and array.source is not None:
            array = array.source
        self.whole[id(array)] = array

    def bytes(self, without: Iterable[_Array] = ()) -> int:
        """Of all but these."""
        kept = dict(self.whole)
        for array in self.wanted:
            if not any(id(a) in kept for a in array.chain()):
                kept[id(array.root())] = array.root()
        left_out = {id(array.root()) for array in without}
        return self.block + _bytes([a.aval for a in kept.values() if not a.given and id(a.root()) not in left_out])

    def add(self, name: str, operands: Sequence[_Array], output: _Array) -> None:
        """What the gradient of a primitive, which passes some parameter, needs."""
        pairs = list(zip(operands, operands[::-1], strict=True)) if len(operands) == 2 else []
        if name in ('conv_general_dilated', 'dot_general'):
            for a, b in pairs:
                if b.trained:
                    self.keep(a)
        elif name == 'mul':
            self.wanted += [a for a, b in pairs if b.trained]
        elif name == 'div':
            self.wanted += [operands[1], *([output] if operands[1].trained else [])]
        elif name in ('max', 'min'):
            self.wanted += operands if all(a.trained for a in operands) else [output]
        elif name == 'select_n':
            self.wanted.append(operands[0])
        elif name in _KEEPS_OUTPUT:
            self.wanted.append(output)
        elif name in _KEEPS_INPUT or name.startswith('reduce_window_max'):
            self.wanted += operands


@dataclasses.dataclass(eq=False)
class _Row:
    """A layer while it is being found."""

    kind: str
    parameters: int
    padding: tuple[tuple[int, int], ...] | None = None
    multiply_adds: int = 0
    output: _Array | None = None

    def layer(self, name: str, batch: int) -> Layer:
        """When it is whole."""
        assert self.output is not None
        assert self.output.place is not None
        place, shape = self.output.place, self.output.aval.shape
        bounded = [math.isfinite(high - low) for low, high in zip(place.low, place.high, strict=True)]
        field = [int(high - low) + 1 if ok else None for low, high, ok in zip(place.low, place.high, bounded, strict=True)]
        start = [(low + high + 1) / 2 if ok else None for low, high, ok in zip(place.low, place.high, bounded, strict=True)]
        return Layer(name, shape[1:] if shape[:1] == (batch,) else shape, self.parameters, self.multiply_adds // batch,
                     (field[0], field[1]), (place.jump[0], place.jump[1]), self.padding, (start[0], start[1]))


Path = tuple[str, ...]


class _Walk:
    """Over the primitives of a network that is initialised in training, with all that `Cost` needs.

    Attributes:
      kept: bytes of activations that the backward pass keeps.
      layers: of the way to the logits.
    """

    def __init__(self, jaxpr: Any, outputs: Any, variables: Any):
        (images,), ends = jaxpr.invars, jaxpr.outvars
        self._batch = images.aval.shape[0]
        live = _live(jaxpr, ends[0])
        leaves = jax.tree.leaves_with_path(variables)
        first = len(jax.tree.leaves(outputs))
        self._owners: dict[Path, dict[str, int]] = {}  # parameters by module
        self._params = set()
        for (path, leaf), end in zip(leaves, ends[first:], strict=True):
            collection, *modules, name = (part.key for part in path)
            if collection == 'params':
                self._params.add(end)
                if end in live:
                    self._owners.setdefault(tuple(modules), {})[name] = math.prod(leaf.shape)
        self._live = live
        self._rows: dict[Any, _Row] = {}  # by module; those without parameters by what is theirs alone
        self._pool: Any = None
        n, h, w, c = images.aval.shape
        place = Place((_plain(n), (_Run(h, HEIGHT, 1),), (_Run(w, WIDTH, 1),), _plain(c)), (0, 0), (0, 0), (1, 1))
        memory = _Memory()
        self._run(jaxpr, [_Array(images.aval, place, given=True)], (), memory, None)
        self.kept = memory.bytes()
        counts: dict[str, int] = {}
        layers = []
        for key, row in self._rows.items():
            name = row.kind
            if key not in self._owners:
                counts[name] = counts.get(name, -1) + 1
                name = f'{name}_{counts[name]}'
            layers.append(row.layer(name, self._batch))
        self.layers = tuple(layers)

    def _run(self, jaxpr: Any, inputs: Sequence[_Array], scope: Path, memory: _Memory | None,
             shown: bool | None) -> list[_Array]:
        """The arrays that a jaxpr gives. `shown`: it is on the way to the logits; None: it is the network's own."""
        known = dict(zip(jaxpr.invars, inputs, strict=True))

        def read(v: Any) -> _Array:
            return known[v] if not hasattr(v, 'val') and v in known else _Array(v.aval)
        for eqn in jaxpr.eqns:
            operands = [read(v) for v in eqn.invars]
            trained = any(a.trained for a in operands)
            if all(a.place is None for a in operands):
                made = [_Array(v.aval, trained=trained) for v in eqn.outvars]
            else:
                path = (*scope, *(part for part in str(eqn.source_info.name_stack).split('/') if part and '.' not in part))
                seen = shown if shown is not None else any(v in self._live for v in eqn.outvars)
                made = self._equation(eqn, operands, path, memory if trained else None, seen)
            for v, array in zip(eqn.outvars, made, strict=True):
                if v in self._params:
                    array.trained = array.given = True
                known[v] = array
        return [read(v) for v in jaxpr.outvars]

    def _equation(self, eqn: Any, operands: Sequence[_Array], path: Path, memory: _Memory | None,
                  shown: bool) -> list[_Array]:
        name = eqn.primitive.name
        inner = next((eqn.params[key] for key in ('jaxpr', 'call_jaxpr', 'fun_jaxpr') if key in eqn.params), None)
        if name == 'cond':
            inner, operands = eqn.params['branches'][-1], operands[1:]
        inner = getattr(inner, 'jaxpr', inner)
        if inner is not None and len(inner.invars) == len(operands):
            block = memory
            if memory is not None and name.startswith(('custom_vjp', 'remat', 'checkpoint')):
                used = [a for a in operands if a.place is not None]
                if name.startswith('custom_vjp'):  # its backward pass is the library's, from the operands
                    memory.wanted += used
                    block = None
                else:
                    for a in used:
                        memory.keep(a)
                    block = _Memory()
            made = self._run(inner, operands, path, block, shown)
            if block is memory:
                return made
            if memory is not None and block is not None:
                memory.block = max(memory.block, block.bytes(without=operands))
            return [_Array(a.aval, a.place, a.trained) for a in made]
        trained = any(a.trained for a in operands)
        made = [_Array(v.aval, place, trained) for v, place in zip(eqn.outvars, _places(eqn, operands), strict=True)]
        output, sources = made[0], [a for a in operands if a.place is not None]
        if name in ('reshape', 'transpose', 'squeeze', 'broadcast_in_dim', 'slice', 'rev'):
            output.source = sources[0]
            output.view = sources[0].aval.size == output.aval.size
        elif name in _ELEMENTWISE:
            roots = {id(a.root()): a.root() for a in sources if a.aval.size == output.aval.size}
            if len(roots) == 1:
                large = [a for a in sources if a.aval.size == output.aval.size]
                output.source = large[0] if len(large) == 1 else large[0].root()
        if memory is not None:
            memory.add(name, operands, output)
        if shown:
            self._show(eqn, operands, output, path)
        return made

    def _show(self, eqn: Any, operands: Sequence[_Array], output: _Array, path: Path) -> None:
        """Notes what the layer that this primitive belongs to has of it."""
        name = eqn.primitive.name
        product = name in ('conv_general_dilated', 'dot_general')
        pool = next((part for part in path[::-1] if part.endswith('_pool')), '')
        module = self._module(path)
        if module is None and not pool and () in self._owners and any(a.trained and a.place is None for a in operands):
            module = ()
        key: Any = None
        if module is not None:
            key, kind = module, '/'.join(module or self._owners[()])
        elif pool:
            key, kind = self._pool if self._pool and self._pool[0] == path else (path, object()), pool
        elif product:
            key, kind = object(), 'product'
        elif name.startswith('reduce_') and _whole_image(eqn, operands[0]):
            key, kind = object(), {'reduce_sum': 'mean', 'reduce_max': 'max'}.get(name, name)
        self._pool = key if pool and module is None else None  # primitives of one pooling follow each other
        if key is None:
            return
        if key not in self._rows:
            self._rows[key] = _Row(kind, sum(self._owners[module].values()) if module is not None else 0,
                                   ((0, 0), (0, 0)) if pool else None)
        row = self._rows[key]
        row.output = output
        if product:
            row.multiply_adds += _multiply_adds(eqn)
        if name == 'conv_general_dilated':
            row.padding = tuple((int(low), int(high)) for low, high in eqn.params['padding'])
        if pool and name == 'pad' and operands[0].place is not None:
            row.padding = tuple((int(low), int(high)) for (low, high, _), dim in zip(
                eqn.params['padding_config'], operands[0].place.dims, strict=True) if _placed(dim))

    def _module(self, path: Path) -> Path | None:
        """The innermost module with parameters that `path`, which begins with the network's own name, is in."""
        for end in range(len(path), 0, -1):
            for begin in range(end):
                if path[begin:end] in self._owners:
                    return path[begin:end]
        return None


def _live(jaxpr: Any, end: Any) -> set[Any]:
    """The variables that `end` is computed from, and itself."""
    found = {end}
    for eqn in reversed(jaxpr.eqns):
        if any(v in found for v in eqn.outvars):
            found.update(v for v in eqn.invars if not hasattr(v, 'val'))
    return found


def _multiply_adds(eqn: Any) -> int:
    shapes, output = [v.aval.shape for v in eqn.invars], eqn.outvars[0].aval.shape
    if eqn.primitive.name == 'dot_general':
        contracted = eqn.params['dimension_numbers'][0][0]
        return math.prod(output) * math.prod(shapes[0][d] for d in contracted)
    return math.prod(output) * math.prod(shapes[1]) // shapes[1][eqn.params['dimension_numbers'].rhs_spec[0]]


def _whole_image(eqn: Any, operand: _Array) -> bool:
    """Whether it reduces maps (N, H, W, C) to vectors."""
    place, axes = operand.place, eqn.params.get('axes', ())
    return place is not None and len(place.dims) == 4 and {
        run.axis for d in axes for run in place.dims[d]} == {HEIGHT, WIDTH}


def _places(eqn: Any, operands: Sequence[_Array]) -> list[Place | None]:
    """Of what a primitive gives, some of whose operands depend on the images."""
    name, params = eqn.primitive.name, eqn.params
    shapes = [v.aval.shape for v in eqn.outvars]
    shape = shapes[0]
    array = next(a for a in operands if a.place is not None)
    place, old = array.place, array.aval.shape
    assert place is not None
    if name == 'optimization_barrier':
        return [a.place for a in operands]
    if name in _ELEMENTWISE:
        return [_union([a.place if len(a.place.dims) == len(shape) else a.place.moved([_plain(n) for n in shape])
                        for a in operands if a.place is not None], shape)]  # of fewer dimensions: a scalar
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
    if name == 'pad' and array is operands[0]:
        return [place.window([(1, 1, 1, low, inner + 1) for low, _, inner in params['padding_config']], shape)]
    if name.startswith('reduce_window'):
        return [place.window(list(zip(
            params['window_dimensions'], params['window_dilation'], params['window_strides'],
            (low for low, _ in params['padding']), params['base_dilation'], strict=True)), shape)]
    if name.startswith('reduce_') or name in ('argmax', 'argmin'):
        gone = set(params['axes'])
        return [place.gathered(gone, [dim for d, dim in enumerate(place.dims) if d not in gone])] * len(shapes)
    if name in ('concatenate', 'stack'):
        places = [a.place for a in operands if a.place is not None]
        if name == 'stack':
            places = [p.moved([*p.dims[:params['axis']], _plain(1), *p.dims[params['axis']:]]) for p in places]
        d = params['axis'] if name == 'stack' else params['dimension']
        return [_union([p.gathered([d], [*p.dims[:d], _plain(1), *p.dims[d + 1:]]) for p in places], shape)]
    if name == 'split':
        d = params['axis']
        return [place.gathered([d], [*place.dims[:d], _plain(s[d]), *place.dims[d + 1:]]) for s in shapes]
    if name == 'conv_general_dilated' and array is operands[0]:
        return [_convolved(params, place, eqn.invars[1].aval.shape, shape)]
    if name == 'dot_general':
        return [_contracted(params['dimension_numbers'], operands, shape)]
    # not known: each element sees what all saw
    every = _union([a.place.gathered(range(len(a.place.dims)), []) for a in operands if a.place is not None], ())
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


def _contracted(numbers: Any, operands: Sequence[_Array], shape: Sequence[int]) -> Place:
    (contracted, batched) = numbers
    found = []
    free = [[d for d in range(len(a.aval.shape)) if d not in c and d not in b]
            for a, c, b in zip(operands, contracted, batched, strict=True)]
    for i, a in enumerate(operands):
        if a.place is None:
            continue
        dims = [a.place.dims[d] for d in batched[i]]
        for other in (0, 1):
            dims += [a.place.dims[d] if other == i else _plain(operands[other].aval.shape[d]) for d in free[other]]
        found.append(a.place.gathered(contracted[i], dims))
    return _union(found, shape)


# ---- a picture


def figure(costs: Mapping[str, Cost], path: str) -> None:
    """Parameters and multiply-adds of networks, each a point with its name, on logarithmic axes.

    Args:
      costs: by name.
      path: of the PNG.
    """
    from matplotlib.figure import Figure
    picture = Figure(figsize=(14, 9), layout='constrained')
    axis = picture.subplots()
    axis.set(xscale='log', yscale='log', xlabel='parameters', ylabel='multiply-adds of an image')
    axis.grid(alpha=0.3)
    axis.scatter([c.parameters for c in costs.values()], [c.multiply_adds for c in costs.values()], s=16)
    axis.margins(0.09)
    picture.draw_without_rendering()  # from here on points have their places
    places = {name: axis.transData.transform((c.parameters, c.multiply_adds)) for name, c in sorted(costs.items())}
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in places.values()]
    scale = picture.dpi / 72
    angles = [i * math.pi / 8 for i in (1, 0, 15, 3, 13, 4, 12, 5, 11, 7, 8, 9, 2, 6, 10, 14)]
    for name, (x, y) in places.items():
        width, height = 4.4 * len(name) * scale, 9 * scale
        best = None
        for distance in range(8, 200, 8):
            for angle in angles:
                across, up = distance * math.cos(angle) * scale, distance * math.sin(angle) * scale
                left, low = x + across - (width if across < -1 else 0), y + up - height / 2
                box = left, low, left + width, low + height
                if best is None and not any(
                        box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
                    best = across / scale, up / scale, box
        across, up, box = best or (8, 0, (x, y, x, y))
        taken.append(box)
        axis.annotate(name, (costs[name].parameters, costs[name].multiply_adds), (across, up), textcoords='offset points',
                      fontsize=7, va='center', ha='right' if across < -1 else 'left',
                      arrowprops={'arrowstyle': '-', 'linewidth': 0.4, 'color': 'grey', 'shrinkA': 0, 'shrinkB': 1})
    picture.savefig(path)
