"""ONNX: a file for onnxruntime and many other runtimes."""

import json

from jaxcnn.export import onnx as onnx_export
from jaxcnn.export.program import INPUT, OUTPUT, Program
from jaxcnn.files import open_replacement

FILE = 'model.onnx'


def write(program: Program, path: str) -> None:
    """Write a program, with its weights and the names of the classes."""
    is_exact = program.weight_dtype.itemsize == 4  # rounded weights stay as they are, so that they can be stored in 16 bits
    variables = program.float32_variables()
    graph, output = onnx_export.to_graph(program, variables, program.image_shape, fold=is_exact, input_name=INPUT)
    metadata = {'class_names': json.dumps(program.class_names), 'config': json.dumps(program.config)}
    model = onnx_export.to_model(graph, output, program.image_shape, weight_dtype=program.weight_dtype, input_name=INPUT,
                                 output_name=OUTPUT, metadata=metadata)
    with open_replacement(path, 'wb') as f:
        f.write(model.SerializeToString())
