"""A C++ library that XLA calls through `jax.ffi`, with kernels for the CPU and calls to oneDNN.

It is compiled on the machine at first use. The library and headers of oneDNN are installed by `pip install 'jaxcnn[cpu]'`,
and the headers of `jax.ffi` by jaxlib. The compiled library is cached in `$JAXCNN_CACHE`, or in `~/.cache/jaxcnn` if that
is not set.
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
from jaxcnn.files import open_replacement

log = logging.getLogger('jaxcnn')
CONV, SUMS, MOMENTS = 'jaxcnn_conv', 'jaxcnn_sums', 'jaxcnn_moments'
QUANTIZED_CONV, QUANTIZED_SUM = 'jaxcnn_quantized_conv', 'jaxcnn_quantized_sum'
SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'calls.cc')
# Without the alignment, the speed of the inner loops would depend by up to 20 % on where the compiler happens to place them.
FLAGS = ('-O3', '-march=native', '-ffp-contract=fast', '-falign-functions=64', '-std=c++17', '-shared', '-fPIC', '-fopenmp',
         '-w')
LIBRARY, HEADERS = 'onednn-cpu-gomp', 'onednn-devel-cpu-gomp'
_BFLOAT16_BIT = 0x80  # set in the values of dnnl_cpu_isa_t that have AVX512-BF16; they include those with AMX
_LOAD_LOCK = threading.Lock()


class UnavailableError(Exception):
    """The library cannot be used on this machine; the message says why."""


def installed_file(package: str, ending: str) -> str:
    """Return the path of the file of an installed package whose path ends with `ending`."""
    try:
        files = [f for f in importlib.metadata.files(package) or () if f.as_posix().endswith(ending)]
    except importlib.metadata.PackageNotFoundError:
        files = []
    if not files or not os.path.exists(files[0].locate()):
        raise UnavailableError(f"{package} is not installed: pip install 'jaxcnn[cpu]'")
    return os.path.realpath(files[0].locate())


def _compile(headers: str, onednn: str) -> bytes:
    """Compile the library and return its content."""
    compiler = shlex.split(os.environ.get('CXX', '')) or [c for c in map(shutil.which, ('g++', 'c++')) if c][:1]
    if not compiler:
        raise UnavailableError('no C++ compiler (g++) was found')
    log.info('compiling the CPU kernels for this machine (only once)')
    with tempfile.TemporaryDirectory() as folder:
        output = os.path.join(folder, 'conv.so')
        command = [*compiler, *FLAGS, f'-I{headers}', f'-I{jax.ffi.include_dir()}', SOURCE, onednn, '-o', output]
        try:
            subprocess.run(command, check=True, capture_output=True, encoding='utf-8', errors='replace', timeout=300)
        except subprocess.CalledProcessError as e:
            message = ' '.join(e.stderr.split())[:300]
            raise UnavailableError(f'{compiler[0]} could not compile the CPU kernels: {message}') from e
        except (OSError, subprocess.TimeoutExpired) as e:
            raise UnavailableError(f'{compiler[0]}: {e}') from e
        with open(output, 'rb') as f:
            return f.read()


def _is_intact(path: str) -> bool:
    """Return whether a cached library exists and matches its checksum, the last 32 bytes of the file."""
    try:
        with open(path, 'rb') as f:
            content = f.read()
    except OSError:
        return False
    return hashlib.sha256(content[:-32]).digest() == content[-32:]


@functools.cache
def source_key() -> str:
    """Return a digest of the C++ source and of the processor's instruction sets."""
    digest = hashlib.sha256()
    folder = os.path.dirname(SOURCE)
    for name in sorted(n for n in os.listdir(folder) if n.endswith(('.cc', '.h'))):
        with open(os.path.join(folder, name), 'rb') as f:
            digest.update(f.read())
    with contextlib.suppress(OSError), open('/proc/cpuinfo', encoding='utf-8') as f:
        digest.update(next((line for line in f if line.startswith('flags')), '').encode())
    return digest.hexdigest()


def build() -> str:
    """Return the path of the compiled library, and compile it unless it is cached.

    Raises:
      UnavailableError: The library cannot be compiled on this machine.
    """
    if (platform.system(), platform.machine()) != ('Linux', 'x86_64'):
        raise UnavailableError(f'it needs Linux on x86_64, and this is {platform.system()} on {platform.machine()}')
    onednn = installed_file(LIBRARY, 'libdnnl.so.3')
    headers = os.path.dirname(os.path.dirname(os.path.dirname(installed_file(HEADERS, 'oneapi/dnnl/dnnl.hpp'))))
    key = repr([source_key(), importlib.metadata.version(LIBRARY), importlib.metadata.version('jaxlib'),
                platform.machine(), platform.libc_ver(), FLAGS, os.environ.get('CXX')])
    name = f'conv-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so'
    path = os.path.join(cache_folder(), 'onednn', name)
    if _is_intact(path):
        return path
    content = _compile(headers, onednn)
    content += hashlib.sha256(content).digest()
    try:
        return _write(path, content)
    except OSError as e:
        log.info('%s: %s; the CPU kernels will be compiled at each start', os.path.dirname(path), e.strerror or e)
        return _write(os.path.join(tempfile.mkdtemp(), name), content)


def _write(path: str, content: bytes) -> str:
    """Write an executable file and return its path. Several processes may do this at the same time."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open_replacement(path, 'wb') as f:
        f.write(content)
        os.fchmod(f.fileno(), 0o755)
    return path


def library() -> Any:
    """Return the loaded library, or None if it cannot be used; the reason is logged once."""
    with _LOAD_LOCK:
        return _library()


@functools.cache
def _library() -> Any:
    try:
        path = build()
        os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')  # OpenMP's threads sleep while XLA's work
        ctypes.CDLL(installed_file(LIBRARY, 'libdnnl.so.3'))
        loaded = ctypes.CDLL(path)
        for target, symbol in ((CONV, loaded.JaxcnnConv), (SUMS, loaded.JaxcnnSums), (MOMENTS, loaded.JaxcnnMoments),
                               (QUANTIZED_CONV, loaded.JaxcnnQuantizedConv), (QUANTIZED_SUM, loaded.JaxcnnQuantizedSum)):
            jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(symbol), platform='cpu')
        return loaded
    except (UnavailableError, OSError) as e:
        log.info('convolutions on the CPU run without oneDNN, which is slower: %s', e)
        return None


def available(dtype: Any) -> bool:
    """Return whether the library can be used on this machine for arrays of this type.

    bfloat16 needs instructions of the processor that `$ONEDNN_MAX_CPU_ISA` does not forbid.
    """
    loaded = library() if dtype in (jnp.float32, jnp.bfloat16) else None
    return loaded is not None and (dtype == jnp.float32 or bool(loaded.JaxcnnInstructionSet() & _BFLOAT16_BIT))


def require(dtype: Any) -> None:
    """Raise a UserError if the library cannot be used for arrays of this type."""
    if not available(dtype):
        raise UserError(f"oneDNN is not available on this machine for {jnp.dtype(dtype).name} convolutions; it needs "
                        f"pip install 'jaxcnn[cpu]' and g++, and the log says what is missing")


def counts() -> dict[str, int]:
    """Return the numbers of convolution `calls` in this process, of their `images`, and of cached `primitives`."""
    loaded, values = library(), np.zeros(3, np.int64)
    if loaded is not None:
        loaded.JaxcnnConvCounts(values.ctypes.data_as(ctypes.c_void_p))
    return dict(zip(('calls', 'images', 'primitives'), values.tolist(), strict=True))


def partition_batch(call: Callable[..., jax.Array], key: Any, rule: str, is_batched: Sequence[bool],
                    merge: Callable[[jax.Array, Any], jax.Array] | None) -> Callable[..., jax.Array]:
    """Return a call of the library that XLA partitions over devices: each device computes its part of the batch.

    XLA does not partition custom calls by itself.

    Args:
      call: function of arrays that returns an array.
      key: value that distinguishes this call from others with operands of the same shapes.
      rule: sharding rule, which names the dimensions. `n` is the batch dimension, which must be the leading one.
      is_batched: for each operand, whether it has the batch dimension.
      merge: function that combines the results of the devices, such as `lax.psum`, given the result of a device and the mesh
        axis; None if the result has the batch dimension.
    """
    def partition(mesh: Any, operands: Any, result: Any) -> Any:
        spec = operands[is_batched.index(True)].sharding.spec
        axis = spec[0] if spec else None
        split, replicated = NamedSharding(mesh, P(axis)), NamedSharding(mesh, P())

        def lower(*arrays: jax.Array) -> jax.Array:
            device_result = call(*arrays)
            return merge(device_result, axis) if merge and axis else device_result
        return mesh, lower, replicated if merge else split, tuple(split if b else replicated for b in is_batched)

    unsplit = dict.fromkeys(letter for letter in rule if letter.isalpha() and letter != 'n')
    partitioned = custom_partitioning(call)
    partitioned.def_partition(partition=partition, sharding_rule=rule, need_replication_factors=tuple(unsplit),
                              reduction_factors=('n',) if merge else ())

    def named(*arrays: jax.Array) -> jax.Array:
        return partitioned(*arrays)
    # Until XLA has partitioned a program, the program identifies the call only by an address. The name prevents the
    # compilation cache from confusing programs with operands of the same shapes.
    named.__name__ = f'jaxcnn_{hashlib.sha256(repr((key, source_key())).encode()).hexdigest()[:16]}'
    return jax.jit(named)


def vmap_sequentially(call: Callable[..., jax.Array], size: int, is_mapped: Sequence[bool],
                      *operands: jax.Array) -> tuple[jax.Array, bool]:
    """Apply a call to the elements of the mapped axis one after another, as the default `vmap` rule of calls."""
    mapped = [x if m else jnp.broadcast_to(x, (size, *x.shape)) for x, m in zip(operands, is_mapped, strict=True)]
    return lax.map(lambda arrays: call(*arrays), tuple(mapped)), True
