"""Ensembles: the mean of the predictions of several classifiers for the same images."""

import dataclasses
import os
from collections.abc import Callable, Sequence

import numpy as np

from jaxcnn.errors import UserError, counted
from jaxcnn.evaluation.predictions import Predictions, check_is_classifier
from jaxcnn.run import Run

MEANS = 'probabilities', 'logits'
Predict = Callable[[Run, str], Predictions]  # returns the predictions of a run for a split


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Classification runs whose predictions are averaged; one run alone is an ensemble, too.

    Attributes:
      runs: the runs, whose networks and preprocessing may differ.
      weights: the weight of each run, of which only the ratios matter; None: equal weights.
      mean: see `average`.

    Raises:
      UserError: A run is no classification run, a run occurs twice, or the weights do not fit; see `normalize_weights`.
    """

    runs: Sequence[Run]
    weights: Sequence[float] | None = None
    mean: str = 'probabilities'

    def __post_init__(self) -> None:
        normalize_weights(self.weights, len(self.runs))
        for i, run in enumerate(self.runs):
            check_is_classifier(run)
            if os.path.realpath(run.workdir) in [os.path.realpath(other.workdir) for other in self.runs[:i]]:
                raise UserError(f'the run in {run.workdir!r} is listed twice', field='--ensemble',
                                hint='--weights gives a run more weight')

    @property
    def title(self) -> str:
        """What the ensemble is, for reports."""
        if len(self.runs) > 1:
            return f'ensemble of {len(self.runs)} runs, mean of {self.mean}'
        run = self.runs[0]
        return f'{run.workdir}, checkpoint {run.find_step(run.checkpoint)}'

    def predict(self, split: str, predict: Predict) -> tuple[Predictions, list[Predictions]]:
        """Return the mean predictions for a split, and those of each run.

        Raises:
          UserError: The runs predict other images, labels or classes; see `check_same_images`.
        """
        members: list[Predictions] = []
        for run in self.runs:
            members.append(predict(run, split))
            check_same_images(members[0], members[-1], self.runs[0].workdir, run.workdir)
        return average(members, self.weights, self.mean), members


def check_same_images(first: Predictions, second: Predictions, first_title: str, second_title: str) -> None:
    """Check that two predictions are for the same images, with the same labels, and have the same classes.

    Args:
      first, second: the predictions.
      first_title, second_title: names of the predictions for errors, such as the workdirs of their runs.

    Raises:
      UserError: They differ; the message says in what.
    """
    pair = f'{first_title!r} and {second_title!r}'
    check_same_classes(first.class_names, second.class_names, first_title, second_title)
    if len(first.names) != len(second.names):
        raise UserError(f'{pair} predict {counted(len(first.names), "image")} and {counted(len(second.names), "image")}',
                        hint='both need the same images')
    for i, names in enumerate(zip(first.names, second.names, strict=True)):
        if len({*names}) > 1:
            raise UserError(f'{pair} predict other images: image {i} is {names[0]!r} and {names[1]!r}',
                            hint='both need the same images')
        if first.labels[i] != second.labels[i]:
            labels = [first.class_names[p.labels[i]] for p in (first, second)]
            raise UserError(f'{pair} have other labels: that of {names[0]!r} is {labels[0]!r} and {labels[1]!r}',
                            hint='both need the same images')


def check_same_classes(first: Sequence[str], second: Sequence[str], first_title: str, second_title: str) -> None:
    """Check that the names of the classes are the same, in the same order.

    Args:
      first, second: the names.
      first_title, second_title: names of what has these classes for errors, such as the workdirs of runs.

    Raises:
      UserError: They differ; the message says in what.
    """
    pair = f'{first_title!r} and {second_title!r}'
    if len(first) != len(second):
        raise UserError(f'{pair} have {len(first)} and {len(second)} classes',
                        hint='both need the same classes in the same order')
    for c, names in enumerate(zip(first, second, strict=True)):
        if names[0] != names[1]:
            raise UserError(f'the classes of {pair} differ: class {c} is {names[0]!r} and {names[1]!r}',
                            hint='both need the same classes in the same order')


def normalize_weights(weights: Sequence[float] | None, count: int) -> np.ndarray:
    """Return the weights of `count` members, which add up to 1; None means equal weights.

    Raises:
      UserError: There are more or fewer weights than members, one is negative or not finite, or all are 0.
    """
    values = np.ones(count) if weights is None else np.asarray(weights, np.float64)
    if len(values) != count:
        raise UserError(f'expected one weight for each of {counted(count, "run")}, got {counted(len(values), "weight")}')
    if not np.isfinite(values).all() or values.min() < 0 or not values.any():
        raise UserError(f'expected weights of at least 0, of which one is larger, got {" ".join(f"{w:g}" for w in values)}')
    return values / values.sum()


def average(members: Sequence[Predictions], weights: Sequence[float] | None = None,
            mean: str = 'probabilities') -> Predictions:
    """Return the mean predictions of an ensemble.

    Args:
      members: predictions for the same images; see `check_same_images`.
      weights: the weight of each member, of which only the ratios matter; None: equal weights.
      mean: `probabilities` for their arithmetic mean; `logits` for the mean of the logits, which is the geometric mean of
        the probabilities, scaled to the sum 1.

    Raises:
      UserError: The weights do not fit, see `normalize_weights`.
    """
    from scipy.special import log_softmax
    first, total = members[0], None
    for weight, member in zip(normalize_weights(weights, len(members)), members, strict=True):
        if weight == 0:
            continue
        log_probabilities = member.log_probabilities.astype(np.float64)
        if mean == 'logits':
            term = weight * log_probabilities
            total = term if total is None else total + term
        else:
            term = np.log(weight) + log_probabilities
            total = term if total is None else np.logaddexp(total, term)
    averaged = log_softmax(total, axis=-1)  # the probabilities of a mean of probabilities add up to 1 already
    return dataclasses.replace(first, log_probabilities=averaged.astype(np.float32))
