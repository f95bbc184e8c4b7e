"""The second stage of R-CNN and SPP-Net on a trained run: features of regions, SVMs, regression of boxes, evaluation."""

import dataclasses
import functools
import logging
import os
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from jaxcnn import metrics
from jaxcnn.data.split import Split
from jaxcnn.detection_metrics import pairwise_iou
from jaxcnn.errors import UserError, name_file, unknown
from jaxcnn.files import open_replacement
from jaxcnn.models.detection import Detections
from jaxcnn.models.detection.rcnn import RCNN
from jaxcnn.models.detection.spp_net import SPPNet
from jaxcnn.ops import boxes as box_ops
from jaxcnn.region_svms.features import feature_name, region_features
from jaxcnn.region_svms.linear import FEATURE_NORM, Linear, SVMTrainer, fit_box_regression
from jaxcnn.run import Run
from jaxcnn.tasks import Accumulated
from jaxcnn.training.checkpoint import fingerprint
from jaxcnn.training.initialize import load_initial_weights
from jaxcnn.training.state import init_weights
from jaxcnn.training.workdir import SVMS, write_json

log = logging.getLogger('jaxcnn')

FILE_NAME = 'svms.npz'  # in the workdir
NEGATIVE_IOU = 0.3  # below which a region is a negative example of a class
# the IoU above which regions are examples of the regression of boxes, and the strength of the ridge, as in the authors' code
REGRESSION: dict[type, tuple[float, float]] = {RCNN: (0.6, 1000.0), SPPNet: (0.5, 4000.0)}
BOX_FEATURE = 'pool5'  # from which boxes are regressed
_NORM_IMAGES = 16  # from which the mean norm of features is computed
_BOX_EXAMPLES = 64  # largest number of examples of the regression, of an image and a class
_PROGRESS_INTERVAL = 10  # seconds between lines of progress
_encode, _decode = jax.jit(box_ops.encode), jax.jit(box_ops.decode)


def region_classifier(run: Run) -> RCNN | SPPNet:
    """Return the network of a run.

    Raises:
      UserError: It is neither R-CNN nor SPP-Net.
    """
    network = run.experiment.network
    if not isinstance(network, RCNN | SPPNet):
        raise UserError(f'the network {run.config.model.name!r} of the run in {run.workdir!r} has no SVMs',
                        hint='choose a run of rcnn or spp_net')
    return network


class Regions(NamedTuple):
    """The regions of an image: its true boxes, and its proposals.

    Attributes:
      boxes: (R, 4) in pixels of the network's input.
      features: (R, F) by name; see `features.region_features`.
      is_proposal: (R,), false for true boxes and for padding.
      truth: `boxes` (M, 4), `classes`, `valid` and `difficult` (M,); the first M regions are these boxes.
    """

    boxes: np.ndarray
    features: dict[str, np.ndarray]
    is_proposal: np.ndarray
    truth: dict[str, np.ndarray]

    def overlaps(self, num_classes: int) -> np.ndarray:
        """Return the largest IoU of each region with a true box of each class, (R, classes)."""
        overlaps = pairwise_iou(self.boxes, self.truth['boxes'])
        return np.stack([np.where(self.truth['valid'] & (self.truth['classes'] == c), overlaps, 0).max(-1, initial=0)
                         for c in range(num_classes)], -1)

    def regions_of_boxes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices of the regions that are true boxes to detect, and their classes."""
        indices = np.flatnonzero(self.truth['valid'] & ~self.truth['difficult'])
        return indices, self.truth['classes'][indices]

    def regression_examples(self, min_iou: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the regions to learn the regression of boxes from: true boxes, and proposals that overlap one enough.

        Each is an example of the class of the box that it overlaps most.

        Args:
          min_iou: the IoU that the overlap must exceed.

        Returns:
          The indices (n,) of the regions, their classes (n,), and the targets (n, 4) of `ops.boxes.encode`.
        """
        box_indices, classes = self.regions_of_boxes()
        if not len(box_indices):
            return box_indices, classes, np.zeros((0, 4), np.float32)
        overlaps = pairwise_iou(self.boxes, self.boxes[box_indices])
        is_region = self.is_proposal.copy()
        is_region[box_indices] = True
        indices, nearest = np.flatnonzero(is_region & (overlaps.max(-1) > min_iou)), overlaps.argmax(-1)
        targets = np.asarray(_encode(self.boxes[box_indices[nearest]], self.boxes))  # of all regions, to compile once
        return indices, classes[nearest[indices]], targets[indices]


class FeatureExtractor:
    """Computes the features of the regions of images.

    Args:
      run: a run of R-CNN or SPP-Net.
      variables: variables of its network.
    """

    def __init__(self, run: Run, variables: Any):
        network, preprocessor, task = region_classifier(run), run.experiment.preprocessor, run.experiment.task
        self.network, self.task, self.num_classes = network, task, task.num_classes
        self.height, self.width = run.experiment.image_shape[:2]
        self._variables = jax.device_put(variables)

        def compute(variables: Any, example: dict[str, jax.Array], with_proposals: bool) -> Any:
            example = preprocessor.move_targets({name: x[None] for name, x in example.items()}, task)
            moved = {name: x[0] for name, x in example.items()}
            boxes = jnp.concatenate([moved['boxes'], *([moved['proposals']] if with_proposals else [])])
            image = preprocessor(example['image'])[0]
            truth = {name: moved[name] for name in ('boxes', 'classes', 'valid', 'difficult')}
            return boxes, region_features(network, variables, image, boxes), moved.get('proposal_valid'), truth
        self._compute = jax.jit(compute, static_argnames='with_proposals')

    def __call__(self, image: np.ndarray, targets: Mapping[str, np.ndarray], with_proposals: bool = True) -> Regions:
        """Return the regions of an image, uint8 (H, W, C), with its targets; without proposals those of the true boxes."""
        boxes, features, valid, truth = jax.tree.map(
            np.asarray, self._compute(self._variables, {'image': image, **targets}, with_proposals))
        no_proposals = np.zeros(len(truth['boxes']), bool)
        return Regions(boxes, features, np.concatenate([no_proposals, valid]) if with_proposals else no_proposals, truth)

    def of_split(self, split: Split, positions: Sequence[int] | None = None, with_proposals: bool = True, title: str = '',
                 ) -> Iterator[Regions]:
        """Yield the regions of the images of a split, or of those at `positions`; log the progress under a title."""
        positions = range(len(split)) if positions is None else positions
        next_progress = time.monotonic() + _PROGRESS_INTERVAL
        for i, position in enumerate(positions):
            index = np.array([position])
            yield self(split.take(index)[0], {name: x[0] for name, x in split.take_targets(index).items()}, with_proposals)
            if title and time.monotonic() >= next_progress:
                log.info('%s: %d of %d images', title, i + 1, len(positions))
                next_progress = time.monotonic() + _PROGRESS_INTERVAL

    def names(self, split: Split) -> list[str]:
        """Return the names of the features."""
        regions = next(self.of_split(split, [0], with_proposals=False))
        return [feature_name(i) for i in range(len(regions.features) - 1)]  # without `logits`

    @functools.cached_property
    def select(self) -> Callable[[np.ndarray, np.ndarray, np.ndarray], Detections]:
        """A function from boxes (R, classes, 4), scores (R, classes) and which regions count (R,) to detections (K, ...)."""
        network = self.network.clone(score_threshold=float(np.finfo(np.float32).tiny))  # all but scores of 0
        labels = np.arange(self.num_classes, dtype=np.int32)

        @jax.jit
        def select(boxes: jax.Array, scores: jax.Array, mask: jax.Array) -> Detections:
            of_regions, of_boxes = (jnp.broadcast_to(x, scores.shape).reshape(1, -1) for x in (mask[:, None], labels))
            detections = network.select_detections(boxes.reshape(1, -1, 4), scores.reshape(1, -1), of_boxes, of_regions,
                                                   (self.height, self.width))
            return {name: x[0] for name, x in detections.items()}
        return lambda *arrays: jax.tree.map(np.asarray, select(*arrays))


@dataclasses.dataclass(frozen=True)
class SecondStage:
    """The fitted functions of features.

    Attributes:
      svms: the SVMs of the classes, by the feature that they take.
      boxes: the regression of boxes from the feature `pool5`: targets of `ops.boxes.decode`, (R, classes, 4).
      step: the checkpoint of the network that computed the features.
      fingerprint: the checksum of the variables of this network; see `training.checkpoint.fingerprint`.
    """

    svms: dict[str, Linear]
    boxes: Linear
    step: int = 0
    fingerprint: str = ''

    def save(self, path: str) -> None:
        """Write an `.npz` file with `FEATURE/weights`, `FEATURE/biases`, those of `boxes`, `step` and `fingerprint`."""
        arrays = {f'{name}/{field}': array for name, linear in {**self.svms, 'boxes': self.boxes}.items()
                  for field, array in linear._asdict().items()}
        with name_file(path), open_replacement(path, 'wb', sync=True) as file:
            np.savez(file, allow_pickle=False, step=self.step, fingerprint=self.fingerprint, **arrays)

    @classmethod
    def load(cls, path: str) -> 'SecondStage':
        """Return what `save` has written.

        Raises:
          FileNotFoundError: There is no such file.
          UserError: The file is damaged, or another version of jaxcnn wrote it.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            step, fingerprint = int(arrays.pop('step')), str(arrays.pop('fingerprint'))
            linears = {name: Linear(arrays[f'{name}/weights'], arrays[f'{name}/biases'])
                       for name in dict.fromkeys(key.partition('/')[0] for key in arrays)}
            return cls(linears, linears.pop('boxes'), step, fingerprint)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as e:
            raise UserError(f'is damaged, or another version of jaxcnn wrote it: {e}', field=path,
                            hint='jaxcnn fit_svms writes it again') from e

    def probabilities(self, regions: Regions, feature: str) -> np.ndarray:
        """Return the logistic function of the scores of the SVMs, (R, classes); it is 0.5 at their decision boundaries."""
        return scipy.special.expit(self.svms[feature](regions.features[feature]))

    def refine(self, regions: Regions) -> np.ndarray:
        """Return the boxes (R, classes, 4) that the regression predicts from the regions."""
        return np.asarray(_decode(self.boxes(regions.features[BOX_FEATURE]), regions.boxes[:, None]))


# ---- fitting


def fit(extractor: FeatureExtractor, split: Split, names: Sequence[str]) -> SecondStage:
    """Return the SVMs of the features `names`, and the regression of boxes, of the images of a split."""
    num_classes, count = extractor.num_classes, len(split)
    all_names = list(dict.fromkeys([*names, BOX_FEATURE]))
    norms: dict[str, list[float]] = {name: [] for name in all_names}
    norm_sample = np.linspace(0, count - 1, min(count, _NORM_IMAGES)).round().astype(int).tolist()
    for regions in extractor.of_split(split, norm_sample, title='scale of features'):
        for name in all_names:
            norms[name].append(np.linalg.norm(regions.features[name][regions.is_proposal], axis=1).mean())
    scales = {name: FEATURE_NORM / max(float(np.nanmean(values)), 1e-6) for name, values in norms.items()}

    positives: dict[str, list[list[np.ndarray]]] = {name: [[] for _ in range(num_classes)] for name in names}
    for regions in extractor.of_split(split, with_proposals=False, title='features of true boxes'):
        indices, classes = regions.regions_of_boxes()
        for name in names:
            for c in range(num_classes):
                positives[name][c].append(regions.features[name][indices[classes == c]])
    trainers = {name: SVMTrainer([np.concatenate(arrays) for arrays in positives[name]], scale=scales[name])
                for name in names}

    min_iou, strength = REGRESSION[type(extractor.network)]
    rng = np.random.default_rng(0)
    examples: list[tuple[list[np.ndarray], list[np.ndarray]]] = [([], []) for _ in range(num_classes)]
    for regions in extractor.of_split(split, title='features of proposals'):
        overlaps = regions.overlaps(num_classes)
        is_box = np.arange(len(regions.boxes)) < len(regions.truth['boxes'])
        is_region = regions.is_proposal | np.where(is_box, np.resize(regions.truth['valid'], len(is_box)), False)
        is_negative = is_region[:, None] & (overlaps < NEGATIVE_IOU)
        for name, trainer in trainers.items():
            trainer.add(regions.features[name], is_negative)
        indices, classes, targets = regions.regression_examples(min_iou)
        for c, (x, y) in enumerate(examples):
            sample = np.sort(rng.permutation(np.flatnonzero(classes == c))[:_BOX_EXAMPLES])
            x.append(regions.features[BOX_FEATURE][indices[sample]])
            y.append(targets[sample])
    boxes = fit_box_regression([np.concatenate(x) for x, _ in examples], [np.concatenate(y) for _, y in examples], strength,
                               scales[BOX_FEATURE])
    return SecondStage({name: trainer.finish() for name, trainer in trainers.items()}, boxes)


# ---- evaluation


def detect_split(extractor: FeatureExtractor, split: Split, stage: SecondStage) -> dict[tuple[str, str], Accumulated]:
    """Return the detections in the images of a split, with the true boxes, by feature and method.

    The methods are `svm` and `svm_boxes`, with the regression of boxes. The feature `logits` has `softmax` and
    `softmax_boxes`: the probabilities of the network take the place of those of the SVMs.
    """
    detections: dict[tuple[str, str], list[Detections]] = {}
    truth: list[dict[str, np.ndarray]] = []
    for regions in extractor.of_split(split, title='evaluation'):
        truth.append({f'true_{name}': array for name, array in regions.truth.items()})
        refined = stage.refine(regions)
        unrefined = np.repeat(regions.boxes[:, None], extractor.num_classes, 1)
        scores = {(name, 'svm'): stage.probabilities(regions, name) for name in stage.svms}
        scores['logits', 'softmax'] = scipy.special.softmax(regions.features['logits'], -1)[:, :-1]
        for (name, method), values in scores.items():
            for suffix, boxes in (('', unrefined), ('_boxes', refined)):
                selected = extractor.select(boxes, values, regions.is_proposal)
                detections.setdefault((name, method + suffix), []).append(selected)

    def stack(images: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        return {name: np.stack([image[name] for image in images]) for name in images[0]}
    return {key: Accumulated({'count': len(truth)}, {**stack(images), **stack(truth)})
            for key, images in detections.items()}


HEAD = ['scores', 'network', 'mAP@0.5', 'with regression of boxes']


def fit_run(run: Run, features: Sequence[str] = (), split: str = 'test', before: bool = False, data_dir: str = '',
            ) -> list[list[str]]:
    """Fit the second stage of a run, write it and a table into the workdir, and return the cells of the table.

    The metrics with the last feature and with the regression of boxes are those that studies compare, as `svm_test_map50`.

    Args:
      run: a run of R-CNN or SPP-Net, with the checkpoint to use.
      features: names of features for the SVMs; all by default.
      split: split for the evaluation: `val` or `test`.
      before: also use the features before fine-tuning, those of the weights with which the run started.
      data_dir: another `config.data.dir` than in training.

    Raises:
      UserError: The run is of another network, or there is no such split or feature.
    """
    dataset = run.load_dataset(data_dir)
    if split not in dataset.splits:
        raise unknown('split', split, dataset.splits, '--split')
    step = run.find_step(run.checkpoint)
    rows, sections = [HEAD], {f'checkpoint {step}': run.variables, **({'before fine-tuning': None} if before else {})}
    for title, variables in sections.items():
        extractor = FeatureExtractor(run, _initial_variables(run) if variables is None else variables)
        names = extractor.names(dataset.splits['train'])
        if wrong := [name for name in features if name not in names]:
            raise unknown('feature', wrong[0], names, '--features')
        log.info('%s', title)
        stage = fit(extractor, dataset.splits['train'], features or names)
        if variables is not None:
            stage = dataclasses.replace(stage, step=step, fingerprint=fingerprint(variables))
            stage.save(os.path.join(run.workdir, FILE_NAME))
        values = {key: extractor.task.compute(accumulated)
                  for key, accumulated in detect_split(extractor, dataset.splits[split], stage).items()}
        cells = {key: metrics.format_percent(metric_values['map50']) for key, metric_values in values.items()}
        rows += [[f'SVM on {name}', title, cells[name, 'svm'], cells[name, 'svm_boxes']] for name in stage.svms]
        if variables is not None:
            rows.append(['softmax', title, cells['logits', 'softmax'], cells['logits', 'softmax_boxes']])
        if variables is not None:
            last = values[list(stage.svms)[-1], 'svm_boxes']
            write_json(os.path.join(run.workdir, SVMS), {
                'best_step': step, **{f'svm_{split}_{name}': value for name, value in last.items()}})
        _write_table(os.path.join(run.workdir, 'svms.md'), rows, f'mAP@0.5 of the second stage, {split} split')
    return rows


def _initial_variables(run: Run) -> dict[str, Any]:
    """Return the variables with which a run started."""
    config, experiment = run.config, run.experiment
    seed = np.uint32(config.seed)
    shapes = jax.eval_shape(lambda: init_weights(experiment.network, experiment.image_shape, seed, False))
    arrays: dict[str, np.ndarray] = {}
    if config.init is not None:
        arrays = load_initial_weights(config, experiment.network, {'params': shapes.params,
                                                                   'batch_stats': shapes.batch_stats},
                                      experiment.image_shape, run.info['class_names']).arrays
    draw = jax.jit(lambda arrays: init_weights(experiment.network, experiment.image_shape, seed, False, arrays=arrays))
    weights = draw(arrays)
    return {'params': weights.params, 'batch_stats': weights.batch_stats}


def _write_table(path: str, rows: Sequence[Sequence[str]], title: str) -> None:
    lines = [f'# {title}', '', *(f'| {" | ".join(row)} |' for row in [rows[0], ['---', '---', '---:', '---:'], *rows[1:]])]
    with name_file(path), open_replacement(path) as file:
        file.write('\n'.join([*lines, '']))
