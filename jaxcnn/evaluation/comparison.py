"""How certain an accuracy is, and whether two classifiers differ: bootstrap intervals and McNemar's exact test."""

import dataclasses

import numpy as np

CONFIDENCE_LEVEL = 0.95
BOOTSTRAP_SAMPLES = 10_000
BOOTSTRAP_SEED = 0


def interval_of_mean(values: np.ndarray, level: float = CONFIDENCE_LEVEL, samples: int = BOOTSTRAP_SAMPLES,
                     seed: int = BOOTSTRAP_SEED) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean over images, such as the accuracy (Efron 1979).

    A bootstrap sample draws N images with replacement. As few values are distinct, it draws how often each occurs.

    Args:
      values: (N,) whether each image is classified correctly, for instance.
      level: confidence level.
      samples: number of bootstrap samples.
      seed: seed of the samples.
    """
    distinct, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), samples)
    lower, upper = np.quantile(drawn @ distinct / len(values), [(1 - level) / 2, (1 + level) / 2])
    return float(lower), float(upper)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two classifiers on the same images.

    Attributes:
      only_first: number of images that only the first one classifies correctly, McNemar's b. Of images in several versions,
        those that it classifies correctly in more of them.
      only_second: the same for the second one, McNemar's c.
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
    correctly is equally probably one of the first or of the second. With several versions of each image it is the sign test,
    since the versions of an image are not independent.

    Args:
      first, second: (N,) whether each of the two classifies an image correctly, or the fraction of its versions.
      level: confidence level of the interval.
      samples: number of bootstrap samples.
      seed: seed of the samples.
    """
    from scipy.stats import binomtest
    differences = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    only_first, only_second = int((differences > 0).sum()), int((differences < 0).sum())
    num_different = only_first + only_second
    p_value = float(binomtest(only_first, num_different).pvalue) if num_different else 1.0
    interval = interval_of_mean(differences, level, samples, seed)
    return Comparison(only_first, only_second, p_value, float(differences.mean()), interval)
