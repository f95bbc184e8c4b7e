"""Features, projections and neighbours whose answers are known, and the interactive page."""

import base64
import io
import json
import re

import flax.linen as nn
import jax
import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image
from threadpoolctl import threadpool_limits

from jaxcnn import models
from jaxcnn.analysis import embedding
from jaxcnn.analysis.embedding_page import write_embedding_page
from jaxcnn.errors import UserError
from jaxcnn.models import Network

RNG = np.random.default_rng(0)


def test_features_are_those_of_each_layer_and_maps_are_averaged():
    network = models.create('lenet5', 10)
    images = RNG.normal(size=(5, 32, 32, 1)).astype(np.float32)
    variables = jax.jit(network.init)(jax.random.key(0), images[:1])
    names = embedding.feature_names(network, variables, (32, 32, 1))
    assert names == ['conv1', 'conv2', 'Dense_0', 'Dense_1', 'classifier_input', 'logits']
    features = {name: np.asarray(embedding.layer_features(network, variables, images, name)) for name in (
        'conv2', 'classifier_input', 'logits')}
    logits, maps = network.apply(variables, images, features=True)
    np.testing.assert_allclose(features['conv2'], np.asarray(maps['conv2']).mean((1, 2)), atol=1e-5)
    np.testing.assert_allclose(features['logits'], logits, atol=1e-5)
    last = nn.Dense(10).apply({'params': variables['params']['Dense_2']}, features['classifier_input'])
    np.testing.assert_allclose(last, logits, atol=1e-4)
    assert features['classifier_input'].shape == (5, 84)
    with pytest.raises(UserError, match=r"layer 'conv3'.*conv1"):
        embedding.layer_features(network, variables, images, 'conv3')


def test_the_classifier_input_of_a_network_without_layers_is_its_logits():
    class Pixels(Network):
        def forward(self, x, train, maps):
            return x.reshape(len(x), -1)[:, :self.num_classes]
    network, images = Pixels(num_classes=3), RNG.normal(size=(2, 4, 4, 1)).astype(np.float32)
    assert embedding.feature_names(network, {}, (4, 4, 1)) == ['classifier_input', 'logits']
    features = embedding.layer_features(network=network, variables={}, images=images, layer='classifier_input')
    np.testing.assert_allclose(features, images.reshape(2, -1)[:, :3])


def test_pca_is_the_eigendecomposition_of_the_covariance():
    features = RNG.normal(size=(50, 6)) @ np.diag([5, 3, 2, 1, 0.5, 0.1])
    projection = embedding.pca(features, 3)
    values, vectors = np.linalg.eigh(np.cov(features, rowvar=False))
    values, vectors = values[::-1], vectors[:, ::-1]
    np.testing.assert_allclose(projection.explained, values[:3] / values.sum(), rtol=1e-9)
    np.testing.assert_allclose(np.abs(projection.components @ vectors[:, :3]), np.eye(3), atol=1e-9)
    np.testing.assert_allclose(projection.points.var(0, ddof=1), values[:3], rtol=1e-9)
    assert embedding.pca(np.ones((3, 4))).points.shape == (3, 2)


def test_tsne_keeps_clusters_apart():
    labels = np.repeat([0, 1, 2], 20)
    with threadpool_limits(1):  # threads of OpenMP wait for each other by spinning, which is slow on a busy machine
        points = embedding.tsne(10 * np.eye(8)[labels] + RNG.normal(size=(60, 8)), perplexity=10)
    centers = np.stack([points[labels == c].mean(0) for c in range(3)])
    assert (((points[:, None] - centers) ** 2).sum(-1).argmin(1) == labels).all()
    with pytest.raises(UserError, match='at least 4 images, got 3'):
        embedding.tsne(np.eye(3))


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_the_nearest_neighbor_of_a_copy_is_its_original(metric):
    features = RNG.normal(size=(40, 7)).astype(np.float32)
    rows, distances = embedding.nearest_neighbors(features[[3, 17]], features, 4, metric)
    assert rows[:, 0].tolist() == [3, 17]
    np.testing.assert_array_equal(distances[:, 0], 0)
    if metric == 'euclidean':
        expected = np.sort(np.linalg.norm(features - features[3], axis=1))[:4]
    else:
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        expected = np.sort(1 - unit @ unit[3])[:4]
    np.testing.assert_allclose(distances[0], expected, atol=1e-5)
    with pytest.raises(UserError, match='k: expected from 1 to'):
        embedding.nearest_neighbors(features[:1], features, 41)


def test_labels_are_spread_until_they_do_not_overlap():
    positions = np.array([[0.5, 0.5], [0.52, 0.5], [0.48, 0.51], [0.9, 0.5]])
    spread = embedding.spread_labels(positions)
    np.testing.assert_array_equal(spread[3], positions[3])
    np.testing.assert_array_equal(spread[:, 0], positions[:, 0])
    assert np.diff(np.sort(spread[:3, 1])).min() > 0.0349
    assert np.abs(spread - positions).max() < 0.05


def test_the_page_holds_the_thumbnails_and_needs_no_network(tmp_path):
    images = np.repeat(np.arange(0, 250, 50, dtype=np.uint8), 16 * 8 * 3).reshape(5, 16, 8, 3)
    names = ['a.png', '</script><b>', 'c', 'd', 'e']
    path = tmp_path / 'page.html'
    write_embedding_page(str(path), {'PCA': RNG.normal(size=(5, 2))}, images, names, np.array([0, 1, 0, 1, -1]),
                         np.array([0, 1, 1, 1, 0]), np.array([0.9, 0.8, np.nan, 0.6, 1]), ['<cat>', 'dog'], 'A & <b>',
                         np.array([False, False, True, True, True]))
    text = path.read_text()
    assert '//' not in re.sub('data:image/jpeg;base64,[^"]*', '', text)
    assert text.count('</script>') == 1
    assert '<title>A &amp; &lt;b&gt;</title>' in text
    data = json.loads(re.search('^const data = (.*);$', text, re.MULTILINE)[1])
    assert data['names'] == names
    assert data['classes'] == ['<cat>', 'dog']
    assert np.ptp(data['points']['PCA']) <= 1
    with Image.open(io.BytesIO(base64.b64decode(data['sprite'].split(',')[1]))) as picture:
        sprite = np.asarray(picture)
    assert sprite.shape == (2 * 16, 3 * 8, 3)
    for i, image in enumerate(images):
        row, column = divmod(i, data['columns'])
        thumbnail = sprite[16 * row + 2:16 * row + 14, 8 * column + 2:8 * column + 6]
        np.testing.assert_allclose(thumbnail, image[0, 0, 0], atol=12)


def test_the_figure_draws_augmented_images_with_another_marker(tmp_path, monkeypatch):
    markers = []
    monkeypatch.setattr('matplotlib.axes.Axes.scatter', lambda self, x, y, marker, scatter=Axes.scatter, **settings: (
        markers.append((marker, len(x))), scatter(self, x, y, marker=marker, **settings))[1])
    points = RNG.normal(size=(6, 2))
    embedding.embedding_figure({'PCA': points}, np.array([0, 1, -1, 0, 1, -1]), ['cat', 'dog'], str(tmp_path / 'a.png'),
                               np.arange(6) > 3)
    assert markers == [('o', 4), ('x', 2)]
