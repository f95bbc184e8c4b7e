"""The workdir of a run: its lock, its config, its metrics and its other small files."""

import contextlib
import dataclasses
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import IO, Any

import jax

from jaxcnn import config as cfg
from jaxcnn import plugins
from jaxcnn.errors import UserError, name_file
from jaxcnn.files import open_replacement
from jaxcnn.locks import LockedError, holder_has_ended, lock

log = logging.getLogger('jaxcnn')
_LOCK = '.lock'
STUDY = 'study.json'  # in the workdir of a study
SPARSITY = 'sparsity.json'  # of a run with pruning
SVMS = 'svms.json'  # the measurements that `jaxcnn fit_svms` adds to those of the summary


def write_json(path: str, value: Any) -> None:
    """Write a JSON file, which replaces an existing one only when it is complete."""
    with open_replacement(path, sync=True) as f:
        json.dump(value, f, indent=2)
        f.write('\n')


def read_json(path: str) -> Any:
    """Return the content of a JSON file of a run.

    Raises:
      UserError: the file is missing or damaged.
    """
    try:
        with open(path, encoding='utf-8') as f:
            return json.load(f)
    except FileNotFoundError:
        raise UserError(f'holds no run (no {os.path.basename(path)})', field=os.path.dirname(path) or '.') from None
    except (OSError, ValueError) as e:
        raise UserError(f'cannot be read: {e}', field=path, hint='restore the file, or use a new workdir') from e


def read_config(workdir: str) -> cfg.Config:
    """Return the config of the run in a workdir.

    Raises:
      UserError: the file is missing or damaged, or another version of jaxcnn wrote it.
    """
    path = os.path.join(workdir, 'config.json')
    fields = read_json(path)
    try:
        return cfg.parse(fields)
    except UserError as e:
        raise UserError(str(e), field=path, hint='if another version of jaxcnn wrote this run, use that version, or a new '
                        'workdir') from e


EXTENDED = ('config.duration', 'config.optim.switch')  # fields that an extension may change


@contextlib.contextmanager
def claim(workdir: str, config: cfg.Config, extend: bool = False) -> Iterator[None]:
    """Lock a workdir for a run in the block.

    A previous run in the workdir that has no checkpoint, for example because it diverged early, is removed.

    Args:
      workdir: the workdir, which is created if it is missing.
      config: config of the run.
      extend: whether the fields in `EXTENDED` may differ from those of the run in the workdir.

    Raises:
      UserError: another run has locked the workdir, it cannot be written, or it holds a run whose config gives another
        result.
    """
    if jax.process_index():  # the first process locks it for all
        yield
        return
    if os.path.exists(os.path.join(workdir, STUDY)):
        raise UserError(f'workdir {workdir!r} holds a study', hint='use another one for a run')
    with contextlib.ExitStack() as resources:
        try:
            os.makedirs(os.path.join(workdir, 'figures'), exist_ok=True)
            resources.enter_context(lock(os.path.join(workdir, _LOCK)))
        except LockedError as e:
            raise UserError(f'workdir {workdir!r} is in use by another run ({e})') from None
        except OSError as e:
            raise UserError(f'workdir {workdir!r} cannot be written: {e.strerror}') from e
        path = os.path.join(workdir, 'config.json')
        if not has_result(workdir):
            if os.path.exists(path):
                log.info('the run in %s has no checkpoint, so it starts again', workdir)
            shutil.rmtree(os.path.join(workdir, plugins.FOLDER), ignore_errors=True)
            for name in ('config.json', 'data.json', 'init.json'):  # without config.json, normalisation is also fitted again
                with contextlib.suppress(FileNotFoundError):
                    os.remove(os.path.join(workdir, name))
        elif os.path.exists(path):
            recorded = read_config(workdir)
            plugins.check_unchanged(recorded.plugins, config.plugins, workdir)
            changes = cfg.differences(recorded, config)
            is_extension = all(change.field in EXTENDED for change in changes)
            if changes and not (extend and is_extension):
                option = ' (jaxcnn train --extend continues it if its steps so far stay the same)' if is_extension else ''
                raise UserError(f'workdir {workdir!r} holds a run with another config', hint='use its config or a new '
                                f'workdir{option}. Changed: {"; ".join(map(str, changes))}')
        yield


def has_ended(workdir: str) -> bool:
    """Return whether the process of the run has ended, complete or not; False for a process on another host."""
    return holder_has_ended(os.path.join(workdir, _LOCK))


def has_result(workdir: str) -> bool:
    """Return whether a run in the workdir has finished or has a checkpoint, which may be damaged."""
    if os.path.exists(os.path.join(workdir, 'summary.json')):
        return True
    folders = [os.path.join(workdir, f'checkpoints{suffix}') for suffix in ('', '.replaced', '.damaged')]
    return any(name.isdecimal() for folder in folders if os.path.isdir(folder) for name in os.listdir(folder))


_FLUSH_INTERVAL = 30.0  # seconds after which scalars for TensorBoard are flushed


@dataclasses.dataclass
class MetricsLog:
    """The metrics of a run, in `metrics.jsonl` and as TensorBoard scalars.

    Rows after the step from which the run resumes are removed, and TensorBoard hides its later events.

    `tensorboardX.SummaryWriter` is not used: a full disk ends its thread, and then the run would wait for it forever.

    Args:
      workdir: the workdir.
      step: step from which the run resumes, or 0.
    """

    workdir: str
    step: int
    _file: IO[str] = dataclasses.field(init=False)
    _events: Any = dataclasses.field(init=False)
    _flush_time: float = 0.0

    def __post_init__(self) -> None:
        path = os.path.join(self.workdir, 'metrics.jsonl')
        lines = [json.dumps(row) + '\n' for row in read_metrics(self.workdir) if row['step'] <= self.step]
        with open_replacement(path) as f:
            f.writelines(lines)
        self._file = open(path, 'a', encoding='utf-8')  # noqa: SIM115 (closed by close())
        self._events = None
        try:
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import SessionLog
        except ModuleNotFoundError:
            log.info("no events for TensorBoard are written: pip install 'jaxcnn[tensorboard]'")
            return
        with name_file(self.workdir):
            self._events = EventsWriter(os.path.join(self.workdir, 'events'))
            self._write_event(self.step + 1, session_log=SessionLog(status=SessionLog.START))

    def _write_event(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event
        self._events.write_event(Event(wall_time=time.time(), step=step, **content))

    def write(self, step: int, epoch: float, split: str, metrics: Mapping[str, float],
              **scalars: float) -> dict[str, float]:
        """Write one row, and one TensorBoard scalar for each finite value. Return the row.

        Args:
          step: number of steps that are done.
          epoch: number of epochs that are done.
          split: split of the metrics.
          metrics: metrics of the split by name. The row calls them `<split>_<name>`, and TensorBoard `<split>/<name>`.
          **scalars: values that do not belong to a split.
        """
        row = {'epoch': epoch, **{f'{split}_{name}': value for name, value in metrics.items()}, **scalars}
        with name_file(self._file.name):
            self._file.write(json.dumps({'step': step, **row}) + '\n')
            self._file.flush()
        if self._events is None:
            return row
        from tensorboardX.summary import scalar
        tags = {'epoch': epoch, **{f'{split}/{name}': value for name, value in metrics.items()}, **scalars}
        for tag, value in tags.items():
            if math.isfinite(value):  # TensorBoard cannot show other values
                self._write_event(step, summary=scalar(tag, value))
        if time.monotonic() - self._flush_time > _FLUSH_INTERVAL:
            self.flush()
        return row

    @property
    def writes_events(self) -> bool:
        """Whether events for TensorBoard are written, which needs `tensorboardX`."""
        return self._events is not None

    def write_summary(self, step: int, summary: Any) -> None:
        """Write a summary of `tensorboardX`, such as a histogram, as an event at a step. Call it only if `writes_events`."""
        with name_file(self.workdir):
            self._write_event(step, summary=summary)

    def flush(self) -> None:
        """Write the TensorBoard scalars to the disk; the rows are there already."""
        if self._events is not None:
            with name_file(self.workdir):
                self._events.flush()
        self._flush_time = time.monotonic()

    def close(self) -> None:
        """Write what is pending, and close the files."""
        with name_file(self.workdir), contextlib.closing(self._events) if self._events else contextlib.nullcontext():
            self._file.close()


def read_metrics(workdir: str) -> list[dict[str, float]]:
    """Return the rows of `metrics.jsonl`, without a last line that is incomplete because of a crash."""
    rows = []
    with contextlib.suppress(FileNotFoundError), open(os.path.join(workdir, 'metrics.jsonl'), encoding='utf-8') as f:
        for line in f:
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
    return rows
