"""Multi-label classification: any number of classes for each image."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import config as cfg
from jaxcnn import losses, metrics
from jaxcnn.data.targets import LABELS
from jaxcnn.errors import UserError, printable
from jaxcnn.tasks.base import Accumulated, Section, Targets, Task, Tree
from jaxcnn.tasks.registry import register


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Multilabel(Task):
    """Any number of classes for each image: the sigmoid of each output (N, classes) is the probability of a class.

    Attributes:
      threshold: a class is predicted where its probability is at least this, in (0, 1).
    """

    name = 'multilabel'
    kind = LABELS
    train_metrics = 'loss', 'exact_match'

    threshold: float = 0.5

    def __post_init__(self) -> None:
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, (int, float)) or not 0 < self.threshold < 1:
            raise UserError(f'expected a number between 0 and 1, got {self.threshold!r}', field='config.task.threshold')
        if self.class_weights is not None and getattr(self.loss_function, 'func', None) is not losses.bce:
            raise UserError("'loss' weighs the positives of the loss bce alone", field='config.data.balance')

    @classmethod
    def weights_of_classes(cls, counts: np.ndarray, num_images: int) -> np.ndarray:
        """Return the weight of the positives of each class: the number of images without the class over that with it.

        The weight is 1 for a class that no image or every image shows, as there is nothing to balance.
        """
        return np.where((counts > 0) & (counts < num_images), (num_images - counts) / np.maximum(counts, 1), 1.0)

    @classmethod
    def check_config(cls, config: cfg.Config) -> None:
        """See `Task`."""
        data = config.data
        if data.balance == 'sampling' or data.per_class:
            field, value = ('balance', data.balance) if data.balance == 'sampling' else ('per_class', data.per_class)
            raise UserError(f'{value!r} needs one class for each image', field=f'config.data.{field}',
                            hint="config.data.balance='loss' weighs the positives of each class")

    def loss(self, outputs: jax.Array, targets: Targets) -> jax.Array:
        """See `Task`; class weights multiply the terms of positives."""
        labels = targets['labels'].astype(jnp.float32)
        if self.class_weights is None:
            return self.check_rows('config.loss', self.loss_function(outputs, labels), outputs).mean()
        # as PyTorch's `pos_weight`
        arguments = getattr(self.loss_function, 'keywords', {})
        terms = losses.bce_by_class(outputs, labels, **arguments)
        return (terms * (1 + (jnp.asarray(self.class_weights) - 1) * labels)).mean()

    def train_scalars(self, outputs: jax.Array, targets: Targets) -> dict[str, jax.Array]:
        """Return the fraction of images whose classes are all predicted correctly."""
        right = (jax.nn.sigmoid(outputs.astype(jnp.float32)) >= self.threshold) == (targets['labels'] >= 0.5)
        return {'exact_match': right.all(-1).astype(jnp.float32).mean()}

    def mixable(self, targets: Targets) -> dict[str, jax.Array]:
        """Return labels as float32, so that they can lie between 0 and 1."""
        return {'labels': targets['labels'].astype(jnp.float32)}

    def zero_sums(self) -> Tree:
        """See `Task`."""
        return {'count': np.zeros((), np.float32), 'loss': np.zeros((), np.float32)}

    def eval_sums(self, outputs: jax.Array, targets: Targets, mask: jax.Array) -> Tree:
        """See `Task`."""
        return {'count': mask.sum(), 'loss': jnp.where(mask > 0, self.example_losses(outputs, targets), 0).sum()}

    def eval_rows(self, outputs: jax.Array, targets: Targets) -> Tree:
        """Return the probabilities and labels, for metrics that rank all images."""
        return {'probabilities': jax.nn.sigmoid(outputs.astype(jnp.float32)), 'labels': targets['labels']}

    def confident_mistakes(self, accumulated: Accumulated, targets: Mapping[str, np.ndarray],
                           count: int) -> tuple[np.ndarray, list[str]]:
        """Return the images with the most confident wrong decision, and that decision: that it shows a class, or not."""
        from jaxcnn.analysis import mistakes
        (indices, scores), classes = mistakes.confident_label_mistakes(
            accumulated.rows['probabilities'], targets['labels'], count, self.threshold)
        is_shown = targets['labels'][indices, classes] == 0
        return indices, [f'{"" if shows else "not "}{self.class_names[c]} ({100 * score:.2f} %)' for shows, c, score in zip(
            is_shown, classes, scores, strict=True)]

    def _scores(self, accumulated: Accumulated) -> metrics.LabelScores:
        rows = accumulated.rows
        return metrics.LabelScores(rows['probabilities'], rows['labels'], self.threshold)

    def compute(self, accumulated: Accumulated) -> dict[str, float]:
        """See `Task`."""
        scores, sums = self._scores(accumulated), accumulated.sums
        return {'loss': float(sums['loss']) / float(sums['count'])} | {
            name: metric.compute(scores) for name, metric in self.metrics.items() if metric.compute}

    def report(self, accumulated: Accumulated, train_counts: Sequence[int], split: str, folder: str) -> list[Section]:
        """See `Task`: average precision, precision, recall and F1 of each class, and the precision-recall curves."""
        from jaxcnn.analysis import figures
        from jaxcnn.analysis.markdown import escape, figure
        scores = self._scores(accumulated)
        with figures.warn_on_error(path := f'{folder}/precision_recall.png'):
            figures.precision_recall(scores.probabilities, scores.labels, self.class_names, path)
        percent = metrics.format_percent
        table = sorted(zip(map(escape, self.class_names), scores.per_class(), train_counts, strict=True),
                       key=lambda row: (not row[1]['support'], row[1]['f1']))
        return [Section(f'{split.capitalize()} part, by class', [
            f'A class is predicted where its probability is at least {self.threshold:g}.', '',
            'The classes are sorted by F1, worst first; those without images come last.', '',
            f'| class | average precision | precision | recall | F1 | {split} images | training images |',
            '|---|---|---|---|---|---|---|',
            *(f'| {name} | {percent(r["average_precision"] if r["support"] else None)} | {percent(r["precision"])} | '
              f'{percent(r["recall"])} | {r["f1"]:.4f} | {r["support"]} | {n} |' for name, r, n in table), '',
            figure(folder, 'precision_recall')])]

    def predict(self, outputs: jax.Array) -> jax.Array:
        """Return the probability of each class, (N, classes)."""
        return jax.nn.sigmoid(outputs)

    def targets_of(self, predictions: np.ndarray) -> dict[str, np.ndarray]:
        """See `Task`."""
        return {'labels': (predictions >= self.threshold).astype(np.uint8)}

    def _predicted(self, prediction: np.ndarray) -> list[str]:
        return [name for name, p in zip(self.class_names, prediction, strict=True) if p >= self.threshold]

    def describe(self, prediction: np.ndarray) -> str:
        """See `Task`."""
        order = np.argsort(-prediction, kind='stable')
        probabilities = ', '.join(f'{printable(self.class_names[i])} {100 * prediction[i]:.2f} %'
                                  for i in order[:5].tolist())
        return f'{printable(", ".join(self._predicted(prediction)) or "none")}  ({probabilities})'

    @property
    def columns(self) -> list[str]:
        """The predicted classes, and the probability of each class."""
        return ['classes', *(f'probability of {name}' for name in self.class_names)]

    def rows(self, prediction: np.ndarray) -> list[list[str]]:
        """See `Task`."""
        return [[self.category(prediction), *(f'{p:.6f}' for p in prediction)]]

    def category(self, prediction: np.ndarray) -> str:
        """Return the predicted classes with semicolons between them."""
        return ';'.join(self._predicted(prediction))

    def title(self, targets: Mapping[str, np.ndarray]) -> str:
        """Return the names of the classes that the image shows, with their parts where they are mixed."""
        labels = targets['labels']
        return '\n'.join(f'{printable(self.class_names[i])}{"" if labels[i] == 1 else f" {labels[i]:.2f}"}'
                         for i in np.flatnonzero(labels >= 0.005).tolist()) or 'none'
