"""What the checks of a config share: its objects, variants of it, and a short training run.

All of it is made by `training.setup.Setup` and trained by `training.step`, so that what is checked is what `train` runs.
"""

import contextlib
import dataclasses
import functools
import logging
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import config as cfg
from jaxcnn import data
from jaxcnn.data import Source
from jaxcnn.errors import UserError
from jaxcnn.training.dispatch import dispatch_end
from jaxcnn.training.setup import Setup
from jaxcnn.training.state import TrainState, Weights

MAX_IMAGES = 1024  # of a split that are evaluated
Scalars = dict[str, np.ndarray]


class TooShort(UserError):
    """The schedule of a config does not fit into the steps of a short training run."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Log errors only in the block, because variants of a config repeat the warnings of the config."""
    log = logging.getLogger('jaxcnn')
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def train_steps(setup: Setup, state: TrainState, start: int, stop: int) -> tuple[TrainState, Scalars]:
    """Run the steps `start` to `stop - 1` of a run, with its data and its compiled programs.

    Args:
      setup: the objects of the run.
      state: the state before step `start`, on the devices. Its memory is reused.
      start: first step.
      stop: the step after the last one.

    Returns:
      The state, and the scalars of each step, (stop - start,) each.
    """
    step, parts = start, []
    while step < stop:
        end = dispatch_end(setup.timeline, step, setup.steps_per_dispatch, [], setup.variable_length)
        if end > stop:
            end = stop if setup.variable_length else step + 1
        state, scalars = setup.program(setup.timeline.phase(step))(state, *setup.inputs(step, end - step))
        parts.append({name: values[:end - step] for name, values in setup.backend.fetch(scalars).items()})
        step = end
    return state, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@dataclasses.dataclass(frozen=True)
class ShortRun:
    """The beginning of a run: the training of the config, shortened.

    Attributes:
      num_steps: number of steps.
      scalars: the scalars of each step, (num_steps,) each.
      weights: host copies of the weights by step: before the first step, in the middle, one step later, and at the end.
    """

    num_steps: int
    scalars: Scalars
    weights: Mapping[int, Weights]

    @property
    def middle(self) -> int:
        """The step in the middle of the run."""
        return self.num_steps // 2

    @property
    def final(self) -> Weights:
        """The weights at the end."""
        return self.weights[self.num_steps]


class Context:
    """The objects that the checks of a config share.

    Args:
      config: the config, checked by `experiment.check`.
      folder: folder for figures.
      steps: number of steps of a short training run.
      source: the data; None: what the config names.

    Attributes:
      config, folder, steps: the arguments; a run that is shorter than `steps` is not made longer.
      setup: the objects of the run.

    Raises:
      UserError: the config does not fit the data, or the network does not take the images; see `Setup`.
    """

    def __init__(self, config: cfg.Config, folder: str, steps: int = 100, source: Source | None = None):
        self.config, self.folder = config, folder
        self._resources = contextlib.ExitStack()
        self._scratch = self._resources.enter_context(tempfile.TemporaryDirectory(prefix='jaxcnn_check'))
        self.setup = Setup(config, self._scratch, source)
        self._resources.callback(self.setup.feed.close)
        with open(os.path.join(self._scratch, 'config.json'), 'w', encoding='utf-8'):
            pass  # variants of the config read what the normalisers have been fitted to, as a resumed run does
        self.setup.check_train_sizes()
        self.setup.check_batch_norm()
        self.weights = self.setup.read_initial_weights(config)
        self.steps = min(steps, self.setup.timeline.total)

    def __enter__(self) -> 'Context':
        return self

    def __exit__(self, *exception: object) -> None:
        self._resources.close()

    def figure_path(self, name: str) -> str:
        """Return the path of a figure."""
        return os.path.join(self.folder, f'{name}.png')

    # variants of the config

    @contextlib.contextmanager
    def variant(self, config: cfg.Config, dataset: data.Dataset | None = None) -> Iterator[Setup]:
        """Yield the objects of another config for the same data, on one device.

        Args:
          config: the config.
          dataset: other data, such as a part of it; normalisation is always that of the whole training split.

        Raises:
          TooShort: the config has fewer steps than its schedule needs.
        """
        single = dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, devices=1, backend='sharded'))
        with quiet():
            try:
                setup = Setup(single, self._scratch, dataset=dataset or self.setup.dataset)
            except UserError as e:
                if e.field != 'config.optim.schedule':
                    raise
                raise TooShort(f'the config cannot be shortened to {config.duration.value:g} steps: {e}') from e
        try:
            yield setup
        finally:
            setup.feed.close()

    def initial_state(self, setup: Setup) -> TrainState:
        """Return the state before the first step, on the devices of `setup`."""
        with quiet():
            return setup.initial_state(self.weights)

    @functools.cached_property
    def host_state(self) -> TrainState:
        """A host copy of the state before the first step."""
        return self.setup.backend.fetch(self.initial_state(self.setup))

    def shortened(self, num_steps: int, **optim: Any) -> cfg.Config:
        """Return the config of a run of `num_steps` steps, with the schedule shortened accordingly.

        Later stages, batch sizes and sizes of images, a BatchNorm that is frozen later, and pruning that is not by the masks
        of another run are not reached by a short run. A schedule may need more steps, such as a triangle whose peak comes
        early; `variant` then raises `TooShort`.

        Args:
          num_steps: number of steps.
          **optim: other fields of `config.optim`.
        """
        config, timeline = self.config, self.setup.timeline
        warmup = config.optim.warmup
        if warmup is not None:
            warmup = cfg.Duration('steps', math.ceil(num_steps * timeline.steps(warmup) / timeline.total))
        freeze_bn = config.freeze_bn if config.freeze_bn is not None and not config.freeze_bn.value else None
        pruning = config.pruning if config.pruning is not None and config.pruning.masks else None
        return dataclasses.replace(
            config, duration=cfg.Duration('steps', num_steps), batch_schedule=(), freeze_bn=freeze_bn, pruning=pruning,
            data=dataclasses.replace(config.data, train_size=(timeline.phases[0].image_size,)),
            optim=dataclasses.replace(config.optim, **{'warmup': warmup, 'switch': (), **optim}))

    @functools.cached_property
    def short_run(self) -> ShortRun:
        """The training of the config, shortened to `steps` steps."""
        num_steps = self.steps
        middle = num_steps // 2
        with self.variant(self.shortened(num_steps)) as setup:
            state, weights, parts = self.initial_state(setup), {}, []
            for start, stop in ((0, 0), (0, middle), (middle, middle + 1), (middle + 1, num_steps)):
                if stop > start:
                    state, scalars = train_steps(setup, state, start, stop)
                    parts.append(scalars)
                weights[max(start, stop)] = setup.backend.fetch(Weights(state.params, state.batch_stats))
        return ShortRun(num_steps, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, weights)

    # images

    @property
    def run_key(self) -> jax.Array:
        """The key of the run."""
        return jax.random.key(np.uint32(self.config.seed))

    def train_examples(self, count: int) -> dict[str, jax.Array]:
        """Return the first `count` training examples as the network gets them: augmented, normalised, with their targets.

        A run that has fewer examples gives all of them.
        """
        setup, timeline, batches = self.setup, self.setup.timeline, []
        state = setup.backend.replicate(self.host_state)
        for step in range(timeline.total):
            missing = count - timeline.examples(step)
            if missing <= 0:
                break
            batches.append(setup.augmented_batch(step, missing, state))
        return {name: jnp.concatenate([batch[name] for batch in batches]) for name in batches[0]}

    @property
    def chance_loss(self) -> float:
        """The training loss of outputs that are all 0, on some training images; infinity if the outputs are no logits."""
        task, examples = self.setup.experiment.task, self.some_train_examples
        if task.outputs != 'logits':
            return math.inf
        targets = {name: jnp.asarray(value) for name, value in examples.items() if name != 'image'}
        return float(task.loss(jnp.zeros((len(examples['image']), task.num_classes)), targets))

    @property
    def validation_split(self) -> str:
        """The name of the split that is evaluated in training."""
        return 'val' if 'val' in self.setup.dataset.splits else 'test'

    def _some_examples(self, split: str) -> dict[str, np.ndarray]:
        """Return images of a split, uint8, with their targets: all of them, or some that are drawn at random."""
        examples = self.setup.dataset.splits[split]
        positions = np.random.default_rng(0).permutation(len(examples))[:MAX_IMAGES]
        return {'image': examples.take(positions), **examples.take_targets(positions)}

    @functools.cached_property
    def validation_examples(self) -> dict[str, np.ndarray]:
        """Validation images, uint8, with their targets."""
        return self._some_examples(self.validation_split)

    @functools.cached_property
    def some_train_examples(self) -> dict[str, np.ndarray]:
        """Training images, uint8, with their targets."""
        return self._some_examples('train')
