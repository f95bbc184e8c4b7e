"""The cache folder, for decoded images, compiled programs and compiled libraries. It can be deleted at any time."""

import contextlib
import functools
import logging
import os
import stat
import tempfile

from jaxcnn.errors import UserError

log = logging.getLogger('jaxcnn')


def is_writable(folder: str) -> bool:
    """Return whether a folder, for example `~/.cache`, can be written to, or be created if it is missing."""
    path = os.path.expanduser(folder)
    if path.startswith('~'):  # the user has no home folder
        return False
    while not os.path.lexists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return os.path.isdir(path or '.') and os.access(path or '.', os.W_OK | os.X_OK)


def cache_folder(configured: str = '') -> str:
    """Return the cache folder.

    It is the configured folder, or else `$JAXCNN_CACHE`, or else `~/.cache/jaxcnn`. If the last is not writable, it is a
    temporary folder, and a warning is logged once.

    Args:
      configured: the value of `config.data.cache_dir`.

    Raises:
      UserError: the folder begins with `~` and there is no such home folder, or no temporary folder can be written.
    """
    folder = configured or os.environ.get('JAXCNN_CACHE', '')
    if not folder:
        return os.path.expanduser('~/.cache/jaxcnn') if is_writable('~/.cache/jaxcnn') else temporary_cache_folder()
    path = os.path.expanduser(folder)
    if path.startswith('~'):
        raise UserError(f'{folder!r}: there is no such home folder', hint='give the full path',
                        field='config.data.cache_dir' if configured else '$JAXCNN_CACHE')
    return path


@functools.cache
def temporary_cache_folder() -> str:
    """Return a cache folder among the temporary files that no other user can write to.

    Raises:
      UserError: no such folder can be created.
    """
    try:
        path = os.path.join(tempfile.gettempdir(), f'jaxcnn-{os.getuid()}')
        with contextlib.suppress(OSError):
            os.mkdir(path, 0o700)
        status = os.lstat(path)
        # compiled programs in it run unchecked, so no other user may be able to write to it
        is_private = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
        if not is_private:
            path = tempfile.mkdtemp(prefix='jaxcnn-')
    except OSError as e:
        raise UserError(f'no cache folder can be created: {e}', hint='set $JAXCNN_CACHE to a writable folder') from e
    log.warning('~/.cache/jaxcnn cannot be written to; using the cache folder %s; $JAXCNN_CACHE sets another', path)
    return path
