"""Display of a run's progress: one line that is rewritten on a terminal, and one line for each logged interval elsewhere."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Mapping

log = logging.getLogger('jaxcnn')


def _format_time(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'


class ProgressDisplay:
    """The progress line.

    Args:
      total_steps: number of steps of the run.
      total_epochs: number of epochs of the run.
    """

    def __init__(self, total_steps: int, total_epochs: float):
        self._total_steps, self._total_epochs = total_steps, total_epochs
        self._in_notebook = 'ipykernel' in sys.modules
        # whether there is one line, which is rewritten
        self._is_rewritten = self._in_notebook or (sys.stderr is not None and sys.stderr.isatty())
        self._shown_time = 0.0

    @property
    def is_due(self) -> bool:
        """Whether the line should be rewritten by now."""
        return self._is_rewritten and time.monotonic() - self._shown_time > 0.5

    def show(self, step: int, epoch: float, scalars: Mapping[str, float], rate: float, seconds_left: float,
             ends_interval: bool) -> None:
        """Show the progress of the run.

        A line that is rewritten changes at most ten times a second, and at the last step.

        Args:
          step: number of steps that are done.
          epoch: number of epochs that are done.
          scalars: means of the training scalars.
          rate: images per second.
          seconds_left: expected time until the end of the run.
          ends_interval: whether a logged interval ends; only then a line is logged where it is not rewritten.
        """
        was_just_shown = time.monotonic() - self._shown_time < 0.1 and step < self._total_steps
        if was_just_shown if self._is_rewritten else not ends_interval:
            return
        means = '  '.join(f'{name.replace("_", " ")} {value:.4f}' for name, value in scalars.items())
        line = (f'epoch {epoch:.2f}/{self._total_epochs:.4g}  step {step}/{self._total_steps}  {means}  '
                f'{rate:,.0f} images/s  {_format_time(seconds_left)} left')
        if self._is_rewritten:
            width = 150 if self._in_notebook else _terminal_width()
            self._rewrite(line[:width - 1])  # a line of full width would wrap on some terminals
            self._shown_time = time.monotonic()
        else:
            log.info(line)

    def log(self, text: str) -> None:
        """Log a line that is not rewritten."""
        if self._in_notebook:
            print('\n' if self._shown_time else '', end='', flush=True)
        elif self._is_rewritten:
            self._rewrite('')
        self._shown_time = 0.0
        log.info(text)

    def _rewrite(self, line: str) -> None:
        if self._in_notebook:  # where standard error has a red background, and the line cannot be erased
            print(f'\r{line.ljust(150)}', end='', flush=True)
            return
        with contextlib.suppress(OSError):  # a closed terminal must not stop the run
            sys.stderr.write(f'\r\x1b[K{line}')
            sys.stderr.flush()


def _terminal_width() -> int:
    """Return the width of the terminal, or 80 if it is unknown."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
