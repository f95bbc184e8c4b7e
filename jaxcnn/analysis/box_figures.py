"""Sheets of images with boxes around objects."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxcnn.analysis.figures import open_figure, shortened

# Okabe and Ito's colours, which people with any colour vision can tell apart, without black and ordered by contrast
COLOURS = ('#E69F00', '#56B4E9', '#CC79A7', '#009E73', '#F0E442', '#D55E00', '#0072B2')
_DARK_COLOURS = ('#009E73', '#D55E00', '#0072B2')  # with white text
_MAX_LEGEND_CLASSES = 12
_IMAGE_WIDTH = 4.2  # inches
_SMALL_BOX = 0.12  # height, as a fraction of that of the image, below which a label would hide the object


def draw_boxes(path: str, images: np.ndarray, targets: Mapping[str, np.ndarray], class_names: Sequence[str],
               titles: Sequence[str] = (), columns: int = 3) -> None:
    """Draw images with their boxes as a PNG file. Difficult boxes are dashed.

    Args:
      path: the file.
      images: uint8 (N, H, W, C) with 1 or 3 channels.
      targets: as in `data.targets.ObjectBoxes`: `boxes` (N, M, 4), `classes` (N, M), `valid` (N, M) and, optionally,
        `difficult` (N, M) and, of detections, `scores` (N, M).
      class_names: the names of the classes.
      titles: the title of each image.
      columns: the number of images in a row.
    """
    count, (height, width) = len(images), images.shape[1:3]
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    row_height = _IMAGE_WIDTH * height / width + (0.3 if titles else 0.1)
    shown_classes = np.unique(targets['classes'][targets['valid']])
    with open_figure(path, columns * _IMAGE_WIDTH, rows * row_height + 0.4, texts=[*titles, *class_names],
                     layout='constrained') as figure:
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis in axes:
            axis.set_axis_off()
        for index, (axis, image) in enumerate(zip(axes, images, strict=False)):
            axis.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap='gray', vmin=0, vmax=255)
            if titles:
                axis.set_title(shortened(titles[index], 48), fontsize=9)
            _draw_objects(axis, {name: values[index] for name, values in targets.items()}, class_names, height, width)
        if 0 < len(shown_classes) <= _MAX_LEGEND_CLASSES:
            _draw_legend(figure, shown_classes, class_names)


def _draw_objects(axis: Any, targets: Mapping[str, np.ndarray], class_names: Sequence[str], height: int, width: int) -> None:
    """Draw the boxes of an image of the given size, large ones first, so that small ones stay visible.

    The label of a large box is in its left upper corner, that of a small one above it.
    """
    from matplotlib import patches, patheffects
    boxes = targets['boxes']
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    outline = [patheffects.withStroke(linewidth=2.8, foreground='black', alpha=0.6)]
    for i in sorted(np.flatnonzero(targets['valid']), key=lambda i: -areas[i]):
        x0, y0, x1, y1 = boxes[i] - 0.5  # matplotlib counts from the centres of pixels
        colour = COLOURS[targets['classes'][i] % len(COLOURS)]
        is_difficult = 'difficult' in targets and targets['difficult'][i]
        axis.add_patch(patches.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.6,
                                         linestyle='--' if is_difficult else '-', path_effects=outline))
        label = shortened(class_names[targets['classes'][i]], 16)
        if 'scores' in targets:
            label += f' {targets["scores"][i]:.2f}'
        is_small = y1 - y0 < _SMALL_BOX * height and y0 > _SMALL_BOX / 2 * height
        axis.text(max(x0, 0) + 0.006 * width, max(y0, 0) + (-0.008 if is_small else 0.006) * height, label, fontsize=6.5,
                  va='bottom' if is_small else 'top', ha='left', clip_on=True,
                  color='white' if colour in _DARK_COLOURS else 'black',
                  bbox={'facecolor': colour, 'edgecolor': 'none', 'pad': 0.8, 'alpha': 0.85})


def _draw_legend(figure: Any, classes: np.ndarray, class_names: Sequence[str]) -> None:
    from matplotlib import patches
    handles = [patches.Patch(facecolor=COLOURS[c % len(COLOURS)], edgecolor='black', label=shortened(class_names[c]))
               for c in classes]
    figure.legend(handles=handles, loc='outside upper center', ncols=min(len(handles), 6), fontsize=9, frameon=False)
