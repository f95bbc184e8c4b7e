"""A trained network, as its workdir holds it: what `evaluate` and `predict` work with."""

import functools
import os
from typing import Any

import jax
import numpy as np

from jaxcnn import config as cfg
from jaxcnn import data, experiment
from jaxcnn.data import feed, normalize
from jaxcnn.data.checks import check_images
from jaxcnn.errors import UserError
from jaxcnn.metrics import Measurement
from jaxcnn.train import parallel, workdir
from jaxcnn.train.checkpoint import Checkpoints
from jaxcnn.train.evaluate import Evaluator
from jaxcnn.train.state import Weights, init_weights, variables


class Trained:
    """The run in `folder`.

    Attributes:
      config: of the run.
      info: what `data.json` holds of the data: class names, image shape, statistics.
      experiment: the objects that the config stands for.
      total_steps: length of the run.

    Raises:
      UserError: the folder holds no run.
    """

    def __init__(self, folder: str):
        self.folder = folder
        if not os.path.isdir(folder):
            raise UserError(f'workdir {folder!r} does not exist')
        self.config = workdir.read_config(folder)
        self.info: dict[str, Any] = workdir.read_json(os.path.join(folder, 'data.json'))
        needed = {'class_names', 'image_shape', 'sizes', 'mean', 'std', 'ink', 'class_counts', 'targets'}
        if not isinstance(self.info, dict) or not needed <= set(self.info):
            raise UserError(f'{os.path.join(folder, "data.json")}: is not what a run of this version writes',
                            hint='use the version of jaxcnn that it was trained with, or a new workdir')
        self.experiment = experiment.build(
            self.config, self.info, lambda ops, _: normalize.read(os.path.join(folder, 'normalize.npz'), ops))
        self.total_steps = self.experiment.timeline.total
        network, image_shape = self.experiment.network, self.experiment.image_shape
        self._template = jax.eval_shape(lambda: init_weights(
            network, image_shape, np.uint32(0), bool(self.config.optim.ema_decay)))

    @functools.cached_property
    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints, which another process may be writing."""
        return Checkpoints(self.folder, self.config.checkpoint, self.experiment.best, read_only=True)

    def steps(self) -> list[int]:
        """Steps that have a checkpoint by now, in order."""
        return self.checkpoints.steps()

    def find(self, which: str) -> int:
        """The step of a checkpoint called `best`, `latest` or by its number.

        Raises:
          UserError: there is no such checkpoint.
        """
        steps = self.steps()
        if not steps:
            raise UserError(f'workdir {self.folder!r} holds no checkpoint yet')
        if which == 'latest':
            return steps[-1]
        if which == 'best':
            best = self.checkpoints.best_step()
            return steps[-1] if best is None else best
        if not (which.isascii() and which.isdigit()) or int(which) not in steps:
            raise UserError(f'no checkpoint {which!r} in {self.folder!r}; there are: best, latest, '
                            f'{", ".join(map(str, steps))}')
        return int(which)

    def read(self, step: int) -> Weights:
        """Return the parameters, BatchNorm statistics and averages of a checkpoint, as host arrays.

        Raises:
          UserError: it is damaged.
        """
        try:
            return self.checkpoints.read_weights(step, self._template)
        except ValueError as e:
            others = ', '.join(f'--checkpoint={s}' for s in self.steps() if s != step)
            raise UserError(f'checkpoint {step} in {self.folder!r} is damaged: {e}; '
                            f'{f"there is {others}" if others else "there is no other"}') from e

    def best_variables(self, state: Weights) -> Any:
        """The variables that the run's metric judges: the moving average where that is `val_ema_...`."""
        return variables(state)[self.experiment.best.ema]

    def evaluator(self, split: str, data_dir: str = '') -> 'SplitEvaluator':
        """Evaluates states on one split of the run's data.

        Raises:
          UserError: no such split, or the data is missing or not what it was in training.
        """
        config = cfg.parse(cfg.override(cfg.to_dict(self.config), [f'data.dir={data_dir}'] if data_dir else []))
        dataset = data.load(config.data, self.experiment.task.kind)
        if split not in dataset.splits:
            raise UserError(f'no split {split!r}; there are: {", ".join(dataset.splits)}')
        dataset.check_same(self.info, self.folder)
        return SplitEvaluator(self, dataset, split)

    def predict(self, state: Weights, images: np.ndarray) -> np.ndarray:
        """Return the predictions of images, with the run's test-time augmentation.

        Args:
          state: as `read` gives it.
          images: uint8 (N, H, W, C), of the size and channels in `info['image_shape']`; (N, H, W) where C is 1.

        Returns:
          What the task predicts of each image: for classification probabilities (N, classes), each row with the sum 1; for
          multi-label classification the probability of each class (N, classes).

        Raises:
          UserError: images of another dtype or shape; the message holds the conversion.
        """
        images = check_images('images', images, self.info['image_shape'], self.config.data.resize)
        if not len(images):
            return np.zeros((0, self.experiment.task.num_classes), np.float32)
        return np.asarray(self._predict(self.best_variables(state), images))

    @functools.cached_property
    def _predict(self) -> Any:
        network, preprocessor, task = self.experiment.network, self.experiment.preprocessor, self.experiment.task

        def run(variables: Any, images: jax.Array) -> jax.Array:
            def outputs_of(x: jax.Array) -> jax.Array:
                outputs: Any = network.apply(variables, x, train=False)
                return outputs
            return task.predict(preprocessor.outputs(outputs_of, images))
        return jax.jit(run)


class SplitEvaluator:
    """One split of a trained network's data."""

    def __init__(self, trained: Trained, dataset: data.Dataset, split: str):
        self._split, self._experiment = split, trained.experiment
        self._backend = parallel.make_backend(cfg.ParallelConfig())
        on_device = dataset.splits[split].nbytes <= feed.DEVICE_LIMIT
        self._evaluator = Evaluator(trained.experiment, dataset, self._backend, on_device)

    def __call__(self, state: Weights) -> tuple[int, dict[Measurement, float]]:
        """Return how many images the split has, and the metrics of the parameters, of their moving average, and of each with
        test-time augmentation."""
        count, measured, task = 0, {}, self._experiment.task
        for ema, weights in variables(state).items():
            placed = self._backend.replicate(weights)
            for augmented in (False, True) if self._experiment.preprocessor.tta else (False,):
                accumulated = self._evaluator(placed, self._split, tta=augmented)
                assert accumulated is not None
                count = round(float(accumulated.sums['count']))
                for name, value in task.compute(accumulated).items():
                    measured[Measurement(self._split, task.metrics[name], ema, augmented)] = value
        return count, measured
