"""Augmentation: pure functions `(key, image) -> image` on one float image in [0, 1], run inside the compiled step.

A pipeline is a string of registered ops, `'pad_crop(4)|flip_lr|cutout(8)'`, applied in that order, each with a key
of its own. To add an op, write a function of its parameters that returns such a function, and put `@register` above it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcnn.config import bind, parse_call
from jaxcnn.errors import UserError, unknown

Op = Callable[[jax.Array, jax.Array], jax.Array]
_OPS: dict[str, Callable[..., Op]] = {}


def register(factory: Callable[..., Op]) -> Callable[..., Op]:
    """Makes an op known to pipeline strings under the function's name."""
    _OPS[factory.__name__] = factory
    return factory


def names() -> list[str]:
    """The registered ops."""
    return sorted(_OPS)


@register
def pad_crop(pad: int, mode: str = 'constant') -> Op:
    """Pads each side by `pad` pixels, then crops the original size at a uniformly drawn place (He et al. 2015, 4.2).

    Args:
      pad: pixels, at least 1.
      mode: how `jnp.pad` fills: `constant` (black), `reflect`, `edge`, `symmetric`.
    """
    modes = ('constant', 'reflect', 'edge', 'symmetric')
    if not isinstance(pad, int) or pad < 1:
        raise UserError(f'pad_crop: pad must be a whole number of at least 1, got {pad!r}')
    if mode not in modes:
        raise unknown('mode of pad_crop', mode, modes)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:  # (H, W, C)
        padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode=mode)
        top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1)
        return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)
    return apply


@register
def flip_lr(p: float = 0.5) -> Op:
    """Mirrors left and right with probability `p` in [0, 1]."""
    if not isinstance(p, (int, float)) or not 0 <= p <= 1:
        raise UserError(f'flip_lr: p must be between 0 and 1, got {p!r}')

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key, float(p)), image[:, ::-1], image)
    return apply


@register
def cutout(size: int, fill: float = 0.5) -> Op:
    """Fills a square whose centre is drawn uniformly over the image, cut off at its borders (DeVries & Taylor 2017).

    Args:
      size: side in pixels, at least 1.
      fill: value in [0, 1]. The paper fills with the data set's mean, which 0.5 stands for.
    """
    if not isinstance(size, int) or size < 1:
        raise UserError(f'cutout: size must be a whole number of at least 1, got {size!r}')
    if not isinstance(fill, (int, float)) or not 0 <= fill <= 1:
        raise UserError(f'cutout: fill must be between 0 and 1, got {fill!r}')

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        height, width, _ = image.shape
        centre = jax.random.randint(key, (2,), 0, jnp.array([height, width]))
        top, left = centre - size // 2
        rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
        inside = (rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size)
        return jnp.where(inside[..., None], jnp.asarray(fill, image.dtype), image)
    return apply


def pipeline(text: str) -> Op | None:
    """The op that a pipeline string describes; None where it is empty.

    Raises:
      UserError: an unknown op, an argument it does not take, or a string that is not a pipeline.
    """
    ops = []
    for part in text.split('|') if text.strip() else []:
        name, args, kwargs = parse_call(part, 'config.data.augment')
        if name not in _OPS:
            raise unknown('augmentation', name, names())
        ops.append(_OPS[name](**bind(_OPS[name], args, kwargs, f'augmentation {name}')))
    if not ops:
        return None

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        for position, op in enumerate(ops):
            image = op(jax.random.fold_in(key, position), image)
        return image
    return apply
