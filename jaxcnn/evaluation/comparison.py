"""How certain an accuracy is, and whether two classifiers differ: bootstrap intervals and McNemar's exact test."""

import dataclasses

import numpy as np

CONFIDENCE_LEVEL = 0.95
BOOTSTRAP_SAMPLES = 10_000
BOOTSTRAP_SEED = 0


def accuracy_interval(correct: np.ndarray, level: float = CONFIDENCE_LEVEL, samples: int = BOOTSTRAP_SAMPLES,
                      seed: int = BOOTSTRAP_SEED) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the accuracy (Efron 1979).

    A bootstrap sample draws N images with replacement, so that the number of its correct predictions is binomial.

    Args:
      correct: (N,) bool, whether each prediction is correct.
      level: confidence level.
      samples: number of bootstrap samples.
      seed: seed of the samples.
    """
    count = len(correct)
    drawn = np.random.default_rng(seed).binomial(count, correct.mean(), samples)
    return _percentiles(drawn / count, level)


def _percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
    """Return the limits between which the central values lie, whose fraction is `level`."""
    lower, upper = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(lower), float(upper)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two classifiers on the same images.

    Attributes:
      only_first: number of images that only the first one classifies correctly, McNemar's b.
      only_second: number of images that only the second one classifies correctly, McNemar's c.
      p_value: of McNemar's exact test, whose null hypothesis is that both have the same accuracy.
      difference: the accuracy of the first minus that of the second.
      interval: the percentile bootstrap interval of the difference, of paired samples of the images.
    """

    only_first: int
    only_second: int
    p_value: float
    difference: float
    interval: tuple[float, float]


def compare(first: np.ndarray, second: np.ndarray, level: float = CONFIDENCE_LEVEL, samples: int = BOOTSTRAP_SAMPLES,
            seed: int = BOOTSTRAP_SEED) -> Comparison:
    """Compare two classifiers on the same images.

    McNemar's test (1947) in its exact form: if both have the same accuracy, an image that only one of them classifies
    correctly is equally probably one of the first or of the second.

    Args:
      first, second: (N,) bool, whether each prediction of the two is correct.
      level: confidence level of the interval.
      samples: number of bootstrap samples.
      seed: seed of the samples.
    """
    from scipy.stats import binomtest
    count, only_first, only_second = len(first), int((first & ~second).sum()), int((second & ~first).sum())
    num_different = only_first + only_second
    p_value = float(binomtest(only_first, num_different).pvalue) if num_different else 1.0
    fractions = np.array([only_first, only_second, count - num_different]) / count
    drawn = np.random.default_rng(seed).multinomial(count, fractions, samples)
    interval = _percentiles((drawn[:, 0] - drawn[:, 1]) / count, level)
    return Comparison(only_first, only_second, p_value, (only_first - only_second) / count, interval)
