"""Images with boxes around objects."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxcnn.analysis.figures import open_figure, shortened

# Okabe and Ito's colours, which people with any colour vision can tell apart, without black and ordered by contrast
COLOURS = ('#E69F00', '#56B4E9', '#CC79A7', '#009E73', '#F0E442', '#D55E00', '#0072B2')
_DARK_COLOURS = ('#009E73', '#D55E00', '#0072B2')  # with white text
_MAX_LEGEND_CLASSES = 12
_IMAGE_WIDTH, _MAX_SHEET_WIDTH = 4.2, 20  # inches
_GAP, _LINE = 0.1, 0.22  # inches between images and of a line of text
_LEGEND_COLUMNS = 6
_MIN_LABELLED_WIDTH = 3  # inches; the boxes of smaller images have no labels if there is a legend
MIN_PICTURE_WIDTH, MAX_PICTURE_SIDE = 640, 4096  # pixels of a picture that is drawn alone
_DPI = 100
_SMALL_BOX = 0.12  # height, as a fraction of that of the image, below which a label would hide the object


def draw_boxes(path: str, images: Sequence[np.ndarray] | np.ndarray, targets: Mapping[str, np.ndarray],
               class_names: Sequence[str], titles: Sequence[str] = (), columns: int = 3,
               headings: Sequence[str] = ()) -> None:
    """Draw images with their boxes as a PNG file. Difficult boxes are dashed.

    Args:
      path: the file.
      images: N images, uint8 (H, W, C) with 1 or 3 channels, whose sizes may differ.
      targets: as in `data.targets.ObjectBoxes`: `boxes` (N, M, 4), `classes` (N, M), `valid` (N, M) and, optionally,
        `difficult` (N, M) and, of detections, `scores` (N, M).
      class_names: the names of the classes.
      titles: the title of each image.
      columns: the number of images in a row.
      headings: a line of text above each row.
    """
    shown_classes = np.unique(targets['classes'][targets['valid']])
    is_small = _image_width(min(columns, len(images))) < _MIN_LABELLED_WIDTH
    has_labels = not (is_small and 0 < len(shown_classes) <= _MAX_LEGEND_CLASSES)

    def draw(axis: Any, index: int) -> None:
        height, width = images[index].shape[:2]
        _draw_objects(axis, {name: values[index] for name, values in targets.items()}, class_names, height, width,
                      has_labels=has_labels)
    _draw_sheet(path, images, draw, shown_classes, class_names, titles, columns, headings)


def draw_augmented(path: str, images: Sequence[np.ndarray] | np.ndarray, targets: Sequence[Mapping[str, np.ndarray]],
                   class_names: Sequence[str], titles: Sequence[str] | None = None, columns: int | None = None,
                   headings: Sequence[str] = ()) -> None:
    """Draw augmented images with their boxes; see `draw_boxes`.

    Args:
      path: the file.
      images: N images, float (H, W, C), clipped to [0, 1].
      targets: the targets of each image, as in `data.targets.ObjectBoxes`.
      class_names: the names of the classes.
      titles, columns, headings: see `tasks.Task.draw_examples`.
    """
    pixels = [np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8) for image in images]
    stacked = {name: np.stack([np.asarray(values[name]) for values in targets])
               for name in ('boxes', 'classes', 'valid', 'difficult')}
    draw_boxes(path, pixels, stacked, class_names, titles or (), columns or 4, headings)


def draw_detections(path: str, images: np.ndarray, detections: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray],
                    class_names: Sequence[str], titles: Sequence[str] = (), columns: int = 3) -> None:
    """Draw images with their true boxes in dashed white lines and the detections in the colours of their classes.

    Args:
      path: the PNG file.
      images: uint8 (N, H, W, C) with 1 or 3 channels.
      detections: `boxes` (N, K, 4), `scores` (N, K), `classes` (N, K), `valid` (N, K) and `errors` (N, K), a text for each
        wrong detection and an empty one for the others. Wrong detections have a label with the class, the score and this
        text.
      truth: `boxes` (N, M, 4), `classes` (N, M), `valid` (N, M) and `undetected` (N, M), true for boxes that are drawn with
        a thick line and a label.
      class_names: the names of the classes.
      titles: the title of each image.
      columns: the number of images in a row.
    """
    height, width = images.shape[1:3]

    def draw(axis: Any, index: int) -> None:
        for i in np.flatnonzero(truth['valid'][index]):
            is_undetected = truth['undetected'][index, i]
            label = f'missed: {shortened(class_names[truth["classes"][index, i]], 16)}' if is_undetected else ''
            _draw_box(axis, truth['boxes'][index, i], 'white', label, height, width, 2.2 if is_undetected else 0.8, '--')
        for i in np.flatnonzero(detections['valid'][index])[::-1]:  # the most confident one last
            label, error = detections['classes'][index, i], detections['errors'][index, i]
            text = f'{shortened(class_names[label], 16)} {detections["scores"][index, i]:.2f} {error}' if error else ''
            _draw_box(axis, detections['boxes'][index, i], COLOURS[label % len(COLOURS)], text, height, width,
                      2.0 if error else 1.2)
    shown_classes = np.unique(detections['classes'][detections['valid']])
    _draw_sheet(path, images, draw, shown_classes, class_names, titles, columns)


def draw_picture(path: str, image: np.ndarray, targets: Mapping[str, np.ndarray], class_names: Sequence[str],
                 title: str = '') -> None:
    """Draw one image with its boxes, as large as the image but at least `MIN_PICTURE_WIDTH` pixels wide.

    Args:
      path: the file; its extension, such as `.png` or `.jpg`, selects the format.
      image: uint8 (H, W, C) with 1 or 3 channels.
      targets: as in `draw_boxes`, of this image: `boxes` (M, 4) and so on. Without `boxes` none are drawn.
      class_names: the names of the classes.
      title: a text of one or several lines above the image.
    """
    height, width = image.shape[:2]
    scale = min(max(MIN_PICTURE_WIDTH / width, 1), MAX_PICTURE_SIDE / max(height, width))
    columns, rows = round(width * scale), round(height * scale)
    lines = [shortened(line, max(12, columns // 8)) for line in title.split('\n')] if title else []
    title_height = 18 * len(lines) + 4 * bool(lines)
    with open_figure(path, columns / _DPI, (rows + title_height) / _DPI, [title, *class_names], dpi=_DPI) as figure:
        axis = figure.add_axes((0, 0, 1, rows / (rows + title_height)))
        _show_image(axis, image)
        axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        if 'boxes' in targets:
            _draw_objects(axis, targets, class_names, height, width, font_size=8.5)
        figure.text(6 / columns, 1 - 2 / (rows + title_height), '\n'.join(lines), va='top', fontsize=10, linespacing=1.25)


def _image_width(columns: int) -> float:
    """Return the width in inches of an image in a sheet."""
    return min(_IMAGE_WIDTH, _MAX_SHEET_WIDTH / columns)


def _draw_sheet(path: str, images: Sequence[np.ndarray] | np.ndarray, draw: Callable[[Any, int], None],
                shown_classes: np.ndarray, class_names: Sequence[str], titles: Sequence[str], columns: int,
                headings: Sequence[str] = ()) -> None:
    """Draw images in a grid with a legend of classes; `draw` adds the boxes of the image at an index to its axes."""
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    image_width = _image_width(columns)
    sheet_width = columns * (image_width + _GAP)
    image_heights = [max(image_width * image.shape[0] / image.shape[1] for image in images[row * columns:][:columns])
                     for row in range(rows)]
    text_height = _LINE * bool(titles) + (_LINE + _GAP) * bool(headings)
    num_legend_lines = math.ceil(len(shown_classes) / _LEGEND_COLUMNS) if len(shown_classes) <= _MAX_LEGEND_CLASSES else 0
    top = _GAP + num_legend_lines * _LINE + _GAP * bool(num_legend_lines)
    sheet_height = top + sum(image_heights) + rows * (text_height + _GAP)
    with open_figure(path, sheet_width, sheet_height, texts=[*titles, *class_names, *headings]) as figure:
        for index, image in enumerate(images):
            row, column = divmod(index, columns)
            x = _GAP / 2 + column * (image_width + _GAP)
            y = top + sum(image_heights[:row]) + row * (text_height + _GAP)  # from the top
            if headings and column == 0:
                text = shortened(headings[row], int(12 * sheet_width))
                figure.text(x / sheet_width, 1 - (y + _GAP) / sheet_height, text, va='top', fontsize=10, fontweight='bold')
            y += text_height
            height = image_width * image.shape[0] / image.shape[1]
            axis = figure.add_axes((x / sheet_width, 1 - (y + height) / sheet_height, image_width / sheet_width,
                                    height / sheet_height))
            _show_image(axis, image)
            if titles:
                axis.set_title(shortened(titles[index], int(11 * image_width)), fontsize=9, pad=4)
            draw(axis, index)
        if num_legend_lines:
            _draw_legend(figure, shown_classes, class_names)


def _show_image(axis: Any, image: np.ndarray) -> None:
    axis.imshow(np.broadcast_to(image, (*image.shape[:2], 3)))
    axis.set_axis_off()


def _draw_objects(axis: Any, targets: Mapping[str, np.ndarray], class_names: Sequence[str], height: int, width: int,
                  font_size: float = 6.5, has_labels: bool = True) -> None:
    """Draw the boxes of an image of the given size with their labels.

    Large ones come first, and of equally large ones those with low scores, so that small and probable ones stay visible.
    """
    boxes = targets['boxes']
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    scores = targets.get('scores', np.zeros(len(boxes)))
    for i in sorted(np.flatnonzero(targets['valid']), key=lambda i: (-areas[i], scores[i])):
        colour = COLOURS[targets['classes'][i] % len(COLOURS)]
        is_difficult = 'difficult' in targets and targets['difficult'][i]
        label = shortened(class_names[targets['classes'][i]], 16)
        if 'scores' in targets:
            label += f' {targets["scores"][i]:.2f}'
        _draw_box(axis, boxes[i], colour, label if has_labels else '', height, width,
                  line_style='--' if is_difficult else '-', font_size=font_size)


def _draw_box(axis: Any, box: np.ndarray, colour: str, label: str, height: int, width: int, line_width: float = 1.6,
              line_style: str = '-', font_size: float = 6.5) -> None:
    """Draw one box of an image of the given size.

    The label of a large box is in its left upper corner, that of a small one above it.
    """
    from matplotlib import patches, patheffects
    x0, y0, x1, y1 = box - 0.5  # matplotlib counts from the centres of pixels
    outline = [patheffects.withStroke(linewidth=line_width + 1.2, foreground='black', alpha=0.6)]
    axis.add_patch(patches.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=line_width,
                                     linestyle=line_style, path_effects=outline))
    if not label:
        return
    is_small = y1 - y0 < _SMALL_BOX * height and y0 > _SMALL_BOX / 2 * height
    axis.text(max(x0, 0) + 0.006 * width, max(y0, 0) + (-0.008 if is_small else 0.006) * height, label, fontsize=font_size,
              va='bottom' if is_small else 'top', ha='left', clip_on=True,
              color='white' if colour in _DARK_COLOURS else 'black',
              bbox={'facecolor': colour, 'edgecolor': 'none', 'pad': 0.8, 'alpha': 0.85})


def _draw_legend(figure: Any, classes: np.ndarray, class_names: Sequence[str]) -> None:
    from matplotlib import patches
    handles = [patches.Patch(facecolor=COLOURS[c % len(COLOURS)], edgecolor='black', label=shortened(class_names[c]))
               for c in classes]
    figure.legend(handles=handles, loc='upper center', ncols=min(len(handles), _LEGEND_COLUMNS), fontsize=9, frameon=False,
                  borderaxespad=0.4, borderpad=0.2)
