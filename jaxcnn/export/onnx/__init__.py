"""Writing functions of JAX as ONNX files, by a converter of the primitives that convolutional networks use.

The function is traced for a batch of any size, and its jaxpr is converted one equation after the other (`convert.py`). What
does not depend on the images is computed at once, so weights are the only constants. `primitives/` has a converter for each
kind of primitive.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from jaxcnn.export.onnx.convert import convert
from jaxcnn.export.onnx.fuse import fuse, remove_unused
from jaxcnn.export.onnx.graph import Graph, Tensor, constant, is_symbolic
from jaxcnn.optim import path_name

OPSET = 18  # of December 2022, the first with the axes of all reductions as inputs; onnxruntime reads it from 1.14 on
IR_VERSION = 8  # the one of that release
BATCH = 'batch'


def to_graph(function: Callable[[Any, jax.Array], jax.Array], variables: Any, image_shape: tuple[int, ...],
             dtype: Any = np.uint8, fold: bool = True, input_name: str = 'images') -> tuple[Graph, Tensor]:
    """Convert a function to a graph.

    Args:
      function: maps variables and images (N, ...) to an array (N, ...).
      variables: a tree of arrays, whose paths become the names of the weights.
      image_shape: shape of an image.
      dtype: type of the images.
      fold: whether BatchNorm and biases become part of the convolutions before them.
      input_name: name of the input.

    Returns:
      The graph, and its output.

    Raises:
      UserError: A primitive of the function has no equivalent.
    """
    batch, = jax_export.symbolic_shape(BATCH)
    images = jax.ShapeDtypeStruct((batch, *image_shape), dtype)
    jaxpr = jax.make_jaxpr(function)(variables, images)
    graph = Graph(input_name, batch)
    weights = [constant(np.asarray(leaf), path_name(path).partition('/')[2] or path_name(path))
               for path, leaf in jax.tree.leaves_with_path(variables)]
    output, = convert(graph, jaxpr.jaxpr, jaxpr.consts, [*weights, Tensor(images.shape, np.dtype(dtype), images.shape,
                                                                          input_name)])
    output = graph.in_order(graph.full(output))
    names = {graph.name(output)}
    if fold:
        fuse(graph, names)
    else:
        remove_unused(graph, names)
    return graph, output


def to_model(graph: Graph, output: Tensor, image_shape: tuple[int, ...], *, dtype: Any = np.uint8, weight_dtype: Any = None,
             input_name: str = 'images', output_name: str = 'probabilities',
             metadata: Mapping[str, str] | None = None) -> Any:
    """Return a graph as an `onnx.ModelProto`.

    Args:
      graph, output: what `to_graph` returns.
      image_shape, dtype, input_name: as for `to_graph`.
      weight_dtype: the type in which weights are stored that it represents exactly; None: that in which they are used.
      output_name: name of the output.
      metadata: further properties of the file.
    """
    import onnx
    from onnx import helper, numpy_helper

    from jaxcnn import __version__

    def value_info(name: str, shape: tuple[Any, ...], element: Any) -> Any:
        dimensions = [BATCH if is_symbolic(n) else int(n) for n in shape]
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(element)), dimensions)
    nodes, initializers = [], []
    for name, array in graph.constants.items():
        stored = _store(array, weight_dtype)
        if stored is None:
            initializers.append(numpy_helper.from_array(array, name))
            continue
        initializers.append(numpy_helper.from_array(stored, f'{name}.stored'))
        nodes.append(helper.make_node('Cast', [f'{name}.stored'], [name], f'{name}/Cast',
                                      to=helper.np_dtype_to_tensor_dtype(array.dtype)))
    final = graph.name(output)
    nodes += [helper.make_node(node.op, node.inputs, [output_name if name == final else name for name in node.outputs],
                               node.outputs[0], **node.attributes) for node in graph.nodes]
    proto = helper.make_graph(
        nodes, 'network', [value_info(input_name, (None, *image_shape), dtype)],
        [value_info(output_name, output.shape, output.dtype)], initializers)
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid('', OPSET)], ir_version=IR_VERSION,
                              producer_name='jaxcnn', producer_version=__version__)
    helper.set_model_props(model, dict(metadata or {}))
    onnx.checker.check_model(model)
    return model


def _store(array: np.ndarray, dtype: Any) -> np.ndarray | None:
    """Return a float32 array in a smaller type that represents it exactly, or None."""
    if dtype is None or array.dtype != np.float32 or array.size < 16 or np.dtype(dtype) == np.float32:
        return None
    stored = array.astype(dtype)
    return stored if (stored.astype(np.float32) == array).all() else None
