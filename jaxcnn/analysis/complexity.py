"""Compute the cost of any network, and the receptive field of each of its layers, from a trace.

`cost(network, image_shape)` traces the network once, without computing anything, and visits the primitives. It depends on no
particular layers, so that it works for new networks.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxcnn import config as cfg
from jaxcnn import optim
from jaxcnn.analysis.activation_memory import ActivationMemory, TracedArray, tree_bytes
from jaxcnn.analysis.receptive_field import HEIGHT, WIDTH, ReceptiveField, called_jaxpr, is_spatial, propagate
from jaxcnn.errors import UserError
from jaxcnn.models import Network
from jaxcnn.timeline import Timeline

OPTIMIZERS = ('sgd', 'momentum', 'adam')


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer with parameters, a pooling (`max_pool`, `avg_pool`, `mean`) or a product of activations (`product`).

    Pairs are (height, width). `field`, `jump` and `start` describe the layer's output, in pixels of the image, with the
    terms of Dang Ha The Hien 2017, "A guide to receptive field arithmetic for convolutional neural networks".

    Attributes:
      name: path of the layer's parameters, such as `Conv_0`; for a layer without parameters, its kind and a number, such as
        `max_pool_0`.
      shape: shape of the output, without the batch.
      parameters: number of trained parameters.
      multiply_adds: number of multiply-adds for one image.
      field: size of the receptive field, padding included; None if it is unbounded, as after attention.
      jump: distance between neighbouring elements; for an output without image axes, such as a dense layer's, that of the
        last output with image axes.
      padding: padding of the window, ((top, bottom), (left, right)), or None for layers without a window.
      start: centre of the first element's receptive field, where the first pixel has the centre 0.5; None if `field` is
        unbounded.
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
    """The cost of a network. Memory is in bytes.

    Attributes:
      image_shape: (H, W, C).
      num_classes: number of logits.
      batch_size: batch size of `activation_memory` and `training_memory`.
      parameters: number of parameters that evaluation uses.
      auxiliary_parameters: number of parameters of classifiers that exist in training only.
      multiply_adds: multiply-adds of convolutions and matrix products, for one image, in evaluation.
      activation_memory: memory of the activations stored for the backward pass; see `cost`.
      training_memory: memory by optimizer: parameters, gradients, optimizer state, BatchNorm statistics, activations and the
        batch of images.
      optimizer_memory: memory of the optimizer state alone, by optimizer.
      layers: the layers in the order of computation, without auxiliary classifiers.
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
    """Compute the cost of a network for images of a shape.

    Multiply-adds include those with the padding and exclude elementwise arithmetic. XLA does the opposite: for ten small
    networks, half its flops were 0.90 to 1.06 times the result of this function.

    Activation memory is that of the arrays that the backward pass needs: inputs of convolutions, products and BatchNorm;
    one array of each chain of elementwise operations without a second operand of its size, because XLA recomputes the
    others; masks; and with `remat` the inputs of blocks and the activations of the largest block. XLA needs workspace in
    addition, and frees some activations before all gradients exist. On the CPU, by XLA's `memory_analysis`, training steps
    of the same networks took 0.85 to 1.65 times `training_memory`, and 0.91 to 1.82 times with XLA's convolutions.

    Args:
      network: the network; its `conv_implementation` does not matter.
      image_shape: (H, W, C).
      batch_size: images in a training step.
      optimizers: names in `optim.optimizer_names()`, with arguments as in `'sgd(momentum=0.9)'`, which is also called
        `momentum`.

    Raises:
      UserError: The image is too small, the batch size is below 1, or an optimizer is unknown.
    """
    for quantity, number in (('image size', min(image_shape)), ('batch size', batch_size)):
        if number < 1:
            raise UserError(f'{quantity} must be at least 1, got {number}')
    optimizer_by_name = {name: _optimizer(name) for name in optimizers}
    # convolutions as single primitives, without the rounding of config.quantization, and BatchNorm as in evaluation, whose
    # statistics do not depend on the image
    network = network.clone(conv_implementation='xla', bn_frozen=True, quantizer=None)
    images = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.float32)

    def init(images: jax.Array) -> Any:
        keys = {name: jax.random.key(0) for name in ('params', 'dropout')}
        return network.init_with_output(keys, images, train=True)
    jaxpr, (outputs, variables) = jax.make_jaxpr(init, return_shape=True)(images)
    walk = _Walk(jaxpr.jaxpr, outputs, variables)
    params, stats = variables['params'], variables.get('batch_stats', {})
    all_parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    parameters = sum(layer.parameters for layer in walk.layers)
    optimizer_memory = {name: tree_bytes(jax.eval_shape(optimizer.init, params))
                        for name, optimizer in optimizer_by_name.items()}
    without_optimizer = 2 * tree_bytes(params) + tree_bytes(stats) + walk.activation_memory + tree_bytes(images)
    return Cost(
        image_shape, network.num_classes, batch_size, parameters, all_parameters - parameters,
        sum(layer.multiply_adds for layer in walk.layers), walk.activation_memory,
        {name: without_optimizer + memory for name, memory in optimizer_memory.items()}, optimizer_memory, walk.layers)


def _optimizer(name: str) -> optim.Optimizer:
    call, args, kwargs = cfg.parse_call('sgd(momentum=0.9)' if name == 'momentum' else name, 'optimizer')
    if args:
        raise UserError(f'optimizer {name!r}: its arguments need names, as in sgd(momentum=0.9)')
    config = cfg.parse({'duration': {'steps': 1}, 'optim': {'optimizer': {'name': call, **kwargs}, 'schedule': 'constant'}})
    return optim.make_optimizer(config.optim, Timeline(config, config.batch_size))


# ---- the walk over a network's primitives

Path = tuple[str, ...]


@dataclasses.dataclass(eq=False)
class _PartialLayer:
    """A layer of which some primitives have been visited; `output` is the output of the last one."""

    kind: str
    parameters: int
    padding: tuple[tuple[int, int], ...] | None = None
    multiply_adds: int = 0
    output: TracedArray | None = None

    def finish(self, name: str, batch_size: int) -> Layer:
        """Return the layer, after all of its primitives have been visited."""
        assert self.output is not None
        assert self.output.field is not None
        field, shape = self.output.field, self.output.aval.shape
        size: list[int | None] = []
        start: list[float | None] = []
        for low, high in zip(field.low, field.high, strict=True):
            bounded = math.isfinite(high - low)
            size.append(int(high - low) + 1 if bounded else None)
            start.append((low + high + 1) / 2 if bounded else None)
        return Layer(name, shape[1:] if shape[:1] == (batch_size,) else shape, self.parameters,
                     self.multiply_adds // batch_size, (size[0], size[1]), (field.jump[0], field.jump[1]), self.padding,
                     (start[0], start[1]))


class _Walk:
    """A walk over the primitives of a network's initialisation in training mode.

    Attributes:
      activation_memory: bytes of activations that the backward pass keeps.
      layers: layers that the logits depend on.
    """

    def __init__(self, jaxpr: Any, outputs: Any, variables: Any):
        (images,), results = jaxpr.invars, jaxpr.outvars
        batch_size = images.aval.shape[0]
        self._needed = _variables_needed(jaxpr, results[0])
        self._parameters: dict[Path, dict[str, int]] = {}  # sizes of the parameters that the logits need, by module
        self._parameter_variables = set()
        leaves = jax.tree.leaves_with_path(variables)
        for (path, leaf), variable in zip(leaves, results[len(jax.tree.leaves(outputs)):], strict=True):
            collection, *modules, name = (key.key for key in path)
            if collection == 'params':
                self._parameter_variables.add(variable)
                if variable in self._needed:
                    self._parameters.setdefault(tuple(modules), {})[name] = math.prod(leaf.shape)
        self._layers: dict[Any, _PartialLayer] = {}  # by module, or by a unique key for a layer without parameters
        self._pool_key: Any = None  # of the layer of the last primitive, if that was a pooling
        memory = ActivationMemory()
        images_array = TracedArray(images.aval, ReceptiveField.of_images(images.aval.shape), resident=True)
        self._walk(jaxpr, [images_array], (), memory, None)
        self.activation_memory = memory.bytes()
        counts: dict[str, int] = {}
        layers = []
        for key, layer in self._layers.items():
            name = layer.kind
            if key not in self._parameters:
                counts[name] = counts.get(name, -1) + 1
                name = f'{name}_{counts[name]}'
            layers.append(layer.finish(name, batch_size))
        self.layers = tuple(layers)

    def _walk(self, jaxpr: Any, inputs: Sequence[TracedArray], scope: Path, memory: ActivationMemory | None,
              needed: bool | None) -> list[TracedArray]:
        """Visit the primitives of a jaxpr and return its outputs.

        Args:
          jaxpr: the network's, or one within it.
          inputs: its inputs.
          scope: names of the modules and functions that the jaxpr is in.
          memory: collects the arrays for the backward pass; None if they are not counted.
          needed: whether the logits depend on the jaxpr; None for the network's own, where each primitive is checked.
        """
        arrays = dict(zip(jaxpr.invars, inputs, strict=True))

        def read(v: Any) -> TracedArray:
            return arrays[v] if not hasattr(v, 'val') and v in arrays else TracedArray(v.aval)
        for eqn in jaxpr.eqns:
            operands = [read(v) for v in eqn.invars]
            trained = any(a.trained for a in operands)
            if all(a.field is None for a in operands):
                results = [TracedArray(v.aval, trained=trained) for v in eqn.outvars]
            else:
                names = str(eqn.source_info.name_stack).split('/')
                path = (*scope, *(name for name in names if name and '.' not in name))
                eqn_needed = needed if needed is not None else any(v in self._needed for v in eqn.outvars)
                results = self._visit(eqn, operands, path, memory if trained else None, eqn_needed)
            for v, array in zip(eqn.outvars, results, strict=True):
                if v in self._parameter_variables:
                    array.trained = array.resident = True
                arrays[v] = array
        return [read(v) for v in jaxpr.outvars]

    def _visit(self, eqn: Any, operands: Sequence[TracedArray], path: Path, memory: ActivationMemory | None,
               needed: bool) -> list[TracedArray]:
        """Visit a primitive and return its outputs; see `_walk`."""
        name = eqn.primitive.name
        if call := called_jaxpr(eqn, operands):
            return self._visit_call(name, *call, path, memory, needed)
        trained = any(a.trained for a in operands)
        fields = propagate(eqn, [a.field for a in operands])
        results = [TracedArray(v.aval, field, trained) for v, field in zip(eqn.outvars, fields, strict=True)]
        results[0].set_source(name, [a for a in operands if a.field is not None])
        if memory is not None:
            memory.add(name, operands, results[0])
        if needed:
            self._add_to_layer(eqn, operands, results[0], path)
        return results

    def _visit_call(self, name: str, jaxpr: Any, operands: Sequence[TracedArray], path: Path,
                    memory: ActivationMemory | None, needed: bool) -> list[TracedArray]:
        """Visit a primitive that calls a jaxpr. Of a rematerialised one, only the inputs are stored."""
        if memory is None or not name.startswith(('custom_vjp', 'remat', 'checkpoint')):
            return self._walk(jaxpr, operands, path, memory, needed)
        inputs = [a for a in operands if a.field is not None]
        if name.startswith('custom_vjp'):  # the backward pass is the library's, and needs the operands
            memory.need(inputs)
            results = self._walk(jaxpr, operands, path, None, needed)
        else:
            for array in inputs:
                memory.store(array)
            block = ActivationMemory()
            results = self._walk(jaxpr, operands, path, block, needed)
            memory.block_bytes = max(memory.block_bytes, block.bytes(excluded=operands))
        return [TracedArray(a.aval, a.field, a.trained) for a in results]

    def _add_to_layer(self, eqn: Any, operands: Sequence[TracedArray], output: TracedArray, path: Path) -> None:
        """Add a primitive to the layer that it belongs to, if any."""
        name = eqn.primitive.name
        is_product = name in ('conv_general_dilated', 'dot_general')
        pool = next((scope for scope in path[::-1] if scope.endswith('_pool')), '')
        module = self._module(path)
        if module is None and not pool and () in self._parameters and any(
                a.trained and a.field is None for a in operands):
            module = ()
        key: Any = None
        if module is not None:
            key, kind = module, '/'.join(module or self._parameters[()])
        elif pool:  # the primitives of one pooling follow each other
            key, kind = self._pool_key if self._pool_key and self._pool_key[0] == path else (path, object()), pool
        elif is_product:
            key, kind = object(), 'product'
        elif name.startswith('reduce_') and _reduces_image(eqn, operands[0]):
            key, kind = object(), {'reduce_sum': 'mean', 'reduce_max': 'max'}.get(name, name)
        self._pool_key = key if pool and module is None else None
        if key is None:
            return
        if key not in self._layers:
            parameters = sum(self._parameters[module].values()) if module is not None else 0
            self._layers[key] = _PartialLayer(kind, parameters, ((0, 0), (0, 0)) if pool else None)
        layer = self._layers[key]
        layer.output = output
        if is_product:
            layer.multiply_adds += _multiply_adds(eqn)
        if name == 'conv_general_dilated':
            layer.padding = tuple((int(low), int(high)) for low, high in eqn.params['padding'])
        field = operands[0].field
        if pool and name == 'pad' and field is not None:
            layer.padding = tuple((int(low), int(high)) for (low, high, _), dim in zip(
                eqn.params['padding_config'], field.dims, strict=True) if is_spatial(dim))

    def _module(self, path: Path) -> Path | None:
        """Return the innermost module with parameters that contains `path`, which starts with the network's name."""
        for end in range(len(path), 0, -1):
            for begin in range(end):
                if path[begin:end] in self._parameters:
                    return path[begin:end]
        return None


def _variables_needed(jaxpr: Any, result: Any) -> set[Any]:
    """Return the variables that `result` is computed from, and itself."""
    needed = {result}
    for eqn in reversed(jaxpr.eqns):
        if any(v in needed for v in eqn.outvars):
            needed.update(v for v in eqn.invars if not hasattr(v, 'val'))
    return needed


def _multiply_adds(eqn: Any) -> int:
    shapes, output = [v.aval.shape for v in eqn.invars], eqn.outvars[0].aval.shape
    if eqn.primitive.name == 'dot_general':
        contracting = eqn.params['dimension_numbers'][0][0]
        return math.prod(output) * math.prod(shapes[0][d] for d in contracting)
    out_features = shapes[1][eqn.params['dimension_numbers'].rhs_spec[0]]
    return math.prod(output) * math.prod(shapes[1]) // out_features


def _reduces_image(eqn: Any, operand: TracedArray) -> bool:
    """Return whether a primitive reduces maps (N, H, W, C) to vectors."""
    field, axes = operand.field, eqn.params.get('axes', ())
    return field is not None and len(field.dims) == 4 and {
        factor.axis for d in axes for factor in field.dims[d]} == {HEIGHT, WIDTH}
