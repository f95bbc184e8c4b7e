"""Post-training quantisation of a run: calibration, accuracy before and after, and the sensitivity of each layer."""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.compression import activation_ranges, layer_graph
from jaxcnn.compression.activation_ranges import Histogram, TensorScale
from jaxcnn.compression.layer_graph import Graph, Layer
from jaxcnn.compression.quantized_run import (
    METHODS,
    Quantization,
    QuantizedNetwork,
    executions,
    layer_kernel,
    quantize_layers,
    quantized_network,
    save,
)
from jaxcnn.data import Dataset
from jaxcnn.errors import UserError, unknown
from jaxcnn.models.quantized_layers import trained_scales
from jaxcnn.ops import quantize
from jaxcnn.run import Run, SplitEvaluator
from jaxcnn.tasks import Accumulated
from jaxcnn.training.state import Weights

DEFAULT_CALIBRATION = 'percentile'
_BATCH = 64  # images in a batch of the calibration


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """What the quantisation of a layer alone changes: of its kernel and of its input.

    Attributes:
      layer: name of the layer.
      weights: number of its weights.
      metric: change of the task's main metric.
      loss: change of the loss.
      noise: root mean square of the change of the logits, as a fraction of that of the logits.
    """

    layer: str
    weights: int
    metric: float
    loss: float
    noise: float


@dataclasses.dataclass(frozen=True)
class Result:
    """The quantisation of a run.

    Attributes:
      run: the run.
      quantization: how it was quantised.
      split: the split of `before` and `after`.
      before: its metrics by name, before the quantisation.
      after: its metrics quantised, by the execution: `simulated`, `int8`, or '' for floating-point weights.
      float_bytes: bytes of the parameters and statistics in float32.
      stored_bytes: bytes of the stored file.
      calibrations: the metrics of each calibration on the images of `sensitivity_split`.
      sensitivity: of each layer.
      sensitivity_split: the split of its images.
      sensitivity_images: their number.
    """

    run: Run
    quantization: Quantization
    split: str
    before: Mapping[str, float]
    after: Mapping[str, Mapping[str, float]]
    float_bytes: int
    stored_bytes: int
    calibrations: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    sensitivity: tuple[Sensitivity, ...] = ()
    sensitivity_split: str = ''
    sensitivity_images: int = 0


def check_arguments(run: Run, method: str, calibration: str, images: int) -> None:
    """Check the arguments of `quantize_run` before any work is done.

    Raises:
      UserError: A method is unknown, or the run is of a task without logits.
    """
    if method not in METHODS:
        raise unknown('method', method, METHODS, '--method')
    is_trained = run.config.quantization is not None
    if method == 'int8':
        if is_trained and calibration not in ('', activation_ranges.TRAINED):
            raise UserError(f'{calibration!r} would replace the ranges that the run was trained with', field='--calibration',
                            hint='leave it out')
        if not is_trained:
            activation_ranges.check_method(calibration or DEFAULT_CALIBRATION)
        if images < 1:
            raise UserError(f'expected at least 1 image, got {images}', field='--images')
    elif calibration:
        raise UserError(f'{calibration!r} has no effect with --method={method}, which quantises weights alone',
                        field='--calibration', hint='leave it out, or take --method=int8')
    if run.experiment.network.outputs != 'logits':
        raise UserError(f'{run.config.model.name} returns {run.experiment.network.outputs}, and only networks that return '
                        'logits are quantised', field='--workdir', hint='give a run of classification')


def quantize_run(run: Run, folder: str, *, method: str = 'int8', calibration: str = '', images: int = 512,
                 float_layers: str = '', split: str = 'test', data_dir: str = '') -> Result:
    """Quantise the network of a run, measure what it loses, and write it into a folder.

    Args:
      run: the run; its own checkpoint is quantised.
      folder: an existing folder.
      method: `int8`, or `bfloat16` or `float16` for weights alone.
      calibration: one of `activation_ranges.METHODS`; '' stands for `DEFAULT_CALIBRATION`, or for the ranges of
        quantisation-aware training.
      images: number of training images for the calibration, and of validation images for the sensitivity.
      float_layers: regular expression; the layers whose names it matches stay in float32.
      split: the split on which the metrics are measured.
      data_dir: another `config.data.dir` than in training.

    Raises:
      UserError: See `check_arguments`; or the data is missing.
    """
    check_arguments(run, method, calibration, images)
    dataset = run.load_dataset(data_dir)
    if split not in dataset.splits:
        raise unknown('split', split, dataset.splits, '--split')
    variables = jax.tree.map(np.asarray, run.variables)
    float_bytes = 4 * sum(array.size for array in jax.tree.leaves(variables))
    step = run.find_step(run.checkpoint)
    before = _metrics(run, dataset, split, Weights(variables['params'], variables['batch_stats']))
    if method != 'int8':
        arrays = {**variables, 'params': jax.tree.map(lambda x: np.asarray(x, jnp.dtype(method)), variables['params'])}
        quantization = Quantization(method, '', 0, (), {}, run.workdir, step)
        rounded = jax.tree.map(lambda x: x.astype(np.float32), arrays['params'])
        after = _metrics(run, dataset, split, Weights(rounded, variables['batch_stats']))
        stored = save(run, quantization, arrays, folder)
        return Result(run, quantization, split, before, {'': after}, float_bytes, stored)
    return _Int8(run, dataset, variables, step, images, float_layers)(
        folder, calibration or DEFAULT_CALIBRATION, split, before, float_bytes)


def _metrics(run: Run, dataset: Dataset, split: str, weights: Weights, network: QuantizedNetwork | None = None,
             ) -> dict[str, float]:
    """Return the metrics of weights on a split, without test-time augmentation, by the names of the metrics."""
    experiment = run.experiment if network is None else dataclasses.replace(run.experiment, network=network)  # type: ignore
    _, values = SplitEvaluator(experiment, dataset, split)(weights)
    return {m.metric.name: value for m, value in values.items() if not m.tta}


class _Int8:
    """The steps of the quantisation to int8."""

    def __init__(self, run: Run, dataset: Dataset, variables: Any, step: int, images: int, float_layers: str):
        self.run, self.dataset, self.step = run, dataset, step
        self.network, self.preprocessor = run.experiment.network, run.experiment.preprocessor
        self.variables = variables
        graph = layer_graph.trace(self.network, variables, (1, *run.experiment.image_shape))
        names = [layer.name for layer in graph.layers]
        trained = run.config.quantization
        self.bits = trained.bits if trained else 8
        quantizer = self.network.quantizer
        self.trained = {name: scales for name in names if quantizer is not None and (
            scales := trained_scales(name, variables, quantizer)) is not None}
        if trained and float_layers:
            raise UserError('the run was trained with quantisation, which says which layers are quantised',
                            field='--float_layers', hint='leave it out')
        untrained = tuple(name for name in names if name not in self.trained)
        self.float_layers = untrained if trained else _matching(float_layers, names)
        self.arrays = layer_graph.fold(self.graph((1, *run.experiment.image_shape)), variables)
        positions = np.random.default_rng(run.config.seed).permutation(len(dataset.splits['train']))[:images]
        self.calibration_positions = np.sort(positions)
        self.split = 'val' if 'val' in dataset.splits else 'test'
        positions = np.random.default_rng(run.config.seed).permutation(len(dataset.splits[self.split]))[:images]
        self.positions = np.sort(positions)

    @functools.lru_cache(maxsize=8)  # noqa: B019 (it lives as long as the command)
    def graph(self, shape: tuple[int, ...]) -> Graph:
        """Return the graph for images (N, H, W, C)."""
        return layer_graph.trace(self.network, self.variables, shape, lambda name: name not in self.float_layers,
                                 inputs_only=self.bits < 8)

    def batches(self) -> Iterable[np.ndarray]:
        """Yield the images of the calibration as the network gets them."""
        prepare = jax.jit(self.preprocessor.__call__)
        for start in range(0, len(self.calibration_positions), _BATCH):
            yield prepare(self.dataset.splits['train'].take(self.calibration_positions[start:start + _BATCH]))

    def quantization(self, calibration: str, histograms: Mapping[str, Histogram]) -> Quantization:
        """Return the quantisation with the scales of a calibration; the images themselves keep their whole range."""
        graph = self.graph((1, *self.run.experiment.image_shape))
        image = graph.tensors.get(graph.image)
        tensors = {name: activation_ranges.calibrate(histogram, 'minmax' if name == image else calibration, self.bits)
                   for name, histogram in histograms.items()}
        if self.trained:
            calibration = activation_ranges.TRAINED
            inputs = {f'{name}/input': TensorScale(scale, signed) for name, (scale, signed, _) in self.trained.items()}
            tensors |= {name: scale for name, scale in inputs.items() if name in tensors}
        return Quantization('int8', calibration, len(self.calibration_positions), self.float_layers, tensors,
                            self.run.workdir, self.step, self.bits)

    def kernel_steps(self) -> dict[str, np.ndarray]:
        """Return the learned steps of kernels, after BatchNorm is folded into these, by the names of the layers."""
        return {name: np.asarray(steps) * np.maximum(np.abs(self.arrays[name]['factor']), 1e-12)
                for name, (_, _, steps) in self.trained.items() if steps is not None}

    def __call__(self, folder: str, calibration: str, split: str, before: Mapping[str, float], float_bytes: int) -> Result:
        """Quantise, measure and save."""
        histograms = activation_ranges.collect(self.graph, self.arrays, self.batches)
        quantization = self.quantization(calibration, histograms)
        arrays = quantize_layers(self.arrays, quantization.is_quantized, self.bits, self.kernel_steps())
        measure = _Measurement(self, arrays)
        calibrations = {name: measure.metrics(self.quantization('minmax' if self.trained else name, histograms).tensors)
                        for name in ([activation_ranges.TRAINED] if self.trained else activation_ranges.METHODS)}
        sensitivity = measure.sensitivity(quantization.tensors)
        stored = save(self.run, quantization, arrays, folder)
        after = {execution: _metrics(self.run, self.dataset, split, Weights(arrays, {}), quantized_network(
            self.run, quantization, execution, arrays)) for execution in executions(self.bits)}
        return Result(self.run, quantization, split, before, after, float_bytes, stored,
                      {'float32': measure.base, **calibrations}, sensitivity, self.split, len(self.positions))


def _matching(pattern: str, names: list[str]) -> tuple[str, ...]:
    """Return the names that a regular expression matches.

    Raises:
      UserError: It is no regular expression, or matches no layer or all of them.
    """
    if not pattern:
        return ()
    try:
        matches = tuple(name for name in names if re.search(pattern, name))
    except re.error as e:
        raise UserError(f'{pattern!r} is no regular expression: {e}', field='--float_layers') from e
    if len(matches) in (0, len(names)):
        raise UserError(f'{pattern!r} matches {"all" if matches else "none"} of the layers {", ".join(names)}',
                        field='--float_layers')
    return matches


class _Measurement:
    """The metrics of a partly quantised network on some images; one program computes all of them.

    Attributes:
      base: the metrics in float32.
    """

    def __init__(self, int8: _Int8, arrays: Mapping[str, Any]):
        self._task, self._network = int8.run.experiment.task, int8
        self._float, self._arrays = int8.arrays, arrays
        split, preprocessor = int8.dataset.splits[int8.split], int8.preprocessor
        self._batches = [int8.positions[start:start + _BATCH] for start in range(0, len(int8.positions), _BATCH)]
        self._images = [np.asarray(jax.jit(preprocessor.__call__)(split.take(batch))) for batch in self._batches]
        self._targets = [{name: values[batch] for name, values in split.targets.items()} for batch in self._batches]
        self._outputs = jax.jit(self._compute)
        layers = int8.graph(self._images[0].shape).layers
        self._layers = [layer for layer in layers if layer.name not in int8.float_layers]
        self._off = {layer.name: jnp.zeros((), bool) for layer in self._layers}
        self._base_outputs = self._all_outputs({}, self._off, False)
        self.base = self._evaluate(self._base_outputs)

    def _compute(self, float_arrays: Any, arrays: Any, scales: Mapping[str, jax.Array], signed: Mapping[str, jax.Array],
                 layers: Mapping[str, jax.Array], tensors: jax.Array, images: jax.Array) -> jax.Array:
        """Return the logits with the layers quantised for which `layers` is true, or, with `tensors`, the whole network."""
        def rounded(name: str, x: jax.Array) -> jax.Array:
            bits = self._network.bits
            low, high = (jnp.where(signed[name], *limits) for limits in zip(
                quantize.integer_range(bits, True), quantize.integer_range(bits, False), strict=True))
            return jnp.clip(jnp.round(x / scales[name]), low, high) * scales[name]

        def on_tensor(name: str, x: jax.Array) -> jax.Array:
            return jnp.where(tensors, rounded(name, x), x)

        def on_input(layer: Layer, name: str, x: jax.Array) -> jax.Array:
            return jnp.where(layers[layer.name], rounded(name, x), x) if layer.name in layers else x

        def kernel(layer: Layer, layer_arrays: Mapping[str, Any]) -> jax.Array:
            if layer.name not in layers:
                return layer_arrays['kernel']
            quantized = layer_kernel(layer, arrays[layer.name])
            return jnp.where(layers[layer.name] | tensors, quantized, layer_arrays['kernel'])
        return layer_graph.evaluate(self._network.graph(tuple(images.shape)), float_arrays, images, on_tensor=on_tensor,
                                    on_input=on_input, kernel=kernel)

    def _all_outputs(self, tensor_scales: Mapping[str, TensorScale], layers: Mapping[str, jax.Array],
                     tensors: bool) -> list[np.ndarray]:
        names = self._network.graph(self._images[0].shape).tensors.values()
        default = TensorScale(1.0, True)
        scales = {name: jnp.float32(tensor_scales.get(name, default).scale) for name in names}
        signed = {name: jnp.asarray(tensor_scales.get(name, default).signed) for name in names}
        return [np.asarray(self._outputs(self._float, self._arrays, scales, signed, layers, jnp.asarray(tensors), images))
                for images in self._images]

    def _evaluate(self, outputs: list[np.ndarray]) -> dict[str, float]:
        """Return the metrics of outputs by name."""
        sums, rows = self._task.zero_sums(), []
        for logits, targets in zip(outputs, self._targets, strict=True):
            batch = jax.tree.map(jnp.asarray, targets)
            mask = jnp.ones(len(logits), jnp.float32)
            sums = jax.tree.map(lambda a, b: a + np.asarray(b), sums, self._task.eval_sums(jnp.asarray(logits), batch, mask))
            rows.append(self._task.eval_rows(jnp.asarray(logits), batch))
        merged = {name: np.concatenate([np.asarray(batch[name]) for batch in rows]) for name in rows[0]}
        return self._task.compute(Accumulated(sums, merged))

    def metrics(self, tensor_scales: Mapping[str, TensorScale]) -> dict[str, float]:
        """Return the metrics of the quantised network with given scales of activations."""
        return self._evaluate(self._all_outputs(tensor_scales, self._off, True))

    def sensitivity(self, tensor_scales: Mapping[str, TensorScale]) -> tuple[Sensitivity, ...]:
        """Return what the quantisation of each layer alone changes."""
        name = self._task.main_metric.name
        base = np.concatenate(self._base_outputs)
        results = []
        for layer in self._layers:
            outputs = self._all_outputs(tensor_scales, {**self._off, layer.name: jnp.ones((), bool)}, False)
            metrics, change = self._evaluate(outputs), np.concatenate(outputs) - base
            noise = float(np.sqrt((change ** 2).mean() / (base ** 2).mean()))
            results.append(Sensitivity(layer.name, int(self._float[layer.name]['kernel'].size),
                                       metrics[name] - self.base[name], metrics['loss'] - self.base['loss'], noise))
        return tuple(results)


