"""The evaluation of a run or an ensemble on one split: accuracy with its interval, calibration, results by class."""

import dataclasses
import functools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcnn.analysis import calibration as calibrations
from jaxcnn.analysis.calibration import Calibration
from jaxcnn.errors import UserError, counted
from jaxcnn.evaluation import comparison as comparisons
from jaxcnn.evaluation.comparison import Comparison
from jaxcnn.evaluation.ensemble import Ensemble, Predict, check_same_images, normalize_weights
from jaxcnn.evaluation.predictions import Predictions, check_is_classifier
from jaxcnn.metrics import format_percent, per_class
from jaxcnn.run import Run

_TOP = 5  # classes of the metric top-5
log = logging.getLogger('jaxcnn')


@dataclasses.dataclass(frozen=True)
class Member:
    """A run of an ensemble, or another run that it is compared with.

    Attributes:
      workdir: its workdir.
      step: the step of its checkpoint.
      accuracy: its accuracy.
      weight: its weight in the mean, as a fraction.
    """

    workdir: str
    step: int
    accuracy: float
    weight: float = 1.0

    @classmethod
    def of_run(cls, run: Run, predictions: Predictions, weight: float = 1.0) -> 'Member':
        """Return the member for a run with its predictions."""
        return cls(run.workdir, run.find_step(run.checkpoint), float(predictions.correct.mean()), weight)


@dataclasses.dataclass(frozen=True)
class CalibrationScores:
    """How well probabilities are calibrated.

    Attributes:
      bins: the predictions in bins of their confidence.
      brier_score: see `calibration.brier_score`.
      negative_log_likelihood: see `calibration.negative_log_likelihood`.
    """

    bins: Calibration
    brier_score: float
    negative_log_likelihood: float

    @classmethod
    def compute(cls, log_probabilities: np.ndarray, labels: np.ndarray) -> 'CalibrationScores':
        """Return the scores of predictions, the logarithms of probabilities (N, classes), for labels (N,)."""
        probabilities = np.exp(log_probabilities)
        bins = calibrations.calibration(probabilities.max(-1), probabilities.argmax(-1) == labels)
        return cls(bins, calibrations.brier_score(probabilities, labels),
                   calibrations.negative_log_likelihood(log_probabilities, labels))

    def values(self) -> dict[str, float]:
        """Return the scores by name."""
        return {'ece': self.bins.ece, 'brier_score': self.brier_score,
                'negative_log_likelihood': self.negative_log_likelihood}

    def describe(self) -> str:
        """Return the scores as text."""
        return (f'expected calibration error {format_percent(self.bins.ece)}  Brier score {self.brier_score:.4f}  '
                f'negative log likelihood {self.negative_log_likelihood:.4f}')


@dataclasses.dataclass(frozen=True)
class Result:
    """The evaluation of a run, or of an ensemble of several.

    Attributes:
      title: what was evaluated, such as `runs/digits, checkpoint 40`.
      split: the split.
      predictions: the predictions for the split.
      members: the runs.
      mean: the kind of mean of an ensemble; see `ensemble.average`.
      temperature: the temperature fitted to the validation split; None if it was not fitted.
      num_validation: number of images that the temperature was fitted to.
      other: the run that this one is compared with, or None.
      comparison: the comparison with it, or None.
    """

    title: str
    split: str
    predictions: Predictions
    members: Sequence[Member]
    mean: str = 'probabilities'
    temperature: float | None = None
    num_validation: int = 0
    other: Member | None = None
    comparison: Comparison | None = None

    @property
    def accuracy(self) -> float:
        """The fraction of images whose most probable class is the true one."""
        return float(self.predictions.correct.mean())

    @functools.cached_property
    def accuracy_interval(self) -> tuple[float, float]:
        """The bootstrap interval of the accuracy."""
        return comparisons.interval_of_mean(self.predictions.correct_by_image)

    @property
    def top5(self) -> float | None:
        """The fraction of images whose label is one of the five most probable classes; None for five classes or fewer."""
        if len(self.predictions.class_names) <= _TOP:
            return None
        best = np.argsort(-self.predictions.log_probabilities, axis=-1, kind='stable')[:, :_TOP]
        is_finite = self.predictions.predicted >= 0
        return float(((best == self.predictions.labels[:, None]).any(1) & is_finite).mean())

    @functools.cached_property
    def confusion(self) -> np.ndarray:
        """The number of images of each label and predicted class, (labels, predictions), without predictions of NaN."""
        num_classes, predicted = len(self.predictions.class_names), self.predictions.predicted
        counts = np.zeros((num_classes, num_classes), np.int64)
        np.add.at(counts, (self.predictions.labels[predicted >= 0], predicted[predicted >= 0]), 1)
        return counts

    @functools.cached_property
    def calibration(self) -> CalibrationScores:
        """The calibration of the predictions as they are."""
        return CalibrationScores.compute(self.predictions.log_probabilities, self.predictions.labels)

    @functools.cached_property
    def scaled_calibration(self) -> CalibrationScores | None:
        """The calibration of the predictions with the temperature; None without a temperature."""
        if self.temperature is None:
            return None
        scaled = calibrations.scale_by_temperature(self.predictions.log_probabilities, self.temperature)
        return CalibrationScores.compute(scaled, self.predictions.labels)

    def values(self) -> dict[str, Any]:
        """Return everything as a value for JSON."""
        names = self.predictions.class_names
        values: dict[str, Any] = {
            'title': self.title, 'split': self.split, 'count': self.predictions.num_images,
            **({'versions': self.predictions.versions} if len(self.predictions.versions) > 1 else {}),
            'members': [dataclasses.asdict(member) for member in self.members],
            **({'mean': self.mean} if len(self.members) > 1 else {}),
            'accuracy': self.accuracy, 'accuracy_interval': self.accuracy_interval,
            'bootstrap': {'level': comparisons.CONFIDENCE_LEVEL, 'samples': comparisons.BOOTSTRAP_SAMPLES,
                          'seed': comparisons.BOOTSTRAP_SEED},
            **({} if self.top5 is None else {'top5': self.top5}), **self.calibration.values()}
        if self.scaled_calibration is not None:
            values['temperature'] = {'temperature': self.temperature, 'validation_count': self.num_validation,
                                     **self.scaled_calibration.values()}
        if self.other is not None and self.comparison is not None:
            values['comparison'] = {'workdir': self.other.workdir, 'step': self.other.step,
                                    'accuracy': self.other.accuracy, **dataclasses.asdict(self.comparison)}
        values['per_class'] = [{'class': name, **scores} for name, scores in zip(
            names, per_class(self.confusion), strict=True)]
        values['confusion'] = self.confusion.tolist()
        return values

    def describe_accuracy(self) -> str:
        """Return the accuracy with its interval as text."""
        level, limits = comparisons.CONFIDENCE_LEVEL, [format_percent(limit) for limit in self.accuracy_interval]
        return f'{format_percent(self.accuracy)} ({100 * level:g} % interval {limits[0]} to {limits[1]})'

    def lines(self) -> list[str]:
        """Return lines of text for the terminal."""
        top5 = '' if self.top5 is None else f'  top-5 {format_percent(self.top5)}'
        lines = [f'{self.title}, {self.split}: accuracy {self.describe_accuracy()}{top5}  '
                 f'({counted(self.predictions.num_images, "image")})']
        if len(self.members) > 1:
            lines += [f'  {m.workdir}, checkpoint {m.step}, weight {m.weight:.3g}: accuracy {format_percent(m.accuracy)}'
                      for m in self.members]
        lines.append(f'calibration: {self.calibration.describe()}')
        if self.temperature is not None and self.scaled_calibration is not None:
            lines.append(f'calibration with the temperature {self.temperature:.4f}, fitted to '
                         f'{counted(self.num_validation, "validation image")}: {self.scaled_calibration.describe()}')
        return lines + ([self.describe_comparison()] if self.comparison is not None else [])

    def describe_comparison(self) -> str:
        """Return the comparison with another run as text."""
        other, comparison = self.other, self.comparison
        assert other is not None
        assert comparison is not None
        lower, upper = (f'{100 * limit:+.2f}' for limit in comparison.interval)
        adverb, test = 'only', "McNemar's exact test"
        if len(self.predictions.versions) > 1:
            adverb, test = 'in more versions', 'sign test'
        return (f'compared with {other.workdir}, checkpoint {other.step}, accuracy {format_percent(other.accuracy)}: '
                f'difference {100 * comparison.difference:+.2f} percentage points '
                f'({100 * comparisons.CONFIDENCE_LEVEL:g} % interval {lower} to {upper}); '
                f'{counted(comparison.only_first, "image")} correct {adverb} here (b), {comparison.only_second:,} {adverb} '
                f'there (c), {test} p = {comparison.p_value:.3g}')


def evaluate(ensemble: Ensemble, split: str, predict: Predict, predict_validation: Predict | None = None,
             other: Run | None = None) -> Result:
    """Evaluate a run or an ensemble on a split.

    Args:
      ensemble: the runs.
      split: the split.
      predict: predicts images of the evaluated data.
      predict_validation: predicts images of the data of the training, to fit a temperature to the validation split; None:
        no temperature is fitted.
      other: a run that the ensemble is compared with, or None.

    Raises:
      UserError: Runs do not have the same images and classes.
    """
    if other is not None:
        check_is_classifier(other)
    predictions, members = ensemble.predict(split, predict)
    weights = normalize_weights(ensemble.weights, len(members))
    result = Result(ensemble.title, split, predictions, [
        Member.of_run(run, member, float(weight)) for run, member, weight in zip(
            ensemble.runs, members, weights, strict=True)], ensemble.mean)
    if predict_validation is not None:
        result = _fit_temperature(result, ensemble, predict_validation)
    if other is not None:
        members_by_run = {(run.workdir, run.checkpoint): member for run, member in zip(ensemble.runs, members, strict=True)}
        other_predictions = members_by_run.get((other.workdir, other.checkpoint)) or predict(other, split)
        check_same_images(predictions, other_predictions, ensemble.runs[0].workdir, other.workdir)
        comparison = comparisons.compare(predictions.correct_by_image, other_predictions.correct_by_image)
        result = dataclasses.replace(result, other=Member.of_run(other, other_predictions), comparison=comparison)
    return result


def _fit_temperature(result: Result, ensemble: Ensemble, predict: Predict) -> Result:
    """Return the result with the temperature that is fitted to the validation split.

    If there is none, or if the data of the training is missing, a warning says so.
    """
    try:
        validation, _ = ensemble.predict('val', predict)
    except UserError as e:
        log.warning('no temperature is fitted: %s', e)
        return result
    is_finite, images = np.isfinite(validation.log_probabilities).all(-1), counted(validation.num_images, 'image')
    if not is_finite.any():
        log.warning('no temperature is fitted: the predictions for the %s of the validation split are not finite', images)
        return result
    if validation.correct[is_finite].all():
        log.warning('no temperature is fitted: all predictions for the %s of the validation split are correct', images)
        return result
    temperature = calibrations.fit_temperature(validation.log_probabilities[is_finite], validation.labels[is_finite])
    if temperature > 0.99 * calibrations.TEMPERATURES[1]:
        log.warning('the predictions for the %s of the validation split are no better than chance, so that the temperature '
                    'is the largest one that is tried', images)
    num_fitted = int(is_finite.reshape(len(validation.versions), -1).any(0).sum())
    return dataclasses.replace(result, temperature=temperature, num_validation=num_fitted)
