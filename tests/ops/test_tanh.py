"""The rational approximation of tanh against NumPy in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.ops.tanh import tanh

VALUES = np.concatenate([np.linspace(-12, 12, 100001), np.logspace(-35, 3, 2000), -np.logspace(-35, 3, 2000), [0, np.inf]])


@pytest.mark.parametrize('compute', [tanh, jax.jit(tanh), jax.jit(lambda x: tanh(x + 0)), jax.vmap(tanh)])
def test_is_exact_to_six_units_of_the_last_place(compute):
    x = VALUES.astype(np.float32)
    exact = np.tanh(x.astype(np.float64))
    actual = np.asarray(compute(x), np.float64)
    assert (np.abs(actual - exact) <= 6 * np.spacing(np.abs(exact).astype(np.float32))).all()
    assert np.abs(actual).max() <= 1


def test_lets_nan_through_and_takes_numbers():
    assert np.isnan(tanh(jnp.float32(np.nan)))
    np.testing.assert_allclose((tanh(0.5), jax.grad(tanh)(0.5)), (np.tanh(0.5), 1 - np.tanh(0.5) ** 2), rtol=1e-6)


def test_on_a_cpu_it_is_not_xlas():
    assert 'stablehlo.tanh' in jax.jit(jnp.tanh).lower(VALUES).as_text()
    assert 'stablehlo.tanh' not in jax.jit(tanh).lower(VALUES.astype(np.float32)).as_text()


def test_derivatives():
    x = np.linspace(-4, 4, 101).astype(np.float32)
    y = np.tanh(x.astype(np.float64))
    chex.assert_trees_all_close(jax.vmap(jax.grad(tanh))(x), (1 - y ** 2).astype(np.float32), atol=1e-6)
    chex.assert_trees_all_close(jax.vmap(jax.grad(jax.grad(tanh)))(x), (-2 * y * (1 - y ** 2)).astype(np.float32), atol=2e-6)


def test_of_bfloat16_is_the_nearest_but_one():
    x = VALUES.astype(jnp.bfloat16)
    actual = tanh(x)
    assert actual.dtype == jnp.bfloat16
    chex.assert_trees_all_close(actual.astype(np.float32), np.tanh(x.astype(np.float32)), rtol=2 ** -7)
