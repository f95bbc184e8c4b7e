"""oneDNN as a library that XLA calls on the CPU: found, compiled once with the machine's own compiler, and loaded.

Its extra, `pip install 'jaxcnn[cpu]'`, holds oneDNN's library and headers; those of XLA's calls come with jaxlib. What
`onednn.cc` becomes is kept in `$JAXCNN_CACHE`, else `~/.cache/jaxcnn`, by versions.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.config import cache_folder
from jaxcnn.errors import UserError

log = logging.getLogger('jaxcnn')
TARGET = 'jaxcnn_conv'
SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'onednn.cc')
FLAGS = ('-O3', '-march=native', '-ffp-contract=fast', '-std=c++17', '-shared', '-fPIC', '-fopenmp', '-w')
_LOADING = threading.Lock()
LIBRARY, HEADERS = 'onednn-cpu-gomp', 'onednn-devel-cpu-gomp'


class _MissingError(Exception):
    """Why oneDNN cannot be used here."""


def _find(package: str, name: str) -> str:
    """The path of a file of an installed package."""
    try:
        found = [f for f in importlib.metadata.files(package) or () if f.as_posix().endswith(name)]
    except importlib.metadata.PackageNotFoundError:
        found = []
    if not found or not os.path.exists(found[0].locate()):
        raise _MissingError(f"{package} is not installed: pip install 'jaxcnn[cpu]'")
    return os.path.realpath(found[0].locate())


def _compile(headers: str, library: str) -> bytes:
    compiler = shlex.split(os.environ.get('CXX', '')) or [c for c in map(shutil.which, ('g++', 'c++')) if c][:1]
    if not compiler:
        raise _MissingError('no C++ compiler (g++) was found')
    log.info('compiling the convolutions for this machine, once')
    with tempfile.TemporaryDirectory() as folder:
        target = os.path.join(folder, 'conv.so')
        try:
            subprocess.run([*compiler, *FLAGS, f'-I{headers}', f'-I{jax.ffi.include_dir()}', SOURCE, library, '-o', target],
                           check=True, capture_output=True, text=True, timeout=300)
        except subprocess.CalledProcessError as e:
            raise _MissingError(f'{compiler[0]} could not compile it: {" ".join(e.stderr.split())[:300]}') from e
        except (OSError, subprocess.TimeoutExpired) as e:
            raise _MissingError(f'{compiler[0]}: {e}') from e
        with open(target, 'rb') as f:
            return f.read()


def _kept(path: str) -> bool:
    """Whether a compiled library is there and whole: its checksum is its last 32 bytes."""
    try:
        with open(path, 'rb') as f:
            content = f.read()
    except OSError:
        return False
    return hashlib.sha256(content[:-32]).digest() == content[-32:]


@functools.cache
def source_key() -> str:
    """Changes with what is compiled, and with the processor's instructions."""
    found = hashlib.sha256()
    for name in ('onednn.cc', 'winograd.h'):
        with open(os.path.join(os.path.dirname(SOURCE), name), 'rb') as f:
            found.update(f.read())
    with contextlib.suppress(OSError), open('/proc/cpuinfo') as f:
        found.update(next((line for line in f if line.startswith('flags')), '').encode())
    return found.hexdigest()


def _build() -> str:
    """The path of the compiled library."""
    library = _find(LIBRARY, 'libdnnl.so.3')
    headers = os.path.dirname(os.path.dirname(os.path.dirname(_find(HEADERS, 'oneapi/dnnl/dnnl.hpp'))))
    key = repr([source_key(), importlib.metadata.version(LIBRARY), importlib.metadata.version('jaxlib'),
                platform.machine(), platform.libc_ver(), FLAGS, os.environ.get('CXX')])
    name = f'conv-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so'
    path = os.path.join(cache_folder(), 'onednn', name)
    if _kept(path):
        return path
    content = _compile(headers, library)
    content += hashlib.sha256(content).digest()
    try:
        return _write(path, content)
    except OSError as e:
        log.info('%s: %s; the convolutions will be compiled at each start', os.path.dirname(path), e.strerror or e)
        return _write(os.path.join(tempfile.mkdtemp(), name), content)


def _write(path: str, content: bytes) -> str:
    """Writes it under a name of its own and renames that: several processes may do so at the same time."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=os.path.dirname(path), delete=False) as new:
        new.write(content)
    os.chmod(new.name, 0o755)
    os.replace(new.name, path)
    return path


def library() -> Any:
    """The library, or None: told once, with the reason."""
    with _LOADING:
        return _library()


@functools.cache
def _library() -> Any:
    try:
        if (platform.system(), platform.machine()) != ('Linux', 'x86_64'):
            raise _MissingError(f'it is for Linux on x86_64, and this is {platform.system()} on {platform.machine()}')
        path = _build()
        os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')  # its threads sleep while XLA's work
        ctypes.CDLL(_find(LIBRARY, 'libdnnl.so.3'))
        loaded = ctypes.CDLL(path)
        jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(loaded.JaxcnnConv), platform='cpu')
        return loaded
    except (_MissingError, OSError) as e:
        log.info('convolutions without oneDNN, which is faster on the CPU: %s', e)
        return None


@functools.cache
def _has_bfloat16() -> bool:
    try:
        with open('/proc/cpuinfo') as f:
            return 'avx512_bf16' in f.read()
    except OSError:
        return False


def available(dtype: Any) -> bool:
    """Whether convolutions of this type can be done here."""
    return (dtype == jnp.float32 or (dtype == jnp.bfloat16 and _has_bfloat16())) and library() is not None


def require(dtype: Any) -> None:
    """Raises a UserError where they cannot."""
    if not available(dtype):
        raise UserError(f"convolutions by oneDNN are not to be had here for {jnp.dtype(dtype).name}: "
                        f"see the log; pip install 'jaxcnn[cpu]' and g++ are needed")


def counts() -> dict[str, int]:
    """Calls made so far in this process, images in them, and compiled primitives that are kept."""
    loaded, found = library(), np.zeros(3, np.int64)
    if loaded is not None:
        loaded.JaxcnnConvCounts(found.ctypes.data_as(ctypes.c_void_p))
    return dict(zip(('calls', 'images', 'plans'), found.tolist(), strict=True))
