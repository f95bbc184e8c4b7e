"""Batch normalisation against flax's, by the native library and in plain JAX."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from jaxcnn.models.layers import BatchNorm
from jaxcnn.ops import native
from jaxcnn.ops.batch_norm import gradient_sums, merge_devices, moments

needs_onednn = pytest.mark.skipif(not native.available(jnp.float32), reason='needs the extra jaxcnn[cpu] and g++')
NATIVE = [pytest.param(True, marks=needs_onednn), False]
SHAPES = [(8, 5, 4, 3), (16, 20), (8, 9, 9, 64), (3, 2, 7, 150), (1, 40, 50, 16)]


def arrays(shape, seed=0):
    rng = np.random.default_rng(seed)
    x, g = (jnp.float32(rng.normal(size=shape)) for _ in range(2))
    scale, bias, mean = (jnp.float32(rng.normal(size=shape[-1])) for _ in range(3))
    var = jnp.float32(rng.uniform(0.5, 2, shape[-1]))
    return 3 * x + mean, g, {'params': {'scale': scale, 'bias': bias}, 'batch_stats': {'mean': mean, 'var': var}}


def assert_close(actual, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(float(jnp.abs(b).max()), 1e-3))


# (shape, use_running_average, relu)
CASES = [*((shape, False, True) for shape in SHAPES), (SHAPES[0], False, False), (SHAPES[0], True, True)]
OTHER_CASES = [pytest.param(*case, marks=pytest.mark.slow) for case in itertools.product(
    SHAPES, (False, True), (False, True)) if case not in CASES]


@pytest.mark.parametrize(('shape', 'average', 'relu'), CASES + OTHER_CASES, ids=str)
def test_output_statistics_and_gradients_are_those_of_flax(shape, average, relu):
    x, g, variables = arrays(shape)
    fields = dict(use_running_average=average, momentum=0.8, epsilon=1e-3)

    def run(layer, activation, x, params):
        def forward(x, params):
            y, updates = layer.apply({**variables, 'params': params}, x, mutable=['batch_stats'])
            return activation(y), updates
        y, vjp, updates = jax.vjp(forward, x, params, has_aux=True)
        return y, updates, vjp(g)
    layers = [BatchNorm(relu=relu, native=use_native, **fields) for use_native in (True, False)]

    @jax.jit
    def run_all(x, params):
        return (run(nn.BatchNorm(**fields), nn.relu if relu else lambda y: y, x, params),
                *(run(layer, lambda y: y, x, params) for layer in layers))
    expected, by_library, by_jax = run_all(x, variables['params'])
    assert_close(by_library, expected)
    assert_close(by_jax, expected)


def test_variables_are_named_as_flax_does():
    x = jnp.ones((2, 3, 3, 4))
    variables, expected = (jax.jit(layer.init)(jax.random.key(0), x) for layer in (
        BatchNorm(use_running_average=False), nn.BatchNorm(use_running_average=False)))
    assert_close(variables, expected, 0)
    assert jax.tree.structure(variables) == jax.tree.structure(expected)


@pytest.mark.parametrize('native', NATIVE)
def test_gradients_and_their_gradients_agree_with_differences(native):
    x, _, variables = arrays((4, 3, 3, 5))

    @jax.jit
    def forward(x, scale, bias):
        layer = BatchNorm(use_running_average=False, native=native, relu=True)
        return layer.apply({'params': {'scale': scale, 'bias': bias}, 'batch_stats': variables['batch_stats']}, x,
                           mutable=['batch_stats'])[0]
    check_grads(forward, (x, variables['params']['scale'], variables['params']['bias'] + 9), order=2, modes=['rev'],
                atol=0.02, rtol=0.02, eps=1e-2)


@pytest.mark.parametrize('native', NATIVE)
@pytest.mark.parametrize('relu', [False, True])
def test_sums_are_those_of_float64(relu, native):
    rng = np.random.default_rng(1)
    g, x = (rng.normal(size=(6, 700, 37)).astype(np.float32) for _ in range(2))
    affine = rng.normal(size=(3, 37)).astype(np.float32)
    with jax.enable_x64(True):
        exact = np.asarray(gradient_sums(*(jnp.asarray(np.float64(a)) for a in (g, x, affine)), relu, False))
    sums = np.asarray(jax.jit(lambda *a: gradient_sums(*a, relu, native))(g, x, affine))
    assert np.abs(sums - exact).max() < 2e-6 * np.abs(g * x).sum((0, 1)).max()


def shifted(shape, mean):
    """Return values `mean` standard deviations from 0, and in float64 their normalised values and (2, C) moments."""
    x = np.float32(np.random.default_rng(2).normal(size=shape) + mean)
    axes = tuple(range(len(shape) - 1))
    exact = np.stack([np.float64(x).mean(axes), np.float64(x).var(axes)])
    return x, (x - exact[0]) / np.sqrt(exact[1] + 1e-5), exact


def normalised(x, native):
    c = x.shape[-1]
    variables = {'params': {'scale': np.ones(c), 'bias': np.zeros(c)},
                 'batch_stats': {'mean': np.zeros(c), 'var': np.ones(c)}}
    layer = BatchNorm(use_running_average=False, native=native, epsilon=1e-5)
    return layer.apply(variables, x, mutable=['batch_stats'])[0]


@pytest.mark.parametrize('native', NATIVE)
@pytest.mark.parametrize('shape', [(16, 12, 12, 37), (64, 33)], ids=str)
def test_means_of_many_deviations_leave_errors_of_rounding(shape, native):
    g = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    axes = tuple(range(len(shape) - 1))

    @jax.jit
    def run(x):
        y, vjp = jax.vjp(lambda x: normalised(x, native), x)
        return y, moments(x, native), vjp(g)[0]
    for mean in (0, 100, -3000):
        x, expected, exact = shifted(shape, mean)
        y, mean_and_variance, gradient = map(np.asarray, run(x))
        assert np.abs(y - expected).max() < 2e-6 + 1e-7 * abs(mean)
        assert np.abs(mean_and_variance[0] - exact[0]).max() < 1e-6 + 1e-7 * abs(mean)
        np.testing.assert_allclose(mean_and_variance[1], exact[1], rtol=5e-6)
        exact_gradient = (g - g.mean(axes) - expected * (g * expected).mean(axes)) / np.sqrt(exact[1] + 1e-5)
        assert np.abs(gradient - exact_gradient).max() < 4e-6 + 1e-7 * abs(mean)


@pytest.mark.torch
@pytest.mark.parametrize('native', NATIVE)
@pytest.mark.parametrize('shape', [(32, 8, 8, 40), (64, 33)], ids=str)
def test_errors_are_at_most_ten_times_pytorchs(shape, native):
    torch = pytest.importorskip('torch')
    run = jax.jit(lambda x: normalised(x, native))
    for mean in (0, 3, 30, 100, 1000, 3000):
        x, expected, _ = shifted(shape, mean)
        by_torch = torch.nn.functional.batch_norm(torch.tensor(np.moveaxis(x, -1, 1)), None, None, training=True)
        error = np.abs(np.moveaxis(by_torch.numpy(), 1, -1) - expected).max()
        assert np.abs(run(x) - expected).max() < 10 * error


@pytest.mark.parametrize('native', NATIVE)
def test_the_variance_does_not_depend_on_first_values_that_are_outliers(native):
    x, _, _ = shifted((16, 12, 12, 20), 1000)
    x[:, 0, 0] -= 30
    variance, exact = jax.jit(lambda x: moments(x, native))(x)[1], np.float64(x).var((0, 1, 2))
    np.testing.assert_allclose(variance, exact, rtol=5e-5)


@pytest.mark.parametrize('native', NATIVE)
def test_moments_over_devices_and_under_vmap_and_pmap(native):
    x, _, expected = shifted((16, 5, 5, 12), 1000)
    mesh = Mesh(np.array(jax.devices()), ('batch',))
    rows, replicated = NamedSharding(mesh, P('batch')), NamedSharding(mesh, P())
    assert len(jax.devices()) == 8
    parts = x.reshape(8, 2, *x.shape[1:])
    groups = np.stack([np.float64(parts).mean((1, 2, 3)), np.float64(parts).var((1, 2, 3))], 1)

    def check(moments, expected):
        np.testing.assert_allclose(moments[..., 0, :], expected[..., 0, :], rtol=2e-7)
        np.testing.assert_allclose(moments[..., 1, :], expected[..., 1, :], rtol=1e-5)

    def run(x):
        return moments(x, native)
    check(jax.jit(run, in_shardings=rows, out_shardings=replicated)(jax.device_put(x, rows)), expected)
    check(jax.jit(jax.vmap(run))(parts), groups)
    device_moments, merged = jax.pmap(lambda x: (run(x), merge_devices(run(x), 'batch')), 'batch')(parts)
    check(device_moments, groups)
    check(merged, np.broadcast_to(expected, merged.shape))


def test_bfloat16_computes_statistics_in_float32():
    x, _, variables = arrays((8, 6, 6, 16))
    fields = dict(use_running_average=False, dtype=jnp.bfloat16, param_dtype=jnp.float32)
    (y, updates), (expected, expected_updates) = jax.jit(lambda x: [
        layer.apply(variables, x, mutable=['batch_stats']) for layer in (BatchNorm(**fields), nn.BatchNorm(**fields))])(
        x.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert_close(updates, expected_updates)
    assert_close(y.astype(jnp.float32), expected.astype(jnp.float32), 1e-2)


@pytest.mark.parametrize('use_native', NATIVE)
@pytest.mark.parametrize('shape', [(8, 9, 9, 64), (3, 2, 7, 150)], ids=str)
def test_in_bfloat16_results_are_those_of_float32_rounded(shape, use_native):
    x, g, variables = arrays(shape)
    low = x.astype(jnp.bfloat16), g.astype(jnp.bfloat16)
    fields = dict(use_running_average=False, relu=True, native=use_native)

    @jax.jit
    def run(x, g):
        def forward(x, params):
            dtype = {'dtype': x.dtype, 'param_dtype': jnp.float32}
            return BatchNorm(**fields, **dtype).apply({**variables, 'params': params}, x, mutable=['batch_stats'])
        y, vjp, updates = jax.vjp(forward, x, variables['params'], has_aux=True)
        return y, vjp(g), updates
    y, (dx, params), updates = run(*low)
    expected_y, (expected_dx, expected_params), expected_updates = run(*(a.astype(jnp.float32) for a in low))
    assert y.dtype == dx.dtype == jnp.bfloat16
    assert_close((updates, params), (expected_updates, expected_params))
    error = np.abs(y.astype(np.float32) - expected_y)
    assert (error <= 2 ** -8 * np.abs(expected_y) + 1e-5).all()
    error = np.abs(dx.astype(np.float32) - expected_dx)  # of a sum of two rounded terms
    assert error.max() <= 2 ** -7 * np.abs(expected_dx).max()
