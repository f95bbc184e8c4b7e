"""The results of a study, which are read from the workdirs of its runs."""

import dataclasses
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jaxcnn import config as cfg
from jaxcnn.studies.columns import Column
from jaxcnn.training import protocol_results
from jaxcnn.training.workdir import SVMS, read_json, read_metrics, write_json

Status = Literal['finished', 'diverged', 'failed', 'pruned', 'unfinished']
RESAMPLES = 9999  # number of resamples of a bootstrap interval
MIN_BOOTSTRAP_SEEDS = 10
FAILURE = 'failure.json'


@dataclasses.dataclass(frozen=True)
class RunResult:
    """The result of a run, as its workdir records it.

    Attributes:
      folder: workdir of the run.
      seed: seed of the run.
      status: `finished`, `diverged`, `failed` for another reason, `pruned` by a search, or `unfinished` (the run is running,
        was stopped, or has not started).
      reason: why the run has no result; empty if it is finished or unfinished.
      summary: the content of `summary.json`, and for the same checkpoint the metrics of SVMs, and as `protocols` those by
        each protocol; empty before the training is complete.
      rows: the rows of `metrics.jsonl`.
    """

    folder: str
    seed: int
    status: Status
    reason: str
    summary: Mapping[str, Any]
    rows: Sequence[Mapping[str, float]]


def read_run(folder: str, seed: int, protocols: Mapping[str, str] | None = None, split: str = '') -> RunResult:
    """Read the result of a run from its workdir.

    Args:
      folder: the workdir.
      seed: seed of the run.
      protocols: the protocols by which the run must be evaluated to be finished, by their names in a study; None: those that
        are recorded, by themselves.
      split: the split of that evaluation; empty: any.
    """
    rows = read_metrics(folder)
    summary: dict[str, Any] = {}
    if os.path.exists(path := os.path.join(folder, 'summary.json')):
        summary = read_json(path)
        svms = read_json(path) if os.path.exists(path := os.path.join(folder, SVMS)) else {}
        if svms.get('best_step') == summary.get('best_step'):
            summary = {**svms, **summary}
        recorded = protocol_results.read(folder, summary.get('best_step', 0), split)
        names = dict(zip(recorded, recorded, strict=True)) if protocols is None else protocols
        summary['protocols'] = {name: recorded[text] for name, text in names.items() if text in recorded}
        if len(summary['protocols']) == len(names):
            return RunResult(folder, seed, 'finished', '', summary, rows)
    if os.path.exists(path := os.path.join(folder, FAILURE)):
        failure = read_json(path)
        return RunResult(folder, seed, failure['status'], failure['reason'], summary, rows)
    return RunResult(folder, seed, 'unfinished', '', summary, rows)


def write_failure(folder: str, status: Status, reason: str) -> None:
    """Record in the workdir of a run why it has no result."""
    os.makedirs(folder, exist_ok=True)
    write_json(os.path.join(folder, FAILURE), {'status': status, 'reason': reason})


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference of an arm to the baseline.

    Attributes:
      mean: mean difference over the seeds that both have.
      interval: its 95 % interval (see `paired_difference`); None for a single seed.
    """

    mean: float
    interval: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class ArmResult:
    """The results of an arm, which are a row of the table.

    Attributes:
      name: name of the arm.
      config: config of the arm.
      runs: results of the runs, one for each seed.
      published: published value of the compared measurement, or None.
    """

    name: str
    config: cfg.Config
    runs: Sequence[RunResult]
    published: float | None = None

    @property
    def finished(self) -> list[RunResult]:
        """The finished runs."""
        return [run for run in self.runs if run.status == 'finished']

    def values(self, column: Column) -> dict[int, float]:
        """Return a measurement of the finished runs by seed, without the runs that have no value."""
        values = {run.seed: column.value(run.summary, run.rows) for run in self.finished}
        return {seed: value for seed, value in values.items() if value is not None}

    def mean(self, column: Column) -> float | None:
        """Return the mean of a measurement over seeds, or None if no run has a value."""
        values = self.values(column)
        return statistics.mean(values.values()) if values else None

    def deviation(self, column: Column) -> float | None:
        """Return the standard deviation of a measurement over seeds, or None for fewer than two values."""
        values = self.values(column)
        return statistics.stdev(values.values()) if len(values) > 1 else None

    def mean_of(self, field: str) -> float | None:
        """Return the mean of a field of the summaries of finished runs, or None if no summary has it."""
        values = [run.summary[field] for run in self.finished if run.summary.get(field) is not None]
        return statistics.mean(values) if values else None


def ranked(arms: Iterable[ArmResult], column: Column) -> list[ArmResult]:
    """Return arms in the order of the mean of a measurement, the best first; arms without a value are last."""
    sign = -1 if column.better == 'max' else 1

    def key(arm: ArmResult) -> float:
        mean = arm.mean(column)
        return float('inf') if mean is None else sign * mean
    return sorted(arms, key=key)


def paired_difference(arm: ArmResult, baseline: ArmResult, column: Column) -> Difference | None:
    """Return the mean difference of two arms over their common seeds, with a 95 % interval.

    For at least `MIN_BOOTSTRAP_SEEDS` seeds, the interval is a bootstrap interval of the differences (Efron 1979). For fewer
    seeds it is Student's interval, which is exact for normally distributed differences; a bootstrap interval of two to five
    such differences would contain the mean in 52 to 85 % of cases instead of 95 %.

    Args:
      arm: the arm.
      baseline: the arm whose values are subtracted.
      column: the measurement.

    Returns:
      The difference, or None if there is no seed for which both arms have a value.
    """
    values, others = arm.values(column), baseline.values(column)
    seeds = sorted({*values} & {*others})
    if not seeds:
        return None
    differences = np.array([values[seed] - others[seed] for seed in seeds])
    interval = None
    if len(seeds) > 1:
        interval = _bootstrap(differences) if len(seeds) >= MIN_BOOTSTRAP_SEEDS else _student(differences)
    return Difference(float(differences.mean()), interval)


def _bootstrap(values: np.ndarray) -> tuple[float, float]:
    rows = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[rows].mean(1), [0.025, 0.975])
    return float(low), float(high)


def _student(values: np.ndarray) -> tuple[float, float]:
    from scipy.stats import t
    mean = float(values.mean())
    half_width = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean - half_width, mean + half_width


@dataclasses.dataclass(frozen=True)
class Table:
    """The results of a study or of any runs.

    Attributes:
      title: heading of the report.
      text: Markdown below the heading.
      arms: the rows.
      columns: the measurements; the first one is the compared one.
      baseline: name of the arm with which the others are compared; empty if there is no comparison.
    """

    title: str
    text: str
    arms: Sequence[ArmResult]
    columns: Sequence[Column]
    baseline: str

    @property
    def compared(self) -> Column:
        """The compared measurement."""
        return self.columns[0]

    def difference(self, arm: ArmResult) -> Difference | None:
        """Return the difference of an arm to the baseline, or None for the baseline itself.

        The difference is also None if a finished run of one of the two has no value, for example because it has not reached
        the target of `epochs_to`, since the mean of the remaining runs would be biased.
        """
        if arm.name == self.baseline:
            return None
        baseline = next(a for a in self.arms if a.name == self.baseline)
        if any(len(a.values(self.compared)) < len(a.finished) for a in (arm, baseline)):
            return None
        return paired_difference(arm, baseline, self.compared)
