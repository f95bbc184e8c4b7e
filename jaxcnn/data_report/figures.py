"""The figures of the page of a data set."""

import collections
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from PIL import Image

from jaxcnn.analysis.box_figures import draw_boxes
from jaxcnn.analysis.figures import image_grid, open_figure, shortened
from jaxcnn.data.checks import check_images
from jaxcnn.data.sources import Source
from jaxcnn.data_report.survey import Objects, SplitSurvey

MAX_NAMED_CLASSES = 40  # of which a bar chart has names
MAX_BOX_CLASSES = 6  # whose sizes are drawn as curves of their own
TILE_SIDE, PAIR_SIDE = 96, 150  # pixels of an image in a sheet, and in a sheet of pairs
SHEET_WIDTH = 1500  # pixels of a sheet, about
CONFLICT_COLOUR = (213, 94, 0)  # Okabe and Ito's vermilion
_BORDER, _BINS, _STYLES = 5, 40, ('-', '--', ':')
_LOG_RANGE = 10  # ratio of the largest to the smallest value from which an axis is logarithmic
_LETTER_WIDTH = 0.1  # inches, in the names of classes


def read_images(source: Source, images: Sequence[tuple[str, int]],
                reduce: Callable[[int, np.ndarray], np.ndarray]) -> list[np.ndarray]:
    """Return what `reduce` makes of images at their true size, so that these do not stay in memory.

    Args:
      source: the data set.
      images: split and index of each image.
      reduce: a function of the position of an image in `images` and its pixels, uint8 (H, W, C).
    """
    examples = {split: source.splits[split]() for split in {split for split, _ in images}}

    def read(position: int) -> np.ndarray:
        split, index = images[position]
        return reduce(position, check_images('image', np.asarray(examples[split][index]['image'])[None])[0])
    with futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        return [*threads.map(read, range(len(images)))]


def thumbnail(image: np.ndarray, side: int) -> np.ndarray:
    """Return an image, uint8 (H, W, C), in RGB, with about `side` pixels on its longer side. Tiny ones show their pixels."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 2:
        factor = int(scale)
        return np.broadcast_to(image, (height, width, 3)).repeat(factor, 0).repeat(factor, 1)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    rgb = Image.fromarray(np.ascontiguousarray(np.broadcast_to(image, (height, width, 3))))
    return np.asarray(rgb.resize(size, Image.Resampling.LANCZOS))


def draw_sizes(surveys: Mapping[str, SplitSurvey], path: str) -> None:
    """Draw the distributions of heights, widths and aspect ratios, a curve for each split."""
    records = {name: split.records for name, split in surveys.items() if len(split.records)}
    panels = (('height in pixels', lambda r: r['height']), ('width in pixels', lambda r: r['width']),
              ('aspect ratio, width / height', lambda r: r['width'] / r['height']))
    with open_figure(path, 12, 3.2, layout='constrained') as figure:
        for axis, (label, values_of) in zip(figure.subplots(1, 3), panels, strict=True):
            values = {name: values_of(r) for name, r in records.items()}
            joined = np.concatenate([*values.values()])
            is_log = joined.max() > _LOG_RANGE * joined.min()
            edges = _edges(joined, is_log)
            for (name, v), style in zip(values.items(), _STYLES, strict=False):
                axis.hist(v, edges, weights=np.full(len(v), 100 / len(v)), histtype='step', label=name, linestyle=style,
                          linewidth=1.5)
            axis.set(xlabel=label, ylabel='% of the images of the split', xscale='log' if is_log else 'linear')
            if is_log:
                _plain_ticks(axis)
            axis.grid(alpha=0.3)
            axis.legend()


def _edges(values: np.ndarray, is_log: bool) -> np.ndarray:
    """Return the edges of the bins of a histogram."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return np.linspace(low - 0.5, high + 0.5, 4)
    return np.geomspace(low, high, _BINS + 1) if is_log and low > 0 else np.linspace(low, high, _BINS + 1)


def draw_class_counts(counts: Mapping[str, np.ndarray], class_names: Sequence[str], path: str, ylabel: str) -> None:
    """Draw counts by class, for each split.

    Up to `MAX_NAMED_CLASSES` classes have bars and names; more of them are curves, sorted by the counts of each split.
    """
    num_classes, names = len(class_names), [shortened(name) for name in class_names]
    if num_classes > MAX_NAMED_CLASSES:
        with open_figure(path, 9, 3.8, layout='constrained') as figure:
            axis = figure.subplots()
            for (split, values), style in zip(counts.items(), _STYLES, strict=False):
                axis.plot(np.arange(1, num_classes + 1), np.sort(values)[::-1], style, label=split, linewidth=1.8)
            axis.set(xlabel=f'{num_classes:,} classes, sorted by their number in each split', ylabel=ylabel)
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
            axis.legend()
        return
    width, inches = 0.8 / len(counts), min(4 + 0.55 * num_classes, 14)
    is_wide = max(map(len, names)) * _LETTER_WIDTH > (inches - 1) / num_classes
    with open_figure(path, inches, 4, names, layout='constrained') as figure:
        axis = figure.subplots()
        for i, (split, values) in enumerate(counts.items()):
            bars = axis.bar(np.arange(num_classes) + (i - (len(counts) - 1) / 2) * width, values, width, label=split)
            if num_classes <= 10:
                axis.bar_label(bars, [f'{value:,}' for value in values], fontsize=7, padding=1)
        axis.set_xticks(range(num_classes), names, rotation=90 if is_wide else 0)
        axis.set(xlabel='class', ylabel=ylabel)
        axis.margins(y=0.1)
        axis.grid(axis='y', alpha=0.3)
        axis.legend(loc='lower right', bbox_to_anchor=(1, 1), ncols=len(counts), frameon=False)


def draw_objects(surveys: Mapping[str, SplitSurvey], class_names: Sequence[str], path: str) -> None:
    """Draw the distributions of the number of boxes in an image, and of the size and the aspect ratio of boxes."""
    objects = {name: split.objects for name, split in surveys.items() if split.objects is not None}
    in_image = {name: np.bincount(boxes.rows, minlength=len(surveys[name].records)) for name, boxes in objects.items()}
    sides, ratios, classes = _box_shapes([*objects.values()])
    frequent = [c for c, _ in collections.Counter(classes.tolist()).most_common(MAX_BOX_CLASSES)]
    names = [shortened(class_names[c]) for c in frequent]
    with open_figure(path, 12, 3.4, names, layout='constrained') as figure:
        count_axis, size_axis, ratio_axis = figure.subplots(1, 3)
        largest = max((int(counts.max(initial=0)) for counts in in_image.values()), default=0)
        edges = np.arange(0, largest + 2, max(1, largest // _BINS)) - 0.5
        for (name, counts), style in zip(in_image.items(), _STYLES, strict=False):
            count_axis.hist(counts, edges, weights=np.full(len(counts), 100 / max(len(counts), 1)), histtype='step',
                            label=name, linestyle=style, linewidth=1.5)
        count_axis.set(xlabel='boxes in an image', ylabel='% of the images of the split')
        for axis, values, label in ((size_axis, sides, 'side of a box, √(width · height), in pixels'),
                                    (ratio_axis, ratios, 'aspect ratio of a box, width / height')):
            edges = _edges(values, is_log=True) if len(values) else np.linspace(0.5, 2, 3)
            for label_number, name in zip(frequent, names, strict=True):
                selected = values[classes == label_number]
                axis.hist(selected, edges, weights=np.full(len(selected), 100 / len(selected)), histtype='step', label=name,
                          linewidth=1.5)
            axis.set(xscale='log', xlabel=label, ylabel='% of the boxes of the class')
            _plain_ticks(axis)
        for axis in (count_axis, size_axis, ratio_axis):
            axis.grid(alpha=0.3)
            axis.legend(fontsize=8)


def _box_shapes(objects: Sequence[Objects]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the sides √(w h), the aspect ratios and the classes of all boxes with an area."""
    boxes = np.concatenate([split.boxes for split in objects])
    classes = np.concatenate([split.classes for split in objects])
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    has_area = (width > 0) & (height > 0)
    width, height = width[has_area], height[has_area]
    return np.sqrt(width * height), width / height, classes[has_area]


def _plain_ticks(axis: Any) -> None:
    """Label a logarithmic axis by plain numbers, 1, 2 and 5 times powers of ten."""
    from matplotlib import ticker
    axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(ticker.FormatStrFormatter('%g'))
    axis.xaxis.set_minor_formatter(ticker.NullFormatter())


def draw_pairs(images: Sequence[np.ndarray], titles: Sequence[str], conflicts: Sequence[bool], path: str) -> None:
    """Draw pairs of images side by side; a coloured frame marks those with different labels.

    Args:
      images: 2 N thumbnails of at most `PAIR_SIDE` pixels, the two of each pair after each other.
      titles: a title of several lines for each pair.
      conflicts: whether the labels of each pair differ.
      path: the PNG file.
    """
    height = max(image.shape[0] for image in images) + 2 * _BORDER
    tiles = []
    for first, second, is_conflict in zip(images[::2], images[1::2], conflicts, strict=True):
        width = first.shape[1] + second.shape[1] + 3 * _BORDER
        tile = np.full((height, width, 3), CONFLICT_COLOUR if is_conflict else (255, 255, 255), np.uint8)
        x = _BORDER
        for image in (first, second):
            tile[_BORDER:_BORDER + image.shape[0], x:x + image.shape[1]] = image
            x += image.shape[1] + _BORDER
        tiles.append(tile / 255)
    widest = max(tile.shape[1] for tile in tiles)
    image_grid(tiles, titles, path, min(len(tiles), max(1, SHEET_WIDTH // widest)), min_side=1)


def draw_images_with_boxes(images: Sequence[np.ndarray], boxes: Sequence[np.ndarray], classes: Sequence[np.ndarray],
                           difficult: Sequence[np.ndarray], class_names: Sequence[str], titles: Sequence[str],
                           path: str) -> None:
    """Draw images, uint8 (H, W, C), with the boxes, their classes and whether they are difficult, of each image."""
    count = max(1, max(map(len, boxes)))
    targets = {'boxes': np.zeros((len(images), count, 4)), 'classes': np.zeros((len(images), count), np.int64),
               'valid': np.zeros((len(images), count), bool), 'difficult': np.zeros((len(images), count), bool)}
    for i, (b, c, d) in enumerate(zip(boxes, classes, difficult, strict=True)):
        for name, values in (('boxes', b), ('classes', c), ('difficult', d), ('valid', True)):
            targets[name][i, :len(b)] = values
    draw_boxes(path, images, targets, class_names, titles)
