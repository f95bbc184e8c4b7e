"""Quantisation-aware training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import config, experiment, models
from jaxcnn.analysis.complexity import cost
from jaxcnn.errors import UserError
from jaxcnn.models.layers import Conv
from jaxcnn.models.quantized_layers import Quantizer, trained_scales
from jaxcnn.training.loop import TrainingRun
from jaxcnn.training.signals import StopRequest

NETWORK = dict(name='lenet5')
DETECTION = dict(task='detection', loss='detection', data=dict(name='coco', dir='.', augment=''))
pytestmark = pytest.mark.usefixtures('no_pictures')


def trained(settings, folder, steps):
    (folder / 'figures').mkdir(parents=True, exist_ok=True)
    with (run := TrainingRun(config.parse(settings), str(folder), StopRequest())):
        while run.step < steps:
            run.advance(config.Duration('steps', 1000))
        return run.setup.backend.fetch(run.state)


@pytest.mark.parametrize('backend', [pytest.param('sharded', marks=pytest.mark.slow), 'pmap'])
def test_ranges_and_steps_do_not_depend_on_the_devices(small, tmp_path, backend):
    states = []
    for devices in (1, 4):
        fields = small(model=dict(name='shallow_cnn', widths=(4, 4, 8, 8), hidden=16, dropout=0.0), data={'augment': ''},
                       quantization=dict(method='lsq'), parallel=dict(backend=backend, devices=devices))
        states.append(trained(fields, tmp_path / str(devices), 1))
    for one, four in zip(*map(jax.tree.leaves, (states[0].batch_stats, states[1].batch_stats)), strict=True):
        np.testing.assert_allclose(four, one, rtol=1e-4, atol=1e-6)
    steps = [state.params['Conv_1']['input_step'] for state in states]
    assert steps[0] != 1  # it is trained
    np.testing.assert_allclose(steps[1], steps[0], rtol=1e-3)


def step_once(quantizer, x, kernel, rate):
    """A convolution's loss, and its variables after the first training step of SGD."""
    layer = Conv(3, (1, 1), use_bias=False, quantizer=quantizer, implementation='xla')
    variables = layer.init(jax.random.key(0), x)
    variables['params']['kernel'] = kernel

    def loss(params, stats):
        y, updates = layer.apply({'params': params, 'batch_stats': stats}, x, mutable=['batch_stats'])
        return (y ** 2).sum(), updates['batch_stats']
    gradients, stats = jax.grad(loss, has_aux=True)(variables['params'], variables['batch_stats'])
    params = jax.tree.map(lambda p, g: p - rate * g, variables['params'], gradients)
    return layer, params, stats


def test_a_learned_step_begins_and_moves_as_the_papers(small):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(0, 1, (2, 2, 2, 4)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(1, 1, 4, 3)), jnp.float32)
    _, params, stats = step_once(Quantizer(4, 'lsq'), x, kernel, 1e-3)
    start = 2 * np.abs(x).mean() / np.sqrt(15)  # unsigned, 4 bits
    assert stats['input_unit'] == pytest.approx(start)
    kernel_start = 2 * np.abs(kernel).mean((0, 1, 2)) / np.sqrt(7)
    np.testing.assert_allclose(stats['kernel_unit'], kernel_start, rtol=1e-6)

    def loss(step):  # rounding and clipping are constants, the step is differentiated where the paper does
        ratio = np.asarray(x) / start
        slopes = np.where(ratio <= 15, np.rint(ratio) - ratio, 15)
        rounded = np.clip(np.rint(ratio), 0, 15) * start
        k = np.clip(np.rint(np.asarray(kernel) / kernel_start), -7, 7) * kernel_start
        y = rounded @ k[0, 0]
        return (2 * (y @ k[0, 0].T) * slopes).sum() / np.sqrt(16 * 15)  # 16 features of an image
    expected = start - 1e-3 * loss(start)
    assert params['input_step'] * stats['input_unit'] == pytest.approx(expected, rel=1e-5)


def test_ranges_are_moving_averages_and_evaluation_uses_them():
    x = jnp.asarray([[-1.0, 0.5], [0.25, 3.0]]).reshape(2, 1, 1, 2)
    kernel = jnp.ones((1, 1, 2, 3))
    layer, params, stats = step_once(Quantizer(8, 'minmax'), x, kernel, 0.0)
    assert (stats['input_low'], stats['input_high']) == (-1.0, 3.0)
    _, updates = layer.apply({'params': params, 'batch_stats': stats}, 2 * x, mutable=['batch_stats'])
    assert updates['batch_stats']['input_high'] == pytest.approx(0.99 * 3 + 0.01 * 6)
    # a frozen range stays, but is set if there is none
    frozen, params, stats = step_once(Quantizer(8, 'minmax', is_frozen=True), x, kernel, 0.0)
    _, updates = frozen.apply({'params': params, 'batch_stats': stats}, 2 * x, mutable=['batch_stats'])
    assert updates['batch_stats']['input_high'] == stats['input_high'] == 3
    y = layer.apply({'params': params, 'batch_stats': stats}, x)
    unit = 3 / 127
    np.testing.assert_allclose(y[:, 0, 0, 0], [np.rint(-1 / unit) * unit + np.rint(0.5 / unit) * unit,
                                               np.rint(0.25 / unit) * unit + 3], rtol=1e-6)
    always_zero = {'batch_stats': {'Conv_0': {'input_low': np.float32(0), 'input_high': np.float32(0)}}}
    scale, _, _ = trained_scales('Conv_0', always_zero, Quantizer(8, 'minmax'))
    assert scale > 0


@pytest.mark.parametrize(('fields', 'message'), [
    (dict(quantization=dict(bits=1)), r'config.quantization.bits.*at least 2'),
    (dict(quantization=dict(method='qat')), r'config.quantization.method'),
    (dict(quantization=dict(float_layers='(')), 'no regular expression'),
    (dict(quantization=dict(), model=dict(name='lenet5', dtype='bfloat16')), 'needs float32'),
    (dict(model=dict(name='lenet5', quantizer=3)), 'see config.quantization'),
    (dict(quantization=dict(), model=dict(name='faster_rcnn'), **DETECTION), 'only networks that return logits')])
def test_wrong_fields_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        experiment.check(config.parse(config.make(**{'model': NETWORK, **fields})))


def test_the_cost_is_that_of_the_network_without_rounding():
    network = models.create('lenet5')
    rounded = network.clone(quantizer=Quantizer(4, 'lsq'))
    assert cost(rounded, (32, 32, 1)).multiply_adds == cost(network, (32, 32, 1)).multiply_adds
