"""The graph of a network in evaluation, with BatchNorm, ReLU and residual sums fused into the layers before them.

The network is traced once, in float32. Its convolutions, dense layers and BatchNorm are single operations of the trace; all
others are JAX's primitives. So any network works whose parameters are in such layers, and parameters elsewhere stay as they
are.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.linear import canonicalize_padding
from jax import lax
from jax.extend import core

from jaxcnn.models import Network
from jaxcnn.models.layers import BatchNorm, height_width
from jaxcnn.ops.conv import conv_general_dilated
from jaxcnn.ops.geometry import NHWC
from jaxcnn.optim import path_name

_INLINED = 'jit', 'pjit', 'closed_call', 'custom_jvp_call', 'custom_vjp_call', 'remat2', 'checkpoint'
Arrays = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution or a dense layer, with what is fused into it: `activation(convolution + bias + residual)`.

    Attributes:
      name: path of the module, such as `Conv_0`.
      kind: `conv`, `dense`, or, before the fusion and where no convolution precedes, `norm`.
      strides, padding, dilation, groups: of a convolution; the padding is ((top, bottom), (left, right)) or a string.
      norm: path of the BatchNorm that is folded into it; of a `norm`, its own.
      epsilon: what that adds to the variance.
      has_residual: the second input is added before the activation.
      activation: `none`, `relu`, or `relu6`.
    """

    name: str
    kind: str
    strides: tuple[int, int] = (1, 1)
    padding: Any = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    norm: str = ''
    epsilon: float = 0.0
    has_residual: bool = False
    activation: str = 'none'


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """An operation. Its inputs are numbers of values, or literals of the trace.

    Attributes:
      inputs: its inputs.
      outputs: the numbers of its outputs.
      layer: the layer, or None.
      equation: the equation of the trace, if it is no layer.
    """

    inputs: tuple[Any, ...]
    outputs: tuple[int, ...]
    layer: Layer | None = None
    equation: Any = None


@dataclasses.dataclass(frozen=True)
class Graph:
    """The operations of a network in order.

    Attributes:
      nodes: the operations.
      image: number of the input (N, H, W, C).
      output: number of the output.
      variables: paths of the variables that operations other than layers use, such as `params/cls`, by number.
      constants: constant arrays by number.
      tensors: names of the values that the layers' quantisation makes integers, by number, in the order of computation.
    """

    nodes: tuple[Node, ...]
    image: int
    output: int
    variables: Mapping[int, str]
    constants: Mapping[int, Any]
    tensors: Mapping[int, str]

    @property
    def layers(self) -> list[Layer]:
        """The convolutions and dense layers, in order."""
        return [node.layer for node in self.nodes if node.layer is not None and node.layer.kind != 'norm']

    def consumers(self) -> dict[int, list[Node]]:
        """Return the operations that use each value, by its number."""
        return _consumers(self.nodes)


_layer = core.Primitive('jaxcnn_layer')
_layer.def_abstract_eval(lambda x, *, layer, shape: jax.core.ShapedArray(shape, jnp.float32))


def _intercept(call: Any, args: Any, kwargs: Any, context: Any, copies_inputs: bool) -> Any:
    """Replace the call of a layer by one operation of the trace."""
    module = context.module
    if context.method_name != '__call__' or not isinstance(module, nn.Conv | nn.Dense | BatchNorm):
        return call(*args, **kwargs)
    x, name = args[0], '/'.join(module.path)
    if isinstance(module, BatchNorm):
        layer = Layer(name, 'norm', norm=name, epsilon=module.epsilon, activation='relu' if module.relu else 'none')
        return _layer.bind(x, layer=layer, shape=x.shape)
    if copies_inputs:
        x = jnp.copy(x)
    if isinstance(module, nn.Dense):
        return _layer.bind(x, layer=Layer(name, 'dense'), shape=(*x.shape[:-1], module.features))
    padding = canonicalize_padding(module.padding, 2)
    padding = padding if isinstance(padding, str) else tuple((int(low), int(high)) for low, high in padding)
    layer = Layer(name, 'conv', height_width(module.strides), padding, height_width(module.kernel_dilation),
                  module.feature_group_count)
    kernel = jax.ShapeDtypeStruct((*height_width(module.kernel_size), x.shape[-1] // layer.groups, module.features),
                                  jnp.float32)
    shape = jax.eval_shape(lambda x, k: lax.conv_general_dilated(
        x, k, layer.strides, layer.padding, rhs_dilation=layer.dilation, dimension_numbers=NHWC,
        feature_group_count=layer.groups), jax.ShapeDtypeStruct(x.shape, jnp.float32), kernel).shape
    return _layer.bind(x, layer=layer, shape=shape)


class _Flattener:
    """Numbers the values of a trace, and makes nodes of its equations and of those within them."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[int, Any] = {}
        self._count = 0

    def number(self) -> int:
        """Return a new number."""
        self._count += 1
        return self._count

    def flatten(self, closed: Any, inputs: Sequence[Any]) -> list[Any]:
        """Append the equations of a closed jaxpr, and return its outputs."""
        jaxpr = closed.jaxpr
        values: dict[Any, Any] = dict(zip(jaxpr.invars, inputs, strict=True))
        for variable, constant in zip(jaxpr.constvars, closed.consts, strict=True):
            values[variable] = self.number()
            self.constants[values[variable]] = constant

        def read(variable: Any) -> Any:
            return variable if isinstance(variable, core.Literal) else values[variable]
        for equation in jaxpr.eqns:
            operands = [read(v) for v in equation.invars]
            inner = next((equation.params[key] for key in ('jaxpr', 'call_jaxpr', 'fun_jaxpr') if key in equation.params),
                         None) if equation.primitive.name in _INLINED else None
            if inner is not None:
                inner = inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, [])
                results = self.flatten(inner, operands)
            elif equation.primitive.name == 'convert_element_type' and isinstance(operands[0], core.Literal):
                aval = equation.outvars[0].aval  # so that a limit or a padding remains a literal
                results = [core.Literal(np.asarray(operands[0].val, aval.dtype), aval)]
            else:
                results = [self.number() for _ in equation.outvars]
                layer = equation.params['layer'] if equation.primitive is _layer else None
                self.nodes.append(Node(tuple(operands), tuple(results), layer, None if layer else equation))
            values.update(zip(equation.outvars, results, strict=True))
        return [read(v) for v in jaxpr.outvars]


def trace(network: Network, variables: Any, shape: tuple[int, ...], is_quantized: Callable[[str], bool] = bool,
          inputs_only: bool = False) -> Graph:
    """Return the graph of a network in evaluation.

    Args:
      network: the network.
      variables: its variables, or their shapes.
      shape: (N, H, W, C) of the images.
      is_quantized: whether a layer is quantised, given its name.
      inputs_only: each layer quantises a copy of its input for itself, and residual sums are not quantised, as in training.
    """
    network = network.clone(conv_implementation='xla', dtype='float32', remat=False)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), dict(variables))

    def apply(variables: Any, x: jax.Array) -> Any:
        with nn.intercept_methods(functools.partial(_intercept, copies_inputs=inputs_only)):
            return network.apply(variables, x, train=False)
    closed = jax.make_jaxpr(apply)(shapes, jax.ShapeDtypeStruct(shape, jnp.float32))
    flattener = _Flattener()
    paths = {flattener.number(): path_name(path) for path, _ in jax.tree.leaves_with_path(shapes)}
    image = flattener.number()
    output, = flattener.flatten(closed, [*paths, image])
    nodes = _fuse(_used(flattener.nodes, output), output)
    inputs = {i for node in nodes for i in node.inputs if isinstance(i, int)}
    return Graph(tuple(nodes), image, output, {i: path for i, path in paths.items() if i in inputs}, flattener.constants,
                 _name_tensors(nodes, is_quantized, inputs_only))


def _used(nodes: Sequence[Node], output: int) -> list[Node]:
    """Return the nodes on which the output depends."""
    needed, result = {output}, []
    for node in reversed(nodes):
        if needed.intersection(node.outputs):
            needed.update(i for i in node.inputs if isinstance(i, int))
            result.append(node)
    return result[::-1]


def _consumers(nodes: Sequence[Node]) -> dict[int, list[Node]]:
    consumers: dict[int, list[Node]] = collections.defaultdict(list)
    for node in nodes:
        for i in node.inputs:
            if isinstance(i, int):
                consumers[i].append(node)
    return consumers


def _fuse(nodes: list[Node], output: int) -> list[Node]:
    """Fuse BatchNorm, residual sums and activations into the layers whose outputs only they use."""
    consumers = _consumers(nodes)
    fused: list[Node] = []  # in order; a fused layer moves to the operation that is fused into it
    producer: dict[int, Node] = {}

    def layer_before(value: Any) -> Node | None:
        """Return the layer that computes a value which nothing else uses."""
        node = producer.get(value) if isinstance(value, int) else None
        is_layer = node is not None and node.layer is not None and node.layer.kind != 'norm'
        return node if is_layer and len(consumers[value]) == 1 and value != output else None

    def replace(before: Node, node: Node, inputs: tuple[Any, ...], **changes: Any) -> Node:
        fused.remove(before)
        assert before.layer is not None
        return Node(inputs, node.outputs, dataclasses.replace(before.layer, **changes))

    for node in nodes:
        result = node
        if node.layer is not None:
            before = layer_before(node.inputs[0])
            if (node.layer.kind == 'norm' and before is not None and before.layer is not None
                    and (before.layer.norm, before.layer.activation, before.layer.has_residual) == ('', 'none', False)):
                result = replace(before, node, before.inputs, norm=node.layer.norm, epsilon=node.layer.epsilon,
                                 activation=node.layer.activation)
        elif node.equation.primitive.name in ('add', 'add_any'):
            result = _fuse_sum(node, layer_before, fused, replace)
        elif (activation := _activation(node)) and (before := layer_before(node.inputs[0])) and before.layer is not None:
            is_next = before.layer.activation == {'relu': 'none', 'relu6': 'relu'}[activation]
            result = replace(before, node, before.inputs, activation=activation) if is_next else node
        fused.append(result)
        producer.update(dict.fromkeys(result.outputs, result))
    return fused


def _fuse_sum(node: Node, layer_before: Callable[[Any], Node | None], fused: list[Node],
              replace: Callable[..., Node]) -> Node:
    """Fuse a sum into the later one of the layers that compute its terms, if one of them has neither sum nor activation."""
    a, b = node.inputs
    if not all(isinstance(i, int) for i in (a, b)) or a == b:
        return node
    if len({v.aval.shape for v in (*node.equation.invars, *node.equation.outvars)}) > 1:
        return node
    candidates = [(fused.index(before), before, other) for value, other in ((a, b), (b, a))
                  if (before := layer_before(value)) is not None and before.layer is not None
                  and (before.layer.kind, before.layer.activation, before.layer.has_residual) == ('conv', 'none', False)]
    if not candidates:
        return node
    _, before, other = max(candidates, key=lambda candidate: candidate[0])
    return replace(before, node, (*before.inputs, other), has_residual=True)


def _activation(node: Node) -> str:
    """Return `relu` for the maximum with 0, `relu6` for the minimum with 6, and otherwise an empty string."""
    limit = {'max': 0.0, 'min': 6.0}.get(node.equation.primitive.name)
    if limit is None or isinstance(node.inputs[0], core.Literal) or not isinstance(node.inputs[1], core.Literal):
        return ''
    value = node.inputs[1].val
    return {0.0: 'relu', 6.0: 'relu6'}[limit] if np.ndim(value) == 0 and value == limit else ''


def _name_tensors(nodes: Sequence[Node], is_quantized: Callable[[str], bool], inputs_only: bool) -> dict[int, str]:
    """Return the names of the quantised values: inputs of layers and, unless `inputs_only`, fused sums and their terms."""
    names: dict[int, str] = {}
    for node in nodes:
        layer = node.layer
        if layer is None or layer.kind == 'norm' or not is_quantized(layer.name):
            continue
        names.setdefault(node.inputs[0], f'{layer.name}/input')
        if layer.has_residual and not inputs_only:
            names.setdefault(node.inputs[1], f'{layer.name}/residual')
            names.setdefault(node.outputs[0], f'{layer.name}/output')
    return names


def fold(graph: Graph, variables: Any) -> dict[str, dict[str, np.ndarray]]:
    """Return the arrays of each layer, with BatchNorm folded into kernels and biases, and of other variables.

    A layer has `kernel` (..., features), `bias` and `factor` (features,), by which BatchNorm multiplied the kernel.
    BatchNorm that follows no layer has `factor` and `offset`.
    Other variables are below the empty name, by their paths. All are float32; the products are computed in float64.
    """
    leaves = {path_name(path): np.asarray(leaf, np.float64) for path, leaf in jax.tree.leaves_with_path(dict(variables))}
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for node in graph.nodes:
        layer = node.layer
        if layer is None:
            continue
        factor, offset = np.ones(()), np.zeros(())
        if layer.norm:
            mean, var = (leaves[f'batch_stats/{layer.norm}/{name}'] for name in ('mean', 'var'))
            factor = leaves.get(f'params/{layer.norm}/scale', np.ones(())) / np.sqrt(var + layer.epsilon)
            offset = leaves[f'params/{layer.norm}/bias'] - mean * factor
        if layer.kind == 'norm':
            arrays[layer.name] = {'factor': factor, 'offset': offset}
            continue
        kernel = leaves[f'params/{layer.name}/kernel']
        bias = leaves.get(f'params/{layer.name}/bias', np.zeros(kernel.shape[-1]))
        arrays[layer.name] = {'kernel': kernel * factor, 'bias': bias * factor + offset,
                              'factor': np.broadcast_to(factor, bias.shape)}
    arrays[''] = {path: leaves[path] for path in graph.variables.values()}
    return {name: {key: array.astype(np.float32) for key, array in group.items()} for name, group in arrays.items()}


def apply_layer(layer: Layer, x: jax.Array, kernel: jax.Array, bias: jax.Array, residual: jax.Array | None,
                implementation: str = 'auto') -> jax.Array:
    """Return the output of a convolution or a dense layer in float32, with what is fused into it."""
    if layer.kind == 'dense':
        y = x @ kernel
    else:
        y = conv_general_dilated(x, kernel, layer.strides, layer.padding, None, layer.dilation, NHWC, layer.groups,
                                 implementation=implementation)
    return activate(layer, y + bias + (0 if residual is None else residual))


def activate(layer: Layer, y: jax.Array) -> jax.Array:
    """Apply the activation of a layer."""
    if layer.activation == 'none':
        return y
    return jnp.clip(y, 0, 6 if layer.activation == 'relu6' else None)


def evaluate_equation(equation: Any, operands: Sequence[Any]) -> Sequence[Any]:
    """Return the results of an equation of the trace."""
    results: Any = equation.primitive.bind(*operands, **equation.params)
    return results if equation.primitive.multiple_results else [results]


def evaluate(graph: Graph, arrays: Mapping[str, Arrays], images: jax.Array, *,
             on_tensor: Callable[[str, jax.Array], jax.Array] = lambda _, x: x,
             on_input: Callable[[Layer, str, jax.Array], jax.Array] = lambda _, __, x: x,
             kernel: Callable[[Layer, Arrays], jax.Array] = lambda _, layer_arrays: layer_arrays['kernel']) -> jax.Array:
    """Return the output of a network for images (N, H, W, C).

    Args:
      graph: its graph for images of this shape.
      arrays: see `fold`.
      images: float32.
      on_tensor: replaces a quantised value, given its name.
      on_input: replaces the input of a layer, given the name of the value.
      kernel: gives the kernel of a layer from its arrays.
    """
    values: dict[int, Any] = {**graph.constants, **{i: arrays[''][path] for i, path in graph.variables.items()}}

    def write(number: int, value: jax.Array) -> None:
        values[number] = on_tensor(graph.tensors[number], value) if number in graph.tensors else value
    write(graph.image, images.astype(jnp.float32))
    for node in graph.nodes:
        operands = [values[i] if isinstance(i, int) else i.val for i in node.inputs]
        if node.layer is None:
            results = evaluate_equation(node.equation, operands)
        elif node.layer.kind == 'norm':
            layer_arrays = arrays[node.layer.name]
            results = [activate(node.layer, operands[0] * layer_arrays['factor'] + layer_arrays['offset'])]
        else:
            layer_arrays = arrays[node.layer.name]
            x = on_input(node.layer, graph.tensors.get(node.inputs[0], ''), operands[0])
            residual = operands[1] if node.layer.has_residual else None
            results = [apply_layer(node.layer, x, kernel(node.layer, layer_arrays), layer_arrays['bias'], residual)]
        for number, value in zip(node.outputs, results, strict=True):
            write(number, value)
    return values[graph.output]
