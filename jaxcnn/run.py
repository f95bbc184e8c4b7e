"""Load a run from its workdir, to predict with its network and to evaluate it.

    run = load_run('runs/digits')
    probabilities = run.predict(images)
    maps = run.features(images, 'stage2')
    accuracy = run.evaluate('test')['test_accuracy']
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np

from jaxcnn import config as cfg
from jaxcnn import data, experiment, plugins
from jaxcnn.data import augment, feed, normalize, picture
from jaxcnn.data.checks import check_images
from jaxcnn.data.resizing import Resizing
from jaxcnn.errors import UserError, unknown
from jaxcnn.experiment import Experiment
from jaxcnn.metrics import Measurement
from jaxcnn.training import parallel
from jaxcnn.training.checkpoint import Checkpoints
from jaxcnn.training.evaluate import Evaluator
from jaxcnn.training.state import Weights, init_weights, variables
from jaxcnn.training.workdir import read_config, read_json, read_metrics

# from weights to the number of images, and the metrics
Evaluate: TypeAlias = Callable[[Weights], tuple[int, dict[Measurement, float]]]
_INFO_FIELDS = {'class_names', 'image_shape', 'sizes', 'mean', 'std', 'ink', 'class_counts', 'targets'}


def load_run(workdir: str, checkpoint: str | int = 'best') -> 'Run':
    """Return the run in a workdir. Its checkpoint is read when it is first needed.

    Args:
      workdir: folder of a run that has begun; another process may still be training it.
      checkpoint: the one to predict with and to evaluate: `best`, `latest` or a step.

    Raises:
      UserError: The workdir holds no run, or one of another version of jaxcnn.
    """
    if not os.path.isdir(workdir):
        raise UserError(f'workdir {workdir!r} does not exist')
    config = read_config(workdir)
    plugins.load(config.plugins, workdir)
    info_path = os.path.join(workdir, 'data.json')
    info = read_json(info_path)
    if not isinstance(info, dict) or not set(info) >= _INFO_FIELDS:
        raise UserError(f'{info_path}: is not what a run of this version writes',
                        hint='use the version of jaxcnn that it was trained with, or a new workdir')
    fitted_path = os.path.join(workdir, 'normalize.npz')
    built = experiment.build(config, info, lambda normalizers, _: normalize.read(fitted_path, normalizers))
    run = Run(workdir, config, info, built, str(checkpoint))
    if checkpoint not in ('best', 'latest'):
        run.find_step(str(checkpoint))
    return run


@dataclasses.dataclass(eq=False, repr=False)
class Run:
    """A run in its workdir; see `load_run`.

    Parameters, BatchNorm statistics and their moving averages are restored from checkpoints, but no optimizer state.

    Attributes:
      workdir: its folder.
      config: its config.
      info: properties of its data; see `Dataset.info`.
      experiment: the objects that the config describes.
      checkpoint: the checkpoint of `weights`: `best`, `latest` or a step.
    """

    workdir: str
    config: cfg.Config
    info: dict[str, Any]
    experiment: Experiment
    checkpoint: str = 'best'

    def __repr__(self) -> str:
        return f'Run({self.workdir!r}, {self.config.model.name} on {self.info["name"]}, checkpoint {self.checkpoint})'

    @functools.cached_property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints, opened for reading only."""
        return Checkpoints(self.workdir, self.config.checkpoint, self.experiment.best, read_only=True)

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint by now, in order."""
        return self.checkpoints.steps()

    def find_step(self, checkpoint: str) -> int:
        """Return the step of a checkpoint.

        Args:
          checkpoint: `best`, `latest` or a step.

        Raises:
          UserError: There is no such checkpoint.
        """
        steps = self.steps()
        if not steps:
            raise UserError(f'workdir {self.workdir!r} holds no checkpoint yet')
        if checkpoint == 'latest':
            return steps[-1]
        if checkpoint == 'best':
            best = self.checkpoints.best_step()
            return steps[-1] if best is None else best
        if not (checkpoint.isascii() and checkpoint.isdigit()) or int(checkpoint) not in steps:
            raise UserError(f'no checkpoint {checkpoint!r} in {self.workdir!r}; there are: best, latest, '
                            f'{", ".join(map(str, steps))}')
        return int(checkpoint)

    def load_weights(self, step: int) -> Weights:
        """Return the parameters, BatchNorm statistics and moving averages of a checkpoint, as host arrays.

        Raises:
          UserError: The checkpoint is damaged.
        """
        network, image_shape = self.experiment.network, self.experiment.image_shape
        template = jax.eval_shape(lambda: init_weights(
            network, image_shape, np.uint32(0), bool(self.config.optim.ema_decay)))
        try:
            return self.checkpoints.read_weights(step, template)
        except ValueError as e:
            others = ', '.join(f'--checkpoint={s}' for s in self.steps() if s != step)
            raise UserError(f'checkpoint {step} in {self.workdir!r} is damaged: {e}; '
                            f'{f"there is {others}" if others else "there is no other"}') from e

    @functools.cached_property
    def weights(self) -> Weights:
        """The parameters, BatchNorm statistics and moving averages of `checkpoint`."""
        return self.load_weights(self.find_step(self.checkpoint))

    @property
    def variables(self) -> dict[str, Any]:
        """The network's variables, `params` and `batch_stats`: the moving averages if `config.checkpoint.metric` is one of
        theirs, such as `val_ema_loss`."""
        return variables(self.weights)[self.experiment.best.ema]

    def load_picture(self, path: str, tone: str = 'auto') -> tuple[np.ndarray, Resizing]:
        """Return a picture file as an image for `predict`, and how it was resized.

        Args:
          path: path of a picture of any size, in any format that Pillow reads.
          tone: tone of handwriting: `dark`, `light` or `auto`.

        Raises:
          UserError: The file is missing or not a picture, or too small.
        """
        crops, _ = augment.split_pipeline(self.config.data, train=False)
        draw_crop = functools.partial(crops.draw, np.random.default_rng(0)) if crops else None
        return picture.load_with_resizing(path, self.info, self.config.data.resize, tone, draw_crop)

    def predict(self, images: np.ndarray) -> Any:
        """Return the predictions for images, with the run's test-time augmentation.

        Args:
          images: uint8 (N, H, W, C), of the size and channels in `info['image_shape']`; (N, H, W) if C is 1.

        Returns:
          The task's prediction for each image (N, ...): for classification and multi-label classification the probability
          of each class (N, classes), for detection a dict of arrays, see `models.detection.Detections`, with
          boxes in pixels of the given images.

        Raises:
          UserError: The images have another dtype or shape. The message contains the conversion.
        """
        images = check_images('images', images, self.info['image_shape'], self.config.data.resize)
        inputs = self.experiment.task.inputs(images, self.config.data)
        if not len(images):
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), (images, inputs))
            prediction = jax.eval_shape(self._predict, self.variables, *shapes)
            return jax.tree.map(lambda x: np.zeros((0, *x.shape[1:]), x.dtype), prediction)
        predictions = jax.tree.map(np.asarray, self._predict(self.variables, images, inputs))
        map_boxes = functools.partial(self.experiment.preprocessor.map_boxes_back, image_shape=images.shape[1:])
        return self.experiment.task.map_back(predictions, map_boxes)

    @functools.cached_property
    def _predict(self) -> Any:
        network, preprocessor, task = self.experiment.network, self.experiment.preprocessor, self.experiment.task

        def predict(variables: Any, images: jax.Array, inputs: dict[str, jax.Array]) -> Any:
            targets = preprocessor.move_targets({'image': images, **inputs}, task)

            def apply(x: jax.Array) -> Any:
                return network.apply(variables, x, train=False, **task.network_arguments(targets, train=False))
            return task.predict(preprocessor.outputs(apply, images))
        return jax.jit(predict)

    def proposals(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return the proposals of a detector that makes them itself, best first.

        Args:
          images: as for `predict`.

        Returns:
          `proposals` (N, P, 4), in pixels of the images, and `proposal_valid` (N, P), false for padding.

        Raises:
          UserError: The images have another dtype or shape, or the network makes no proposals.
        """
        images = check_images('images', images, self.info['image_shape'], self.config.data.resize)
        proposals = self._proposals(self.variables, images)
        if 'proposals' not in proposals:
            raise UserError(f'the network {self.config.model.name} of the run in {self.workdir!r} makes no proposals',
                            hint='faster_rcnn does')
        boxes, valid = (np.asarray(proposals[name]) for name in ('proposals', 'proposal_valid'))
        boxes = self.experiment.preprocessor.map_boxes_back(boxes, images.shape[1:])
        return {'proposals': np.where(valid[..., None], boxes, 0), 'proposal_valid': valid}

    @functools.cached_property
    def _proposals(self) -> Any:
        network, preprocessor = self.experiment.network, self.experiment.preprocessor

        def proposals(variables: Any, images: jax.Array) -> Any:
            _, collections = network.apply(variables, preprocessor(images), train=False, mutable=['intermediates'])
            return {name: values[0] for name, values in collections.get('intermediates', {}).items()}
        return jax.jit(proposals)

    def features(self, images: np.ndarray, name: str | None = None) -> Any:
        """Return the feature maps of images, without test-time augmentation.

        Args:
          images: as for `predict`.
          name: name of a feature map; None: all of them.

        Returns:
          The feature map (N, H, W, C), or a dict of all of them by name.

        Raises:
          UserError: The images have another dtype or shape, or there is no such feature map.
        """
        images = check_images('images', images, self.info['image_shape'], self.config.data.resize)
        maps = self._features(self.variables, images)
        if name is None:
            return {map_name: np.asarray(x) for map_name, x in maps.items()}
        if name not in maps:
            raise unknown('feature map', name, maps)
        return np.asarray(maps[name])

    @functools.cached_property
    def _features(self) -> Any:
        network, preprocessor = self.experiment.network, self.experiment.preprocessor

        def features(variables: Any, images: jax.Array) -> Any:
            return network.apply(variables, preprocessor(images), train=False, features=True)[1]
        return jax.jit(features)

    @property
    def history(self) -> list[dict[str, float]]:
        """The rows of `metrics.jsonl`: what was logged and evaluated, each with its `step`."""
        return read_metrics(self.workdir)

    def load_dataset(self, data_dir: str = '', source: data.Source | None = None) -> data.Dataset:
        """Return the data that the run was trained on.

        Args:
          data_dir: another `config.data.dir` than in training.
          source: the data, if it was handed over from Python in training.

        Raises:
          UserError: The data is missing or differs from that of the training.
        """
        config = cfg.parse(cfg.override(cfg.to_dict(self.config), [f'data.dir={data_dir}'] if data_dir else []))
        dataset = data.load(config.data, self.experiment.task.kind, source)
        dataset.check_same(self.info, self.workdir)
        return dataset

    def evaluator(self, split: str, data_dir: str = '', source: data.Source | None = None) -> Evaluate:
        """Return a function that evaluates weights on one split of the run's data.

        Args:
          split: `train`, `val` or `test`.
          data_dir: another `config.data.dir` than in training.
          source: the data, if it was handed over from Python in training.

        Raises:
          UserError: There is no such split, or the data is missing or differs from that of the training.
        """
        dataset = self.load_dataset(data_dir, source)
        if split not in dataset.splits:
            raise UserError(f'no split {split!r}; there are: {", ".join(dataset.splits)}')
        return SplitEvaluator(self.experiment, dataset, split)

    def evaluate(self, split: str, data: data.Source | None = None) -> dict[str, float]:
        """Return the metrics of one split of the run's data by their names, such as `test_accuracy`.

        Args:
          split: `train`, `val` or `test`.
          data: the data, if it was handed over from Python in training.

        Raises:
          UserError: See `evaluator`.
        """
        _, values = self.evaluator(split, source=data)(self.weights)
        return {measurement.name: value for measurement, value in values.items()}


class SplitEvaluator:
    """Evaluates weights on one split of a data set; compiled once."""

    def __init__(self, experiment: Experiment, dataset: data.Dataset, split: str):
        self._experiment, self._split = experiment, split
        self._backend = parallel.make_backend(cfg.ParallelConfig())
        on_device = feed.fits_on_device([dataset.splits[split]])
        self._evaluator = Evaluator(experiment, dataset, self._backend, on_device)

    def __call__(self, weights: Weights) -> tuple[int, dict[Measurement, float]]:
        """Return the number of images, and the metrics of the parameters, of their moving averages, and of both with
        test-time augmentation, as far as the run has these."""
        variables_by_ema = {ema: self._backend.replicate(values) for ema, values in variables(weights).items()}
        tta = self._experiment.preprocessor.tta is not None
        result = self._evaluator.measure(variables_by_ema, self._split, lambda: False, tta)
        assert result is not None  # None only if it is stopped
        measurements, accumulated_by_ema = result
        return round(float(accumulated_by_ema[False].sums['count'])), measurements
