"""JAX's persistent compilation cache, with entries that are written atomically and removed when they are damaged.

JAX writes entries in place and never replaces one. A process that is killed while it writes leaves an incomplete entry, and
each later run would warn about it and compile the program again. JAX has no public interface to change this.
"""

import contextlib
import logging
import os
from typing import Any

from jax._src import compilation_cache
from jax._src.compilation_cache import decompress_executable
from jax._src.lru_cache import LRUCache

from jaxcnn.files import open_replacement

log = logging.getLogger('jaxcnn')


class AtomicCache(LRUCache):
    """JAX's cache with atomic writes, unless its size is limited or it is on a remote file system: then JAX writes entries.

    Each instance warns once of damaged entries, and once of each reason for which entries cannot be written.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._warnings: set[str] = set()

    def _warn_once(self, message: str) -> None:
        if message not in self._warnings:
            self._warnings.add(message)
            log.warning('%s: %s', self.path, message)

    def _entry_path(self, key: str) -> str:
        return os.path.join(str(self.path), f'{key}-cache')

    def get(self, key: str) -> bytes | None:
        """Return the entry of a key; None if there is none or it is damaged."""
        value: bytes | None = super().get(key)
        if value is None:
            return None
        try:
            decompress_executable(value)
        except Exception:  # of zlib or zstandard
            self._warn_once('damaged entries of the compilation cache are removed, and their programs compiled again')
            with contextlib.suppress(OSError):
                os.remove(self._entry_path(key))
            return None
        return value

    def put(self, key: str, value: bytes) -> None:
        """Write an entry, which replaces an entry that could not be loaded."""
        if self.eviction_enabled or '://' in str(self.path):
            super().put(key, value)
            return
        try:
            with open_replacement(self._entry_path(key), 'wb') as f:
                f.write(value)
        except OSError as e:
            self._warn_once(f'compiled programs cannot be cached: {e.strerror}')


def install() -> None:
    """Make JAX use `AtomicCache` when it next opens its cache."""
    compilation_cache.LRUCache = AtomicCache  # type: ignore[misc]
