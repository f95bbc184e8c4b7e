"""Callbacks: functions of a user's own that a run calls as it trains."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxcnn import config as cfg
from jaxcnn.errors import UserError


class Callback:
    """What a run calls; a subclass overrides the methods that it needs.

    They are called by process 0 alone. An exception in one of them stops the run, whose last checkpoint stays.
    """

    def on_begin(self, config: cfg.Config, workdir: str, step: int) -> None:
        """Is called before the first step; `step` is 0, or the one from which a run resumes."""

    def on_log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Is called at the end of each logged interval, `config.log_every`, with what is written to `metrics.jsonl`."""

    def on_evaluate(self, step: int, metrics: Mapping[str, float]) -> None:
        """Is called after each evaluation, with its metrics by name, such as `val_accuracy`."""

    def on_checkpoint(self, step: int, path: str) -> None:
        """Is called after each checkpoint, which is complete in the folder `path`. The run waits for it to be written."""

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Is called when the run is complete, with what is in `summary.json`."""


class Callbacks(Callback):
    """Several callbacks as one, in their order.

    Args:
      callbacks: the callbacks.

    Raises:
      UserError: One of them has no such methods; when a method is called, it has raised an exception.
    """

    def __init__(self, callbacks: Sequence[Callback]):
        for i, callback in enumerate(callbacks):
            if not isinstance(callback, Callback):
                raise UserError(f'expected an instance of a subclass of jaxcnn.Callback, got {callback!r}',
                                field=f'callbacks[{i}]')
        self._callbacks = tuple(callbacks)

    def uses(self, method: str) -> bool:
        """Return whether a callback overrides a method."""
        return any(getattr(type(callback), method) is not getattr(Callback, method) for callback in self._callbacks)

    def _call(self, method: str, *arguments: Any) -> None:
        for callback in self._callbacks:
            try:
                getattr(callback, method)(*arguments)
            except UserError:
                raise
            except Exception as e:
                raise UserError(f'raised {type(e).__name__}: {" ".join(str(e).split())}',
                                field=f'callback {type(callback).__name__}.{method}') from e

    def on_begin(self, config: cfg.Config, workdir: str, step: int) -> None:
        """Call all of them."""
        self._call('on_begin', config, workdir, step)

    def on_log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Call all of them."""
        self._call('on_log', step, scalars)

    def on_evaluate(self, step: int, metrics: Mapping[str, float]) -> None:
        """Call all of them."""
        self._call('on_evaluate', step, metrics)

    def on_checkpoint(self, step: int, path: str) -> None:
        """Call all of them."""
        self._call('on_checkpoint', step, path)

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Call all of them."""
        self._call('on_end', summary)
