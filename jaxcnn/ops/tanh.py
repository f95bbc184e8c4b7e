"""The hyperbolic tangent, fast on a CPU.

XLA on a CPU computes tanh slowly where it is fused with anything, such as a bias; written out as the rational function of
degrees 13 and 6 that XLA itself takes when tanh stands alone (Eigen's), it is 2 to 8 times as fast (docs/performance.md).
"""

import functools

import jax
import jax.numpy as jnp

_END = 7.90531110763549805  # from here on the quotient is 1, or 1 - 2.4e-7 where it is computed by fused multiply-adds
_ABOVE = (-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08, 1.48572235717979e-05,
          6.37261928875436e-04, 4.89352455891786e-03)
_BELOW = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)


def _rational(x: jax.Array) -> jax.Array:
    kept = jnp.clip(x.astype(jnp.float32), -_END, _END)
    squared = kept * kept
    above, below = (functools.reduce(lambda value, c: value * squared + c, c[1:], c[0]) for c in (_ABOVE, _BELOW))
    # the division comes last: XLA computes anything cheap after it anew in each op that takes the result
    return (kept * above / below).astype(x.dtype)


@jax.custom_jvp
@jax.jit
def tanh(x: jax.Array) -> jax.Array:
    """tanh of real values of any shape; float32 to 6 units of the last place, XLA's own to 5; below 1e-35 it may be 0.
    float64 is left to XLA."""
    if x.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        return jnp.tanh(x)
    return jax.lax.platform_dependent(x, cpu=_rational, default=jnp.tanh)


@tanh.defjvp
def _tangent(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    y = tanh(*primals)
    return y, tangents[0] * (1 - y * y)
