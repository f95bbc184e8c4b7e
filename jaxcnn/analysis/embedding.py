"""Images in the feature space of a network: projections to the plane, and nearest neighbours.

    names = feature_names(network, variables, image_shape)
    features = layer_features(network, variables, images, 'stage3')
    points = tsne(features)
    neighbors, distances = nearest_neighbors(features[:5], features, 9)
"""

import functools
import importlib.util
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.analysis import figures
from jaxcnn.analysis.attribution import map_parts
from jaxcnn.errors import UserError, unknown
from jaxcnn.models import Network

log = logging.getLogger('jaxcnn')
CLASSIFIER_INPUT = 'classifier_input'
LOGITS = 'logits'
MAX_SKLEARN_IMAGES = 5000  # of more, openTSNE is several times faster
COLORS = ('#332288', '#ddaa33', '#44aa99', '#cc6677', '#88ccee', '#882255', '#999933', '#117733', '#aa4499',
          '#777777', '#000000', '#ee7733')  # after Paul Tol's schemes for colour blindness; more classes repeat them


def _all_features(network: Network, variables: Any, images: jax.Array) -> dict[str, jax.Array]:
    """Return the features of images by name, in the order of computation; spatial maps are reduced to their means."""
    dense: dict[str, jax.Array] = {}

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        output = call(*args, **kwargs)
        if isinstance(context.module, nn.Dense) and context.method_name == '__call__' and output.ndim == 2:
            dense['/'.join(context.module.path)] = output
            dense[CLASSIFIER_INPUT] = args[0]
        return output
    with nn.intercept_methods(record):
        logits, maps = network.apply(variables, images, train=False, features=True)
    names = [name for name in dense if name != CLASSIFIER_INPUT]
    classifier_input = dense.get(CLASSIFIER_INPUT)
    if classifier_input is None:  # a network without dense layers
        classifier_input = list(maps.values())[-1] if maps else logits
    features = {**maps, **{name: dense[name] for name in names[:-1]}, CLASSIFIER_INPUT: classifier_input, LOGITS: logits}
    return {name: jnp.asarray(x).reshape(len(images), -1, x.shape[-1]).mean(1) for name, x in features.items()}


def feature_names(network: Network, variables: Any, image_shape: Sequence[int]) -> list[str]:
    """Return the names of the layers whose features `layer_features` returns, in the order of computation.

    These are the feature maps, the dense layers before the last one, the input of the last one, `classifier_input`, and the
    `logits`.

    Args:
      network: the network.
      variables: its variables, or their shapes.
      image_shape: (H, W, C) of the network's input.
    """
    names: list[str] = []

    def apply(variables: Any, images: jax.Array) -> None:
        names.extend(_all_features(network, variables, images))
    jax.eval_shape(apply, variables, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    return names


@functools.partial(jax.jit, static_argnames=('network', 'layer'))
def layer_features(network: Network, variables: Any, images: jax.Array, layer: str = CLASSIFIER_INPUT) -> jax.Array:
    """Return the features of images in a layer, (N, D); spatial maps are reduced to the mean of each channel.

    Args:
      network: the network.
      variables: its variables.
      images: (N, H, W, C), as the network takes them.
      layer: one of `feature_names`.

    Raises:
      UserError: There is no such layer.
    """
    names = feature_names(network, variables, images.shape[1:])
    if layer not in names:
        raise unknown('layer', layer, names)
    return map_parts(lambda x: _all_features(network, variables, x)[layer].astype(jnp.float32), images, size=256)


class Projection(NamedTuple):
    """A principal component analysis.

    Attributes:
      points: (N, components) the projected features.
      components: (components, D) the orthonormal directions, by decreasing variance.
      explained: (components,) the fraction of the variance along each of them.
    """

    points: np.ndarray
    components: np.ndarray
    explained: np.ndarray


def pca(features: np.ndarray, components: int = 2, seed: int = 0) -> Projection:
    """Project features (N, D) onto their directions of largest variance.

    Args:
      features: (N, D).
      components: number of directions, at most N and D.
      seed: seed of the approximation that is used for large arrays.
    """
    from sklearn.decomposition import PCA
    model = PCA(min(components, *features.shape), random_state=seed)
    with np.errstate(invalid='ignore'):  # the variance may be 0
        points = model.fit_transform(features)
    return Projection(points, model.components_, np.nan_to_num(model.explained_variance_ratio_))


def tsne(features: np.ndarray, perplexity: float = 30.0, seed: int = 0) -> np.ndarray:
    """Embed features in the plane by t-SNE (van der Maaten & Hinton 2008), so that neighbours stay neighbours.

    The features are first projected to 50 dimensions. Of more than 5,000 images, openTSNE computes the embedding, if it is
    installed.

    Args:
      features: (N, D), N at least 4.
      perplexity: number of neighbours that an image is attracted to, reduced to (N - 1) / 3 if it is larger.
      seed: seed of the optimisation.

    Returns:
      (N, 2).

    Raises:
      UserError: there are fewer than 4 images, or the perplexity is not above 0.
    """
    count = len(features)
    if count < 4:
        raise UserError(f't-SNE needs at least 4 images, got {count}')
    if not perplexity > 0:
        raise UserError(f'expected a number above 0, got {perplexity!r}', field='perplexity')
    perplexity = min(perplexity, (count - 1) / 3)
    reduced = pca(features, 50, seed).points
    if count > MAX_SKLEARN_IMAGES:
        if importlib.util.find_spec('openTSNE'):
            from openTSNE import TSNE
            return np.asarray(TSNE(perplexity=perplexity, random_state=seed).fit(reduced))
        log.info("t-SNE of %d images is faster with openTSNE: pip install 'jaxcnn[embed]'", count)
    from sklearn.manifold import TSNE
    points: np.ndarray = TSNE(perplexity=perplexity, init='pca', random_state=seed).fit_transform(reduced)
    return points


@functools.partial(jax.jit, static_argnums=(2, 3))
def nearest_neighbors(queries: jax.Array, features: jax.Array, k: int,
                      metric: str = 'cosine') -> tuple[jax.Array, jax.Array]:
    """Return the rows of `features` that are nearest to each query, by brute force.

    Args:
      queries: (Q, D).
      features: (N, D).
      k: number of neighbours, at most N.
      metric: `cosine`, the distance 1 - cos of the angle between the features, or `euclidean`.

    Returns:
      The rows, nearest first, (Q, k), and their distances, (Q, k).

    Raises:
      UserError: the metric is unknown, or `k` is not between 1 and N.
    """
    if metric not in ('cosine', 'euclidean'):
        raise unknown('metric', metric, ['cosine', 'euclidean'])
    if not 1 <= k <= len(features):
        raise UserError(f'expected from 1 to the number of images, {len(features)}, got {k}', field='k')
    queries, features = jnp.asarray(queries), jnp.asarray(features)
    if metric == 'cosine':
        queries, features = (x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-30) for x in (queries, features))
    squares = (features ** 2).sum(1)

    def of_query(query: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, rows = jax.lax.top_k(2 * features @ query - squares, k)
        squared_distances = ((features[rows] - query) ** 2).sum(1)  # without cancellation, so that it is 0 for a copy
        order = jnp.argsort(squared_distances)
        distances = squared_distances / 2 if metric == 'cosine' else jnp.sqrt(squared_distances)
        return rows[order], distances[order]
    rows, distances = jax.lax.map(of_query, queries, batch_size=32)
    return rows, distances


def class_colors(num_classes: int) -> list[str]:
    """Return a colour for each class."""
    return [COLORS[c % len(COLORS)] for c in range(num_classes)]


def spread_labels(positions: np.ndarray, width: float = 0.13, height: float = 0.035) -> np.ndarray:
    """Return positions (n, 2) of labels in axes of size 1, moved up and down until labels of this size do not overlap."""
    positions = positions.copy()
    for _ in range(100):
        moved = False
        for i, j in zip(*np.triu_indices(len(positions), 1), strict=True):
            dx, dy = positions[j] - positions[i]
            missing = height - abs(dy)
            if abs(dx) < width and missing > 1e-6:
                shift = missing / 2 * (1 if dy >= 0 else -1)
                positions[i, 1] -= shift
                positions[j, 1] += shift
                moved = True
        if not moved:
            break
    return positions


def embedding_figure(embeddings: Mapping[str, np.ndarray], labels: np.ndarray, class_names: Sequence[str], path: str,
                     is_augmented: np.ndarray | None = None) -> None:
    """Draw embeddings side by side, with a colour for each class and its name at the median of its images.

    Args:
      embeddings: points (N, 2) by the title of the panel.
      labels: (N,) classes; -1 for images without a label, which are grey.
      class_names: names of the classes.
      path: the PNG file.
      is_augmented: (N,) bool: images that are drawn as crosses instead of circles.
    """
    if is_augmented is None:
        is_augmented = np.zeros(len(labels), bool)
    names = [figures.shortened(str(name), 18) for name in class_names]
    colors = class_colors(len(names))
    with figures.open_figure(path, 7 * len(embeddings), 7, [*names, *embeddings], layout='constrained') as figure:
        axes = figure.subplots(1, len(embeddings), squeeze=False)[0]
        for axis, (title, points) in zip(axes, embeddings.items(), strict=True):
            point_colors = np.array([colors[c] if c >= 0 else '#bbbbbb' for c in labels])
            size = float(np.clip(20000 / max(1, len(points)), 6, 40))
            for augmented, marker, name in ((False, 'o', 'image'), (True, 'x', 'augmented image')):
                selected = is_augmented == augmented
                if selected.any():
                    axis.scatter(*points[selected].T, s=size, c=point_colors[selected], marker=marker, label=name,
                                 linewidths=0.8 if augmented else 0, alpha=0.8)
            classes = np.unique(labels[labels >= 0])
            medians = np.array([np.median(points[labels == c], 0) for c in classes]).reshape(-1, 2)
            low, size_of_axes = points.min(0), np.maximum(np.ptp(points, 0), 1e-30)
            centers = spread_labels((medians - low) / size_of_axes) * size_of_axes + low
            for c, (x, y) in zip(classes, centers, strict=True):
                axis.text(x, y, names[c], fontsize=9, ha='center', va='center',
                          bbox={'facecolor': 'white', 'edgecolor': colors[c], 'alpha': 0.85, 'pad': 1.5})
            axis.set(title=title, xlabel='first coordinate', ylabel='second coordinate')
            if is_augmented.any():
                axis.legend(loc='best', fontsize=8)
