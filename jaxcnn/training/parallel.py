"""Back ends that spread a step over devices, with one interface: `Sharded` (jit over a mesh) and `Pmap`.

Both are data-parallel: the state and the resident data are replicated on every device, and batches are split along their
rows. The module also holds the functions by which several processes agree with each other.
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
from jaxcnn.training.state import run_once

AXIS = 'batch'
T = TypeVar('T')


def _rows_of_process(process: int, num_processes: int, size: int) -> slice:
    rows_per_process = size // num_processes
    return slice(process * rows_per_process, (process + 1) * rows_per_process)


def _process_rows() -> Callable[[int], slice]:
    """Return the function from a global batch size to this process's rows. Grain's workers need one that can be pickled."""
    return functools.partial(_rows_of_process, jax.process_index(), jax.process_count())


def _copy_first_shards(tree: Any) -> Any:
    """Return host copies of the first local shard of each array; a view would change when its buffer is donated."""
    shards = jax.tree.map(lambda x: x.addressable_data(0), tree)
    for shard in jax.tree.leaves(shards):
        shard.copy_to_host_async()
    return jax.tree.map(np.array, shards)


def use_compilation_cache() -> None:
    """Cache compiled programs in `$JAXCNN_CACHE` or `~/.cache/jaxcnn`, unless JAX is configured to use another folder."""
    with contextlib.suppress(ImportError):  # a version of JAX with another implementation of its cache
        from jaxcnn.training import compilation_cache
        compilation_cache.install()
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update('jax_compilation_cache_dir', os.path.join(cache_folder(), 'xla'))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
    # the partitioning rule of the convolutions is an address, which differs between processes; their names identify them
    jax.config.update('jax_remove_custom_partitioning_ptr_from_cache_key', True)


def process_allgather(value: int) -> np.ndarray:
    """Return the values of all processes, in their order: (processes,). Every process must call it."""
    if jax.process_count() == 1:
        return np.array([value])
    from jax.experimental import multihost_utils
    return np.asarray(multihost_utils.process_allgather(np.int32(value)))


def run_on_all_processes(function: Callable[[], T]) -> T:
    """Return the result of `function()`, which every process calls; if it fails in one of them, all of them raise an error.

    Raises:
      UserError: the error of this process, or one that says which process failed.
    """
    try:
        result, error = function(), None
    except (UserError, OSError) as e:
        error = e
    failed = np.flatnonzero(process_allgather(error is not None))
    if error or len(failed):
        raise error or UserError(f'process {failed[0]} failed; its output gives the reason')
    return result


class Sharded:
    """The back end `jax.jit` over a mesh of one axis; the compiler splits the step along the batch.

    Args:
      devices: the devices of all processes.

    Attributes:
      axis_name: name of the pmap axis, None here.
      num_devices: number of devices.
      process_rows: gives the rows of a global batch that this process provides.
    """

    axis_name: str | None = None

    def __init__(self, devices: Sequence[jax.Device]):
        self.num_devices = len(devices)
        self.process_rows = _process_rows()
        mesh = Mesh(np.array(devices), (AXIS,))
        self._replicated = NamedSharding(mesh, P())
        self._rows = NamedSharding(mesh, P(AXIS))
        self._stacked_rows = NamedSharding(mesh, P(None, AXIS))
        self._num_processes = jax.process_count()

    def replicate(self, tree: Any) -> Any:
        """Return copies on all devices of host arrays, which are the same in every process."""
        if self._num_processes == 1:  # a copy: the caller's memory must not be donated later
            return jax.device_put(tree, self._replicated, may_alias=False)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(
            self._replicated, np.array(x), np.shape(x)), tree)

    def fetch(self, tree: Any) -> Any:
        """Return host copies of replicated arrays."""
        return _copy_first_shards(tree)

    def _shard(self, tree: Any, sharding: NamedSharding) -> Any:
        if self._num_processes == 1:
            return jax.device_put(tree, sharding)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)

    def shard_batch(self, batch: Any) -> Any:
        """Return an evaluation batch split over the devices, given this process's rows: each array (b, ...)."""
        return self._shard(batch, self._rows)

    def shard_stacked_batches(self, batches: Any) -> Any:
        """Return stacked batches split over the devices, given this process's rows: each array (steps, b, ...)."""
        return self._shard(batches, self._stacked_rows)

    def init(self, fn: Callable, seed: int, *host_arrays: Any) -> Any:
        """Return `fn(seed, *host_arrays)`, replicated on all devices."""
        return jax.jit(fn, out_shardings=self._replicated, compiler_options=run_once())(
            np.uint32(seed), *host_arrays)

    def compile_train(self, fn: Callable) -> jax.stages.Wrapped:
        """Compile `step.many_steps`; the state is donated."""
        replicated = self._replicated
        return jax.jit(fn, donate_argnums=0, out_shardings=replicated,
                       in_shardings=(replicated, self._stacked_rows, replicated, replicated, replicated))

    def batch_positions(self, order: jax.Array, offset: jax.Array, batch_size: int) -> jax.Array:
        """Return the positions of the batch that begins at `offset` of an order, split over the devices.

        It is called in a compiled step.
        """
        positions = jax.lax.dynamic_slice(order, (offset,), (batch_size,))
        return jax.lax.with_sharding_constraint(positions, self._rows)

    def compile_eval(self, fn: Callable) -> Callable:
        """Compile `step.eval_step`."""
        replicated = self._replicated
        return jax.jit(fn, in_shardings=(replicated, self._rows, replicated, replicated), out_shardings=replicated)


class Pmap:
    """The back end `jax.pmap`: each device runs the step on its rows, and means are taken over the axis.

    Its interface is that of `Sharded`, but arrays have a leading axis of local devices.
    """

    axis_name: str | None = AXIS

    def __init__(self, devices: Sequence[jax.Device]):
        self._local_devices = [d for d in devices if d.process_index == jax.process_index()]
        self.num_devices = len(devices)
        self.process_rows = _process_rows()
        self._sharding = NamedSharding(Mesh(np.array(self._local_devices), (AXIS,)), P(AXIS))

    def replicate(self, tree: Any) -> Any:
        """Return copies on all devices of host arrays, which are the same in every process."""
        def put(x: Any) -> jax.Array:
            row = np.asarray(x)[None]
            return jax.make_array_from_single_device_arrays(
                (len(self._local_devices), *row.shape[1:]), self._sharding,
                [jax.device_put(row, d, may_alias=False) for d in self._local_devices])
        return jax.tree.map(put, tree)

    def fetch(self, tree: Any) -> Any:
        """Return host copies of replicated arrays."""
        return jax.tree.map(lambda x: x[0], _copy_first_shards(tree))

    def shard_batch(self, batch: Any) -> Any:
        """Return an evaluation batch split over the devices, given this process's rows: each array (b, ...)."""
        return jax.tree.map(lambda x: x.reshape(len(self._local_devices), -1, *x.shape[1:]), batch)

    def shard_stacked_batches(self, batches: Any) -> Any:
        """Return stacked batches split over the devices, given this process's rows: each array (steps, b, ...)."""
        num_local = len(self._local_devices)
        return jax.tree.map(lambda x: x.reshape(len(x), num_local, -1, *x.shape[2:]).swapaxes(0, 1), batches)

    def init(self, fn: Callable, seed: int, *host_arrays: Any) -> Any:
        """Return `fn(seed, *host_arrays)`, replicated on all devices."""
        return self.replicate(jax.device_get(jax.jit(fn, compiler_options=run_once())(
            np.uint32(seed), *host_arrays)))

    def compile_train(self, fn: Callable) -> jax.stages.Wrapped:
        """Compile `step.many_steps`; the state is donated."""
        return jax.pmap(fn, AXIS, in_axes=(0, 0, 0, None, None), out_axes=(0, 0), donate_argnums=0)

    def batch_positions(self, order: jax.Array, offset: jax.Array, batch_size: int) -> jax.Array:
        """Return this device's part of the positions of the batch that begins at `offset` of an order.

        It is called in a compiled step.
        """
        device_batch_size = batch_size // self.num_devices
        device_offset = offset + jax.lax.axis_index(AXIS) * device_batch_size
        return jax.lax.dynamic_slice(order, (device_offset,), (device_batch_size,))

    def compile_eval(self, fn: Callable) -> Callable:
        """Compile `step.eval_step`."""
        return jax.pmap(fn, AXIS, in_axes=(0, 0, 0, 0))


Backend = Sharded | Pmap


def make_backend(config: cfg.ParallelConfig) -> Backend:
    """Return the back end of a config.

    Raises:
      UserError: the config asks for more devices than there are, or for some of the devices of several processes.
    """
    use_compilation_cache()
    devices = jax.devices()
    is_distributed = jax.process_count() > 1
    if config.devices > len(devices) or (config.devices not in (0, len(devices)) and is_distributed):
        raise UserError(f'{config.devices} of {len(devices)} devices' + ' in several processes' * is_distributed,
                        field='config.parallel.devices', hint='0 uses all devices')
    devices = devices[:config.devices or len(devices)]
    return Sharded(devices) if config.backend == 'sharded' else Pmap(devices)


def check_batch_sizes(timeline: Timeline, accumulate: int, num_devices: int) -> None:
    """Raise a UserError for a batch size that is not divisible by the number of devices times that of micro-batches."""
    divisor = accumulate * num_devices
    for phase in timeline.phases:
        if phase.batch_size % divisor:
            lower = phase.batch_size // divisor * divisor
            nearest = ' or '.join(str(size) for size in (lower, lower + divisor) if size)
            field = 'batch_size' if phase.batch_size == timeline.phases[0].batch_size else 'batch_schedule'
            raise UserError(f'{phase.batch_size} does not divide over {num_devices} devices x {accumulate} micro-batches',
                            field=f'config.{field}', hint=f'nearest: {nearest}')
