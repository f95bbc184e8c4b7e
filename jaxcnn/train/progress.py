"""What a run shows: one line that is rewritten on a terminal, one line an interval elsewhere."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Mapping

log = logging.getLogger('jaxcnn')


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'


class Progress:
    """The progress line.

    Args:
      total: steps of the run.
      epochs: epochs of the run.
    """

    def __init__(self, total: int, epochs: float):
        self._total, self._epochs = total, epochs
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._shown = 0.0

    @property
    def due(self) -> bool:
        """Whether a terminal's line is old enough to be written anew."""
        return self._terminal and time.monotonic() - self._shown > 0.5

    def show(self, step: int, epoch: float, scalars: Mapping[str, float], rate: float, seconds_left: float,
             interval: bool) -> None:
        """Show where the run stands: the means of its scalars; `interval`: this is a logged interval's end.

        A terminal's line is rewritten at most ten times a second, and at the last step.
        """
        recent = time.monotonic() - self._shown < 0.1 and step < self._total
        if recent if self._terminal else not interval:
            return
        means = '  '.join(f'{name.replace("_", " ")} {value:.4f}' for name, value in scalars.items())
        line = (f'epoch {epoch:.2f}/{self._epochs:.4g}  step {step}/{self._total}  {means}  {rate:,.0f} images/s  '
                f'{_clock(seconds_left)} left')
        if self._terminal:
            self._rewrite(line[:_columns() - 1])  # a line of full width would wrap on some terminals
            self._shown = time.monotonic()
        else:
            log.info(line)

    def say(self, text: str) -> None:
        """A line of its own, which stays."""
        if self._terminal:
            self._rewrite('')
        log.info(text)

    def _rewrite(self, line: str) -> None:
        with contextlib.suppress(OSError):  # a terminal that is closed must not stop the run
            sys.stderr.write(f'\r\x1b[K{line}')
            sys.stderr.flush()


def _columns() -> int:
    """Width of the terminal; 80 where it does not say."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
