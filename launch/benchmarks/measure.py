"""What all benchmarks are made of: tables, images/s of a step, the machine's limits, PyTorch in a process of its own."""

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

LAUNCH = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TORCH_PEER = os.path.join(LAUNCH, 'benchmarks', 'torch_peer')


def machine() -> dict:
    import jax
    return {'device': jax.devices()[0].device_kind, 'devices': jax.device_count(), 'cores': os.cpu_count(),
            'python': platform.python_version(), 'jax': jax.__version__}


@dataclasses.dataclass
class Table:
    """What was measured: Markdown for a person, figures for a program."""

    title: str
    lines: list[str]
    figures: dict[str, object]


def table(title: str, unit: str, columns: dict[str, list[float]], **more: object) -> Table:
    return Table(f'{title}, {unit}', ['| | median | least | most |', '|---|---|---|---|', *(
        f'| {name} | {statistics.median(values):.4g} | {min(values):.4g} | {max(values):.4g} |'
        for name, values in columns.items())], {'unit': unit, 'values': columns, **more})


def write(path: str, made: Table) -> None:
    """Puts the table into a Markdown file: where it was when it was written before, else at the end."""
    begin, end = f'<!-- launch/benchmark.py: {made.title}, {machine()["device"]} -->', '<!-- end -->'
    held = ''
    if os.path.exists(path):
        with open(path, encoding='utf-8') as f:
            held = f.read()
    before, found, after = held.partition(begin)
    after = after.partition(end)[2] if found else '\n'
    told = f'`{shlex.join(["python", *sys.argv])}`, {datetime.date.today()}, {json.dumps(machine())}'
    section = [begin, f'**{made.title}**, {told}:', '', *made.lines, end]
    with open(path, 'w', encoding='utf-8') as f:
        f.write((before if found or not before else before.rstrip('\n') + '\n\n') + '\n'.join(section) + after)


def spread(values: list[float]) -> str:
    return f'{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})'


def on_cpu() -> bool:
    import jax
    return jax.default_backend() == 'cpu'


def rate(step: Callable[[], object], images: int, seconds: float) -> float:
    """Images/s of a step of so many, over that long; a GPU is given two steps ahead."""
    import jax
    ahead, under_way = 0 if on_cpu() else 2, collections.deque[object]()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        under_way.append(step())
        count += 1
        if len(under_way) > ahead:
            jax.block_until_ready(under_way.popleft())
    jax.block_until_ready(under_way)
    return count * images / (time.perf_counter() - began)


def quickest(work: Callable[..., object], *operands: object) -> float:
    """Seconds, the best of ten."""
    import jax
    compiled, times = jax.jit(work), []
    jax.block_until_ready(compiled(*operands))
    for _ in range(10):
        began = time.perf_counter()
        jax.block_until_ready(compiled(*operands))
        times.append(time.perf_counter() - began)
    return min(times)


def product_rate(dtype: str) -> float:
    """FLOP/s of a matrix product of 2048 x 2048, on a GPU 8192 x 8192."""
    import jax
    side = 2048 if on_cpu() else 8192
    a = jax.random.normal(jax.random.key(0), (side, side), dtype)
    return 2 * side ** 3 / quickest(lambda a: a @ a, a)


def bandwidth() -> float:
    """Bytes/s read and written in adding 1 to 64 million numbers, on a GPU 512 million; float32."""
    import jax.numpy as jnp
    x = jnp.zeros(2 ** 26 if on_cpu() else 2 ** 29)
    return 2 * x.nbytes / quickest(lambda x: x + 1, x)


_SHAPE = re.compile(r'\b(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\]')
_LINE = re.compile(r'\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)')
_FREE = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'partition-id'}


def _size(shape: str) -> int:
    """Bytes of an array, or of a tuple of them, as XLA writes its shape."""
    return sum(math.prod(map(int, filter(None, sides.split(',')))) * int(bits or 8) // 8
               for _, bits, sides in _SHAPE.findall(shape))


def traffic(program: str) -> int:
    """Bytes that a compiled program reads and writes, from its text: operands and results of each operation, a fusion being
    one. XLA's own count leaves out what it calls: cuDNN's convolutions, cuBLAS's products, our kernels on the CPU. A loop's
    body counts once, branches do not.
    """
    bodies: dict[str, list[re.Match[str]]] = {}
    body: list[re.Match[str]] = []
    entry = ''
    for line in program.splitlines():
        if line.endswith('{') and (head := re.match(r'(ENTRY )?%?([\w.\-]+) ', line)):
            body = bodies[head[2]] = []
            entry = head[2] if head[1] else entry
        elif found := _LINE.match(line):
            body.append(found)
    sizes = {found[1]: _size(found[2]) for body in bodies.values() for found in body}

    def of(name: str) -> int:
        total = 0
        for found in bodies[name]:
            _, shape, kind, rest = found.groups()
            if kind in ('call', 'while'):
                total += sum(of(called) for called in re.findall(r'(?:to_apply|body)=%?([\w.\-]+)', rest))
            elif kind not in _FREE and not kind.endswith('-done'):
                if kind == 'custom-call':
                    shape = re.sub(r'\bu8\[[\d,]*\]', '', shape)  # room to work in
                taken = sum(sizes.get(read, 0) for read in re.findall(r'%([\w.\-]+)', rest.split('), ')[0]))
                held = kind.endswith('-start') and kind != 'all-reduce-start'  # the result is operands and results
                total += _size(shape) + (0 if held else taken)
        return total
    return of(entry)


def as_a_person_does() -> dict[str, str]:
    """The environment without what we have set in this process."""
    ours = 'GLIBC_TUNABLES', 'OMP_WAIT_POLICY', 'JAXCNN_STARTED_ANEW', 'XLA_PYTHON_CLIENT_PREALLOCATE'
    return {k: v for k, v in os.environ.items() if k not in ours}


def need_torch(python: str, *more: str) -> None:
    """Raises a UserError where that Python lacks what PyTorch's side takes, before anything is measured."""
    look = 'import importlib.util, sys; print(*[p for p in sys.argv[1:] if not importlib.util.find_spec(p)])'
    try:
        done = subprocess.run([python, '-c', look, 'torch', 'pytorchcv', 'PIL', *more], capture_output=True, text=True)
    except OSError as e:
        raise UserError(f'--torch_python: {python!r} cannot be run: {e.strerror}') from e
    if done.returncode or done.stdout.strip():
        raise UserError(f'--torch_python: {python!r} lacks {done.stdout.strip() or "a Python that runs"}; it needs '
                        f'torch==2.13.0, pytorchcv==0.0.67 and pillow{", and airbench==0.1.8 (--no-deps)" if more else ""}')


class Torch:
    """The same by PyTorch, in a process of its own: what it takes is in `torch_peer/`."""

    def __init__(self, python: str, *arguments: object):
        self.process = subprocess.Popen(
            [python, TORCH_PEER, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=as_a_person_does())
        self.answer()

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f'the PyTorch process ended with {self.process.wait()}; what it said is above')
        return line

    def __call__(self, seconds: float) -> float:
        print(seconds, file=self.process.stdin, flush=True)
        return float(self.answer())

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
