"""Callbacks: methods of a user's class that a run calls during training."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxcnn import config as cfg
from jaxcnn.errors import UserError, describe_exception, unknown
from jaxcnn.training.parallel import run_on_all_processes


class Callback:
    """Base class of callbacks. A subclass overrides the methods that it needs.

    Only process 0 calls them. An exception in a method stops the run; its last checkpoint is kept.

    Raises:
      UserError: A subclass has a method `on_...` that no run calls.
    """

    def __init_subclass__(cls, **arguments: Any):
        super().__init_subclass__(**arguments)
        for name in vars(cls):
            if name.startswith('on_') and not hasattr(Callback, name):
                raise unknown('method of a callback', name, [known for known in vars(Callback) if known.startswith('on_')],
                              field=cls.__name__)

    def on_begin(self, config: cfg.Config, workdir: str, step: int) -> None:
        """Called before the first step. `step` is 0, or the step from which a run resumes."""

    def on_log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Called at the end of each logged interval, `config.log_every`, with what is written to `metrics.jsonl`."""

    def on_evaluate(self, step: int, metrics: Mapping[str, float]) -> None:
        """Called after each evaluation, with its metrics by name, such as `val_accuracy`."""

    def on_checkpoint(self, step: int, path: str) -> None:
        """Called after each checkpoint, which is complete in the folder `path`. The run waits for it to be written."""

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Called when the run is complete, with what is in `summary.json`."""


class CallbackList:
    """The callbacks of a run, which process 0 calls in their order.

    Args:
      callbacks: the callbacks.

    Raises:
      UserError: One of them is no callback.
    """

    def __init__(self, callbacks: Sequence[Callback]):
        if not isinstance(callbacks, (list, tuple)):
            raise UserError(f'expected a list of callbacks, got {callbacks!r}', field='callbacks')
        for i, callback in enumerate(callbacks):
            if not isinstance(callback, Callback):
                raise UserError(f'expected an instance of a subclass of jaxcnn.Callback, got {callback!r}',
                                field=f'callbacks[{i}]')
        self._callbacks = tuple(callbacks)
        self._log_error: UserError | None = None

    def uses(self, method: str) -> bool:
        """Return whether a callback overrides a method."""
        return any(getattr(type(callback), method) is not getattr(Callback, method) for callback in self._callbacks)

    def on_log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Call `on_log` of each callback. Several processes do not log together, so there `call` raises its error."""
        try:
            self._call('on_log', step, scalars)
        except UserError as e:
            if jax.process_count() == 1:
                raise
            self._log_error = e

    def call(self, method: str, *arguments: Any) -> None:
        """Call a method of each callback, at a point that all processes reach.

        Raises:
          UserError: A method has raised an exception. It is raised in all processes.
        """
        def run() -> None:
            if self._log_error:
                raise self._log_error
            self._call(method, *arguments)
        run_on_all_processes(run)

    def _call(self, method: str, *arguments: Any) -> None:
        for callback in self._callbacks if jax.process_index() == 0 else ():
            try:
                getattr(callback, method)(*arguments)
            except UserError:
                raise
            except Exception as e:
                raise UserError(f'raised {describe_exception(e)}',
                                field=f'callback {type(callback).__name__}.{method}') from e
