"""Checkpoints of a run, through Orbax: saved in the background, verified when read, the best and the newest kept."""

import dataclasses
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import PreservationPolicy

from jaxcnn import config as cfg
from jaxcnn import sealed
from jaxcnn.errors import UserError
from jaxcnn.metrics import Measurement
from jaxcnn.optim import path_name
from jaxcnn.train.parallel import process_allgather
from jaxcnn.train.state import TrainState, Weights

log = logging.getLogger('jaxcnn')


def fingerprint(state: Any) -> str:
    """A checksum of all arrays of a host tree, their shapes and types: any changed bit changes it."""
    digest = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves(state):
        array = np.ascontiguousarray(leaf)
        digest.update(f'{array.dtype}{array.shape}'.encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _arrays(state: Any) -> dict[str, str]:
    """Of each array of a state, 'params/Conv_0/kernel', its shape and type."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {path_name(path): f'{tuple(leaf.shape)} {leaf.dtype}' for path, leaf in leaves}


def _fields(state: TrainState | Weights) -> dict[str, Any]:
    """The fields of a state by name."""
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


def _difference(saved: dict[str, str], expected: dict[str, str]) -> str:
    """What differs first between the arrays of a checkpoint and those of a run; '' where nothing does."""
    for name in [*expected, *saved]:  # `saved` has gone through JSON, which may have sorted it
        if saved.get(name) != expected.get(name):
            which = 'network' if name.startswith(('params/', 'batch_stats/')) else 'optimisation'
            return (f'of another {which}: {name} is {saved.get(name, "missing")} in the checkpoint and '
                    f'{expected.get(name, "missing")} in the run')
    return ''


def _without_later_stages(template: TrainState, saved: dict[str, str]) -> TrainState:
    stages = len(template.opt_state)
    while stages > 1 and not any(name.startswith(f'opt_state/{stages - 1}/') for name in saved):
        stages -= 1
    return dataclasses.replace(template, opt_state=template.opt_state[:stages])


def _reason(error: Exception) -> str:
    return ' '.join(str(error).split())[:300] or type(error).__name__


def _all_processes(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils
        multihost_utils.sync_global_devices(name)


class _Keep(PreservationPolicy):
    """Keeps the newest and the best."""

    def __init__(self, newest: int, best: Callable[[list[int]], int | None]):
        self._newest, self._best = newest, best

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        """See Orbax."""
        steps = [c.step for c in checkpoints]
        kept = {*sorted(steps)[-self._newest:], self._best(steps)}
        return [step in kept for step in steps]


class Checkpoints:
    """The folder `checkpoints/` of a workdir.

    Each `<step>/` holds the state, and as JSON what the loop has to remember, the metrics, and checksums (`progress`).

    Args:
      workdir: of the run.
      config: which are kept.
      best: what the best one is the best by; None: nothing asks for it.
      read_only: for reading while another process may be writing.
    """

    def __init__(self, workdir: str, config: cfg.CheckpointConfig, best: Measurement | None = None,
                 read_only: bool = False):
        self.folder = os.path.abspath(os.path.join(workdir, 'checkpoints'))
        self._measurement = best
        self._metrics: dict[int, dict[str, float] | None] = {}
        self._replaced = f'{self.folder}.replaced'
        self._reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        self._manager: Any = None
        if read_only:  # without Orbax's manager, which fails where a checkpoint goes while it looks at it
            return
        if jax.process_index() == 0:
            self._put_back()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_Keep(config.keep, self._best), cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers={
            'state': ocp.StandardCheckpointHandler(), 'progress': ocp.JsonCheckpointHandler()})

    def _put_back(self) -> None:
        """Puts back checkpoints that were to be replaced by a save that did not end."""
        for name in os.listdir(self._replaced) if os.path.isdir(self._replaced) else []:
            if not os.path.exists(os.path.join(self.folder, name)):
                os.rename(os.path.join(self._replaced, name), os.path.join(self.folder, name))
        shutil.rmtree(self._replaced, ignore_errors=True)

    def _best(self, steps: list[int]) -> int | None:
        """The best of `steps` by the config's metric; of equals the later; None where none has that metric."""
        by = self._measurement
        if by is None:
            return None
        sign = 1 if by.metric.better == 'max' else -1
        values = {s: sign * m[by.name] for s in steps if (m := self.metrics(s)) and by.name in m}
        return max(values, key=lambda s: (-math.inf if math.isnan(values[s]) else values[s], s), default=None)

    def save(self, step: int, state: TrainState, progress: dict[str, Any],
             metrics: dict[str, float] | None) -> None:
        """Begins to save a host copy of the state; earlier checkpoints go only when this one is whole.

        Raises:
          UserError: this or the save before it failed; the earlier checkpoints are kept.
        """
        try:
            self._manager.wait_until_finished()
            self._forget_replaced()
            # the first process decides, and moves the checkpoint only after all processes have looked
            if process_allgather(step in self.steps())[0]:
                self._set_aside(step)
            self._metrics[step] = metrics
            begun = self._manager.save(step, args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(sealed.seal(
                    {'progress': progress, 'metrics': metrics, 'arrays': _arrays(state),
                     'fingerprints': {name: fingerprint(part) for name, part in _fields(state).items()}}))))
        except Exception as e:
            raise self._failed(e) from e
        if not begun:
            raise self._failed(RuntimeError(f'Orbax refused step {step}'))

    def _set_aside(self, step: int) -> None:
        """Moves a checkpoint out of the way of its successor, which may fail."""
        if jax.process_index() == 0:
            os.makedirs(self._replaced, exist_ok=True)
            os.rename(os.path.join(self.folder, str(step)), os.path.join(self._replaced, str(step)))
        _all_processes('set aside')
        self._manager.reload()

    def _forget_replaced(self) -> None:
        if jax.process_index() == 0:
            shutil.rmtree(self._replaced, ignore_errors=True)

    def wait(self) -> None:
        """Until the last save is on the disk.

        Raises:
          UserError: it failed.
        """
        try:
            self._manager.wait_until_finished()
            self._forget_replaced()
        except Exception as e:
            raise self._failed(e) from e

    def _failed(self, error: Exception) -> UserError:
        if jax.process_index() == 0:
            self._put_back()
        return UserError(f'could not write a checkpoint to {self.folder}; earlier ones are kept: {_reason(error)}')

    def steps(self) -> list[int]:
        """Steps with a finished checkpoint, in order: Orbax gives a folder its number as the last thing it does."""
        names = os.listdir(self.folder) if os.path.isdir(self.folder) else []
        return sorted(int(name) for name in names if name.isdecimal())

    def metrics(self, step: int) -> dict[str, float] | None:
        """The metrics that a checkpoint was saved with; None without, and for a damaged one."""
        if step not in self._metrics:
            try:
                self._metrics[step] = self._sealed(step)['metrics']
            except ValueError:
                return None
        return self._metrics[step]

    def _sealed(self, step: int) -> dict[str, Any]:
        """The content of `progress`; read without Orbax, whose `restore` waits for a save that is under way."""
        try:
            with open(os.path.join(self.folder, str(step), 'progress', 'metadata'), encoding='utf-8') as f:
                return sealed.unseal(json.load(f))
        except OSError as e:
            raise ValueError(_reason(e)) from e

    def best_step(self, apart_from: Sequence[int] = ()) -> int | None:
        """The best step by the config's metric; None where none was evaluated."""
        return self._best([s for s in self.steps() if s not in apart_from])

    def read(self, step: int, template: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Return a checkpoint's state, as host arrays, and its progress.

        Args:
          step: one of `steps()`.
          template: a state of the same structure, shapes and types. The optimizer states of stages that an extended run did
            not have when it saved are left out.

        Raises:
          UserError: The checkpoint is of another network or optimisation.
          ValueError: It is damaged.
        """
        sealed_content = self._sealed(step)
        template = _without_later_stages(template, sealed_content['arrays'])
        return TrainState(**self._restore(step, sealed_content, _fields(template))), sealed_content['progress']

    def read_weights(self, step: int, template: Weights) -> Weights:
        """Return a checkpoint's parameters, statistics and averages alone, as host arrays; see `read`.

        The optimizer's state is not read, so that it may be one that this version does not know.
        """
        sealed_content = self._sealed(step)
        return Weights(**self._restore(step, sealed_content, _fields(template)))

    def _restore(self, step: int, sealed_content: dict[str, Any], template: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of a checkpoint's state that `template` has."""
        saved = {name: array for name, array in sealed_content['arrays'].items() if name.partition('/')[0] in template}
        if difference := _difference(saved, _arrays(template)):
            raise UserError(f'checkpoint {step} in {self.folder} is {difference}',
                            hint='use the code and the config that it was trained with, or a new workdir')
        wanted = {name: jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), part) for name, part in template.items()
                  if jax.tree.leaves(part)}
        try:
            arguments = ocp.args.PyTreeRestore(wanted, jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), wanted),
                                               partial_restore=True)
            restored = self._reader.restore(os.path.join(self.folder, str(step), 'state'), args=arguments)
        except Exception as e:  # Orbax and TensorStore raise several kinds of error for damaged files
            raise ValueError(_reason(e)) from e
        fields = {**template, **{name: jax.tree.map(np.asarray, part) for name, part in restored.items()}}
        for name, part in fields.items():
            if fingerprint(part) != sealed_content['fingerprints'][name]:
                raise ValueError(f"the checksum of '{name}' does not match its content")
            shapes = [[(x.shape, x.dtype) for x in jax.tree.leaves(tree)] for tree in (part, template[name])]
            if shapes[0] != shapes[1]:
                raise ValueError(f"the arrays of '{name}' have other shapes or types than the network")
        return fields

    def newest_whole(self, template: Any) -> Iterator[tuple[int, TrainState, dict[str, Any]]]:
        """Undamaged checkpoints, newest first; each damaged one passed over is logged."""
        for step in reversed(self.steps()):
            try:
                yield step, *self.read(step, template)
            except ValueError as e:
                log.warning('checkpoint %d is damaged and not used: %s', step, e)

    def discard(self, step: int) -> None:
        """Moves a damaged checkpoint to `checkpoints.damaged/`, so that the run can write that step again."""
        if jax.process_index() == 0:
            place = os.path.join(f'{self.folder}.damaged', str(step))
            shutil.rmtree(place, ignore_errors=True)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            os.rename(os.path.join(self.folder, str(step)), place)
        self._metrics.pop(step, None)
        _all_processes('discard')
        self._manager.reload()

    def close(self) -> None:
        """Waits for the last save and lets go of the folder."""
        self._reader.close()
        if self._manager:
            self._manager.close()
