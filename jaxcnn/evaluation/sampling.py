"""Test-time augmentation by random samples of any augmentation pipeline."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.data import Dataset
from jaxcnn.data.augment import Pipeline, parse_pipeline, split_pipeline
from jaxcnn.errors import UserError, name_field
from jaxcnn.evaluation.protocols import Known, Protocol, log_progress
from jaxcnn.evaluation.views import log_probabilities
from jaxcnn.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class SampledAugmentation(Protocol):
    """A protocol that averages the probabilities of randomly augmented images; see `parse`.

    Attributes:
      pipeline: the augmentation.
      samples: number of samples of each image.
      seed: seed of the random numbers.
    """

    pipeline: Pipeline
    samples: int
    seed: int = 0

    def describe(self, experiment: Experiment) -> str:
        """See `Protocol`."""
        return f'{self.samples} x {self.pipeline.text}'

    def log_probabilities(self, experiment: Experiment, variables: Any, dataset: Dataset, split: str,
                          known: Known | None = None) -> np.ndarray:
        """See `Protocol`."""
        sampler = Sampler(self, experiment, variables)
        examples = dataset.splits[split]
        images = examples.images.with_augment(self.pipeline.text) if sampler.crops else None
        size = min(experiment.config.eval.batch_size, len(examples))
        starts = range(0, len(examples), size)
        results = []
        for start in log_progress(starts, len(starts), self.describe(experiment), 'batches'):
            positions = np.minimum(np.arange(start, start + size), len(examples) - 1)
            index = examples.index[positions]
            stored = None if images else jax.device_put(examples.take(positions))

            def take(sample: int, index: np.ndarray = index, stored: Any = stored) -> Any:
                return stored if images is None else images.draw(index, self.seed, sample_numbers(index, sample))
            results.append(sampler(take, index)[:len(examples) - start])
        return np.concatenate(results)


class Sampler:
    """Predicts by samples of augmented images; compiled once for batches of one size.

    Args:
      protocol: the augmentation.
      experiment: gives the network and its normalisation.
      variables: the variables of the network.

    Attributes:
      crops: the operations that act on image files of different sizes; None if the images have one size.

    Raises:
      UserError: the augmented images do not have the size of the network's input.
    """

    def __init__(self, protocol: SampledAugmentation, experiment: Experiment, variables: Any):
        self._protocol, self._experiment = protocol, experiment
        settings = dataclasses.replace(experiment.config.data, augment=protocol.pipeline.text)
        try:
            self.crops, self._pipeline = split_pipeline(settings, train=True)
        except UserError as e:
            e.field = '--tta'
            raise
        self._check_shape()
        self._variables = jax.device_put(variables)
        self._predict = jax.jit(self._predict_sample)

    def __call__(self, take: Callable[[int], Any], numbers: np.ndarray) -> np.ndarray:
        """Return the logarithms of the mean probabilities over the samples, (N, classes).

        Args:
          take: returns the images of a sample, uint8 (N, H, W, C), cropped by `crops` if there are any.
          numbers: (N,) numbers of the images, which with the number of the sample and the seed determine the augmentation.
        """
        samples, image_numbers = self._protocol.samples, numbers.astype(np.uint32)
        total = functools.reduce(jnp.logaddexp, (
            self._predict(self._variables, take(i), image_numbers, np.uint32(i)) for i in range(samples)))
        return np.asarray(total) - np.log(np.float32(samples))

    def _predict_sample(self, variables: Any, images: jax.Array, numbers: jax.Array, sample: jax.Array) -> jax.Array:
        """Return the logarithms of the probabilities for one sample of each image, (N, classes)."""
        experiment, seed = self._experiment, self._protocol.seed
        pixels = images.astype(jnp.float32) / 255
        if self._pipeline:
            image_keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(numbers)
            keys = jax.vmap(lambda key: jax.random.fold_in(key, sample))(image_keys)
            epochs = jnp.full(len(images), sample, jnp.int32)  # what alternates between epochs alternates between samples
            pixels = self._pipeline.batch(keys, {'image': pixels}, experiment.task, lambda x: x, None,
                                          (image_keys, epochs))['image']
        return log_probabilities(experiment.network, variables, experiment.preprocessor.normalize, pixels)

    def _check_shape(self) -> None:
        """Raise a UserError if the augmented images do not have the size of the network's input."""
        height, width, channels = self._experiment.info['image_shape']
        shape = jax.ShapeDtypeStruct((*(self.crops.size if self.crops else (height, width)), channels), jnp.float32)
        if self._pipeline:
            with name_field('--tta'):
                shape = jax.eval_shape(self._pipeline, jax.random.key(0), shape)
        if shape.shape != self._experiment.image_shape:
            raise UserError('{!r} makes images of {} x {} pixels, but the network takes {} x {}'.format(
                self._protocol.pipeline.text, *shape.shape[:2], *self._experiment.image_shape[:2]), field='--tta')


def sample_numbers(numbers: np.ndarray, sample: int) -> np.ndarray:
    """Return numbers that differ between all images and all samples, by which images are cropped.

    Args:
      numbers: (N,) numbers of the images.
      sample: number of the sample, below 2 ** 20.
    """
    return numbers.astype(np.int64) * (1 << 20) + sample


def parse(pipeline: str, samples: int = 10, seed: int = 0) -> SampledAugmentation:
    """Return the test-time augmentation by samples of a pipeline.

    The pipeline is applied, instead of `config.data.eval_augment`, to images of the size `config.data.image_size`. If they
    keep their sizes, it acts on the image files, as in training. A sample depends only on the seed, on the image and on its
    own number.

    Args:
      pipeline: augmentations as in `config.data.augment`, such as `'random_resized_crop(64)|flip_lr'`.
      samples: number of samples of each image.
      seed: seed of the random numbers.

    Raises:
      UserError: The string is not a pipeline, or an augmentation mixes images or attacks the network.
    """
    if samples < 1:
        raise UserError(f'expected a whole number of at least 1, got {samples!r}', field='--samples')
    with name_field('--tta'):
        parsed = parse_pipeline(pipeline)
        if parsed is None:
            raise UserError("expected augmentations such as 'pad_crop(4)|flip_lr', got none")
        if parsed.num_mixes or parsed.has_attack:
            raise UserError(f'{pipeline!r} mixes images or attacks the network, which is possible in training only')
    return SampledAugmentation(parsed, samples, seed)
