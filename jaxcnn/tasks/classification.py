"""Classification: one class for each image."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import config as cfg
from jaxcnn import metrics
from jaxcnn.data.targets import LABEL
from jaxcnn.errors import printable
from jaxcnn.tasks.base import Accumulated, Section, Targets, Task, Tree
from jaxcnn.tasks.registry import register

PREDICTED = 5  # classes that are printed of a prediction


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Classification(Task):
    """One class for each image: the network's outputs are the logits of the classes, (N, classes)."""

    name = 'classification'
    kind = LABEL
    train_metrics = 'loss', 'accuracy'

    @classmethod
    def weights_of_classes(cls, counts: np.ndarray, num_images: int) -> np.ndarray:
        """Return weights inversely proportional to the number of images of each class, with mean 1 over the images.

        A class without images has the weight 0.
        """
        weights = counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))
        return np.where(counts > 0, weights, 0.0)

    @classmethod
    def check_config(cls, config: cfg.Config) -> None:
        """See `Task`; this task supports all fields."""

    def loss(self, outputs: jax.Array, targets: Targets) -> jax.Array:
        """See `Task`; each class in a mixed label has its own weight."""
        labels, weights = targets['label'], jnp.ones(())
        if self.class_weights is not None:
            of_class = jnp.asarray(self.class_weights)
            if labels.ndim == 1:
                weights = of_class[labels]
            else:
                labels = labels * of_class
                weights = labels.sum(-1)
                labels /= jnp.maximum(weights, 1e-30)[:, None]
        return (weights * self.check_rows('config.loss', self.loss_function(outputs, labels), outputs)).mean()

    def train_scalars(self, outputs: jax.Array, targets: Targets) -> dict[str, jax.Array]:
        """Return the accuracy; the label of a mixed image is the class with the largest share."""
        label = targets['label'] if targets['label'].ndim == 1 else targets['label'].argmax(-1)
        return {'accuracy': metrics.accuracy(outputs, label).astype(jnp.float32).mean()}

    def mixable(self, targets: Targets) -> dict[str, jax.Array]:
        """Return labels as probabilities (N, classes)."""
        return {'label': jax.nn.one_hot(targets['label'], self.num_classes)}

    def _example_metrics(self) -> dict[str, metrics.Metric]:
        return {name: metric for name, metric in self.metrics.items() if metric.compute and not metric.of_split}

    def zero_sums(self) -> Tree:
        """See `Task`."""
        zero = np.zeros((), np.float32)
        return {'count': zero, 'loss': zero, **dict.fromkeys(self._example_metrics(), zero),
                'confusion': np.zeros((self.num_classes, self.num_classes), np.int32)}

    def eval_sums(self, outputs: jax.Array, targets: Targets, mask: jax.Array) -> Tree:
        """See `Task`; `confusion` is (labels, predictions)."""
        outputs, labels = outputs.astype(jnp.float32), targets['label']
        sums = {'count': mask.sum(), 'loss': jnp.where(mask > 0, self.example_losses(outputs, targets), 0).sum(),
                'confusion': metrics.confusion_counts(outputs, labels, mask)}
        for name, metric in self._example_metrics().items():
            assert metric.compute is not None
            values = self.check_rows(f'the metric {name!r}', metric.compute(outputs, labels), outputs)
            sums[name] = jnp.where(mask > 0, values.astype(jnp.float32), 0).sum()
        return sums

    def eval_rows(self, outputs: jax.Array, targets: Targets) -> Tree:
        """Return the predicted class and its probability."""
        outputs = outputs.astype(jnp.float32)
        return {'predicted': metrics.predictions(outputs), 'confidence': jax.nn.softmax(outputs).max(-1)}

    def confident_mistakes(self, accumulated: Accumulated, targets: Mapping[str, np.ndarray],
                           count: int) -> tuple[np.ndarray, list[str]]:
        """See `Task`."""
        from jaxcnn.analysis import mistakes
        predicted, confidence = accumulated.rows['predicted'], accumulated.rows['confidence']
        indices, scores = mistakes.confident_mistakes(predicted, confidence, targets['label'], count)
        return indices, [f'{self.class_names[predicted[i]]} ({100 * score:.2f} %)' for i, score in zip(
            indices, scores, strict=True)]

    def compute(self, accumulated: Accumulated) -> dict[str, float]:
        """See `Task`; metrics of a split are functions of the confusion matrix."""
        sums = accumulated.sums
        values = {name: float(sums[name]) / float(sums['count']) for name in ('loss', *self._example_metrics())}
        return values | {name: metric.compute(np.asarray(sums['confusion'])) for name, metric in self.metrics.items()
                         if metric.compute and metric.of_split}

    def report(self, accumulated: Accumulated, train_counts: Sequence[int], split: str, folder: str) -> list[Section]:
        """See `Task`: the confusion matrix, and precision, recall and F1 of each class."""
        from jaxcnn.analysis import figures
        from jaxcnn.analysis.markdown import escape, figure
        confusion = np.asarray(accumulated.sums['confusion'])
        with figures.warn_on_error(path := f'{folder}/confusion_matrix.png'):
            figures.confusion_matrix(confusion, self.class_names, path)
        names, percent = [escape(name) for name in self.class_names], metrics.format_percent
        table = sorted(zip(names, metrics.per_class(confusion), train_counts, strict=True),
                       key=lambda row: (not row[1]['support'], row[1]['recall']))
        pairs = zip(*(values[:5].tolist() for values in metrics.mistakes(confusion)), strict=True)
        mistakes = ', '.join(f'{names[i]} taken for {names[j]} ({n})' for i, j, n in pairs) or 'none'
        return [Section(f'{split.capitalize()} part, by class', [
            f'Most frequent mistakes: {mistakes}.', '',
            'The classes are sorted by recall, worst first; those without images come last.', '',
            f'| class | precision | recall | F1 | {split} images | training images |', '|---|---|---|---|---|---|',
            *(f'| {name} | {percent(r["precision"])} | {percent(r["recall"])} | {r["f1"]:.4f} | {r["support"]} | {n} |'
              for name, r, n in table), '',
            figure(folder, 'confusion_matrix')])]

    def predict(self, outputs: jax.Array) -> jax.Array:
        """Return the probabilities of the classes, (N, classes), which add up to 1 for each image."""
        return jax.nn.softmax(outputs)

    def targets_of(self, predictions: np.ndarray) -> dict[str, np.ndarray]:
        """See `Task`."""
        return {'label': predictions.argmax(-1)}

    def best(self, prediction: np.ndarray) -> list[tuple[str, float]]:
        """Return the most probable classes of one image, with their probabilities, best first."""
        order = np.argsort(-prediction, kind='stable')[:PREDICTED]
        return [(self.class_names[i], float(prediction[i])) for i in order]

    def describe(self, prediction: np.ndarray) -> str:
        """See `Task`."""
        best = self.best(prediction)
        return f'{printable(best[0][0])}  (' + ', '.join(f'{printable(name)} {100 * p:.2f} %' for name, p in best) + ')'

    @property
    def columns(self) -> list[str]:
        """The most probable classes and their probabilities, best first."""
        ranks = range(1, min(PREDICTED, self.num_classes) + 1)
        return [f'{name}_{rank}' for rank in ranks for name in ('class', 'probability')]

    def rows(self, prediction: np.ndarray) -> list[list[str]]:
        """See `Task`."""
        return [[cell for name, p in self.best(prediction) for cell in (name, f'{p:.6f}')]]

    def category(self, prediction: np.ndarray) -> str:
        """Return the most probable class."""
        return self.best(prediction)[0][0]

    def title(self, targets: Mapping[str, np.ndarray]) -> str:
        """Return the label's name; of a mixed label (classes,), the names of the three largest parts with their shares."""
        label = targets['label']
        if label.ndim == 0:
            return printable(self.class_names[int(label)])
        return '\n'.join(f'{printable(self.class_names[i])} {label[i]:.2f}' for i in np.argsort(-label)[:3]
                         if label[i] >= 0.005)
