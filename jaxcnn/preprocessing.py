"""Preprocessing of images: augmentation and normalisation, from uint8 pixels to the input of the network."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.config import DataConfig
from jaxcnn.data import normalize
from jaxcnn.data.augment import Gradient, Pipeline, TargetMixer, affine, geometry, split_pipeline
from jaxcnn.data.normalize import Fitted, Normalization, Normalizer
from jaxcnn.data.tta import TestTimeAugmentation
from jaxcnn.errors import UserError, name_field
from jaxcnn.ops import boxes as box_ops

Batch = dict[str, jax.Array]
# fits normalisers to the training images, given the function from uint8 images to the input of the normalisers
Fit = Callable[[Sequence[Normalizer], Callable[[jax.Array], jax.Array]], Sequence[Fitted]]


def _as_float32(x: jax.Array) -> jax.Array:
    """Convert floating-point numbers to float32; other arrays stay as they are."""
    return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x


def resized_sides(sides: Sequence[int], shorter: int) -> tuple[int, int]:
    """Return the height and width of an image whose shorter side becomes `shorter`; 0 leaves it as it is."""
    scale = shorter / min(sides) if shorter else 1
    height, width = (max(1, round(side * scale)) for side in sides)
    return height, width


@dataclass(frozen=True)
class Preprocessor:
    """The preprocessing of images for a network, in training and in evaluation.

    Attributes:
      augment: augmentation of training images, whose pixels are in [0, 1]; or None.
      normalize: normalisation after augmentation.
      eval_augment: deterministic augmentation of the images in evaluation; or None.
      tta: test-time augmentation after `eval_augment`; or None.
      train_size: shorter side to which training images are resized after normalisation; 0 leaves them as they are.
    """

    augment: Pipeline | None
    normalize: Normalization
    eval_augment: Pipeline | None = None
    tta: TestTimeAugmentation | None = None
    train_size: int = 0

    @classmethod
    def from_config(cls, config: DataConfig, mean: Sequence[float], std: Sequence[float], fit: Fit,
                    tta: TestTimeAugmentation | None = None) -> 'Preprocessor':
        """Return the preprocessor of a config.

        Args:
          config: data fields of the config.
          mean, std: mean and standard deviation of each channel of the training images.
          fit: fits normalisers other than `standardize` to the training images.
          tta: test-time augmentation, or None.
        """
        (_, augment), (_, eval_augment) = (split_pipeline(config, train) for train in (True, False))
        unfitted = cls(augment, Normalization(), eval_augment, tta)
        ops = normalize.parse(config.normalize)
        if ops == [normalize.standardize()]:
            return dataclasses.replace(unfitted, normalize=Normalization.from_mean_std(mean, std))
        return dataclasses.replace(unfitted, normalize=Normalization(ops, fit(ops, unfitted)) if ops else Normalization())

    def __call__(self, images: jax.Array) -> jax.Array:
        """Return the float32 input of the network in evaluation, without test-time augmentation, for uint8 (N, H, W, C)."""
        return self.normalize(self.pixels(images))

    def pixels(self, images: jax.Array) -> jax.Array:
        """Return the images (N, H, W, C) in evaluation before normalisation, in [0, 1], for uint8 (N, H, W, C)."""
        x = images.astype(jnp.float32) / 255
        if self.eval_augment is not None:
            x = jax.vmap(functools.partial(self.eval_augment, jax.random.key(0)))(x)
        return x

    def move_targets(self, examples: Batch, mixer: TargetMixer) -> Batch:
        """Return examples in evaluation with the targets for the images that the network gets.

        Only targets that are positions, such as boxes, change: `eval_augment` moves them with the pixels.

        Args:
          examples: `image`, uint8 (N, H, W, C), which is returned unchanged, and the targets.
          mixer: the task, which moves the targets.
        """
        if self.eval_augment is None:
            return examples
        images = examples['image']
        keys = jax.random.split(jax.random.key(0), images.shape[0])
        moved = self.eval_augment.batch(keys, {**examples, 'image': images.astype(jnp.float32) / 255}, mixer, lambda x: x,
                                        None)
        return {**moved, 'image': images}

    def eval_matrix(self, image_shape: tuple[int, ...]) -> np.ndarray:
        """Return the matrix (2, 3) that maps positions in images of shape (H, W, C) to those in the network's input."""
        return np.eye(2, 3, dtype=np.float32) if self.eval_augment is None else self.eval_augment.matrix(image_shape)

    def uint8_pixels(self, images: np.ndarray) -> np.ndarray:
        """Return the images in evaluation before normalisation, rounded to uint8, for uint8 (N, H, W, C)."""
        if self.eval_augment is None:
            return images
        return np.rint(np.clip(jax.jit(self.pixels)(images), 0, 1) * 255).astype(np.uint8)

    def map_boxes_back(self, boxes: np.ndarray, image_shape: tuple[int, ...]) -> np.ndarray:
        """Return boxes (..., 4), `x0, y0, x1, y1` in the network's input, in the image (H, W, C) before `eval_augment`.

        They are clipped to the image.
        """
        if self.eval_augment is None:
            return boxes
        matrix = affine.invert(jnp.asarray(self.eval_matrix(image_shape)))
        return np.asarray(box_ops.clip(box_ops.transform(jnp.asarray(boxes), matrix), *image_shape[:2]))

    def outputs(self, network: Callable[[jax.Array], Any], images: jax.Array, tta: bool = True) -> Any:
        """Return the outputs of a network in evaluation.

        Args:
          network: maps normalised images to outputs, an array or a tree of arrays.
          images: uint8 (N, H, W, C).
          tta: whether to return the weighted mean of the outputs over the variants of test-time augmentation, if there is
            any.
        """
        pixels = self.pixels(images)
        if not (self.tta and tta):
            return jax.tree.map(_as_float32, network(self.normalize(pixels)))
        outputs = [jax.tree.map(lambda x, w=weight: w * _as_float32(x), network(self.normalize(variant)))
                   for weight, variant in self.tta(pixels)]
        return jax.tree.map(lambda *parts: sum(parts), *outputs)

    def train(self, examples: Batch, key: jax.Array, rows: Any = None, *, mixer: TargetMixer,
              previous_rows: Callable[[jax.Array], jax.Array] = lambda x: jnp.roll(x, 1, 0),
              gradient: Gradient | None = None, passes: tuple[jax.Array, jax.Array] | None = None,
              with_pixels: bool = False) -> Batch:
        """Return augmented and normalised training examples.

        The key of an image depends on its row in the global batch, not on how the batch is spread over devices.

        Args:
          examples: `image`, uint8 (N, H, W, C), and the targets.
          key: random key of the step.
          rows: (N,) rows of the images in the global batch; None for the first N rows.
          mixer, previous_rows, gradient, passes: see `augment.Pipeline.batch`.
          with_pixels: whether the images before normalisation, in [0, 1], are also returned, as `pixels`.
        """
        examples = {**examples, 'image': examples['image'].astype(jnp.float32) / 255}
        if self.augment is not None:
            rows = jnp.arange(len(examples['image'])) if rows is None else rows
            keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
            examples = self.augment.batch(keys, examples, mixer, previous_rows, gradient, passes)
        pixels = {'pixels': examples['image']} if with_pixels else {}
        examples = {**examples, 'image': self.normalize(examples['image'])}
        height, width = resized_sides(examples['image'].shape[1:3], self.train_size)
        if (height, width) == examples['image'].shape[1:3]:
            return {**examples, **pixels}
        resize = Pipeline('resize', (geometry.resize(height, width),))
        keys = jax.random.split(key, len(examples['image']))
        return {**resize.batch(keys, examples, mixer, previous_rows, None), **pixels}

    def train_inputs(self, pixels: jax.Array) -> jax.Array:
        """Return augmented images in [0, 1], (N, H, W, C), as the network gets them in training: normalised and resized."""
        images = self.normalize(pixels)
        height, width = resized_sides(images.shape[1:3], self.train_size)
        if (height, width) == images.shape[1:3]:
            return images
        return jax.vmap(functools.partial(geometry.resize(height, width), jax.random.key(0)))(images)

    def shape(self, image_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Return the shape of the network's input for images of shape (H, W, C).

        Raises:
          UserError: training and evaluation give different shapes, or an operation does not accept these images.
        """
        def output_shape(field: str, pipeline: Pipeline | None) -> tuple[int, ...]:
            with name_field(field):
                return image_shape if pipeline is None else jax.eval_shape(
                    pipeline, jax.random.key(0), jax.ShapeDtypeStruct(image_shape, jnp.float32)).shape
        train_shape = output_shape('config.data.augment', self.augment)
        eval_shape = output_shape('config.data.eval_augment', self.eval_augment)
        if train_shape != eval_shape:
            raise UserError(f'makes images of {train_shape[0]} x {train_shape[1]} pixels, but config.data.eval_augment '
                            f'makes images of {eval_shape[0]} x {eval_shape[1]}', field='config.data.augment',
                            hint='both must have the size that the network takes')
        if self.tta is not None:
            with name_field('config.eval.tta'):
                jax.eval_shape(self.tta, jax.ShapeDtypeStruct((1, *eval_shape), jnp.float32))
        return tuple(train_shape)  # type: ignore[return-value]
