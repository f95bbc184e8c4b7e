"""The hyperbolic tangent, fast on a CPU.

On the CPU, XLA computes tanh slowly where it is fused with another operation, such as a bias. The rational function of
degrees 13 and 6 that XLA uses for an unfused tanh (Eigen's) is 2 to 8 times as fast (docs/performance-log.md).
"""

import functools

import jax
import jax.numpy as jnp

_LIMIT = 7.90531110763549805  # from here on the quotient is 1, or 1 - 2.4e-7 where it is computed by fused multiply-adds
_NUMERATOR = (-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08, 1.48572235717979e-05,
              6.37261928875436e-04, 4.89352455891786e-03)
_DENOMINATOR = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)


def _rational(x: jax.Array) -> jax.Array:
    clipped = jnp.clip(x.astype(jnp.float32), -_LIMIT, _LIMIT)
    squared = clipped * clipped
    numerator, denominator = (functools.reduce(lambda value, c: value * squared + c, coefficients[1:], coefficients[0])
                              for coefficients in (_NUMERATOR, _DENOMINATOR))
    # The division comes last because XLA recomputes any cheap operation after it in every operation that reads the result.
    return (clipped * numerator / denominator).astype(x.dtype)


@jax.custom_jvp
@jax.jit
def tanh(x: jax.Array) -> jax.Array:
    """Return the hyperbolic tangent of real values of any shape.

    In float32 it is exact to 6 units in the last place (XLA's to 5), and may be 0 below 1e-35. XLA computes that of float64.
    """
    if x.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        return jnp.tanh(x)
    return jax.lax.platform_dependent(x, cpu=_rational, default=jnp.tanh)


@tanh.defjvp
def _tangent(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    y = tanh(*primals)
    return y, tangents[0] * (1 - y * y)
