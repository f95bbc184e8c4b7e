"""Convolutions: each implementation gives the results and both gradients of XLA's."""

import concurrent.futures
import ctypes
import functools
import itertools
import logging
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcnn.errors import UserError
from jaxcnn.models.network import Network
from jaxcnn.ops import native
from jaxcnn.ops.conv import add_bias, conv_general_dilated
from jaxcnn.ops.geometry import NHWC

slow = pytest.mark.slow
needs_onednn = pytest.mark.skipif(not native.available(jnp.float32), reason='needs the extra jaxcnn[cpu] and g++')
BOTH = [pytest.param('onednn', marks=needs_onednn), 'jax']  # the implementations that differentiate by custom rules
FAST_COMPILATION = {'xla_backend_optimization_level': 0}
COMPILED = native.build() if native.available(jnp.float32) else ''  # before the cache folder of the session is another


def conv(x, kernel, implementation, stride=1, padding='SAME', dilation=1, groups=1):
    return conv_general_dilated(x, kernel, (stride, stride), padding, rhs_dilation=(dilation, dilation),
                                dimension_numbers=NHWC, feature_group_count=groups, implementation=implementation)


def arrays(n=2, h=11, w=10, c=8, features=16, size=3, groups=1, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return (jnp.asarray(rng.normal(size=(n, h, w, c)).astype(dtype)),
            jnp.asarray(rng.normal(size=(size, size, c // groups, features)).astype(dtype)))


def assert_close(actual, expected, tolerance=2e-6):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1e-30)


def cotangent(y):
    """The same for each image."""
    return jnp.broadcast_to(jnp.cos(jnp.arange(y[0].size)).reshape(y.shape[1:]), y.shape).astype(y.dtype)


def value_and_gradients(f, x, kernel):
    """Return f(x, kernel) and its gradients with respect to x and kernel."""
    y, vjp = jax.vjp(f, x, kernel)
    return y, *vjp(cotangent(y))


# the meaning

SHAPES = [dict(c=8, features=16), dict(c=3, features=5), dict(c=1, features=6), dict(c=16, features=16, groups=4),
          dict(c=8, features=8, groups=8), dict(c=4, features=12, groups=4), dict(c=6, features=9, groups=3)]
WINDOWS = [dict(), dict(stride=2), dict(padding='VALID'), dict(dilation=2), dict(stride=2, dilation=2, padding='VALID'),
           dict(stride=3, padding=((2, 0), (1, 3))), dict(stride=2, padding=((0, 1), (1, 2)))]


# (features, dtype, jax_enable_x64); up to 16 float32 biases are summed by a matrix product
BIASES = [(1, np.float32, False), (16, np.float32, True), (17, np.float32, False), (6, jnp.bfloat16, False)]
OTHER_BIASES = [pytest.param(*case, marks=slow) for case in itertools.product(
    (1, 6, 16, 17), (np.float32, jnp.bfloat16), (False, True)) if case not in BIASES]


@pytest.mark.parametrize(('features', 'dtype', 'double'), BIASES + OTHER_BIASES)
def test_a_bias_and_its_gradient(features, dtype, double):
    rng = np.random.default_rng(0)
    y, g = (jnp.asarray(rng.normal(size=(16, 5, 4, features)), dtype) for _ in range(2))
    bias = jnp.asarray(rng.normal(size=features), dtype)

    def run(y, bias, g):
        value, vjp = jax.vjp(add_bias, y, bias)
        return value, *vjp(g)
    assert ('dot_general' in str(jax.make_jaxpr(run)(y, bias, g))) == (dtype == np.float32 and features < 17)
    expected = np.asarray(g, np.float64).sum((0, 1, 2))
    rows, replicated = (NamedSharding(Mesh(np.array(jax.devices()), ('batch',)), P(*axes)) for axes in (('batch',), ()))
    with jax.enable_x64(double):
        for shardings in ({}, dict(in_shardings=(rows, replicated, rows), out_shardings=(rows, rows, replicated))):
            value, by_y, by_bias = jax.jit(run, **shardings)(y, bias, g)
            assert value.dtype == by_y.dtype == by_bias.dtype == dtype
            np.testing.assert_array_equal(value, np.asarray(y) + np.asarray(bias))
            np.testing.assert_array_equal(by_y, g)
            if dtype == np.float32:
                np.testing.assert_allclose(by_bias, expected, rtol=0, atol=1e-5)
            else:
                np.testing.assert_allclose(np.float64(by_bias), expected, rtol=2 ** -8, atol=1e-5)


def test_the_gradient_of_a_bfloat16_bias_is_summed_in_float32():
    y, bias = jnp.ones((2, 3, 3, 5), jnp.bfloat16), jnp.ones(5, jnp.bfloat16)
    program = jax.make_jaxpr(lambda y, b: jax.vjp(add_bias, y, b)[1](y))(y, bias)
    sums = [e.invars[0].aval.dtype for e in program.eqns if e.primitive.name == 'reduce_sum']
    assert sums
    assert set(sums) == {np.dtype(np.float32)}


def test_a_bias_of_no_images_and_of_several_sets_of_them():
    assert add_bias(jnp.zeros((0, 2, 2, 3)), jnp.ones(3)).shape == (0, 2, 2, 3)
    y, bias = jnp.arange(48.0).reshape(2, 2, 2, 2, 3), jnp.arange(3.0)
    np.testing.assert_array_equal(jax.vmap(add_bias, (0, None))(y, bias), y + bias)


def window_cases():
    """Yield (shape, kernel size, windows): each shape and each window with few compilations; slow ones with all pairs."""
    dense, grouped, depthwise = SHAPES[0], SHAPES[3], SHAPES[4]
    for shape in SHAPES:
        yield pytest.param(shape, 3, WINDOWS if shape in (dense, grouped) else WINDOWS[4:6], id=f'{shape}-3')
    for shape, size in ((dense, 1), (dense, 2), (depthwise, 2)):
        yield pytest.param(shape, size, [WINDOWS[0], WINDOWS[4], WINDOWS[5]], id=f'{shape}-{size}')
    for shape, size in itertools.product(SHAPES, (1, 2, 3)):
        yield pytest.param(shape, size, WINDOWS, marks=slow, id=f'{shape}-{size}, all windows')


@pytest.mark.parametrize(('shape', 'size', 'windows'), window_cases())
def test_forward_and_gradients_are_those_of_xla(shape, size, windows):
    groups = shape.get('groups', 1)
    x, kernel = arrays(size=size, **shape)
    implementations = ['jax', 'onednn'] if native.available(jnp.float32) else ['jax']

    @functools.partial(jax.jit, compiler_options=FAST_COMPILATION)
    def run(x, kernel):
        return [[value_and_gradients(functools.partial(conv, implementation=i, groups=groups, **window), x, kernel)
                 for i in ['xla', *implementations]] for window in windows]

    for window, (expected, *results) in zip(windows, run(x, kernel), strict=True):
        for implementation, values in zip(implementations, results, strict=True):
            try:
                assert_close(values, expected)
            except AssertionError as e:
                raise AssertionError(f'{implementation}, {window}: {e}') from e


with open('/proc/cpuinfo') as cpuinfo:
    KERNELS_ARE_USED = {'avx2', 'fma'} <= set(cpuinfo.read().split())
# Winograd's algorithm is used for at least 32 channels, 32 features and 32 tiles of 4x4 outputs. The shapes have: several
# blocks of tiles and odd sizes; an odd number of vectors of features; sums over more than 64 channels; several blocks of the
# kernel's gradient; groups.
WINOGRAD_SHAPES = [
    dict(n=9, h=7, w=9, c=48, features=32), dict(n=6, h=13, w=10, c=32, features=80),
    dict(n=40, h=3, w=1, c=96, features=64), dict(n=8, h=32, w=32, c=64, features=64),
    dict(n=9, h=9, w=10, c=96, features=192, groups=3),
    *(pytest.param(shape, marks=slow) for shape in (
        dict(n=32, h=4, w=4, c=32, features=32), dict(n=2, h=33, w=35, c=96, features=160),
        dict(n=64, h=4, w=4, c=256, features=288), dict(n=40, h=3, w=1, c=64, features=64)))]
PADDINGS = [((1, 1), (1, 1)), ((0, 0), (0, 0)), ((2, 0), (1, 2)), ((2, 2), (2, 2))]


def by_matmuls(x, kernel, g, padding, groups):
    """Compute a convolution of stride 1 and both gradients in float64 by one matrix product for each tap and group."""
    x, kernel, g = (np.float64(a) for a in (x, kernel, g))
    padded = np.pad(x, ((0, 0), *padding, (0, 0)))
    channels, features = x.shape[-1] // groups, g.shape[-1] // groups
    y, dx, dk = np.zeros(g.shape), np.zeros(padded.shape), np.zeros(kernel.shape)
    for i, j in np.ndindex(*kernel.shape[:2]):
        window = np.s_[:, i:i + g.shape[1], j:j + g.shape[2]]
        for k in range(groups):
            a, b = np.s_[..., k * channels:(k + 1) * channels], np.s_[..., k * features:(k + 1) * features]
            y[b] += padded[window][a] @ kernel[i, j][b]
            dx[window][a] += g[b] @ kernel[i, j][b].T
            dk[i, j][b] = np.tensordot(padded[window][a], g[b], ((0, 1, 2), (0, 1, 2)))
    (top, _), (left, _) = padding
    return y, dx[:, top:top + x.shape[1], left:left + x.shape[2]], dk


def differ(a, b):
    """Return for each pair of arrays whether their bits differ."""
    return [np.asarray(x).tobytes() != np.asarray(y).tobytes() for x, y in zip(a, b, strict=True)]


@needs_onednn
@pytest.mark.parametrize('shape', WINOGRAD_SHAPES, ids=str)
def test_winograds_algorithm_is_exact_to_some_roundings(shape):
    x, kernel = arrays(**shape)
    groups = shape.get('groups', 1)
    paddings = PADDINGS if shape['w'] == 9 else PADDINGS[2:3] if shape['w'] == 32 else PADDINGS[::2]

    @jax.jit
    def run(x, kernel):
        return [[value_and_gradients(functools.partial(conv, implementation=i, padding=p, groups=groups), x, kernel)
                 for i in ('native', 'onednn')] for p in paddings]

    for padding, (actual, direct) in zip(paddings, run(x, kernel), strict=True):
        exact = by_matmuls(x, kernel, cotangent(direct[0]), padding, groups)
        assert_close([np.float64(a) for a in actual], exact, 8e-6)
        assert all(differ(actual, direct)) or not KERNELS_ARE_USED
        for a, true in zip(actual, exact, strict=True):
            assert np.sqrt(np.mean((np.float64(a) - true) ** 2)) < 2e-6 * np.std(true)


# depthwise ones of full vectors, ones in groups, and ones of few channels
KERNEL_SHAPES = [
    dict(c=16, features=16, groups=16), dict(n=17, h=2, w=2, c=80, features=80, groups=80),
    dict(n=1, h=5, w=67, c=32, features=32, groups=8), dict(n=17, h=7, w=3, c=64, features=64, groups=4),
    dict(n=3, h=12, w=12, c=96, features=96, groups=3), dict(n=21, c=1, features=6, size=5),
    dict(n=9, h=9, w=17, c=7, features=15, size=4), dict(n=37, h=5, w=6, c=8, features=16, size=2),
    *(pytest.param(shape, marks=slow) for shape in (
        dict(n=3, h=9, w=5, c=80, features=80, groups=80), dict(n=17, h=2, w=2, c=48, features=48, groups=48),
        dict(n=1, h=1, w=7, c=128, features=128, groups=128), dict(n=2, h=8, w=9, c=64, features=64, groups=8),
        dict(n=1, h=1, w=1, c=32, features=32, groups=8), dict(n=1, h=1, w=9, c=32, features=32, groups=8),
        dict(n=3, h=33, w=12, c=96, features=96, groups=3), dict(n=16, c=3, features=5),
        dict(n=8, h=3, w=3, c=2, features=1, size=1)))]


@needs_onednn
@pytest.mark.parametrize('shape', KERNEL_SHAPES, ids=str)
def test_depthwise_convolutions_and_those_in_groups_and_of_few_channels_are_exact(shape):
    groups, size = shape.get('groups', 1), shape.get('size', 3)
    x, kernel = arrays(**shape)
    windows = [dict(padding=((top, size - 1 - top), (size - 1 - left, left)), stride=stride)
               for top, left in {(size // 2, size // 2), (0, size - 1)} for stride in (1, 2)]
    windows += [dict(padding=((size - 1,) * 2,) * 2)] + ([dict(padding='VALID')] if min(x.shape[1:3]) >= size else [])

    @functools.partial(jax.jit, compiler_options=FAST_COMPILATION)
    def run(x, kernel):
        return [[value_and_gradients(functools.partial(conv, implementation=i, groups=groups, **window), x, kernel)
                 for i in ('native', 'onednn', 'xla')] for window in windows]

    for window, (actual, direct, expected) in zip(windows, run(x, kernel), strict=True):
        assert_close(actual, expected)
        if KERNELS_ARE_USED and window.get('stride', 1) == 1 and x.size > 100:
            assert any(differ(actual, direct))
        if KERNELS_ARE_USED and 1 < groups < x.shape[-1] and len(x) > 1:
            # all but input gradients at stride 2; of a single image the same sums may come in the same order
            assert differ(actual, direct) == [True, window.get('stride', 1) == 1, True]


@pytest.mark.parametrize('implementation', BOTH)
@pytest.mark.parametrize(('h', 'w', 'size', 'stride'), [
    (1, 1, 3, 1), (7, 4, 4, 4), (11, 6, 6, 5), (5, 5, 1, 2),
    *(pytest.param(*case, marks=slow) for case in ((1, 1, 1, 1), (2, 5, 3, 2), (3, 3, 3, 3)))])
def test_the_smallest_and_uneven_sizes(h, w, size, stride, implementation):
    x, kernel = arrays(n=1, h=h, w=w, size=size)
    assert_close(*jax.jit(lambda x, kernel: [value_and_gradients(lambda *a, i=i: conv(*a, i, stride), x, kernel)
                                             for i in (implementation, 'xla')])(x, kernel))


@needs_onednn
@pytest.mark.parametrize(('shape', 'window'), [
    (dict(h=16, w=16, c=32, features=32), {}), (dict(h=15, w=17, c=64, features=64, groups=2), {}),
    (dict(h=9, w=8, c=3, features=16), {}),
    # two columns of the kernel see only padding; oneDNN leaves their gradients to what its memory held before
    (dict(h=9, w=1, c=32, features=32), dict(stride=2, padding=((0, 0), (1, 1))))], ids=str)
def test_bfloat16_is_as_exact_as_its_operands(shape, window):
    if not native.available(jnp.bfloat16):
        pytest.skip('this CPU has no bfloat16')
    x, kernel = arrays(n=16, **shape)
    groups = shape.get('groups', 1)
    low = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    jax.block_until_ready(conv(*(jnp.full(s, jnp.nan, jnp.bfloat16) for s in ((1, 8, 8, 256), (3, 3, 256, 256))), 'onednn'))
    high = jax.tree.map(lambda a: a.astype(jnp.float32), low)

    @jax.jit
    def run():
        results = [value_and_gradients(lambda *a, i=i: conv(*a, i, groups=groups, **window), *low)
                   for i in ('native', 'onednn', 'xla')]
        y, vjp = jax.vjp(lambda *a: conv(*a, 'xla', groups=groups, **window), *high)
        return results, (y, *vjp(cotangent(results[0][0]).astype(jnp.float32)))
    (by_kernels, by_onednn, by_xla), exact = run()
    for actual in (by_kernels, by_onednn):
        for a, b, c in zip(actual, exact, by_xla, strict=True):
            assert a.dtype == jnp.bfloat16
            error = np.abs(a.astype(np.float32) - b)
            # the result is rounded once, from a sum in float32
            np.testing.assert_array_less(error, 2 ** -8 * np.abs(b) + 2e-5 * np.abs(b).max())
            assert error.max() < 1.1 * np.abs(c.astype(np.float32) - b).max()
    if KERNELS_ARE_USED and shape['c'] >= 64:
        assert any(differ(by_kernels, by_onednn))


@needs_onednn
def test_gradients_of_bfloat16_gradients_are_those_of_xla():
    low = [a.astype(jnp.bfloat16) for a in arrays(n=16, h=16, w=16, c=32, features=32)]

    def penalty(implementation, x, kernel):
        _, vjp = jax.vjp(lambda *a: conv(*a, implementation), x, kernel)
        return sum((g.astype(jnp.float32) ** 2).mean() for g in vjp(cotangent(x)))
    second = [jax.jit(jax.grad(functools.partial(penalty, i), (0, 1)))(*low) for i in ('native', 'xla')]
    for a, b in zip(*second, strict=True):
        a, b = (np.asarray(g, np.float32) for g in (a, b))
        assert np.linalg.norm(a - b) < 0.01 * np.linalg.norm(b)


@needs_onednn
def test_float16_is_computed_in_float32():
    x, kernel = (a.astype(jnp.float16) for a in arrays(c=4))
    actual, expected = (jax.jit(functools.partial(value_and_gradients, lambda *a, i=i: conv(*a, i)))(
        *(a.astype(dtype) for a in (x, kernel))) for i, dtype in (('auto', jnp.float16), ('xla', jnp.float32)))
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == jnp.float16
        assert np.abs(a.astype(np.float32) - b).max() < 2 ** -10 * np.abs(b).max()


def test_what_it_is_not_made_for_is_left_to_xla():
    x, kernel = arrays()
    for args in ((x.astype(jnp.float16), kernel.astype(jnp.float16)),):
        assert conv(*args, 'auto').dtype == args[0].dtype
    sequence = conv_general_dilated(x[:, 0], kernel[0], (1,), 'SAME', dimension_numbers=('NWC', 'WIO', 'NWC'))
    assert sequence.shape == (2, 10, 16)
    other = conv_general_dilated(x, kernel.transpose(3, 2, 0, 1), (1, 1), 'SAME', dimension_numbers=('NHWC', 'OIHW', 'NHWC'))
    assert_close(other, conv(x, kernel, 'xla'))
    spread = conv_general_dilated(x, kernel, (1, 1), ((0, 0), (0, 0)), lhs_dilation=(2, 2), dimension_numbers=NHWC)
    assert spread.shape == (2, 19, 17, 16)
    cropped = conv_general_dilated(x, kernel, (1, 1), ((-1, 0), (0, 0)), dimension_numbers=NHWC)
    assert cropped.shape == (2, 8, 8, 16)
    assert conv(x[:0], kernel, 'auto').shape == (0, 11, 10, 16)


@pytest.mark.parametrize('kernel_shape', [(3, 3, 7, 16), (3, 3, 8)])
def test_shapes_that_do_not_fit_are_refused_as_by_xla(kernel_shape):
    with pytest.raises((TypeError, ValueError)):
        conv(arrays()[0], jnp.zeros(kernel_shape), 'auto')


def test_the_old_name_of_the_native_kernels_names_the_new_one():
    for raising in (lambda: conv(*arrays(), 'own'), Network(conv_implementation='own').check):
        with pytest.raises(UserError, match="implementation: 'own' is now 'native'"):
            raising()


def test_an_unknown_implementation_is_an_error_with_the_nearest():
    with pytest.raises(UserError, match=r"unknown convolution implementation 'onednm'; nearest: onednn"):
        conv(*arrays(), 'onednm')


# transformations


@pytest.mark.parametrize('implementation', BOTH)
@pytest.mark.parametrize(('mapped', 'shapes'), [((0, None), 'x'), ((None, 0), 'kernel'), ((0, 0), 'both'), ((1, None), 'x')])
def test_vmap_of_the_value_and_of_the_gradients(mapped, shapes, implementation):
    x, kernel = arrays(n=6)
    x = x.reshape(2, 3, *x.shape[1:]) if mapped[0] == 1 else x.reshape(3, 2, *x.shape[1:]) if mapped[0] == 0 else x
    kernel = jnp.stack([kernel, 2 * kernel, kernel ** 2]) if mapped[1] == 0 else kernel

    @jax.jit
    def run(x, kernel):
        results = []
        for i in (implementation, 'xla'):
            def mapped_conv(x, k, i=i, stride=1):
                return jax.vmap(lambda x, k: conv(x, k, i, stride), mapped)(x, k)
            inside = jax.vmap(lambda x, k, i=i: value_and_gradients(lambda *a: conv(*a, i, 2), x, k), mapped)(x, kernel)
            results.append((inside, jax.grad(lambda k, f=mapped_conv: (f(x, k) ** 2).sum())(kernel)))
        return results
    assert_close(*run(x, kernel), 5e-6)


@pytest.mark.parametrize('implementation', BOTH)
def test_gradients_of_gradients(implementation):
    x, kernel = arrays(groups=2)

    def penalty(x, kernel, i):  # of the input's gradient, as for WGAN-GP or saliency; differentiated by both
        def value(x, kernel):
            return jnp.tanh(conv(x, kernel, i, stride=2, groups=2)).sum()
        by_x, by_kernel = jax.grad(value, (0, 1))(x, kernel)
        return (by_x ** 2).sum() + (by_kernel ** 3).sum()
    assert_close(*jax.jit(lambda x, kernel: [jax.grad(lambda *a, i=i: penalty(*a, i), (0, 1))(x, kernel)
                                             for i in (implementation, 'xla')])(x, kernel), 2e-5)


@pytest.mark.parametrize('implementation', BOTH)
def test_forward_mode_says_that_it_is_not_to_be_had(implementation):
    x, kernel = arrays()
    with pytest.raises(TypeError, match='forward-mode'):
        jax.jvp(lambda x: conv(x, kernel, implementation), (x,), (x,))
    jax.jvp(lambda x: conv(x, kernel, 'xla'), (x,), (x,))


@pytest.mark.parametrize('implementation', BOTH)
def test_inside_loops_conditions_rematerialisation_and_donated_buffers(implementation):
    x, kernel = arrays(c=8, features=8)

    def body(x, _):
        return lax.cond(x.sum() > 0, lambda x: jnp.tanh(conv(x, kernel, implementation)), lambda x: x * 0.5, x), None

    looped, _ = jax.jit(lambda x: lax.scan(body, x, length=3))(x)
    plain = x
    for _ in range(3):
        plain, _ = body(plain, None)
    assert_close(looped, plain)
    rematerialised = jax.checkpoint(lambda x: conv(x, kernel, implementation))
    assert_close(*jax.jit(lambda x: (jax.grad(lambda x: rematerialised(x).sum())(x),
                                     jax.grad(lambda x: conv(x, kernel, 'xla').sum())(x)))(x))
    donated = jax.jit(lambda x: conv(x, kernel, implementation), donate_argnums=0)
    assert_close(donated(x + 0), conv(x, kernel, 'xla'))


# oneDNN: devices, threads, memory


def count(function):
    before = native.counts()
    result = jax.block_until_ready(function())
    return result, {name: value - before[name] for name, value in native.counts().items()}


@needs_onednn
def test_each_of_eight_devices_does_an_eighth():
    x, kernel = arrays(n=16, c=8, features=8)
    mesh = Mesh(np.array(jax.devices()), ('batch',))
    rows, replicated = NamedSharding(mesh, P('batch')), NamedSharding(mesh, P())
    assert len(jax.devices()) == 8
    run = jax.jit(lambda x, k: value_and_gradients(lambda *a: conv(*a, 'onednn', groups=2), x, k),
                  in_shardings=(rows, replicated), out_shardings=(rows, rows, replicated))
    kernel = kernel[:, :, :4]
    operands = jax.device_put(x, rows), jax.device_put(kernel, replicated)
    actual, counts = count(lambda: run(*operands))
    assert (counts['calls'], counts['images']) == (3 * 8, 3 * 16)
    assert_close(actual, jax.jit(functools.partial(value_and_gradients, lambda *a: conv(*a, 'xla', groups=2)))(x, kernel))


def cache_with_library(folder):
    """Return a cache folder that holds the compiled library."""
    (folder / 'onednn').mkdir()
    shutil.copy(COMPILED, folder / 'onednn')
    return folder


def run_python(code, cache, *arguments, **variables):
    """Return the lines that a fresh process prints, where `cache` is the cache folder."""
    done = subprocess.run([sys.executable, '-c', code, *arguments], capture_output=True, text=True,
                          env={**os.environ, 'JAXCNN_CACHE': str(cache), **variables})
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@needs_onednn
def test_the_compilation_cache_tells_windows_of_the_same_shapes_apart(tmp_path):
    """The second process uses the programs that the first has compiled."""
    code = '''
import sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxcnn.ops.conv import conv_general_dilated
from jaxcnn.ops.geometry import NHWC
jax.config.update('jax_compilation_cache_dir', sys.argv[1])
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
rows = NamedSharding(Mesh(np.array(jax.devices()), ('batch',)), P('batch'))
rng = np.random.default_rng(0)
x, k = rng.normal(size=(4, 9, 9, 2)).astype(np.float32), rng.normal(size=(3, 3, 2, 2)).astype(np.float32)
for d in (1, 2):
    run = jax.jit(lambda x, i: conv_general_dilated(x, k, (1, 1), 'SAME', rhs_dilation=(d, d), dimension_numbers=NHWC,
                                                    implementation=i), static_argnums=1, in_shardings=rows)
    print(float(abs(run(x, 'onednn') - run(x, 'xla')).max()) < 1e-4)
'''
    cache = cache_with_library(tmp_path)
    for _ in range(2):
        assert run_python(code, cache, str(tmp_path / 'xla'),
                          XLA_FLAGS='--xla_force_host_platform_device_count=2') == ['True'] * 2
    assert list((tmp_path / 'xla').iterdir())


@needs_onednn
def test_pmap_and_shard_map_do_as_much():
    x, kernel = arrays(n=16)
    expected = jax.jit(functools.partial(value_and_gradients, lambda *a: conv(*a, 'xla')))(x, kernel)
    parts, counts = count(lambda: jax.pmap(lambda x: value_and_gradients(lambda *a: conv(*a, 'onednn'), x, kernel))(
        x.reshape(8, 2, *x.shape[1:])))
    assert (counts['calls'], counts['images']) == (3 * 8, 3 * 16)
    assert_close((parts[0].reshape(16, *parts[0].shape[2:]), parts[1].reshape(x.shape), parts[2].sum(0)), expected, 5e-6)
    mesh = Mesh(np.array(jax.devices()), ('batch',))
    mapped = jax.jit(jax.shard_map(lambda x: conv(x, kernel, 'onednn'), mesh=mesh, in_specs=P('batch'),
                                   out_specs=P('batch'), check_vma=False))
    actual, counts = count(lambda: mapped(x))
    assert counts['images'] == 16
    assert_close(actual, expected[0])


@needs_onednn
def test_calls_from_several_threads_at_once():
    run = jax.jit(lambda x, kernel: value_and_gradients(lambda *a: conv(*a, 'onednn'), x, kernel))

    def work(seed):
        x, kernel = arrays(h=8 + seed % 5, c=4 + 4 * (seed % 3), seed=seed)
        return run(x, kernel), run(x, kernel)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(12)))
    for seed, (first, second) in enumerate(results):
        assert not any(differ(first, second))
        if seed < 3:
            x, kernel = arrays(h=8 + seed % 5, c=4 + 4 * (seed % 3), seed=seed)
            expected = jax.jit(functools.partial(value_and_gradients, lambda *a: conv(*a, 'xla')))(x, kernel)
            assert_close(first, expected)


BITS = '''
import hashlib, os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:int(sys.argv[1])])
import jax, jax.numpy as jnp, numpy as np
from jaxcnn.ops.batch_norm import moments, normalise
from jaxcnn.ops.conv import conv_general_dilated
from jaxcnn.ops.geometry import NHWC

def show(f, *operands):
    y, vjp = jax.vjp(jax.jit(f), *operands)
    print(hashlib.sha256(b''.join(np.asarray(a).tobytes() for a in (y, *vjp(y)))).hexdigest())

for c, features, groups in ((64, 48, 1), (64, 64, 64), (64, 64, 8), (6, 12, 1)):
    operands = [jnp.sin(jnp.arange(np.prod(s))).reshape(s) for s in ((19, 19, 17, c), (3, 3, c // groups, features))]
    for implementation in ('native', 'onednn') if sys.argv[1] == '1' else ('native',):
        show(lambda *a: conv_general_dilated(*a, (1, 1), 'SAME', dimension_numbers=NHWC, feature_group_count=groups,
                                             implementation=implementation), *operands)
x = jnp.sin(jnp.arange(19 * 19 * 17 * 37)).reshape(19, 19, 17, 37)
show(lambda x: normalise(x, *moments(x, True), jnp.ones(37), True, True), x)
'''


@needs_onednn
def test_the_bits_do_not_depend_on_the_number_of_threads(tmp_path):
    cache = cache_with_library(tmp_path)
    one, two = (run_python(BITS, cache, cores, OMP_NUM_THREADS=cores) for cores in ('1', '2'))
    native_results, onednn_results = [*one[:8:2], one[8]], one[1:8:2]
    assert native_results == two
    if KERNELS_ARE_USED:
        assert all(a != b for a, b in zip(native_results, onednn_results, strict=False))


@needs_onednn
@pytest.mark.parametrize('implementation', ['native', 'onednn'])
def test_the_same_bits_each_time(implementation):
    x, kernel = arrays(n=8, h=16, w=16, c=32, features=32)
    run = jax.jit(lambda: value_and_gradients(lambda *a: conv(*a, implementation), x, kernel))
    first = [np.asarray(a).tobytes() for a in run()]
    assert all([np.asarray(a).tobytes() for a in run()] == first for _ in range(5))


@needs_onednn
def test_compiled_primitives_are_few_however_many_shapes_come():
    limit = ctypes.c_int64.in_dll(native.library(), 'JaxcnnConvLimit')
    before, limit.value = limit.value, 6
    try:
        for h, _ in itertools.product(range(5, 15), range(2)):
            x, kernel = arrays(n=1, h=h)
            assert conv(x, kernel, 'onednn').shape == (1, h, 10, 16)
        assert native.counts()['primitives'] <= 6
    finally:
        limit.value = before


def resident_bytes():
    """Return the resident memory of this process."""
    with open('/proc/self/statm') as f:
        return int(f.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')


@needs_onednn
@pytest.mark.parametrize('rounds', [31, pytest.param(93, marks=slow)])  # of 36 shapes and 3 calls
def test_calls_with_changing_shapes_hold_no_more_memory_after_a_while(rounds):
    limit = ctypes.c_int64.in_dll(native.library(), 'JaxcnnConvLimit')
    dnnl = ctypes.CDLL(native.installed_file(native.LIBRARY, 'libdnnl.so.3'))
    before, limit.value = limit.value, 4
    dnnl.dnnl_set_primitive_cache_capacity(0)  # every call makes its primitive anew
    try:
        run = jax.jit(lambda x, kernel: value_and_gradients(lambda *a: conv(*a, 'onednn'), x, kernel))
        shapes = [arrays(n=1, h=h, w=w) for h, w in itertools.product(range(5, 11), repeat=2)]
        resident = []
        for _ in range(rounds):
            for operands in shapes:
                jax.block_until_ready(run(*operands))
            resident.append(resident_bytes())
    finally:
        limit.value = before
        dnnl.dnnl_set_primitive_cache_capacity(1024)
    third = rounds // 3
    assert max(resident[-third:]) - max(resident[third:2 * third]) < 512 << 10


# where oneDNN is missing: a fresh process each

FRESH = '''
import logging, sys
logging.basicConfig(level=logging.INFO, format='%(message)s', stream=sys.stdout)
logging.getLogger('jax').setLevel(logging.WARNING)
import jax, jax.numpy as jnp
{before}
from jaxcnn.ops.conv import conv_general_dilated
from jaxcnn.ops.geometry import NHWC
from jaxcnn.ops import native
x = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))
for _ in range(2):
    print(conv_general_dilated(*x, (1, 1), 'SAME', dimension_numbers=NHWC)[0, 1, 1])
print('oneDNN' if native.available(jnp.float32) else 'without')
'''


COMPILING = 'compiling the CPU kernels for this machine (only once)'


@needs_onednn
def test_the_library_is_compiled_once_and_a_damaged_one_again(tmp_path, monkeypatch, caplog):
    compiler = tmp_path / 'compiler'  # "compiles" a text
    compiler.write_text('#!/bin/sh\nfor output; do :; done\nhead -c 20000 /dev/zero > "$output"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv('CXX', str(compiler))
    monkeypatch.setenv('JAXCNN_CACHE', str(tmp_path))
    with caplog.at_level(logging.INFO, 'jaxcnn'):
        path = native.build()
        assert caplog.messages == [COMPILING]
        content = pathlib.Path(path).read_bytes()
        assert native.build() == path
        assert len(caplog.messages) == 1
        for count, damaged in enumerate((content[:9999] + b'?' + content[10000:], b''), 2):
            pathlib.Path(path).write_bytes(damaged)
            assert native.build() == path
            assert caplog.messages == [COMPILING] * count
            assert pathlib.Path(path).read_bytes() == content
    assert os.listdir(tmp_path / 'onednn') == [os.path.basename(path)]


@needs_onednn
def test_a_fresh_process_loads_the_compiled_library_silently(tmp_path):
    """Where oneDNN is kept from the processor's bfloat16 instructions, such convolutions are computed in float32."""
    in_bfloat16 = '''
x = [a.astype(jnp.bfloat16) for a in x]
print(conv_general_dilated(*x, (1, 1), 'SAME', dimension_numbers=NHWC)[0, 1, 1])
print(native.available(jnp.bfloat16))
'''
    assert run_python(FRESH.format(before='') + in_bfloat16, cache_with_library(tmp_path), ONEDNN_MAX_CPU_ISA='AVX2') == [
        '[18. 18.]', '[18. 18.]', 'oneDNN', '[18 18]', 'False']


@slow
@needs_onednn
def test_a_fresh_process_compiles_the_library_once_and_a_damaged_one_again(tmp_path):
    compiler = tmp_path / 'compiler'
    compiler.write_text('#!/bin/sh\nexec g++ "$@" -O0\n')  # in less time
    compiler.chmod(0o755)
    results = ['[18. 18.]', '[18. 18.]', 'oneDNN']
    assert run_python(FRESH.format(before=''), tmp_path, CXX=str(compiler)) == [COMPILING, *results]
    assert run_python(FRESH.format(before=''), tmp_path, CXX=str(compiler)) == results
    library, = (tmp_path / 'onednn').iterdir()
    content = library.read_bytes()
    for damaged in (content[:9999] + b'?' + content[10000:], b''):
        library.write_bytes(damaged)
        assert run_python(FRESH.format(before=''), tmp_path, CXX=str(compiler)) == [COMPILING, *results]
    assert [p.name for p in (tmp_path / 'onednn').iterdir()] == [library.name]


@pytest.mark.parametrize(('attributes', 'variables', 'reason'), [
    ({'LIBRARY': 'no-such-wheel'}, {}, 'no-such-wheel is not installed'),
    pytest.param({}, {'PATH': '', 'CXX': ''}, r'no C\+\+ compiler \(g\+\+\) was found', marks=needs_onednn),
    pytest.param({}, {'CXX': 'false'}, 'false could not compile the CPU kernels', marks=needs_onednn),
    pytest.param({}, {'CXX': '/no/such/compiler'}, '/no/such/compiler', marks=needs_onednn)],
    ids=['wheels', 'compiler', 'compiling', 'compiler path'])
def test_a_library_that_cannot_be_built_says_why(tmp_path, monkeypatch, attributes, variables, reason):
    for name, value in attributes.items():
        monkeypatch.setattr(native, name, value)
    for name, value in {'JAXCNN_CACHE': str(tmp_path), **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(native.UnavailableError, match=reason):
        native.build()


@pytest.mark.parametrize(('before', 'reason'), [
    ("import platform; platform.system = lambda: 'Darwin'", 'it needs Linux on x86_64, and this is Darwin'),
    pytest.param("from jaxcnn.ops import native; native.LIBRARY = 'no-such-wheel'", 'no-such-wheel is not installed',
                 marks=slow)], ids=['platform', 'wheels'])
def test_without_the_library_one_line_says_so_and_plain_jax_does_the_work(tmp_path, before, reason):
    message, *results = run_python(FRESH.format(before=before), tmp_path)
    assert message.startswith('convolutions on the CPU run without oneDNN')
    assert reason in message
    assert results == ['[18. 18.]', '[18. 18.]', 'without']


def test_asked_for_by_name_and_missing_is_an_error(monkeypatch):
    monkeypatch.setattr(native, 'library', lambda: None)
    with pytest.raises(UserError, match=r'jaxcnn\[cpu\]'):
        conv(*arrays(), 'onednn')
    assert not native.available(jnp.float32)
    assert conv(*arrays(), 'auto').shape == (2, 11, 10, 16)


def test_nothing_is_said_where_it_is_there(caplog):
    with caplog.at_level(logging.INFO, 'jaxcnn'):
        conv(*arrays(), 'auto')
    assert not caplog.records
