"""The ONNX graph that is being built, and the arrays in it.

JAX's images are (N, H, W, C), and ONNX's convolutions take (N, C, H, W). So each tensor knows which of the two orders its
array has: convolutions and pooling give `channels_first` tensors, elementwise operations and reductions keep the order, and
what needs JAX's order asks for it. Transpositions remain at the borders only.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxcnn.errors import UserError

Shape = tuple[Any, ...]  # of numbers, and symbolic dimensions


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """An array of the traced function.

    Attributes:
      shape: its shape in JAX.
      dtype: its type.
      stored_shape: the shape of the array that stands for it, in JAX's order; a dimension of 1 may stand for any number, as
        NumPy broadcasts it.
      name: its name in the graph; empty for constants, which get one when a node uses them.
      array: the value of a constant, of the shape `stored_shape`.
      label: what the array of a constant is called, such as `Conv_0/kernel`.
      channels_first: whether the array in the graph has the last axis of the shape as its second.
    """

    shape: Shape
    dtype: np.dtype
    stored_shape: Shape
    name: str = ''
    array: np.ndarray | None = None
    label: str = ''
    channels_first: bool = False

    @property
    def is_constant(self) -> bool:
        """Whether the value is known."""
        return self.array is not None

    @property
    def value(self) -> np.ndarray:
        """The value of a constant, of the shape `stored_shape`."""
        assert self.array is not None
        return self.array

    def axis(self, axis: int) -> int:
        """Return the axis of the array in the graph that is an axis of the shape."""
        if not self.channels_first or axis == 0:
            return axis
        return 1 if axis == len(self.shape) - 1 else axis + 1


@dataclasses.dataclass
class Node:
    """A node of an ONNX graph; empty names are inputs that are left out."""

    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]
    layer: str = ''


def is_symbolic(dimension: Any) -> bool:
    """Return whether a dimension of a shape depends on the size of the batch."""
    return not isinstance(dimension, (int, np.integer))


def constant(array: Any, label: str = 'constant') -> Tensor:
    """Return a constant, which may also be a random key of JAX."""
    if is_key(array):
        return Tensor(array.shape, np.dtype(np.uint32), array.shape, array=array, label=label)
    array = np.asarray(array)
    return Tensor(array.shape, array.dtype, array.shape, array=array, label=label)


def is_key(array: Any) -> bool:
    """Return whether an array holds random keys."""
    return isinstance(array, jax.Array) and jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)


class Graph:
    """Nodes in the order of computation, and the constants that they use.

    Attributes:
      nodes: the nodes.
      constants: the constants by name.
      replacements: names of the constants that stand for weights that were combined with others.
      layer: name of the layer that is being converted.
    """

    def __init__(self, images: str, batch: Any):
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}
        self.replacements: set[str] = set()
        self.layer = ''
        self._images, self._batch = images, batch
        self._names: set[str] = {images}
        self._constant_names: dict[tuple[Shape, str, bytes], str] = {}
        self._reordered: dict[str, Tensor] = {}
        self._batch_size = ''

    def unique(self, name: str) -> str:
        """Return a name that no other array has."""
        candidate, number = name, 1
        while candidate in self._names:
            number += 1
            candidate = f'{name}_{number}'
        self._names.add(candidate)
        return candidate

    def add(self, op: str, inputs: Sequence[Tensor | str], shape: Shape, dtype: Any, *, channels_first: bool = False,
            stored_shape: Shape | None = None, **attributes: Any) -> Tensor:
        """Add a node with one output, and return it.

        Args:
          op: type of the node.
          inputs: tensors, or names of arrays; constants are written in the order `channels_first` of their own.
          shape, dtype, channels_first, stored_shape: see `Tensor`.
          **attributes: attributes of the node.
        """
        name, = self.add_outputs(op, inputs, 1, **attributes)
        return Tensor(shape, np.dtype(dtype), shape if stored_shape is None else stored_shape, name,
                      channels_first=channels_first)

    def add_outputs(self, op: str, inputs: Sequence[Tensor | str], count: int, **attributes: Any) -> list[str]:
        """Add a node, and return the names of its outputs."""
        names = [x if isinstance(x, str) else self.name(x) for x in inputs]
        base = f'{self.layer}/{op}' if self.layer else op
        outputs = [self.unique(base) for _ in range(count)]
        self.nodes.append(Node(op, names, outputs, attributes, self.layer))
        return outputs

    def name(self, tensor: Tensor) -> str:
        """Return the name of a tensor's array in the graph, where a constant is written when it is first used."""
        if tensor.array is None:
            return tensor.name
        array = np.moveaxis(tensor.array, -1, 1) if tensor.channels_first else tensor.array
        contiguous = np.ascontiguousarray(array).reshape(array.shape)
        # test-time augmentation applies the same weights several times
        key = array.shape, array.dtype.str, hashlib.sha256(contiguous.tobytes()).digest()
        if key not in self._constant_names:
            name = self._constant_names[key] = self.unique(tensor.label)
            self.constants[name] = contiguous
        return self._constant_names[key]

    def ints(self, values: Sequence[int]) -> str:
        """Return the name of a constant vector of int64."""
        array = np.asarray(values, np.int64)
        for name, other in self.constants.items():
            if other.dtype == np.int64 and other.shape == array.shape and (other == array).all():
                return name
        name = self.unique('ints')
        self.constants[name] = array
        return name

    def sizes(self, shape: Shape) -> list[int]:
        """Return the target shape of a `Reshape`, where -1 stands for what depends on the batch.

        Raises:
          UserError: Two dimensions depend on it.
        """
        if sum(map(is_symbolic, shape)) > 1:
            raise UserError(f'the ONNX exporter cannot write an array of shape {shape}, of which two dimensions depend on '
                            'the size of the batch', field=self.layer or None)
        return [-1 if is_symbolic(n) else int(n) for n in shape]

    def reshape(self, tensor: Tensor, shape: Shape) -> Tensor:
        """Return an array in JAX's order with another shape."""
        if tensor.is_constant and not any(map(is_symbolic, shape)):
            return dataclasses.replace(constant(tensor.value.reshape(shape), tensor.label))
        return self.add('Reshape', [tensor, self.ints(self.sizes(shape))], shape, tensor.dtype)

    def full(self, tensor: Tensor) -> Tensor:
        """Return a tensor whose array has all dimensions of the shape."""
        if tensor.stored_shape == tensor.shape:
            return tensor
        if tensor.is_constant and not any(map(is_symbolic, tensor.shape)):
            array = np.broadcast_to(tensor.value, tensor.shape)
            return dataclasses.replace(tensor, array=array, stored_shape=tensor.shape)
        tensor = self.in_order(tensor)
        return self.add('Expand', [tensor, self._shape_vector(tensor.shape)], tensor.shape, tensor.dtype)

    def _shape_vector(self, shape: Shape) -> str:
        if not any(map(is_symbolic, shape)):
            return self.ints([int(n) for n in shape])
        if not self._batch_size:
            images_shape, = self.add_outputs('Shape', [self._images], 1)
            self._batch_size, = self.add_outputs('Slice', [images_shape, self.ints([0]), self.ints([1])], 1)
        parts: list[str] = []
        for dimension in shape:
            if is_symbolic(dimension) and dimension != self._batch:
                raise UserError(f'the ONNX exporter cannot broadcast to the shape {shape}', field=self.layer or None)
            parts.append(self._batch_size if is_symbolic(dimension) else self.ints([int(dimension)]))
        return self.add_outputs('Concat', parts, 1, axis=0)[0]

    def in_order(self, tensor: Tensor, channels_first: bool = False) -> Tensor:
        """Return a tensor with its array in JAX's order or with its channels first."""
        if tensor.channels_first == channels_first or len(tensor.shape) < 3:
            return dataclasses.replace(tensor, channels_first=channels_first and len(tensor.shape) > 2)
        if tensor.is_constant:
            return dataclasses.replace(tensor, channels_first=channels_first)
        if tensor.name not in self._reordered:
            rank = len(tensor.shape)
            order = [0, rank - 1, *range(1, rank - 1)] if channels_first else [0, *range(2, rank), 1]
            other = self.add('Transpose', [tensor], tensor.shape, tensor.dtype, channels_first=channels_first,
                             stored_shape=tensor.stored_shape, perm=order)
            self._reordered[tensor.name], self._reordered[other.name] = other, tensor
        return dataclasses.replace(self._reordered[tensor.name], shape=tensor.shape, stored_shape=tensor.stored_shape)

    def in_one_order(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], bool]:
        """Return tensors whose arrays have the same order, and whether that is with the channels first."""
        channels_first = any(tensor.channels_first and not tensor.is_constant for tensor in tensors)
        return [self.in_order(tensor, channels_first) for tensor in tensors], channels_first

