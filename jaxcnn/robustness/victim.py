"""The network that is attacked, and images of its run."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.analysis.batches import compute_in_batches
from jaxcnn.data import Dataset
from jaxcnn.errors import UserError
from jaxcnn.experiment import Experiment
from jaxcnn.loss_scaling import scale_image_gradients
from jaxcnn.robustness.threat import Logits


@dataclasses.dataclass(frozen=True)
class Images:
    """Images of a split as the network gets them, but before normalisation.

    Attributes:
      pixels: float32 (N, H, W, C), in [0, 1].
      labels: (N,) int32, the classes.
      positions: (N,) their positions in the split, on which the random numbers of an attack on them depend.
      names: the name of each image.

    Raises:
      UserError: The pixels are not in [0, 1].
    """

    pixels: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    names: Sequence[str]

    def __post_init__(self) -> None:
        if not len(self.pixels):
            return
        low, high = float(self.pixels.min()), float(self.pixels.max())
        if not (low >= -1e-6 and high <= 1 + 1e-6):
            raise UserError(f'the images have values from {low:g} to {high:g}, but attacks need values in [0, 1]',
                            hint='divide bytes by 255, and leave normalisation to config.data.normalize')

    def __len__(self) -> int:
        return len(self.pixels)


class Victim:
    """A trained classifier in evaluation mode, as a function of images in [0, 1].

    Attributes:
      variables: the network's variables, on the device.
      num_classes: number of its classes.
      image_shape: height, width and channels of its input.

    Args:
      experiment: the experiment of a classifier.
      variables: the variables of its network.
    """

    def __init__(self, experiment: Experiment, variables: Any):
        self._network, self._preprocessor = experiment.network, experiment.preprocessor
        self.variables = jax.device_put(variables)
        self.num_classes = experiment.task.num_classes
        self.image_shape = experiment.image_shape

    def logits(self, variables: Any, pixels: jax.Array) -> jax.Array:
        """Return the logits, float32 (N, classes), for images (N, H, W, C) in [0, 1].

        Gradients of a float16 network have the right direction only; see `scale_image_gradients`.
        """
        outputs: Any = self._network.apply(variables, self._preprocessor.normalize(pixels), train=False)
        return scale_image_gradients(outputs.astype(jnp.float32), self._network)

    def bind(self, variables: Any) -> Logits:
        """Return the logits as a function of the images alone."""
        return functools.partial(self.logits, variables)

    def all_logits(self, pixels: np.ndarray, batch_size: int) -> np.ndarray:
        """Return the logits for any number of images, (N, classes)."""
        return compute_in_batches(self.logits, self.variables, len(pixels), pixels.__getitem__, batch_size)

    def pixels_of(self, take: Callable[[np.ndarray], np.ndarray], count: int, batch_size: int) -> np.ndarray:
        """Return uint8 images as the network gets them in evaluation, before normalisation: float32 (N, H, W, C)."""
        def pixels(_: Any, images: jax.Array) -> jax.Array:
            return self._preprocessor.pixels(images)
        return compute_in_batches(pixels, (), count, take, batch_size)


def draw_images(victim: Victim, dataset: Dataset, split: str, count: int, seed: int, batch_size: int) -> Images:
    """Return `count` images of a split that are drawn by the seed, in the order of the split, or all of it if it has fewer.

    Raises:
      UserError: There is no such split.
    """
    if split not in dataset.splits:
        raise UserError(f'no split {split!r}; there are: {", ".join(dataset.splits)}', field='--split')
    examples = dataset.splits[split]
    positions = np.sort(np.random.default_rng(seed).permutation(len(examples))[:count])
    pixels = victim.pixels_of(lambda rows: examples.take(positions[rows]), len(positions), batch_size)
    return Images(pixels, examples.targets['label'][positions].astype(np.int32), positions,
                  [dataset.image_name(split, position) for position in positions])
