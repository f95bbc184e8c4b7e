"""Evaluation of a network on every image of a split, on all devices."""

import collections
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxcnn.data import feed
from jaxcnn.data.dataset import Dataset
from jaxcnn.experiment import Experiment
from jaxcnn.metrics import Measurement
from jaxcnn.tasks import Accumulated
from jaxcnn.training.parallel import Backend
from jaxcnn.training.step import eval_step


class Evaluator:
    """Evaluates the variables of one network on the splits of one data set.

    Args:
      experiment: gives the network, the preprocessor and the task.
      dataset: the data set.
      backend: spreads batches over devices.
      on_device: whether evaluated splits are kept on the devices.
    """

    def __init__(self, experiment: Experiment, dataset: Dataset, backend: Backend, on_device: bool):
        self._task, self._dataset, self._backend, self._on_device = experiment.task, dataset, backend, on_device
        # the batch size must be a multiple of the number of devices
        self._batch_size = -(-experiment.config.eval.batch_size // backend.num_devices) * backend.num_devices
        self._steps = {tta: backend.compile_eval(eval_step(
            experiment.network, experiment.preprocessor, experiment.task, backend.axis_name, tta)) for tta in (False, True)}
        self._resident_examples: dict[str, Any] = {}

    def __call__(self, variables: Any, split: str, should_stop: Callable[[], bool] = lambda: False,
                 tta: bool = False) -> Accumulated | None:
        """Return what the task accumulates over a split, or None if `should_stop` returned True.

        Args:
          variables: `params` and `batch_stats`, replicated by the back end.
          split: name of one of the data set's splits.
          should_stop: function that is called before each batch, after the second to last batch has been evaluated.
          tta: whether to use test-time augmentation.
        """
        data = self._dataset.splits[split]
        if split not in self._resident_examples:
            self._resident_examples[split] = self._backend.replicate(feed.all_examples(data)) if self._on_device else {}
        examples = self._resident_examples[split]
        sums = self._backend.replicate(self._task.zero_sums())
        in_flight: collections.deque[Any] = collections.deque()
        device_rows: list[Any] = []
        for batch in feed.eval_batches(data, self._batch_size, on_device=self._on_device,
                                       process_rows=self._backend.process_rows):
            if len(in_flight) > 1:
                jax.block_until_ready(in_flight.popleft())
            if should_stop():
                return None
            sums, batch_rows = self._steps[tta](variables, self._backend.shard_batch(batch), examples, sums)
            in_flight.append(sums)
            if batch_rows:
                device_rows.append(batch_rows)
        host_rows = [self._backend.fetch(rows) for rows in device_rows]  # after all batches are dispatched
        names = device_rows[0] if device_rows else {}
        rows = {name: np.concatenate([batch_rows[name] for batch_rows in host_rows])[:len(data)] for name in names}
        return Accumulated(self._backend.fetch(sums), rows)

    def measure(self, variables_by_ema: Mapping[bool, Any], split: str, should_stop: Callable[[], bool], tta: bool,
                ) -> tuple[dict[Measurement, float], dict[bool, Accumulated]] | None:
        """Return all measurements of a split, and what the task has accumulated; None if `should_stop` returned True.

        Args:
          variables_by_ema: variables by whether they are moving averages, replicated by the back end.
          split: name of one of the data set's splits.
          should_stop: see `__call__`.
          tta: whether to measure with test-time augmentation, too.

        Returns:
          The values by their measurements, and what is accumulated without test-time augmentation, by whether the variables
          are moving averages.
        """
        values, accumulated_by_ema = {}, {}
        for ema, variables in variables_by_ema.items():
            for is_augmented in (False, True) if tta else (False,):
                accumulated = self(variables, split, should_stop, is_augmented)
                if accumulated is None:
                    return None
                for name, value in self._task.compute(accumulated).items():
                    values[Measurement(split, self._task.metrics[name], ema, is_augmented)] = value
                if not is_augmented:
                    accumulated_by_ema[ema] = accumulated
        return values, accumulated_by_ema
