"""JAX's persistent compilation cache, whose entries are written whole, and removed where they are damaged.

JAX writes an entry in place, so a process that is killed meanwhile leaves a part of it, and it never replaces an entry: each
later start would warn about it and compile the program again. JAX has no public interface for this.
"""

import contextlib
import functools
import logging
import os
import secrets

from jax._src import compilation_cache
from jax._src.compilation_cache import decompress_executable
from jax._src.lru_cache import LRUCache

log = logging.getLogger('jaxcnn')


@functools.cache
def _warn_once(message: str) -> None:
    log.warning(message)


class WholeEntries(LRUCache):
    """The cache in a local folder; with `jax_compilation_cache_max_size`, or on a remote file system, JAX writes entries."""

    def _file(self, key: str) -> str:
        return os.path.join(str(self.path), f'{key}-cache')

    def get(self, key: str) -> bytes | None:
        """The entry of `key`; None without one, and where it was damaged."""
        value: bytes | None = super().get(key)
        if value is None:
            return None
        try:
            decompress_executable(value)
        except Exception:  # of zlib or zstandard
            _warn_once(f'{self.path}: damaged entries of the compilation cache are removed, and compiled anew')
            with contextlib.suppress(OSError):
                os.remove(self._file(key))
            return None
        return value

    def put(self, key: str, value: bytes) -> None:
        """Writes an entry under a temporary name and renames it; one that is there, which could not be used, is replaced."""
        if self.eviction_enabled or '://' in str(self.path):
            super().put(key, value)
            return
        temporary = f'{self._file(key)}.{secrets.token_hex(4)}.tmp'
        try:
            try:
                with open(temporary, 'xb') as f:
                    f.write(value)
                os.replace(temporary, self._file(key))
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(temporary)
        except OSError as e:
            _warn_once(f'{self.path}: compiled programs are not kept: {e.strerror}')


def install() -> None:
    """Makes JAX use `WholeEntries`, from the next time on that it opens its cache."""
    compilation_cache.LRUCache = WholeEntries  # type: ignore[misc]
