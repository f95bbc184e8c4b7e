"""Checks of the execution: equal starts give equal bits, and what limits the speed."""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.analysis import complexity
from jaxcnn.checks.base import FAILED, INFORMATION, WARNING, Findings, Verdict
from jaxcnn.checks.context import Context, train_steps
from jaxcnn.optim import path_name
from jaxcnn.training.setup import Setup
from jaxcnn.training.state import TrainState

NUM_STEPS = 5  # of which two starts are compared
NUM_ROUNDS, ROUND_SECONDS, MAX_CALLS = 5, 0.2, 50  # of a measurement of speed
SLOW_DATA = 1.25  # seconds of a step with its data over those of the step alone
TRAINING_PASSES = 3  # multiply-adds of a training step over those of a forward pass


def check_determinism(context: Context) -> Verdict:
    """Start the training twice, and compare the states after some steps bit for bit."""
    findings = Findings()
    num_steps = min(NUM_STEPS, context.steps)
    states = []
    for _ in range(2):
        with context.variant(context.config) as setup:  # traces and compiles its programs anew
            state, _ = train_steps(setup, context.initial_state(setup), 0, num_steps)
            states.append(setup.backend.fetch(state))
    leaves = [jax.tree_util.tree_leaves_with_path(state) for state in states]
    different = [path_name(path) for (path, x), (_, y) in zip(*leaves, strict=True)
                 if np.asarray(x).tobytes() != np.asarray(y).tobytes()]
    if different:
        findings.add(FAILED, f'{len(different)} of {len(leaves[0])} arrays differ, such as {different[0]}',
                     'look for random numbers that do not come from the key of the run, in augmentation, plugins or the '
                     'network; on a GPU, XLA_FLAGS=--xla_gpu_deterministic_ops=true')
        return findings.verdict(f'two starts differ after {num_steps} steps')
    return findings.verdict(f'two starts have the same bits after {num_steps} steps, in {len(leaves[0])} arrays')


def _seconds(*calls: Callable[[], Any]) -> list[float]:
    """Return the seconds of each of several calls: the shortest of `NUM_ROUNDS` measurements, which alternate.

    Each measurement makes as many calls as take about `ROUND_SECONDS`, and waits for the last result.
    """
    numbers = []
    for call in calls:
        jax.block_until_ready(call())  # compiles
        start = time.monotonic()
        jax.block_until_ready(call())
        numbers.append(int(np.clip(ROUND_SECONDS / (time.monotonic() - start), 1, MAX_CALLS)))
    shortest = [math.inf] * len(calls)
    for _ in range(NUM_ROUNDS):
        for i, (call, number) in enumerate(zip(calls, numbers, strict=True)):
            start = time.monotonic()
            for _ in range(number):
                result = call()
            jax.block_until_ready(result)
            shortest[i] = min(shortest[i], (time.monotonic() - start) / number)
    return shortest


@dataclasses.dataclass(frozen=True)
class Speed:
    """Seconds of a training step and of what it is compared with, measured in turn.

    Attributes:
      with_data: of a step with the feeding of its data.
      alone: of a step whose data is on the device already.
      multiply_add: of a multiply-add in a product of large matrices, on one device.
    """

    with_data: float
    alone: float
    multiply_add: float


def measure_speed(context: Context, setup: Setup) -> Speed:
    """Measure the speed of the training steps of a config and of the machine."""
    end = setup.timeline.phase_end(0)  # later batches may have another size
    count = setup.steps_per_dispatch
    if count > end:
        count = end if setup.variable_length else 1
    state: list[TrainState] = [setup.initial_state(context.weights)]
    program = setup.program(setup.timeline.phases[0])
    steps = itertools.cycle(range(0, end - count + 1, count))

    def step_with_data() -> Any:
        state[0], scalars = program(state[0], *setup.inputs(next(steps), count))
        return scalars
    inputs = jax.block_until_ready(jax.tree.map(jnp.asarray, setup.inputs(0, count)))

    def step_alone() -> Any:
        state[0], scalars = program(state[0], *inputs)
        return scalars
    # XLA has no fast product of bfloat16 matrices on the CPU
    size, dtype = (2048, 'float32') if jax.default_backend() == 'cpu' else (8192, setup.experiment.network.dtype)
    matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)
    multiply = jax.jit(lambda a: a @ a)
    with_data, alone, product = _seconds(step_with_data, step_alone, lambda: multiply(matrix))
    return Speed(with_data / count, alone / count, product / size ** 3)


def _milliseconds(seconds: float) -> str:
    return f'{1000 * seconds:,.0f} ms' if seconds >= 0.1 else f'{1000 * seconds:.3g} ms'


def check_throughput(context: Context) -> Verdict:
    """Measure the speed of steps with and without their data, and the part of the machine's peak that they reach."""
    findings, setup = Findings(), context.setup
    batch_size = setup.timeline.phases[0].batch_size
    speed = measure_speed(context, setup)
    with_data, alone = speed.with_data, speed.alone
    num_devices = setup.backend.num_devices if jax.default_backend() != 'cpu' else 1  # of a CPU, devices share the cores
    peak = num_devices / speed.multiply_add
    cost = complexity.cost(setup.experiment.network, setup.experiment.image_shape, 1)
    multiply_adds = TRAINING_PASSES * batch_size * cost.multiply_adds
    fraction = multiply_adds / alone / peak
    limit = 'data' if with_data > SLOW_DATA * alone else 'step'
    if limit == 'data':
        findings.add(WARNING, f'of which data takes {100 * (1 - alone / with_data):.0f} %',
                     'a larger config.parallel.steps_per_dispatch leaves less to the host' if setup.on_device else
                     'try config.data.placement=device, more config.data.workers or a smaller config.data.image_size')
    return findings.verdict(
        f'{batch_size / with_data:,.0f} images/s; a step takes {_milliseconds(with_data)} with its data and '
        f'{_milliseconds(alone)} alone, so that the {limit} is the limit; it reaches {100 * fraction:.0f} % of the '
        'multiply-adds of a large product of matrices', [
            f'A training step has {multiply_adds:,} multiply-adds: {TRAINING_PASSES} times those of the forward pass for '
            f'{batch_size} images. A large product of matrices reaches {peak / 1e9:,.0f} billion a second. '
            'More than 100 % are possible, because Winograd convolutions need fewer multiply-adds than are counted.'],
        status=INFORMATION)
