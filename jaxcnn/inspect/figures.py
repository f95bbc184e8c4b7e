"""Figures, written as PNG."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxcnn import config as cfg

if TYPE_CHECKING:
    from jaxcnn.inspect.complexity import Cost

if not all(map(cfg.is_writable, ('~/.config/matplotlib', '~/.cache/matplotlib'))):  # it would warn and forget its fonts
    os.environ.setdefault('MPLCONFIGDIR', os.path.join(cfg.cache_folder(), 'matplotlib'))


def image_grid(images: np.ndarray | Sequence[np.ndarray], titles: Sequence[str], path: str, columns: int = 8,
               headings: Sequence[str] = ()) -> None:
    """Draws images in a grid, each under its title, enlarged by whole pixels to at least 96 on a side.

    Args:
      images: N of (H, W, C) float; clipped to [0, 1]. C is 1 or 3; sizes may differ.
      titles: N of them; of several lines, as far as the cell is wide.
      path: of the PNG.
      columns: in a row.
      headings: one for each row, above it; or none.
    """
    from PIL import Image, ImageDraw
    height, width = (max(image.shape[i] for image in images) for i in (0, 1))
    factor, gap, line = max(1, -(-96 // max(height, width))), 6, 12
    cell_height, cell_width = height * factor, width * factor
    text = 2 + line * max(str(title).count('\n') + 1 for title in titles)
    above = line if headings else 0
    row_height = above + text + cell_height + gap
    sheet = Image.new('RGB', (columns * (cell_width + gap) + gap, -(-len(images) // columns) * row_height + gap), 'white')
    draw = ImageDraw.Draw(sheet)
    for row, heading in enumerate(headings):
        draw.text((gap, gap + row * row_height), heading, fill='black')
    for i, (image, title) in enumerate(zip(images, titles, strict=True)):
        x, y = gap + i % columns * (cell_width + gap), gap + i // columns * row_height + above
        shown = '\n'.join(part[:cell_width // 6] for part in str(title).splitlines())
        draw.text((x, y), shown, fill='black', spacing=0)
        tile = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8).repeat(factor, 0).repeat(factor, 1)
        sheet.paste(Image.fromarray(tile[..., 0] if tile.shape[-1] == 1 else tile), (x, y + text))
    sheet.save(path)


def label_title(label: np.ndarray, class_names: Sequence[str]) -> str:
    """A label's name; of a mixed one, probabilities (classes,), the names of the three largest parts with them."""
    if label.ndim == 0:
        return class_names[int(label)]
    return '\n'.join(f'{class_names[i]} {label[i]:.2f}' for i in np.argsort(-label)[:3] if label[i] >= 0.005)


def _axes(columns: int, width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), layout='constrained')
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def curves(rows: Sequence[Mapping[str, float]], path: str) -> None:
    """Loss, accuracy and learning rate over epochs, from the rows of `metrics.jsonl`."""
    figure, axes = _axes(3, 15, 4.2)
    for axis, quantity in zip(axes, ('loss', 'accuracy', 'learning_rate'), strict=True):
        names = [quantity] if quantity == 'learning_rate' else sorted(
            {k for row in rows for k in row if k.endswith(f'_{quantity}')}, key=lambda k: (not k.startswith('train'), k))
        for name in names:
            points = [(row['epoch'], row[name]) for row in rows if name in row]
            if points:
                marker = 'o' if len(points) < 40 and not name.startswith('train') else None
                axis.plot(*zip(*points, strict=True), label=name.removesuffix(f'_{quantity}').replace('_', ' '),
                          marker=marker, markersize=3, linewidth=1.3)
        axis.set(xlabel='epoch', title=quantity.replace('_', ' '))
        axis.grid(alpha=0.3)
        if quantity != 'learning_rate' and names:
            axis.legend()
    figure.savefig(path, dpi=110)


def confusion_matrix(confusion: np.ndarray, class_names: Sequence[str], path: str) -> None:
    """A confusion matrix (labels, predictions) as shares of each label; numbers are written up to 20 classes."""
    count = len(confusion)
    side = float(np.clip(0.55 * count + 2, 5, 14))
    figure, (axis,) = _axes(1, side + 1, side)
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    picture = axis.imshow(shares, cmap='Blues', vmin=0, vmax=1)
    axis.set(xlabel='predicted', ylabel='label', title='confusion matrix')
    if count <= 40:
        axis.set_xticks(range(count), class_names, rotation=90)
        axis.set_yticks(range(count), class_names)
    if count <= 20:
        for i, j in np.ndindex(count, count):
            if confusion[i, j]:
                axis.text(j, i, str(confusion[i, j]), ha='center', va='center', fontsize=8,
                          color='white' if shares[i, j] > 0.5 else 'black')
    figure.colorbar(picture, ax=axis, fraction=0.046)
    figure.savefig(path, dpi=110)


def costs(costs: 'Mapping[str, Cost]', path: str) -> None:
    """Parameters and multiply-adds of networks, each a point with its name, on logarithmic axes.

    Args:
      costs: by name.
      path: of the PNG.
    """
    from matplotlib.figure import Figure
    picture = Figure(figsize=(14, 9), layout='constrained')
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
            place[0] < b[2] and b[0] < place[0] + width and place[1] < b[3] and b[1] < place[1] + height for b in taken)),
            (x, y, 8 * scale, 0))
        taken.append((left, low, left + width, low + height))
        axis.annotate(name, (costs[name].parameters, costs[name].multiply_adds), (across / scale, up / scale),
                      textcoords='offset points', fontsize=7, va='center', ha='right' if across < -1 else 'left',
                      arrowprops={'arrowstyle': '-', 'linewidth': 0.4, 'color': 'grey', 'shrinkA': 0, 'shrinkB': 1})
    picture.savefig(path)
