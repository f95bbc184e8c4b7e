"""The figures of a report on robustness, as PNG files."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxcnn.analysis.figures import image_grid, open_figure, thumbnails
from jaxcnn.robustness.evaluate_corruptions import CorruptionErrors
from jaxcnn.robustness.outliers import Separation
from jaxcnn.robustness.threat import format_eps

# the colours of Okabe and Ito, which people with colour blindness can tell apart, and markers for prints without colour
COLOURS = '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000'
MARKERS = 'osD^vPX'
BINS = 40


def accuracy_curves(eps: Sequence[float], rates: Mapping[str, Sequence[float]], label: str, norm: str, path: str) -> None:
    """Draw a rate over the size of the changes, one curve for each attack.

    Args:
      eps: the sizes, the first of which is 0.
      rates: the rates by the call of the attack.
      label: name of the rate.
      norm: the norm of the sizes; those of `linf` are drawn as multiples of 1/255.
      path: the PNG file.
    """
    with open_figure(path, 7, 4.2, layout='constrained') as figure:
        axis = figure.subplots()
        scale = 255 if norm == 'linf' else 1
        for i, (name, values) in enumerate(rates.items()):
            axis.plot(np.multiply(eps, scale), np.multiply(values, 100), color=COLOURS[i % len(COLOURS)],
                      marker=MARKERS[i % len(MARKERS)], markersize=5, label=name)
        axis.set(xlabel='size of the change, L∞, in 1/255' if norm == 'linf' else 'size of the change, L2',
                 ylabel=f'{label}, %', ylim=(-2, 102), title=f'{label} over the size of the change')
        axis.grid(alpha=0.3)
        axis.legend()


def loss_curve(losses: Sequence[float], eps: float, path: str) -> None:
    """Draw the mean loss along an attack."""
    with open_figure(path, 5.5, 3.4, layout='constrained') as figure:
        axis = figure.subplots()
        axis.plot(losses, color=COLOURS[0], marker='o', markersize=4)
        axis.locator_params(axis='x', integer=True)
        axis.set(xlabel='step', ylabel='mean loss', title=f'loss along projected gradient ascent, eps {format_eps(eps)}')
        axis.grid(alpha=0.3)


def attacked_sheet(images: np.ndarray, attacked: np.ndarray, before: Sequence[str], after: Sequence[str], path: str) -> None:
    """Draw images, their changes, enlarged to the whole range, and the attacked images, in three rows.

    Args:
      images, attacked: (N, H, W, C), in [0, 1].
      before, after: the classes that the network predicts for both.
      path: the PNG file.
    """
    changes = attacked - images
    largest = max(float(np.abs(changes).max()), 1e-6)
    rows = [*images, *(0.5 + changes / (2 * largest)), *attacked]
    headings = ['images', f'changes, times {1 / (2 * largest):.0f}, grey is none', 'attacked images']
    image_grid(rows, [*before, *[''] * len(images), *after], path, columns=len(images), headings=headings)


def corruption_table(errors: CorruptionErrors, path: str) -> None:
    """Draw the errors as a table of kinds and severities, with a colour for each."""
    kinds = list(errors.errors)
    values = 100 * np.array([errors.errors[kind] for kind in kinds])
    with open_figure(path, 3.2 + 0.9 * len(errors.severities), 1.4 + 0.32 * len(kinds), layout='constrained') as figure:
        axis = figure.subplots()
        image = axis.imshow(values, cmap='cividis', vmin=0, vmax=100, aspect='auto')
        axis.set_xticks(range(len(errors.severities)), [str(severity) for severity in errors.severities])
        axis.set_yticks(range(len(kinds)), [kind.replace('_', ' ') for kind in kinds])
        axis.set(xlabel='severity', title=f'error, %; {100 * errors.clean:.1f} without corruption')
        for i, j in np.ndindex(*values.shape):
            axis.text(j, i, f'{values[i, j]:.1f}', ha='center', va='center', fontsize=9,
                      color='black' if values[i, j] > 55 else 'white')
        figure.colorbar(image, ax=axis, fraction=0.05)


def corruption_sheet(original: np.ndarray, corrupted: Mapping[str, Sequence[np.ndarray]], severities: Sequence[int],
                     path: str) -> None:
    """Draw an image with each corruption: a row for each kind and a column for each severity, or eight kinds in a row."""
    kinds = [kind.replace('_', ' ') for kind in corrupted]
    if len(severities) > 1:
        cells = [cell for images in corrupted.values() for cell in (original, *images)]
        titles = ['original', *(f'severity {severity}' for severity in severities)] * len(kinds)
        columns, headings = 1 + len(severities), kinds
    else:
        cells = [original, *(images[0] for images in corrupted.values())]
        titles = ['original', *(f'{kind}\nseverity {severities[0]}' for kind in kinds)]
        columns, headings = 8, []
    small = thumbnails(np.rint(np.clip(cells, 0, 1) * 255).astype(np.uint8), 128) / 255
    image_grid(small, titles, path, columns=columns, headings=headings)


def score_histograms(separations: Sequence[Separation], name: str, other_name: str, path: str) -> None:
    """Draw the distribution of each score for images of the run and for others."""
    with open_figure(path, 4.2 * len(separations), 3.4, [name, other_name], layout='constrained') as figure:
        for axis, separation in zip(np.atleast_1d(figure.subplots(1, len(separations))), separations, strict=True):
            scores = np.concatenate([separation.inside, separation.outside])
            edges = np.linspace(scores.min(), max(scores.max(), scores.min() + 1e-6), BINS + 1)
            for values, label, colour in ((separation.inside, name, COLOURS[0]),
                                          (separation.outside, other_name, COLOURS[1])):
                weights = np.full(len(values), 100 / len(values))
                axis.hist(values, edges, weights=weights, alpha=0.6, label=label, color=colour)
            axis.set(xlabel=separation.score, ylabel='images, %', title=f'AUROC {100 * separation.auroc:.2f} %')
            axis.grid(alpha=0.3)
            axis.legend()
