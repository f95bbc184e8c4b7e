"""Figures of the evaluation of detections."""

from collections.abc import Sequence

import numpy as np

from jaxcnn.analysis.detection_errors import ERROR_KINDS
from jaxcnn.analysis.figures import MAX_CURVES, open_figure, shortened
from jaxcnn.detection_metrics import Curve


def precision_recall(curves: Sequence[Curve], class_names: Sequence[str], threshold: float, path: str) -> None:
    """Draw the precision over the recall of each class; of more than `MAX_CURVES` classes, those with the most boxes.

    Args:
      curves: the curve of each class.
      class_names: the names in the order of the classes.
      threshold: a threshold of scores, which a dot on each curve marks.
      path: the PNG file.
    """
    classes = [c for c in sorted(range(len(curves)), key=lambda c: -curves[c].num_boxes)[:MAX_CURVES] if curves[c].num_boxes]
    names = [shortened(class_names[c]) for c in classes]
    title = 'precision and recall by class at an IoU of 0.5'
    if len(classes) < len(class_names):
        title = f'precision and recall of the {len(classes)} most frequent of {len(class_names):,} classes at an IoU of 0.5'
    with open_figure(path, 10, 5, names, layout='constrained') as figure:
        axis = figure.subplots()
        for c, name in zip(classes, names, strict=True):
            curve = curves[c]
            recall, precision = curve.recall, curve.precision
            line, = axis.plot(np.append(0, recall), np.append(precision[:1] if len(precision) else 0, precision),
                              label=f'{name} (AP {100 * curve.average_precision():.1f} %)', linewidth=1.3)
            above = np.count_nonzero(curve.scores >= threshold)
            if above:
                axis.plot(recall[above - 1], precision[above - 1], 'o', color=line.get_color(), markersize=6)
        axis.plot([], [], 'o', color='grey', markersize=6, label=f'score of at least {threshold:.2f}')
        axis.set(xlabel='recall', ylabel='precision', xlim=(0, 1.01), ylim=(0, 1.05), title=title)
        axis.grid(alpha=0.3)
        axis.legend(loc='upper left', bbox_to_anchor=(1.01, 1))  # beside the curves, which fill the axes


def error_kinds(counts: np.ndarray, gains: np.ndarray, threshold: float, path: str) -> None:
    """Draw the number of errors of each kind, and by how much the mean average precision would rise without them.

    Args:
      counts: (kinds,) the numbers.
      gains: (kinds,) the rises, as fractions.
      threshold: the threshold of scores above which errors are counted.
      path: the PNG file.
    """
    with open_figure(path, 10, 3.2, layout='constrained') as figure:
        panels = figure.subplots(1, 2, sharey=True)
        titles = f'errors with a score of at least {threshold:.2f}', 'rise of mAP@0.5 without the errors'
        labels = [f'{count:,}' for count in counts.tolist()], [f'{100 * gain:.2f}' for gain in gains]
        for axis, values, title, texts in zip(panels, (counts, 100 * gains), titles, labels, strict=True):
            bars = axis.barh(ERROR_KINDS, values, color='#56B4E9', edgecolor='black', linewidth=0.6)
            axis.bar_label(bars, texts, padding=3, fontsize=9)
            axis.set(title=title, xlim=(min(0, 1.15 * values.min()), max(1.15 * values.max(), 1e-6)))
            axis.grid(axis='x', alpha=0.3)
            axis.set_axisbelow(True)
        panels[0].set_xlabel('detections or boxes')
        panels[1].set_xlabel('percentage points')
        panels[0].invert_yaxis()
