"""Sheets of small images."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcnn.analysis import figures


def centred(images: np.ndarray, joint: bool = False) -> np.ndarray:
    """Return signed images (N, H, W, C) in [0, 1]: 0 is grey, the largest absolute value of each image black or white.

    Args:
      images: the images.
      joint: whether all images have one scale.
    """
    axes = None if joint else tuple(range(1, images.ndim))
    largest = np.abs(images).max(axes, keepdims=True)
    return 0.5 + images / (2 * np.where(largest > 0, largest, 1))


def montage(tiles: Sequence[np.ndarray] | np.ndarray, columns: int, factor: int = 1, gap: int = 1,
            background: float = 1.0) -> np.ndarray:
    """Return tiles (H, W, C) of one size side by side as one image, each enlarged by a whole factor."""
    tiles = [np.asarray(tile).repeat(factor, 0).repeat(factor, 1) for tile in tiles]
    height, width, channels = tiles[0].shape
    rows = -(-len(tiles) // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), background, np.float32)
    for i, tile in enumerate(tiles):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[top:top + height, left:left + width] = tile
    return sheet


def panels(images: Sequence[np.ndarray], titles: Sequence[str], path: str, scale: float = 1.0) -> None:
    """Draw images (H, W, C), in [0, 1], in a row, each with as many pixels in the figure as it has times `scale`."""
    height, widths = max(len(image) for image in images) * scale, [image.shape[1] * scale for image in images]
    with figures.open_figure(path, sum(widths) / 100 + 0.5, height / 100 + 0.5, titles, dpi=100,
                             layout='constrained') as figure:
        axes = figure.subplots(1, len(images), squeeze=False, width_ratios=widths)[0]
        for axis, image, title in zip(axes, images, titles, strict=True):
            axis.imshow(image.clip(0, 1), cmap='gray', vmin=0, vmax=1, interpolation='nearest')
            axis.set_title(title, fontsize=9)
            axis.axis('off')


def curves(axis: Any, x: np.ndarray, values: np.ndarray, labels: Sequence[str]) -> None:
    """Draw a curve for each column of `values` (T, N) in a colour and a line style."""
    styles = ('-', '--', '-.', ':')
    for i, label in enumerate(labels):
        axis.plot(x, values[:, i], styles[i % len(styles)], label=figures.shortened(label), linewidth=1.5)
    axis.grid(alpha=0.3)
