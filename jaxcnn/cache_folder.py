"""The folder for what can be made again: decoded images, compiled programs, libraries."""

import contextlib
import functools
import logging
import os
import stat
import tempfile

from jaxcnn.errors import UserError

log = logging.getLogger('jaxcnn')


def is_writable(folder: str) -> bool:
    """Whether a folder, `~/...` included, can be written, or made where it is missing."""
    path = os.path.expanduser(folder)
    if path.startswith('~'):  # this user has no home folder
        return False
    while not os.path.lexists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return os.path.isdir(path or '.') and os.access(path or '.', os.W_OK | os.X_OK)


def cache_folder(given: str = '') -> str:
    """Where what can be made again is kept: as given, else `$JAXCNN_CACHE`, else `~/.cache/jaxcnn`, or, where that cannot be
    written, a temporary folder, which is logged once.

    Raises:
      UserError: the given folder begins with `~` and this user has no home folder, or no temporary folder can be written.
    """
    if chosen := given or os.environ.get('JAXCNN_CACHE', ''):
        path = os.path.expanduser(chosen)
        if path.startswith('~'):
            where = 'config.data.cache_dir' if given else '$JAXCNN_CACHE'
            raise UserError(f'{chosen!r}: there is no such home folder; give the whole path', field=where)
        return path
    return os.path.expanduser('~/.cache/jaxcnn') if is_writable('~/.cache/jaxcnn') else _temporary_cache_folder()


@functools.cache
def _temporary_cache_folder() -> str:
    try:
        path = os.path.join(tempfile.gettempdir(), f'jaxcnn-{os.getuid()}')
        with contextlib.suppress(OSError):
            os.mkdir(path, 0o700)
        status = os.lstat(path)
        # compiled programs are run as they are: nobody else may write there
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
            path = tempfile.mkdtemp(prefix='jaxcnn-')
    except OSError as e:
        raise UserError(f'no folder for caches can be written ({e}): set $JAXCNN_CACHE to one that can') from e
    log.warning('~/.cache/jaxcnn cannot be written: caches are kept in %s; $JAXCNN_CACHE names another folder', path)
    return path
