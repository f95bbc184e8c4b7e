"""Estimate the memory of the activations that a backward pass needs, from the primitives of the forward pass."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax

from jaxcnn.analysis.receptive_field import ELEMENTWISE, ReceptiveField

_GRADIENT_NEEDS_INPUT = frozenset((
    'abs', 'acos', 'acosh', 'asin', 'asinh', 'atan', 'atan2', 'atanh', 'clamp', 'cos', 'cosh', 'erf', 'erf_inv',
    'erfc', 'integer_pow', 'lgamma', 'log', 'log1p', 'pow', 'reduce_max', 'reduce_min', 'sign', 'sin', 'sinh',
    'square'))
_GRADIENT_NEEDS_OUTPUT = frozenset(('cbrt', 'exp', 'exp2', 'expm1', 'logistic', 'rsqrt', 'sqrt', 'tan', 'tanh'))
_RESHAPING = frozenset(('reshape', 'transpose', 'squeeze', 'broadcast_in_dim', 'slice', 'rev'))


def tree_bytes(tree: Any) -> int:
    """Return the size in bytes of all arrays in a tree; abstract arrays with a shape and a dtype will do."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


@dataclasses.dataclass(eq=False)
class TracedArray:
    """An array of a traced computation.

    Attributes:
      aval: the shape and dtype.
      field: the receptive field, or None if the array does not depend on the images.
      trained: whether it depends on parameters, so that a gradient passes through it.
      source: an array from which XLA recomputes it instead of storing it, or None.
      same_values: whether it has the values of `source` in another shape.
      resident: whether it is in memory anyway, as parameters and the images are.
    """

    aval: Any
    field: ReceptiveField | None = None
    trained: bool = False
    source: 'TracedArray | None' = None
    same_values: bool = False
    resident: bool = False

    def chain(self) -> 'Iterator[TracedArray]':
        """Yield the array, its source, the source of that one, and so on."""
        array: TracedArray | None = self
        while array is not None:
            yield array
            array = array.source

    def root(self) -> 'TracedArray':
        """Return the last array of the chain."""
        return list(self.chain())[-1]

    def set_source(self, name: str, operands: Sequence['TracedArray']) -> None:
        """Set `source` if the array, as the output of a primitive, can be recomputed from an operand.

        Args:
          name: the primitive's name.
          operands: the operands that depend on the images.
        """
        if name in _RESHAPING:
            self.source = operands[0]
            self.same_values = operands[0].aval.size == self.aval.size
        elif name in ELEMENTWISE:
            large = [a for a in operands if a.aval.size == self.aval.size]
            if len({id(a.root()) for a in large}) == 1:
                self.source = large[0] if len(large) == 1 else large[0].root()


class ActivationMemory:
    """The arrays of a computation, or of a rematerialised block of it, that stay in memory until the backward pass.

    Attributes:
      block_bytes: memory of the largest rematerialised block inside the computation.
    """

    def __init__(self) -> None:
        self._stored: dict[int, TracedArray] = {}  # by identity
        self._needed: list[TracedArray] = []  # each is stored, or recomputed from an array of its chain that is
        self.block_bytes = 0

    def store(self, array: TracedArray) -> None:
        """Add an array that is stored and not recomputed."""
        while array.same_values and array.source is not None:
            array = array.source
        self._stored[id(array)] = array

    def need(self, arrays: Iterable[TracedArray]) -> None:
        """Add arrays that are stored, or recomputed from stored ones."""
        self._needed += arrays

    def bytes(self, excluded: Iterable[TracedArray] = ()) -> int:
        """Return the memory of all arrays in bytes, except the excluded and the resident ones."""
        stored = dict(self._stored)
        for array in self._needed:
            if not any(id(a) in stored for a in array.chain()):
                stored[id(array.root())] = array.root()
        excluded_roots = {id(array.root()) for array in excluded}
        return self.block_bytes + tree_bytes(
            [a.aval for a in stored.values() if not a.resident and id(a.root()) not in excluded_roots])

    def add(self, name: str, operands: Sequence[TracedArray], output: TracedArray) -> None:
        """Add the arrays that the gradient of a primitive needs. The primitive must depend on parameters."""
        pairs = list(zip(operands, operands[::-1], strict=True)) if len(operands) == 2 else []
        if name in ('conv_general_dilated', 'dot_general'):
            for array, other in pairs:
                if other.trained:
                    self.store(array)
        elif name == 'mul':
            self.need(array for array, other in pairs if other.trained)
        elif name == 'div':
            self.need([operands[1], *([output] if operands[1].trained else [])])
        elif name in ('max', 'min'):
            self.need(operands if all(a.trained for a in operands) else [output])
        elif name == 'select_n':
            self.need([operands[0]])
        elif name in _GRADIENT_NEEDS_OUTPUT:
            self.need([output])
        elif name in _GRADIENT_NEEDS_INPUT or name.startswith('reduce_window_max'):
            self.need(operands)
