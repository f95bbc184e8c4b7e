"""Test-time augmentation: evaluation averages the logits of several variants of each image (`config.eval.tta`)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcnn.config import bind, parse_call
from jaxcnn.config.arguments import check_whole_number
from jaxcnn.errors import UserError, unknown

# maps images (N, H, W, C) to variants of them, each with its weight; the weights add up to 1
TestTimeAugmentation = Callable[[jax.Array], list[tuple[float, jax.Array]]]


def _add_mirrored(weighted_images: list[tuple[float, jax.Array]]) -> list[tuple[float, jax.Array]]:
    """Follow each variant by its mirror image; the two share the weight."""
    return [(weight / 2, x) for weight, images in weighted_images for x in (images, images[:, :, ::-1])]


def flip() -> TestTimeAugmentation:
    """Return two variants: the image and its mirror image."""
    return lambda images: _add_mirrored([(1.0, images)])


def flip_shift(pixels: int = 1) -> TestTimeAugmentation:
    """Return six variants: the image with half the weight, the image shifted by `pixels` along the diagonal in either
    direction with reflected borders, and the mirror image of each of the three.

    Reference: Jordan (2024), arXiv 2404.00498, section 3.5.
    """
    check_whole_number('flip_shift', pixels=pixels)

    def augment(images: jax.Array) -> list[tuple[float, jax.Array]]:
        _, height, width, _ = images.shape
        if pixels >= min(height, width):
            raise UserError(f'images of {height} x {width} are too small', field=f'flip_shift({pixels})')
        padded = jnp.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), 'reflect')
        return _add_mirrored([(0.5, images), (0.25, padded[:, :height, :width]),
                              (0.25, padded[:, 2 * pixels:, 2 * pixels:])])
    return augment


_AUGMENTATIONS: dict[str, Callable[..., TestTimeAugmentation]] = {f.__name__: f for f in (flip, flip_shift)}


def names() -> list[str]:
    """Return the names that `config.eval.tta` may have."""
    return ['none', *_AUGMENTATIONS]


def parse(text: str) -> TestTimeAugmentation | None:
    """Return the test-time augmentation that a string such as `'flip_shift(1)'` describes; None for `'none'`.

    Raises:
      UserError: the name is unknown, or it does not take the arguments.
    """
    name, args, kwargs = parse_call(text, 'config.eval.tta')
    if name == 'none':
        return None
    if name not in _AUGMENTATIONS:
        raise unknown('test-time augmentation', name, names())
    return _AUGMENTATIONS[name](**bind(_AUGMENTATIONS[name], args, kwargs, f'test-time augmentation {name}'))
