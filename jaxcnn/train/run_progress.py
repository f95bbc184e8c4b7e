"""What the training loop remembers beside the state."""

import dataclasses

from jaxcnn import memory
from jaxcnn.metrics import Metric


@dataclasses.dataclass
class RunProgress:
    """What the loop remembers beside the state; saved with each checkpoint."""

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

    @property
    def images_per_second(self) -> float | None:
        """Of all training, compilation, evaluation and saving left out; None before anything was timed."""
        return self.timed_images / self.timed_seconds if self.timed_seconds else None

    def look_at_memory(self) -> None:
        """Takes in what this process has held at most; processes before it may have held more."""
        host, device = memory.peak_bytes()
        self.peak_host_bytes = max(self.peak_host_bytes, host)
        if device is not None:
            self.peak_device_bytes = max(self.peak_device_bytes or 0, device)

    def summary(self) -> dict[str, float | None]:
        """Return the part of a run's summary that tells its times and its memory."""
        return {'images_per_second': self.images_per_second, 'train_seconds': self.timed_seconds,
                'wall_seconds': self.wall_seconds, 'peak_host_bytes': self.peak_host_bytes,
                'peak_device_bytes': self.peak_device_bytes}

    def observe(self, value: float, metric: Metric) -> None:
        """Count an evaluation."""
        if metric.improves(value, self.best_value):
            self.best_value, self.evaluations_since_best = value, 0
        else:
            self.evaluations_since_best += 1
