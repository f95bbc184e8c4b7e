"""Errors that are a person's mistake: told in one line, without a traceback."""

import contextlib
import difflib
import errno
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any


class UserError(Exception):
    """A mistake that the user can correct. As text it is one line: the field, the message and the hint.

    Attributes:
      message: says what is wrong, with the value.
      field: what the mistake is in: a field of the config such as `config.data.dir`, a flag or a file; None for none.
      hint: says how to go on, for example the nearest valid choices; None for no advice.
    """

    def __init__(self, message: str, *, field: str | None = None, hint: str | None = None):
        super().__init__(message)
        self.message, self.field, self.hint = message, field, hint

    def __str__(self) -> str:
        text = self.message if self.field is None else f'{self.field}: {self.message}'
        return text if self.hint is None else f'{text}; {self.hint}'

    def add_hint(self, hint: str) -> None:
        """Append advice to the hint."""
        self.hint = hint if self.hint is None else f'{self.hint}; {hint}'


class Diverged(UserError):
    """The loss, or a parameter, is not finite."""


@contextlib.contextmanager
def within(field: str) -> Iterator[None]:
    """Set the field of a UserError that is raised in the block, unless it has a field of the config already.

    Anything else that the error names, for example a file or an argument, moves to the beginning of its message.
    """
    try:
        yield
    except UserError as e:
        if e.field is None:
            e.field = field
        elif not e.field.startswith('config.'):
            e.field, e.message = field, f'{e.field}: {e.message}'
        raise


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Gives an OSError that names no file, as that of a full disk does when data are written, the path of the file."""
    try:
        yield
    except OSError as e:
        e.filename = path if e.filename is None else e.filename
        raise


def of_system(error: OSError, *folders: str) -> UserError:
    """The error for an OSError: names its file; without one, those of `folders`, and of the folders for temporary files and
    shared memory, whose file system is full."""
    reason = error.strerror or ' '.join(map(str, error.args))
    if error.filename is not None:
        return UserError(f'{error.filename}: {reason}')
    full = []
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        for folder in (*folders, os.environ.get('TMPDIR', '/tmp'), '/dev/shm'):
            with contextlib.suppress(OSError):
                status = os.statvfs(folder)
                if status.f_bavail * status.f_frsize < 1 << 20 or (status.f_files and not status.f_favail):
                    full.append(folder)
    return UserError(f'{reason}: {", ".join(full)}' if full else reason)


def check_bool(where: str, default: Any, value: Any) -> None:
    """Raises a UserError for what is no Boolean where the default is one: `--config.optim.optimizer.nesterov=no` is a
    string, and true."""
    if isinstance(default, bool) and not isinstance(value, bool):
        raise UserError(f'expected True or False, got {value!r}', field=where)


# control characters, lone surrogates, and what ends a line or turns the direction of writing
_UNPRINTABLE = re.compile(r'[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]')


def printable(text: str) -> str:
    """`text` on one line that a terminal can be given: escape sequences, newlines and the like as Python escapes them."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode('unicode_escape').decode('ascii'), text)


def shown(path: str | os.PathLike) -> str:
    """A file's name as it can be printed: composed, bytes that are not UTF-8 as replacement characters; see `printable`."""
    return printable(unicodedata.normalize('NFC', os.fsencode(path).decode('utf-8', 'replace')))


def counted(number: int, noun: str) -> str:
    """`1 image`, `1,200 images`."""
    return f'{number:,} {noun}{"s" * (number != 1)}'


def unknown(what: str, value: str, choices: Iterable[str], field: str | None = None) -> UserError:
    """The error for a name that is none of `choices`: names the nearest ones, or all where none is near."""
    names = sorted(choices)
    near = difflib.get_close_matches(str(value), names, n=3, cutoff=0.5)
    hint = f'nearest: {", ".join(near)}' if near else f'known: {", ".join(names) or "none"}'
    return UserError(f'unknown {what} {value!r}', field=field, hint=hint)
