"""Cross-entropy against scikit-learn, SciPy and NumPy in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss

from jaxcnn.losses import cross_entropy

CLASSES = 7


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return rng.normal(scale=3, size=(12, CLASSES)).astype(np.float32), rng.integers(0, CLASSES, 12)


def by_definition(logits, targets):
    """-sum of target times log-probability, in float64."""
    return -(targets * log_softmax(np.float64(logits), axis=-1)).sum(-1)


def smoothed(labels, smoothing):
    """Szegedy et al. 2016, section 7: (1 - e) of the label, e over the number of classes for each."""
    return (1 - smoothing) * np.eye(CLASSES)[labels] + smoothing / CLASSES


def test_the_mean_is_scikit_learns_log_loss(batch):
    logits, labels = batch
    probabilities = softmax(np.float64(logits), axis=-1)
    expected = log_loss(labels, probabilities, labels=range(CLASSES))
    np.testing.assert_allclose(cross_entropy(logits, labels).mean(), expected, rtol=1e-6)


@pytest.mark.parametrize('smoothing', [0.0, 0.1, 0.9])
def test_smoothing_spreads_over_all_classes(batch, smoothing):
    logits, labels = batch
    loss = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing)
    assert loss.shape == (12,)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, by_definition(logits, smoothed(labels, smoothing)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('smoothing', [0.0, 0.2])
def test_probabilities_may_stand_for_labels(batch, smoothing):
    logits, labels = batch
    targets = np.random.default_rng(1).dirichlet(np.ones(CLASSES), 12)
    expected = by_definition(logits, (1 - smoothing) * targets + smoothing / CLASSES)
    np.testing.assert_allclose(cross_entropy(logits, jnp.float32(targets), smoothing), expected, rtol=1e-5)
    one_hot = jnp.float32(np.eye(CLASSES)[labels])
    np.testing.assert_allclose(cross_entropy(logits, one_hot, smoothing), cross_entropy(logits, labels, smoothing),
                               rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_large_logits_neither_overflow_nor_lose_the_loss(smoothing):
    logits = np.array([[1e4, 0, -1e4], [1e4, 0, -1e4], [-1e30, 0, 1], [88, 89, 90]], np.float32)
    labels = np.array([0, 2, 2, 0])
    targets = (1 - smoothing) * np.eye(3)[labels] + smoothing / 3
    loss = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing)
    np.testing.assert_allclose(loss, by_definition(logits, targets), rtol=1e-5, atol=1e-5)


def test_a_shift_of_all_logits_changes_nothing(batch):
    logits, labels = batch
    np.testing.assert_allclose(cross_entropy(logits + 100, labels, 0.1), cross_entropy(logits, labels, 0.1), rtol=1e-4)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_bfloat16_logits_are_reduced_in_float32(batch, smoothing):
    logits, labels = batch
    half = jnp.asarray(logits, jnp.bfloat16)
    loss = cross_entropy(half, jnp.asarray(labels), smoothing)
    assert loss.dtype == jnp.float32
    # the rounded logits are taken exactly: far closer than bfloat16's 3 digits
    np.testing.assert_allclose(loss, by_definition(np.asarray(half, np.float64), smoothed(labels, smoothing)),
                               rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_the_gradient_is_that_of_finite_differences_of_the_definition(batch, smoothing, soft):
    logits, labels = batch
    targets = np.random.default_rng(1).dirichlet(np.ones(CLASSES), 12) if soft else np.eye(CLASSES)[labels]
    given = jnp.float32(targets) if soft else jnp.asarray(labels)
    gradient = jax.grad(lambda x: cross_entropy(x, given, smoothing).sum())(jnp.asarray(logits))
    smooth = (1 - smoothing) * targets + smoothing / CLASSES
    numeric, h = np.zeros(logits.shape), 1e-5
    for i in range(CLASSES):
        step = h * np.eye(CLASSES)[i]
        numeric[:, i] = (by_definition(np.float64(logits) + step, smooth)
                         - by_definition(np.float64(logits) - step, smooth)) / (2 * h)
    np.testing.assert_allclose(gradient, numeric, atol=1e-6)


class VariantsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_jit_changes_nothing(self):
        rng = np.random.default_rng(2)
        logits, labels = rng.normal(size=(5, CLASSES)).astype(np.float32), rng.integers(0, CLASSES, 5)
        for smoothing in (0.0, 0.1):
            loss = self.variant(lambda x, y, s=smoothing: cross_entropy(x, y, s))(jnp.asarray(logits), jnp.asarray(labels))
            np.testing.assert_allclose(loss, by_definition(logits, smoothed(labels, smoothing)), rtol=1e-5)
