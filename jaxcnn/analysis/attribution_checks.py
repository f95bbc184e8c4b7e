"""How far an attribution can be trusted: deletion and insertion curves, and randomised parameters."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.analysis.attribution import class_scores, map_steps, require_positive, rows_of
from jaxcnn.models import Network

BLUR_SIZE, BLUR_SIGMA = 11, 5.0  # pixels, of the images that insertion starts from in the paper

# ---- deletion and insertion


@functools.partial(jax.jit, static_argnames=('network', 'steps', 'predict'))
def deletion_curve(network: Network, variables: Any, images: jax.Array, classes: jax.Array, maps: jax.Array, steps: int = 50,
                   fill: Any = 0.0, predict: Callable[[jax.Array], jax.Array] = jax.nn.softmax) -> jax.Array:
    """Return the probability of the class while the pixels with the largest attributions are deleted (Petsiuk et al. 2018,
    "RISE: randomized input sampling for explanation of black-box models").

    Args:
      network: the network.
      variables: its variables.
      images: (N, H, W, C), normalised.
      classes: (N,) the class that is explained, for each image.
      maps: (N, H, W), the attributions.
      steps: number of equal parts of the pixels that are deleted one after the other.
      fill: normalised value of deleted pixels, of a shape that broadcasts to that of the images.
      predict: maps logits to probabilities.

    Returns:
      (N, steps + 1), from the whole image to none of it. The smaller the area under it, the better the attribution.

    Raises:
      UserError: The number of steps is not positive.
    """
    return _replacement_curve(network, variables, images, fill, classes, maps, steps, predict)


@functools.partial(jax.jit, static_argnames=('network', 'steps', 'predict'))
def insertion_curve(network: Network, variables: Any, images: jax.Array, classes: jax.Array, maps: jax.Array,
                    steps: int = 50, predict: Callable[[jax.Array], jax.Array] = jax.nn.softmax) -> jax.Array:
    """Return the probability of the class while the pixels with the largest attributions are inserted into a blurred image
    (Petsiuk et al. 2018).

    Args:
      network, variables, images, classes, maps, steps, predict: see `deletion_curve`.

    Returns:
      (N, steps + 1), from the blurred image to the sharp one. The larger the area under it, the better the attribution.

    Raises:
      UserError: The number of steps is not positive.
    """
    return _replacement_curve(network, variables, blurred(images), images, classes, maps, steps, predict)


def blurred(images: jax.Array) -> jax.Array:
    """Return images (N, H, W, C) after Gaussian blur, with the size of the paper."""
    offsets = np.arange(BLUR_SIZE) - BLUR_SIZE // 2
    weights = np.exp(-offsets ** 2 / (2 * BLUR_SIGMA ** 2))
    for axis in (1, 2):
        pads = [(BLUR_SIZE // 2,) * 2 if i == axis else (0, 0) for i in range(4)]
        padded = jnp.pad(images, pads, 'edge')
        images = sum(jax.lax.slice_in_dim(padded, i, i + images.shape[axis], axis=axis) * weight
                     for i, weight in enumerate((weights / weights.sum()).tolist()))
    return images


def area_under(curves: np.ndarray) -> np.ndarray:
    """Return the area under each curve (N, steps + 1) over the interval from 0 to 1: (N,)."""
    return np.asarray((curves[:, 1:] + curves[:, :-1]).mean(-1) / 2)


def _replacement_curve(network: Network, variables: Any, images: jax.Array, replacements: Any, classes: jax.Array,
                       maps: jax.Array, steps: int, predict: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Return the probability of the class while pixels of images are replaced, in descending order of the attributions."""
    require_positive('steps', steps)
    num_pixels = maps.shape[1] * maps.shape[2]
    order = jnp.argsort(-maps.reshape(len(maps), -1), axis=-1)
    ranks = jnp.argsort(order, axis=-1).reshape(maps.shape)
    replacement_rows = rows_of(replacements, images)

    def probabilities(rows: jax.Array, steps_done: jax.Array) -> jax.Array:
        num_replaced = (steps_done * num_pixels + steps // 2) // steps
        is_replaced = ranks[rows] < num_replaced[:, None, None]
        x = jnp.where(is_replaced[..., None], replacement_rows(rows), images[rows])
        return class_scores(predict(jnp.asarray(network.apply(variables, x, train=False), jnp.float32)), classes[rows])
    result: jax.Array = map_steps(probabilities, len(images), steps + 1)
    return result


# ---- randomised parameters


def layers_in_order(network: Network, image_shape: Sequence[int]) -> list[list[tuple[str, ...]]]:
    """Return the modules with parameters in the order of computation, in groups: a convolution or a dense layer, and those
    after it, such as BatchNorm, until the next one.

    Args:
      network: the network.
      image_shape: (H, W, C) of its input.

    Returns:
      For each group the paths of its modules in the tree of variables.
    """
    paths: dict[tuple[str, ...], set[str]] = {}

    def init(images: jax.Array) -> None:
        params = network.init(jax.random.key(0), images)['params']  # in the order of computation, which JAX would sort
        for path in flax.traverse_util.flatten_dict(params):
            paths.setdefault(path[:-1], set()).add(path[-1])
    jax.eval_shape(init, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    groups: list[list[tuple[str, ...]]] = []
    for path, names in paths.items():
        if 'kernel' in names or not groups:
            groups.append([path])
        else:
            groups[-1].append(path)
    return groups


def cascading_randomisation(network: Network, variables: Any, image_shape: Sequence[int], stages: int = 8,
                            seed: int = 0) -> dict[str, Any]:
    """Return variables whose layers are initialised anew, from the top down (Adebayo et al. 2018, "Sanity checks for
    saliency maps").

    Args:
      network: the network.
      variables: its trained variables.
      image_shape: (H, W, C) of its input.
      stages: number of results at most.
      seed: seed of the random parameters.

    Returns:
      The variables by the name of the lowest layer that is randomised. In the first entry it is the top layer alone, in the
      last one all of them.

    Raises:
      UserError: The number of stages is not positive.
    """
    require_positive('stages', stages)
    images = jnp.zeros((1, *image_shape), jnp.float32)
    fresh = flax.traverse_util.flatten_dict(jax.jit(network.init)(jax.random.key(seed), images))
    values = flax.traverse_util.flatten_dict(dict(variables))
    groups = layers_in_order(network, image_shape)[::-1]
    counts = sorted({round(x) for x in np.linspace(1, len(groups), min(stages, len(groups)))})
    results = {}
    for count in counts:
        randomised = {path for group in groups[:count] for path in group}
        mixed = {path: fresh[path] if path[1:-1] in randomised else x for path, x in values.items()}
        name = '.'.join(groups[count - 1][0]) or 'network'  # of the network itself, such as a class token
        results[name] = flax.traverse_util.unflatten_dict(mixed)
    return results


def rank_correlation(maps: np.ndarray, other_maps: np.ndarray, absolute: bool = True) -> np.ndarray:
    """Return Spearman's rank correlation of two maps (N, H, W) for each image: (N,).

    It is 0 where a map has the same value everywhere.

    Args:
      maps, other_maps: the maps.
      absolute: whether to compare their absolute values.
    """
    from scipy import stats
    ranks = [stats.rankdata((np.abs(x) if absolute else x).reshape(len(x), -1), axis=-1) for x in (maps, other_maps)]
    a, b = (x - x.mean(-1, keepdims=True) for x in ranks)
    scale = np.sqrt((a ** 2).sum(-1) * (b ** 2).sum(-1))
    return np.asarray(np.divide((a * b).sum(-1), scale, out=np.zeros(len(a)), where=scale > 0))
