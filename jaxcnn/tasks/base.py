"""The protocol between the training core and its tasks.

A task says what a network's outputs mean. The training core calls it and never asks which one it is. To add one, write a
subclass of `Task` in a file of its own, and put `@register` of `tasks.registry` above it.
"""

import abc
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from jaxcnn import config as cfg
from jaxcnn import losses, metrics, models
from jaxcnn.data.augment import Pipeline
from jaxcnn.data.split import Split
from jaxcnn.data.targets import TargetKind
from jaxcnn.errors import UserError
from jaxcnn.metrics import LOSS, Metric
from jaxcnn.models import Network

MAX_MISTAKES = 16  # on the sheet of the most confident ones in a report
MAX_LISTED = 12  # an error lists all metrics or networks up to this number; of more metrics, the nearest ones
Targets = Mapping[str, jax.Array]  # by name, (N, ...) each
Tree = dict[str, Any]  # of arrays


@dataclasses.dataclass(frozen=True)
class Accumulated:
    """The result of an evaluation on the host, from which the task computes its metrics.

    Attributes:
      sums: the sums of `Task.eval_sums` over all images.
      rows: the arrays of `Task.eval_rows` for all images, by name, (N, ...) each.
    """

    sums: Mapping[str, Any]
    rows: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a run's report.

    Attributes:
      title: its heading.
      lines: its lines of Markdown.
    """

    title: str
    lines: Sequence[str]


@dataclasses.dataclass(frozen=True, eq=False)  # compared and hashed by identity, as compiled functions need
class Task(abc.ABC):
    """What a network's outputs mean.

    Attributes:
      class_names: names of the classes, in the order of the outputs.
      loss_function: the loss of each example in training.
      eval_loss_function: the same loss without label smoothing.
      class_weights: the weight of each class if `config.data.balance` is `loss`; otherwise None.
      metrics: the loss and the metrics of an evaluation by name, as they were registered when the task was made.
    """

    name: ClassVar[str]
    kind: ClassVar[TargetKind]
    train_metrics: ClassVar[tuple[str, ...]]  # the loss, and names of `train_scalars` that every network of the task has
    outputs: ClassVar[str] = 'logits'  # what the network has to return; see `Network.outputs`
    is_mixable: ClassVar[bool] = True  # whether augmentation may mix images and attack the network

    class_names: Sequence[str]
    loss_function: losses.Loss
    eval_loss_function: losses.Loss
    class_weights: tuple[float, ...] | None = None
    metrics: Mapping[str, Metric] = dataclasses.field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @classmethod
    def known_metrics(cls) -> dict[str, Metric]:
        """Return the loss and the metrics of an evaluation by name."""
        return metrics.of_targets(cls.kind.name)

    @property
    def main_metric(self) -> Metric:
        """The first metric that is not the loss. It selects the best checkpoint, unless the config names another metric."""
        return next(metric for metric in self.metrics.values() if metric != LOSS)

    @property
    def model_fields(self) -> dict[str, Any]:
        """The fields of a network that depend on the data set."""
        return {'num_classes': self.num_classes}

    @classmethod
    @abc.abstractmethod
    def weights_of_classes(cls, counts: np.ndarray, num_images: int) -> np.ndarray:
        """Return the weights with which `config.data.balance='loss'` balances classes.

        Args:
          counts: (classes,) number of training images that show each class.
          num_images: number of training images.
        """

    @classmethod
    def check_augmentation(cls, pipeline: Pipeline) -> None:
        """Raise a UserError for an op of a training pipeline that this task does not support."""
        if not cls.is_mixable and (pipeline.num_mixes or pipeline.has_attack):
            raise UserError(f'{pipeline.text!r} mixes images or attacks the network, which {cls.name} does not support',
                            field='config.data.augment')

    @classmethod
    @abc.abstractmethod
    def check_config(cls, config: cfg.Config) -> None:
        """Raise a UserError for a field of the config that this task does not support."""

    # the network

    @classmethod
    def check_network(cls, config: cfg.Config, network: Network) -> None:
        """Raise a UserError if the network of a config does not return what this task takes, or takes what is not there."""
        if network.outputs != cls.outputs:
            names = models.names(cls.outputs)
            shown = f'networks for this task: {", ".join(names)}' if len(names) <= MAX_LISTED else 'see docs/networks.md'
            raise UserError(f'{config.model.name} returns {network.outputs}, but config.task={cls.name!r} takes '
                            f'{cls.outputs}', field='config.model', hint=shown)

    def network_arguments(self, targets: Targets, train: bool) -> dict[str, Any]:
        """Return what the network takes besides images; nothing by default.

        Args:
          targets: the targets of a batch. In training, `key` is a random key for each image, (N,). In prediction there are
            only those that `inputs` returns.
          train: whether the network is in training mode.
        """
        return {}

    def inputs(self, images: np.ndarray, config: cfg.DataConfig) -> dict[str, np.ndarray]:
        """Return the targets that the network takes in prediction, computed from images; nothing by default.

        Args:
          images: uint8 (N, H, W, C), as the data pipeline stores them.
          config: data fields of the config.
        """
        return {}

    # training

    @abc.abstractmethod
    def loss(self, outputs: jax.Array, targets: Targets) -> jax.Array:
        """Return the scalar loss of a batch."""

    @staticmethod
    def check_rows(what: str, values: jax.Array, outputs: jax.Array) -> jax.Array:
        """Return values that a registered function has computed, one for each image: (N,).

        Args:
          what: description of the function, for the error.
          values: the values.
          outputs: the outputs of the network, (N, ...).

        Raises:
          UserError: The values have another shape.
        """
        if jax.numpy.shape(values) != outputs.shape[:1]:
            raise UserError(f'{what} returns an array of shape {jax.numpy.shape(values)} for {len(outputs)} images; it must '
                            'return one value for each image, (N,)')
        return values

    @abc.abstractmethod
    def train_scalars(self, outputs: jax.Array, targets: Targets) -> dict[str, jax.Array]:
        """Return the scalars that are logged beside the loss, each a mean over the batch."""

    def example_losses(self, outputs: jax.Array, targets: Targets) -> jax.Array:
        """Return the loss of each example in evaluation: (N,)."""
        target, = (targets[name] for name in self.kind.targets(self.num_classes))
        return self.check_rows('config.loss', self.eval_loss_function(outputs, target), outputs)

    def mixable(self, targets: Targets) -> dict[str, jax.Array]:
        """Return targets in the form that `mix` takes, for example the probabilities of classes."""
        return dict(targets)

    def mix(self, targets: Targets, others: Targets, share: jax.Array) -> dict[str, jax.Array]:
        """Return the targets of a mixture of two images, in which the first one has the weight `share`."""
        return {name: share * targets[name] + (1 - share) * others[name] for name in targets}

    def move(self, targets: Targets, matrix: jax.Array, size: tuple[int, int]) -> dict[str, jax.Array]:
        """Return the targets of an image whose pixels an augmentation has moved. By default, they stay the same.

        Args:
          targets: the targets of one image, by name.
          matrix: (2, 3), maps the position (x, y, 1) of a point of the image to its new x and y; see
            `data.augment.Transformed`.
          size: height and width of the new image. Objects may have moved out of it.
        """
        return dict(targets)

    # evaluation

    @abc.abstractmethod
    def zero_sums(self) -> Tree:
        """Return the sums before the first batch, which are zero."""

    @abc.abstractmethod
    def eval_sums(self, outputs: jax.Array, targets: Targets, mask: jax.Array) -> Tree:
        """Return the sums over the images of a batch whose mask is 1; they are added on the device."""

    def eval_rows(self, outputs: jax.Array, targets: Targets) -> Tree:
        """Return arrays with a row for each image, (N, ...), which are gathered on the host; none by default."""
        return {}

    @abc.abstractmethod
    def compute(self, accumulated: Accumulated) -> dict[str, float]:
        """Return the metrics by name."""

    # reports and predictions

    def confident_mistakes(self, accumulated: Accumulated, targets: Mapping[str, np.ndarray],
                           count: int) -> tuple[np.ndarray, list[str]]:
        """Return the most confident wrong predictions of an evaluation; none by default.

        Args:
          accumulated: the result of the evaluation.
          targets: the targets of the split, by name, (N, ...) each.
          count: maximum number of images.

        Returns:
          The positions of the images in the split, most confident first, (n,), and what was predicted for each of them.
        """
        return np.zeros(0, int), []

    @abc.abstractmethod
    def report(self, accumulated: Accumulated, train_counts: Sequence[int], split: str, folder: str) -> list[Section]:
        """Write the figures of an evaluation, and return the sections that show them.

        Args:
          accumulated: the result of the evaluation.
          train_counts: number of training images that show each class.
          split: name of the evaluated split in the report, `test` or `validation`.
          folder: folder for the figures.
        """

    def report_mistakes(self, accumulated: Accumulated, examples: Split, image_name: Callable[[int], str], split: str,
                        folder: str, prepare: Callable[[np.ndarray], np.ndarray]) -> list[Section]:
        """Draw the images of the worst mistakes, and return the sections that show them; none if there are no mistakes.

        By default, these are the images of `confident_mistakes`.

        Args:
          accumulated: the result of the evaluation.
          examples: the images and the targets of the evaluated split.
          image_name: returns the name of the image at a position in the split.
          split: name of the split in the report, `test` or `validation`.
          folder: folder for the figures.
          prepare: maps images of the split, uint8 (N, H, W, C), to those that the network gets, before normalisation.
        """
        from jaxcnn.analysis import figures, mistakes
        from jaxcnn.analysis.markdown import escape, figure
        positions, predictions = self.confident_mistakes(accumulated, examples.targets, MAX_MISTAKES)
        if not len(positions):
            return []
        targets = [{name: values[i] for name, values in examples.targets.items()} for i in positions]
        labels = [', '.join(self.title(of_image).split('\n')) for of_image in targets]
        names = [image_name(i) for i in positions]
        with figures.warn_on_error(path := f'{folder}/confident_mistakes.png'):
            titles = [f'{prediction}\nlabel: {label}\n{os.path.basename(name)}'
                      for prediction, label, name in zip(predictions, labels, names, strict=True)]
            mistakes.draw_sheet(examples.take(positions), titles, path)
        return [Section('The most confident mistakes', [
            f'These wrong predictions in the {split} part have the highest probabilities. Some may be errors of the labels. '
            'Above each image are the prediction with its probability, the label and the file.', '',
            figure(folder, 'confident_mistakes'), '',
            '| image | prediction | label |', '|---|---|---|',
            *(f'| {escape(name)} | {escape(prediction)} | {escape(label)} |'
              for name, prediction, label in zip(names, predictions, labels, strict=True))])]

    @abc.abstractmethod
    def predict(self, outputs: Any) -> Any:
        """Return the prediction of each image: an array (N, ...), or a dict of such arrays."""

    @abc.abstractmethod
    def targets_of(self, predictions: np.ndarray) -> dict[str, np.ndarray]:
        """Return predictions (N, ...) as targets, as if they were correct."""

    @abc.abstractmethod
    def describe(self, prediction: np.ndarray) -> str:
        """Return one image's prediction on one line."""

    def map_back(self, prediction: Any, map_boxes: Callable[[np.ndarray], np.ndarray]) -> Any:
        """Return predictions in the coordinates of their images before these were resized or augmented.

        By default, predictions have no coordinates and stay as they are.

        Args:
          prediction: the prediction of one image or, with a leading axis, of several.
          map_boxes: maps boxes (..., 4) back.
        """
        return prediction

    @property
    @abc.abstractmethod
    def columns(self) -> Sequence[str]:
        """The columns of a table of predictions, after that of the image."""

    @abc.abstractmethod
    def rows(self, prediction: Any) -> list[list[str]]:
        """Return the cells of one image's rows in a table of predictions."""

    def coco_results(self, prediction: Any, image_id: int) -> list[dict[str, Any]]:
        """Return one image's prediction as entries of COCO's format of results; only tasks with boxes have them.

        The numbers of the categories are those of the classes, plus 1.
        """
        raise NotImplementedError

    def draw(self, image: np.ndarray, prediction: Any, path: str) -> None:
        """Draw an image, uint8 (H, W, C), with its prediction, by default as a title.

        Args:
          image: the image as it is in its file.
          prediction: the prediction in the coordinates of the file.
          path: the picture file.
        """
        from jaxcnn.analysis.box_figures import draw_picture
        draw_picture(path, image, {}, self.class_names, self.describe(prediction))

    @abc.abstractmethod
    def category(self, prediction: np.ndarray) -> str:
        """Return one image's prediction as one cell of a submission to a homework or a contest."""

    @abc.abstractmethod
    def title(self, targets: Mapping[str, np.ndarray]) -> str:
        """Return the title of one image with these targets."""

    def draw_examples(self, images: Sequence[np.ndarray] | np.ndarray, targets: Sequence[Mapping[str, np.ndarray]],
                      path: str, titles: Sequence[str] | None = None, columns: int | None = None,
                      headings: Sequence[str] = ()) -> None:
        """Write a figure of images with their targets. By default, the targets are the titles of the images.

        Args:
          images: N images, float (H, W, C), clipped to [0, 1]; sizes may differ.
          targets: the targets of each image, by name.
          path: the PNG file.
          titles: the title of each image; None: what `title` returns, or no titles if the figure shows the targets itself.
          columns: number of images in a row; None: a number that suits the figure.
          headings: a line of text above each row, or empty.
        """
        from jaxcnn.analysis import figures
        texts = [self.title(values) for values in targets] if titles is None else titles
        figures.image_grid(images, texts, path, columns or 8, headings)
