"""Metrics and their registry: how each is computed and printed, and whether larger values are better.

A metric of single examples is a function `(outputs, targets) -> (N,)` that runs on the device and is averaged over images. A
metric of a split is a function of the outputs and targets of all its images, on the host. To add one, write the function
and put `@example_metric(...)` or `@split_metric(...)` above it; each registered metric is computed in each evaluation.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.data.targets import KINDS
from jaxcnn.errors import unknown
from jaxcnn.registry import Registry


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of a task.

    Attributes:
      name: name in the metrics of a run.
      compute: the function, see the docstring of the module; None for the loss, which the task computes.
      better: whether larger (`max`) or smaller (`min`) values are better.
      percent: whether it is printed in per cent.
      title: name in tables.
      min_classes: number of classes below which the metric is not informative and not printed.
      of_split: whether `compute` takes all images of a split, on the host.
    """

    name: str
    compute: Callable[..., Any] | None = None
    better: Literal['max', 'min'] = 'max'
    percent: bool = True
    title: str = ''
    min_classes: int = 0
    of_split: bool = False

    def format(self, value: float | None) -> str:
        """Return the value as text: `93.99 %`, `0.2312`, or `not measured`."""
        if self.percent:
            return format_percent(value)
        return 'not measured' if value is None else f'{value:,.4f}'

    def improves(self, value: float, best: float | None) -> bool:
        """Return whether a value is better than the best one so far."""
        return best is None or (value > best if self.better == 'max' else value < best)


def format_percent(value: float | None) -> str:
    """Return a fraction in per cent: `93.99 %`, or `not measured`."""
    return 'not measured' if value is None else f'{100 * value:.2f} %'


LOSS = Metric('loss', better='min', percent=False, title='loss')
_METRICS: Registry[Metric] = Registry('metric')  # by the kind of targets and the name


def _register(targets: str, of_split: bool, fields: Mapping[str, Any]) -> Callable[[Callable], Callable]:
    if targets not in KINDS:
        raise unknown('kind of targets', str(targets), KINDS)

    def add(compute: Callable) -> Callable:
        name = compute.__name__
        metric = Metric(name, compute, of_split=of_split, **{'title': name.replace('_', ' '), **fields})
        _METRICS.add(f'{targets}/{name}', metric, compute)
        return compute
    return add


def example_metric(targets: str, **fields: Any) -> Callable[[Callable], Callable]:
    """Register a metric that is the mean of a value of each image, `(outputs, targets) -> (N,)`.

    Args:
      targets: the kind of targets that it takes, `label` or `labels`.
      **fields: fields of `Metric`.
    """
    return _register(targets, False, fields)


def split_metric(targets: str, **fields: Any) -> Callable[[Callable], Callable]:
    """Register a metric that is computed from all images of a split; see `example_metric`."""
    return _register(targets, True, fields)


def of_targets(targets: str) -> dict[str, Metric]:
    """Return the loss and the registered metrics of a kind of targets, by name."""
    return {'loss': LOSS, **{metric.name: metric for key, metric in _METRICS.items() if key.split('/')[0] == targets}}


def displayed(metrics: Iterable[Metric], num_classes: int) -> list[Metric]:
    """Return the metrics that are informative for a number of classes: the main metric first, the loss last."""
    shown = [metric for metric in metrics if num_classes >= metric.min_classes]
    return sorted(shown, key=lambda metric: metric == LOSS)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A metric of one split with one set of weights, as in `val_ema_accuracy`.

    Attributes:
      split: `train`, `val` or `test`.
      metric: the metric.
      ema: whether the weights are the moving averages.
      tta: whether test-time augmentation is used.
    """

    split: str
    metric: Metric
    ema: bool = False
    tta: bool = False

    @property
    def name(self) -> str:
        """The key in a run's metrics and summary."""
        return f'{self.split}_{self.name_in_split}'

    @property
    def name_in_split(self) -> str:
        """The name without the split, as in `ema_accuracy`."""
        return '_'.join([*['ema'] * self.ema, *['tta'] * self.tta, self.metric.name])

    @property
    def title(self) -> str:
        """The name in a table."""
        return ' '.join([self.split, *['ema'] * self.ema, *['tta'] * self.tta, self.metric.title])


def measurements(metrics: Iterable[Metric], splits: Iterable[str], ema: bool, tta: bool) -> dict[str, Measurement]:
    """Return every measurement of a run by its name.

    Args:
      metrics: the metrics of the task.
      splits: the splits of the data.
      ema: whether the run has moving averages.
      tta: whether the run has test-time augmentation.
    """
    every = (Measurement(split, metric, with_ema, with_tta) for split in splits for with_ema in (False, True)[:1 + ema]
             for with_tta in (False, True)[:1 + tta] for metric in metrics)
    return {m.name: m for m in every}


# one class for each image


def predictions(logits: jax.Array) -> jax.Array:
    """Return the class with the largest logit: (N,) int32. It is -1, which is no label, for images with a logit of NaN."""
    return jnp.where(jnp.isnan(logits).any(-1), -1, logits.argmax(-1).astype(jnp.int32))


@example_metric('label')
def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return whether the label has the largest logit: (N,) bool; false for images with a logit of NaN."""
    return predictions(logits) == labels


@example_metric('label', title='top-5', min_classes=6)
def top5(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return whether the label has one of the five largest logits: (N,) bool; false for images with a logit of NaN."""
    _, best = jax.lax.top_k(logits, min(5, logits.shape[-1]))  # (N, 5)
    return (best == labels[:, None]).any(1) & (predictions(logits) >= 0)


def confusion_counts(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the confusion matrix (labels, predictions) of the images whose mask is 1, without those with a logit of NaN."""
    classes, predicted = logits.shape[-1], predictions(logits)
    counted = (mask > 0) & (predicted >= 0)
    return jnp.zeros((classes, classes), jnp.int32).at[labels, predicted].add(counted.astype(jnp.int32))


def per_class(confusion: np.ndarray) -> list[dict[str, float]]:
    """Return precision, recall, F1 (0 where undefined) and support of each class of a confusion matrix.

    Its rows are labels, its columns predictions.
    """
    return [_scores(true_positives, support, predicted) for true_positives, support, predicted in zip(
        np.diag(confusion).tolist(), confusion.sum(1).tolist(), confusion.sum(0).tolist(), strict=True)]


def _scores(true_positives: int, support: int, predicted: int) -> dict[str, float]:
    precision = true_positives / predicted if predicted else 0.0
    recall = true_positives / support if support else 0.0
    f1 = 2 * precision * recall / (precision + recall) if true_positives else 0.0
    return {'precision': precision, 'recall': recall, 'f1': f1, 'support': support}


def mistakes(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the kinds of wrong predictions in a confusion matrix, most frequent first.

    Returns:
      Labels, predictions and counts of the pairs (label, prediction), each (pairs,) int.
    """
    labels, predictions = np.nonzero(confusion)
    wrong = labels != predictions
    labels, predictions = labels[wrong], predictions[wrong]
    counts = confusion[labels, predictions]
    order = np.argsort(-counts, kind='stable')
    return labels[order], predictions[order], counts[order]


# several classes for each image


@dataclasses.dataclass(frozen=True)
class LabelScores:
    """Probabilities and labels of all images of a split, for tasks with several classes for each image.

    Attributes:
      probabilities: (N, classes) in [0, 1].
      labels: (N, classes) of 0 and 1.
      threshold: the probability from which a class is predicted.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    threshold: float = 0.5

    @property
    def predicted(self) -> np.ndarray:
        """Whether each class is predicted: (N, classes) bool; false for a probability of NaN."""
        return self.probabilities >= self.threshold

    def per_class(self) -> list[dict[str, float]]:
        """Return precision, recall, F1, support and average precision of each class."""
        averages = average_precisions(self.probabilities, self.labels).tolist()
        return [{**scores, 'average_precision': average} for scores, average in zip(self.scores(), averages, strict=True)]

    def scores(self) -> list[dict[str, float]]:
        """Return precision, recall, F1 and support of each class."""
        labels = self.labels > 0
        counts = zip((self.predicted & labels).sum(0).tolist(), labels.sum(0).tolist(), self.predicted.sum(0).tolist(),
                     strict=True)
        return [_scores(*of_class) for of_class in counts]


def average_precisions(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the average precision of each class: the precision at each of its images, averaged over them.

    Images are ranked by the class's probability; images of equal probability share a rank, as in scikit-learn.

    Args:
      probabilities: (N, classes).
      labels: (N, classes) of 0 and 1.

    Returns:
      (classes,); NaN for a class without images.
    """
    from sklearn.metrics import average_precision_score
    return np.array([average_precision_score(labels[:, c], probabilities[:, c]) if labels[:, c].any() and
                     np.isfinite(probabilities[:, c]).all() else np.nan for c in range(labels.shape[1])])


@split_metric('labels', title='mean average precision')
def mean_average_precision(scores: LabelScores) -> float:
    """Return the mean of the average precisions of the classes that have an image."""
    precisions = average_precisions(scores.probabilities, scores.labels)
    return float(np.nanmean(precisions)) if np.isfinite(precisions).any() else 0.0


@split_metric('labels', title='micro F1')
def micro_f1(scores: LabelScores) -> float:
    """Return the F1 over all pairs of an image and a class."""
    labels = scores.labels > 0
    both = (scores.predicted & labels).sum()
    return float(2 * both / max(scores.predicted.sum() + labels.sum(), 1))


@split_metric('labels', title='macro F1')
def macro_f1(scores: LabelScores) -> float:
    """Return the mean of the F1 of the classes."""
    return float(np.mean([row['f1'] for row in scores.scores()]))


@split_metric('labels')
def exact_match(scores: LabelScores) -> float:
    """Return the fraction of images whose classes are all predicted correctly."""
    return float((scores.predicted == (scores.labels > 0)).all(1).mean())
