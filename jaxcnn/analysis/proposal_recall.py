"""Recall of object proposals: which fraction of the objects has a proposal that overlaps its box enough.

References: Hosang et al., What Makes for Effective Detection Proposals?, 2015 (recall over the IoU and over the number of
proposals, average recall).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.analysis.figures import open_figure, shortened
from jaxcnn.ops import boxes as box_ops

IOU_THRESHOLDS = np.linspace(0.5, 1, 51)
_STYLES = '-', '--', ':', '-.'  # of curves, besides the ten colours of matplotlib's cycle
_IMAGE_WIDTH = 3.6  # inches


@dataclasses.dataclass(frozen=True)
class ProposalRecall:
    """How well the proposals of a method cover the objects of several images.

    Attributes:
      counts: (K,) increasing numbers k; the last one is that of all proposals.
      mean_counts: (K,) mean number of proposals among the first k of an image, of which some images have fewer than k.
      best_ious: (B, K) IoU of each object's box with the best of the first k proposals of its image; 0 if there is none.
    """

    counts: np.ndarray
    mean_counts: np.ndarray
    best_ious: np.ndarray

    def recall(self, threshold: float) -> np.ndarray:
        """Return the fraction of objects that have a proposal with an IoU of `threshold` or more: (K,)."""
        return (self.best_ious >= threshold).mean(0)

    def average_recall(self) -> np.ndarray:
        """Return the mean of the recall over all IoU thresholds from 0.5 to 1: (K,)."""
        return 2 * np.maximum(self.best_ious - 0.5, 0).mean(0)


def best_ious(proposals: np.ndarray, proposal_valid: np.ndarray, boxes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the IoU of each box with the best of the first k proposals of its image, for each k in `counts`.

    Args:
      proposals: (N, P, 4), best first if they are ranked.
      proposal_valid: (N, P).
      boxes: (N, M, 4).
      counts: (K,) from 1 to P.

    Returns:
      (N, M, K) float32; the rows of padded boxes have no meaning.
    """
    return np.asarray(_best_ious(*(jnp.asarray(a) for a in (proposals, proposal_valid, boxes, counts))))


@jax.jit
def _best_ious(proposals: jax.Array, proposal_valid: jax.Array, boxes: jax.Array, counts: jax.Array) -> jax.Array:
    def of_image(example: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        image_proposals, valid, image_boxes = example
        ious = jnp.where(valid, box_ops.iou(image_boxes, image_proposals), 0)
        return jax.lax.cummax(ious, axis=1)[:, counts - 1]
    return jax.lax.map(of_image, (proposals, proposal_valid, boxes))  # one image at a time bounds the memory


def proposal_recall(proposals: np.ndarray, proposal_valid: np.ndarray, targets: Mapping[str, np.ndarray],
                    counts: Sequence[int] | None = None) -> ProposalRecall:
    """Return how well proposals cover the objects of several images; difficult objects do not count.

    Args:
      proposals: (N, P, 4), best first if they are ranked.
      proposal_valid: (N, P), false for padding.
      targets: as in `data.targets.ObjectBoxes`: `boxes` (N, M, 4), `valid` (N, M) and, optionally, `difficult` (N, M).
      counts: numbers of proposals, to which P is added and from which larger ones are removed; by default up to 40 numbers
        from 1 to P, in a geometric series.
    """
    total = proposals.shape[1]
    numbers = np.rint(np.geomspace(1, total, 40)) if counts is None else np.asarray(counts)
    numbers = np.unique([*numbers[numbers <= total].astype(int), total])
    counted = targets['valid'] & ~targets.get('difficult', np.zeros_like(targets['valid']))
    ious = best_ious(proposals, proposal_valid, targets['boxes'], numbers)
    mean_counts = np.minimum(proposal_valid.sum(1)[:, None], numbers).mean(0)
    return ProposalRecall(numbers, mean_counts, ious[counted])


def best_proposals(proposals: np.ndarray, proposal_valid: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the best proposal of each box of an image, and their IoU.

    Args:
      proposals: (P, 4).
      proposal_valid: (P,).
      boxes: (M, 4).

    Returns:
      The proposals (M, 4) and the IoU (M,).
    """
    ious = np.where(proposal_valid, np.asarray(box_ops.iou(jnp.asarray(boxes), jnp.asarray(proposals))), 0)
    best = ious.argmax(1)
    return proposals[best], ious[np.arange(len(boxes)), best]


def draw_recall(path: str, recalls: Mapping[str, ProposalRecall]) -> None:
    """Draw recall over the IoU with all proposals, and recall at 0.5 and average recall over the number of proposals.

    Args:
      path: the PNG file.
      recalls: the recall of each method, by name.
    """
    names = [shortened(name, 90) for name in recalls]
    with open_figure(path, 15, 4.9 + 0.2 * len(names), texts=names, layout='constrained') as figure:
        over_iou, at_half, average = figure.subplots(1, 3)
        for index, (name, result) in enumerate(zip(names, recalls.values(), strict=True)):
            style: dict[str, Any] = {'label': name, 'color': f'C{index % 10}', 'linewidth': 1.6,
                                     'linestyle': _STYLES[index % len(_STYLES)]}
            over_iou.plot(IOU_THRESHOLDS, [result.recall(threshold)[-1] for threshold in IOU_THRESHOLDS], **style)
            at_half.plot(result.mean_counts, result.recall(0.5), **style)
            average.plot(result.mean_counts, result.average_recall(), **style)
        over_iou.set(xlabel='IoU threshold', ylabel='recall of all proposals', xlim=(0.5, 1), ylim=(0, 1.02))
        at_half.set(xlabel='proposals an image', ylabel='recall at an IoU of 0.5', xscale='log', ylim=(0, 1.02))
        average.set(xlabel='proposals an image', ylabel='average recall, IoU 0.5 to 1', xscale='log', ylim=(0, 1.02))
        for axis in (at_half, average):
            axis.xaxis.set_major_formatter('{x:g}')  # the default is a formula
        for axis in (over_iou, at_half, average):
            axis.grid(alpha=0.3)
        figure.legend(*over_iou.get_legend_handles_labels(), loc='outside lower center', fontsize=9, frameon=False)


def draw_best_proposals(path: str, images: np.ndarray, targets: Mapping[str, np.ndarray],
                        proposals: Mapping[str, tuple[np.ndarray, np.ndarray]], titles: Sequence[str]) -> None:
    """Draw the best proposal of each object, coloured by its IoU: a row for each image, and a column for each method.

    Args:
      path: the PNG file.
      images: uint8 (N, H, W, C) with 1 or 3 channels.
      targets: as for `proposal_recall`.
      proposals: `proposals` (N, P, 4) and `proposal_valid` (N, P) of each method, by name.
      titles: the title of each image.
    """
    height, width = images.shape[1:3]
    row_height = _IMAGE_WIDTH * height / width + 0.5
    with open_figure(path, len(proposals) * _IMAGE_WIDTH + 1, len(images) * row_height + 0.3, texts=[*titles, *proposals],
                     layout='constrained') as figure:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize
        axes = figure.subplots(len(images), len(proposals), squeeze=False)
        colours = ScalarMappable(Normalize(0, 1), 'viridis')
        for (row, column), axis in np.ndenumerate(axes):
            name, (boxes, valid) = [*proposals.items()][column]
            axis.imshow(images[row] if images.shape[-1] == 3 else images[row][..., 0], cmap='gray', vmin=0, vmax=255)
            axis.set_axis_off()
            objects = targets['boxes'][row][targets['valid'][row]]
            best, ious = best_proposals(boxes[row], valid[row], objects)
            _draw_pairs(axis, objects, best, colours.to_rgba(ious))
            recall = f'{(ious >= 0.5).sum()} of {len(ious)} objects at 0.5'
            axis.set_title(f'{shortened(name, 54)}\n{shortened(titles[row], 24)}: {recall}', fontsize=8)
        figure.colorbar(colours, ax=axes, label='IoU of the best proposal of an object (dashed: the box of the object)',
                        fraction=0.03)


def _draw_pairs(axis: Any, objects: np.ndarray, best: np.ndarray, colours: np.ndarray) -> None:
    """Draw the boxes of objects (n, 4), white and dashed, and their best proposals (n, 4) in their colours (n, 4)."""
    from matplotlib import patches, patheffects
    outline = [patheffects.withStroke(linewidth=2.6, foreground='black', alpha=0.6)]
    draw = functools.partial(patches.Rectangle, fill=False, path_effects=outline)
    dashed = {'edgecolor': 'white', 'linewidth': 0.9, 'linestyle': '--'}
    pairs = [*((box, dashed) for box in objects),
             *((box, {'edgecolor': colour, 'linewidth': 1.6}) for box, colour in zip(best, colours, strict=True))]
    for (x0, y0, x1, y1), settings in pairs:  # matplotlib counts from the centres of pixels
        axis.add_patch(draw((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, **settings))
