"""All images of a split with their predictions."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.analysis import embedding
from jaxcnn.analysis.batches import compute_in_batches
from jaxcnn.data import Dataset
from jaxcnn.data.targets import LABEL
from jaxcnn.errors import UserError
from jaxcnn.run import Run


class SplitPredictions:
    """The images of a split with their predictions.

    Args:
      run: the run whose network predicts.
      dataset: the data.
      split: name of the split.
      count: number of images, which are drawn by the seed; None: all of them.
      seed: the seed.

    Attributes:
      split: the split.
      positions: (N,) positions of the images in the split.
      targets: targets of the images by name.
      has_label: whether each image has one class; otherwise it has any number of classes.
    """

    def __init__(self, run: Run, dataset: Dataset, split: str, count: int | None = None, seed: int = 0):
        splits = dataset.splits
        if split not in splits:
            raise UserError(f'no split {split!r}; there are: {", ".join(splits)}', field='--split')
        self._run, self._dataset, self._examples, self.split = run, dataset, splits[split], split
        self.positions = np.arange(len(self._examples))
        if count is not None and count < len(self.positions):
            self.positions = np.sort(np.random.default_rng(seed).permutation(len(self.positions))[:count])
        self.targets = self._examples.take_targets(self.positions)
        self.has_label = run.experiment.task.kind is LABEL

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def labels(self) -> np.ndarray:
        """The class of each image, (N,); -1 if images have any number of classes."""
        return self.targets['label'] if self.has_label else np.full(len(self), -1)

    def images(self, indices: Any = slice(None)) -> np.ndarray:
        """Return images at indices among the N images, uint8 (n, H, W, C)."""
        return self._examples.take(self.positions[indices])

    def name(self, index: int) -> str:
        """Return the name of an image."""
        return self._dataset.image_name(self.split, int(self.positions[index]))

    def features(self, layer: str) -> np.ndarray:
        """Return the features of all images in a layer, (N, D); see `embedding.layer_features`."""
        run = self._run
        network, preprocessor = run.experiment.network, run.experiment.preprocessor
        features: np.ndarray = compute_in_batches(lambda variables, images: embedding.layer_features(
            network, variables, preprocessor(images), layer), run.variables, len(self), self.images)
        return features

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        """The probability of each class, without test-time augmentation, (N, classes)."""
        run = self._run
        probabilities: np.ndarray = compute_in_batches(lambda variables, images: predict(
            run, variables, run.experiment.preprocessor(images)), run.variables, len(self), self.images)
        return probabilities

    @property
    def title(self) -> str:
        """The split with the number of its images that are used."""
        return f'{len(self):,} images of the {self.split} split'


def predict(run: Run, variables: Any, inputs: jax.Array) -> jax.Array:
    """Return the run's predictions for normalised images, without test-time augmentation."""
    outputs: Any = run.experiment.network.apply(variables, inputs, train=False)
    return run.experiment.task.predict(outputs.astype(jnp.float32))
