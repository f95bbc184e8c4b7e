"""Pooling against flax and plain NumPy, with its gradients."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxcnn.ops.pool import as_reduce_window, avg_pool, max_pool

SHAPES = [(2, 7, 8, 3), (1, 3, 3, 4)]


def image(shape, dtype=np.float32):
    """Return values that are all different, so that there are no ties for the maximum."""
    return np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape).astype(dtype) / 7


def by_hand(x, size, stride, reduce):
    n, h, w, c = x.shape
    rows, columns = (h - size) // stride + 1, (w - size) // stride + 1
    out = np.zeros((n, rows, columns, c))
    for i, j in np.ndindex(rows, columns):
        out[:, i, j] = reduce(x[:, i * stride:i * stride + size, j * stride:j * stride + size], axis=(1, 2))
    return out


@pytest.mark.parametrize('size', [1, 2, 3])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_windows_side_by_side_are_those_of_flax_and_of_numpy(shape, size):
    x, window = image(shape), (size, size)
    actual, expected = jax.jit(lambda x: ((max_pool(x, size), avg_pool(x, size)),
                                          (nn.max_pool(x, window, window), nn.avg_pool(x, window, window))))(x)
    chex.assert_trees_all_close(actual, expected, rtol=1e-6)
    for pooled, reduce in zip(actual, (np.max, np.mean), strict=True):
        np.testing.assert_allclose(pooled, by_hand(x, size, size, reduce), rtol=1e-6)


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_windows_of_any_stride(shape):
    x, windows = image(shape), [(3, 2), (2, 1), (2, 3), (3, 3)]
    results = jax.jit(lambda x: [max_pool(x, *window) for window in windows])(x)
    for pooled, window in zip(results, windows, strict=True):
        np.testing.assert_allclose(pooled, by_hand(x, *window, np.max), rtol=1e-6)


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_windows_that_overlap_are_those_of_flax_with_their_gradients(shape):
    x = jnp.asarray(image(shape)) - 9  # below zero, too: padding is never the maximum
    windows = [(3, 2, 1), (3, 2, 0), (2, 1, 0), (5, 3, 2)]

    def flax_pool(x, size, stride, padding):
        return nn.max_pool(x, (size, size), (stride, stride), ((padding, padding),) * 2)

    def value_and_gradient(pool, x, window):
        y, vjp = jax.vjp(lambda x: pool(x, *window), x)
        return y, vjp(jnp.asarray(image(y.shape)))[0]

    @jax.jit
    def run(x):
        return [[value_and_gradient(pool, x, window) for pool in (max_pool, flax_pool)] for window in windows]
    for (y, gradient), (expected, expected_gradient) in run(x):
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-6)


@pytest.mark.parametrize('size', [2, 3])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_gradients_are_those_of_flax_where_nothing_ties(shape, size):
    x, window = jnp.asarray(image(shape)), (size, size)
    weights = jnp.asarray(image((shape[0], shape[1] // size, shape[2] // size, shape[3])))

    @jax.jit
    def gradients(x):
        return [jax.grad(lambda x, f=f: jnp.sum(weights * f(x)))(x) for f in (
            lambda x: max_pool(x, size), lambda x: nn.max_pool(x, window, window),
            lambda x: avg_pool(x, size), lambda x: nn.avg_pool(x, window, window))]

    by_max, by_flax_max, by_avg, by_flax_avg = gradients(x)
    np.testing.assert_allclose(by_max, by_flax_max, rtol=1e-5)
    np.testing.assert_allclose(by_avg, by_flax_avg, rtol=1e-5)


@pytest.mark.parametrize(('pool', 'arguments'), [(max_pool, (2,)), (max_pool, (3, 2)), (avg_pool, (2,)), (avg_pool, (3,))],
                         ids=['max 2', 'max 3 by 2', 'avg 2', 'avg 3'])
def test_gradients_are_those_of_finite_differences(pool, arguments):
    with jax.enable_x64(True):
        check_grads(jax.jit(lambda x: pool(x, *arguments)), (jnp.asarray(image((1, 5, 7, 2), np.float64)),), order=1,
                    modes=['rev'], eps=1e-5, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize('size', [2, 3])
def test_what_ties_shares_the_gradient_of_its_maximum(size):
    """Only values that tie get a part of the gradient, and the parts add up to it."""
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, (8, 6, 6, 4)), jnp.float32)
    weights = 1 + jnp.asarray(image((8, 6 // size, 6 // size, 4)))

    @jax.jit
    def run(x):
        gradient = jax.grad(lambda x: jnp.sum(weights * max_pool(x, size)))(x)
        return gradient, max_pool(x, size), avg_pool(gradient, size) * size ** 2
    gradient, maximum, sums = map(np.asarray, run(x))
    highest = np.repeat(np.repeat(maximum, size, 1), size, 2)
    assert np.all((gradient != 0) == (highest == x))
    np.testing.assert_allclose(sums, weights, rtol=1e-5)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32, jnp.int32])
def test_the_maximum_keeps_the_type_of_its_input(dtype):
    assert max_pool(jnp.ones((1, 4, 4, 1), dtype), 2).dtype == dtype


def test_the_mean_of_bfloat16_is_bfloat16():
    x = jnp.asarray(image((1, 4, 4, 1)), jnp.bfloat16)
    assert avg_pool(x, 2).dtype == jnp.bfloat16
    expected = by_hand(np.asarray(x, np.float32), 2, 2, np.mean)
    np.testing.assert_allclose(np.asarray(avg_pool(x, 2), np.float32), expected, rtol=2 ** -8)


@pytest.mark.torch
@pytest.mark.parametrize(('size', 'stride', 'padding'), [
    (2, 2, 0), (2, 2, 1), (3, 2, 0), (3, 2, 1), (3, 1, 1), (5, 3, 2), (2, 3, 1)])
def test_padding_and_windows_over_the_edge_are_those_of_pytorch(size, stride, padding):
    torch = pytest.importorskip('torch')
    functional = torch.nn.functional
    images = [image((2, side, side + 1, 3)) for side in range(max(3, size), 9)]

    @jax.jit
    def pooled(images):
        return [[max_pool(x, size, stride, padding, ceil) for ceil in (False, True)]
                + [avg_pool(x, size, stride, padding, count, ceil) for ceil in (False, True) for count in (False, True)]
                for x in images]

    for x, results in zip(images, pooled(images), strict=True):
        x = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
        expected = [functional.max_pool2d(x, size, stride, padding, ceil_mode=ceil) for ceil in (False, True)]
        expected += [functional.avg_pool2d(x, size, stride, padding, ceil, count)
                     for ceil in (False, True) for count in (False, True)]
        for result, by_torch in zip(results, expected, strict=True):
            np.testing.assert_allclose(result, by_torch.numpy().transpose(0, 2, 3, 1), rtol=1e-5)


class VariantsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_jit_changes_nothing(self):
        x = image((2, 5, 7, 3))
        for pool, reduce in ((max_pool, np.max), (avg_pool, np.mean)):
            pooled = self.variant(lambda x, f=pool: f(x, 2))(jnp.asarray(x))
            np.testing.assert_allclose(pooled, by_hand(x, 2, 2, reduce), rtol=1e-6)


@pytest.mark.parametrize('window', [{}, {'stride': 1}, {'padding': 1, 'stride': 3, 'count_padding': False}])
def test_means_of_bfloat16_are_summed_in_float32(window):
    x = jnp.array([256.0, 1.0, 1.0, 1.0], jnp.bfloat16).reshape(1, 2, 2, 1)
    mean = jax.jit(lambda x: avg_pool(x, 3 if 'padding' in window else 2, **window))(x)
    assert mean.dtype == jnp.bfloat16
    assert abs(float(mean[0, 0, 0, 0]) - 64.75) <= 0.25  # half of the distance between neighbouring values


@pytest.mark.parametrize(('size', 'stride', 'padding', 'ceil'), [(2, 2, 0, False), (3, 2, 1, False), (3, 2, 0, True)])
def test_pooling_by_reduce_window_gives_the_same(size, stride, padding, ceil):
    x = jnp.asarray(image((2, 8, 7, 3)))

    def pool(x):
        return [max_pool(x, size, stride, padding, ceil), avg_pool(x, size, stride, padding, ceil=ceil),
                avg_pool(x, size, stride, padding, count_padding=False, ceil=ceil)]
    expected = pool(x)
    with as_reduce_window():
        chex.assert_trees_all_close(pool(x), expected, rtol=1e-6)
        text = str(jax.make_jaxpr(pool)(x))
    assert text.count('reduce_window_max') == 1
    assert text.count('reduce_window_sum') == 2
