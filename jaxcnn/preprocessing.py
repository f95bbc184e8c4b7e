"""Preprocessing: from uint8 pixels to what the network sees, in training and in evaluation."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxcnn.config import DataConfig
from jaxcnn.data import normalize
from jaxcnn.data.augment import Gradient, Pipeline, TargetMixer, pipeline
from jaxcnn.data.normalize import Fitted, Normalization, Normalizer
from jaxcnn.data.tta import TestTimeAugmentation
from jaxcnn.errors import UserError, name_field

Batch = dict[str, jax.Array]
# maps normalisers, and the function that gives their input from uint8 images, to what they have learned of training images
Fit = Callable[[Sequence[Normalizer], Callable[[jax.Array], jax.Array]], Sequence[Fitted]]


@dataclass(frozen=True)
class Preprocessor:
    """From uint8 pixels to what the network sees.

    Attributes:
      augment: of training images, in [0, 1]; or None.
      normalize: after it.
      eval_augment: of all other images, drawing nothing; or None.
      tta: test-time augmentation, which follows it; or None.
    """

    augment: Pipeline | None
    normalize: Normalization
    eval_augment: Pipeline | None = None
    tta: TestTimeAugmentation | None = None

    @classmethod
    def from_config(cls, config: DataConfig, mean: Sequence[float], std: Sequence[float], fit: Fit,
                    tta: TestTimeAugmentation | None = None) -> 'Preprocessor':
        """Return the preprocessor of a config.

        Args:
          config: the config's part.
          mean, std: per channel, of the training part.
          fit: gives what normalisation by anything else has learned of it.
          tta: see `Preprocessor`.
        """
        unfitted = cls(pipeline(config.augment), Normalization(), pipeline(config.eval_augment, steady=True), tta)
        ops = normalize.parse(config.normalize)
        if ops == [normalize.standardize()]:
            return dataclasses.replace(unfitted, normalize=Normalization.by(mean, std))
        return dataclasses.replace(unfitted, normalize=Normalization(ops, fit(ops, unfitted)) if ops else Normalization())

    def __call__(self, images: jax.Array) -> jax.Array:
        """Float32 images of uint8 ones (N, H, W, C), as evaluation has them."""
        return self.normalize(self._pixels(images))

    def _pixels(self, images: jax.Array) -> jax.Array:
        x = images.astype(jnp.float32) / 255
        if self.eval_augment is not None:
            x = jax.vmap(functools.partial(self.eval_augment, jax.random.key(0)))(x)
        return x

    def outputs(self, network: Callable[[jax.Array], jax.Array], images: jax.Array, tta: bool = True) -> jax.Array:
        """Return what `network` makes of uint8 images (N, H, W, C) as evaluation has them; with `tta` the mean over the
        variants of test-time augmentation, if there is any."""
        x = self._pixels(images)
        variants = self.tta(x) if self.tta and tta else [(1.0, x)]
        outputs = [weight * network(self.normalize(images)).astype(jnp.float32) for weight, images in variants]
        return sum(outputs)  # type: ignore[return-value]

    def train(self, examples: Batch, key: jax.Array, rows: Any = None, *, mixer: TargetMixer,
              previous: Callable[[jax.Array], jax.Array] = lambda x: jnp.roll(x, 1, 0),
              gradient: Gradient | None = None, passes: tuple[jax.Array, jax.Array] | None = None) -> Batch:
        """Return augmented and normalised examples of ones with uint8 images (N, H, W, C).

        Each image's key is folded from its row in the global batch, `rows` (N,), so that it does not depend on how the batch
        is spread over devices; without `rows` they are the first ones. The others: see `augment.Pipeline.batch`.
        """
        examples = {**examples, 'image': examples['image'].astype(jnp.float32) / 255}
        if self.augment is not None:
            keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(
                jnp.arange(len(examples['image'])) if rows is None else rows)
            examples = self.augment.batch(keys, examples, mixer, previous, gradient, passes)
        return {**examples, 'image': self.normalize(examples['image'])}

    def shape(self, image_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """What becomes of images (H, W, C).

        Raises:
          UserError: training and evaluation make images of two sizes, or an op does not take these images.
        """
        def output_shape(field: str, pipeline: Pipeline | None) -> tuple[int, ...]:
            with name_field(field):
                return image_shape if pipeline is None else jax.eval_shape(
                    pipeline, jax.random.key(0), jax.ShapeDtypeStruct(image_shape, jnp.float32)).shape
        train = output_shape('config.data.augment', self.augment)
        evaluation = output_shape('config.data.eval_augment', self.eval_augment)
        if train != evaluation:
            raise UserError(f'config.data.augment makes images of {train[0]} x {train[1]} pixels, '
                            f'config.data.eval_augment of {evaluation[0]} x {evaluation[1]}: both must be what the '
                            'network takes')
        if self.tta is not None:
            with name_field('config.eval.tta'):
                jax.eval_shape(self.tta, jax.ShapeDtypeStruct((1, *evaluation), jnp.float32))
        return tuple(train)  # type: ignore[return-value]
