"""Curves that several checks draw."""

from collections.abc import Mapping

import numpy as np

from jaxcnn.analysis import figures


def smoothed(values: np.ndarray, width: int = 7) -> np.ndarray:
    """Return the mean of each value and its neighbours, `width` values where there are so many."""
    padded = np.pad(np.asarray(values, float), width // 2, mode='edge')
    return np.convolve(padded, np.ones(width) / width, 'valid')


def draw_losses(curves: Mapping[str, np.ndarray], path: str, levels: Mapping[str, float] | None = None,
                ylabel: str = 'training loss') -> None:
    """Draw curves over steps.

    Args:
      curves: the values of each step, by label.
      path: the PNG file.
      levels: horizontal lines, by label.
      ylabel: label of the vertical axis.
    """
    with figures.open_figure(path, 7, 3.8, layout='constrained') as figure:
        axis = figure.subplots()
        for label, values in curves.items():
            axis.plot(np.arange(1, len(values) + 1), values, label=label, linewidth=1.3)
        for (label, value), style in zip((levels or {}).items(), ('--', ':', '-.')):  # noqa: B905
            axis.axhline(value, color='0.4', linestyle=style, linewidth=1.2, label=label)
        axis.set(xlabel='step', ylabel=ylabel)
        axis.grid(alpha=0.3)
        axis.legend()
