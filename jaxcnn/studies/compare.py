"""Comparison of existing runs."""

import dataclasses
import glob
import logging
import os
import shlex
from collections.abc import Sequence

from jaxcnn import config as cfg
from jaxcnn import plugins
from jaxcnn.errors import UserError, name_field
from jaxcnn.studies.columns import Column, find_column, main_metric
from jaxcnn.studies.results import ArmResult, RunResult, Table, read_run
from jaxcnn.training.workdir import STUDY, read_config

log = logging.getLogger('jaxcnn')


def compare_runs(folders: Sequence[str], measurements: Sequence[str] = ()) -> Table:
    """Return the table of some runs. Runs whose configs differ only in the seed share a row.

    Args:
      folders: workdirs of runs, folders that hold the seeds of a run (`seed0`, `seed1`, ...), or workdirs of studies.
      measurements: names of the columns; by default the first metric of the task on the test split.

    Raises:
      UserError: A folder holds no run, the runs have different tasks, or a measurement does not exist.
    """
    groups: list[tuple[str, cfg.Config, list[RunResult]]] = []
    for folder in dict.fromkeys(path for workdir in folders for path in _arm_folders(os.path.abspath(workdir))):
        seeds = sorted(glob.glob(os.path.join(glob.escape(folder), 'seed*', 'config.json')))
        for path in map(os.path.dirname, seeds) if seeds else [folder]:
            with name_field('--workdirs'):
                config = read_config(path)
                plugins.load(config.plugins, path)
                run = read_run(path, config.seed)
            for _, other, runs in groups:
                is_equal = not cfg.differences(dataclasses.replace(other, seed=0), dataclasses.replace(config, seed=0))
                if is_equal and config.seed not in [r.seed for r in runs]:
                    runs.append(run)
                    break
            else:
                groups.append((folder, config, [run]))
    configs = [config for _, config, _ in groups]
    if tasks := {config.task.name for config in configs} - {configs[0].task.name}:
        raise UserError(f'runs of different tasks cannot be compared: {configs[0].task.name}, {", ".join(sorted(tasks))}',
                        field='--workdirs')
    with name_field('--metric'):
        columns = [find_column(name, configs[0]) for name in measurements or [f'test_{main_metric(configs[0]).name}']]
        _check_protocols(columns, [run for _, _, runs in groups for run in runs])
    names = [name for name, _, _ in groups]
    if len({*names}) < len(names):  # the seeds of a folder have different configs
        names = [runs[0].folder for _, _, runs in groups]
    prefix = os.path.commonpath([os.path.dirname(name) for name in names])
    arms = [ArmResult(os.path.relpath(name, prefix), config, runs)
            for name, (_, config, runs) in zip(names, groups, strict=True)]
    return Table('Comparison of runs', '', arms, columns, arms[0].name)


def _check_protocols(columns: Sequence[Column], runs: Sequence[RunResult]) -> None:
    """Log how to record the measurements by protocols that some of the finished runs lack.

    Raises:
      UserError: No run has recorded a protocol, or there is no such protocol.
    """
    from jaxcnn.robustness import protocols
    recorded = sorted({protocol for run in runs for protocol in run.summary.get('protocols', ())})
    for column in columns:
        if not column.protocol:
            continue
        missing = [run.folder for run in runs if run.summary and column.value(run.summary, run.rows) is None]
        split = '' if column.split == 'test' else f' --split={column.split}'
        arguments = f'{split} --protocol={shlex.quote(column.protocol)} --save'
        if column.protocol not in recorded:
            with name_field('--metric'):
                protocols.parse(column.protocol)
            others = f'recorded: {"; ".join(recorded)}; ' if recorded else ''
            raise UserError(f'no run has recorded the protocol {column.protocol!r}',
                            hint=f'{others}to record it: jaxcnn evaluate --workdir=DIR{arguments}')
        for folder in missing:
            log.info('%s is not measured; to record it: jaxcnn evaluate --workdir=%s%s', column.title,
                     shlex.quote(folder), arguments)


def _arm_folders(folder: str) -> list[str]:
    """Return the folders of the arms if `folder` is the workdir of a study, and otherwise `folder` itself."""
    if not os.path.exists(os.path.join(folder, STUDY)):
        return [folder]
    arms = glob.glob(os.path.join(glob.escape(folder), '*', 'seed*', 'config.json'))
    return sorted({os.path.dirname(os.path.dirname(path)) for path in arms})
