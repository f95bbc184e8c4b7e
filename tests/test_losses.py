"""Cross-entropy against scikit-learn, SciPy and NumPy in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax
from sklearn.metrics import log_loss

from jaxcnn import config, losses
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


# the registry


def test_focal_is_its_definition_and_the_cross_entropy_where_gamma_is_0(batch):
    logits, labels = batch
    p = softmax(np.float64(logits), axis=-1)[np.arange(12), labels]
    np.testing.assert_allclose(losses.focal(logits, jnp.asarray(labels), gamma=2.0), -(1 - p) ** 2 * np.log(p), rtol=1e-4,
                               atol=1e-7)
    np.testing.assert_allclose(losses.focal(logits, jnp.asarray(labels), gamma=0.0), cross_entropy(logits, labels),
                               rtol=1e-5, atol=1e-6)


def test_the_gradient_of_focal_is_finite_where_a_class_is_certain():
    logits = jnp.array([[90.0, 0, 0], [90.0, 0, 0]])
    gradient = jax.grad(lambda x: losses.focal(x, jnp.array([0, 1]), gamma=0.5).sum())(logits)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize('softmax_first', [False, True])
def test_mse_is_the_squared_error_to_the_one_hot_target(batch, softmax_first):
    logits, labels = batch
    outputs = softmax(np.float64(logits), axis=-1) if softmax_first else np.float64(logits)
    expected = ((outputs - np.eye(CLASSES)[labels]) ** 2).sum(-1)
    np.testing.assert_allclose(losses.mse(logits, jnp.asarray(labels), softmax=softmax_first), expected, rtol=1e-5)


def test_poly1_adds_what_the_target_lacks_to_the_cross_entropy(batch):
    logits, labels = batch
    p = softmax(np.float64(logits), axis=-1)[np.arange(12), labels]
    np.testing.assert_allclose(losses.poly1(logits, jnp.asarray(labels), epsilon=2.0), -np.log(p) + 2 * (1 - p), rtol=1e-5,
                               atol=1e-6)


@pytest.mark.parametrize('fields', [{}, {'gamma': 2.0}, {'gamma': 2.0, 'alpha': 0.25}, {'label_smoothing': 0.2}])
def test_bce_is_its_definition(batch, fields):
    logits, labels = batch
    targets = (np.arange(12 * CLASSES).reshape(12, CLASSES) % 3 == 0).astype(float)
    p, smoothing, alpha = expit(np.float64(logits)), fields.get('label_smoothing', 0), fields.get('alpha')
    y = targets * (1 - smoothing) + smoothing / 2
    positive = -y * (1 - p) ** fields.get('gamma', 0) * np.log(p)
    negative = -(1 - y) * p ** fields.get('gamma', 0) * np.log1p(-p)
    expected = positive + negative if alpha is None else alpha * positive + (1 - alpha) * negative
    np.testing.assert_allclose(losses.bce(logits, jnp.asarray(targets), **fields), expected.mean(-1), rtol=1e-4)
    if not fields:
        one_hot = np.eye(CLASSES)[labels]
        np.testing.assert_allclose(losses.bce(logits, jnp.asarray(labels)), losses.bce(logits, one_hot), rtol=1e-6)


def test_gradient_of_bce_shrinks_with_the_number_of_classes():
    gradients = [jax.grad(lambda logits: losses.bce(logits, jnp.zeros_like(logits)).sum())(jnp.ones((1, classes)))
                 for classes in (2, 20)]
    np.testing.assert_allclose(gradients[0][0, 0], 10 * gradients[1][0, 0], rtol=1e-6)


@pytest.mark.parametrize('name', losses.names('label'))
def test_every_loss_takes_mixed_labels_and_evaluation_leaves_smoothing_out(batch, name):
    logits, labels = batch
    one_hot = jnp.asarray(np.eye(CLASSES)[labels], jnp.float32)
    loss, eval_loss = losses.make(config.Choice(name, {'label_smoothing': 0.3}), 'label', 'classification')
    np.testing.assert_allclose(loss(logits, one_hot), loss(logits, jnp.asarray(labels)), rtol=1e-5, atol=1e-6)
    plain, _ = losses.make(config.Choice(name, {}), 'label', 'classification')
    np.testing.assert_allclose(eval_loss(logits, one_hot), plain(logits, one_hot), rtol=1e-6)
    assert np.abs(loss(logits, one_hot) - plain(logits, one_hot)).max() > 1e-3
    assert loss(jnp.asarray(logits, jnp.bfloat16), one_hot).dtype == jnp.float32
