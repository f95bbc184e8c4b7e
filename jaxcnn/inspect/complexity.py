"""What a network costs, and what each of its layers sees: worked out by tracing it, for any network.

`cost(network, shape)` traces the network once, without computing anything, and walks over the primitives, knowing nothing of
its layers; so a new network has all of this at once.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxcnn import config as cfg
from jaxcnn import optim
from jaxcnn.errors import UserError
from jaxcnn.inspect.receptive_field import ELEMENTWISE, HEIGHT, WIDTH, Place, is_placed, places
from jaxcnn.models import Network
from jaxcnn.timeline import Timeline

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
    return optim.make_optimizer(config.optim, Timeline(config, config.batch_size))


def _count(tree: Any) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


# ---- the walk over a network's primitives

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
        place = Place.of_images(images.aval.shape)
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
        seen = places(eqn, [a.place for a in operands])
        made = [_Array(v.aval, place, trained) for v, place in zip(eqn.outvars, seen, strict=True)]
        output, sources = made[0], [a for a in operands if a.place is not None]
        if name in ('reshape', 'transpose', 'squeeze', 'broadcast_in_dim', 'slice', 'rev'):
            output.source = sources[0]
            output.view = sources[0].aval.size == output.aval.size
        elif name in ELEMENTWISE:
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
                eqn.params['padding_config'], operands[0].place.dims, strict=True) if is_placed(dim))

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
