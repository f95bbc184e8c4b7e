"""Pairs of images that look alike: the same picture, encoded again, resized or slightly cropped."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

HASH_BITS = 64
MAX_DISTANCE = 6  # bits in which the perceptual hashes of near duplicates differ at most
MIN_CORRELATION = 0.95  # of their thumbnails
MAX_PAIRS = 1_000_000  # beyond this, the search ends
_BLOCK_SIZE = 4096  # pairs of which thumbnails are compared at a time


class Pairs(NamedTuple):
    """Pairs of N images.

    Attributes:
      first, second: (n,) the rows of the images; the first is the smaller one.
      distance: (n,) the Hamming distance of their hashes.
    """

    first: np.ndarray
    second: np.ndarray
    distance: np.ndarray


def close_pairs(hashes: np.ndarray, max_distance: int = MAX_DISTANCE) -> Iterator[Pairs]:
    """Yield all pairs of hashes that differ in at most `max_distance` bits, each once.

    The 64 bits are cut into `max_distance + 1` bands. By the pigeonhole principle, two such hashes agree in all bits of at
    least one band, so only hashes that do are compared. With 100,000 hashes and 7 bands, these are about one in 70 of all
    pairs.

    Args:
      hashes: (N,) uint64.
      max_distance: from 0 to 63.
    """
    num_bands = max_distance + 1
    edges = [HASH_BITS * band // num_bands for band in range(num_bands + 1)]
    masks = [np.uint64((1 << end) - (1 << start)) for start, end in itertools.pairwise(edges)]
    for band, mask in enumerate(masks):
        order = np.argsort(hashes & mask, kind='stable')
        ordered = hashes[order]
        left, step = np.arange(len(hashes)), 0
        while len(left):
            step += 1
            left = left[left + step < len(hashes)]
            difference = ordered[left] ^ ordered[left + step]
            is_equal = (difference & mask) == 0
            left, difference = left[is_equal], difference[is_equal]
            distance = np.bitwise_count(difference)
            is_close = distance <= max_distance
            for earlier in masks[:band]:  # a pair that agrees in several bands is that of the first of them
                is_close &= (difference & earlier) != 0
            if is_close.any():
                a, b = order[left[is_close]], order[left[is_close] + step]
                yield Pairs(np.minimum(a, b), np.maximum(a, b), distance[is_close])


def near_pairs(hashes: np.ndarray, thumbnails: np.ndarray, max_distance: int = MAX_DISTANCE,
               min_correlation: float = MIN_CORRELATION, max_pairs: int = MAX_PAIRS) -> Pairs:
    """Return the pairs of images with close hashes whose thumbnails are correlated, too.

    The hash alone also finds images that share only the coarse distribution of light, as handwritten digits do.

    Args:
      hashes: (N,) uint64, perceptual hashes.
      thumbnails: uint8 (N, H, W, C).
      max_distance: the maximum of their Hamming distance.
      min_correlation: the minimum of the correlation of their thumbnails over pixels and channels.
      max_pairs: number of pairs from which the search ends.
    """
    blocks, count = [Pairs(*(np.zeros(0, np.int64) for _ in range(3)))], 0
    for pairs in close_pairs(hashes, max_distance):
        for start in range(0, len(pairs.first), _BLOCK_SIZE):
            block = Pairs(*(values[start:start + _BLOCK_SIZE] for values in pairs))
            is_near = _correlations(thumbnails[block.first], thumbnails[block.second]) >= min_correlation
            blocks.append(Pairs(*(values[is_near] for values in block)))
            count += int(is_near.sum())
        if count >= max_pairs:
            break
    return Pairs(*(np.concatenate(values) for values in zip(*blocks, strict=True)))


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the correlation of each of n pairs of images (n, H, W, C); about 0 for images of one colour."""
    a, b = (values.reshape(len(values), -1).astype(np.float32) for values in (a, b))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    return (a * b).mean(1) / np.sqrt((a ** 2).mean(1) * (b ** 2).mean(1) + 1)
