"""Each normalisation equals its definition, written in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxcnn.data import normalize
from jaxcnn.data.normalize import Normalization
from jaxcnn.errors import UserError


@pytest.fixture(scope='module')
def images():
    """Images whose neighbouring values are correlated, as in photographs."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 6, 5, 3)).cumsum(1).cumsum(2) + rng.normal(size=(500, 1, 1, 1))
    return np.float32((x - x.min()) / (x.max() - x.min()))


def fit(text, images):
    ops = normalize.parse(text)
    return Normalization(ops, normalize.fit(ops, lambda: np.array_split(images, 7)))


def gcn(x, s=1.0, epsilon=1e-8, lam=0.0):
    centred = x - x.mean((1, 2, 3), keepdims=True)
    return s * centred / np.maximum(epsilon, np.sqrt(lam + (centred ** 2).mean((1, 2, 3), keepdims=True)))


def zca(x, epsilon, train):
    flat = train.reshape(len(train), -1).astype(np.float64)
    covariance = np.cov(flat, rowvar=False, bias=True)
    root = scipy.linalg.inv(scipy.linalg.sqrtm(covariance + epsilon * np.eye(len(covariance))))
    return ((x.reshape(len(x), -1) - flat.mean(0)) @ root).reshape(x.shape)


@pytest.mark.parametrize(('text', 'expected'), [
    ('none', lambda x, train: x),
    ('standardize', lambda x, train: (x - train.mean((0, 1, 2))) / train.std((0, 1, 2))),
    ('standardize(0.4, 0.3)', lambda x, train: (x - 0.4) / 0.3),
    ('standardize(mean=(0.5, 0.4, 0.3), std=0.2)', lambda x, train: (x - [0.5, 0.4, 0.3]) / 0.2),
    ('standardize_pixels', lambda x, train: (x - train.mean(0)) / train.std(0)),
    ('pixel_mean|standardize(0, 0.5)', lambda x, train: 2 * (x - train.mean(0))),
    ('gcn', lambda x, train: gcn(x)),
    ('gcn(2, epsilon=0.5, lam=0.01)', lambda x, train: gcn(x, 2, 0.5, 0.01)),
    ('zca(0.001)', lambda x, train: zca(x, 0.001, train)),
    ('bgr|standardize((0.5, 0.4, 0.3), 0.01)', lambda x, train: np.stack([
        (x[..., 2] - 0.5) / 0.01, (x[..., 1] - 0.4) / 0.01, (x[..., 0] - 0.3) / 0.01], -1)),
    ('gcn|zca(0.1)', lambda x, train: zca(gcn(x), 0.1, gcn(train))),
    ('gcn(3)|standardize_pixels', lambda x, train: (gcn(x) - gcn(train).mean(0)) / gcn(train).std(0)),
])
def test_images_are_normalised_as_defined(text, expected, images):
    normalization = fit(text, images)
    subset = images[:50]
    expected_images = expected(subset, np.float64(images))
    for apply in (normalization, jax.jit(normalization.__call__), jax.vmap(lambda x: normalization(x[None])[0]),
                  lambda x: jax.pmap(normalization.__call__)(x[None])[0]):
        np.testing.assert_allclose(apply(subset), expected_images, rtol=1e-3, atol=2e-4)
    if 'gcn' not in text:
        np.testing.assert_allclose(normalization.inverse(normalization(subset)), subset, atol=1e-5)
    else:
        with pytest.raises(UserError, match='gcn has no inverse, because it discards the mean and the contrast'):
            normalization.inverse(subset)


def test_whitened_images_are_uncorrelated(images):
    x = np.asarray(fit('zca(1e-9)', images)(images)).reshape(500, -1)
    np.testing.assert_allclose(np.cov(x, rowvar=False, bias=True), np.eye(90), atol=0.02)


def test_constant_images_become_zero():
    x = np.full((8, 4, 4, 1), 0.25, np.float32)
    for text in ('standardize', 'standardize_pixels', 'gcn', 'zca'):
        np.testing.assert_allclose(fit(text, x)(x), 0, atol=1e-6)


def test_the_fitted_statistics_are_written_and_read(images, tmp_path):
    path = str(tmp_path / 'normalize.npz')
    normalization = fit('gcn|zca|standardize_pixels', images)
    normalize.write(path, normalization.fitted)
    from_file = Normalization(normalization.ops, normalize.read(path, normalization.ops))
    np.testing.assert_array_equal(from_file(images), normalization(images))
    content = bytearray((tmp_path / 'normalize.npz').read_bytes())
    content[len(content) // 2] ^= 1
    for damaged in (bytes(content), bytes(content[:100]), b''):
        (tmp_path / 'normalize.npz').write_bytes(damaged)
        with pytest.raises(UserError, match=r'normalize\.npz: cannot read the fitted normalisation') as error:
            normalize.read(path, normalization.ops)
        assert '\n' not in str(error.value)
    (tmp_path / 'normalize.npz').unlink()
    with pytest.raises(UserError, match='No such file'):
        normalize.read(path, normalization.ops)


@pytest.mark.parametrize(('text', 'line'), [
    ('standardise', "unknown normalisation 'standardise'; nearest: standardize"),
    ('zca|whiten', "unknown normalisation 'whiten'; known: bgr, gcn, none, pixel_mean, standardize"),
    ('gcn(-1)', 'gcn.s: expected a number of at least 0, got -1'),
    ('standardize(0.5)', 'standardize.std: needs both constants, as in standardize(0.5, 0.25)'),
    ('standardize(std=1)', 'standardize.mean: needs both constants'),
    ('standardize(0.5, (1, 0, 1))', 'standardize.std: expected a number between 1e-06 and 1, got 0'),
    ('standardize(127, 128)', 'standardize.mean: expected a number between 0 and 1, got 127'),
    ('standardize("a", 1)', "standardize.mean: expected a number between 0 and 1, got 'a'"),
    ('zca(0)', 'zca.epsilon: expected a number of at least 1e-12, got 0'),
    ('zca(eps=1)', "unknown argument of normalisation zca 'eps'; nearest: epsilon"),
    ('', "config.data.normalize: '' is not a name"),
    ('gcn||zca', "config.data.normalize: '' is not a name"),
])
def test_an_invalid_string_is_reported(text, line):
    with pytest.raises(UserError) as error:
        normalize.parse(text)
    assert line in str(error.value)


def test_constants_for_other_channels_are_refused():
    with pytest.raises(UserError, match=r'^config\.data\.normalize: standardize\.std: got 3 values for images with 1 '):
        fit('standardize(0.5, (0.2, 0.2, 0.2))', np.zeros((2, 4, 4, 1), np.float32))


def test_grey_images_have_no_channels_to_reverse():
    with pytest.raises(UserError, match=r'^config\.data\.normalize: bgr needs images with 3 channels, got 1$'):
        fit('bgr|standardize', np.zeros((2, 4, 4, 1), np.float32))


def test_zca_refuses_images_that_are_too_large():
    with pytest.raises(UserError, match=r'zca needs a matrix of 27648 x 27648 for images of 96 x 96 x 3, but only up'):
        fit('zca', np.zeros((2, 96, 96, 3), np.float32))


def test_gcn_of_a_constant_image_has_a_gradient():
    op, = normalize.parse('gcn')
    gradient = jax.grad(lambda x: (op.apply(x, {}) ** 2).sum())(jnp.full((1, 4, 4, 3), 0.5))
    assert jnp.isfinite(gradient).all()
