"""Calibration: the ranges of activations, from their values for a number of images.

`minmax` covers all values. `percentile` leaves out the largest ones. `entropy` chooses the range whose quantised histogram
is nearest to that of the values, as TensorRT does (Migacz 2017, "8-bit inference with TensorRT").
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.compression import layer_graph
from jaxcnn.compression.layer_graph import Graph
from jaxcnn.errors import UserError, unknown
from jaxcnn.ops.quantize import integer_range

METHODS = 'minmax', 'percentile', 'entropy'
TRAINED = 'trained'  # the ranges are those of quantisation-aware training
BINS = 2048
PERCENTILE = 99.99
_SEARCH_STEP = 8  # bins between the ranges that `entropy` compares


@dataclasses.dataclass(frozen=True)
class TensorScale:
    """The quantisation of an activation.

    Attributes:
      scale: the value of one unit.
      signed: whether the integers are symmetric; otherwise they begin at 0.
    """

    scale: float
    signed: bool


@dataclasses.dataclass(frozen=True)
class Histogram:
    """The values of an activation.

    Attributes:
      minimum, maximum: of the values.
      counts: (BINS,) numbers of absolute values in equal bins from 0 to the largest one.
    """

    minimum: float
    maximum: float
    counts: np.ndarray

    @property
    def limit(self) -> float:
        """The largest absolute value."""
        return max(-self.minimum, self.maximum)

    @property
    def signed(self) -> bool:
        """Whether a value is negative."""
        return self.minimum < 0


def check_method(method: str) -> None:
    """Raise a UserError for an unknown method."""
    if method not in METHODS:
        raise unknown('calibration', method, METHODS, '--calibration')


def collect(graph_of: Callable[[tuple[int, ...]], Graph], arrays: Mapping[str, Any],
            batches: Callable[[], Iterable[np.ndarray]]) -> dict[str, Histogram]:
    """Return the histogram of each quantised value of a network.

    Args:
      graph_of: returns the graph for images of a shape.
      arrays: see `layer_graph.fold`.
      batches: returns the images as the network gets them, (n, H, W, C) each. It is called twice, because the bins depend on
        the largest value.
    """
    def visit(images: jax.Array, arrays: Any, measure: Callable[[str, jax.Array], Any]) -> dict[str, Any]:
        results = {}

        def on_tensor(name: str, x: jax.Array) -> jax.Array:
            results[name] = measure(name, x)
            return x
        layer_graph.evaluate(graph_of(images.shape), arrays, images, on_tensor=on_tensor)
        return results

    @jax.jit
    def extremes(arrays: Any, images: jax.Array) -> dict[str, Any]:
        return visit(images, arrays, lambda _, x: (x.min(), x.max()))

    @jax.jit
    def counts(arrays: Any, limits: dict[str, Any], images: jax.Array) -> dict[str, Any]:
        def count(name: str, x: jax.Array) -> jax.Array:
            bins = jnp.minimum((jnp.abs(x) * (BINS / limits[name])).astype(jnp.int32), BINS - 1)
            return jnp.zeros(BINS, jnp.int32).at[bins.reshape(-1)].add(1)
        return visit(images, arrays, count)

    ranges: dict[str, tuple[float, float]] = {}
    for images in batches():
        for name, (low, high) in jax.device_get(extremes(arrays, images)).items():
            lowest, highest = ranges.get(name, (np.inf, -np.inf))
            ranges[name] = min(lowest, float(low)), max(highest, float(high))
    if not ranges:
        raise UserError('there are no images to calibrate with', field='--images')
    broken = [name for name, limits in ranges.items() if not np.isfinite(limits).all()]
    if broken:
        raise UserError(f'the activation {broken[0]} is not finite for some images, so it cannot be calibrated')
    limits = {name: max(-low, high) or 1.0 for name, (low, high) in ranges.items()}
    totals: dict[str, np.ndarray] = {name: np.zeros(BINS, np.int64) for name in ranges}
    for images in batches():
        for name, batch_counts in jax.device_get(counts(arrays, limits, images)).items():
            totals[name] += batch_counts
    return {name: Histogram(*ranges[name], totals[name]) for name in ranges}


def calibrate(histogram: Histogram, method: str, bits: int = 8) -> TensorScale:
    """Return the scale of an activation.

    Args:
      histogram: its values.
      method: one of `METHODS`.
      bits: number of bits.
    """
    _, high = integer_range(bits, histogram.signed)
    limit = histogram.limit
    if method == 'percentile':
        limit *= percentile_bins(histogram.counts, PERCENTILE) / BINS
    elif method == 'entropy':
        limit *= entropy_bins(histogram.counts, high + 1) / BINS
    return TensorScale((limit or 1.0) / high, histogram.signed)


def percentile_bins(counts: np.ndarray, percentile: float) -> int:
    """Return the number of first bins that hold at least `percentile` per cent of the values."""
    cumulative = counts.cumsum()
    return int(np.searchsorted(cumulative, cumulative[-1] * percentile / 100)) + 1


def entropy_bins(counts: np.ndarray, levels: int) -> int:
    """Return the number of first bins whose range, quantised to a number of levels, is nearest to the histogram.

    The distance is the Kullback-Leibler divergence of the quantised histogram from the original one, in which larger values
    count as those of the last bin. The first bin counts as much as the second, because the exact zeros of a ReLU need no
    resolution.
    """
    reference = counts.astype(np.float64)
    reference[0] = reference[1]
    best, best_divergence = len(counts), np.inf
    for size in range(len(counts), levels - 1, -_SEARCH_STEP):
        clipped = reference[:size].copy()
        group = np.arange(size) * levels // size
        is_used = clipped > 0
        sums, used = np.bincount(group, clipped, levels), np.bincount(group, is_used, levels)
        quantized = np.where(is_used, sums[group] / np.maximum(used[group], 1), 0)
        clipped[-1] += reference[size:].sum()
        divergence = _divergence(clipped, quantized)
        if divergence < best_divergence:
            best, best_divergence = size, divergence
    return best


def _divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Return the Kullback-Leibler divergence of two histograms, which are normalised first."""
    if not p.sum() or not q.sum():
        return np.inf
    p, q = p / p.sum(), q / q.sum()
    support = p > 0
    return float((p[support] * np.log(p[support] / np.maximum(q[support], 1e-12))).sum())
