"""A trained network, as its workdir holds it: what `evaluate` and `predict` work with."""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxcnn import config as cfg
from jaxcnn import data, metrics, models, optim
from jaxcnn.data import feed, normalize
from jaxcnn.data.checks import check_images
from jaxcnn.data.tta import parse as parse_tta
from jaxcnn.errors import UserError
from jaxcnn.timeline import Timeline
from jaxcnn.train import parallel, workdir
from jaxcnn.train.checkpoint import Checkpoints
from jaxcnn.train.evaluate import Evaluator
from jaxcnn.train.state import TrainState, init_state, variables
from jaxcnn.train.step import Preparation


class Trained:
    """The run in `folder`.

    Attributes:
      config: of the run.
      info: what `data.json` holds of the data: class names, image shape, statistics.
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
        needed = {'class_names', 'image_shape', 'sizes', 'mean', 'std', 'ink'}
        if not isinstance(self.info, dict) or not needed <= set(self.info):
            raise UserError(f'{os.path.join(folder, "data.json")}: is not what a run of this version writes')
        timeline = Timeline(self.config, self.info['sizes']['train'])
        self.total_steps = timeline.total
        optimizer = optim.make_optimizer(self.config.optim, timeline)
        self.network = models.create(self.config.model.name, num_classes=len(self.info['class_names']),
                                     **self.config.model.args)
        self.prepare = Preparation.of(self.config.data, self.info['mean'], self.info['std'],
                                      lambda ops, _: normalize.read(os.path.join(folder, 'normalize.npz'), ops),
                                      parse_tta(self.config.eval.tta))
        shape = self.prepare.shape(tuple(self.info['image_shape']))
        self._template = jax.eval_shape(lambda: init_state(
            self.network, optimizer, shape, np.uint32(0), self.config.optim))

    @functools.cached_property
    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints, which another process may be writing."""
        return Checkpoints(self.folder, self.config.checkpoint, read_only=True)

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

    def read(self, step: int) -> TrainState:
        """The state of a checkpoint, as host arrays.

        Raises:
          UserError: it is damaged.
        """
        try:
            return self.checkpoints.read(step, self._template)[0]
        except ValueError as e:
            others = ', '.join(f'--checkpoint={s}' for s in self.steps() if s != step)
            raise UserError(f'checkpoint {step} in {self.folder!r} is damaged: {e}; '
                            f'{f"there is {others}" if others else "there is no other"}') from e

    def best_variables(self, state: TrainState) -> Any:
        """The variables that the run's metric judges: the moving average where it is `val_ema_...`."""
        found = variables(state)
        return found['ema_' if '_ema_' in self.config.checkpoint.metric else '']

    def evaluator(self, split: str, data_dir: str = '') -> 'SplitEvaluator':
        """Evaluates states on one split of the run's data.

        Raises:
          UserError: no such split, or the data is missing or not what it was in training.
        """
        config = cfg.parse(cfg.override(cfg.to_dict(self.config), [f'data.dir={data_dir}'] if data_dir else []))
        dataset = data.load(config.data)
        if split not in dataset.splits:
            raise UserError(f'no split {split!r}; there are: {", ".join(dataset.splits)}')
        dataset.check_same(self.info, self.folder)
        return SplitEvaluator(self, dataset, split)

    def predict(self, state: TrainState, images: np.ndarray) -> np.ndarray:
        """Class probabilities of images, with the run's test-time augmentation.

        Args:
          state: as `read` gives it.
          images: uint8 (N, H, W, C), of the size and channels in `info['image_shape']`; (N, H, W) where C is 1.

        Returns:
          float32 (N, classes), each row in [0, 1] and with the sum 1.

        Raises:
          UserError: images of another dtype or shape; the message holds the conversion.
        """
        images = check_images('images', images, self.info['image_shape'], self.config.data.resize)
        if not len(images):
            return np.zeros((0, len(self.info['class_names'])), np.float32)
        return np.asarray(self._probabilities(self.best_variables(state), images))

    @functools.cached_property
    def _probabilities(self) -> Any:
        def run(variables: Any, images: jax.Array) -> jax.Array:
            def of(x: jax.Array) -> jax.Array:
                logits: Any = self.network.apply(variables, x, train=False)
                return logits
            return jax.nn.softmax(self.prepare.logits(of, images))
        return jax.jit(run)


class SplitEvaluator:
    """One split of a trained network's data."""

    def __init__(self, trained: Trained, dataset: data.Dataset, split: str):
        self._split, self._has_tta = split, trained.prepare.tta is not None
        self._backend = parallel.make_backend(cfg.ParallelConfig())
        on_device = dataset.splits[split].nbytes <= feed.DEVICE_LIMIT
        self._evaluator = Evaluator(trained.network, dataset, trained.prepare, self._backend,
                                    trained.config.eval.batch_size, on_device)

    def __call__(self, state: TrainState) -> dict[str, Mapping[str, float]]:
        """`count`, `loss`, `accuracy` and `top5` of the parameters (''), of their moving average ('ema_'), and of each with
        test-time augmentation ('tta_', 'ema_tta_')."""
        found: dict[str, Mapping[str, float]] = {}
        for prefix, of_state in variables(state).items():
            placed = self._backend.place(of_state)
            for tta in (False, True) if self._has_tta else (False,):
                sums = self._evaluator(placed, self._split, tta=tta)
                assert sums is not None
                found[prefix + tta * 'tta_'] = {'count': float(sums['count']), **metrics.figures(sums)}
        return found


def describe(probabilities: np.ndarray, class_names: Sequence[str], count: int = 5) -> list[tuple[str, float]]:
    """The most probable classes of one image, with their probabilities, best first."""
    order = np.argsort(-probabilities, kind='stable')[:count]
    return [(class_names[i], float(probabilities[i])) for i in order]
