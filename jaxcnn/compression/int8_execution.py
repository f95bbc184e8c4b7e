"""The execution of a quantised network with int8 convolutions on the CPU.

Values stay 8-bit integers from layer to layer. Each layer is one call of oneDNN, which also requantises, adds the residual
and applies the activation. Max pooling, slices and reshapes work on integers, too; other operations get float32.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from jaxcnn.compression import layer_graph
from jaxcnn.compression.activation_ranges import TensorScale
from jaxcnn.compression.layer_graph import Graph, Layer, Node
from jaxcnn.errors import UserError
from jaxcnn.ops import native, quantize
from jaxcnn.ops.quantized_conv import Integers, QuantizedConv, instruction_set

# operations that select or move values, so that they work on integers as on what these represent
_SELECTING = ('max', 'pad', 'slice', 'squeeze', 'reshape', 'transpose', 'reduce_max', 'concatenate', 'copy', 'expand_dims',
              'rev')


def check_available(bits: int) -> None:
    """Check that this machine executes int8 networks.

    Raises:
      UserError: It does not; the message says why.
    """
    if jax.default_backend() != 'cpu' or not native.available(jnp.float32):
        raise UserError('int8 convolutions need a CPU with oneDNN', field='execution',
                        hint="pip install 'jaxcnn[cpu]' installs it; 'simulated' works everywhere")
    if bits != 8:
        raise UserError(f'int8 convolutions need 8 bits, and the network has {bits}', field='execution',
                        hint="take 'simulated'")


@dataclasses.dataclass(frozen=True)
class _Value:
    """An array, with its quantisation if it holds integers."""

    array: Any
    integers: Integers | None = None

    def real(self) -> Any:
        """Return the values in float32."""
        return self.array if self.integers is None else quantize.dequantize(self.array, self.integers.scale)

    def quantized(self, integers: Integers) -> Any:
        """Return the integers of a quantisation."""
        if self.integers == integers:
            return self.array
        low = -127 if integers.signed else 0
        return jnp.clip(jnp.round(self.real() / integers.scale), low, integers.high).astype(integers.dtype)


class Int8Network:
    """The layers of a quantised network, whose kernels oneDNN keeps.

    Args:
      arrays: the arrays of each layer by its name; see `quantized_run.quantize_layers`.
      tensors: the scales of activations by name.
    """

    def __init__(self, arrays: Mapping[str, Any], tensors: Mapping[str, TensorScale]):
        _, has_vnni = instruction_set()
        self._arrays = arrays
        self._tensors = {name: Integers.for_processor(tensor.scale, tensor.signed, has_vnni)
                         for name, tensor in tensors.items()}
        self._calls: dict[Any, QuantizedConv] = {}

    def __call__(self, graph: Graph, images: jax.Array) -> jax.Array:
        """Return the logits of images (N, H, W, C).

        Args:
          graph: the graph for images of this shape.
          images: float32.
        """
        integers = _representations(graph, self._tensors)
        values: dict[int, _Value] = {i: _Value(constant) for i, constant in graph.constants.items()}
        others = self._arrays.get('', {})
        values |= {i: _Value(jnp.asarray(others[path])) for i, path in graph.variables.items()}

        def write(number: int, value: _Value) -> None:
            wanted = integers.get(number)
            values[number] = value if wanted is None else _Value(value.quantized(wanted), wanted)
        write(graph.image, _Value(images.astype(jnp.float32)))
        for node in graph.nodes:
            operands = [values[i] if isinstance(i, int) else _Value(i.val) for i in node.inputs]
            for number, value in zip(node.outputs, self._evaluate(node, operands, integers), strict=True):
                write(number, value)
        return values[graph.output].real()

    def _evaluate(self, node: Node, operands: Sequence[_Value], integers: Mapping[int, Integers]) -> list[_Value]:
        """Return the outputs of an operation."""
        output = integers.get(node.outputs[0])
        if node.layer is None:
            if output is not None and _selects(node, lambda i: integers.get(i) == output):
                return [_Value(_evaluate_integers(node, operands, output), output)]
            results = layer_graph.evaluate_equation(node.equation, [operand.real() for operand in operands])
            return [_Value(result) for result in results]
        arrays = self._arrays[node.layer.name]
        if node.layer.kind == 'norm':
            return [_Value(layer_graph.activate(node.layer, operands[0].real() * arrays['factor'] + arrays['offset']))]
        if 'kernel_scale' not in arrays:
            residual = operands[1].real() if node.layer.has_residual else None
            y = layer_graph.apply_layer(node.layer, operands[0].real(), arrays['kernel'], arrays['bias'], residual)
            return [_Value(y)]
        return [_Value(self._call(node.layer, arrays, operands, output), output)]

    def _call(self, layer: Layer, arrays: Mapping[str, Any], operands: Sequence[_Value],
              output: Integers | None) -> jax.Array:
        """Return the output of an int8 layer."""
        x, kernel = operands[0], np.asarray(arrays['kernel'])
        assert x.integers is not None
        array = x.array
        if layer.kind == 'dense':
            array, kernel = array.reshape(-1, 1, 1, array.shape[-1]), kernel[None, None]
        padding = layer.padding
        if isinstance(padding, str):
            sizes = [(size - 1) * dilation + 1 for size, dilation in zip(kernel.shape, layer.dilation, strict=False)]
            padding = tuple(lax.padtype_to_pads(array.shape[1:3], sizes, layer.strides, padding))
        residual = operands[1] if layer.has_residual else _Value(None)
        key = layer.name, padding, x.integers, output, residual.integers
        if key not in self._calls:
            self._calls[key] = QuantizedConv(
                kernel, np.asarray(arrays['kernel_scale']), np.asarray(arrays['bias']), x.integers, output,
                residual.integers, strides=layer.strides, padding=padding, dilation=layer.dilation,
                groups=layer.groups, activation=layer.activation)
        y = self._calls[key](array, residual.array)
        return y.reshape(*x.array.shape[:-1], y.shape[-1]) if layer.kind == 'dense' else y


def _representations(graph: Graph, tensors: Mapping[str, Integers]) -> dict[int, Integers]:
    """Return the quantisation of the values that are integers: those of `graph.tensors`, and others that only operations
    use which select their values for one of these."""
    integers = {number: tensors[name] for number, name in graph.tensors.items()}
    consumers = graph.consumers()
    for node in reversed(graph.nodes):
        for number in node.outputs:
            if number in integers or number == graph.output:
                continue
            wanted = {integers.get(user.outputs[0]) if user.layer is None and _selects(user, lambda _: True) else None
                      for user in consumers[number]}
            if len(wanted) == 1 and (quantization := wanted.pop()) is not None:
                integers[number] = quantization
    return integers


def _selects(node: Node, has_integers: Any) -> bool:
    """Return whether an operation selects values, all of which are integers of the same quantisation.

    Args:
      node: the operation.
      has_integers: whether a value, given its number, is of that quantisation.
    """
    name = node.equation.primitive.name
    if name not in _SELECTING:
        return False
    if name == 'pad':
        filling = node.inputs[1]
        is_fitting = isinstance(filling, core.Literal) and (filling.val == 0 or np.isneginf(filling.val))
        return bool(is_fitting and isinstance(node.inputs[0], int) and has_integers(node.inputs[0]))
    return all(isinstance(i, int) and has_integers(i) for i in node.inputs)


def _evaluate_integers(node: Node, operands: Sequence[_Value], integers: Integers) -> Any:
    """Return the output of an operation that selects values."""
    arrays = [operand.array for operand in operands]
    if node.equation.primitive.name == 'pad':
        lowest = jnp.iinfo(integers.dtype).min
        arrays[1] = np.asarray(0 if arrays[1] == 0 else lowest, integers.dtype)
    result, = layer_graph.evaluate_equation(node.equation, arrays)
    return result
