"""The report of a run, for someone who was not there."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxcnn import config as cfg
from jaxcnn.data import Dataset, layouts
from jaxcnn.errors import counted, naming, printable
from jaxcnn.inspect import figures
from jaxcnn.metrics import mistakes, per_class, tells_top5
from jaxcnn.timeline import shown_epoch


def _markdown(text: str) -> str:
    """`text` on one line, as Markdown that shows it as it is, in a table's cell, too."""
    return re.sub(r'[\\`*\[\]<>|~$&]|(?<!\w)_|_(?!\w)', r'\\\g<0>', printable(text))


def _percent(value: float | None) -> str:
    return 'not measured' if value is None else f'{100 * value:.2f} %'


def _number(value: float | None, digits: int = 4) -> str:
    return 'not measured' if value is None else f'{value:,.{digits}f}'


def _changed_fields(config: cfg.Config) -> str:
    """What of the config differs from its defaults."""
    return '\n'.join(f'{change.field} = {change.new!r}' for change in cfg.differences(cfg.Config(), config, all_fields=True))


def _figure(workdir: str, name: str) -> str:
    """The line that shows a figure, or says that there is none."""
    if not os.path.exists(os.path.join(workdir, 'figures', f'{name}.png')):
        return 'This figure could not be drawn.'
    return f'![{name.replace("_", " ")}](figures/{name}.png)'


def _data_name(config: cfg.DataConfig) -> str:
    """The data set; of a person's own images the folder or file, with its layout."""
    if config.name not in layouts.UNNAMED:
        return _markdown(config.name)
    return _markdown(f'{os.path.basename(os.path.abspath(config.dir))} ({config.name})')


def write_report(workdir: str, config: cfg.Config, summary: Mapping[str, Any], rows: Sequence[Mapping[str, float]],
                 dataset: Dataset, split: str, confusion: np.ndarray) -> None:
    """Writes `report.md` and the figures it shows into the workdir.

    Args:
      workdir: of the run.
      config: of the run.
      summary: as in `summary.json`.
      rows: of `metrics.jsonl`.
      dataset: of the run.
      split: the part that is shown by class: `test`, or `val` where there is none.
      confusion: (labels, predictions) of that part.
    """
    class_names, data_name = dataset.class_names, _data_name(config.data)
    shown_names = [_markdown(name) for name in class_names]
    train_counts = dataset.splits['train'].class_counts(len(class_names))
    part = {'test': 'test', 'val': 'validation'}[split]
    skipped = [f'{count} of {name}' for name, count in dataset.broken.items() if count]
    with figures.failing_is_a_warning(path := os.path.join(workdir, 'figures', 'curves.png')):
        figures.curves(rows, path)
    with figures.failing_is_a_warning(path := os.path.join(workdir, 'figures', 'confusion_matrix.png')):
        figures.confusion_matrix(confusion, class_names, path)
    top5 = tells_top5(len(class_names))
    table = sorted(zip(shown_names, per_class(confusion), train_counts, strict=True),
                   key=lambda row: (not row[1]['support'], row[1]['recall']))
    pairs = zip(*(values[:5].tolist() for values in mistakes(confusion)), strict=True)
    most_frequent = ', '.join(f'{shown_names[i]} taken for {shown_names[j]} ({n})' for i, j, n in pairs) or 'none'
    chosen = (f'the best of the evaluated checkpoints by `{config.checkpoint.metric}`, step {summary["best_step"]}'
              if summary["val_accuracy"] is not None else f'the last checkpoint, step {summary["best_step"]}')
    other = [f'| {name.replace("_", " ")} | {_number(value) if name.endswith("loss") else _percent(value)} |'
           for name, value in summary.items()
           if ('_ema_' in name or '_tta_' in name) and (top5 or not name.endswith('top5'))]
    held = ', '.join(f'{summary[f"peak_{where}_bytes"] / 1e9:.2f} GB of the {where}' for where in ('host', 'device')
                     if summary[f'peak_{where}_bytes'] is not None)
    lines = [
        f'# {summary["model"]} on {data_name}', '',
        *([f'Name of the run: {_markdown(summary["name"])}.', ''] if summary['name'] else []),
        f'{summary["model"]} ({summary["params"]:,} parameters) on {data_name}, seed {summary["seed"]}: '
        f'{counted(summary["steps"], "step")}, {shown_epoch(summary["epochs"], config.duration):.2f} epochs, '
        f'on {summary["num_devices"]} x {summary["device"]}.',
        f'Figures are of {chosen}.', '',
        *([f'Images that could not be read, and were left out: {", ".join(skipped)}.', ''] if skipped else []),
        '| | |', '|---|---|',
        f'| test accuracy | {_percent(summary["test_accuracy"])} |',
        *([f'| test top-5 | {_percent(summary["test_top5"])} |'] if top5 else []),
        f'| test loss | {_number(summary["test_loss"])} |',
        f'| validation accuracy | {_percent(summary["val_accuracy"])} |',
        f'| validation loss | {_number(summary["val_loss"])} |',
        *other,
        f'| training loss, last interval | {_number(summary["train_loss"])} |',
        f'| images/s in training | {_number(summary["images_per_second"], 0)} |',
        f'| wall time | {_number(summary["wall_seconds"], 1)} s, of which training steps '
        f'{_number(summary["train_seconds"], 1)} s |',
        f'| most memory held | {held} |', '',
        '## Curves', '', _figure(workdir, 'curves'), '',
        f'## {part.capitalize()} part, by class', '', f'Most frequent mistakes: {most_frequent}.', '',
        'The classes are sorted by recall, worst first; those without images come last.', '',
        '| class | precision | recall | F1 | ' + part + ' images | training images |', '|---|---|---|---|---|---|',
        *(f'| {name} | {_percent(r["precision"])} | {_percent(r["recall"])} | {r["f1"]:.4f} | {r["support"]} | {n} |'
          for name, r, n in table), '',
        _figure(workdir, 'confusion_matrix'), '',
        '## The first training batch, augmented, not normalised', '', _figure(workdir, 'first_batch'), '',
        '## Config', '', 'Fields that differ from their defaults (all of them: `config.json`):', '',
        '```', _changed_fields(config), '```', '',
        '## Versions', '', '```', json.dumps(summary['versions']), '```', '',
    ]
    path = os.path.join(workdir, 'report.md')
    with naming(path), open(path, 'w', encoding='utf-8') as f:
        f.write('\n'.join(lines))
