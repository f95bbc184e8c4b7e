"""Non-maximum suppression of gradient magnitudes (Canny 1986), which thins edges to a width of one pixel."""

import math

import jax
import jax.numpy as jnp

from jaxcnn.ops.boxes import as_float


def thin_edges(dx: jax.Array, dy: jax.Array, interpolate: bool = True) -> jax.Array:
    """Return the gradient magnitudes that are maxima along the direction of the gradient, and 0 at other pixels.

    The magnitude of a pixel is compared with the two magnitudes at the points where the line along its gradient leaves its
    3x3 neighbourhood. It must be greater than that at the first point (on the left or, for a vertical gradient, above), and
    not less than that at the second one, so an edge two equal pixels wide is thinned to one pixel. Pixels outside the image
    have magnitudes of 0.

    Args:
      dx: (..., H, W), derivative along the columns, such as that of Sobel's filter; y points down.
      dy: (..., H, W), derivative along the rows.
      interpolate: interpolate linearly between the two neighbours on each side of the line, as in Canny's paper. False uses
        the neighbour that is nearest to the direction, as in OpenCV, where a maximum along a diagonal must also be greater
        than the second neighbour.

    Returns:
      (..., H, W).
    """
    dx, dy = as_float(dx), as_float(dy)
    magnitude = jnp.sqrt(dx ** 2 + dy ** 2)
    h, w = magnitude.shape[-2:]
    padded = jnp.pad(magnitude, [(0, 0)] * (magnitude.ndim - 2) + [(1, 1), (1, 1)])

    def neighbor(row: int, column: int) -> jax.Array:
        return padded[..., 1 + row:1 + row + h, 1 + column:1 + column + w]

    across, down = jnp.abs(dx), jnp.abs(dy)
    is_falling = (dx < 0) != (dy < 0)  # the gradient points right and up, or left and down
    is_steep = down > across

    def on_diagonal(side: int) -> jax.Array:
        """Return the magnitude of the neighbour on the diagonal of the gradient, above (side -1) or below (1) the pixel."""
        return jnp.where(is_falling, neighbor(side, -side), neighbor(side, side))

    above, below, left, right = neighbor(-1, 0), neighbor(1, 0), neighbor(0, -1), neighbor(0, 1)
    if not interpolate:
        is_straight = jnp.minimum(across, down) < math.tan(math.pi / 8) * jnp.maximum(across, down)
        first = jnp.where(is_straight, jnp.where(is_steep, above, left), on_diagonal(-1))
        second = jnp.where(is_straight, jnp.where(is_steep, below, right), on_diagonal(1))
        is_maximum = (magnitude > first) & jnp.where(is_straight, magnitude >= second, magnitude > second)
        return jnp.where(is_maximum, magnitude, 0)
    longer = jnp.maximum(across, down)
    fraction = jnp.minimum(across, down) / jnp.where(longer == 0, 1, longer)
    # The diagonal neighbour on the left is above the pixel unless the gradient is falling.
    diagonal_left = jnp.where(is_falling, on_diagonal(1), on_diagonal(-1))
    diagonal_right = jnp.where(is_falling, on_diagonal(-1), on_diagonal(1))
    first = jnp.where(is_steep, above + fraction * (on_diagonal(-1) - above), left + fraction * (diagonal_left - left))
    second = jnp.where(is_steep, below + fraction * (on_diagonal(1) - below), right + fraction * (diagonal_right - right))
    return jnp.where((magnitude > first) & (magnitude >= second), magnitude, 0)
