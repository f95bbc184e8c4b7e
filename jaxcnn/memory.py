"""Memory: settings that make a run faster on the CPU, and measurement of the peak."""

import contextlib
import ctypes
import gc
import importlib.util
import os
import resource
import sys

# of the C library: transparent pages of 2 MiB, one heap for all threads, and freed memory is not returned to the system
_SETTINGS = ('glibc.malloc.hugetlb=1', 'glibc.malloc.arena_max=1', f'glibc.malloc.mmap_threshold={1 << 40}',
             f'glibc.malloc.trim_threshold={1 << 40}')
_MARKER = 'JAXCNN_STARTED_ANEW'  # environment variable of the restarted command


def restart_with_retained_memory() -> None:
    """Restart this command with a C library that keeps freed memory, in pages of 2 MiB if Linux offers them on request.

    On the CPU, XLA allocates its temporary memory anew in each step, gigabytes for a large network. To get it from the
    system each time takes a tenth to a third of a step (docs/performance-log.md). The C library reads its settings when a
    process starts, so only a new process can have others. Nothing is done for a GPU, whose memory is not the host's.
    """
    gpu = os.path.exists('/dev/nvidiactl') and importlib.util.find_spec('jax_plugins')
    if gpu and os.environ.get('JAX_PLATFORMS') != 'cpu':
        return
    tunables = os.environ.get('GLIBC_TUNABLES', '')
    # a script or `python -m jaxcnn.cli`, and not for example a notebook that calls this function
    is_script = sys.orig_argv[-len(sys.argv):] == sys.argv and os.path.isfile(sys.argv[0])
    is_module = sys.orig_argv[-len(sys.argv) - 1:] == ['-m', 'jaxcnn.cli', *sys.argv[1:]]
    if not (is_script or is_module) or 'glibc.malloc' in tunables or _MARKER in os.environ:
        return
    with contextlib.suppress(OSError):
        with open('/sys/kernel/mm/transparent_hugepage/enabled', encoding='utf-8') as f:
            if '[madvise]' not in f.read():
                return
        settings = ':'.join(filter(None, [tunables, *_SETTINGS]))
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]],
                  {**os.environ, 'GLIBC_TUNABLES': settings, _MARKER: '1'})


def collect_garbage_less_often() -> None:
    """Make Python search for reference cycles less often.

    Most objects that importing and tracing create stay alive, and searching them takes a twelfth of a short run
    (docs/performance-log.md).
    """
    gc.set_threshold(50_000, 20, 10)


def peak_bytes() -> tuple[int, int | None]:
    """Return the peak memory of this process on the host and on its first device; the latter is None on a CPU."""
    import jax  # not at the top: the command may restart before JAX is needed
    # `getrusage` includes the process that started this one, but in a sandbox it may be the only source
    with open('/proc/self/status', encoding='utf-8', errors='replace') as f:
        kilobytes = [int(line.split()[1]) for line in f if line.startswith('VmHWM')]
    host = 1024 * (kilobytes[0] if kilobytes else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    device_stats = jax.local_devices()[0].memory_stats() or {}
    return host, device_stats.get('peak_bytes_in_use')


def release() -> None:
    """Return free memory to the system, since the arrays of a second run seldom fit the gaps that the first one left."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # only glibc has it
    if trim:
        trim(0)
