"""The report of a run, for someone who was not there."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from jaxcnn import config as cfg
from jaxcnn.analysis import figures
from jaxcnn.analysis.markdown import escape, figure
from jaxcnn.data import layouts
from jaxcnn.errors import counted, name_file
from jaxcnn.experiment import Experiment
from jaxcnn.metrics import LOSS, Measurement
from jaxcnn.tasks import Accumulated
from jaxcnn.timeline import displayed_epoch


def _number(value: float | None, digits: int = 4) -> str:
    return 'not measured' if value is None else f'{value:,.{digits}f}'


def _changed_fields(config: cfg.Config) -> str:
    """What of the config differs from its defaults."""
    return '\n'.join(f'{change.field} = {change.new!r}' for change in cfg.differences(cfg.Config(), config, all_fields=True))


def _data_name(config: cfg.DataConfig) -> str:
    """The data set; of a person's own images the folder or file, with its layout."""
    if config.name not in layouts.GENERIC_LAYOUTS:
        return escape(config.name)
    return escape(f'{os.path.basename(os.path.abspath(config.dir))} ({config.name})')


def write_report(workdir: str, experiment: Experiment, summary: Mapping[str, Any], rows: Sequence[Mapping[str, float]],
                 split: str, accumulated: Accumulated) -> None:
    """Write `report.md` and the figures it shows into the workdir.

    Args:
      workdir: of the run.
      experiment: of the run.
      summary: as in `summary.json`.
      rows: of `metrics.jsonl`.
      split: the part that is shown in detail: `test`, or `val` where there is none.
      accumulated: of that part.
    """
    config, info, folder = experiment.config, experiment.info, os.path.join(workdir, 'figures')
    data_name = _data_name(config.data)
    skipped = [f'{count} of {name}' for name, count in info['broken'].items() if count]
    with figures.failing_is_a_warning(path := os.path.join(folder, 'curves.png')):
        by = experiment.best.metric
        figures.curves(rows, [LOSS, experiment.task.main_metric if by == LOSS else by],
                       list(experiment.measurements(tta=False).values()), path)
    part = {'test': 'test', 'val': 'validation'}[split]
    sections = experiment.task.report(accumulated, info['class_counts'], part, folder)
    validated = summary[Measurement('val', LOSS).name] is not None
    checkpoint = (f'the best of the evaluated checkpoints by `{experiment.best.name}`, step {summary["best_step"]}'
                  if validated else f'the last checkpoint, step {summary["best_step"]}')
    peak_memory = ', '.join(f'{summary[f"peak_{memory}_bytes"] / 1e9:.2f} GB of the {memory}'
                            for memory in ('host', 'device') if summary[f'peak_{memory}_bytes'] is not None)
    lines = [
        f'# {summary["model"]} on {data_name}', '',
        *([f'Name of the run: {escape(summary["name"])}.', ''] if summary['name'] else []),
        f'{summary["model"]} ({summary["params"]:,} parameters) on {data_name}, seed {summary["seed"]}: '
        f'{counted(summary["steps"], "step")}, {displayed_epoch(summary["epochs"], config.duration):.2f} epochs, '
        f'on {summary["num_devices"]} x {summary["device"]}.',
        f'Figures are of {checkpoint}.', '',
        *([f'Images that could not be read, and were left out: {", ".join(skipped)}.', ''] if skipped else []),
        '| | |', '|---|---|',
        *_table_of_metrics(experiment, summary),
        f'| training loss, last interval | {LOSS.format(summary["train_loss"])} |',
        f'| images/s in training | {_number(summary["images_per_second"], 0)} |',
        f'| wall time | {_number(summary["wall_seconds"], 1)} s, of which training steps '
        f'{_number(summary["train_seconds"], 1)} s |',
        f'| most memory held | {peak_memory} |', '',
        '## Curves', '', figure(folder, 'curves'), '',
        *(line for section in sections for line in (f'## {section.title}', '', *section.lines, '')),
        '## The first training batch, augmented, not normalised', '', figure(folder, 'first_batch'), '',
        '## Config', '', 'Fields that differ from their defaults (all of them: `config.json`):', '',
        '```', _changed_fields(config), '```', '',
        '## Versions', '', '```', json.dumps(summary['versions']), '```', '',
    ]
    path = os.path.join(workdir, 'report.md')
    with name_file(path), open(path, 'w', encoding='utf-8') as f:
        f.write('\n'.join(lines))


def _table_of_metrics(experiment: Experiment, summary: Mapping[str, Any]) -> list[str]:
    """One row for each measurement: those of the judged weights first, test before validation."""
    measurements = experiment.measurements(tta=experiment.preprocessor.tta is not None).values()
    # the metric that judges a run is what a reader looks for, and the loss comes last
    order = {metric.name: i for i, metric in enumerate([*(m for m in experiment.task.metrics.values() if m != LOSS), LOSS])}
    names = {'test': 'test', 'val': 'validation'}
    return [f'| {dataclasses.replace(m, split=names[m.split]).title} | {m.metric.format(summary.get(m.name))} |'
            for m in sorted(measurements, key=lambda m: (m.ema or m.tta, m.split != 'test', order[m.metric.name]))
            if experiment.informs(m.metric) and (not (m.ema or m.tta) or summary.get(m.name) is not None)]
