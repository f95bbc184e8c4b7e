"""Figures as PNG files. They are drawn with matplotlib's default settings, whatever the user's settings are."""

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
from jaxcnn.errors import counted, printable
from jaxcnn.metrics import Measurement, Metric, mistakes

if TYPE_CHECKING:
    from jaxcnn.analysis.complexity import Cost

log = logging.getLogger('jaxcnn')

if not all(map(is_writable, ('~/.config/matplotlib', '~/.cache/matplotlib'))):  # else matplotlib warns and lists fonts anew
    os.environ.setdefault('MPLCONFIGDIR', os.path.join(cache_folder(), 'matplotlib'))

MAX_CONFUSION_CLASSES = 40  # in the figure of a confusion matrix
MAX_CURVES = 10  # in the figure of precision and recall
FONT = 'DejaVu Sans'  # comes with matplotlib
_PREFERRED_FALLBACKS = ('CJK', 'Noto Sans', 'Noto', 'Sans')  # substrings of fonts with many characters, best first
_LINE_HEIGHT, _DPI = 12, 100  # pixels of a line of text in an image grid, pixels per inch


def _import_matplotlib() -> Any:
    """Import matplotlib, even if `MPLBACKEND`, which notebooks pass on, names a backend that is not installed."""
    if 'matplotlib' in sys.modules:
        return sys.modules['matplotlib']
    backend = os.environ.pop('MPLBACKEND', None)  # an import that fails because of it cannot be repeated
    try:
        import matplotlib
    finally:
        if backend:
            os.environ['MPLBACKEND'] = backend
    if backend:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams['backend'] = backend  # as the import does, for the user's own figures
    return matplotlib


@functools.cache
def fallback_fonts(characters: frozenset[str]) -> list[str]:
    """Return font families that together have the characters; those that no font has are logged."""
    from matplotlib import font_manager
    manager, families, missing = font_manager.fontManager, [], set(characters)
    for path in {*font_manager.findSystemFonts()} - {entry.fname for entry in manager.ttflist}:
        with contextlib.suppress(OSError, RuntimeError):  # installed since matplotlib listed the fonts; some are unreadable
            manager.addfont(path)
    candidates = [entry for entry in manager.ttflist if entry.style == 'normal' and 'Last Resort' not in entry.name]
    for entry in sorted(candidates, key=_fallback_order):
        if not missing:
            break
        with contextlib.suppress(OSError, RuntimeError):
            if covered := missing & {*map(chr, font_manager.get_font(entry.fname).get_charmap())}:
                missing -= covered
                families.append(entry.name)
    if missing:
        log.warning('figures show boxes instead of %s: install a font with these characters, such as Noto Sans or Noto Sans '
                    'CJK', ''.join(sorted(missing)[:20]) + '...' * (len(missing) > 20))
    return families


def _fallback_order(entry: Any) -> tuple[int, int, str]:
    """Return the sort key of matplotlib's entry of a font: preferred families first, then the most regular weights."""
    preference = next((i for i, name in enumerate(_PREFERRED_FALLBACKS) if name in entry.name), len(_PREFERRED_FALLBACKS))
    return preference, abs(int(entry.weight) - 400), entry.name


def _fonts(texts: Iterable[str]) -> list[str]:
    """Return font families that have the characters of the texts, `FONT` first."""
    from matplotlib import font_manager
    charmap = font_manager.get_font(font_manager.findfont(FONT)).get_charmap()
    missing = frozenset(c for text in texts for c in text if ord(c) not in charmap and not c.isspace())
    return [FONT, *(fallback_fonts(missing) if missing else ())]


@contextlib.contextmanager
def open_figure(path: str, width: float, height: float, texts: Iterable[str] = (), dpi: float = 110,
            math_text: bool = False, **settings: Any) -> Iterator[Any]:
    """Yield a matplotlib figure, and write it to `path` afterwards.

    Args:
      path: the file; its extension selects the format.
      width, height: size in inches.
      texts: texts of the user in the figure, such as class names; fonts are chosen for their characters.
      dpi: pixels per inch.
      math_text: whether `$` encloses formulas, as in the labels of logarithmic axes. Texts of the user must not be drawn
        then.
      **settings: further arguments of matplotlib's `Figure`.
    """
    matplotlib = _import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({'font.family': _fonts(texts), 'text.parse_math': math_text})
        warnings.filterwarnings('ignore', r'Glyph .* missing from')  # fallback_fonts has logged these
        figure = Figure(figsize=(width, height), dpi=dpi, **settings)
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(path, format=os.path.splitext(path)[1][1:] or 'png')


@contextlib.contextmanager
def warn_on_error(path: str) -> Iterator[None]:
    """Log an error in drawing the figure at `path` as a warning, because it is no reason to end a run."""
    try:
        yield
    except ModuleNotFoundError as e:
        if e.name != 'matplotlib':
            raise
        _warn_of_missing_matplotlib()
    except Exception as e:
        log.warning('%s could not be drawn: %s: %s', path, type(e).__name__, ' '.join(str(e).split())[:300])


@functools.cache
def _warn_of_missing_matplotlib() -> None:
    """Log once that there are no figures."""
    log.warning("no figures are drawn, because matplotlib is not installed: pip install 'jaxcnn[plots]'")


def shortened(text: str, max_length: int = 24) -> str:
    """Return `text` on one line of at most `max_length` characters."""
    text = printable(text)
    return text if len(text) <= max_length else f'{text[:max_length - 1]}…'


def thumbnails(images: np.ndarray, max_side: int) -> np.ndarray:
    """Return uint8 images (N, H, W, C), reduced so that their height and width are at most `max_side` pixels."""
    height, width = images.shape[1:3]
    if max(height, width) <= max_side:
        return images
    from PIL import Image
    scale = max_side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))

    def reduce(channel: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(channel).resize(size, Image.Resampling.LANCZOS))
    return np.stack([np.stack([reduce(image[..., c]) for c in range(image.shape[-1])], -1) for image in images])


def image_grid(images: np.ndarray | Sequence[np.ndarray], titles: Sequence[str], path: str, columns: int = 8,
               headings: Sequence[str] = (), min_side: int = 96) -> None:
    """Draw images in a grid. Small ones are enlarged by a whole factor, until cells have at least `min_side` pixels a side.

    Args:
      images: N images, float (H, W, C), clipped to [0, 1]; C is 1 or 3, and sizes may differ.
      titles: N titles, drawn above the images. They may have several lines, each shortened to the width of a cell.
      path: the PNG file.
      columns: images in a row.
      headings: a line of text above each row, or empty.
      min_side: the smallest side of a cell in pixels.
    """
    height, width = (max(image.shape[i] for image in images) for i in (0, 1))
    factor, gap = max(1, -(-min_side // max(height, width))), 6
    cell_height, cell_width = height * factor, width * factor
    title_lines = [[printable(line) for line in str(title).split('\n')] for title in titles]
    title_height = 2 + _LINE_HEIGHT * max(map(len, title_lines))
    heading_height = _LINE_HEIGHT if headings else 0
    row_height = heading_height + title_height + cell_height + gap
    sheet = np.full((-(-len(images) // columns) * row_height + gap, columns * (cell_width + gap) + gap, 3), 255, np.uint8)
    lines = [(gap, gap + row * row_height, printable(heading), sheet.shape[1] - 2 * gap)
             for row, heading in enumerate(headings)]  # x, y, text and maximum width
    for i, (image, texts) in enumerate(zip(images, title_lines, strict=True)):
        x, y = gap + i % columns * (cell_width + gap), gap + i // columns * row_height + heading_height
        lines += [(x, y + n * _LINE_HEIGHT, text, cell_width) for n, text in enumerate(texts)]
        tile = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8).repeat(factor, 0).repeat(factor, 1)
        sheet[y + title_height:y + title_height + tile.shape[0], x:x + tile.shape[1]] = tile
    with open_figure(path, sheet.shape[1] / _DPI, sheet.shape[0] / _DPI, [text for _, _, text, _ in lines], _DPI) as figure:
        figure.figimage(sheet)
        for x, y, text, max_width in lines:
            _write_line(figure, x, sheet.shape[0] - y - 0.8 * _LINE_HEIGHT, text, max_width)


def _write_line(figure: Any, x: float, baseline: float, line: str, max_width: float) -> None:
    """Write a line of an image grid, shortened to `max_width` pixels."""
    text = figure.text(x, baseline, line, transform=None, fontsize=0.8 * _LINE_HEIGHT * 72 / _DPI, va='baseline')
    while line and (width := text.get_window_extent().width) > max_width:
        line = line[:min(len(line) - 1, int(len(line) * max_width / width))]
        text.set_text(f'{line}…')


def curves(rows: Sequence[Mapping[str, float]], metrics: Sequence[Metric], measurements: Sequence[Measurement],
           path: str) -> None:
    """Draw metrics and the learning rate over epochs.

    Args:
      rows: the rows of `metrics.jsonl`.
      metrics: the metrics to draw, one panel for each.
      measurements: the measurements of evaluations that the rows may contain.
      path: the PNG file.
    """
    with open_figure(path, 5 * (len(metrics) + 1), 4.2, layout='constrained') as figure:
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
    """Draw a line through points, which are marked if there are fewer than 40 from evaluations, or only one."""
    marker = 'o' if len(points) == 1 or (len(points) < 40 and label not in ('train', 'learning rate')) else None
    axis.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=3, linewidth=1.3)


def precision_recall(probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str], path: str) -> None:
    """Draw the precision over the recall of each class; of more than `MAX_CURVES` classes, those with the most images.

    Args:
      probabilities: (N, classes).
      labels: (N, classes) of 0 and 1.
      class_names: the names in the order of the classes.
      path: the PNG file.
    """
    from sklearn.metrics import precision_recall_curve
    support = labels.sum(0)
    classes = [c for c in np.argsort(-support.astype(int), kind='stable')[:MAX_CURVES] if support[c]]
    names = [shortened(class_names[c]) for c in classes]
    title = 'precision and recall by class'
    if len(classes) < len(class_names):
        title = f'precision and recall of the {len(classes)} most frequent of {len(class_names):,} classes'
    with open_figure(path, 10, 5, names, layout='constrained') as figure:
        axis = figure.subplots()
        for c, name in zip(classes, names, strict=True):
            precision, recall, _ = precision_recall_curve(labels[:, c], probabilities[:, c])
            axis.step(recall, precision, where='post', label=f'{name} ({counted(int(support[c]), "image")})', linewidth=1.3)
        axis.set(xlabel='recall', ylabel='precision', xlim=(0, 1.01), ylim=(0, 1.05), title=title)
        axis.grid(alpha=0.3)
        if classes:
            axis.legend(loc='upper left', bbox_to_anchor=(1.01, 1))  # beside the curves, which fill the axes


def confusion_matrix(confusion: np.ndarray, class_names: Sequence[str], path: str) -> None:
    """Draw a confusion matrix as fractions of each label's images. Up to 20 classes, the counts are written, too.

    Of more than `MAX_CONFUSION_CLASSES` classes, those with the most frequent mistakes are drawn.

    Args:
      confusion: counts (labels, predictions).
      class_names: the names in the order of the classes.
      path: the PNG file.
    """
    title, support = 'confusion matrix', np.maximum(confusion.sum(1), 1)
    if len(confusion) > MAX_CONFUSION_CLASSES:
        title = f'confusion matrix of the {MAX_CONFUSION_CLASSES} most confused of {len(confusion):,} classes'
        classes = _most_confused(confusion)
        confusion, support = confusion[np.ix_(classes, classes)], support[classes]
        class_names = [class_names[c] for c in classes]
    count = len(confusion)
    side = float(np.clip(0.55 * count + 2, 5, 14))
    fractions, names = confusion / support[:, None], [shortened(name) for name in class_names]
    with open_figure(path, side + 1, side, names, layout='compressed') as figure:
        axis = figure.subplots()
        image = axis.imshow(fractions, cmap='Blues', vmin=0, vmax=1)
        axis.set(xlabel='predicted', ylabel='label', title=title)
        axis.set_xticks(range(count), names, rotation=90)
        axis.set_yticks(range(count), names)
        if count <= 20:
            for i, j in np.ndindex(count, count):
                if confusion[i, j]:
                    axis.text(j, i, str(confusion[i, j]), ha='center', va='center', fontsize=8,
                              color='white' if fractions[i, j] > 0.5 else 'black')
        figure.colorbar(image, ax=axis, fraction=0.046)


def _most_confused(confusion: np.ndarray) -> np.ndarray:
    """Return the `MAX_CONFUSION_CLASSES` classes with the most frequent mistakes, in the order of the classes."""
    labels, predictions, _ = mistakes(confusion)
    ranked = np.concatenate([np.stack([labels, predictions], 1).ravel(), np.arange(len(confusion))])
    classes, first_rank = np.unique(ranked, return_index=True)
    return np.sort(classes[np.argsort(first_rank)[:MAX_CONFUSION_CLASSES]])


def cost_scatter(costs: 'Mapping[str, Cost]', path: str) -> None:
    """Draw the parameters and multiply-adds of networks as labelled points on logarithmic axes.

    Args:
      costs: the costs by the networks' names.
      path: the image file.
    """
    with open_figure(path, 14, 9, dpi=100, math_text=True, layout='constrained') as figure:
        axis = figure.subplots()
        axis.set(xscale='log', yscale='log', xlabel='parameters', ylabel='multiply-adds of an image')
        axis.grid(alpha=0.3)
        axis.scatter([c.parameters for c in costs.values()], [c.multiply_adds for c in costs.values()], s=16)
        axis.margins(0.09)
        figure.draw_without_rendering()  # from here on, the points' positions in pixels are final
        scale = figure.dpi / 72
        pixels = {name: tuple(axis.transData.transform((cost.parameters, cost.multiply_adds)))
                  for name, cost in sorted(costs.items())}
        for name, (dx, dy) in label_offsets(pixels, scale).items():
            axis.annotate(name, (costs[name].parameters, costs[name].multiply_adds), (dx / scale, dy / scale),
                          textcoords='offset points', fontsize=7, va='center', ha='right' if dx < -1 else 'left',
                          arrowprops={'arrowstyle': '-', 'linewidth': 0.4, 'color': 'grey', 'shrinkA': 0, 'shrinkB': 1})


def label_offsets(points: Mapping[str, tuple[float, float]], scale: float) -> dict[str, tuple[float, float]]:
    """Return an offset for the label of each point, so that labels cover neither each other nor points.

    Args:
      points: positions in pixels by label.
      scale: pixels of a typographic point.

    Returns:
      Offsets in pixels by label: of the label's left end, or of its right end where the first component is negative.
    """
    angles = [i * math.pi / 8 for i in (1, 0, 15, 3, 13, 4, 12, 5, 11, 7, 8, 9, 2, 6, 10, 14)]  # best first
    candidates = [(distance * math.cos(angle) * scale, distance * math.sin(angle) * scale)
                  for distance in range(8, 200, 8) for angle in angles]
    occupied = [(x - 3, y - 3, x + 3, y + 3) for x, y in points.values()]  # boxes: left, bottom, right, top
    offsets = {}
    for name, (x, y) in points.items():
        width, height = 4.4 * len(name) * scale, 9 * scale
        for dx, dy in (*candidates, (8 * scale, 0.0)):  # the last one is taken in any case
            left, bottom = x + dx - (width if dx < -1 else 0), y + dy - height / 2
            if not any(left < box[2] and box[0] < left + width and bottom < box[3] and box[1] < bottom + height
                       for box in occupied):
                break
        offsets[name] = dx, dy
        occupied.append((left, bottom, left + width, bottom + height))
    return offsets
