"""One part of a data set: its images, and their targets."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxcnn.data.checks import check_images


@dataclasses.dataclass(frozen=True)
class Split:
    """Images of one part, by position.

    Attributes:
      images: array or file of uint8 (M, H, W, C), of which `index` picks this part.
      index: (N,) positions in `images`.
      targets: by name, (N, ...) each.

    Raises:
      UserError: the array is not such a one.
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
    def image_bytes(self) -> int:
        """Bytes of one decoded image."""
        return int(np.prod(self.images.shape[1:]))

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded images."""
        return len(self) * self.image_bytes

    def take(self, positions: np.ndarray) -> np.ndarray:
        """Images at `positions` (any shape S): uint8 (*S, H, W, C)."""
        return self.images[self.index[positions]]

    def part(self, positions: np.ndarray) -> 'Split':
        """The images at `positions` (n,) alone."""
        return Split(self.images, self.index[positions], self.take_targets(positions))

    def take_targets(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Return the targets at `positions` (n,), by name."""
        return {name: values[positions] for name, values in self.targets.items()}
