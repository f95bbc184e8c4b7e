"""Local response normalisation (Krizhevsky et al. 2012, "ImageNet classification with deep convolutional neural
networks")."""

import functools
import operator

import jax
import jax.numpy as jnp


def local_response_norm(x: jax.Array, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> jax.Array:
    """Return `x / (k + alpha / size * sum(x ** 2)) ** beta`, where the sum is over the `size` channels around each.

    `alpha` is divided by `size`, as in the authors' cuda-convnet, Caffe and PyTorch; the paper's formula omits that.
    Channels beyond the first and the last count as zeros; an even window has one more channel before than after. The
    computation is in float32 at least. The defaults are AlexNet's. The function can be differentiated in reverse mode any
    number of times, but not in forward mode.

    Args:
      x: (..., C).
      size: channels in the window (the paper's n).
      alpha: weight of the window's mean square.
      beta: exponent.
      k: constant that is added to it.

    Returns:
      (..., C) in the type of `x`.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    denominator = k + alpha / size * _window_sum(wide ** 2, size // 2, (size - 1) // 2)
    return (wide * jnp.exp(-beta * jnp.log(denominator))).astype(x.dtype)  # XLA's power is three times as slow on the CPU


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _window_sum(x: jax.Array, before: int, after: int) -> jax.Array:
    """Sum over each channel, the `before` channels before it and the `after` channels after it.

    The gradient is the same sum with `before` and `after` exchanged; JAX's would add padded slices, which takes ten times as
    long on the CPU.
    """
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(before, after)])
    return functools.reduce(operator.add, (
        jax.lax.slice_in_dim(padded, first, first + x.shape[-1], axis=-1) for first in range(before + after + 1)))


def _window_sum_forward(x: jax.Array, before: int, after: int) -> tuple[jax.Array, None]:
    return _window_sum(x, before, after), None


def _window_sum_backward(before: int, after: int, _: None, g: jax.Array) -> tuple[jax.Array]:
    return (_window_sum(g, after, before),)


_window_sum.defvjp(_window_sum_forward, _window_sum_backward)
