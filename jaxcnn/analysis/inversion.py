"""Inversion of features: the image whose features are those of another one (Mahendran & Vedaldi 2014, "Understanding deep
image representations by inverting them")."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxcnn.analysis.attribution import map_parts
from jaxcnn.models import Network

ALPHA = 6  # exponent of the norm of the image
_START_STD = 0.1  # of the random image


class Inversion(NamedTuple):
    """Images from features.

    Attributes:
      images: (N, H, W, C), as the network takes them.
      errors: (N,) squared distance of their features from those of the originals, relative to the squared norm of these.
    """

    images: jax.Array
    errors: jax.Array


@functools.partial(jax.jit, static_argnames=('network', 'layer', 'steps', 'beta'))
def invert(network: Network, variables: Any, images: jax.Array, layer: str, *, steps: int = 400,
           learning_rate: float = 0.1, total_variation: float = 0.1, beta: float = 2.0, norm: float = 1e-4,
           seed: Any = 0) -> Inversion:
    """Reconstruct images from a feature map by gradient descent, from noise.

    The loss of an image is the relative squared distance of its features, plus `total_variation` times the mean of
    `(dx ** 2 + dy ** 2) ** (beta / 2)`, plus `norm` times the mean of the sixth power of the image. Adam minimises it with
    a learning rate that falls to 0 as a cosine.

    Args:
      network: the network.
      variables: its variables.
      images: (N, H, W, C), normalised.
      layer: name of the feature map.
      steps: number of steps.
      learning_rate: the first learning rate.
      total_variation: weight of the total variation.
      beta: its exponent.
      norm: weight of the norm of the image.
      seed: of the noise.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    def features(x: jax.Array) -> jax.Array:
        feature_map: jax.Array = network.apply(variables, x, train=False, features=True)[1][layer]
        return feature_map.astype(jnp.float32)

    def of_part(x: jax.Array) -> Inversion:
        target = features(x)
        target_norm = (target ** 2).sum(range(1, target.ndim))
        target_norm = jnp.where(target_norm > 0, target_norm, 1)

        def errors(x: jax.Array) -> jax.Array:
            return ((features(x) - target) ** 2).sum(range(1, target.ndim)) / target_norm

        def loss(x: jax.Array) -> jax.Array:
            penalty = total_variation * variation(x, beta) + norm * (x ** ALPHA).mean((1, 2, 3))
            return (errors(x) + penalty).sum()

        def step(carry: tuple[jax.Array, Any], _: None) -> tuple[tuple[jax.Array, Any], None]:
            image, state = carry
            updates, state = optimizer.update(jax.grad(loss)(image), state)
            return (image + updates, state), None
        noise = _START_STD * jax.random.normal(jax.random.key(seed), x.shape)
        (image, _), _ = jax.lax.scan(step, (noise, optimizer.init(noise)), None, steps)
        return Inversion(image, errors(image))
    result: Inversion = map_parts(of_part, images)
    return result


def variation(images: jax.Array, beta: float) -> jax.Array:
    """Return the mean over the pixels of `(dx ** 2 + dy ** 2) ** (beta / 2)` of each image (N, H, W, C): (N,)."""
    dx = images[:, :-1, 1:] - images[:, :-1, :-1]
    dy = images[:, 1:, :-1] - images[:, :-1, :-1]
    squared = dx ** 2 + dy ** 2
    return (squared if beta == 2 else (squared + 1e-8) ** (beta / 2)).mean((1, 2, 3))  # finite gradient where it is 0
