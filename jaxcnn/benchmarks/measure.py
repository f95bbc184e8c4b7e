"""Utilities of the benchmarks: tables, throughput of a step, limits of the machine, and a separate PyTorch process."""

import collections
import dataclasses
import datetime
import json
import math
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from jaxcnn.errors import UserError

TRAIN_COMMAND = [sys.executable, '-m', 'jaxcnn.cli', 'train']
PEER_PACKAGES = {'airbench': 'airbench==0.1.8 (--no-deps)', 'captum': 'captum==0.9.0 (--no-deps)'}  # of single benchmarks
TORCH_PEER = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'torch_peer')


def machine() -> dict:
    """Return the device, the number of devices and cores, and the versions of Python and JAX."""
    import jax
    return {'device': jax.devices()[0].device_kind, 'devices': jax.device_count(), 'cores': os.cpu_count(),
            'python': platform.python_version(), 'jax': jax.__version__}


@dataclasses.dataclass
class Table:
    """The results of a benchmark: a title, the lines of a Markdown table, and the figures for JSON."""

    title: str
    lines: list[str]
    figures: dict[str, object]


def table(title: str, unit: str, columns: dict[str, list[float]], **figures: object) -> Table:
    """Make a table with the median, the minimum and the maximum of each measurement.

    Args:
      title: title of the table.
      unit: unit of the measurements.
      columns: the values of each measurement, by its name.
      **figures: further entries of the JSON.
    """
    return Table(f'{title}, {unit}', ['| | median | minimum | maximum |', '|---|---|---|---|', *(
        f'| {name} | {statistics.median(values):.4g} | {min(values):.4g} | {max(values):.4g} |'
        for name, values in columns.items())], {'unit': unit, 'values': columns, **figures})


def write(path: str, result: Table) -> None:
    """Write a table into a Markdown file, where it replaces its previous version or is appended."""
    begin, end = f'<!-- launch/benchmark.py: {result.title}, {machine()["device"]} -->', '<!-- end -->'
    content = ''
    if os.path.exists(path):
        with open(path, encoding='utf-8') as f:
            content = f.read()
    before, is_update, after = content.partition(begin)
    after = after.partition(end)[2] if is_update else '\n'
    source = f'`{shlex.join(["python", *sys.argv])}`, {datetime.date.today()}, {json.dumps(machine())}'
    section = [begin, f'**{result.title}**, {source}:', '', *result.lines, end]
    with open(path, 'w', encoding='utf-8') as f:
        f.write((before if is_update or not before else before.rstrip('\n') + '\n\n') + '\n'.join(section) + after)


def median_and_range(values: list[float]) -> str:
    """Format the median of some values and their range, as in `3 (2 to 4)`."""
    return f'{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})'


def on_cpu() -> bool:
    """Return whether JAX computes on the CPU."""
    import jax
    return jax.default_backend() == 'cpu'


def images_per_second(step: Callable[[], object], images: int, seconds: float) -> float:
    """Measure the throughput of a step in images/s.

    On a GPU, two steps are dispatched ahead, so that it does not wait for the host.

    Args:
      step: dispatches a step and returns its results.
      images: number of images of a step.
      seconds: duration of the measurement.
    """
    import jax
    ahead, pending = 0 if on_cpu() else 2, collections.deque[object]()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        pending.append(step())
        count += 1
        if len(pending) > ahead:
            jax.block_until_ready(pending.popleft())
    jax.block_until_ready(pending)
    return count * images / (time.perf_counter() - began)


def best_time(work: Callable[..., object], *operands: object) -> float:
    """Return the shortest time of ten calls of a compiled function, in seconds."""
    import jax
    compiled, times = jax.jit(work), []
    jax.block_until_ready(compiled(*operands))
    for _ in range(10):
        began = time.perf_counter()
        jax.block_until_ready(compiled(*operands))
        times.append(time.perf_counter() - began)
    return min(times)


def matmul_rate(dtype: str) -> float:
    """Measure the FLOP/s of a product of two matrices, which are 2048 x 2048 on a CPU and 8192 x 8192 on a GPU."""
    import jax
    side = 2048 if on_cpu() else 8192
    a = jax.random.normal(jax.random.key(0), (side, side), dtype)
    return 2 * side ** 3 / best_time(lambda a: a @ a, a)


def memory_bandwidth() -> float:
    """Measure the bytes/s that are read and written when 1 is added to an array.

    The array has 64 million float32 values on a CPU and 512 million on a GPU.
    """
    import jax.numpy as jnp
    x = jnp.zeros(2 ** 26 if on_cpu() else 2 ** 29)
    return 2 * x.nbytes / best_time(lambda x: x + 1, x)


_SHAPE = re.compile(r'\b(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\]')
_LINE = re.compile(r'\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)')
_FREE = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'partition-id'}


def _size(shape: str) -> int:
    """Return the size in bytes of an array or of a tuple of arrays, given its shape in XLA's notation."""
    return sum(math.prod(map(int, filter(None, sides.split(',')))) * int(bits or 8) // 8
               for _, bits, sides in _SHAPE.findall(shape))


def memory_traffic(program: str) -> int:
    """Return the bytes that a compiled program reads and writes, given its text.

    The sizes of the operands and results of all operations are summed, where a fusion counts as one operation. XLA's own
    count omits custom calls, which include cuDNN's convolutions, cuBLAS's matrix products and jaxcnn's kernels on the CPU.
    The body of a loop is counted once, and the branches of a conditional are not counted.
    """
    bodies: dict[str, list[re.Match[str]]] = {}
    body: list[re.Match[str]] = []
    entry = ''
    for line in program.splitlines():
        if line.endswith('{') and (head := re.match(r'(ENTRY )?%?([\w.\-]+) ', line)):
            body = bodies[head[2]] = []
            entry = head[2] if head[1] else entry
        elif operation := _LINE.match(line):
            body.append(operation)
    sizes = {operation[1]: _size(operation[2]) for body in bodies.values() for operation in body}

    def computation_bytes(name: str) -> int:
        total = 0
        for operation in bodies[name]:
            _, shape, kind, rest = operation.groups()
            if kind in ('call', 'while'):
                total += sum(computation_bytes(called) for called in re.findall(r'(?:to_apply|body)=%?([\w.\-]+)', rest))
            elif kind not in _FREE and not kind.endswith('-done'):
                if kind == 'custom-call':
                    shape = re.sub(r'\bu8\[[\d,]*\]', '', shape)  # workspace
                operands = sum(sizes.get(name, 0) for name in re.findall(r'%([\w.\-]+)', rest.split('), ')[0]))
                # the result of other asynchronous operations contains their operands
                has_operands = kind.endswith('-start') and kind != 'all-reduce-start'
                total += _size(shape) + (0 if has_operands else operands)
        return total
    return computation_bytes(entry)


def clean_environment() -> dict[str, str]:
    """Return the environment without the variables that jaxcnn's commands set for themselves."""
    internal = 'GLIBC_TUNABLES', 'OMP_WAIT_POLICY', 'JAXCNN_STARTED_ANEW', 'XLA_PYTHON_CLIENT_PREALLOCATE'
    return {k: v for k, v in os.environ.items() if k not in internal}


def require_packages(python: str, needed: str, *packages: str) -> None:
    """Raise a UserError if a Python interpreter lacks a package.

    Args:
      python: Python interpreter.
      needed: names and versions of the packages, for the message.
      *packages: names of the packages as they are imported.
    """
    code = 'import importlib.util, sys; print(*[p for p in sys.argv[1:] if not importlib.util.find_spec(p)])'
    try:
        done = subprocess.run([python, '-c', code, *packages], capture_output=True, text=True)
    except OSError as e:
        raise UserError(f'--torch_python: {python!r} cannot be run: {e.strerror}') from e
    if done.returncode or done.stdout.strip():
        raise UserError(f'--torch_python: {python!r} lacks {done.stdout.strip() or "a Python that runs"}; it needs {needed}')


def require_torch(python: str, *extra: str) -> None:
    """Raise a UserError if a Python interpreter lacks a package of the PyTorch peer or one of the `extra` packages."""
    needed = ['torch==2.13.0', 'pytorchcv==0.0.67', 'pillow', *(PEER_PACKAGES[name] for name in extra)]
    require_packages(python, ', '.join(needed), 'torch', 'pytorchcv', 'PIL', *extra)


class TorchPeer:
    """A measurement with PyTorch, in a process that runs `torch_peer/`.

    Args:
      python: Python interpreter with PyTorch.
      *arguments: command-line arguments of `torch_peer/`.
    """

    def __init__(self, python: str, *arguments: object):
        self.process = subprocess.Popen(
            [python, TORCH_PEER, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=clean_environment())
        self.answer()

    def answer(self) -> str:
        """Return the next line of output; raise a UserError if the process has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f'the PyTorch process ended with {self.process.wait()}; its output is above')
        return line

    def __call__(self, seconds: float) -> float:
        """Measure for a number of seconds, and return the images/s."""
        print(seconds, file=self.process.stdin, flush=True)
        return float(self.answer())

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait()
