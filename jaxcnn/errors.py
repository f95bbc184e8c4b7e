"""Errors that a user can correct. The commands print them as one line, without a traceback."""

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
      message: description of the mistake, with the value.
      field: location of the mistake: a field of the config such as `config.data.dir`, a flag or a file; or None.
      hint: advice on how to go on, for example the nearest valid choices; or None.
      exit_code: of a command that ends with the error.
    """

    exit_code = 2

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
    """The loss or a parameter is not finite."""

    exit_code = 3


@contextlib.contextmanager
def name_field(field: str) -> Iterator[None]:
    """Set the field of a UserError that is raised in the block, unless it has a field of the config already.

    If the error has another field, for example a file or an argument, it moves to the beginning of the message.
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
def name_file(path: str) -> Iterator[None]:
    """Set the file name of an OSError that is raised in the block without one, as when writing to a full disk."""
    try:
        yield
    except OSError as e:
        e.filename = path if e.filename is None else e.filename
        raise


def from_os_error(error: OSError, *folders: str) -> UserError:
    """Return the UserError for an OSError, which names its file.

    If a full disk is reported without a file, the error names those of `folders` and of the folders for temporary files and
    shared memory whose file system is full.
    """
    reason = error.strerror or ' '.join(map(str, error.args))
    if error.filename is not None:
        return UserError(reason, field=str(error.filename))
    full_folders = []
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        full_folders = [folder for folder in (*folders, os.environ.get('TMPDIR', '/tmp'), '/dev/shm') if _is_full(folder)]
    return UserError(f'{reason}: {", ".join(full_folders)}' if full_folders else reason)


def describe_exception(error: Exception) -> str:
    """Return the type and the text of an exception on one line, such as `ValueError: no images`."""
    return f'{type(error).__name__}: {" ".join(str(error).split())}'


def _is_full(folder: str) -> bool:
    """Return whether less than 1 MiB or no inode is free on the file system of a folder; False if it cannot be examined."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return False
    return bool(status.f_bavail * status.f_frsize < 1 << 20 or (status.f_files and not status.f_favail))


def check_bool(field: str, default: Any, value: Any) -> None:
    """Raise a UserError if the default is a Boolean and the value is not.

    On the command line, `--config.optim.optimizer.nesterov=no` gives the string 'no', which would count as true.
    """
    if isinstance(default, bool) and not isinstance(value, bool):
        raise UserError(f'expected True or False, got {value!r}', field=field)


# control characters, lone surrogates, and characters that end a line or change the direction of writing
_UNPRINTABLE = re.compile(r'[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]')


def printable(text: str) -> str:
    """Return the text with control characters, such as newlines and escape sequences, escaped as in Python's literals."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode('unicode_escape').decode('ascii'), text)


def as_text(path: str | os.PathLike) -> str:
    """Return a path or a name as printable text: composed Unicode, replacement characters for bytes that are not UTF-8."""
    return printable(unicodedata.normalize('NFC', os.fsencode(path).decode('utf-8', 'replace')))


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as `1 image` or `1,200 images`."""
    return f'{number:,} {noun}{"s" * (number != 1)}'


FEW_CHOICES = 6  # at most this many choices are all shown


def unknown(what: str, value: str, choices: Iterable[str], field: str | None = None) -> UserError:
    """Return the error for a name that is not one of `choices`; its hint gives the nearest of them, and all if they are few
    or none is near."""
    names = sorted(choices)
    nearest = difflib.get_close_matches(str(value), names, n=3, cutoff=0.5)
    hint = f'nearest: {", ".join(nearest)}' if nearest else f'known: {", ".join(names) or "none"}'
    others = [name for name in names if name not in nearest]
    if nearest and others and len(names) <= FEW_CHOICES:
        hint += f'; also: {", ".join(others)}'
    return UserError(f'unknown {what} {value!r}', field=field, hint=hint)
