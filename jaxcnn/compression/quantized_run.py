"""Quantised networks: the folder that `jaxcnn quantize` writes, and the run that it holds.

    run = load_quantized('runs/digits_int8')
    probabilities = run.predict(images)
    accuracy = run.evaluate('test')['test_accuracy']
"""

import dataclasses
import functools
import json
import os
import shutil
import types
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import plugins
from jaxcnn.compression import int8_execution, layer_graph
from jaxcnn.compression.activation_ranges import TensorScale
from jaxcnn.compression.int8_execution import Int8Network
from jaxcnn.compression.layer_graph import Graph, Layer
from jaxcnn.errors import UserError, unknown
from jaxcnn.files import file_checksum, open_replacement
from jaxcnn.ops import quantize
from jaxcnn.run import Run, load_run
from jaxcnn.training.state import Weights
from jaxcnn.training.workdir import read_json

RECORD, WEIGHTS = 'quantization.json', 'weights.npz'
METHODS = 'int8', 'bfloat16', 'float16'
EXECUTIONS = 'auto', 'int8', 'simulated'
_SEPARATOR = '|'  # between the keys of nested dicts in a file; names of layers contain slashes


@dataclasses.dataclass(frozen=True)
class Quantization:
    """How a network was quantised.

    Attributes:
      method: `int8`, `bfloat16` or `float16`.
      calibration: method of the calibration; '' for floating-point weights.
      images: number of images that it was calibrated with.
      float_layers: names of the layers that stay in float32.
      tensors: the scales of activations by name.
      workdir: workdir of the run.
      step: its checkpoint.
      bits: number of bits of the integers, which are stored as int8.
    """

    method: str
    calibration: str
    images: int
    float_layers: tuple[str, ...]
    tensors: Mapping[str, TensorScale]
    workdir: str
    step: int
    bits: int = 8

    def is_quantized(self, layer: str) -> bool:
        """Return whether a layer has int8 weights."""
        return layer not in self.float_layers


def quantize_layers(arrays: Mapping[str, Mapping[str, np.ndarray]], is_quantized: Callable[[str], bool], bits: int = 8,
                    steps: Mapping[str, np.ndarray] = types.MappingProxyType({})) -> dict[str, dict[str, np.ndarray]]:
    """Return the arrays of `layer_graph.fold` with int8 kernels, each with its `kernel_scale` (features,).

    Args:
      arrays: the arrays.
      is_quantized: whether a layer is quantised, given its name.
      bits: number of bits.
      steps: scales of kernels by the names of their layers; others follow the largest weights.
    """
    result = {}
    for name, group in arrays.items():
        result[name] = dict(group)
        if 'kernel' in group and is_quantized(name):
            kernel = jnp.asarray(group['kernel'])
            scale = jnp.asarray(steps[name]) if name in steps else quantize.channel_scales(kernel, bits)
            result[name] = {'kernel': np.asarray(quantize.quantize(kernel, scale, bits)), 'kernel_scale': np.asarray(scale),
                            'bias': group['bias']}
    return result


def layer_kernel(_: Layer, arrays: Mapping[str, Any]) -> jax.Array:
    """Return the kernel of a layer in float32."""
    kernel: jax.Array = arrays['kernel']
    return quantize.dequantize(kernel, arrays['kernel_scale']) if 'kernel_scale' in arrays else kernel


class QuantizedNetwork:
    """A network of integers, in place of a `Network` in evaluation.

    Args:
      network: the network that was quantised.
      shapes: shapes of its variables.
      quantization: how it was quantised.
      arrays: the arrays of its layers, for int8 convolutions; None: the network is simulated in float32, with values rounded
        to those that the integers represent.
    """

    def __init__(self, network: Any, shapes: Any, quantization: Quantization, arrays: Mapping[str, Any] | None = None):
        self.network, self.quantization = network, quantization
        self._shapes = shapes
        self._int8: Int8Network | None = None
        if arrays is not None:
            self._int8 = Int8Network(arrays, quantization.tensors)
        self.outputs = network.outputs

    @functools.lru_cache(maxsize=64)  # noqa: B019 (a network lives as long as its run)
    def graph(self, shape: tuple[int, ...]) -> Graph:
        """Return the graph for images (N, H, W, C).

        Raises:
          UserError: An activation was not calibrated.
        """
        graph = layer_graph.trace(self.network, self._shapes, shape, self.quantization.is_quantized,
                                  inputs_only=self.quantization.bits < 8)
        missing = [name for name in graph.tensors.values() if name not in self.quantization.tensors]
        if missing:
            raise UserError(f'the activation {missing[0]} was not calibrated', hint='quantise the run again')
        return graph

    def apply(self, variables: Mapping[str, Any], images: jax.Array, train: bool = False) -> jax.Array:
        """Return the logits (N, classes) of images (N, H, W, C), normalised as in training.

        Args:
          variables: `params` holds the arrays of each layer by its name; int8 convolutions use those that they were made of.
          images: the images.
          train: False.
        """
        if train:
            raise UserError('a quantised network cannot be trained', hint='config.quantization trains with quantisation')
        if self._int8 is not None:
            return self._int8(self.graph(tuple(images.shape)), images)
        scales, bits = self.quantization.tensors, self.quantization.bits

        def round_to_scale(name: str, x: jax.Array) -> jax.Array:
            limits = quantize.integer_range(bits, scales[name].signed)
            return quantize.fake_quantize(x, jnp.float32(scales[name].scale), *limits)
        return layer_graph.evaluate(self.graph(tuple(images.shape)), variables['params'], images, on_tensor=round_to_scale,
                                    kernel=layer_kernel)


@dataclasses.dataclass(eq=False, repr=False, kw_only=True)
class QuantizedRun(Run):
    """A run whose network is quantised; see `load_quantized`.

    Attributes:
      quantization: how it was quantised.
    """

    quantization: Quantization

    def steps(self) -> list[int]:
        """Return the step of the checkpoint that was quantised."""
        return [self.quantization.step]

    def find_step(self, checkpoint: str) -> int:
        """Return the step of the checkpoint that was quantised.

        Raises:
          UserError: Another step is asked for.
        """
        if checkpoint not in ('best', 'latest', str(self.quantization.step)):
            raise UserError(f'no checkpoint {checkpoint!r} in {self.workdir!r}, which holds checkpoint '
                            f'{self.quantization.step}, quantised')
        return self.quantization.step

    def load_weights(self, step: int) -> Weights:
        """Return the arrays of the network; see `QuantizedNetwork.apply`."""
        arrays = _read_weights(self.workdir)
        if self.quantization.method == 'int8':
            return Weights(arrays, {})
        return Weights(arrays['params'], arrays.get('batch_stats', {}))

    @property
    def variables(self) -> dict[str, Any]:
        """The arrays of the network."""
        return {'params': self.weights.params, 'batch_stats': self.weights.batch_stats}

    def features(self, images: np.ndarray, name: str | None = None) -> Any:
        """See `Run.features`.

        Raises:
          UserError: The network is int8, whose feature maps are not available.
        """
        if self.quantization.method == 'int8':
            raise UserError(f'the quantised network in {self.workdir!r} has no feature maps',
                            hint=f'the run in {self.quantization.workdir!r} has them')
        return super().features(images, name)


def load_quantized(workdir: str, execution: str = 'auto') -> QuantizedRun:
    """Return the quantised network in a folder that `jaxcnn quantize` has written.

    Args:
      workdir: the folder.
      execution: how an int8 network is computed: `int8`, with int8 convolutions; `simulated`, in float32 with rounded
        values; or `auto`, int8 where the machine can.

    Raises:
      UserError: The folder holds no quantised network, or the machine cannot execute it.
    """
    if execution not in EXECUTIONS:
        raise unknown('execution', execution, EXECUTIONS)
    if not is_quantized(workdir):
        raise UserError(f'{workdir!r} holds no quantised network (no {RECORD})',
                        hint=f'jaxcnn quantize --workdir={workdir} --output=NEW quantises a run')
    record = read_json(os.path.join(workdir, RECORD))['quantization']
    tensors = {name: TensorScale(**fields) for name, fields in record['tensors'].items()}
    quantization = Quantization(**{**record, 'tensors': tensors, 'float_layers': tuple(record['float_layers'])})
    run = load_run(workdir)
    built = run.experiment
    if quantization.method == 'int8':
        if execution == 'int8':
            int8_execution.check_available(quantization.bits)
        selected = executions(quantization.bits)[-1] if execution == 'auto' else execution
        network: Any = quantized_network(run, quantization, selected, _read_weights(workdir))
        built = dataclasses.replace(built, network=network)
    fields = {field.name: getattr(run, field.name) for field in dataclasses.fields(run)}
    return QuantizedRun(**{**fields, 'experiment': built}, quantization=quantization)


def load_any_run(workdir: str, checkpoint: str | int = 'best') -> Run:
    """Return the run in a workdir, or the quantised network in a folder of `jaxcnn quantize`; see `run.load_run`."""
    if not is_quantized(workdir):
        return load_run(workdir, checkpoint)
    run = load_quantized(workdir)
    run.find_step(str(checkpoint))
    return run


def executions(bits: int) -> list[str]:
    """Return the executions of a quantised network that this machine has."""
    try:
        int8_execution.check_available(bits)
    except UserError:
        return ['simulated']
    return ['simulated', 'int8']


def quantized_network(run: Run, quantization: Quantization, execution: str, arrays: Mapping[str, Any]) -> QuantizedNetwork:
    """Return the quantised network of a run, with an execution other than `auto`."""
    experiment = run.experiment
    images = jax.ShapeDtypeStruct((1, *experiment.image_shape), jnp.float32)
    shapes = jax.eval_shape(lambda x: experiment.network.clone(conv_implementation='xla').init(jax.random.key(0), x), images)
    return QuantizedNetwork(experiment.network, shapes, quantization, arrays if execution == 'int8' else None)


def is_quantized(workdir: str) -> bool:
    """Return whether a folder holds a quantised network."""
    return os.path.exists(os.path.join(workdir, RECORD))


def save(run: Run, quantization: Quantization, arrays: Mapping[str, Any], folder: str) -> int:
    """Write a quantised network into a folder, with what predictions need of its run, and return the bytes of its weights.

    Args:
      run: the run.
      quantization: how it was quantised.
      arrays: nested dict of the arrays.
      folder: an existing folder.
    """
    for name in ('config.json', 'data.json', 'normalize.npz'):
        if os.path.exists(source := os.path.join(run.workdir, name)):
            shutil.copyfile(source, os.path.join(folder, name))
    plugins.save_copies(run.config.plugins, folder)
    path = os.path.join(folder, WEIGHTS)
    write_arrays(path, arrays)
    with open_replacement(os.path.join(folder, RECORD)) as file:
        json.dump({'weights_sha256': file_checksum(path), 'quantization': dataclasses.asdict(quantization)}, file, indent=1)
    return os.path.getsize(path)


def _read_weights(workdir: str) -> dict[str, Any]:
    """Return the arrays that `save` has written into a folder; earlier versions recorded no checksum."""
    checksum = read_json(os.path.join(workdir, RECORD)).get('weights_sha256', '')
    return read_arrays(os.path.join(workdir, WEIGHTS), checksum)


def write_arrays(path: str, arrays: Mapping[str, Any]) -> None:
    """Write a nested dict of arrays as an `.npz` file; bfloat16 arrays are written as their bits, uint16."""
    flat = {_SEPARATOR.join(str(key.key) for key in path): np.asarray(array)
            for path, array in jax.tree.leaves_with_path(dict(arrays))}
    stored: dict[str, Any] = {}
    for name, array in flat.items():
        is_bfloat16 = array.dtype == jnp.bfloat16
        stored[f'{name}:bfloat16' if is_bfloat16 else name] = array.view(np.uint16) if is_bfloat16 else array
    with open_replacement(path, 'wb') as file:
        np.savez(file, **stored)


def read_arrays(path: str, checksum: str = '') -> dict[str, Any]:
    """Return the nested dict of arrays of a file of `write_arrays`; those of 16 bits are converted to float32.

    Args:
      path: the file.
      checksum: its SHA-256 checksum; '' if it is unknown.

    Raises:
      UserError: The file is missing or damaged.
    """
    try:
        if checksum and file_checksum(path) != checksum:
            raise UserError(f'is damaged: {RECORD} records another checksum', field=path, hint='quantise the run again')
        with np.load(path, allow_pickle=False) as file:
            stored = {name: file[name] for name in file.files}
    # RuntimeError and NotImplementedError, if damaged flags ask for a password or another compression
    except (OSError, ValueError, EOFError, RuntimeError, SyntaxError, zipfile.BadZipFile, zlib.error) as e:
        raise UserError(f'cannot be read: {e}', field=path, hint='quantise the run again') from e
    nested: dict[str, Any] = {}
    for name, array in stored.items():
        name, _, kind = name.partition(':')
        array = array.view(jnp.bfloat16) if kind else array
        *groups, leaf = name.split(_SEPARATOR)
        target = nested
        for group in groups:
            target = target.setdefault(group, {})
        target[leaf] = array.astype(np.float32) if array.dtype in (np.float16, jnp.bfloat16) else array
    return nested
