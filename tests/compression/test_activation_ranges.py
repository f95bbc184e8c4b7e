"""Calibrations of known distributions."""

import numpy as np
import pytest

from jaxcnn.compression import activation_ranges
from jaxcnn.compression.activation_ranges import BINS, Histogram


def histogram(values):
    largest = np.abs(values).max()
    counts, _ = np.histogram(np.abs(values), BINS, (0, largest))
    return Histogram(float(values.min()), float(values.max()), counts)


def test_minmax_covers_all_values():
    values = np.array([-0.5, 0.25, 2.0])
    assert activation_ranges.calibrate(histogram(values), 'minmax').scale == pytest.approx(2 / 127)
    unsigned = activation_ranges.calibrate(histogram(np.abs(values)), 'minmax')
    assert (unsigned.scale, unsigned.signed) == (pytest.approx(2 / 255), False)


def test_percentile_is_that_of_the_values():
    values = np.abs(np.random.default_rng(0).normal(size=200_000))
    scale = activation_ranges.calibrate(histogram(values), 'percentile').scale
    bin_width = values.max() / BINS
    assert scale * 255 == pytest.approx(np.percentile(values, 99.99), abs=1.5 * bin_width)


def brute_force(counts, levels):
    """The bins with the least divergence, by loops over bins."""
    counts = counts.astype(float)
    counts[0] = counts[1]
    best = None
    for size in range(len(counts), levels - 1, -8):
        p = list(counts[:size])
        groups = [[] for _ in range(levels)]
        for i in range(size):
            groups[i * levels // size].append(i)
        q = [0.0] * size
        for group in groups:
            used = [i for i in group if p[i] > 0]
            for i in used:
                q[i] = sum(p[j] for j in group) / len(used)
        p[-1] += counts[size:].sum()
        p, q = np.array(p) / sum(p), np.array(q) / sum(q)
        divergence = sum(a * np.log(a / max(b, 1e-12)) for a, b in zip(p, q, strict=True) if a > 0)
        if best is None or divergence < best[0]:
            best = divergence, size
    return best[1]


def test_entropy_minimises_the_divergence_and_clips_outliers():
    rng = np.random.default_rng(0)
    values = np.append(rng.laplace(size=50_000), [60.0])  # a rare outlier, four times as far as the next value
    result = histogram(values)
    assert activation_ranges.entropy_bins(result.counts, 128) == brute_force(result.counts, 128)
    scale = activation_ranges.calibrate(result, 'entropy').scale
    assert 3 < scale * 127 < 20
    uniform = histogram(rng.uniform(size=50_000))
    assert activation_ranges.entropy_bins(uniform.counts, 256) > 0.95 * BINS  # nothing to clip
