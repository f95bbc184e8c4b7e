"""One split of a data set: its images and their targets."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxcnn.data.checks import check_images


@dataclasses.dataclass(frozen=True)
class Split:
    """The images and the targets of one split.

    Attributes:
      images: uint8 (M, H, W, C), an array, an `ArrayFile` or `StreamedImages`; those of other splits may be among them.
      index: (N,) the indices of this split's images in `images`.
      targets: one array (N, ...) for each target, by name.

    Raises:
      UserError: `images` is an array of another shape or type.
    """

    images: Any
    index: np.ndarray
    targets: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        if isinstance(self.images, np.ndarray):
            shape = self.images.shape[1:] if self.images.ndim == 4 else None
            object.__setattr__(self, 'images', check_images('images', self.images, shape))

    def __len__(self) -> int:
        return len(self.index)

    @property
    def is_streamed(self) -> bool:
        """Whether images are decoded whenever they are used."""
        return getattr(self.images, 'is_streamed', False)

    @property
    def image_bytes(self) -> int:
        """The size of one decoded image in bytes."""
        return int(np.prod(self.images.shape[1:]))

    @property
    def nbytes(self) -> int:
        """The size of all decoded images in bytes."""
        return len(self) * self.image_bytes

    def take(self, positions: np.ndarray) -> np.ndarray:
        """Return the images at `positions`, an array of any shape S: uint8 (*S, H, W, C)."""
        return self.images[self.index[positions]]

    def take_for_training(self, positions: np.ndarray, seed: int, numbers: np.ndarray) -> np.ndarray:
        """Return the images at `positions` (n,) for training: uint8 (n, h, w, C).

        Streamed images are cropped at random; others are those that `take` returns.

        Args:
          positions: the positions of the images.
          seed: seed of the run.
          numbers: (n,) how many images of the run come before each of them.
        """
        if self.is_streamed:
            return self.images.draw(self.index[positions], seed, numbers)
        return self.take(positions)

    def take_targets(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Return the targets at `positions` (n,), by name."""
        return {name: values[positions] for name, values in self.targets.items()}

    def subset(self, positions: np.ndarray) -> 'Split':
        """Return the split that holds only the examples at `positions` (n,)."""
        return Split(self.images, self.index[positions], self.take_targets(positions))
