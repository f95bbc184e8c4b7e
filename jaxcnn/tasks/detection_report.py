"""The sections of a run's report that show how well a detector works."""

import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxcnn.data.split import Split
from jaxcnn.detection_metrics import DetectionScores
from jaxcnn.metrics import format_percent
from jaxcnn.tasks.base import Section

_MAX_IMAGES = 12  # on the sheet of the worst images
_MAX_FALSE = 12  # false detections that are drawn in an image, so that those of an untrained network do not hide it
_MAX_CLASSES = 4  # in a row of the table of errors


def report_sections(scores: DetectionScores, class_names: Sequence[str], train_counts: Sequence[int], split: str,
                    folder: str) -> list[Section]:
    """Write the figures of an evaluation, and return the sections that show them.

    Args:
      scores: the detections and the true boxes of the split.
      class_names: the names of the classes.
      train_counts: number of training images that show each class.
      split: name of the split in the report, `test` or `validation`.
      folder: folder for the figures.
    """
    threshold = scores.best_threshold()
    return [_classes_section(scores, class_names, train_counts, split, folder, threshold),
            _errors_section(scores, class_names, split, folder, threshold)]


def _classes_section(scores: DetectionScores, class_names: Sequence[str], train_counts: Sequence[int], split: str,
                     folder: str, threshold: float) -> Section:
    from jaxcnn.analysis import detection_errors, detection_figures, figures
    from jaxcnn.analysis.markdown import escape, figure
    with figures.warn_on_error(path := f'{folder}/precision_recall.png'):
        detection_figures.precision_recall(scores.curves(), class_names, threshold, path)
    with figures.warn_on_error(path := f'{folder}/confusion_matrix.png'):
        confusion = detection_errors.confusion_matrix(scores.above(threshold))
        figures.confusion_matrix(confusion, [*class_names, 'background'], path)
    rows = zip(map(escape, class_names), scores.average_precisions(0.5).tolist(), scores.average_precisions(0.75).tolist(),
               scores.above(threshold).per_class(), train_counts, strict=True)
    table = sorted(rows, key=lambda row: (not row[3]['support'], row[1]))
    return Section(f'{split.capitalize()} part, by class', [
        f'Precision, recall and F1 are those of the detections with a score of at least {threshold:.2f}, the threshold with '
        'the largest F1 over all classes on this part, at an IoU of 0.5. Difficult boxes are not counted.', '',
        'The classes are sorted by average precision (AP), worst first; those without boxes come last.', '',
        f'| class | AP@0.5 | AP@0.75 | precision | recall | F1 | {split} boxes | training images |',
        '|---|---|---|---|---|---|---|---|',
        *(f'| {name} | {_percent(ap50)} | {_percent(ap75)} | {_percent(r["precision"])} | {_percent(r["recall"])} | '
          f'{r["f1"]:.4f} | {r["support"]} | {count} |' for name, ap50, ap75, r, count in table), '',
        figure(folder, 'precision_recall'), '',
        'In the confusion matrix, the row `background` counts detections that match no box, and the column `background` '
        'boxes that no detection matches.', '',
        figure(folder, 'confusion_matrix'), '',
        "COCO's figures, in which sizes are in pixels of the images that the network gets:", '',
        f'| {" | ".join(scores.coco)} |', '|---' * len(scores.coco) + '|',
        f'| {" | ".join(map(_percent, scores.coco.values()))} |'])


def _errors_section(scores: DetectionScores, class_names: Sequence[str], split: str, folder: str,
                    threshold: float) -> Section:
    from jaxcnn.analysis import detection_errors, detection_figures, figures
    from jaxcnn.analysis.markdown import escape, figure
    used = scores.above(threshold)
    counts = detection_errors.count_errors(used, detection_errors.find_errors(used))
    gains = detection_errors.possible_gains(scores, detection_errors.find_errors(scores))
    with figures.warn_on_error(path := f'{folder}/detection_errors.png'):
        detection_figures.error_kinds(counts.sum(1), gains, threshold, path)

    def frequent_classes(of_class: np.ndarray) -> str:
        classes = [c for c in np.argsort(-of_class, kind='stable')[:_MAX_CLASSES] if of_class[c]]
        return ', '.join(f'{escape(class_names[c])} {of_class[c]:,}' for c in classes)
    return Section(f'{split.capitalize()} part, kinds of errors', [
        f'The numbers are those of the detections with a score of at least {threshold:.2f} and of the boxes that none of '
        'them matches. The rise is that of mAP@0.5, in percentage points, if all errors of a kind were repaired, with all '
        'detections (Bolya et al. 2020).', '',
        '| error | meaning | number | most frequent classes | rise of mAP@0.5 |', '|---|---|---|---|---|',
        *(f'| {kind} | {_MEANINGS[kind]} | {of_class.sum():,} | {frequent_classes(of_class)} | {100 * gain:.2f} |'
          for kind, of_class, gain in zip(detection_errors.ERROR_KINDS, counts, gains, strict=True)), '',
        figure(folder, 'detection_errors')])


_MEANINGS = {'localisation': 'right class, IoU from 0.1 to 0.5', 'class': 'wrong class, IoU of at least 0.5',
             'both': 'wrong class, IoU from 0.1 to 0.5', 'duplicate': 'another detection has matched the box',
             'background': 'IoU below 0.1 with every box', 'missed': 'a box without a detection near it'}


def mistakes_sections(scores: DetectionScores, class_names: Sequence[str], examples: Split,
                      image_name: Callable[[int], str], split: str, folder: str,
                      prepare: Callable[[np.ndarray], np.ndarray]) -> list[Section]:
    """Draw the images with the worst detections, and return the section that shows them; none if there are no errors.

    Args:
      scores: the detections and the true boxes of the split.
      class_names: the names of the classes.
      examples: the split.
      image_name: returns the name of the image at a position in the split.
      split: name of the split in the report, `test` or `validation`.
      folder: folder for the figure.
      prepare: see `tasks.Task.report_mistakes`.
    """
    from jaxcnn.analysis import box_figures, detection_errors, figures
    from jaxcnn.analysis.markdown import escape, figure
    threshold = scores.best_threshold()
    used = scores.above(threshold)
    positions = detection_errors.worst_images(used, _MAX_IMAGES).indices
    if not len(positions):
        return []
    errors, image_errors = detection_errors.find_errors(used), detection_errors.image_errors(used)
    undetected, false = image_errors.is_undetected.sum(1), image_errors.is_false.sum(1)
    names = [image_name(i) for i in positions]
    with figures.warn_on_error(path := f'{folder}/worst_images.png'):
        texts = np.array([*detection_errors.ERROR_KINDS, ''])[errors.kinds]
        is_drawn = used.is_detected & (~image_errors.is_false | (image_errors.is_false.cumsum(1) <= _MAX_FALSE))
        detections = {**used.detections, 'valid': is_drawn, 'errors': texts}
        truth = {**used.truth, 'undetected': image_errors.is_undetected}
        box_figures.draw_detections(
            path, prepare(examples.take(positions)), _at(detections, positions), _at(truth, positions), class_names,
            [f'{os.path.basename(name)}: {undetected[i]} missed, {false[i]} false'
             for name, i in zip(names, positions, strict=True)])
    return [Section('The worst images', [
        f'These images of the {split} part have the most boxes without a correct detection and the most confident false '
        f'detections with a score of at least {threshold:.2f}. Dashed white boxes are those of the labels, thick ones '
        'without a correct detection. Solid boxes are detections; wrong ones have a label with the score and the kind of '
        f'error, and at most {_MAX_FALSE} of them are drawn in an image. Some may be errors of the labels.', '',
        figure(folder, 'worst_images'), '',
        '| image | boxes without a correct detection | false detections | boxes |', '|---|---|---|---|',
        *(f'| {escape(name)} | {undetected[i]} | {false[i]} | {used.is_required[i].sum()} |'
          for name, i in zip(names, positions, strict=True))])]


def _at(arrays: Mapping[str, np.ndarray], positions: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values[positions] for name, values in arrays.items()}


def _percent(value: float) -> str:
    return 'no boxes' if np.isnan(value) else format_percent(value)
