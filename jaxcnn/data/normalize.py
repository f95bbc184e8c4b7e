"""Normalisation: the last thing that happens to an image before the network, with what is fitted on the training part.

`config.data.normalize` names one op, or several with `|` between them, `'gcn|zca(0.1)'`, each fitted on what those
before it make of the training images as evaluation has them, not augmented. `none` leaves pixels in [0, 1].
"""

import dataclasses
import functools
import logging
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.config import bind, parse_calls
from jaxcnn.data.augment.registry import check_number
from jaxcnn.errors import UserError, name_file, unknown

Fitted = Mapping[str, np.ndarray]
Images = Callable[[], Iterable[np.ndarray]]  # the training images, float32 (n, H, W, C) at a time, from the beginning
MOST_VALUES = 12288  # of an image that ZCA takes, 64 x 64 x 3: its matrix has the square of it
log = logging.getLogger('jaxcnn')


class Normalizer(Protocol):
    """One op."""

    def fit(self, images: Images) -> dict[str, np.ndarray]:
        """What must be known of the training images, float32 arrays."""

    def apply(self, x: jax.Array, fitted: Fitted) -> jax.Array:
        """Of float images (N, H, W, C)."""

    def invert(self, y: jax.Array, fitted: Fitted) -> jax.Array:
        """The images of which `apply` made these."""


@dataclasses.dataclass(frozen=True)
class _Standardize:
    pixels: bool = False

    def fit(self, images: Images) -> dict[str, np.ndarray]:
        axes = (0,) if self.pixels else (0, 1, 2)
        count, total = 0, np.zeros(())
        for x in images():
            count, total = count + math.prod(x.shape[a] for a in axes), total + x.sum(axes, dtype=np.float64)
        mean = total / count
        std = np.sqrt(sum(((x - mean) ** 2).sum(axes) for x in images()) / count)
        return {'mean': mean.astype(np.float32), 'std': np.where(std > 1e-6, std, 1).astype(np.float32)}

    def apply(self, x: jax.Array, fitted: Fitted) -> jax.Array:
        return (x - fitted['mean']) / fitted['std']

    def invert(self, y: jax.Array, fitted: Fitted) -> jax.Array:
        return y * fitted['std'] + fitted['mean']


@dataclasses.dataclass(frozen=True)
class _Contrast:
    s: float
    epsilon: float
    lam: float

    def fit(self, images: Images) -> dict[str, np.ndarray]:
        return {}

    def apply(self, x: jax.Array, fitted: Fitted) -> jax.Array:
        centred = x - x.mean((1, 2, 3), keepdims=True)
        variance = self.lam + jnp.square(centred).mean((1, 2, 3), keepdims=True)
        return self.s * centred / jnp.sqrt(jnp.maximum(self.epsilon ** 2, variance))  # with a gradient at 0, too

    def invert(self, y: jax.Array, fitted: Fitted) -> jax.Array:
        raise UserError('gcn has no inverse: it forgets the mean and the contrast of each image')


@dataclasses.dataclass(frozen=True)
class _Whitening:
    epsilon: float

    def fit(self, images: Images) -> dict[str, np.ndarray]:
        count, total, products = 0, np.zeros(()), np.zeros(())
        shape = next(iter(images())).shape[1:]
        size = math.prod(shape)
        if size > MOST_VALUES:
            raise UserError(f'zca of images {shape[0]} x {shape[1]} x {shape[2]} takes a matrix of {size} x {size}; it '
                            f'goes up to {MOST_VALUES}', field='config.data.normalize',
                            hint='make them smaller with config.data.image_size')
        log.info('fitting zca: the eigenvectors of a matrix of %d x %d', size, size)
        for block in images():
            x = block.reshape(len(block), size).astype(np.float64)
            count, total, products = count + len(x), total + x.sum(0), products + x.T @ x
        mean = total / count
        values, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))
        scale = np.sqrt(np.maximum(values, 0) + self.epsilon)
        return {'mean': mean.astype(np.float32), 'matrix': (vectors / scale @ vectors.T).astype(np.float32),
                'inverse': (vectors * scale @ vectors.T).astype(np.float32)}

    def apply(self, x: jax.Array, fitted: Fitted) -> jax.Array:
        return self._product(x.reshape(len(x), -1) - fitted['mean'], fitted['matrix']).reshape(x.shape)

    def invert(self, y: jax.Array, fitted: Fitted) -> jax.Array:
        return (self._product(y.reshape(len(y), -1), fitted['inverse']) + fitted['mean']).reshape(y.shape)

    @staticmethod
    def _product(x: jax.Array, matrix: np.ndarray) -> jax.Array:
        return jnp.matmul(x, matrix, precision=jax.lax.Precision.HIGHEST)


def standardize() -> Normalizer:
    """Zero mean and unit deviation of each channel, over the training part."""
    return _Standardize()


def standardize_pixels() -> Normalizer:
    """Zero mean and unit deviation of each value at each place, over the training part."""
    return _Standardize(pixels=True)


def gcn(s: float = 1.0, epsilon: float = 1e-8, lam: float = 0.0) -> Normalizer:
    """Global contrast normalisation: `s (x - mean) / max(epsilon, sqrt(lam + var))`, of each image's own values.

    Goodfellow, Bengio, Courville, Deep Learning, section 12.2.1.1, equation 12.3.
    """
    check_number('gcn', s=s, epsilon=epsilon, lam=lam)
    return _Contrast(s, epsilon, lam)


def zca(epsilon: float = 0.1) -> Normalizer:
    """ZCA: `(x - mean) U diag((v + epsilon)^-1/2) U'`, U and v the covariance's eigenvectors and eigenvalues, (D, D), (D,).

    Krizhevsky, Learning Multiple Layers of Features from Tiny Images, appendix A.
    """
    check_number('zca', 1e-12, epsilon=epsilon)
    return _Whitening(epsilon)


_OPS: dict[str, Callable[..., Normalizer]] = {op.__name__: op for op in (standardize, standardize_pixels, gcn, zca)}


def names() -> list[str]:
    """The known ops."""
    return ['none', *_OPS]


@dataclasses.dataclass(frozen=True, eq=False)  # by identity: arrays have no hash, and jit asks for one
class Normalization:
    """Ops one after the other, fitted.

    Attributes:
      ops: none, one or several.
      fitted: what each has learned.
    """

    ops: Sequence[Normalizer] = ()
    fitted: Sequence[Fitted] = ()

    @classmethod
    def by(cls, mean: Sequence[float], std: Sequence[float]) -> 'Normalization':
        """Subtracts a mean and divides by a deviation, of each channel."""
        return cls((_Standardize(),), ({'mean': np.asarray(mean, np.float32), 'std': np.asarray(std, np.float32)},))

    def __call__(self, images: jax.Array) -> jax.Array:
        """What the network sees of float images (N, H, W, C) in [0, 1]."""
        for op, fitted in zip(self.ops, self.fitted, strict=True):
            images = op.apply(images, fitted)
        return images

    def inverse(self, images: jax.Array) -> jax.Array:
        """The images in [0, 1] of which the network sees these.

        Raises:
          UserError: one of the ops has no inverse.
        """
        for op, fitted in zip(reversed(self.ops), reversed(self.fitted), strict=True):
            images = op.invert(images, fitted)
        return images


def parse(text: str) -> list[Normalizer]:
    """The ops that a string describes.

    Raises:
      UserError: an unknown op, or an argument it does not take.
    """
    ops = []
    for name, args, kwargs in parse_calls(text, 'config.data.normalize') if text.strip() != 'none' else []:
        if name not in _OPS:
            raise unknown('normalisation', name, names())
        ops.append(_OPS[name](**bind(_OPS[name], args, kwargs, f'normalisation {name}')))
    return ops


def _through(function: Callable, images: Images) -> Iterator[np.ndarray]:
    return (np.asarray(function(x)) for x in images())


def fit(ops: Sequence[Normalizer], images: Images) -> list[dict[str, np.ndarray]]:
    """What each op learns of the training images."""
    fitted: list[dict[str, np.ndarray]] = []
    for op in ops:
        before = jax.jit(Normalization(ops[:len(fitted)], fitted).__call__)
        fitted.append(op.fit(functools.partial(_through, before, images)))
    return fitted


def write(path: str, fitted: Sequence[Fitted]) -> None:
    """Keeps what was fitted, under a temporary name first."""
    with name_file(path), open(f'{path}.tmp', 'wb') as f:
        np.savez(f, allow_pickle=False,
                 **{f'{i}.{name}': value for i, of_op in enumerate(fitted) for name, value in of_op.items()})
        f.flush()
        os.fsync(f.fileno())
    os.replace(f'{path}.tmp', path)


def read(path: str, ops: Sequence[Normalizer]) -> list[dict[str, np.ndarray]]:
    """What `write` kept.

    Raises:
      UserError: it is missing or damaged.
    """
    fitted: list[dict[str, np.ndarray]] = [{} for _ in ops]
    try:
        with np.load(path, allow_pickle=False) as file:  # a zip file, with a checksum of each array
            for name in file.files:
                fitted[int(name.partition('.')[0])][name.partition('.')[2]] = file[name]
    except (OSError, EOFError, ValueError, IndexError, zipfile.BadZipFile) as e:
        raise UserError(f'{path}: what normalisation was fitted to cannot be read: {" ".join(str(e).split())}; '
                        'put it back, or use a new workdir') from e
    return fitted
