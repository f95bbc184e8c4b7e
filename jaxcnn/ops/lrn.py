"""Local response normalisation (Krizhevsky et al. 2012, "ImageNet classification with deep convolutional neural
networks")."""

import functools
import operator

import jax
import jax.numpy as jnp


def local_response_norm(x: jax.Array, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> jax.Array:
    """`x / (k + alpha / size * sum(x ** 2)) ** beta`, the sum over the `size` channels around each.

    `alpha` is divided by `size`, as in the authors' own cuda-convnet, Caffe and PyTorch; the paper's formula leaves that
    out. Channels beyond the first and last count as zeros; an even window has one channel more before than after. Computed
    in float32 at least. The defaults are AlexNet's. In reverse mode it can be differentiated any number of times, but not
    in forward mode.

    Args:
      x: (..., C).
      size: channels in the window (the paper's n).
      alpha: weight of their mean square.
      beta: exponent.
      k: what is added.

    Returns:
      (..., C) in the type of `x`.
    """
    exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    below = k + alpha / size * _around(exact ** 2, size // 2, (size - 1) // 2)
    return (exact * jnp.exp(-beta * jnp.log(below))).astype(x.dtype)  # XLA's power is three times as slow on the CPU


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _around(x: jax.Array, before: int, after: int) -> jax.Array:
    """Sums over each channel, those `before` and those `after` it. Its gradient is the like; JAX's own would add up padded
    slices, which takes ten times as long on the CPU."""
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(before, after)])
    return functools.reduce(operator.add, (
        jax.lax.slice_in_dim(padded, first, first + x.shape[-1], axis=-1) for first in range(before + after + 1)))


def _around_forward(x: jax.Array, before: int, after: int) -> tuple[jax.Array, None]:
    return _around(x, before, after), None


def _around_backward(before: int, after: int, _: None, g: jax.Array) -> tuple[jax.Array]:
    return (_around(g, after, before),)


_around.defvjp(_around_forward, _around_backward)
