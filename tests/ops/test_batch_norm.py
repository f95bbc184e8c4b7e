"""Batch normalisation against flax's, by the library's calls and in plain JAX."""

import functools

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


def close(found, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(float(jnp.abs(b).max()), 1e-3))


@pytest.mark.parametrize('native', NATIVE)
@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('average', [False, True])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_output_statistics_and_gradients_are_those_of_flax(shape, average, relu, native):
    x, g, variables = arrays(shape)
    fields = dict(use_running_average=average, momentum=0.8, epsilon=1e-3)

    def run(layer, after, x, params):
        def forward(x, params):
            y, updates = layer.apply({**variables, 'params': params}, x, mutable=['batch_stats'])
            return after(y), updates
        y, vjp, updates = jax.vjp(forward, x, params, has_aux=True)
        return y, updates, vjp(g)
    found, expected = (jax.jit(functools.partial(run, *of))(x, variables['params']) for of in (
        (BatchNorm(relu=relu, native=native, **fields), lambda y: y),
        (nn.BatchNorm(**fields), nn.relu if relu else lambda y: y)))
    close(found, expected)


def test_variables_are_named_as_flax_does():
    x = jnp.ones((2, 3, 3, 4))
    ours, flax = (layer.init(jax.random.key(0), x) for layer in (
        BatchNorm(use_running_average=False), nn.BatchNorm(use_running_average=False)))
    close(ours, flax, 0)
    assert jax.tree.structure(ours) == jax.tree.structure(flax)


@pytest.mark.parametrize('native', NATIVE)
def test_gradients_and_their_gradients_agree_with_differences(native):
    x, _, variables = arrays((4, 3, 3, 5))

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
    found = np.asarray(jax.jit(lambda *a: gradient_sums(*a, relu, native))(g, x, affine))
    assert np.abs(found - exact).max() < 2e-6 * np.abs(g * x).sum((0, 1)).max()


def far(shape, mean):
    """Values `mean` deviations from 0, and in float64 their normalised values and (2, C) moments."""
    x = np.float32(np.random.default_rng(2).normal(size=shape) + mean)
    axes = tuple(range(len(shape) - 1))
    exact = np.stack([np.float64(x).mean(axes), np.float64(x).var(axes)])
    return x, (x - exact[0]) / np.sqrt(exact[1] + 1e-5), exact


def normalised(x, native):
    c = x.shape[-1]
    variables = {'params': {'scale': np.ones(c), 'bias': np.zeros(c)},
                 'batch_stats': {'mean': np.zeros(c), 'var': np.ones(c)}}
    layer = BatchNorm(use_running_average=False, native=native, epsilon=1e-5)
    return jax.jit(lambda x: layer.apply(variables, x, mutable=['batch_stats'])[0])(x)


@pytest.mark.parametrize('native', NATIVE)
@pytest.mark.parametrize('mean', [0, 100, -3000])
@pytest.mark.parametrize('shape', [(16, 12, 12, 37), (64, 33)], ids=str)
def test_means_of_many_deviations_leave_errors_of_rounding(shape, mean, native):
    x, expected, exact = far(shape, mean)
    assert np.abs(normalised(x, native) - expected).max() < 2e-6 + 1e-7 * abs(mean)
    found = np.asarray(jax.jit(lambda x: moments(x, native))(x))
    assert np.abs(found[0] - exact[0]).max() < 1e-6 + 1e-7 * abs(mean)
    np.testing.assert_allclose(found[1], exact[1], rtol=5e-6)
    g = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    axes = tuple(range(len(shape) - 1))
    gradient = (g - g.mean(axes) - expected * (g * expected).mean(axes)) / np.sqrt(exact[1] + 1e-5)
    assert np.abs(jax.vjp(lambda x: normalised(x, native), x)[1](g)[0] - gradient).max() < 4e-6 + 1e-7 * abs(mean)


@pytest.mark.torch
@pytest.mark.parametrize('native', NATIVE)
@pytest.mark.parametrize('shape', [(32, 8, 8, 40), (64, 33)], ids=str)
def test_errors_are_at_most_ten_times_pytorchs(shape, native):
    torch = pytest.importorskip('torch')
    for mean in (0, 3, 30, 100, 1000, 3000):
        x, expected, _ = far(shape, mean)
        theirs = torch.nn.functional.batch_norm(torch.tensor(np.moveaxis(x, -1, 1)), None, None, training=True)
        error = np.abs(np.moveaxis(theirs.numpy(), 1, -1) - expected).max()
        assert np.abs(normalised(x, native) - expected).max() < 10 * error


@pytest.mark.parametrize('native', NATIVE)
def test_the_variance_does_not_depend_on_first_values_that_are_outliers(native):
    x, _, _ = far((16, 12, 12, 20), 1000)
    x[:, 0, 0] -= 30
    found, exact = jax.jit(lambda x: moments(x, native))(x), np.float64(x).var((0, 1, 2))
    np.testing.assert_allclose(found[1], exact, rtol=5e-5)


@pytest.mark.parametrize('native', NATIVE)
def test_moments_over_devices_and_under_vmap_and_pmap(native):
    x, _, expected = far((16, 5, 5, 12), 1000)
    mesh = Mesh(np.array(jax.devices()), ('batch',))
    rows, whole = NamedSharding(mesh, P('batch')), NamedSharding(mesh, P())
    assert len(jax.devices()) == 8
    parts = x.reshape(8, 2, *x.shape[1:])
    groups = np.stack([np.float64(parts).mean((1, 2, 3)), np.float64(parts).var((1, 2, 3))], 1)

    def same(found, expected):
        np.testing.assert_allclose(found[..., 0, :], expected[..., 0, :], rtol=2e-7)
        np.testing.assert_allclose(found[..., 1, :], expected[..., 1, :], rtol=1e-5)
    same(jax.jit(lambda x: moments(x, native), in_shardings=rows, out_shardings=whole)(jax.device_put(x, rows)), expected)
    same(jax.jit(jax.vmap(lambda x: moments(x, native)))(parts), groups)
    same(jax.pmap(lambda x: moments(x, native))(parts), groups)
    merged = jax.pmap(lambda x: merge_devices(moments(x, native), 'batch'), 'batch')(parts)
    same(merged, np.broadcast_to(expected, merged.shape))


def test_bfloat16_computes_statistics_in_float32():
    x, _, variables = arrays((8, 6, 6, 16))
    layer = BatchNorm(use_running_average=False, dtype=jnp.bfloat16, param_dtype=jnp.float32)
    y, updates = layer.apply(variables, x.astype(jnp.bfloat16), mutable=['batch_stats'])
    expected, same = nn.BatchNorm(use_running_average=False, dtype=jnp.bfloat16, param_dtype=jnp.float32).apply(
        variables, x.astype(jnp.bfloat16), mutable=['batch_stats'])
    assert y.dtype == jnp.bfloat16
    close(updates, same)
    close(y.astype(jnp.float32), expected.astype(jnp.float32), 1e-2)
