"""The measurements that a study compares: their names, their direction and their format."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from jaxcnn import config as cfg
from jaxcnn import metrics, tasks
from jaxcnn.errors import UserError, unknown
from jaxcnn.metrics import LOSS, Measurement, Metric

SPLITS = {'test': 'test', 'val': 'validation', 'train': 'training'}


@dataclasses.dataclass(frozen=True)
class Column:
    """A measurement of a run: a value of its summary, or the epoch at which a logged value reaches a target.

    Attributes:
      name: name in the study and in `study.csv`.
      title: heading of the column.
      split: split on which the metric is measured.
      metric: the metric.
      logged: for a number of epochs, the name of the logged value in `metrics.jsonl`; otherwise empty.
      target: the value that `logged` must reach.
      protocol: the protocol by which the metric is measured, such as `dense`; empty: the evaluation of the training.
      measurement: with a protocol, the name of the measurement, such as `test_accuracy`.
    """

    name: str
    title: str
    split: str
    metric: Metric
    logged: str = ''
    target: float = 0.0
    protocol: str = ''
    measurement: str = ''

    @property
    def better(self) -> Literal['max', 'min']:
        """Whether larger values are better (`max`) or smaller ones (`min`)."""
        return 'min' if self.logged else self.metric.better

    @property
    def percent(self) -> bool:
        """Whether the values are printed in per cent."""
        return self.metric.percent and not self.logged

    def value(self, summary: Mapping[str, Any], rows: Sequence[Mapping[str, float]]) -> float | None:
        """Return the value of a finished run, or None if it was not measured.

        Args:
          summary: the content of `summary.json`, and as `protocols` the measurements by each protocol.
          rows: the rows of `metrics.jsonl`.
        """
        if self.protocol:
            return summary.get('protocols', {}).get(self.protocol, {}).get(self.measurement)
        if not self.logged:
            return summary.get(self.name)
        sign = 1 if self.metric.better == 'max' else -1
        logged = ((row['epoch'], row[self.logged]) for row in rows if self.logged in row)
        return next((epoch for epoch, value in logged if sign * value >= sign * self.target), None)

    def format(self, value: float | None, deviation: float | None = None) -> str:
        """Format a value, with its standard deviation if one is given."""
        if value is None:
            return 'not reached' if self.logged else 'not measured'
        scale, digits, unit = (100, 2, ' %') if self.percent else (1, 1 if self.logged else 4, '')
        spread = '' if deviation is None else f' ± {scale * deviation:.{digits}f}'
        return f'{scale * value:.{digits}f}{spread}{unit}'

    def format_difference(self, difference: float, interval: tuple[float, float] | None) -> str:
        """Format the difference of two values, with its interval if one is given."""
        scale, digits = (100, 2) if self.percent else (1, 1 if self.logged else 4)

        def text(value: float) -> str:
            return f'{scale * value:+.{digits}f}'.replace('-', '−')
        return text(difference) + ('' if interval is None else f' [{text(interval[0])}, {text(interval[1])}]')


def main_metric(config: cfg.Config) -> Metric:
    """Return the first metric of a config's task."""
    return next(metric for metric in _metrics(config).values() if metric != LOSS)


def _metrics(config: cfg.Config) -> dict[str, Metric]:
    return tasks.find(config.task).known_metrics()


def _title(measurement: Measurement) -> str:
    return dataclasses.replace(measurement, split=SPLITS[measurement.split]).title


def find_column(name: str, config: cfg.Config) -> Column:
    """Return the column of a measurement such as `test_accuracy`, or of `epochs_to('val_accuracy', 0.9)`.

    `by_protocol('test_accuracy', 'dense')` is the measurement by a protocol that `jaxcnn evaluate --save` recorded, which is
    named as in the study or, in other runs, as it was asked for.

    `sparsity` is the final one of runs with `config.pruning`. For detectors, `svm_test_map50` is that of the SVMs that
    `jaxcnn fit_svms` fitted. Other runs have no value.

    Args:
      name: name of the measurement, or a call of `epochs_to` or `by_protocol`.
      config: config of a run; its task defines the metrics.

    Raises:
      UserError: The measurement does not exist.
    """
    of_task = {LOSS.name: LOSS, **_metrics(config)}
    logged_in_training = [of_task[metric] for metric in tasks.find(config.task).train_metrics]
    known = {**metrics.measurements(_metrics(config).values(), [split for split in SPLITS if split != 'train'],
                                    bool(config.optim.ema_decay), config.eval.tta != 'none'),
             **metrics.measurements(logged_in_training, ['train'], ema=False, tta=False)}
    if '(' in name:
        function, arguments, named = cfg.parse_call(name, name)
        if function == 'by_protocol':
            return _protocol_column(name, arguments, named, config)
        if function != 'epochs_to' or named or len(arguments) != 2 or not isinstance(arguments[1], (int, float)):
            raise UserError(f"{name!r} is not a measurement; for a number of epochs, use epochs_to('val_accuracy', 0.9)",
                            hint="by_protocol('test_accuracy', 'dense') is one by a protocol")
        logged = {key: m for key, m in known.items() if not m.tta}
        if arguments[0] not in logged:
            raise unknown('measurement', str(arguments[0]), logged)
        m = logged[arguments[0]]
        title = f'epochs to {_title(m)} {m.metric.format(arguments[1])}'
        return Column(name, title, m.split, m.metric, m.name, arguments[1])
    if name == 'sparsity':
        return Column(name, name, 'train', Metric(name))
    if name.startswith('svm_') and tasks.find(config.task).kind.name == 'boxes':
        column = find_column(name.removeprefix('svm_'), config)
        return dataclasses.replace(column, name=name, title=f'{column.title}, SVMs')
    if name not in known:
        raise unknown('measurement', str(name), known)
    m = known[name]
    return Column(name, _title(m), m.split, m.metric)


def protocol_measurement(measurement: str, protocol: str) -> str:
    """Return the name of the column of a measurement by a protocol."""
    return f'by_protocol({measurement!r}, {protocol!r})'


def _protocol_column(name: str, arguments: Sequence[Any], named: Mapping[str, Any], config: cfg.Config) -> Column:
    if named or len(arguments) != 2 or not all(isinstance(argument, str) for argument in arguments):
        raise UserError(f"expected by_protocol('test_accuracy', 'dense'), got {name!r}")
    measurement, protocol = arguments
    of_task = metrics.measurements([LOSS, *_metrics(config).values()], ['test', 'val'], ema=False, tta=False)
    if measurement not in of_task:
        raise unknown('measurement', measurement, of_task)
    m = of_task[measurement]
    return Column(protocol_measurement(measurement, protocol), f'{_title(m)}, {protocol}', m.split, m.metric,
                  protocol=protocol, measurement=measurement)
