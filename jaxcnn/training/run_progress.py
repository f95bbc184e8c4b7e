"""The progress of the training loop that checkpoints save beside the state."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from jaxcnn import memory
from jaxcnn.data.pseudo_labels import PseudoLabels
from jaxcnn.metrics import Metric


@dataclasses.dataclass
class RunProgress:
    """The progress of the training loop. A checkpoint holds it under the names of these fields.

    Attributes:
      evaluated_step: step of the last evaluation; -1 if there was none.
      best_value: best validation value of the checkpoint metric so far.
      evaluations_since_best: number of evaluations since then.
      interval_steps: number of steps since training scalars were last logged.
      interval_sums: sums of the training scalars over these steps.
      timed_images, timed_seconds: images and duration of all training, without compilation, evaluation and saving.
      wall_seconds: duration of the run, in all its processes.
      peak_host_bytes, peak_device_bytes: peak memory.
      pseudo_labels: label of each unlabelled image, -1 for those without one; None before the first prediction.
      pseudo_label_step: step before which they were predicted.
      previous_pseudo_labels: see `PseudoLabels.previous`; None in runs of older versions.
      pseudo_label_epoch: see `PseudoLabels.first_epoch`.
    """

    evaluated_step: int = -1
    best_value: float | None = None
    evaluations_since_best: int = 0
    interval_steps: int = 0
    interval_sums: dict[str, float] = dataclasses.field(default_factory=dict)
    timed_images: int = 0
    timed_seconds: float = 0.0
    wall_seconds: float = 0.0
    peak_host_bytes: int = 0
    peak_device_bytes: int | None = None
    pseudo_labels: list[int] | None = None
    pseudo_label_step: int = -1
    previous_pseudo_labels: list[int] | None = None
    pseudo_label_epoch: int = 0

    @property
    def images_per_second(self) -> float | None:
        """The rate of all training, without compilation, evaluation and saving; None before anything was timed."""
        return self.timed_images / self.timed_seconds if self.timed_seconds else None

    def add_step(self, scalars: Mapping[str, float]) -> dict[str, float]:
        """Add the scalars of a step to the interval, and return their means over the interval.

        A step without scalars, which was skipped, does not count.
        """
        self.interval_steps += bool(scalars)
        for name, value in scalars.items():
            self.interval_sums[name] = self.interval_sums.get(name, 0.0) + value
        return {name: total / self.interval_steps for name, total in self.interval_sums.items()}

    def start_interval(self) -> None:
        """Start a new interval, after training scalars were logged."""
        self.interval_steps, self.interval_sums = 0, {}

    def record_memory(self) -> None:
        """Update the peak memory with that of this process; an earlier process of the run may have had a higher one."""
        host, device = memory.peak_bytes()
        self.peak_host_bytes = max(self.peak_host_bytes, host)
        if device is not None:
            self.peak_device_bytes = max(self.peak_device_bytes or 0, device)

    def summary(self) -> dict[str, float | None]:
        """Return the durations and the peak memory for the summary of the run."""
        return {'images_per_second': self.images_per_second, 'train_seconds': self.timed_seconds,
                'wall_seconds': self.wall_seconds, 'peak_host_bytes': self.peak_host_bytes,
                'peak_device_bytes': self.peak_device_bytes}

    def read_pseudo_labels(self, count: int) -> PseudoLabels:
        """Return the labels of `count` unlabelled images."""
        labels = PseudoLabels.none(count)
        if self.pseudo_labels is None:
            return labels
        previous = self.previous_pseudo_labels
        return PseudoLabels(np.array(self.pseudo_labels), labels.previous if previous is None else np.array(previous),
                            self.pseudo_label_epoch)

    def write_pseudo_labels(self, labels: PseudoLabels, step: int) -> None:
        """Record the labels that were predicted before a step."""
        self.pseudo_labels, self.previous_pseudo_labels = labels.newest.tolist(), labels.previous.tolist()
        self.pseudo_label_step, self.pseudo_label_epoch = step, labels.first_epoch

    def observe(self, value: float, metric: Metric) -> None:
        """Record the validation value of the checkpoint metric at an evaluation."""
        if metric.improves(value, self.best_value):
            self.best_value, self.evaluations_since_best = value, 0
        else:
            self.evaluations_since_best += 1
