"""Normalisation: the last preprocessing of an image before the network, fitted on the training split.

`config.data.normalize` names one op, or several separated by `|`, as in `'gcn|zca(0.1)'`. Each op is fitted on the training
images as the ops before it return them; the images are preprocessed as in evaluation, not augmented. `none` leaves pixels in
[0, 1]. `standardize(0.5, 0.25)` is not fitted: it uses this mean and standard deviation, as pretrained weights require.
"""

import dataclasses
import functools
import logging
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.config import bind, parse_calls
from jaxcnn.config.arguments import check_number
from jaxcnn.errors import UserError, unknown
from jaxcnn.files import open_replacement

Fitted = Mapping[str, np.ndarray]
Images = Callable[[], Iterable[np.ndarray]]  # starts a pass over the training images in blocks, float32 (n, H, W, C)
MAX_ZCA_VALUES = 12288  # values of an image, 64 x 64 x 3; the matrix of ZCA has the square of this
log = logging.getLogger('jaxcnn')


class Normalizer(Protocol):
    """An op of normalisation."""

    def fit(self, images: Images) -> dict[str, np.ndarray]:
        """Return the statistics of the training images that `apply` and `invert` need: float32 arrays by name."""

    def apply(self, x: jax.Array, fitted: Fitted) -> jax.Array:
        """Normalise float images (N, H, W, C)."""

    def invert(self, y: jax.Array, fitted: Fitted) -> jax.Array:
        """Return the images from which `apply` computes `y`."""


@dataclasses.dataclass(frozen=True)
class _Standardize:
    per_pixel: bool = False
    scaled: bool = True  # divide by the standard deviation

    def fit(self, images: Images) -> dict[str, np.ndarray]:
        axes = (0,) if self.per_pixel else (0, 1, 2)
        count, total = 0, np.zeros(())
        for x in images():
            count += math.prod(x.shape[a] for a in axes)
            total = total + x.sum(axes, dtype=np.float64)
        mean = total / count
        if not self.scaled:
            return {'mean': mean.astype(np.float32), 'std': np.ones((), np.float32)}
        std = np.sqrt(sum(((x - mean) ** 2).sum(axes) for x in images()) / count)
        return {'mean': mean.astype(np.float32), 'std': np.where(std > 1e-6, std, 1).astype(np.float32)}

    def apply(self, x: jax.Array, fitted: Fitted) -> jax.Array:
        return (x - fitted['mean']) / fitted['std']

    def invert(self, y: jax.Array, fitted: Fitted) -> jax.Array:
        return y * fitted['std'] + fitted['mean']


@dataclasses.dataclass(frozen=True)
class _StandardizeByConstants(_Standardize):
    """Standardisation by constants, of which each has one value, or one for each channel."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def fit(self, images: Images) -> dict[str, np.ndarray]:
        channels = next(iter(images())).shape[-1]
        for name, values in (('mean', self.mean), ('std', self.std)):
            if len(values) not in (1, channels):
                raise UserError(f'standardize.{name}: got {len(values)} values for images with {channels} '
                                f'channel{"s" * (channels > 1)}', field='config.data.normalize',
                                hint='give a number, or one for each channel')
        return {'mean': np.asarray(self.mean, np.float32), 'std': np.asarray(self.std, np.float32)}


@dataclasses.dataclass(frozen=True)
class _ContrastNormalization:
    s: float
    epsilon: float
    lam: float

    def fit(self, images: Images) -> dict[str, np.ndarray]:
        return {}

    def apply(self, x: jax.Array, fitted: Fitted) -> jax.Array:
        centred = x - x.mean((1, 2, 3), keepdims=True)
        variance = self.lam + jnp.square(centred).mean((1, 2, 3), keepdims=True)
        return self.s * centred / jnp.sqrt(jnp.maximum(self.epsilon ** 2, variance))  # has a gradient at 0, too

    def invert(self, y: jax.Array, fitted: Fitted) -> jax.Array:
        raise UserError('gcn has no inverse, because it discards the mean and the contrast of each image')


@dataclasses.dataclass(frozen=True)
class _ZcaWhitening:
    epsilon: float

    def fit(self, images: Images) -> dict[str, np.ndarray]:
        count, total, products = 0, np.zeros(()), np.zeros(())
        shape = next(iter(images())).shape[1:]
        size = math.prod(shape)
        if size > MAX_ZCA_VALUES:
            raise UserError(f'zca needs a matrix of {size} x {size} for images of {" x ".join(map(str, shape))}, but only '
                            f'up to {MAX_ZCA_VALUES} x {MAX_ZCA_VALUES} is supported',
                            field='config.data.normalize', hint='reduce the images with config.data.image_size')
        log.info('fitting zca: computing the eigenvectors of a matrix of %d x %d', size, size)
        for block in images():
            x = block.reshape(len(block), size).astype(np.float64)
            count += len(x)
            total = total + x.sum(0)
            products = products + x.T @ x
        mean = total / count
        values, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))
        scale = np.sqrt(np.maximum(values, 0) + self.epsilon)
        return {'mean': mean.astype(np.float32), 'matrix': (vectors / scale @ vectors.T).astype(np.float32),
                'inverse': (vectors * scale @ vectors.T).astype(np.float32)}

    def apply(self, x: jax.Array, fitted: Fitted) -> jax.Array:
        return self._product(x.reshape(x.shape[0], -1) - fitted['mean'], fitted['matrix']).reshape(x.shape)

    def invert(self, y: jax.Array, fitted: Fitted) -> jax.Array:
        return (self._product(y.reshape(y.shape[0], -1), fitted['inverse']) + fitted['mean']).reshape(y.shape)

    @staticmethod
    def _product(x: jax.Array, matrix: np.ndarray) -> jax.Array:
        return jnp.matmul(x, matrix, precision=jax.lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True)
class _ReversedChannels:
    def fit(self, images: Images) -> dict[str, np.ndarray]:
        channels = next(iter(images())).shape[-1]
        if channels != 3:
            raise UserError(f'bgr needs images with 3 channels, got {channels}', field='config.data.normalize')
        return {}

    def apply(self, x: jax.Array, fitted: Fitted) -> jax.Array:
        return x[..., ::-1]

    def invert(self, y: jax.Array, fitted: Fitted) -> jax.Array:
        return y[..., ::-1]


def _constants(name: str, value: float | tuple[float, ...] | None, minimum: float) -> tuple[float, ...]:
    """Return the values of an argument of `standardize`, which is a number or one for each channel."""
    if value is None or value == ():
        raise UserError('needs both constants, as in standardize(0.5, 0.25)', field=f'standardize.{name}')
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    for number in values:
        check_number('standardize', minimum, 1, **{name: number})
    return values


def standardize(mean: float | tuple[float, ...] | None = None, std: float | tuple[float, ...] | None = None) -> Normalizer:
    """Give each channel mean 0 and standard deviation 1 over the training split, or compute `(x - mean) / std`.

    Args:
      mean, std: constants for pixels in [0, 1], each a number or one for each channel. Both are given, or none.
    """
    if mean is None and std is None:
        return _Standardize()
    return _StandardizeByConstants(mean=_constants('mean', mean, 0), std=_constants('std', std, 1e-6))


def standardize_pixels() -> Normalizer:
    """Give each channel of each pixel mean 0 and standard deviation 1 over the training split."""
    return _Standardize(per_pixel=True)


def pixel_mean() -> Normalizer:
    """Subtract the mean image of the training split (Krizhevsky et al. 2012, section 2)."""
    return _Standardize(per_pixel=True, scaled=False)


def gcn(s: float = 1.0, epsilon: float = 1e-8, lam: float = 0.0) -> Normalizer:
    """Normalise the contrast of each image: `s (x - mean) / max(epsilon, sqrt(lam + var))` over the values of the image.

    Reference: Goodfellow, Bengio, Courville, Deep Learning, section 12.2.1.1, equation 12.3.
    """
    check_number('gcn', s=s, epsilon=epsilon, lam=lam)
    return _ContrastNormalization(s, epsilon, lam)


def zca(epsilon: float = 0.1) -> Normalizer:
    """Whiten images by ZCA: `(x - mean) U diag((v + epsilon)^-1/2) U'`.

    The columns of U (D, D) are the eigenvectors of the covariance of the images as vectors (D,), and v (D,) its eigenvalues.

    Reference: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, appendix A.
    """
    check_number('zca', 1e-12, epsilon=epsilon)
    return _ZcaWhitening(epsilon)


def bgr() -> Normalizer:
    """Order the channels as blue, green and red, as in Caffe and OpenCV, for the ops that follow and for the network."""
    return _ReversedChannels()


_OPS: dict[str, Callable[..., Normalizer]] = {
    op.__name__: op for op in (standardize, standardize_pixels, pixel_mean, gcn, zca, bgr)}


def names() -> list[str]:
    """Return the names that `config.data.normalize` may have."""
    return ['none', *_OPS]


@dataclasses.dataclass(frozen=True, eq=False)  # compared and hashed by identity: jit needs a hash, and arrays have none
class Normalization:
    """A sequence of fitted ops, which is applied to images by calling it.

    Attributes:
      ops: the ops in order; none leaves images unchanged.
      fitted: the statistics that each op has been fitted to.
    """

    ops: Sequence[Normalizer] = ()
    fitted: Sequence[Fitted] = ()

    @classmethod
    def from_mean_std(cls, mean: Sequence[float], std: Sequence[float]) -> 'Normalization':
        """Return the normalisation that subtracts a mean and divides by a standard deviation, given for each channel."""
        return cls((_Standardize(),), ({'mean': np.asarray(mean, np.float32), 'std': np.asarray(std, np.float32)},))

    def __call__(self, images: jax.Array) -> jax.Array:
        """Return the network's input for float images (N, H, W, C) in [0, 1]."""
        for op, fitted in zip(self.ops, self.fitted, strict=True):
            images = op.apply(images, fitted)
        return images

    def inverse(self, images: jax.Array) -> jax.Array:
        """Return the images in [0, 1] for the network's input.

        Raises:
          UserError: an op has no inverse.
        """
        for op, fitted in zip(reversed(self.ops), reversed(self.fitted), strict=True):
            images = op.invert(images, fitted)
        return images


def parse(text: str) -> list[Normalizer]:
    """Return the ops that a string such as `'gcn|zca(0.1)'` describes; no op for `'none'`.

    Raises:
      UserError: an op is unknown, or does not take an argument.
    """
    if text.strip() == 'none':
        return []
    ops = []
    for name, args, kwargs in parse_calls(text, 'config.data.normalize'):
        if name not in _OPS:
            raise unknown('normalisation', name, names())
        ops.append(_OPS[name](**bind(_OPS[name], args, kwargs, f'normalisation {name}')))
    return ops


def _map_blocks(function: Callable, images: Images) -> Iterator[np.ndarray]:
    """Return an iterator over the blocks of images with a function applied to each."""
    return (np.asarray(function(x)) for x in images())


def fit(ops: Sequence[Normalizer], images: Images) -> list[dict[str, np.ndarray]]:
    """Return the statistics of the training images that each op needs."""
    fitted: list[dict[str, np.ndarray]] = []
    for op in ops:
        apply_previous = jax.jit(Normalization(ops[:len(fitted)], fitted).__call__)
        fitted.append(op.fit(functools.partial(_map_blocks, apply_previous, images)))
    return fitted


def write(path: str, fitted: Sequence[Fitted]) -> None:
    """Write the fitted statistics of ops to a file, which appears only when it is complete."""
    arrays = {f'{i}.{name}': value for i, statistics in enumerate(fitted) for name, value in statistics.items()}
    with open_replacement(path, 'wb', sync=True) as f:
        np.savez(f, allow_pickle=False, **arrays)


def read(path: str, ops: Sequence[Normalizer]) -> list[dict[str, np.ndarray]]:
    """Return the fitted statistics that `write` has written.

    Raises:
      UserError: the file is missing or damaged.
    """
    fitted: list[dict[str, np.ndarray]] = [{} for _ in ops]
    try:
        with np.load(path, allow_pickle=False) as file:  # a zip file, with a checksum of each array
            for key in file.files:
                index, _, name = key.partition('.')
                fitted[int(index)][name] = file[key]
    except (OSError, EOFError, ValueError, IndexError, zipfile.BadZipFile) as e:
        raise UserError(f'cannot read the fitted normalisation: {" ".join(str(e).split())}', field=path,
                        hint='restore the file, or use a new workdir') from e
    return fitted
