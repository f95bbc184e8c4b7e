"""Test-time augmentation by random samples of any augmentation pipeline."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.data import Dataset
from jaxcnn.data.augment import Pipeline, parse_pipeline
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
        self._check_shape(experiment, dataset.image_shape)
        examples = dataset.splits[split]
        size = min(experiment.config.eval.batch_size, len(examples))
        variables = jax.device_put(variables)
        predict = jax.jit(functools.partial(self._predict_sample, experiment))
        starts = range(0, len(examples), size)
        parts = []
        for start in log_progress(starts, len(starts), self.describe(experiment), 'batches'):
            positions = np.minimum(np.arange(start, start + size), len(examples) - 1)
            images, indices = jax.device_put((examples.take(positions), examples.index[positions].astype(np.uint32)))
            total = functools.reduce(jnp.logaddexp, (predict(variables, images, indices, np.uint32(i))
                                                     for i in range(self.samples)))
            parts.append(np.asarray(total)[:len(examples) - start] - np.log(np.float32(self.samples)))
        return np.concatenate(parts)

    def _predict_sample(self, experiment: Experiment, variables: Any, images: jax.Array, indices: jax.Array,
                        sample: jax.Array) -> jax.Array:
        """Return the logarithms of the probabilities for one sample of each image, (N, classes).

        Args:
          experiment: gives the network and its normalisation.
          variables: the variables of the network.
          images: uint8 (N, H, W, C).
          indices: (N,) numbers of the images in the data set, which with `sample` and the seed determine the augmentation.
          sample: number of the sample.
        """
        image_keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(self.seed)))(indices)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, sample))(image_keys)
        epochs = jnp.full(len(images), sample, jnp.int32)  # what alternates between epochs alternates between samples
        pixels = self.pipeline.batch(keys, {'image': images.astype(jnp.float32) / 255}, experiment.task, lambda x: x, None,
                                     (image_keys, epochs))['image']
        return log_probabilities(experiment.network, variables, experiment.preprocessor.normalize, pixels)

    def _check_shape(self, experiment: Experiment, image_shape: tuple[int, int, int]) -> None:
        """Raise a UserError if the augmented images do not have the size of the network's input."""
        with name_field('--tta'):
            shape = jax.eval_shape(self.pipeline, jax.random.key(0), jax.ShapeDtypeStruct(image_shape, jnp.float32)).shape
        if shape != experiment.image_shape:
            raise UserError('{!r} makes images of {} x {} pixels, but the network takes {} x {}'.format(
                self.pipeline.text, *shape[:2], *experiment.image_shape[:2]), field='--tta')


def parse(pipeline: str, samples: int = 10, seed: int = 0) -> Protocol:
    """Return the test-time augmentation by samples of a pipeline.

    The pipeline is applied, instead of `config.data.eval_augment`, to images of the size `config.data.image_size`. A sample
    depends only on the seed, on the image and on its own number.

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
