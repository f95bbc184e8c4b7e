"""Checkpoints of a run, through Orbax.

They are saved in the background and verified when they are read. The best, the newest, and those of `config.checkpoint.at`
are retained.
"""

import dataclasses
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
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
from jaxcnn.training.parallel import process_allgather
from jaxcnn.training.state import TrainState, Weights

log = logging.getLogger('jaxcnn')


def fingerprint(state: Any) -> str:
    """Return a checksum of the bits, shapes and dtypes of all arrays of a host tree."""
    digest = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves(state):
        array = np.ascontiguousarray(leaf)
        digest.update(f'{array.dtype}{array.shape}'.encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _describe_arrays(state: Any) -> dict[str, str]:
    """Return shape and dtype of each array of a state, by its name, such as 'params/Conv_0/kernel'."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {path_name(path): f'{tuple(leaf.shape)} {leaf.dtype}' for path, leaf in leaves}


def _fields(state: TrainState | Weights) -> dict[str, Any]:
    """Return the fields of a state by name."""
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


def _first_difference(saved: dict[str, str], expected: dict[str, str]) -> str:
    """Return the first difference between the arrays of a checkpoint and those of a run, or '' if there is none."""
    for name in [*expected, *saved]:  # `saved` was read from JSON, which may have sorted it
        if saved.get(name) != expected.get(name):
            part = 'network' if name.startswith(('params/', 'batch_stats/')) else 'optimisation'
            return (f'of another {part}: {name} is {saved.get(name, "missing")} in the checkpoint and '
                    f'{expected.get(name, "missing")} in the run')
    return ''


def _drop_unsaved_stages(template: TrainState, saved: dict[str, str]) -> TrainState:
    """Return a template without the optimizer states of the last stages that a checkpoint does not have."""
    num_stages = len(template.opt_state)
    while num_stages > 1 and not any(name.startswith(f'opt_state/{num_stages - 1}/') for name in saved):
        num_stages -= 1
    return dataclasses.replace(template, opt_state=template.opt_state[:num_stages])


def _reason(error: Exception) -> str:
    return ' '.join(str(error).split())[:300] or type(error).__name__


def _sync_processes(name: str) -> None:
    """Wait until every process has called this function."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils
        multihost_utils.sync_global_devices(name)


class _PreserveNewestAndBest(PreservationPolicy):
    """Orbax's policy to preserve the newest checkpoints, the best one, and those of certain steps."""

    def __init__(self, num_newest: int, best_step: Callable[[list[int]], int | None], permanent_steps: Collection[int]):
        self._num_newest, self._best_step, self._permanent_steps = num_newest, best_step, permanent_steps

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        """See Orbax."""
        steps = [c.step for c in checkpoints]
        preserved = {*sorted(steps)[-self._num_newest:], self._best_step(steps), *self._permanent_steps}
        return [step in preserved for step in steps]


class Checkpoints:
    """The folder `checkpoints/` of a workdir.

    Each `<step>/` holds the state, and as JSON (`progress`) the progress of the loop, the metrics, and checksums.

    Args:
      workdir: workdir of the run.
      config: checkpoint fields of the config, such as the number of checkpoints to retain.
      best: measurement by which one checkpoint is the best; None if the best one is not needed.
      read_only: whether the checkpoints are only read, while another process may be writing some.
      permanent_steps: steps whose checkpoints are never removed.
    """

    def __init__(self, workdir: str, config: cfg.CheckpointConfig, best: Measurement | None = None,
                 read_only: bool = False, permanent_steps: Collection[int] = ()):
        self.folder = os.path.abspath(os.path.join(workdir, 'checkpoints'))
        self._measurement = best
        self._metrics: dict[int, dict[str, float] | None] = {}
        self._replaced_folder = f'{self.folder}.replaced'
        self._reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        self._manager: Any = None
        if read_only:  # without Orbax's manager, which fails if a checkpoint is removed while it reads the folder
            return
        if jax.process_index() == 0:
            self._restore_replaced()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_PreserveNewestAndBest(config.keep, self._best_of, permanent_steps),
            cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers={
            'state': ocp.StandardCheckpointHandler(), 'progress': ocp.JsonCheckpointHandler()})

    def _restore_replaced(self) -> None:
        """Move back checkpoints whose replacement was not completely saved."""
        for name in os.listdir(self._replaced_folder) if os.path.isdir(self._replaced_folder) else []:
            if not os.path.exists(os.path.join(self.folder, name)):
                os.rename(os.path.join(self._replaced_folder, name), os.path.join(self.folder, name))
        shutil.rmtree(self._replaced_folder, ignore_errors=True)

    def _best_of(self, steps: list[int]) -> int | None:
        """Return the best of `steps`, the last one of equally good ones; None if none has the measurement."""
        measurement = self._measurement
        if measurement is None:
            return None
        sign = 1 if measurement.metric.better == 'max' else -1
        scores = {}
        for step in steps:
            metrics = self.metrics(step)
            if metrics and measurement.name in metrics:
                scores[step] = sign * metrics[measurement.name]
        return max(scores, key=lambda s: (-math.inf if math.isnan(scores[s]) else scores[s], s), default=None)

    def save(self, step: int, state: TrainState, progress: dict[str, Any],
             metrics: dict[str, float] | None) -> None:
        """Start to save a host copy of the state. Earlier checkpoints are removed only when this one is complete.

        Raises:
          UserError: this save or the one before it failed; earlier checkpoints remain.
        """
        try:
            self._manager.wait_until_finished()
            self._remove_replaced()
            # the first process decides, and moves the checkpoint only after all processes have looked
            if process_allgather(step in self.steps())[0]:
                self._move_to_replaced(step)
            self._metrics[step] = metrics
            fingerprints = {name: fingerprint(field) for name, field in _fields(state).items()}
            content = sealed.seal({'progress': progress, 'metrics': metrics, 'arrays': _describe_arrays(state),
                                   'fingerprints': fingerprints})
            is_started = self._manager.save(step, args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(content)))
        except Exception as e:
            raise self._save_error(e) from e
        if not is_started:
            raise self._save_error(RuntimeError(f'Orbax refused step {step}'))

    def _move_to_replaced(self, step: int) -> None:
        """Move a checkpoint away, from where it can be restored if the save that replaces it fails."""
        if jax.process_index() == 0:
            os.makedirs(self._replaced_folder, exist_ok=True)
            os.rename(os.path.join(self.folder, str(step)), os.path.join(self._replaced_folder, str(step)))
        _sync_processes('move to replaced')
        self._manager.reload()

    def _remove_replaced(self) -> None:
        if jax.process_index() == 0:
            shutil.rmtree(self._replaced_folder, ignore_errors=True)

    def wait(self) -> None:
        """Wait until the last save is on the disk.

        Raises:
          UserError: the save failed.
        """
        try:
            self._manager.wait_until_finished()
            self._remove_replaced()
        except Exception as e:
            raise self._save_error(e) from e

    def _save_error(self, error: Exception) -> UserError:
        if jax.process_index() == 0:
            self._restore_replaced()
        return UserError(f'could not write a checkpoint to {self.folder}: {_reason(error)}',
                         hint='earlier checkpoints remain')

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, in order."""
        # Orbax gives a folder its number when the checkpoint is complete
        names = os.listdir(self.folder) if os.path.isdir(self.folder) else []
        return sorted(int(name) for name in names if name.isdecimal())

    def metrics(self, step: int) -> dict[str, float] | None:
        """Return the metrics of a checkpoint; None if it has none or is damaged."""
        if step not in self._metrics:
            try:
                self._metrics[step] = self._read_progress(step)['metrics']
            except ValueError:
                return None
        return self._metrics[step]

    def _read_progress(self, step: int) -> dict[str, Any]:
        """Return the content of `progress`, without Orbax, whose `restore` would wait for a save to end."""
        try:
            with open(os.path.join(self.folder, str(step), 'progress', 'metadata'), encoding='utf-8') as f:
                return sealed.unseal(json.load(f))
        except OSError as e:
            raise ValueError(_reason(e)) from e

    def best_step(self, exclude: Sequence[int] = ()) -> int | None:
        """Return the step of the best checkpoint, apart from the excluded ones; None if none was evaluated."""
        return self._best_of([step for step in self.steps() if step not in exclude])

    def read(self, step: int, template: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Return the state of a checkpoint, as host arrays, and its progress.

        Args:
          step: one of `steps()`.
          template: a state of the same structure, shapes and dtypes. The state that is returned has no optimizer states of
            stages by which the run was extended after the checkpoint.

        Raises:
          UserError: the checkpoint is of another network or optimisation.
          ValueError: the checkpoint is damaged.
        """
        content = self._read_progress(step)
        template = _drop_unsaved_stages(template, content['arrays'])
        return TrainState(**self._restore(step, content, _fields(template))), content['progress']

    def read_weights(self, step: int, template: Weights) -> Weights:
        """Return only the parameters, statistics and averages of a checkpoint, as host arrays; see `read`.

        The optimizer's state is not read, so that it may be of a kind that this version does not know.
        """
        content = self._read_progress(step)
        return Weights(**self._restore(step, content, _fields(template)))

    def read_pruning(self, step: int, template: Any) -> Any:
        """Return only the state of pruning of a checkpoint, as host arrays; see `read`."""
        return self._restore(step, self._read_progress(step), {'pruning': template})['pruning']

    def _restore(self, step: int, content: dict[str, Any], template: dict[str, Any]) -> dict[str, Any]:
        """Return those fields of a checkpoint's state that `template` has."""
        saved = {name: array for name, array in content['arrays'].items() if name.partition('/')[0] in template}
        if difference := _first_difference(saved, _describe_arrays(template)):
            raise UserError(f'checkpoint {step} in {self.folder} is {difference}',
                            hint='use the code and the config that it was trained with, or a new workdir')
        targets = {name: jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), field) for name, field in template.items()
                   if jax.tree.leaves(field)}
        try:
            arguments = ocp.args.PyTreeRestore(targets, jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), targets),
                                               partial_restore=True)
            restored = self._reader.restore(os.path.join(self.folder, str(step), 'state'), args=arguments)
        except Exception as e:  # Orbax and TensorStore raise several kinds of error for damaged files
            raise ValueError(_reason(e)) from e
        fields = {**template, **{name: jax.tree.map(np.asarray, field) for name, field in restored.items()}}
        for name, field in fields.items():
            # versions without a field have saved nothing of it, as runs that do not use it do
            if fingerprint(field) != content['fingerprints'].get(name, fingerprint(None)):
                raise ValueError(f"the checksum of '{name}' does not match its content")
            shapes, template_shapes = (
                [(x.shape, x.dtype) for x in jax.tree.leaves(tree)] for tree in (field, template[name]))
            if shapes != template_shapes:
                raise ValueError(f"the arrays of '{name}' have other shapes or dtypes than the network")
        return fields

    def undamaged(self, template: TrainState) -> Iterator[tuple[int, TrainState, dict[str, Any]]]:
        """Yield step, state and progress of the undamaged checkpoints, newest first; damaged ones are logged."""
        for step in reversed(self.steps()):
            try:
                yield step, *self.read(step, template)
            except ValueError as e:
                log.warning('checkpoint %d is damaged and not used: %s', step, e)

    def discard(self, step: int) -> None:
        """Move a damaged checkpoint to `checkpoints.damaged/`, so that the run can save that step again."""
        if jax.process_index() == 0:
            path = os.path.join(f'{self.folder}.damaged', str(step))
            shutil.rmtree(path, ignore_errors=True)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.rename(os.path.join(self.folder, str(step)), path)
        self._metrics.pop(step, None)
        _sync_processes('discard')
        self._manager.reload()

    def close(self) -> None:
        """Wait for the last save, and close the folder."""
        self._reader.close()
        if self._manager:
            self._manager.close()
