"""Whitening filters for the kernel of the first convolution, computed from training images (`config.whiten`)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import config as cfg
from jaxcnn.data.split import Split
from jaxcnn.errors import UserError
from jaxcnn.optim import path_mask, path_name
from jaxcnn.preprocessing import Preprocessor


def sample_images(train: Split, preprocessor: Preprocessor, seed: int, count: int) -> np.ndarray:
    """Return `count` training images, drawn by the seed, as the network sees them in evaluation: float (count, H, W, C)."""
    positions = np.sort(np.random.default_rng(seed).permutation(len(train))[:count])
    return np.asarray(jax.jit(preprocessor.__call__)(train.take(positions)))


def filters(images: np.ndarray, height: int, width: int, features: int, epsilon: float) -> np.ndarray:
    """Return filters whose outputs over the images' patches are uncorrelated and have equal variance.

    They are the eigenvectors of the patches' second moments with the largest eigenvalues, divided by the square roots of
    these, followed by their negatives (Page 2019, "How to train your ResNet", part 8; Jordan 2024, arXiv 2404.00498,
    section 3.2).

    Args:
      images: float (N, H, W, C), as the network sees them.
      height, width: size of a patch.
      features: number of features of the convolution.
      epsilon: number that is added to the eigenvalues.

    Returns:
      Filters (height, width, C, n), where n is even and at most `features`.
    """
    channels, size = images.shape[-1], height * width * images.shape[-1]
    moments = np.zeros((size, size))
    for x in np.array_split(images, -(-len(images) // 256)):
        patches = np.lib.stride_tricks.sliding_window_view(x, (height, width), axis=(1, 2))  # (N, H', W', C, h, w)
        patches = patches.transpose(0, 1, 2, 4, 5, 3).reshape(-1, size).astype(np.float64)
        moments += patches.T @ patches / len(patches) * len(x)
    values, vectors = np.linalg.eigh(moments / len(images))
    count = min(features // 2, size)
    scaled = vectors / np.sqrt(np.maximum(values, 0) + epsilon)
    largest = scaled[:, ::-1][:, :count]  # `eigh` sorts by increasing eigenvalues
    return np.concatenate([largest, -largest], 1).reshape(height, width, channels, -1).astype(np.float32)


def initializer(config: cfg.WhitenConfig, shapes: Any, images: Callable[[int], np.ndarray]) -> Callable[[Any], Any]:
    """Return the function that replaces features of the first convolution's kernel by the filters.

    Features beyond the number of filters stay as they are drawn.

    Args:
      config: whitening fields of the config.
      shapes: shapes and dtypes of the parameters.
      images: function that returns a number of training images, as the network sees them.

    Raises:
      UserError: the pattern matches several parameters, or not the kernel of the first convolution.
    """
    field = 'config.whiten.match'
    mask = path_mask(config.match, field)(shapes)
    leaves = zip(jax.tree.leaves_with_path(shapes), jax.tree.leaves(mask), strict=True)
    matches = [(path_name(path), leaf) for (path, leaf), is_match in leaves if is_match]
    if len(matches) > 1:
        raise UserError(f'{config.match!r} matches {len(matches)} parameters, and must match one: '
                        f'{", ".join(name for name, _ in matches[:4])}', field=field)
    (name, kernel), = matches
    samples = images(config.images)
    if len(kernel.shape) != 4 or kernel.shape[2] != samples.shape[-1] or kernel.shape[3] < 2:
        raise UserError(f'{name} has shape {kernel.shape}; it must be the kernel of a convolution of the image, '
                        f'which has {samples.shape[-1]} channels', field=field)
    whitening = filters(samples, kernel.shape[0], kernel.shape[1], kernel.shape[3], config.epsilon)

    def replace(params: Any) -> Any:
        def replace_features(p: Any, is_match: bool) -> Any:
            return jnp.asarray(p).at[..., :whitening.shape[-1]].set(whitening.astype(p.dtype)) if is_match else p
        return jax.tree.map(replace_features, params, mask)
    return replace
