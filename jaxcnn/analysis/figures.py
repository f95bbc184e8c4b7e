"""Figures, written as PNG: drawn by matplotlib with its default settings, whatever the user's are."""

import contextlib
import functools
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxcnn.cache_folder import cache_folder, is_writable
from jaxcnn.errors import printable
from jaxcnn.metrics import Measurement, Metric, mistakes

if TYPE_CHECKING:
    from jaxcnn.analysis.complexity import Cost

log = logging.getLogger('jaxcnn')

if not all(map(is_writable, ('~/.config/matplotlib', '~/.cache/matplotlib'))):  # it would warn and forget its fonts
    os.environ.setdefault('MPLCONFIGDIR', os.path.join(cache_folder(), 'matplotlib'))

MOST_CLASSES = 40  # in the picture of a confusion matrix
FONT = 'DejaVu Sans'  # comes with matplotlib
_BROAD = ('CJK', 'Noto Sans', 'Noto', 'Sans')  # fonts that are tried first for what it lacks, by a part of their names
_LINE, _DPI = 12, 100  # pixels of a line of text in an image grid, pixels per inch


def _import_matplotlib() -> Any:
    """matplotlib, also where `MPLBACKEND`, which a notebook hands down, names a backend that is not installed here."""
    if 'matplotlib' in sys.modules:
        return sys.modules['matplotlib']
    backend = os.environ.pop('MPLBACKEND', None)  # an import that failed for it could not be repeated
    try:
        import matplotlib
    finally:
        if backend:
            os.environ['MPLBACKEND'] = backend
    if backend:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams['backend'] = backend  # as the import does, for what the user draws
    return matplotlib


@functools.cache
def _more_fonts(missing: frozenset[str]) -> list[str]:
    """Families that have the characters that `FONT` lacks; a line tells which none has."""
    from matplotlib import font_manager
    manager, families, rest = font_manager.fontManager, [], set(missing)
    for path in {*font_manager.findSystemFonts()} - {entry.fname for entry in manager.ttflist}:
        with contextlib.suppress(OSError, RuntimeError):  # installed since matplotlib listed them; some are unreadable
            manager.addfont(path)
    candidates = [entry for entry in manager.ttflist if entry.style == 'normal' and 'Last Resort' not in entry.name]
    for entry in sorted(candidates, key=lambda e: (next((i for i, part in enumerate(_BROAD) if part in e.name), len(_BROAD)),
                                                   abs(int(e.weight) - 400), e.name)):
        if not rest:
            break
        with contextlib.suppress(OSError, RuntimeError):
            if covered := rest & {*map(chr, font_manager.get_font(entry.fname).get_charmap())}:
                rest -= covered
                families.append(entry.name)
    if rest:
        log.warning('figures show boxes for %s, which no font of this machine has (Noto Sans CJK and Noto Sans have most)',
                    ''.join(sorted(rest)[:20]) + '...' * (len(rest) > 20))
    return families


def _fonts(texts: Iterable[str]) -> list[str]:
    """Families that have the characters of the texts, `FONT` first."""
    from matplotlib import font_manager
    known = font_manager.get_font(font_manager.findfont(FONT)).get_charmap()
    missing = frozenset(c for text in texts for c in text if ord(c) not in known and not c.isspace())
    return [FONT, *(_more_fonts(missing) if missing else ())]


@contextlib.contextmanager
def _figure(path: str, width: float, height: float, texts: Iterable[str] = (), dpi: float = 110,
            math_text: bool = False, **settings: Any) -> Iterator[Any]:
    """A figure to draw on, written to `path` afterwards.

    Args:
      path: of the PNG.
      width, height: in inches.
      texts: what it will show of names that others have chosen, whose characters need fonts.
      dpi: pixels per inch.
      math_text: `$` encloses formulas, as in the labels of logarithmic axes; no names that others have chosen may be shown.
      **settings: of the figure.
    """
    matplotlib = _import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({'font.family': _fonts(texts), 'text.parse_math': math_text})
        warnings.filterwarnings('ignore', r'Glyph .* missing from')  # which _fonts tells in one line
        figure = Figure(figsize=(width, height), dpi=dpi, **settings)
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(path, format=os.path.splitext(path)[1][1:] or 'png')


@contextlib.contextmanager
def failing_is_a_warning(path: str) -> Iterator[None]:
    """Logs what goes wrong in drawing the figure at `path`, which is no reason to end a run."""
    try:
        yield
    except Exception as e:
        log.warning('%s could not be drawn: %s: %s', path, type(e).__name__, ' '.join(str(e).split())[:300])


def _shortened(text: str, longest: int = 24) -> str:
    """`text` on one line, of at most `longest` characters."""
    text = printable(text)
    return text if len(text) <= longest else f'{text[:longest - 1]}…'


def image_grid(images: np.ndarray | Sequence[np.ndarray], titles: Sequence[str], path: str, columns: int = 8,
               headings: Sequence[str] = ()) -> None:
    """Draws images in a grid, each under its title, enlarged by whole pixels to at least 96 on a side.

    Args:
      images: N of (H, W, C) float; clipped to [0, 1]. C is 1 or 3; sizes may differ.
      titles: N of them; of several lines, each shortened to the cell's width.
      path: of the PNG.
      columns: in a row.
      headings: one for each row, above it; or none.
    """
    height, width = (max(image.shape[i] for image in images) for i in (0, 1))
    factor, gap = max(1, -(-96 // max(height, width))), 6
    cell_height, cell_width = height * factor, width * factor
    title_lines = [[printable(line) for line in str(title).split('\n')] for title in titles]
    heading_lines = [printable(heading) for heading in headings]
    text = 2 + _LINE * max(map(len, title_lines))
    above = _LINE if headings else 0
    row_height = above + text + cell_height + gap
    sheet = np.full((-(-len(images) // columns) * row_height + gap, columns * (cell_width + gap) + gap, 3), 255, np.uint8)
    lines = [(gap, gap + row * row_height, heading, sheet.shape[1] - 2 * gap) for row, heading in enumerate(heading_lines)]
    for i, (image, parts) in enumerate(zip(images, title_lines, strict=True)):
        x, y = gap + i % columns * (cell_width + gap), gap + i // columns * row_height + above
        lines += [(x, y + n * _LINE, part, cell_width) for n, part in enumerate(parts)]
        tile = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8).repeat(factor, 0).repeat(factor, 1)
        sheet[y + text:y + text + tile.shape[0], x:x + tile.shape[1]] = tile
    with _figure(path, sheet.shape[1] / _DPI, sheet.shape[0] / _DPI, [line for _, _, line, _ in lines], _DPI) as figure:
        figure.figimage(sheet)
        for x, y, line, most in lines:
            _write(figure, x, sheet.shape[0] - y - 0.8 * _LINE, line, most)


def _write(figure: Any, x: float, baseline: float, line: str, most: float) -> None:
    """Writes a line of an image grid from `x` on, shortened to `most` pixels."""
    text = figure.text(x, baseline, line, transform=None, fontsize=0.8 * _LINE * 72 / _DPI, va='baseline')
    while line and (width := text.get_window_extent().width) > most:
        line = line[:min(len(line) - 1, int(len(line) * most / width))]
        text.set_text(f'{line}…')


def curves(rows: Sequence[Mapping[str, float]], metrics: Sequence[Metric], measurements: Sequence[Measurement],
           path: str) -> None:
    """Draw metrics and the learning rate over epochs.

    Args:
      rows: of `metrics.jsonl`.
      metrics: one panel for each.
      measurements: what the rows may hold beside the metrics of training.
      path: of the PNG.
    """
    with _figure(path, 5 * (len(metrics) + 1), 4.2, layout='constrained') as figure:
        *panels, rate_panel = figure.subplots(1, len(metrics) + 1)
        for axis, metric in zip(panels, metrics, strict=True):
            labels = {Measurement('train', metric).name: 'train', **{
                m.name: ' '.join([m.split, *['ema'] * m.ema]) for m in measurements if m.metric == metric}}
            series = {label: points for name, label in labels.items()
                      if (points := [(row['epoch'], row[name]) for row in rows if name in row])}
            axis.set(xlabel='epoch', title=metric.title)
            for label, points in series.items():
                _plot(axis, points, label)
            axis.grid(alpha=0.3)
            if series:
                axis.legend()
        points = [(row['epoch'], row['learning_rate']) for row in rows if 'learning_rate' in row]
        rate_panel.set(xlabel='epoch', title='learning rate')
        if len(points) == 1:
            rate_panel.axis('off')
            (epoch, rate), = points
            rate_panel.text(0.5, 0.5, f'The learning rate was logged once:\n{rate:.4g} at epoch {epoch:.4g}.', ha='center',
                            transform=rate_panel.transAxes)
        elif points:
            _plot(rate_panel, points, 'learning rate')
            rate_panel.grid(alpha=0.3)


def _plot(axis: Any, points: Sequence[tuple[float, float]], label: str) -> None:
    """A line through points, which are marked where they are few."""
    marker = 'o' if len(points) == 1 or (len(points) < 40 and label not in ('train', 'learning rate')) else None
    axis.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=3, linewidth=1.3)


def precision_recall(probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str], path: str) -> None:
    """Draw the precision over the recall of each class, of up to ten classes with the most images.

    Args:
      probabilities: (N, classes).
      labels: (N, classes) of 0 and 1.
      class_names: in the order of the classes.
      path: of the PNG.
    """
    from sklearn.metrics import precision_recall_curve
    support = labels.sum(0)
    classes = [c for c in np.argsort(-support.astype(int), kind='stable')[:10] if support[c]]
    names = [_shortened(class_names[c]) for c in classes]
    with _figure(path, 7, 5, names, layout='constrained') as figure:
        axis = figure.subplots()
        for c, name in zip(classes, names, strict=True):
            precision, recall, _ = precision_recall_curve(labels[:, c], probabilities[:, c])
            axis.step(recall, precision, where='post', label=f'{name} ({support[c]} images)', linewidth=1.3)
        axis.set(xlabel='recall', ylabel='precision', xlim=(0, 1.01), ylim=(0, 1.05), title='precision and recall by class')
        axis.grid(alpha=0.3)
        axis.legend(loc='lower left')


def confusion_matrix(confusion: np.ndarray, class_names: Sequence[str], path: str) -> None:
    """A confusion matrix (labels, predictions) as shares of each label; counts are written up to 20 classes.

    Of more than `MOST_CLASSES` classes, those of the most frequent mistakes are drawn.
    """
    title, support = 'confusion matrix', np.maximum(confusion.sum(1), 1)
    if len(confusion) > MOST_CLASSES:
        title = f'confusion matrix of the {MOST_CLASSES} most confused of {len(confusion):,} classes'
        labels, predictions, _ = mistakes(confusion)
        ranked = np.concatenate([np.stack([labels, predictions], 1).ravel(), np.arange(len(confusion))])
        classes, first = np.unique(ranked, return_index=True)
        most_confused = np.sort(classes[np.argsort(first)[:MOST_CLASSES]])
        confusion, support = confusion[np.ix_(most_confused, most_confused)], support[most_confused]
        class_names = [class_names[c] for c in most_confused]
    count = len(confusion)
    side = float(np.clip(0.55 * count + 2, 5, 14))
    shares, names = confusion / support[:, None], [_shortened(name) for name in class_names]
    with _figure(path, side + 1, side, names, layout='compressed') as figure:
        axis = figure.subplots()
        picture = axis.imshow(shares, cmap='Blues', vmin=0, vmax=1)
        axis.set(xlabel='predicted', ylabel='label', title=title)
        axis.set_xticks(range(count), names, rotation=90)
        axis.set_yticks(range(count), names)
        if count <= 20:
            for i, j in np.ndindex(count, count):
                if confusion[i, j]:
                    axis.text(j, i, str(confusion[i, j]), ha='center', va='center', fontsize=8,
                              color='white' if shares[i, j] > 0.5 else 'black')
        figure.colorbar(picture, ax=axis, fraction=0.046)


def costs(costs: 'Mapping[str, Cost]', path: str) -> None:
    """Parameters and multiply-adds of networks, each a point with its name, on logarithmic axes.

    Args:
      costs: by name.
      path: of the PNG.
    """
    with _figure(path, 14, 9, dpi=100, math_text=True, layout='constrained') as picture:
        axis = picture.subplots()
        axis.set(xscale='log', yscale='log', xlabel='parameters', ylabel='multiply-adds of an image')
        axis.grid(alpha=0.3)
        axis.scatter([c.parameters for c in costs.values()], [c.multiply_adds for c in costs.values()], s=16)
        axis.margins(0.09)
        picture.draw_without_rendering()  # from here on points have their places
        places = {name: axis.transData.transform((c.parameters, c.multiply_adds)) for name, c in sorted(costs.items())}
        taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in places.values()]
        scale = picture.dpi / 72
        angles = [i * math.pi / 8 for i in (1, 0, 15, 3, 13, 4, 12, 5, 11, 7, 8, 9, 2, 6, 10, 14)]
        offsets = [(distance * math.cos(angle) * scale, distance * math.sin(angle) * scale)
                   for distance in range(8, 200, 8) for angle in angles]
        for name, (x, y) in places.items():
            width, height = 4.4 * len(name) * scale, 9 * scale
            places_around = ((x + across - (width if across < -1 else 0), y + up - height / 2, across, up)
                             for across, up in offsets)
            left, low, across, up = next((place for place in places_around if not any(
                place[0] < b[2] and b[0] < place[0] + width and place[1] < b[3] and b[1] < place[1] + height
                for b in taken)), (x, y, 8 * scale, 0))
            taken.append((left, low, left + width, low + height))
            axis.annotate(name, (costs[name].parameters, costs[name].multiply_adds), (across / scale, up / scale),
                          textcoords='offset points', fontsize=7, va='center', ha='right' if across < -1 else 'left',
                          arrowprops={'arrowstyle': '-', 'linewidth': 0.4, 'color': 'grey', 'shrinkA': 0, 'shrinkB': 1})
