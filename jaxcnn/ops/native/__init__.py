"""Our kernels and oneDNN's as a library that XLA calls on the CPU: compiled once by the machine's own compiler.

Its extra, `pip install 'jaxcnn[cpu]'`, holds oneDNN's library and headers; those of XLA's calls come with jaxlib. What
`calls.cc` and its headers become is kept in `$JAXCNN_CACHE`, else `~/.cache/jaxcnn`, by versions.
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
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcnn.cache_folder import cache_folder
from jaxcnn.errors import UserError

log = logging.getLogger('jaxcnn')
CONV, SUMS, MOMENTS = 'jaxcnn_conv', 'jaxcnn_sums', 'jaxcnn_moments'
SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'calls.cc')
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
                           check=True, capture_output=True, encoding='utf-8', errors='replace', timeout=300)
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
    folder = os.path.dirname(SOURCE)
    for name in sorted(n for n in os.listdir(folder) if n.endswith(('.cc', '.h'))):
        with open(os.path.join(folder, name), 'rb') as f:
            found.update(f.read())
    with contextlib.suppress(OSError), open('/proc/cpuinfo', encoding='utf-8') as f:
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
        for target, symbol in ((CONV, loaded.JaxcnnConv), (SUMS, loaded.JaxcnnSums), (MOMENTS, loaded.JaxcnnMoments)):
            jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(symbol), platform='cpu')
        return loaded
    except (_MissingError, OSError) as e:
        log.info('convolutions without oneDNN, which is faster on the CPU: %s', e)
        return None


@functools.cache
def _has_bfloat16() -> bool:
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as f:
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


def spread(call: Callable[..., jax.Array], what: Any, rule: str, split: Sequence[bool],
           merge: Callable[[jax.Array, Any], jax.Array] | None) -> Callable[..., jax.Array]:
    """A call of the library with its rule for several devices, over which XLA does not split a call by itself: each does
    its part of the batch.

    Args:
      call: of arrays; gives one.
      what: tells this call from others of the same shapes.
      rule: names of the dimensions, in which `n` is the batch, the leading one.
      split: which of the operands have the batch.
      merge: makes the result of the results of each device's part, given them and the devices' axis, as `lax.psum` does;
        None: the result has the batch.
    """
    def partition(mesh: Any, operands: Any, result: Any) -> Any:
        spec = operands[split.index(True)].sharding.spec
        batch = spec[0] if spec else None
        rows, whole = NamedSharding(mesh, P(batch)), NamedSharding(mesh, P())

        def lower(*arrays: jax.Array) -> jax.Array:
            found = call(*arrays)
            return merge(found, batch) if merge and batch else found
        return mesh, lower, whole if merge else rows, tuple(rows if s else whole for s in split)

    whole = dict.fromkeys(letter for letter in rule if letter.isalpha() and letter != 'n')
    partitioned = custom_partitioning(call)
    partitioned.def_partition(partition=partition, sharding_rule=rule, need_replication_factors=tuple(whole),
                              reduction_factors=('n',) if merge else ())

    def named(*arrays: jax.Array) -> jax.Array:
        return partitioned(*arrays)
    # until XLA has split it over devices, a program holds no more of the call than an address: without a name that tells
    # one from another, the compilation cache would take programs of the same shapes for each other
    named.__name__ = f'jaxcnn_{hashlib.sha256(repr((what, source_key())).encode()).hexdigest()[:16]}'
    return jax.jit(named)


def each(call: Callable[..., jax.Array], size: int, mapped: Sequence[bool], *operands: jax.Array) -> tuple[jax.Array, bool]:
    """The rule for `vmap` of a call that has no better one: one after the other."""
    every = [x if m else jnp.broadcast_to(x, (size, *x.shape)) for x, m in zip(operands, mapped, strict=True)]
    return lax.map(lambda arrays: call(*arrays), tuple(every)), True
