"""Object detection: boxes around the objects of each image, with a class for each."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxcnn import config as cfg
from jaxcnn import losses
from jaxcnn.data import augment, proposals, tta
from jaxcnn.data.augment.box_targets import move_boxes
from jaxcnn.data.split import Split
from jaxcnn.data.targets import BOXES, MIN_VISIBLE
from jaxcnn.detection_metrics import DetectionScores, require_evaluator
from jaxcnn.errors import UserError, name_field, printable, unknown
from jaxcnn.metrics import LOSS, Metric
from jaxcnn.models import Network
from jaxcnn.models.detection import Detections, Detector
from jaxcnn.tasks import detection_report
from jaxcnn.tasks.base import Accumulated, Section, Targets, Task, Tree
from jaxcnn.tasks.registry import register

DESCRIBED = 5  # detections that are printed of an image
_TRUTH = 'boxes', 'classes', 'valid', 'difficult'
_PROPOSALS = 'proposals', 'proposal_valid'


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Detection(Task):
    """Boxes around objects, with a class and a score each: the network is a `models.detection.Detector`.

    In evaluation and prediction its outputs are `Detections`, in training the terms of its loss. The loss is computed in
    training only.

    Attributes:
      threshold: predictions that are shown have at least this score, in [0, 1]; metrics use all detections.
      min_visible: boxes of which `data.augment` or `data.eval_augment` leaves less than this fraction of the area in the
        image, in [0, 1], become difficult: they are neither objects to detect nor background.
    """

    name = 'detection'
    kind = BOXES
    train_metrics = ('loss',)
    outputs = Detector.outputs
    is_mixable = False

    threshold: float = 0.5
    min_visible: float = MIN_VISIBLE

    def __post_init__(self) -> None:
        for name in ('threshold', 'min_visible'):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise UserError(f'expected a number from 0 to 1, got {value!r}', field=f'config.task.{name}')

    @classmethod
    def known_metrics(cls) -> dict[str, Metric]:
        """See `Task`; there is no loss, which is computed in training only."""
        return {name: metric for name, metric in super().known_metrics().items() if metric != LOSS}

    @classmethod
    def weights_of_classes(cls, counts: np.ndarray, num_images: int) -> np.ndarray:
        """See `Task`; detection has no weights of classes."""
        return np.ones(len(counts))

    @classmethod
    def check_config(cls, config: cfg.Config) -> None:
        """See `Task`."""
        require_evaluator()
        data = config.data
        for field, value in (('balance', data.balance if data.balance != 'none' else ''), ('per_class', data.per_class)):
            if value:
                raise UserError(f'{value!r} needs one class for each image', field=f'config.data.{field}')
        if tta.parse(config.eval.tta) is not None:
            raise UserError(f'{config.eval.tta!r}: test-time augmentation of detections is not supported',
                            field='config.eval.tta')
        with name_field('config.data.augment'):
            pipeline = augment.parse_pipeline(data.augment)
        if pipeline:
            cls.check_augmentation(pipeline)

    # the network

    @classmethod
    def check_network(cls, config: cfg.Config, network: Network) -> None:
        """See `Task`."""
        super().check_network(config, network)
        assert isinstance(network, Detector)
        terms = network.loss_terms()
        if terms and config.loss.name == losses.detection.__name__:
            for name in config.loss.args:
                if name not in terms:
                    raise unknown(f'term of the loss of {config.model.name}', name, terms, 'config.loss')
        method = config.data.proposals
        if network.takes_proposals and not method:
            raise UserError(f'{config.model.name} classifies object proposals, and there are none', field=proposals.FIELD,
                            hint=f'set it to one of {", ".join(proposals.names())}, such as selective_search')
        if method and not network.takes_proposals:
            raise UserError(f'{config.model.name} does not take the proposals {method!r}', field=proposals.FIELD,
                            hint="leave it ''")

    def network_arguments(self, targets: Targets, train: bool) -> dict[str, Any]:
        """See `Task`."""
        names = (*_TRUTH, *_PROPOSALS, 'key') if train else _PROPOSALS
        selected = {name: targets[name] for name in names if name in targets}
        return {'targets' if train else 'proposals': selected}

    def inputs(self, images: np.ndarray, config: cfg.DataConfig) -> dict[str, np.ndarray]:
        """See `Task`: the proposals of `config.proposals`, if there are any."""
        return proposals.proposals_for(images, config) if config.proposals else {}

    # training

    def loss(self, outputs: Any, targets: Targets) -> jax.Array:
        """See `Task`; `outputs` are the terms of the loss of each image."""
        return self.loss_function(outputs, targets['boxes']).mean()

    def train_scalars(self, outputs: Any, targets: Targets) -> dict[str, jax.Array]:
        """Return the terms of the loss."""
        return {f'{name}_loss': values.mean() for name, values in outputs.items()}

    def move(self, targets: Targets, matrix: jax.Array, size: tuple[int, int]) -> dict[str, jax.Array]:
        """See `Task`; boxes and proposals are moved with the pixels."""
        return move_boxes(dict(targets), matrix, size, self.min_visible)

    # evaluation

    def zero_sums(self) -> Tree:
        """See `Task`."""
        return {'count': np.zeros((), np.float32)}

    def eval_sums(self, outputs: Any, targets: Targets, mask: jax.Array) -> Tree:
        """See `Task`."""
        return {'count': mask.sum()}

    def eval_rows(self, outputs: Any, targets: Targets) -> Tree:
        """Return the detections, and the true boxes under names that begin with `true_`."""
        return {**outputs, **{f'true_{name}': targets[name] for name in _TRUTH}}

    def _scores(self, accumulated: Accumulated) -> DetectionScores:
        rows = accumulated.rows
        detections = {name: values for name, values in rows.items() if not name.startswith('true_')}
        return DetectionScores(detections, {name: rows[f'true_{name}'] for name in _TRUTH}, self.num_classes)

    def compute(self, accumulated: Accumulated) -> dict[str, float]:
        """See `Task`."""
        scores = self._scores(accumulated)
        return {name: metric.compute(scores) for name, metric in self.metrics.items() if metric.compute}

    # reports and predictions

    def report(self, accumulated: Accumulated, train_counts: Sequence[int], split: str, folder: str) -> list[Section]:
        """See `Task`: average precision of each class, curves, confusion and kinds of errors."""
        return detection_report.report_sections(self._scores(accumulated), self.class_names, train_counts, split, folder)

    def report_mistakes(self, accumulated: Accumulated, examples: Split, image_name: Callable[[int], str], split: str,
                        folder: str, prepare: Callable[[np.ndarray], np.ndarray]) -> list[Section]:
        """See `Task`: the images with the worst detections."""
        return detection_report.mistakes_sections(self._scores(accumulated), self.class_names, examples, image_name, split,
                                                  folder, prepare)

    def predict(self, outputs: Any) -> Detections:
        """Return the detections."""
        return outputs

    def targets_of(self, predictions: Any) -> dict[str, np.ndarray]:
        """See `Task`; detections below the threshold are left out."""
        valid = predictions['valid'] & (predictions['scores'] >= self.threshold)
        return {'boxes': predictions['boxes'], 'classes': predictions['classes'], 'valid': valid,
                'difficult': np.zeros_like(valid)}

    def confident_detections(self, prediction: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """Return the detections of one image with at least the score `threshold`, best first.

        Each has a `class`, a `score`, and `x0`, `y0`, `x1` and `y1` in pixels.
        """
        indices = np.flatnonzero(prediction['valid'] & (prediction['scores'] >= self.threshold))
        return [{'class': self.class_names[int(prediction['classes'][i])], 'score': float(prediction['scores'][i]),
                 **dict(zip(('x0', 'y0', 'x1', 'y1'), prediction['boxes'][i].tolist(), strict=True))} for i in indices]

    def describe(self, prediction: Any) -> str:
        """Return the number of objects of each class, and the best detections."""
        confident = self.confident_detections(prediction)
        if not confident:
            scores = prediction['scores'][prediction['valid']]
            best_score = f'; the best score is {scores.max():.3f}' if len(scores) else ''
            return f'no object with a score of at least {self.threshold:g}{best_score}'
        names = [detection['class'] for detection in confident]
        counts = ', '.join(f'{names.count(name)} {printable(name)}' for name in dict.fromkeys(names))
        best = '; '.join(f'{printable(d["class"])} {100 * d["score"]:.2f} % at {d["x0"]:.0f}, {d["y0"]:.0f}, {d["x1"]:.0f}, '
                         f'{d["y1"]:.0f}' for d in confident[:DESCRIBED])
        return f'{counts}  ({best})'

    def map_back(self, prediction: Any, map_boxes: Callable[[np.ndarray], np.ndarray]) -> Any:
        """See `Task`. Boxes are clipped to the image; those that lie in its padding are left out."""
        boxes = map_boxes(prediction['boxes']).astype(np.float32)
        has_area = (boxes[..., 2:] > boxes[..., :2]).all(-1)
        return {**prediction, 'boxes': boxes, 'valid': prediction['valid'] & has_area}

    columns = ('class', 'score', 'x0', 'y0', 'x1', 'y1')

    def rows(self, prediction: Any) -> list[list[str]]:
        """Return a row for each detection that is shown."""
        return [[d['class'], f'{d["score"]:.6f}', *(f'{d[name]:.2f}' for name in self.columns[2:])]
                for d in self.confident_detections(prediction)]

    def coco_results(self, prediction: Any, image_id: int) -> list[dict[str, Any]]:
        """Return all detections, also those below the threshold, which average precision needs."""
        indices = np.flatnonzero(prediction['valid'])
        boxes = np.asarray(prediction['boxes'][indices], np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        return [{'image_id': image_id, 'category_id': int(prediction['classes'][i]) + 1, 'bbox': np.round(box, 3).tolist(),
                 'score': float(prediction['scores'][i])} for i, box in zip(indices, boxes, strict=True)]

    def draw(self, image: np.ndarray, prediction: Any, path: str) -> None:
        """See `Task`: the detections that are shown, with their scores."""
        from jaxcnn.analysis.box_figures import draw_picture
        is_shown = prediction['valid'] & (prediction['scores'] >= self.threshold)
        draw_picture(path, image, {**prediction, 'valid': is_shown}, self.class_names)

    def category(self, prediction: Any) -> str:
        """Return the classes of the objects with semicolons between them, one for each object."""
        return ';'.join(detection['class'] for detection in self.confident_detections(prediction))

    def title(self, targets: Mapping[str, np.ndarray]) -> str:
        """Return the number of objects of each class."""
        counts = np.bincount(targets['classes'][targets['valid']], minlength=self.num_classes)
        return ', '.join(f'{count} {printable(name)}' for name, count in zip(self.class_names, counts, strict=True)
                         if count) or 'none'

    def draw_examples(self, images: Sequence[np.ndarray] | np.ndarray, targets: Sequence[Mapping[str, np.ndarray]],
                      path: str, titles: Sequence[str] | None = None, columns: int | None = None,
                      headings: Sequence[str] = ()) -> None:
        """See `Task`: the boxes are drawn in the images."""
        from jaxcnn.analysis.box_figures import draw_augmented
        draw_augmented(path, images, targets, self.class_names, titles, columns, headings)
