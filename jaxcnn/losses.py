"""Losses, in float32 whatever the network computes in."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Softmax cross-entropy of each example (Szegedy et al. 2016, section 7, for the smoothing).

    Args:
      logits: (N, classes).
      labels: (N,) whole numbers, or (N, classes) probabilities.
      label_smoothing: in [0, 1): the part of each target that is spread evenly over all classes.

    Returns:
      (N,) float32.
    """
    logits = logits.astype(jnp.float32)
    if labels.ndim == logits.ndim:
        targets = labels.astype(jnp.float32)
    elif label_smoothing:
        targets = jax.nn.one_hot(labels, logits.shape[-1])
    else:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))
