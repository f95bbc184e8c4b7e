"""The scale of the loss from step to step, and the values of `config.optim.loss_scale` that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import config as cfg
from jaxcnn import experiment, loss_scaling, models
from jaxcnn.errors import UserError


def scaling_of(loss_scale, dtype='float16', **optim):
    config = cfg.parse(dict(optim=dict(loss_scale=loss_scale, **optim)))
    return loss_scaling.make(config.optim, models.create('lenet5', dtype=dtype))


@pytest.mark.parametrize('loss_scale', [
    dict(name='dynamic', initial=64, every=3, factor=4, smallest=0.5), dict(name='static', scale=8)],
    ids=['dynamic', 'static'])
def test_the_scale_is_that_of_the_plain_statement(loss_scale):
    scaling = scaling_of(loss_scale)
    is_dynamic = loss_scale['name'] == 'dynamic'
    scale, good, total, stage_total, in_sequence = loss_scale.get('initial', 8.0), 0, 0, 0, 0
    rng = np.random.default_rng(0)
    finite = [*(rng.random(40) < 0.8), *[False] * 16]
    state = scaling.init()
    for step, is_finite in enumerate(finite):
        before = state
        state = scaling.update(state, np.bool_(is_finite), np.bool_(step == 20))
        stage_total = 0 if step == 20 else stage_total
        was_smallest = scale == 0.5
        if is_finite:
            good, in_sequence = good + 1, 0
            if is_dynamic and good == 3:
                scale, good = min(4 * scale, 2 ** 24), 0
        else:
            good, total, stage_total, in_sequence = 0, total + 1, stage_total + 1, in_sequence + 1
            if is_dynamic:
                scale = max(scale / 4, 0.5)
        assert {name: float(value) for name, value in state.items()} == dict(
            scale=scale, good_steps=good, skipped=total, skipped_in_stage=stage_total, skipped_in_sequence=in_sequence)
        failed = not is_finite and (was_smallest if is_dynamic else in_sequence == 16)
        assert bool(scaling.has_failed(before, state)) == failed
    assert failed


@pytest.mark.parametrize(('loss_scale', 'dtype', 'optim', 'initial'), [
    ('auto', 'float32', {}, None), ('auto', 'bfloat16', {}, None), ('auto', 'float16', {}, 65536),
    ('none', 'float16', {}, None),
    ('auto', 'float32', dict(gradient_dtype='float16'), 65536), (dict(name='static', scale=128), 'float16', {}, 128)])
def test_the_loss_is_scaled_where_something_is_in_float16(loss_scale, dtype, optim, initial):
    scaling = scaling_of(loss_scale, dtype, **optim)
    assert (scaling and scaling.initial) == initial


@pytest.mark.parametrize(('fields', 'line'), [
    ({'optim': {'loss_scale': 'dinamic'}}, r"config\.optim\.loss_scale: unknown value 'dinamic'; nearest: dynamic"),
    ({'optim': {'loss_scale': 'dynamic'}, 'dtype': 'bfloat16'},
     r"loss_scale: 'dynamic' has no effect with config\.model\.dtype='bfloat16'.*leave it out, or set .*dtype='float16'"),
    ({'optim': {'loss_scale': dict(name='static', scale=0)}, 'dtype': 'float16'}, r'loss_scale\.scale: expected a number'),
    ({'optim': {'loss_scale': dict(name='dynamic', every=0)}, 'dtype': 'float16'}, r'loss_scale\.every: expected a whole'),
    ({'optim': {'loss_scale': dict(name='none', scale=2)}, 'dtype': 'float16'}, r"'none' has no arguments, got 'scale'"),
    ({'optim': {'loss_scale': dict(name='dynamic', scale=2)}, 'dtype': 'float16'},
     r"unknown argument of config\.optim\.loss_scale 'scale'; nearest: smallest"),
    ({'optim': {'gradient_dtype': 'float8'}}, r"config\.optim\.gradient_dtype: unknown value 'float8'"),
    ({'dtype': 'float64'}, r"config\.model: unknown dtype 'float64'; nearest: float16, bfloat16, float32"),
    ({'param_dtype': 'float16', 'optim': {'optimizer': 'adam'}},
     r"config\.optim\.optimizer: adam divides by 0 where parameters are in float16; set config\.model\.param_dtype="),
])
def test_a_wrong_precision_is_an_error_in_one_line(fields, line):
    optim = fields.pop('optim', {})
    with pytest.raises(UserError, match=line):
        experiment.check(cfg.parse(dict(model=dict(name='lenet5', **fields), optim=optim)))


def test_sgd_updates_float16_parameters():
    experiment.check(cfg.parse(dict(model=dict(name='lenet5', param_dtype='float16'), optim=dict(optimizer='sgd'))))


def test_gradients_of_confident_images_do_not_underflow_in_float16():
    """The probability of the other class is exp(-30.1), which float16 rounds to 0."""
    kernel, images = jnp.array([[0, -30.0], [0, -0.1]]), jnp.ones((1, 2))

    def gradient(dtype, is_scaled):
        network = models.create('lenet5', 2, dtype=dtype)

        def loss(x):
            logits = x.astype(dtype) @ kernel.astype(dtype)
            logits = loss_scaling.scale_image_gradients(logits, network) if is_scaled else logits
            return -jax.nn.log_softmax(logits.astype(jnp.float32))[:, 0].sum()
        return np.asarray(jax.grad(loss)(images))
    assert (gradient('float16', False) == 0).all()
    assert (gradient('float16', True) < 0).all()
    for dtype in ('float32', 'bfloat16'):
        np.testing.assert_array_equal(gradient(dtype, True), gradient(dtype, False))
