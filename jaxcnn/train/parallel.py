"""How a step is spread over devices: `sharded` (jit over a mesh) and `pmap`, behind one interface.

Both are data-parallel: state and resident data are on every device, batches are split along their rows.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcnn import config as cfg
from jaxcnn.cache_folder import cache_folder
from jaxcnn.errors import UserError
from jaxcnn.timeline import Timeline
from jaxcnn.train.state import run_once

AXIS = 'batch'
T = TypeVar('T')


def _part_of(part: int, parts: int, size: int) -> slice:
    return slice(part * (size // parts), (part + 1) * (size // parts))


def _process_rows() -> Callable[[int], slice]:
    """Of a global batch of a given size, the rows that this process feeds; can be pickled for Grain's workers."""
    return functools.partial(_part_of, jax.process_index(), jax.process_count())


def _host_copies(tree: Any) -> Any:
    """The first local part of each array; copies, since a view would see what a donated buffer becomes."""
    parts = jax.tree.map(lambda x: x.addressable_data(0), tree)
    for part in jax.tree.leaves(parts):
        part.copy_to_host_async()
    return jax.tree.map(np.array, parts)


def use_compilation_cache() -> None:
    """Keeps compiled programs in `$JAXCNN_CACHE`, else `~/.cache/jaxcnn`, unless JAX was told where."""
    with contextlib.suppress(ImportError):  # a version of JAX that keeps its cache otherwise
        from jaxcnn.train import compilation_cache
        compilation_cache.install()
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update('jax_compilation_cache_dir', os.path.join(cache_folder(), 'xla'))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
    # the convolutions' rule for several devices is an address, another one in each process; their names tell them apart
    jax.config.update('jax_remove_custom_partitioning_ptr_from_cache_key', True)


def from_all(value: int) -> np.ndarray:
    """The value of each process, in their order: (processes,)."""
    if jax.process_count() == 1:
        return np.array([value])
    from jax.experimental import multihost_utils
    return np.asarray(multihost_utils.process_allgather(np.int32(value)))


def together(work: Callable[[], T]) -> T:
    """`work()` in every process; where it fails in one, none goes on without it.

    Raises:
      UserError: its own, or one that says which process failed.
    """
    try:
        result, error = work(), None
    except (UserError, OSError) as e:
        error = e
    failed = np.flatnonzero(from_all(error is not None))
    if error or len(failed):
        raise error or UserError(f'process {failed[0]} failed, and says why')
    return result


class Sharded:
    """`jax.jit` over a mesh of one axis; the compiler splits the step along the batch."""

    axis_name: str | None = None

    def __init__(self, devices: Sequence[jax.Device]):
        self.num_devices = len(devices)
        self.process_rows = _process_rows()
        mesh = Mesh(np.array(devices), (AXIS,))
        self._replicated = NamedSharding(mesh, P())
        self._rows = NamedSharding(mesh, P(AXIS))
        self._stacked_rows = NamedSharding(mesh, P(None, AXIS))
        self._parts = jax.process_count()

    def place(self, tree: Any) -> Any:
        """Copies of host arrays, the same in every process, on all devices."""
        if self._parts == 1:  # a copy: what is donated later must not be the caller's memory
            return jax.device_put(tree, self._replicated, may_alias=False)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(
            self._replicated, np.array(x), np.shape(x)), tree)

    def fetch(self, tree: Any) -> Any:
        """Host copies of what is on all devices."""
        return _host_copies(tree)

    def _put(self, tree: Any, sharding: NamedSharding) -> Any:
        if self._parts == 1:
            return jax.device_put(tree, sharding)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)

    def put_rows(self, batch: Any) -> Any:
        """This process's rows of an evaluation batch, leaves (b, ...)."""
        return self._put(batch, self._rows)

    def put_stacked_rows(self, batches: Any) -> Any:
        """This process's rows of stacked batches, leaves (steps, b, ...)."""
        return self._put(batches, self._stacked_rows)

    def init(self, fn: Callable, seed: int) -> Any:
        """`fn(seed)` on all devices."""
        return jax.jit(fn, out_shardings=self._replicated, compiler_options=run_once())(np.uint32(seed))

    def compile_train(self, fn: Callable) -> jax.stages.Wrapped:
        """Compiles `step.many_steps`; the state is donated."""
        r = self._replicated
        return jax.jit(fn, donate_argnums=0, in_shardings=(r, self._stacked_rows, r, r, r), out_shardings=r)

    def rows_of_batch(self, order: jax.Array, first: jax.Array, batch_size: int) -> jax.Array:
        """In a compiled step: the batch of that size that begins at `first` of the order, split over the devices."""
        return jax.lax.with_sharding_constraint(jax.lax.dynamic_slice(order, (first,), (batch_size,)), self._rows)

    def compile_eval(self, fn: Callable) -> Callable:
        """Compiles `step.eval_step`."""
        r = self._replicated
        return jax.jit(fn, in_shardings=(r, self._rows, r, r), out_shardings=r)


class Pmap:
    """`jax.pmap`: each device runs the step on its rows, and means are taken over the axis."""

    axis_name: str | None = AXIS

    def __init__(self, devices: Sequence[jax.Device]):
        self._local = [d for d in devices if d.process_index == jax.process_index()]
        self.num_devices = len(devices)
        self.process_rows = _process_rows()
        self._sharding = NamedSharding(Mesh(np.array(self._local), (AXIS,)), P(AXIS))

    def place(self, tree: Any) -> Any:
        """Copies of host arrays, the same in every process, on all devices."""
        def put(x: Any) -> jax.Array:
            row = np.asarray(x)[None]
            return jax.make_array_from_single_device_arrays(
                (len(self._local), *row.shape[1:]), self._sharding,
                [jax.device_put(row, d, may_alias=False) for d in self._local])
        return jax.tree.map(put, tree)

    def fetch(self, tree: Any) -> Any:
        """Host copies of what is on all devices."""
        return jax.tree.map(lambda x: x[0], _host_copies(tree))

    def put_rows(self, batch: Any) -> Any:
        """This process's rows of an evaluation batch, leaves (b, ...)."""
        return jax.tree.map(lambda x: x.reshape(len(self._local), -1, *x.shape[1:]), batch)

    def put_stacked_rows(self, batches: Any) -> Any:
        """This process's rows of stacked batches, leaves (steps, b, ...)."""
        return jax.tree.map(lambda x: x.reshape(len(x), len(self._local), -1, *x.shape[2:]).swapaxes(0, 1), batches)

    def init(self, fn: Callable, seed: int) -> Any:
        """`fn(seed)` on all devices."""
        return self.place(jax.device_get(jax.jit(fn, compiler_options=run_once())(np.uint32(seed))))

    def compile_train(self, fn: Callable) -> jax.stages.Wrapped:
        """Compiles `step.many_steps`; the state is donated."""
        return jax.pmap(fn, AXIS, in_axes=(0, 0, 0, None, None), out_axes=(0, 0), donate_argnums=0)

    def rows_of_batch(self, order: jax.Array, first: jax.Array, batch_size: int) -> jax.Array:
        """In a compiled step: this device's part of the batch of that size that begins at `first` of the order."""
        part = batch_size // self.num_devices
        return jax.lax.dynamic_slice(order, (first + jax.lax.axis_index(AXIS) * part,), (part,))

    def compile_eval(self, fn: Callable) -> Callable:
        """Compiles `step.eval_step`."""
        return jax.pmap(fn, AXIS, in_axes=(0, 0, 0, 0))


Backend = Sharded | Pmap


def make_backend(config: cfg.ParallelConfig) -> Backend:
    """The back end of a config, over its devices.

    Raises:
      UserError: more devices than there are, or a part of them in a run of several processes.
    """
    use_compilation_cache()
    devices = jax.devices()
    if config.devices > len(devices) or (config.devices not in (0, len(devices)) and jax.process_count() > 1):
        raise UserError(f'{config.devices} of {len(devices)} devices'
                        f'{" in several processes: use all, 0" if jax.process_count() > 1 else ""}',
                        field='config.parallel.devices')
    devices = devices[:config.devices or len(devices)]
    return Sharded(devices) if config.backend == 'sharded' else Pmap(devices)


def check_batch_sizes(timeline: Timeline, accumulate: int, num_devices: int) -> None:
    """Raises a UserError for a batch size that does not divide over devices and micro-batches."""
    unit = accumulate * num_devices
    for phase in timeline.phases:
        if phase.batch_size % unit:
            low = phase.batch_size // unit * unit
            near = ' or '.join(str(n) for n in (low, low + unit) if n)
            field = 'batch_size' if phase.batch_size == timeline.phases[0].batch_size else 'batch_schedule'
            raise UserError(f'{phase.batch_size} does not divide over {num_devices} devices x {accumulate} micro-batches',
                            field=f'config.{field}', hint=f'nearest: {near}')
