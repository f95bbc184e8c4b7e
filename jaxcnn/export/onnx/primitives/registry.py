"""The table of converters by the name of the primitive."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from jaxcnn.errors import UserError
from jaxcnn.export.onnx.graph import Graph, Tensor

# converts an equation of a jaxpr: adds nodes to the graph, and returns the tensor, or the tensors, that the equation defines
Converter: TypeAlias = Callable[[Graph, Any, Sequence[Tensor]], Tensor | list[Tensor]]
CONVERTERS: dict[str, Converter] = {}
ELEMENTWISE: set[str] = set()  # primitives that are applied to each element, whose operands may be broadcast
IDENTITIES = {'copy', 'copy_p', 'stop_gradient', 'optimization_barrier', 'reduce_precision', 'sharding_constraint'}


def converts(*primitives: str) -> Callable[[Converter], Converter]:
    """Register a converter of primitives, as a decorator."""
    def add(converter: Converter) -> Converter:
        CONVERTERS.update(dict.fromkeys(primitives, converter))
        return converter
    return add


def unsupported(graph: Graph, eqn: Any, reason: str) -> UserError:
    """Return the error for an equation that has no equivalent in ONNX.

    Args:
      graph: its layer is named.
      eqn: the equation.
      reason: what of it is not supported.
    """
    shapes = ', '.join(str(x.aval) for x in eqn.invars)
    return UserError(f'the ONNX exporter does not support {eqn.primitive.name} of {shapes}'
                     f'{f" in {graph.layer}" if graph.layer else ""}: {reason}',
                     hint='--format=stablehlo exports every network')
