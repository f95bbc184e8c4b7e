"""The report of an evaluation: a page with figures, a table of all predictions, and all values as JSON."""

import csv
import json
import os
from collections.abc import Sequence

from jaxcnn.analysis import calibration as calibrations
from jaxcnn.analysis import figures
from jaxcnn.analysis.markdown import escape, figure, to_html
from jaxcnn.errors import UserError, counted
from jaxcnn.evaluation import comparison as comparisons
from jaxcnn.evaluation.result import CalibrationScores, Result
from jaxcnn.files import open_replacement
from jaxcnn.metrics import format_percent
from jaxcnn.tasks import Accumulated, Task


def make_folder(folder: str) -> None:
    """Make the folder of a report, with one for its figures.

    Raises:
      UserError: It cannot be made or written.
    """
    try:
        os.makedirs(os.path.join(folder, 'figures'), exist_ok=True)
    except OSError as e:
        raise UserError(f'{folder}: cannot be made: {e.strerror}', field='--report') from e
    if not os.access(folder, os.W_OK):
        raise UserError(f'{folder}: cannot be written', field='--report')


def write_report(result: Result, folder: str, task: Task, train_counts: Sequence[int]) -> str:
    """Write `report.md`, `report.html`, `predictions.csv`, `results.json` and the figures, and return the page's path.

    Args:
      result: the evaluation.
      folder: a folder from `make_folder`.
      task: the task of the runs.
      train_counts: the number of training images of each class.
    """
    text = '\n'.join([
        f'# {escape(result.title)}', '',
        f'Evaluated on the {result.split} split, {counted(result.predictions.num_images, "image")}.', '',
        '| | |', '|---|---|', f'| accuracy | {result.describe_accuracy()} |',
        *([] if result.top5 is None else [f'| top-5 | {format_percent(result.top5)} |']), '',
        f'The interval is the percentile bootstrap interval of {comparisons.BOOTSTRAP_SAMPLES:,} samples, seed '
        f'{comparisons.BOOTSTRAP_SEED}. `predictions.csv` holds the prediction for each image, '
        '`results.json` all values.', '',
        *_members(result), *_comparison(result), *_calibration(result, os.path.join(folder, 'figures')),
        *_classes(result, os.path.join(folder, 'figures'), task, train_counts)])
    write_predictions(result, os.path.join(folder, 'predictions.csv'))
    contents = {'report.md': text, 'report.html': to_html(text, result.title, folder),
                'results.json': json.dumps(result.values(), indent=1) + '\n'}
    for name, content in contents.items():
        with open_replacement(os.path.join(folder, name), errors='surrogateescape') as file:
            file.write(content)
    return os.path.join(folder, 'report.html')


def write_predictions(result: Result, path: str) -> None:
    """Write a CSV file with a row for each image: its path, its label, the predicted class and all probabilities.

    With several versions of the images, there is a row for each, and a column that names them.
    """
    predictions = result.predictions
    names, several = predictions.class_names, len(predictions.versions) > 1
    versions = [[version] if several else [] for version in predictions.versions for _ in range(predictions.num_images)]
    with open_replacement(path, newline='', errors='surrogateescape') as file:
        writer = csv.writer(file)
        writer.writerow(['image', *(['version'] if several else []), 'label', 'predicted', 'correct',
                         *(f'probability of {name}' for name in names)])
        for image, version, label, predicted, probabilities in zip(
                predictions.names, versions, predictions.labels, predictions.predicted, predictions.probabilities,
                strict=True):
            writer.writerow([image, *version, names[label], names[predicted] if predicted >= 0 else '',
                             int(label == predicted), *(f'{p:.6g}' for p in probabilities)])


def _members(result: Result) -> list[str]:
    """Return the section on the runs of an ensemble."""
    if len(result.members) < 2:
        return []
    return ['## Runs', '', f'The ensemble averages the {result.mean} of these runs.', '',
            '| run | checkpoint | weight | accuracy |', '|---|---|---|---|',
            *(f'| {escape(m.workdir)} | {m.step} | {m.weight:.3g} | {format_percent(m.accuracy)} |'
              for m in result.members), '']


def _comparison(result: Result) -> list[str]:
    """Return the section on the comparison with another run."""
    if result.comparison is None:
        return []
    text = result.describe_comparison()
    return ['## Comparison', '', f'{escape(text[:1].upper() + text[1:])}.', '']


def _calibration(result: Result, folder: str) -> list[str]:
    """Draw the reliability figures, and return the section on calibration."""
    columns = {'as predicted': ('reliability', result.calibration)}
    if result.temperature is not None and result.scaled_calibration is not None:
        title = f'temperature {result.temperature:.4f}'
        columns[title] = 'reliability_with_temperature', result.scaled_calibration
    lines = ['## Calibration', '']
    for title, (name, scores) in columns.items():
        with figures.warn_on_error(path := os.path.join(folder, f'{name}.png')):
            calibrations.reliability_diagram(scores.bins, path, title)
        lines += [figure(folder, name), '']
    if result.temperature is not None:
        lines += ['The temperature, by which the logits are divided, minimises the negative log likelihood of '
                  f'{counted(result.num_validation, "validation image")}. It changes no predicted class.', '']
    return [*lines, f'| | {" | ".join(columns)} |', f'|---|{"---|" * len(columns)}',
            *_score_rows([scores for _, scores in columns.values()]), '']


def _score_rows(scores: Sequence[CalibrationScores]) -> list[str]:
    """Return the rows of a table of calibration scores, with a column for each of `scores`."""
    rows = {f'expected calibration error, {calibrations.BINS} bins': [format_percent(s.bins.ece) for s in scores],
            'largest error of a bin': [format_percent(s.bins.max_error) for s in scores],
            'Brier score': [f'{s.brier_score:.4f}' for s in scores],
            'negative log likelihood': [f'{s.negative_log_likelihood:.4f}' for s in scores]}
    return [f'| {name} | {" | ".join(cells)} |' for name, cells in rows.items()]


def _classes(result: Result, folder: str, task: Task, train_counts: Sequence[int]) -> list[str]:
    """Return the section with precision, recall and F1 of each class, and the confusion matrix."""
    split_name = {'val': 'validation', 'train': 'training'}.get(result.split, result.split)
    sections = task.report(Accumulated({'confusion': result.confusion}, {}), train_counts, split_name, folder)
    return [line for section in sections for line in (f'## {section.title}', '', *section.lines, '')]
