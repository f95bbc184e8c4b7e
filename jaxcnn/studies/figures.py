"""Figures of studies."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from jaxcnn.analysis.figures import label_offsets, open_figure, shortened

Points = Sequence[tuple[float, float]]
MAX_LABELS = 24  # scatter plots of more points have no labels


def draw_curves(panels: Mapping[str, Mapping[str, Sequence[Points]]], path: str) -> None:
    """Draw the curves of arms over epochs: the mean over seeds, and a band from the smallest to the largest value.

    Args:
      panels: for the title of each panel, a mapping from each arm to the points (epoch, value) of each of its seeds.
      path: path of the PNG file.
    """
    names = [shortened(name, 40) for arms in panels.values() for name in arms]
    with open_figure(path, 5.5 * len(panels), 4.6, names, layout='constrained') as figure:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, (title, arms) in zip(axes, panels.items(), strict=True):
            axis.set(xlabel='epoch', title=title)
            axis.grid(alpha=0.3)
            for index, (name, seeds) in enumerate(arms.items()):
                _draw_curve(axis, seeds, shortened(name, 40), index)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc='outside lower center', ncols=min(4, max(1, len(labels))), fontsize=8)


def _draw_curve(axis: Any, seeds: Sequence[Points], label: str, index: int) -> None:
    values: dict[float, list[float]] = {}
    for points in seeds:
        for epoch, value in points:
            values.setdefault(epoch, []).append(value)
    epochs = sorted(values)
    color, style = f'C{index % 10}', ('-', '--', ':')[index // 10 % 3]
    axis.plot(epochs, [statistics.mean(values[epoch]) for epoch in epochs], style, color=color, label=label, linewidth=1.4,
              marker='o' if len(epochs) == 1 else None)
    if len(seeds) > 1:
        axis.fill_between(epochs, [min(values[epoch]) for epoch in epochs], [max(values[epoch]) for epoch in epochs],
                          color=color, alpha=0.15, linewidth=0)


@dataclasses.dataclass(frozen=True)
class Tradeoff:
    """The cost of an arm and the value that it reaches.

    Attributes:
      parameters: number of parameters.
      seconds: training time.
      mean: mean of the compared measurement over seeds.
      deviation: its standard deviation; 0 for a single seed.
    """

    parameters: float
    seconds: float
    mean: float
    deviation: float


def draw_tradeoffs(points: Mapping[str, Tradeoff], ylabel: str, scale: float, path: str) -> None:
    """Draw a measurement against the training time, and against the number of parameters if the arms differ in it.

    Args:
      points: the point of each arm.
      ylabel: name of the measurement.
      scale: factor that is applied to the measurement, 100 for per cent.
      path: path of the PNG file.
    """
    names = {name: shortened(name, 30) for name in points}
    xlabels = {'seconds': 'training time in seconds'}
    if len({point.parameters for point in points.values()}) > 1:
        xlabels = {'parameters': 'parameters', **xlabels}
    with open_figure(path, 6.5 * len(xlabels), 5, [*names.values()], layout='constrained') as figure:
        axes = figure.subplots(1, len(xlabels), squeeze=False)[0]
        for axis, (field, xlabel) in zip(axes, xlabels.items(), strict=True):
            x = {name: getattr(point, field) for name, point in points.items()}
            axis.set(xlabel=xlabel, ylabel=f'{ylabel}{" in %" if scale == 100 else ""}')
            _scale_axis(axis, [*x.values()])
            axis.grid(alpha=0.3)
            axis.margins(0.15)
            for index, (name, point) in enumerate(points.items()):
                axis.errorbar(x[name], scale * point.mean, scale * point.deviation, fmt='o', color=f'C{index % 10}',
                              markersize=5, capsize=3)
            figure.draw_without_rendering()  # fixes the positions of the points in pixels
            if len(points) <= MAX_LABELS:
                _label_points(axis, {names[name]: (x[name], scale * point.mean) for name, point in points.items()},
                              figure.dpi / 72)


def _scale_axis(axis: Any, values: Sequence[float]) -> None:
    """Make the horizontal axis logarithmic if the values span more than a factor of four, and label 61000 as 61k."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
    if max(values) > 4 * min(values) > 0:
        axis.set_xscale('log')
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_formatter(EngFormatter(sep=''))


def _label_points(axis: Any, points: Mapping[str, tuple[float, float]], scale: float) -> None:
    pixels = {name: tuple(axis.transData.transform(point)) for name, point in points.items()}
    for name, (dx, dy) in label_offsets(pixels, scale).items():
        axis.annotate(name, points[name], (dx / scale, dy / scale), textcoords='offset points', fontsize=7, va='center',
                      ha='right' if dx < -1 else 'left')
