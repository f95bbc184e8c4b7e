"""Normalisation against plain NumPy statements of its definitions."""

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
    """Neighbouring values alike, as in photographs."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 6, 5, 3)).cumsum(1).cumsum(2) + rng.normal(size=(500, 1, 1, 1))
    return np.float32((x - x.min()) / (x.max() - x.min()))


def fitted(text, images):
    ops = normalize.parse(text)
    return Normalization(ops, normalize.fit(ops, lambda: np.array_split(images, 7)))


def gcn(x, s=1.0, epsilon=1e-8, lam=0.0):
    centred = x - x.mean((1, 2, 3), keepdims=True)
    return s * centred / np.maximum(epsilon, np.sqrt(lam + (centred ** 2).mean((1, 2, 3), keepdims=True)))


def zca(x, epsilon, of):
    flat = of.reshape(len(of), -1).astype(np.float64)
    covariance = np.cov(flat, rowvar=False, bias=True)
    root = scipy.linalg.inv(scipy.linalg.sqrtm(covariance + epsilon * np.eye(len(covariance))))
    return ((x.reshape(len(x), -1) - flat.mean(0)) @ root).reshape(x.shape)


@pytest.mark.parametrize(('text', 'expected'), [
    ('none', lambda x, all: x),
    ('standardize', lambda x, all: (x - all.mean((0, 1, 2))) / all.std((0, 1, 2))),
    ('standardize_pixels', lambda x, all: (x - all.mean(0)) / all.std(0)),
    ('gcn', lambda x, all: gcn(x)),
    ('gcn(2, epsilon=0.5, lam=0.01)', lambda x, all: gcn(x, 2, 0.5, 0.01)),
    ('zca(0.001)', lambda x, all: zca(x, 0.001, all)),
    ('gcn|zca(0.1)', lambda x, all: zca(gcn(x), 0.1, gcn(all))),
    ('gcn(3)|standardize_pixels', lambda x, all: (gcn(x) - gcn(all).mean(0)) / gcn(all).std(0)),
])
def test_the_definition(text, expected, images):
    found = fitted(text, images)
    want = expected(images[:50], np.float64(images))
    for way in (found, jax.jit(found.__call__), jax.vmap(lambda x: found(x[None])[0]),
                lambda x: jax.pmap(found.__call__)(x[None])[0]):
        np.testing.assert_allclose(way(images[:50]), want, rtol=1e-3, atol=2e-4)
    if 'gcn' not in text:
        np.testing.assert_allclose(found.inverse(found(images[:50])), images[:50], atol=1e-5)
    else:
        with pytest.raises(UserError, match='gcn has no inverse: it forgets the mean and the contrast'):
            found.inverse(images[:50])


def test_whitened_images_are_uncorrelated(images):
    x = np.asarray(fitted('zca(1e-9)', images)(images)).reshape(500, -1)
    np.testing.assert_allclose(np.cov(x, rowvar=False, bias=True), np.eye(90), atol=0.02)


def test_what_never_varies_becomes_zero():
    x = np.full((8, 4, 4, 1), 0.25, np.float32)
    for text in ('standardize', 'standardize_pixels', 'gcn', 'zca'):
        np.testing.assert_allclose(fitted(text, x)(x), 0, atol=1e-6)


def test_it_is_kept_and_found_again(images, tmp_path):
    path = str(tmp_path / 'normalize.npz')
    found = fitted('gcn|zca|standardize_pixels', images)
    normalize.write(path, found.fitted)
    again = Normalization(found.ops, normalize.read(path, found.ops))
    np.testing.assert_array_equal(again(images), found(images))
    content = bytearray((tmp_path / 'normalize.npz').read_bytes())
    content[len(content) // 2] ^= 1
    for damaged in (bytes(content), bytes(content[:100]), b''):
        (tmp_path / 'normalize.npz').write_bytes(damaged)
        with pytest.raises(UserError, match=r'normalize.npz: what normalisation was fitted to cannot be read') as error:
            normalize.read(path, found.ops)
        assert '\n' not in str(error.value)
    (tmp_path / 'normalize.npz').unlink()
    with pytest.raises(UserError, match='No such file'):
        normalize.read(path, found.ops)


@pytest.mark.parametrize(('text', 'line'), [
    ('standardise', "unknown normalisation 'standardise'; nearest: standardize"),
    ('zca|whiten', "unknown normalisation 'whiten'; known: gcn, none, standardize"),
    ('gcn(-1)', 'gcn.s: expected a number of at least 0, got -1'),
    ('zca(0)', 'zca.epsilon: expected a number of at least 1e-12, got 0'),
    ('zca(eps=1)', "unknown argument of normalisation zca 'eps'; nearest: epsilon"),
    ('', "config.data.normalize: '' is not a name"),
    ('gcn||zca', "config.data.normalize: '' is not a name"),
])
def test_wrong_strings(text, line):
    with pytest.raises(UserError) as error:
        normalize.parse(text)
    assert line in str(error.value)


def test_zca_says_what_is_too_large():
    with pytest.raises(UserError, match=r'zca of images 96 x 96 x 3 takes a matrix of 27648 x 27648; it goes up to 12288'):
        fitted('zca', np.zeros((2, 96, 96, 3), np.float32))


def test_gcn_of_an_even_image_has_a_gradient():
    op, = normalize.parse('gcn')
    gradient = jax.grad(lambda x: (op.apply(x, {}) ** 2).sum())(jnp.full((1, 4, 4, 3), 0.5))
    assert jnp.isfinite(gradient).all()
