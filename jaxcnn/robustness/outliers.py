"""Scores that tell images of other kinds from those of a run, and how well they do."""

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxcnn.errors import UserError


def _log_sum_exp(logits: np.ndarray) -> np.ndarray:
    largest = logits.max(-1, keepdims=True)
    return (np.log(np.exp(logits - largest).sum(-1, keepdims=True)) + largest)[:, 0]


# from the logits (N, classes) to a score that is larger for images of the run, (N,)
SCORES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    'max softmax': lambda logits: np.exp(logits.max(-1) - _log_sum_exp(logits)),  # Hendrycks & Gimpel 2017
    'energy': _log_sum_exp,  # the negative energy at temperature 1 (Liu et al. 2020)
    'max logit': lambda logits: logits.max(-1),  # Hendrycks et al. 2022
}


@dataclasses.dataclass(frozen=True)
class Separation:
    """How well a score separates images of the run from others.

    Attributes:
      score: name of the score.
      auroc: area under the ROC curve: the probability that an image of the run has the larger score.
      aupr_in, aupr_out: average precision, with images of the run, or the others, as positives.
      fpr95: fraction of the others above the score that 95 % of the images of the run reach.
      inside, outside: the scores of both.
    """

    score: str
    auroc: float
    aupr_in: float
    aupr_out: float
    fpr95: float
    inside: np.ndarray
    outside: np.ndarray

    def values(self) -> dict[str, float]:
        """Return the metrics by name."""
        return {'auroc': self.auroc, 'aupr_in': self.aupr_in, 'aupr_out': self.aupr_out, 'fpr95': self.fpr95}


def separate(inside_logits: np.ndarray, outside_logits: np.ndarray) -> list[Separation]:
    """Return how well each score separates images of the run from others.

    Args:
      inside_logits, outside_logits: the logits of both, (N, classes) each.

    Raises:
      UserError: One of them is empty, or a logit is not a number.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score
    for name, logits in (('the run', inside_logits), ('the other data', outside_logits)):
        if not len(logits):
            raise UserError(f'{name} has no images')
        if not np.isfinite(logits).all():
            raise UserError(f'the network gives logits that are not finite for images of {name}')
    is_inside = np.concatenate([np.ones(len(inside_logits), int), np.zeros(len(outside_logits), int)])
    result = []
    for name, score in SCORES.items():
        inside, outside = (score(logits.astype(np.float64)) for logits in (inside_logits, outside_logits))
        scores = np.concatenate([inside, outside])
        threshold = np.sort(inside)[int(np.floor(0.05 * len(inside)))]  # at least 95 % reach it
        result.append(Separation(
            name, float(roc_auc_score(is_inside, scores)), float(average_precision_score(is_inside, scores)),
            float(average_precision_score(1 - is_inside, -scores)), float((outside >= threshold).mean()), inside, outside))
    return result
