"""Files that are replaced as a whole, so that readers never see an incomplete one, and folders for results."""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from typing import IO, Any

from jaxcnn.errors import UserError


@contextlib.contextmanager
def open_replacement(path: str, mode: str = 'w', sync: bool = False, **options: Any) -> Iterator[IO[Any]]:
    """Open a file under a temporary name for the block. After the block it is renamed and replaces the file at `path`.

    If the block raises an exception, the file at `path` stays as it is. Several processes may replace the same file.

    Args:
      path: path of the file.
      mode: `w` for text, by default in UTF-8, or `wb` for bytes.
      sync: whether to write the content to the disk before the file is renamed, so that it survives a crash of the machine.
      **options: further arguments of `open`.

    Raises:
      OSError: the file cannot be written. The error names `path`, also if a full disk is the reason.
    """
    temporary = f'{path}.{secrets.token_hex(4)}.tmp'
    if 'b' not in mode:
        options = {'encoding': 'utf-8', **options}
    try:
        with open(temporary, mode, **options) as f:
            yield f
            if sync:
                f.flush()
                os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as e:
        if e.filename in (None, temporary):
            e.filename = path
        raise
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)


def file_checksum(path: str) -> str:
    """Return the SHA-256 checksum of a file."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def check_output(folder: str) -> None:
    """Raise a UserError if the folder that `--output` names exists and is not empty, or cannot be examined."""
    try:
        is_new = not os.path.lexists(folder) or not os.listdir(folder)
    except OSError as e:
        raise UserError(f'{folder!r} cannot be made: {e.strerror}', field='--output') from e
    if not is_new:
        raise UserError(f'{folder!r} exists and is not empty', field='--output', hint='name another folder, or delete it')


def make_output(folder: str) -> None:
    """Make the folder that `--output` names.

    Raises:
      UserError: It exists and is not empty, or cannot be made.
    """
    check_output(folder)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as e:
        raise UserError(f'{folder!r} cannot be made: {e.strerror}', field='--output') from e
