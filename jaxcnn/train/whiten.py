"""Whitening filters as the first convolution's kernel, computed from training images (`config.whiten`)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import config as cfg
from jaxcnn.errors import UserError
from jaxcnn.optim import path_mask, path_name


def filters(images: np.ndarray, height: int, width: int, features: int, epsilon: float) -> np.ndarray:
    """Filters (height, width, C, n) whose outputs over the images' patches have no correlation and equal variance.

    The eigenvectors of the patches' second moments, over the root of their eigenvalues, the largest first, and these
    negated; n is even and at most `features` (Page 2019, "How to train your ResNet", part 8; Jordan 2024, arXiv 2404.00498,
    section 3.2).

    Args:
      images: float (N, H, W, C), as the network sees them.
      height, width: of a patch.
      features: filters that are wanted.
      epsilon: added to the eigenvalues.
    """
    channels, size = images.shape[-1], height * width * images.shape[-1]
    moments = np.zeros((size, size))
    for x in np.array_split(images, -(-len(images) // 256)):
        patches = np.lib.stride_tricks.sliding_window_view(x, (height, width), axis=(1, 2))  # (N, H', W', C, h, w)
        patches = patches.transpose(0, 1, 2, 4, 5, 3).reshape(-1, size).astype(np.float64)
        moments += patches.T @ patches / len(patches) * len(x)
    values, vectors = np.linalg.eigh(moments / len(images))
    count = min(features // 2, size)
    chosen = (vectors / np.sqrt(np.maximum(values, 0) + epsilon))[:, ::-1][:, :count]
    return np.concatenate([chosen, -chosen], 1).reshape(height, width, channels, -1).astype(np.float32)


def initializer(config: cfg.WhitenConfig, shapes: Any, images: Callable[[int], np.ndarray]) -> Callable[[Any], Any]:
    """The function that puts the filters into parameters; features beyond their number stay as they were drawn.

    Args:
      config: the config's part.
      shapes: of the parameters.
      images: gives so many training images, as the network sees them.

    Raises:
      UserError: the kernel is not one, or not that of the first convolution.
    """
    where = 'config.whiten.match'
    mask = path_mask(config.match, where)(shapes)
    found = [(path_name(path), x) for (path, x), here in zip(
        jax.tree.leaves_with_path(shapes), jax.tree.leaves(mask), strict=True) if here]
    if len(found) > 1:
        raise UserError(f'{config.match!r} is found in {len(found)} parameters, and must name one: '
                        f'{", ".join(name for name, _ in found[:4])}', field=where)
    (name, kernel), = found
    seen = images(config.images)
    if len(kernel.shape) != 4 or kernel.shape[2] != seen.shape[-1] or kernel.shape[3] < 2:
        raise UserError(f'{name} has shape {kernel.shape}; it must be the kernel of a convolution of the image, '
                        f'which has {seen.shape[-1]} channels', field=where)
    made = filters(seen, kernel.shape[0], kernel.shape[1], kernel.shape[3], config.epsilon)

    def begin(params: Any) -> Any:
        return jax.tree.map(lambda p, here: jnp.asarray(p).at[..., :made.shape[-1]].set(made.astype(p.dtype)) if here else p,
                            params, mask)
    return begin
