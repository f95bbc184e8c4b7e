"""The report of a study as Markdown, HTML and CSV: a table, curves and scatter plots."""

import collections
import csv
import io
import os
from collections.abc import Mapping, Sequence

from jaxcnn import config as cfg
from jaxcnn.analysis import figures, markdown
from jaxcnn.analysis.markdown import escape, figure, to_html
from jaxcnn.errors import counted, name_file
from jaxcnn.metrics import LOSS, Measurement
from jaxcnn.studies.columns import SPLITS, Column
from jaxcnn.studies.definition import value_text
from jaxcnn.studies.figures import Tradeoff, draw_curves, draw_tradeoffs
from jaxcnn.studies.results import MIN_BOOTSTRAP_SEEDS, ArmResult, RunResult, Table, ranked

MAX_CURVES = 12  # largest number of arms in the figure of curves


def write_study_report(table: Table, folder: str, name: str = 'study', sections: Sequence[str] = ()) -> None:
    """Write the report into a folder as `study.md`, `study.csv`, and `study.html`, which embeds the figures.

    Args:
      table: the results.
      folder: the folder, which is created if it is missing.
      name: base name of the files.
      sections: further lines of Markdown, for example those of a search.
    """
    figure_folder = os.path.join(folder, 'figures')
    os.makedirs(figure_folder, exist_ok=True)
    multiply_adds = {arm.name: _multiply_adds(arm) for arm in table.arms}
    drawn = _drawn_arms(table)
    if drawn:
        for file_name, draw in (('study_curves', lambda path: _draw_curves(table, drawn, path)),
                                ('study_tradeoffs', lambda path: _draw_tradeoffs(table, path))):
            with figures.warn_on_error(path := os.path.join(figure_folder, f'{file_name}.png')):
                draw(path)
    rows = table_rows(table, multiply_adds)
    lines = [
        f'# {escape(table.title)}', '', *([table.text.strip(), ''] if table.text.strip() else []),
        *_introduction(table), '', *markdown.table(rows), *_failures(table), *sections,
        *_curves(table, drawn, figure_folder), *_changed_fields(table),
    ]
    text = '\n'.join(lines)
    contents = {'md': text, 'html': to_html(text, table.title, folder), 'csv': _csv(table, multiply_adds)}
    for suffix, content in contents.items():
        path = os.path.join(folder, f'{name}.{suffix}')
        with name_file(path), open(path, 'w', encoding='utf-8', newline='') as f:
            f.write(content)


def table_rows(table: Table, multiply_adds: Mapping[str, int | None] | None = None) -> list[list[str]]:
    """Return the cells of the table as text: the headings, and then a row for each arm.

    Args:
      table: the results.
      multiply_adds: multiply-adds of each arm by its name; None leaves out their column.
    """
    has_published = any(arm.published is not None for arm in table.arms)
    has_difference = bool(table.baseline) and len(table.arms) > 1
    headings = ['', *(column.title for column in table.columns), *['published'] * has_published,
                *[f'difference to {table.baseline}'] * has_difference, 'seeds', 'parameters',
                *['multiply-adds'] * (multiply_adds is not None), 'training time']
    rows = [headings]
    for arm in table.arms:
        cells = [arm.name]
        for column in table.columns:
            cells.append(_value_cell(arm, column) if arm.finished else '')
        if has_published:
            cells.append('' if arm.published is None else table.compared.format(arm.published))
        if has_difference:
            difference = table.difference(arm)
            cells.append('' if difference is None else
                         table.compared.format_difference(difference.mean, difference.interval))
        parameters, seconds = arm.mean_of('params'), arm.mean_of('train_seconds')
        cells += [_seeds_text(arm), '' if parameters is None else f'{parameters:,.0f}']
        if multiply_adds is not None:
            count = multiply_adds[arm.name]
            cells.append('' if count is None else f'{count:,}')
        cells.append('' if seconds is None else format_seconds(seconds))
        rows.append(cells)
    return rows


def _progress_text(run: RunResult) -> str:
    if run.rows:
        return f'at epoch {run.rows[-1]["epoch"]:.1f}'
    return 'starting' if os.path.isdir(run.folder) else 'not started'


def _value_cell(arm: ArmResult, column: Column) -> str:
    """Format the mean of a measurement, with the number of seeds that have a value if some have none."""
    count, total = len(arm.values(column)), len(arm.finished)
    text = column.format(arm.mean(column), arm.deviation(column))
    return f'{text} ({count} of {total} seeds)' if 0 < count < total else text


def format_seconds(seconds: float) -> str:
    """Format a duration as `8.1 s`, `12.3 min` or `5.2 h`."""
    if seconds < 100:
        return f'{seconds:.1f} s'
    return f'{seconds / 60:.1f} min' if seconds < 6000 else f'{seconds / 3600:.1f} h'


def _seeds_text(arm: ArmResult) -> str:
    """Format the number of finished seeds and the state of the others, as in `2 (1 diverged, 1 at epoch 3.5)`."""
    texts = collections.Counter(
        _progress_text(run) if run.status == 'unfinished' else run.status for run in arm.runs if run.status != 'finished')
    others = [f'{count} {text}' for text, count in texts.items()]
    return f'{len(arm.finished)} ({", ".join(others)})' if others else str(len(arm.finished))


def _introduction(table: Table) -> list[str]:
    column = table.compared
    better = 'larger' if column.better == 'max' else 'smaller'
    several = any(len(arm.values(column)) > 1 for arm in table.arms)
    lines = [_common_setting(table), '',
             f'Each row shows the mean{" ± standard deviation" if several else ""} over the seeds that have finished. For '
             f'{column.title}, {better} values are better.']
    if table.baseline and len(table.arms) > 1:
        unit = ', in percentage points,' if column.percent else ''
        interval = (', with its 95 % interval in brackets: a bootstrap interval for at least '
                    f"{MIN_BOOTSTRAP_SEEDS} seeds, Student's interval for fewer") if several else ''
        lines.append(f'The difference{unit} is the mean over the seeds that the arm shares with '
                     f'{escape(table.baseline)}{interval}.')
    return lines


def _common_setting(table: Table) -> str:
    """Return a sentence about what all arms have in common: the network, the data, the duration and the batch size."""
    settings = [(f'the network {arm.config.model.name}', f'the data set {arm.config.data.name}',
                 value_text(cfg.to_dict(arm.config.duration)), f'batches of {arm.config.batch_size}') for arm in table.arms]
    common = [texts[0] for texts in zip(*settings, strict=True) if len({*texts}) == 1]
    seeds = sorted({run.seed for arm in table.arms for run in arm.runs})
    numbers = f'seeds {", ".join(map(str, seeds[:-1]))} and {seeds[-1]}' if len(seeds) > 1 else f'seed {seeds[0]}'
    return f'All runs: {escape(", ".join([*common, numbers]))}.'


def _failures(table: Table) -> list[str]:
    lines = [f'- {escape(arm.name)}, seed {run.seed}: {run.status}: {escape(run.reason)}'
             for arm in table.arms for run in arm.runs if run.status in ('diverged', 'failed')]
    return ['## Runs without a result', '', *lines, ''] if lines else []


def _changed_fields(table: Table) -> list[str]:
    """Return the section on the fields in which the configs of the arms differ."""
    fields = differing_fields([arm.config for arm in table.arms])
    if not fields:
        return []
    rows = [['', *(field.removeprefix('config.') for field in fields)]]
    for i, arm in enumerate(table.arms):
        rows.append([arm.name, *(value_text(values[i]) for values in fields.values())])
    return ['## What the arms change', '', *markdown.table(rows)]


def differing_fields(configs: Sequence[cfg.Config]) -> dict[str, list[object]]:
    """Return the fields that differ between configs, with the value of each config.

    Seeds, names and the checksums of plugins are not compared.
    """
    first = configs[0]
    changes = [{change.field: change for change in cfg.differences(first, config)} for config in configs]
    fields = dict.fromkeys(field for of_config in changes for field in of_config if field != 'config.seed')
    values: dict[str, list[object]] = {}
    for field in fields:
        old = next(of_config[field].old for of_config in changes if field in of_config)
        values[field] = [of_config[field].new if field in of_config else old for of_config in changes]
    return values


def _multiply_adds(arm: ArmResult) -> int | None:
    """Return the multiply-adds of the network for an image of the first finished run, or None if no run has finished."""
    if not arm.finished:
        return None
    from jaxcnn.analysis.complexity import cost
    from jaxcnn.run import load_run
    experiment = load_run(arm.finished[0].folder).experiment
    return cost(experiment.network, experiment.image_shape).multiply_adds


def _csv(table: Table, multiply_adds: Mapping[str, int | None]) -> str:
    """Return the CSV file, which has a row of unrounded values for each run."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(['arm', 'seed', 'status', 'reason', *(column.name for column in table.columns), 'published',
                     'parameters', 'multiply_adds', 'steps', 'epochs', 'train_seconds', 'wall_seconds', 'folder'])
    for arm in table.arms:
        for run in arm.runs:
            values = [column.value(run.summary, run.rows) if run.summary else None for column in table.columns]
            writer.writerow([arm.name, run.seed, run.status, run.reason, *values, arm.published, run.summary.get('params'),
                             multiply_adds[arm.name], *(run.summary.get(field) for field in (
                                 'steps', 'epochs', 'train_seconds', 'wall_seconds')), run.folder])
    return file.getvalue()


# figures


def _drawn_arms(table: Table) -> list[ArmResult]:
    """Return the arms in the figure of curves: those with logged values, and of these at most the `MAX_CURVES` best."""
    arms = [arm for arm in table.arms if any(run.rows for run in arm.runs)]
    if len(arms) <= MAX_CURVES:
        return arms
    best = ranked(arms, table.compared)[:MAX_CURVES]
    return [arm for arm in arms if arm in best]


def _curves(table: Table, drawn: Sequence[ArmResult], figure_folder: str) -> list[str]:
    """Return the sections with the figures, and a sentence on the finished arms that have no curves."""
    arms = sum(any(run.rows for run in arm.runs) for arm in table.arms)
    without = [escape(arm.name) for arm in table.arms if arm.finished and not any(run.rows for run in arm.runs)]
    missing = [f'Without curves, since nothing was logged, as for pruned runs: {", ".join(without)}.', ''] if without else []
    if not drawn:
        return ['## Curves', '', *missing] if missing else []
    which = f'The figure shows the {len(drawn)} best of {counted(arms, "arm")}. ' if len(drawn) < arms else ''
    return ['## Curves', '',
            f'{which}Each curve is the mean over seeds; the band reaches from the smallest to the largest value.', '',
            *missing, figure(figure_folder, 'study_curves'), '',
            '## Parameters and time', '', figure(figure_folder, 'study_tradeoffs'), '']


def _draw_curves(table: Table, arms: Sequence[ArmResult], path: str) -> None:
    column = table.compared
    split = 'val' if any('val_loss' in row for arm in arms for run in arm.runs for row in run.rows) else 'test'
    panels = {'training loss': Measurement('train', LOSS).name}
    metric = column.metric
    unit, scale = (' in %', 100) if metric.percent else ('', 1)
    if any(Measurement('train', metric).name in row for arm in arms for run in arm.runs for row in run.rows):
        panels.setdefault(f'training {metric.title}{unit}', Measurement('train', metric).name)
    panels[f'{SPLITS[split]} {metric.title}{unit}'] = Measurement(split, metric).name
    factors = {title: 1 if title == 'training loss' else scale for title in panels}
    series = {title: {arm.name: [[(row['epoch'], factors[title] * row[name]) for row in run.rows if name in row]
                                 for run in arm.runs] for arm in arms} for title, name in panels.items()}
    draw_curves(series, path)


def _draw_tradeoffs(table: Table, path: str) -> None:
    column = table.compared
    points = {arm.name: Tradeoff(parameters, seconds, mean, arm.deviation(column) or 0.0) for arm in table.arms
              if (mean := arm.mean(column)) is not None and (parameters := arm.mean_of('params')) is not None
              and (seconds := arm.mean_of('train_seconds')) is not None}
    if points:
        draw_tradeoffs(points, column.title, 100 if column.percent else 1, path)

