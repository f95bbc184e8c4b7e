"""Several views of each image, whose logits are averaged in evaluation (`config.eval.views`)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcnn.config import bind, parse_call
from jaxcnn.data.augment.registry import whole
from jaxcnn.errors import UserError, unknown

Views = Callable[[jax.Array], list[tuple[float, jax.Array]]]  # of (N, H, W, C): weights, of sum 1, and images


def _mirrored(views: list[tuple[float, jax.Array]]) -> list[tuple[float, jax.Array]]:
    """Each view, and it mirrored left and right."""
    return [(weight / 2, x) for weight, view in views for x in (view, view[:, :, ::-1])]


def flip() -> Views:
    """Two views: the image, and it mirrored left and right."""
    return lambda x: _mirrored([(1.0, x)])


def flip_shift(pixels: int = 1) -> Views:
    """Six views: the image, which has half the weight, and it shifted along its diagonal by so many pixels either way, the
    border reflected; each of these, and it mirrored (Jordan 2024, arXiv 2404.00498, section 3.5)."""
    whole('flip_shift', pixels=pixels)

    def views(x: jax.Array) -> list[tuple[float, jax.Array]]:
        _, height, width, _ = x.shape
        if pixels >= min(height, width):
            raise UserError(f'flip_shift({pixels}): images are {height} x {width}')
        padded = jnp.pad(x, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), 'reflect')
        return _mirrored([(0.5, x), (0.25, padded[:, :height, :width]), (0.25, padded[:, 2 * pixels:, 2 * pixels:])])
    return views


_VIEWS: dict[str, Callable[..., Views]] = {f.__name__: f for f in (flip, flip_shift)}


def names() -> list[str]:
    """The known ones."""
    return ['none', *_VIEWS]


def parse(text: str) -> Views | None:
    """The views that a string describes, as in `'flip_shift(1)'`; None for `none`.

    Raises:
      UserError: unknown, or an argument it does not take.
    """
    name, args, kwargs = parse_call(text, 'config.eval.views')
    if name == 'none':
        return None
    if name not in _VIEWS:
        raise unknown('views', name, names())
    return _VIEWS[name](**bind(_VIEWS[name], args, kwargs, f'views {name}'))
