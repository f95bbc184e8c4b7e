"""The report of a run, for readers who have not followed it."""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from jaxcnn import config as cfg
from jaxcnn.analysis import figures
from jaxcnn.analysis.markdown import escape, figure, to_html
from jaxcnn.data import layouts
from jaxcnn.data.dataset import Dataset
from jaxcnn.errors import counted, name_file
from jaxcnn.experiment import Experiment
from jaxcnn.metrics import LOSS
from jaxcnn.tasks import Accumulated
from jaxcnn.timeline import displayed_epoch
from jaxcnn.training.initialize import FILE_NAME as INITIAL_WEIGHTS
from jaxcnn.training.workdir import SPARSITY

_MAX_ROWS = 20  # of the table of initial weights
_SPLIT_NAMES = {'test': 'test', 'val': 'validation'}


def write_report(workdir: str, experiment: Experiment, summary: Mapping[str, Any], rows: Sequence[Mapping[str, float]],
                 split: str, accumulated: Accumulated, dataset: Dataset | None = None) -> None:
    """Write `report.md`, its figures, and `report.html`, which holds them, into the workdir.

    Args:
      workdir: the folder of the run.
      experiment: the objects that the run's config describes.
      summary: the content of `summary.json`.
      rows: the rows of `metrics.jsonl`.
      split: the split that is shown in detail: `test`, or `val` if there is no test split.
      accumulated: the evaluation of this split.
      dataset: data set of the run, of which the worst mistakes are shown; None: they are not shown.
    """
    config, info, folder = experiment.config, experiment.info, os.path.join(workdir, 'figures')
    draw_curves(workdir, experiment, rows)
    task, split_name = experiment.task, _SPLIT_NAMES[split]
    sections = task.report(accumulated, info['class_counts'], split_name, folder)
    if dataset:
        sections += task.report_mistakes(accumulated, dataset.splits[split], functools.partial(dataset.image_name, split),
                                         split_name, folder, experiment.preprocessor.uint8_pixels)
    lines = [
        *_introduction(experiment, summary),
        '| | |', '|---|---|', *_table_of_metrics(experiment, summary), *_table_of_resources(config, summary), '',
        '## Curves', '', figure(folder, 'curves'), '',
        *_initial_weights(workdir),
        *_pruning(workdir, config.pruning, summary),
        *_teachers(experiment, summary),
        *(line for section in sections for line in (f'## {section.title}', '', *section.lines, '')),
        '## The first training batch, augmented, not normalised', '', figure(folder, 'first_batch'), '',
        '## Config', '', 'Fields that differ from their defaults (all of them: `config.json`):', '',
        '```', _changed_fields(config), '```', '',
        '## Versions', '', '```', json.dumps(summary['versions']), '```', '',
    ]
    text = '\n'.join(lines)
    title = f'{summary["model"]} on {_data_name(config.data)}'
    for name, content in (('report.md', text), ('report.html', to_html(text, title, workdir))):
        path = os.path.join(workdir, name)
        with name_file(path), open(path, 'w', encoding='utf-8') as f:
            f.write(content)


def draw_curves(workdir: str, experiment: Experiment, rows: Sequence[Mapping[str, float]]) -> None:
    """Draw the loss, the metric that selects the best checkpoint and the learning rate, as `figures/curves.png`.

    Args:
      workdir: the folder of the run.
      experiment: the objects that the run's config describes.
      rows: the rows of `metrics.jsonl`.
    """
    with figures.warn_on_error(path := os.path.join(workdir, 'figures', 'curves.png')):
        metric = experiment.best.metric
        figures.curves(rows, [LOSS, experiment.task.main_metric if metric == LOSS else metric],
                       list(experiment.measurements(tta=False).values()), path)


def _introduction(experiment: Experiment, summary: Mapping[str, Any]) -> list[str]:
    """Return the heading, and paragraphs that say what was trained and which checkpoint is shown."""
    config, data_name = experiment.config, _data_name(experiment.config.data)
    checkpoint = f'the last checkpoint, step {summary["best_step"]}'
    if summary.get(experiment.best.name) is not None and experiment.best.split == 'val':
        checkpoint = (f'the best of the evaluated checkpoints by `{experiment.best.name}`, step {summary["best_step"]}')
    without_tta = ''
    if experiment.preprocessor.tta is not None:
        without_tta = (f'; curves and results by class are without the test-time augmentation {escape(config.eval.tta)}, '
                       'which predictions use')
    skipped, boxes = (', '.join(f'{count} of {split}' for split, count in experiment.info.get(name, {}).items() if count)
                      for name in ('broken', 'wrong_boxes'))
    return [
        f'# {summary["model"]} on {data_name}', '',
        *([f'Name of the run: {escape(summary["name"])}.', ''] if summary['name'] else []),
        f'{summary["model"]} ({summary["params"]:,} parameters) on {data_name}, seed {summary["seed"]}: '
        f'{counted(summary["steps"], "step")}, {displayed_epoch(summary["epochs"], config.duration):.2f} epochs, '
        f'on {summary["num_devices"]} x {summary["device"]}.',
        f'Results are those of {checkpoint}{without_tta}.', '',
        *([f'Skipped images, which could not be read: {skipped}.', ''] if skipped else []),
        *([f'Boxes without an area or outside their image, which were left out or clipped: {boxes}.', ''] if boxes else []),
    ]


def _initial_weights(workdir: str) -> list[str]:
    """Return the section on the weights that the run started from; nothing if it started from random ones."""
    path = os.path.join(workdir, INITIAL_WEIGHTS)
    if not os.path.exists(path):
        return []
    with open(path, encoding='utf-8') as file:
        table = json.load(file)
    titles = {'taken': 'taken', 'left': 'left at their initialisation', 'unused': 'not used'}
    lines = [
        '## Initial weights', '', f'The run started from {escape(table["source"])}, SHA-256 `{table["checksum"]}`.', '',
        '| | parameters and statistics | numbers |', '|---|---|---|',
        *(f'| {title} | {len(table[key])} | {sum(math.prod(row["shape"]) for row in table[key]):,} |'
          for key, title in titles.items()), '']
    rows = [(row, titles[key]) for key in ('left', 'unused') for row in table[key]]
    if rows:
        lines += ['| name | shape | |', '|---|---|---|']
        for row, title in rows[:_MAX_ROWS]:
            shape, reason = ' x '.join(map(str, row['shape'])), row.get('reason')
            lines.append(f'| {escape(row["name"])} | {shape} | {title}{f": {escape(reason)}" if reason else ""} |')
        lines.append('')
    return [*lines, f'`{INITIAL_WEIGHTS}` holds the complete table.', '']


def _pruning(workdir: str, pruning: cfg.PruningConfig | None, summary: Mapping[str, Any]) -> list[str]:
    """Return the section on the sparsity of the layers; nothing if the run was not pruned."""
    if pruning is None:
        return []
    with open(os.path.join(workdir, SPARSITY), encoding='utf-8') as file:
        layers = json.load(file)['layers']
    source = f'by {pruning.method}' if not pruning.masks else f'with the masks of {escape(pruning.masks)}'
    lines = ['## Pruning', '', f'{summary["sparsity"]:.1%} of the weights of these layers are zero, {source}; of all '
             f'{summary["params"]:,} parameters, {summary["nonzero_params"]:,} are not.', '',
             '| parameter | shape | weights | sparsity |', '|---|---|---|---|']
    for layer in layers:
        size = math.prod(layer['shape'])
        lines.append(f'| {escape(layer["name"])} | {" x ".join(map(str, layer["shape"]))} | {size:,} | '
                     f'{1 - layer["nonzero"] / size:.1%} |')
    return [*lines, '']


def _teachers(experiment: Experiment, summary: Mapping[str, Any]) -> list[str]:
    """Return the section on the teachers of the run; nothing without `config.distillation`."""
    teachers = summary.get('teachers')
    if teachers is None:
        return []
    runs = teachers['runs']
    metrics = [m for m in experiment.measurements(tta=False).values() if not m.ema and m.name in teachers
               and m.metric in experiment.displayed_metrics()]
    name = 'the teacher' if len(runs) == 1 else f'the mean of the {len(runs)} teachers'
    return [
        '## Teachers', '', 'The run has learnt from these networks.', '',
        '| workdir | network | parameters | checkpoint | weight |', '|---|---|---|---|---|',
        *(f'| {escape(run["workdir"])} | {run["model"]} | {run["params"]:,} | {run["checkpoint"]} | {run["weight"]:.3g} |'
          for run in runs), '',
        f'| | {name} | this run |', '|---|---|---|',
        *(f'| {dataclasses.replace(m, split=_SPLIT_NAMES[m.split]).title} | {m.metric.format(teachers[m.name])} | '
          f'{m.metric.format(summary.get(m.name))} |' for m in metrics), '']


def _data_name(config: cfg.DataConfig) -> str:
    """Return the name of the data set; for a layout of files, the name of its folder or file with the layout."""
    if config.name not in layouts.GENERIC_LAYOUTS:
        return escape(config.name)
    return escape(f'{os.path.basename(os.path.abspath(config.dir))} ({config.name})')


def _table_of_metrics(experiment: Experiment, summary: Mapping[str, Any]) -> list[str]:
    """Return a row for each measurement: the test split before the validation split, and both before the averages and the
    test-time augmentation."""
    measurements = experiment.measurements(tta=experiment.preprocessor.tta is not None).values()
    order = {metric: i for i, metric in enumerate(experiment.displayed_metrics())}
    displayed = [m for m in measurements if m.metric in order and (
        summary.get(m.name) is not None or not (m.ema or m.tta))]
    displayed.sort(key=lambda m: (m.ema or m.tta, m.split != 'test', order[m.metric]))
    return [f'| {dataclasses.replace(m, split=_SPLIT_NAMES[m.split]).title} | {m.metric.format(summary.get(m.name))} |'
            for m in displayed]


def _table_of_resources(config: cfg.Config, summary: Mapping[str, Any]) -> list[str]:
    """Return rows with the training loss, the speed, the time and the memory of the run."""
    peak_memory = ', '.join(f'{summary[f"peak_{memory}_bytes"] / 1e9:.2f} GB of the {memory}'
                            for memory in ('host', 'device') if summary[f'peak_{memory}_bytes'] is not None)
    terms = [name for name, term in (('distillation', config.distillation), ('TRADES', config.trades)) if term]
    included = f' including {" and ".join(terms)},' if terms else ''
    return [
        f'| training loss,{included} last interval | {LOSS.format(summary["train_loss"])} |',
        f'| images/s in training | {_format_number(summary["images_per_second"], 0)} |',
        f'| wall time | {_format_number(summary["wall_seconds"], 1)} s, of which training steps '
        f'{_format_number(summary["train_seconds"], 1)} s |',
        f'| peak memory | {peak_memory} |',
    ]


def _format_number(value: float | None, digits: int) -> str:
    return 'not measured' if value is None else f'{value:,.{digits}f}'


def _changed_fields(config: cfg.Config) -> str:
    """Return the fields of the config that differ from their defaults, one a line."""
    return '\n'.join(f'{change.field} = {change.new!r}' for change in cfg.differences(cfg.Config(), config, all_fields=True))
