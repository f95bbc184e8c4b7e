"""Quantised runs, and the graphs of their networks."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import models
from jaxcnn.compression import activation_ranges, layer_graph
from jaxcnn.compression.quantize_run import quantize_run
from jaxcnn.compression.quantized_run import (
    Quantization,
    QuantizedNetwork,
    load_quantized,
    quantize_layers,
    read_arrays,
    write_arrays,
)
from jaxcnn.errors import UserError
from jaxcnn.models.quantized_layers import Quantizer, trained_scales
from jaxcnn.ops import native
from jaxcnn.run import load_run
from jaxcnn.training import train


def random_variables(network, shape):
    """Variables with statistics as after training, without compiling an initialisation."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(shape))
    return jax.tree.map(lambda x: (rng.uniform(0.1, 0.5, x.shape) * rng.choice(
        [-1, 1] if len(x.shape) > 1 else [1], x.shape)).astype(np.float32), shapes)


@pytest.mark.parametrize(('name', 'fields', 'residuals'), [
    ('resnet18', dict(blocks=(1, 1), width=8, stem='small'), 2),
    ('resnet18', dict(blocks=(1, 1), width=8, stem='small', shortcut='A', preact=True), 2),
    ('mobilenet_v2', dict(multiplier=0.25, blocks=(1, 2, 1, 1, 1, 1, 1)), 2),
])
def test_folding_changes_no_output(name, fields, residuals):
    network = models.create(name, num_classes=5, conv_implementation='xla', **fields)
    shape = (2, 16, 16, 3) if name == 'resnet18' else (2, 32, 32, 3)
    variables = random_variables(network, shape)
    images = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    graph = layer_graph.trace(network, variables, shape)
    expected = jax.jit(lambda v, x: network.apply(v, x, train=False))(variables, images)
    result = jax.jit(lambda a, x: layer_graph.evaluate(graph, a, x))(layer_graph.fold(graph, variables), images)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert sum(layer.has_residual for layer in graph.layers) == residuals
    others = {node.equation.primitive.name for node in graph.nodes if node.layer is None}
    if not fields.get('preact'):
        assert not others & {'max', 'rsqrt', 'add', 'min'}


@pytest.mark.parametrize(('name', 'fields', 'floats'), [
    ('resnet18', dict(blocks=(1, 1), width=8), {'reduce_sum', 'div'}),
    ('resnet18', dict(blocks=(1, 1), width=8, shortcut='A', preact=True), None),
    ('mobilenet_v2', dict(multiplier=0.25, blocks=(1, 2, 1, 1, 1, 1, 1)), None)])
@pytest.mark.skipif(not native.available(jnp.float32), reason='oneDNN is not installed')
def test_int8_convolutions_agree_with_the_simulation(name, fields, floats):
    network = models.create(name, num_classes=5, **fields)
    shape = (2, 32, 32, 3)
    variables = random_variables(network, shape)
    images = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    graph = layer_graph.trace(network, variables, shape)
    arrays = layer_graph.fold(graph, variables)
    histograms = activation_ranges.collect(lambda _: graph, arrays, lambda: [images])
    tensors = {tensor: activation_ranges.calibrate(histogram, 'minmax') for tensor, histogram in histograms.items()}
    quantization = Quantization('int8', 'minmax', 2, (), tensors, '', 0)
    integers = quantize_layers(arrays, bool)
    simulated = QuantizedNetwork(network, variables, quantization)
    expected = np.asarray(jax.jit(lambda p, x: simulated.apply({'params': p}, x))(integers, images))
    int8 = QuantizedNetwork(network, variables, quantization, integers)
    result = np.asarray(jax.jit(lambda x: int8.apply({'params': {}}, x))(images))
    original = np.asarray(jax.jit(lambda p, x: layer_graph.evaluate(graph, p, x))(arrays, images))
    error = np.abs(expected - original).max()
    assert 0 < error < 0.1 * np.abs(original).max()
    assert np.abs(result - expected).max() <= 0.5 * error  # values between two integers may be rounded to either
    if floats is not None:  # all other operations are int8, with max pooling among them
        trace = jax.make_jaxpr(lambda x: int8.apply({'params': {}}, x))(images)
        arithmetic = {eqn.primitive.name for eqn in trace.eqns if eqn.outvars[0].aval.dtype == jnp.float32
                      and eqn.outvars[0].aval.ndim == 4 and eqn.outvars[0].aval.shape[-1] == 8}
        assert not arithmetic


def test_fewer_than_8_bits_are_simulated_as_in_training():
    quantizer = Quantizer(3, 'lsq')
    network = models.create('resnet18', num_classes=5, blocks=(1, 1), width=8, stem='small').clone(quantizer=quantizer)
    images = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)
    variables = random_variables(network, images.shape)
    variables['batch_stats'] = jax.tree_util.tree_map_with_path(
        lambda path, x: x if path[-1].key in ('mean', 'var') else 0 * x, variables['batch_stats'])
    variables |= jax.jit(lambda v, x: network.apply(v, x, train=True, mutable=['batch_stats'])[1])(variables, images)
    graph = layer_graph.trace(network, variables, images.shape, inputs_only=True)
    arrays = layer_graph.fold(graph, variables)
    scales = {layer.name: trained_scales(layer.name, variables, quantizer) for layer in graph.layers}
    steps = {name: steps * np.abs(arrays[name]['factor']) for name, (_, _, steps) in scales.items()}
    tensors = {f'{name}/input': activation_ranges.TensorScale(scale, signed) for name, (scale, signed, _) in scales.items()}
    simulated = QuantizedNetwork(network, variables, Quantization('int8', 'trained', 2, (), tensors, '', 0, 3))
    integers = quantize_layers(arrays, bool, 3, steps)
    result = jax.jit(lambda p, x: simulated.apply({'params': p}, x))(integers, images)
    expected = jax.jit(lambda v, x: network.apply(v, x, train=False))(variables, images)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    from jaxcnn import config
    folder = str(tmp_path_factory.mktemp('run'))
    fields = config.make(
        duration=dict(steps=80), batch_size=64,
        model=dict(name='resnet18', blocks=(1, 1), width=8, stem='small'), data=dict(name='digits', image_size=16),
        optim=dict(optimizer='adam', learning_rate=0.01), eval=dict(every=dict(steps=80)), parallel=dict(devices=1))
    train(fields, folder)
    return load_run(folder)


@pytest.mark.usefixtures('no_pictures')
def test_int8_loses_less_than_a_point_and_loads_again(run, tmp_path):
    result = quantize_run(run, str(tmp_path), calibration='percentile', images=64)
    assert result.before['accuracy'] > 0.8
    assert result.after['simulated']['accuracy'] == pytest.approx(result.before['accuracy'], abs=0.01)
    for name in ('minmax', 'percentile', 'entropy'):
        assert result.calibrations[name]['loss'] == pytest.approx(result.calibrations['float32']['loss'], rel=0.2)
    assert result.stored_bytes < 0.55 * result.float_bytes  # 5,000 weights: biases, scales and names are a large part
    assert {layer.layer for layer in result.sensitivity} >= {'Conv_0', 'Dense_0'}
    assert all(0 < layer.noise < 0.1 for layer in result.sensitivity)
    loaded = load_quantized(str(tmp_path), execution='simulated')
    assert loaded.evaluate('test')['test_accuracy'] == pytest.approx(result.after['simulated']['accuracy'])
    images = np.zeros((2, 16, 16, 1), np.uint8)
    assert loaded.predict(images).shape == (2, 10)
    with pytest.raises(UserError, match='feature maps'):
        loaded.features(images)
    arrays = read_arrays(weights := str(tmp_path / 'weights.npz'))
    write_arrays(weights, {**arrays, '': {}, 'Dense_0': {**arrays['Dense_0'], 'bias': np.zeros(10, np.float32)}})
    with pytest.raises(UserError, match=r'weights.npz: is damaged: .* quantise the run again'):
        load_quantized(str(tmp_path))
    record = json.loads((tmp_path / 'quantization.json').read_text())
    (tmp_path / 'quantization.json').write_text(json.dumps({'quantization': record['quantization']}))
    load_quantized(str(tmp_path))  # earlier versions recorded no checksum


@pytest.mark.parametrize(('method', 'error'), [('bfloat16', 2 ** -8), ('float16', 2 ** -11)])
def test_weights_of_16_bits_are_rounded_and_halve_the_size(run, tmp_path, method, error):
    result = quantize_run(run, str(tmp_path), method=method)
    loaded = load_quantized(str(tmp_path)).variables['params']
    for original, rounded in zip(jax.tree.leaves(run.variables['params']), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_allclose(rounded, original, rtol=error)
    assert result.after['']['accuracy'] == pytest.approx(result.before['accuracy'], abs=0.01)
    arrays = np.load(tmp_path / 'weights.npz')
    assert {arrays[name].itemsize for name in arrays.files if name.startswith('params')} == {2}


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(method='int7'), 'unknown method'), (dict(calibration='kl'), 'unknown calibration'),
    (dict(method='float16', calibration='minmax'), 'has no effect'), (dict(images=0), 'at least 1 image'),
    (dict(float_layers='Conv_99'), 'none of the layers'), (dict(split='dev'), 'unknown split'),
])
def test_wrong_arguments_are_refused(run, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        quantize_run(run, str(tmp_path), **arguments)


def test_what_was_not_calibrated_is_refused():
    network = models.create('resnet18', num_classes=5, blocks=(1,), width=8, stem='small')
    variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    quantized = QuantizedNetwork(network, variables, Quantization('int8', 'minmax', 1, (), {}, '', 0))
    with pytest.raises(UserError, match='Conv_0/input was not calibrated'):
        quantized.apply({'params': {}}, jnp.zeros((1, 8, 8, 3)))


def test_a_folder_without_a_quantised_network_is_refused(run):
    with pytest.raises(UserError, match='holds no quantised network'):
        load_quantized(run.workdir)


def test_damaged_weights_are_refused(tmp_path):
    write_arrays(path := str(tmp_path / 'weights.npz'), {'Conv_0': {'kernel': np.arange(100)}})
    content = pathlib.Path(path).read_bytes()
    directory = content.index(b'PK\1\2')  # the version, the flags and the compression of the array follow at 6, 8 and 10
    damaged = [content[:300], *(content[:directory + i] + b'\x7f' + content[directory + i + 1:] for i in (6, 8, 10))]
    damaged.append(content.replace(b'\x63', b'\x64'))  # the last value, whose checksum no longer holds
    for data in damaged:
        pathlib.Path(path).write_bytes(data)
        with pytest.raises(UserError, match='cannot be read'):
            read_arrays(path)


@pytest.mark.slow
@pytest.mark.usefixtures('no_pictures')
def test_a_run_trained_with_quantisation_keeps_its_ranges_and_steps(small, tmp_path):
    train(small(quantization=dict(method='lsq', bits=4), data=dict(augment='')), str(tmp_path / 'run'))
    run = load_run(str(tmp_path / 'run'))
    with pytest.raises(UserError, match='would replace the ranges'):
        quantize_run(run, str(tmp_path), calibration='minmax')
    result = quantize_run(run, str(tmp_path), images=32)
    assert result.quantization.calibration == 'trained'
    assert list(result.after) == ['simulated']  # int8 convolutions have 8 bits
    assert result.after['simulated']['loss'] == pytest.approx(result.before['loss'], rel=1e-3)
    kernels = [array for name, array in np.load(tmp_path / 'weights.npz').items() if name.endswith('kernel')]
    assert 3 < max(np.abs(kernel.astype(int)).max() for kernel in kernels) <= 7
