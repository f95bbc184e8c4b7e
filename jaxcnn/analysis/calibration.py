"""Calibration: whether predictions of 80 % are right in 80 % of the cases, and temperature scaling, which improves it."""

import dataclasses
import math

import numpy as np

from jaxcnn.analysis import figures

BINS = 15
TEMPERATURES = 0.05, 20.0  # the smallest and the largest temperature that `fit_temperature` returns


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Predictions in bins of their confidence, of equal width.

    Attributes:
      edges: (bins + 1,) from 0 to 1. A bin contains its upper edge, and the first one also 0.
      counts: (bins,) number of predictions.
      confidence: (bins,) their mean confidence; NaN in an empty bin.
      accuracy: (bins,) the fraction of them that is right; NaN in an empty bin.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def ece(self) -> float:
        """The expected calibration error: the mean of |accuracy - confidence| over the predictions (Guo et al. 2017)."""
        gaps = np.abs(self.accuracy - self.confidence)[self.counts > 0]
        return float((gaps * self.counts[self.counts > 0]).sum() / max(1, self.counts.sum()))

    @property
    def max_error(self) -> float:
        """The maximum calibration error: the largest |accuracy - confidence| of a bin."""
        return float(np.abs(self.accuracy - self.confidence)[self.counts > 0].max(initial=0.0))

    @property
    def overconfidence(self) -> float:
        """The mean confidence minus the accuracy of all predictions."""
        weights = self.counts / max(1, self.counts.sum())
        return float((np.nan_to_num(self.confidence - self.accuracy) * weights).sum())


def calibration(confidences: np.ndarray, is_correct: np.ndarray, bins: int = BINS) -> Calibration:
    """Sort predictions into bins by their confidence.

    Args:
      confidences: (N,) in [0, 1]; those that are not finite are left out.
      is_correct: (N,) bool.
      bins: number of bins of equal width.
    """
    is_finite = np.isfinite(confidences)
    confidences, is_correct = confidences[is_finite].astype(np.float64), is_correct[is_finite]
    edges = np.linspace(0, 1, bins + 1)
    index = np.clip(np.searchsorted(edges, confidences, side='left') - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    with np.errstate(invalid='ignore'):
        return Calibration(edges, counts, np.bincount(index, confidences, bins) / counts,
                           np.bincount(index, is_correct, bins) / counts)


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the Brier score (Brier 1950): the squared distance of the probabilities from the labels, averaged over images.

    It is 0 for perfect predictions and 2 for predictions that are certain and wrong.

    Args:
      probabilities: (N, classes).
      labels: (N,) classes.
    """
    targets = np.eye(probabilities.shape[1])[labels]
    return float(((probabilities - targets) ** 2).sum(1).mean())


def negative_log_likelihood(log_probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the negative logarithm of the probability of the label, averaged over images.

    Args:
      log_probabilities: (N, classes), the logarithms of the probabilities.
      labels: (N,) classes.
    """
    return float(-log_probabilities[np.arange(len(labels)), labels].astype(np.float64).mean())


def scale_by_temperature(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Return the logarithms of the probabilities for logits (N, classes) that are divided by a temperature, as float64."""
    from scipy.special import log_softmax
    scaled: np.ndarray = log_softmax(logits.astype(np.float64) / temperature, axis=-1)
    return scaled


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature with the smallest negative log likelihood (Guo et al. 2017, arXiv 1706.04599, section 4.2).

    Args:
      logits: (N, classes) of images that the network was not trained on.
      labels: (N,) their classes.

    Returns:
      The temperature, within `TEMPERATURES`. If all predictions are right, the best one is 0, and the result is any small
      one. If they are no better than chance, the best one is infinite, and the result is the largest one.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(scale_by_temperature(logits, math.exp(log_temperature)), labels)
    smallest, largest = TEMPERATURES
    result = minimize_scalar(loss, bounds=(math.log(smallest), math.log(largest)), options={'xatol': 1e-8})
    return math.exp(result.x)


def reliability_diagram(result: Calibration, path: str, title: str = 'reliability',
                        terms: tuple[str, str] = ('confidence', 'accuracy')) -> None:
    """Draw the accuracy over the confidence, and below it the number of predictions in each bin.

    Args:
      result: the predictions in bins.
      path: the PNG file.
      title: title of the figure.
      terms: names of the confidence and the accuracy in the figure.
    """
    width = result.edges[1]
    centers, has_images = result.edges[:-1] + width / 2, result.counts > 0
    with figures.open_figure(path, 5.5, 6.5, [title], layout='constrained') as figure:
        axis, histogram = figure.subplots(2, 1, sharex=True, gridspec_kw={'height_ratios': [3, 1]})
        axis.bar(centers[has_images], result.accuracy[has_images], 0.92 * width, color='#56b4e9', label=terms[1])
        axis.plot([0, 1], [0, 1], color='black', linestyle='--', linewidth=1, label='perfect calibration')
        axis.plot(result.confidence[has_images], result.accuracy[has_images], color='#d55e00', marker='o', markersize=5,
                  linestyle='', label=f'at the mean {terms[0]}')
        axis.set(ylabel=terms[1], xlim=(0, 1), ylim=(0, 1.02),
                 title=f'{title}: expected calibration error {100 * result.ece:.2f} %')
        axis.grid(alpha=0.3)
        figure.legend(loc='outside lower center', ncols=3, fontsize=9)
        histogram.bar(centers, result.counts, 0.92 * width, color='#999999')
        histogram.set(xlabel=terms[0], ylabel='predictions')
        histogram.grid(alpha=0.3)
