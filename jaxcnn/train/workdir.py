"""The folder of a run: its lock, its config, its metrics and its small files."""

import contextlib
import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Iterator
from typing import IO, Any

import jax

from jaxcnn import config as cfg
from jaxcnn import plugins
from jaxcnn.errors import UserError, name_file
from jaxcnn.locks import LockedError, holder_has_ended, lock

log = logging.getLogger('jaxcnn')
_LOCK = '.lock'


def write_json(path: str, value: Any) -> None:
    """Writes JSON under a temporary name and renames it, so that no reader sees half of it."""
    temporary = f'{path}.tmp'
    with name_file(path), open(temporary, 'w', encoding='utf-8') as f:
        json.dump(value, f, indent=2)
        f.write('\n')
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)


def read_json(path: str) -> Any:
    """The content of a JSON file.

    Raises:
      UserError: it is missing or damaged.
    """
    try:
        with open(path, encoding='utf-8') as f:
            return json.load(f)
    except FileNotFoundError:
        raise UserError(f'{os.path.dirname(path) or "."}: holds no run (no {os.path.basename(path)})') from None
    except (OSError, ValueError) as e:
        raise UserError(f'{path}: cannot be read: {e}; put it back, or use a new workdir') from e


def read_config(workdir: str) -> cfg.Config:
    """Return the config of the run in `workdir`.

    Raises:
      UserError: The file is missing or damaged, or another version of jaxcnn wrote it.
    """
    path = os.path.join(workdir, 'config.json')
    fields = read_json(path)
    try:
        return cfg.parse(fields)
    except UserError as e:
        raise UserError(str(e), field=path, hint='if another version of jaxcnn wrote this run, use that version, or a new '
                        'workdir') from e


EXTENDED = ('config.duration', 'config.optim.switch')  # what an extension may change


@contextlib.contextmanager
def claim(workdir: str, config: cfg.Config, extend: bool = False) -> Iterator[None]:
    """Holds the workdir for this run alone. A run that has left no checkpoint, as one that diverged early, is forgotten.

    Args:
      workdir: made where it is missing.
      config: of the run.
      extend: the config's fields in `EXTENDED` may differ from those of the run there.

    Raises:
      UserError: another run has it, it cannot be written, or it holds a run whose config would give another result.
    """
    if jax.process_index():  # the first process does it for all
        yield
        return
    with contextlib.ExitStack() as held:
        try:
            os.makedirs(os.path.join(workdir, 'figures'), exist_ok=True)
            held.enter_context(lock(os.path.join(workdir, _LOCK)))
        except LockedError as e:
            raise UserError(f'workdir {workdir!r} is in use by another run ({e})') from None
        except OSError as e:
            raise UserError(f'workdir {workdir!r} cannot be written: {e.strerror}') from e
        path = os.path.join(workdir, 'config.json')
        if not _has_result(workdir):
            if os.path.exists(path):
                log.info('the run in %s has left no checkpoint: it begins anew', workdir)
            for name in ('config.json', 'data.json'):  # without the former, normalisation is fitted anew, too
                with contextlib.suppress(FileNotFoundError):
                    os.remove(os.path.join(workdir, name))
        elif os.path.exists(path):
            recorded = read_config(workdir)
            plugins.check_unchanged(recorded.plugins, config.plugins, workdir)
            changed = cfg.differences(recorded, config)
            extends = all(change.field in EXTENDED for change in changed)
            if changed and not (extend and extends):
                hint = ' (train.py --extend continues it where its steps so far stay the same)' if extends else ''
                raise UserError(f'workdir {workdir!r} holds a run with another config; use its config or a new '
                                f'workdir{hint}. Changed: {"; ".join(map(str, changed))}')
        yield


def has_ended(workdir: str) -> bool:
    """Whether the process of the run has ended, complete or not; False where it is on another host: nobody can tell."""
    return holder_has_ended(os.path.join(workdir, _LOCK))


def _has_result(workdir: str) -> bool:
    """Whether a run has left a checkpoint, be it damaged, or has ended."""
    return os.path.exists(os.path.join(workdir, 'summary.json')) or any(
        name.isdecimal() for end in ('', '.replaced', '.damaged')
        if os.path.isdir(folder := os.path.join(workdir, f'checkpoints{end}')) for name in os.listdir(folder))


_FLUSH = 30.0  # seconds in which scalars for TensorBoard may wait


@dataclasses.dataclass
class MetricsLog:
    """`metrics.jsonl` and TensorBoard scalars; what lies after the step that a run resumes from is taken back.

    Without `tensorboardX.SummaryWriter`, whose thread a full disk ends, so that the run waits for it ever after.
    """

    workdir: str
    step: int
    _file: IO[str] = dataclasses.field(init=False)
    _board: Any = dataclasses.field(init=False)
    _flushed: float = 0.0

    def __post_init__(self) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog
        path = os.path.join(self.workdir, 'metrics.jsonl')
        kept = [json.dumps(row) + '\n' for row in read_metrics(self.workdir) if row['step'] <= self.step]
        temporary = f'{path}.tmp'
        with name_file(path), open(temporary, 'w', encoding='utf-8') as f:
            f.writelines(kept)
        os.replace(temporary, path)
        self._file = open(path, 'a', encoding='utf-8')  # noqa: SIM115 (closed by close())
        with name_file(self.workdir):
            self._board = EventsWriter(os.path.join(self.workdir, 'events'))
            self._event(self.step + 1, session_log=SessionLog(status=SessionLog.START))

    def _event(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event
        self._board.write_event(Event(wall_time=time.time(), step=step, **content))

    def write(self, step: int, row: dict[str, float]) -> None:
        """One line, and one scalar for each figure."""
        from tensorboardX.summary import scalar
        with name_file(self._file.name):
            self._file.write(json.dumps({'step': step, **row}) + '\n')
            self._file.flush()
        for name, value in row.items():
            if not math.isfinite(value):  # TensorBoard has no place for it
                continue
            part, _, rest = name.partition('_')
            self._event(step, summary=scalar(f'{part}/{rest}' if part in ('train', 'val', 'test') else name, value))
        if time.monotonic() - self._flushed > _FLUSH:
            self.flush()

    def flush(self) -> None:
        """Brings the scalars to the disk; the lines are there already."""
        with name_file(self.workdir):
            self._board.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Writes out what is pending."""
        with name_file(self.workdir), contextlib.closing(self._board):
            self._file.close()


def read_metrics(workdir: str) -> list[dict[str, float]]:
    """The rows of `metrics.jsonl`; a last line that a crash cut short is left out."""
    rows = []
    with contextlib.suppress(FileNotFoundError), open(os.path.join(workdir, 'metrics.jsonl'), encoding='utf-8') as f:
        for line in f:
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
    return rows
