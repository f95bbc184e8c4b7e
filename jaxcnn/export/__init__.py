"""Files that other programs run without jaxcnn; see docs/export.md."""

FORMATS = ('stablehlo', 'onnx', 'safetensors', 'tensorflow')
