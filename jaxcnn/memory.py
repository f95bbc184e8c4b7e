"""Memory: on the CPU, what XLA frees is kept for its next step; and how much was held."""

import contextlib
import ctypes
import gc
import importlib.util
import os
import resource
import sys

# of the C library: pages of 2 MiB for those who ask, one heap for all threads, and what was freed is kept
_SETTINGS = ('glibc.malloc.hugetlb=1', 'glibc.malloc.arena_max=1', f'glibc.malloc.mmap_threshold={1 << 40}',
             f'glibc.malloc.trim_threshold={1 << 40}')
_MARKER = 'JAXCNN_STARTED_ANEW'


def keep() -> None:
    """Starts this command anew with memory that is kept, in pages of 2 MiB, where Linux gives them to those who ask.

    XLA takes its temporary memory anew for each step on the CPU, gigabytes for a large network; to have it from the system
    each time takes a tenth to a third of a step (docs/performance.md). Only a new process can have it otherwise: the C
    library reads its settings when it starts. On a GPU that memory is not the host's.
    """
    gpu = os.path.exists('/dev/nvidiactl') and importlib.util.find_spec('jax_plugins')
    if gpu and os.environ.get('JAX_PLATFORMS') != 'cpu':
        return
    tunables = os.environ.get('GLIBC_TUNABLES', '')
    ours = sys.orig_argv[-len(sys.argv):] == sys.argv and os.path.isfile(sys.argv[0])  # not a notebook that runs us
    if not ours or 'glibc.malloc' in tunables or _MARKER in os.environ:
        return
    with contextlib.suppress(OSError):
        with open('/sys/kernel/mm/transparent_hugepage/enabled', encoding='utf-8') as f:
            if '[madvise]' not in f.read():
                return
        settings = ':'.join(filter(None, [tunables, *_SETTINGS]))
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]],
                  {**os.environ, 'GLIBC_TUNABLES': settings, _MARKER: '1'})


def collect_less() -> None:
    """Lets Python look for cycles of garbage less often: objects that importing and tracing make mostly stay, and to look
    through them takes a twelfth of a short run (docs/performance.md)."""
    gc.set_threshold(50_000, 20, 10)


def peak() -> tuple[int, int | None]:
    """The most bytes that this process has held so far: of the host's memory, and of its first device's (None: a CPU's)."""
    import jax  # not before the command starts anew
    # `getrusage` tells of the process that started this one, too; a sandbox's kernel may have nothing better
    with open('/proc/self/status', encoding='utf-8', errors='replace') as f:
        told = [int(line.split()[1]) for line in f if line.startswith('VmHWM')]
    host = 1024 * (told[0] if told else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    of_device = jax.local_devices()[0].memory_stats() or {}
    return host, of_device.get('peak_bytes_in_use')


def give_back() -> None:
    """Gives the system what is free: the arrays of one run seldom fit the holes that the run before left."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # glibc's alone
    if trim:
        trim(0)
