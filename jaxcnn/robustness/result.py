"""What was measured of the robustness of a run."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcnn.robustness.evaluate_attacks import Outcome
from jaxcnn.robustness.evaluate_corruptions import CorruptionErrors, Reference
from jaxcnn.robustness.masking import MaskingReport
from jaxcnn.robustness.outliers import Separation
from jaxcnn.robustness.threat import Threat
from jaxcnn.robustness.victim import Images


@dataclasses.dataclass(frozen=True)
class AttackResults:
    """The outcomes of attacks.

    Attributes:
      threat: what they may do and aim at.
      target: name of the target class, `least_likely` or `random`; empty without a target.
      images: the images.
      predicted: (N,) the classes that the network predicts without an attack.
      attacked_predictions: the same for the images of `worst`, (N,).
      reached_before: which images reach the aim without an attack, (N,) bool.
      outcomes: for each attack the outcomes for ascending sizes of the changes.
    """

    threat: Threat
    target: str
    images: Images
    predicted: np.ndarray
    attacked_predictions: np.ndarray
    reached_before: np.ndarray
    outcomes: Sequence[Sequence[Outcome]]

    @property
    def eps(self) -> list[float]:
        """The sizes of the changes, in order."""
        return [outcome.eps for outcome in self.outcomes[0]]

    @property
    def rate_name(self) -> str:
        """What `rate` is."""
        return 'success rate' if self.threat.targeted else 'robust accuracy'

    def rate(self, reached: np.ndarray) -> float:
        """Return the fraction of images that reach the target class, or, without one, of those that keep their label."""
        return float(reached.mean() if self.threat.targeted else 1 - reached.mean())

    def success_rate(self, reached: np.ndarray) -> float:
        """Return the fraction of the images that did not reach the aim before and do so under an attack."""
        before = self.reached_before
        return float((reached & ~before).sum() / max((~before).sum(), 1))

    def worst(self, number: int) -> np.ndarray:
        """Return which images any attack has broken with the change of a number, (N,) bool."""
        return np.any([outcomes[number].reached for outcomes in self.outcomes], 0)


@dataclasses.dataclass(frozen=True)
class CorruptionResults:
    """Errors on corrupted images, and what they are compared with.

    Attributes:
      errors: the errors.
      reference: the classifier they are divided by, or None.
      example: an image, float (H, W, C).
      corrupted_examples: the image with each corruption, by kind, one for each severity.
    """

    errors: CorruptionErrors
    reference: Reference | None
    example: np.ndarray
    corrupted_examples: dict[str, list[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class OutlierResults:
    """How well scores tell images of other data from those of the run.

    Attributes:
      name: name of the other data.
      count: number of its images.
      separations: the metrics of each score.
    """

    name: str
    count: int
    separations: Sequence[Separation]


@dataclasses.dataclass(frozen=True)
class Result:
    """What was measured of a run; parts that were not asked for are None.

    Attributes:
      title: the network and its data.
      workdir: the run's workdir.
      step: step of the checkpoint.
      split: the split of the images.
      count: number of images.
      seed: seed of all random numbers.
      accuracy: accuracy on these images, as a fraction.
      attacks, masking, corruptions, outliers: the results.
    """

    title: str
    workdir: str
    step: int
    split: str
    count: int
    seed: int
    accuracy: float
    attacks: AttackResults | None = None
    masking: MaskingReport | None = None
    corruptions: CorruptionResults | None = None
    outliers: OutlierResults | None = None

    def values(self) -> dict[str, Any]:
        """Return all values for a JSON file."""
        values: dict[str, Any] = {'workdir': self.workdir, 'step': self.step, 'split': self.split, 'images': self.count,
                                  'seed': self.seed, 'accuracy': self.accuracy}
        if self.attacks:
            results = self.attacks
            values['attacks'] = {
                'norm': results.threat.norm, 'target': results.target or None,
                'outcomes': [{'attack': outcome.attack, 'eps': outcome.eps, results.rate_name.replace(' ', '_'):
                              results.rate(outcome.reached), 'success_rate': results.success_rate(outcome.reached),
                              'reached_by_stage': outcome.by_stage, 'largest_change': outcome.distance}
                             for outcomes in results.outcomes for outcome in outcomes],
                'worst': [{'eps': eps, results.rate_name.replace(' ', '_'): results.rate(results.worst(number))}
                          for number, eps in enumerate(results.eps)]}
        if self.masking:
            values['masking'] = {'eps': self.masking.eps, 'checks': [
                {'check': check.name, 'verdict': check.verdict, 'numbers': check.numbers} for check in self.masking.checks],
                'losses': list(self.masking.losses)}
        if self.corruptions:
            errors, reference = self.corruptions.errors, self.corruptions.reference
            values['corruptions'] = {
                'constants': errors.constants, 'severities': list(errors.severities), 'clean_error': errors.clean,
                'errors': {kind: list(of_kind) for kind, of_kind in errors.errors.items()}, 'mean_error': errors.mean}
            if reference:
                ratios = errors.corruption_errors(reference)
                relative_mce = float(np.mean(list(errors.relative_errors(reference).values())))
                values['corruptions'] |= {
                    'reference': reference.name, 'corruption_errors': ratios, 'mce': float(np.mean(list(ratios.values()))),
                    'relative_mce': None if np.isnan(relative_mce) else relative_mce}
        if self.outliers:
            values['outliers'] = {'data': self.outliers.name, 'images': self.outliers.count,
                                  'scores': {s.score: s.values() for s in self.outliers.separations}}
        return values

    def rows(self) -> list[list[Any]]:
        """Return the rows of a CSV file: test, name, setting, metric and value."""
        rows: list[list[Any]] = [['images', self.split, '', 'accuracy', self.accuracy]]
        if self.attacks:
            for outcomes in self.attacks.outcomes:
                rows += [['attack', o.attack, f'{o.eps:g}', self.attacks.rate_name, self.attacks.rate(o.reached)]
                         for o in outcomes]
        if self.masking:
            rows += [['masking', check.name, f'{self.masking.eps:g}', 'verdict', check.verdict]
                     for check in self.masking.checks]
        if self.corruptions:
            errors = self.corruptions.errors
            rows += [['corruption', kind, severity, 'error', value] for kind, of_kind in errors.errors.items()
                     for severity, value in zip(errors.severities, of_kind, strict=True)]
        if self.outliers:
            rows += [['outliers', s.score, self.outliers.name, metric, value] for s in self.outliers.separations
                     for metric, value in s.values().items()]
        return rows
