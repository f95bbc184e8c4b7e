"""Memory on the CPU: what XLA frees is kept for its next step, until too much is."""

import contextlib
import ctypes
import functools
import os
import sys

# of the C library: pages of 2 MiB for those who ask, one heap for all threads, and what was freed is kept
_SETTINGS = ('glibc.malloc.hugetlb=1', 'glibc.malloc.arena_max=1', f'glibc.malloc.mmap_threshold={1 << 40}',
             f'glibc.malloc.trim_threshold={1 << 40}')
_MARKER = 'JAXCNN_STARTED_ANEW'
_PART = 0.4  # of the machine's memory, from which on what is free is given back before each step


def keep() -> None:
    """Starts this command anew with memory that is kept, in pages of 2 MiB, where Linux gives them to those who ask.

    XLA takes its temporary memory anew for each step on the CPU, gigabytes for a large network; to have it from the system
    each time takes a tenth to a third of a step (docs/performance.md). Only a new process can have it otherwise: the C
    library reads its settings when it starts.
    """
    tunables = os.environ.get('GLIBC_TUNABLES', '')
    ours = sys.orig_argv[-len(sys.argv):] == sys.argv and os.path.isfile(sys.argv[0])  # not a notebook that runs us
    if not ours or 'glibc.malloc' in tunables or _MARKER in os.environ:
        return
    with contextlib.suppress(OSError):
        with open('/sys/kernel/mm/transparent_hugepage/enabled') as f:
            if '[madvise]' not in f.read():
                return
        settings = ':'.join(filter(None, [tunables, *_SETTINGS]))
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]],
                  {**os.environ, 'GLIBC_TUNABLES': settings, _MARKER: '1'})


@functools.cache
def _most() -> float:
    """Bytes of this process's part of what the machine, or the container, has."""
    limits = [os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')]
    with contextlib.suppress(OSError, ValueError), open('/sys/fs/cgroup/memory.max') as f:  # there may be no such limit
        limits.append(int(f.read()))
    return _PART * min(limits)


def give_back() -> None:
    """Gives the system what is free: the arrays of one run seldom fit the holes that the run before left."""
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # glibc's alone
    if trim:
        trim(0)


def ease() -> None:
    """Gives back what is free where this process, which keeps it, has much of the machine's memory: the C library finds no
    use for all of its holes, and would take more and more, up to five times what a step needs."""
    if _MARKER not in os.environ:
        return
    with contextlib.suppress(OSError, ValueError):  # on another system than Linux
        with open('/proc/self/statm') as f:
            held = int(f.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
        if held > _most():
            give_back()
