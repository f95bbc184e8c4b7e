"""Evaluation: every image of a split once, on all devices."""

import collections
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxcnn.data import feed
from jaxcnn.data.dataset import Dataset
from jaxcnn.experiment import Experiment
from jaxcnn.tasks import Accumulated
from jaxcnn.train.parallel import Backend
from jaxcnn.train.step import eval_step


class Evaluator:
    """Evaluates variables of one network on the splits of one data set.

    Args:
      experiment: its network and task.
      dataset: its splits.
      backend: the devices.
      on_device: keep evaluated splits on the accelerator.
    """

    def __init__(self, experiment: Experiment, dataset: Dataset, backend: Backend, on_device: bool):
        self._task, self._dataset, self._backend, self._on_device = experiment.task, dataset, backend, on_device
        # images per step, a multiple of the devices
        self._batch_size = -(-experiment.config.eval.batch_size // backend.num_devices) * backend.num_devices
        self._steps = {tta: backend.compile_eval(eval_step(
            experiment.network, experiment.preprocessor, experiment.task, backend.axis_name, tta)) for tta in (False, True)}
        self._resident: dict[str, Any] = {}

    def __call__(self, variables: Any, split: str, stop: Callable[[], bool] = lambda: False,
                 tta: bool = False) -> Accumulated | None:
        """Return what the task accumulates over a split, or None where `stop` said so half-way.

        Args:
          variables: `params` and `batch_stats`, placed by the back end.
          split: a name in the data set's splits.
          stop: asked before each batch, when the one before the last is through.
          tta: with test-time augmentation.
        """
        part = self._dataset.splits[split]
        if split not in self._resident:
            self._resident[split] = self._backend.replicate(feed.all_examples(part)) if self._on_device else {}
        sums = self._backend.replicate(self._task.zero_sums())
        in_flight: collections.deque[Any] = collections.deque()
        rows: list[Any] = []
        for batch in feed.eval_batches(part, self._batch_size, on_device=self._on_device,
                                       process_rows=self._backend.process_rows):
            if len(in_flight) > 1:
                jax.block_until_ready(in_flight.popleft())
            if stop():
                return None
            sums, new_rows = self._steps[tta](variables, self._backend.shard_batch(batch), self._resident[split], sums)
            in_flight.append(sums)
            if new_rows:
                rows.append(new_rows)
        host_rows = [self._backend.fetch(r) for r in rows]  # after all batches are dispatched
        gathered = {name: np.concatenate([r[name] for r in host_rows])[:len(part)] for name in (rows[0] if rows else {})}
        return Accumulated(self._backend.fetch(sums), gathered)
