"""The report on the robustness of a run: a page with tables and figures, and all values as JSON and CSV."""

import csv
import os
from collections.abc import Sequence

import numpy as np

from jaxcnn.analysis import markdown
from jaxcnn.analysis.figures import warn_on_error
from jaxcnn.analysis.markdown import escape, figure
from jaxcnn.errors import counted
from jaxcnn.files import open_replacement
from jaxcnn.metrics import format_percent
from jaxcnn.robustness import figures
from jaxcnn.robustness.evaluate_attacks import worst_outcome
from jaxcnn.robustness.masking import MaskingReport
from jaxcnn.robustness.result import AttackResults, CorruptionResults, OutlierResults, Result
from jaxcnn.robustness.threat import format_eps

EXAMPLES = 8  # attacked images in the figure


def write_report(result: Result, folder: str, class_names: Sequence[str]) -> str:
    """Write `robustness.md`, `.html`, `.json` and `.csv` and the figures, and return the path of the page.

    Args:
      result: the results.
      folder: the folder, which exists.
      class_names: names of the classes.
    """
    figure_folder = os.path.join(folder, 'figures')
    os.makedirs(figure_folder, exist_ok=True)
    lines = [f'# Robustness of {escape(result.title)}', '',
             f'Checkpoint {result.step} of `{result.workdir}`, {counted(result.count, "image")} of the {result.split} '
             f'split, seed {result.seed}. Accuracy on them: {format_percent(result.accuracy)}.', '']
    if result.attacks:
        lines += attack_lines(result.attacks, figure_folder, class_names)
    if result.masking:
        lines += masking_lines(result.masking, figure_folder)
    if result.corruptions:
        lines += corruption_lines(result.corruptions, figure_folder)
    if result.outliers:
        lines += outlier_lines(result.outliers, figure_folder)
    with open_replacement(os.path.join(folder, 'robustness.csv'), newline='', errors='surrogateescape') as file:
        csv.writer(file).writerows([['test', 'name', 'setting', 'metric', 'value'], *result.rows()])
    return markdown.write_report(folder, 'robustness', result.title, lines, result.values())


def attack_table(results: AttackResults) -> list[list[str]]:
    """Return the table of the rates: a row for each attack, and for the worst case if there are several."""
    rows = [[results.rate_name, '0', *map(format_eps, results.eps)]]
    before = format_percent(results.rate(results.reached_before))
    rows += [[outcomes[0].attack, before, *(format_percent(results.rate(o.reached)) for o in outcomes)]
             for outcomes in results.outcomes]
    if len(results.outcomes) > 1:
        worst = [format_percent(results.rate(results.worst(i))) for i in range(len(results.eps))]
        rows.append(['worst case', before, *worst])
    return rows


def attack_lines(results: AttackResults, folder: str, class_names: Sequence[str]) -> list[str]:
    """Draw the figures of attacks, and return their section."""
    norm = {'linf': 'L∞', 'l2': 'L2'}[results.threat.norm]
    aim = ('The robust accuracy is the fraction of images whose label the network still predicts'
           if not results.target else f'The attacks aim at a class ({escape(results.target)}). The success rate is the '
           'fraction of images for which the network predicts it; images of that class are left out')
    eps = [0.0, *results.eps]
    rates = {outcomes[0].attack: [results.rate(results.reached_before), *(results.rate(o.reached) for o in outcomes)]
             for outcomes in results.outcomes}
    with warn_on_error(path := os.path.join(folder, 'attacks.png')):
        figures.accuracy_curves(eps, rates, results.rate_name, results.threat.norm, path)
    lines = ['## Attacks', '', f'{aim}. The columns are the largest {norm} norm of the change of an image with values in '
             '[0, 1].', '', *markdown.table(attack_table(results)),
             figure(folder, 'attacks', f'{results.rate_name} under each attack over the size of the change'), '']
    for outcomes in results.outcomes:
        if len(outcomes[0].by_stage) > 1:
            stages = list(outcomes[0].by_stage)
            lines += [f'Images that each stage of `{outcomes[0].attack}` has added:', '', *markdown.table(
                [['eps', *stages], *([format_eps(o.eps), *(str(o.by_stage.get(s, 0)) for s in stages)]
                                     for o in outcomes)])]
            if outcomes[0].attack.startswith('auto'):
                lines += ['An image that a smaller change breaks counts as broken by larger ones, and is not attacked '
                          'again.', '']
    worst = worst_outcome(results.outcomes)
    rows = np.flatnonzero(worst.reached & ~results.reached_before)[:EXAMPLES]
    if len(rows):
        before, after = ([class_names[c] for c in predicted[rows]]
                         for predicted in (results.predicted, results.attacked_predictions))
        with warn_on_error(path := os.path.join(folder, 'attacked_images.png')):
            figures.attacked_sheet(results.images.pixels[rows], worst.images[rows], before, after, path)
        lines += [f'Images that `{worst.attack}` has broken, eps {format_eps(worst.eps)}, with the '
                  'predicted classes:', '',
                  figure(folder, 'attacked_images', 'images, their changes, and the attacked images'), '']
    return lines


def masking_lines(report: MaskingReport, folder: str) -> list[str]:
    """Draw the loss along an attack, and return the section on masked gradients."""
    with warn_on_error(path := os.path.join(folder, 'loss.png')):
        figures.loss_curve(report.losses, report.eps, path)
    text = ('A network whose gradients mislead attacks looks more robust than it is (Athalye et al. 2018, Carlini et al. '
            f'2019). The rates are of images that an attack of size {format_eps(report.eps)} breaks, among those that were '
            'right. A suspicious check asks for other attacks; it proves nothing by itself.')
    return ['## Masked gradients', '', text, '',
            *markdown.table([['check', 'result', 'numbers'],
                             *([check.name, check.verdict, check.numbers] for check in report.checks)]),
            figure(folder, 'loss', 'mean loss along projected gradient ascent'), '']


def corruption_table(results: CorruptionResults) -> list[list[str]]:
    """Return the table of the errors: a row for each kind, with the mean over several severities and, with a reference,
    the ratio to its error."""
    errors, reference = results.errors, results.reference
    several = len(errors.severities) > 1  # otherwise the mean over them would repeat the column
    head = ['error', *(f'severity {severity}' for severity in errors.severities), *['mean'] * several]
    rows = [[kind.replace('_', ' '), *map(format_percent, values), *[format_percent(errors.mean_error(kind))] * several]
            for kind, values in errors.errors.items()]
    means = [format_percent(float(np.mean([values[i] for values in errors.errors.values()])))
             for i in range(len(errors.severities))]
    rows.append(['mean', *means, *[format_percent(errors.mean)] * several])
    if reference:
        ratios = errors.corruption_errors(reference)
        relative = errors.relative_errors(reference)
        head += ['CE', 'relative CE']
        for row, kind in zip(rows, ratios, strict=False):
            row += [format_percent(ratios[kind]), '' if np.isnan(relative[kind]) else format_percent(relative[kind])]
        is_defined = not np.isnan(list(relative.values())).any()
        rows[-1] += [format_percent(float(np.mean(list(ratios.values())))),
                     format_percent(float(np.mean(list(relative.values())))) if is_defined else '']
    return [head, *rows]


def corruption_lines(results: CorruptionResults, folder: str) -> list[str]:
    """Draw the figures of corruptions, and return their section."""
    errors = results.errors
    with warn_on_error(path := os.path.join(folder, 'corruptions.png')):
        figures.corruption_table(errors, path)
    with warn_on_error(path := os.path.join(folder, 'corrupted_image.png')):
        figures.corruption_sheet(results.example, results.corrupted_examples, errors.severities, path)
    source = {'cifar': 'CIFAR-10-C', 'imagenet': 'ImageNet-C'}[errors.constants]
    text = (f'The corruptions of {source} (Hendrycks & Dietterich 2019), on the images as the network gets them, in bytes. '
            f'Error without corruption: {format_percent(errors.clean)}.')
    if 'frost' in errors.errors:
        text += ' Frost is drawn at random instead of taken from the photographs of the benchmark.'
    lines = ['## Corruptions', '', text, '']
    if results.reference:
        lines += [f'CE is the mean error over severities as a fraction of that of {escape(results.reference.name)}, and its '
                  'mean is the mCE; relative CE is the same for the rise over the error without corruption.', '']
    return [*lines, *markdown.table(corruption_table(results)),
            figure(folder, 'corruptions', 'error for each kind of corruption and each severity'), '',
            'The first image with each corruption:', '',
            figure(folder, 'corrupted_image', 'the first image with each corruption'), '']


def outlier_table(results: OutlierResults) -> list[list[str]]:
    """Return the table of the scores with their metrics."""
    return [['score', 'AUROC', 'AUPR in', 'AUPR out', 'FPR at 95 % TPR'],
            *([s.score, *map(format_percent, s.values().values())] for s in results.separations)]


def outlier_lines(results: OutlierResults, folder: str) -> list[str]:
    """Draw the histograms of scores, and return the section on images of other kinds."""
    with warn_on_error(path := os.path.join(folder, 'outliers.png')):
        figures.score_histograms(results.separations, 'this run', results.name, path)
    others = f'{counted(results.count, "image")} of {escape(results.name)}'
    text = (f'How well scores tell {others} from those of the run. AUROC is the probability that an image of the run has '
            'the larger score; AUPR in and out are average precisions with images of the run, and with the others, as '
            'positives; the last column is the fraction of the others that pass a threshold that 95 % of the images of the '
            'run pass.')
    return ['## Images of other kinds', '', text, '', *markdown.table(outlier_table(results)),
            figure(folder, 'outliers', 'histograms of each score for images of both kinds'), '']
