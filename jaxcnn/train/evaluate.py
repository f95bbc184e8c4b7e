"""Evaluation: every image of a split once, on all devices."""

import collections
from collections.abc import Callable
from typing import Any

import jax

from jaxcnn import metrics
from jaxcnn.data import feed
from jaxcnn.data.dataset import Dataset
from jaxcnn.models import Network
from jaxcnn.train.parallel import Backend
from jaxcnn.train.step import Preparation, eval_step


class Evaluator:
    """Evaluates variables of one network on the splits of one data set.

    Args:
      network: without a BatchNorm axis.
      dataset: its splits.
      prepare: the pixels' preparation.
      backend: the devices.
      batch_size: images per step; rounded up to a multiple of the devices.
      on_device: keep evaluated splits on the accelerator.
    """

    def __init__(self, network: Network, dataset: Dataset, prepare: Preparation, backend: Backend, batch_size: int,
                 on_device: bool):
        self._dataset, self._backend, self._on_device = dataset, backend, on_device
        self._batch_size = -(-batch_size // backend.num_devices) * backend.num_devices
        self._steps = {tta: backend.compile_eval(eval_step(network, prepare, backend.axis_name, tta))
                       for tta in (False, True)}
        self._resident: dict[str, Any] = {}

    def __call__(self, variables: Any, split: str, stop: Callable[[], bool] = lambda: False,
                 tta: bool = False) -> dict[str, Any] | None:
        """Sums over the split (see `metrics.batch_sums`) on the host, or None where `stop` said so half-way.

        Args:
          variables: `params` and `batch_stats`, placed by the back end.
          split: a name in the data set's splits.
          stop: asked before each batch, when the one before the last is through.
          tta: with test-time augmentation.
        """
        part = self._dataset.splits[split]
        if split not in self._resident:
            self._resident[split] = self._backend.place(feed.resident(part)) if self._on_device else {}
        sums = self._backend.place(metrics.zero_sums(self._dataset.num_classes))
        under_way: collections.deque[Any] = collections.deque()
        for batch in feed.eval_batches(part, self._batch_size, on_device=self._on_device, rows=self._backend.rows):
            if len(under_way) > 1:
                jax.block_until_ready(under_way.popleft())
            if stop():
                return None
            sums = self._steps[tta](variables, self._backend.put_rows(batch), self._resident[split], sums)
            under_way.append(sums)
        return self._backend.fetch(sums)
