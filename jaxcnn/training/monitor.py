"""What a run shows while it trains: histograms and images in TensorBoard, and its curves."""

import dataclasses
import os
from typing import Any

import jax
import numpy as np

from jaxcnn.analysis.histograms import Histogram, histogram
from jaxcnn.optim import path_name
from jaxcnn.timeline import Phase
from jaxcnn.training.setup import Setup
from jaxcnn.training.state import TrainState, Weights, split_trained, trained
from jaxcnn.training.step import TrainStep, row_keys, step_keys
from jaxcnn.training.workdir import MetricsLog, read_metrics


class Monitor:
    """Writes the histograms, the images and the curves of a run, at the intervals in its config.

    It computes them on one device, from copies of the state and the data, so that the result of the run stays the same to
    the bit. They show the run at the end of the dispatch in which an interval ends.

    Args:
      setup: the objects of the run.
      log: the log that writes the events for TensorBoard.
    """

    def __init__(self, setup: Setup, log: MetricsLog):
        self._setup, self._log = setup, log
        config = setup.config
        intervals = [(config.log_histograms, self._write_histograms), (config.log_images, self._write_images),
                     (config.figures, self._draw_curves)]
        self._intervals = [(every, write) for every, write in intervals if every]
        self._programs: dict[Phase, Any] = {}

    def is_due(self, start: int, end: int) -> bool:
        """Return whether an interval ends in the steps from `start` to `end`."""
        return any(self._setup.timeline.next_multiple(start, every) <= end for every, _ in self._intervals)

    def write(self, start: int, end: int, state: TrainState) -> None:
        """Write everything whose interval ends in the steps from `start` to `end`.

        Args:
          start, end: the first step of a dispatch, and the step after its last one.
          state: the state at `end`, on the devices.
        """
        for every, write_one in self._intervals:
            if self._setup.timeline.next_multiple(start, every) <= end:
                write_one(end, state)

    def _write_histograms(self, end: int, state: TrainState) -> None:
        """Write histograms of the parameters, the gradients and the activations at step `end`.

        Gradients and activations are those of the next batch (after the last step, of the last one), as one device
        sees them: of its images in one micro-batch, normalised by the BatchNorm statistics of these.
        """
        if not self._log.writes_events:
            return
        from tensorboardX.summary import histogram_raw
        setup = self._setup
        step = min(end, setup.timeline.total - 1)
        phase = setup.timeline.phase(step)
        weights = setup.backend.fetch(Weights(trained(state), state.batch_stats))
        count = phase.batch_size // (setup.backend.num_devices * setup.config.optim.accumulate)
        examples = setup.augmented_batch(step, count, state, with_pixels=bool(setup.loss_terms))
        arrays = {term.name: term.arrays for term in setup.loss_terms}
        for tag, x in jax.device_get(self._program(phase)(weights, examples, np.int32(step), arrays)).items():
            if x.size:
                limits = np.linspace(x.low, x.high, len(x.counts) + 1)[1:]
                self._log.write_summary(end, histogram_raw(
                    tag, float(x.low), float(x.high), int(x.size), float(x.total), float(x.total_squares), limits.tolist(),
                    x.counts.tolist()))

    def _program(self, phase: Phase) -> Any:
        """Return the jitted function from weights, examples and a step to histograms by their tags."""
        if phase.program in self._programs:
            return self._programs[phase.program]
        experiment, seed = self._setup.experiment, np.uint32(self._setup.config.seed)
        network = experiment.network.clone(bn_frozen=phase.bn_frozen or experiment.network.bn_frozen, bn_axis=None)
        preprocessor = dataclasses.replace(experiment.preprocessor, train_size=phase.image_size)
        train_step = TrainStep(network, experiment.optimizer, preprocessor, experiment.task, stage=phase.stage,
                               total=self._setup.timeline.total, terms=self._setup.loss_terms)

        def histograms(weights: Weights, examples: Any, step: jax.Array, arrays: Any) -> dict[str, Histogram]:
            _, dropout_key = step_keys(jax.random.key(seed), step)
            grads = train_step.batch_gradients(weights.params, weights.batch_stats, examples, dropout_key, step, arrays)
            params, _ = split_trained(weights.params)
            variables = {'params': params, 'batch_stats': weights.batch_stats}
            images = examples['image']
            arguments = experiment.task.network_arguments(
                {**examples, 'key': row_keys(dropout_key, jax.numpy.arange(len(images)))}, train=True)
            (_, maps), _ = network.apply(variables, images, train=True, features=True, rngs={'dropout': dropout_key},
                                         mutable=['batch_stats'], **arguments)
            groups = {'params': weights.params, 'gradients': grads, 'activations': maps}
            return {path_name(path): histogram(x) for path, x in jax.tree_util.tree_leaves_with_path(groups)}
        self._programs[phase.program] = jax.jit(histograms)
        return self._programs[phase.program]

    def _write_images(self, end: int, state: TrainState) -> None:
        """Write a sheet of the first images of the next batch as `figures/batch.png`, and in TensorBoard."""
        from jaxcnn.analysis import figures
        setup = self._setup
        path = os.path.join(setup.folder, 'figures', 'batch.png')
        with figures.warn_on_error(path):
            setup.draw_batch(min(end, setup.timeline.total - 1), state, path)
            if self._log.writes_events:
                from PIL import Image
                from tensorboardX.proto.summary_pb2 import Summary
                with Image.open(path) as picture:
                    width, height = picture.size
                with open(path, 'rb') as f:
                    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=f.read())
                self._log.write_summary(end, Summary(value=[Summary.Value(tag='train/batch', image=image)]))

    def _draw_curves(self, _end: int, _state: TrainState) -> None:
        from jaxcnn.analysis.report import draw_curves
        draw_curves(self._setup.folder, self._setup.experiment, read_metrics(self._setup.folder))
