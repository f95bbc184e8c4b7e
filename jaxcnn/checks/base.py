"""The types of checks and of their verdicts."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxcnn.checks.context import Context

OK, INFORMATION, WARNING, FAILED = 'ok', 'information', 'warning', 'failed'
SEVERITY = (OK, INFORMATION, WARNING, FAILED)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The result of a check.

    Attributes:
      status: `ok`, `information` (a measurement that is neither good nor bad), `warning` or `failed`.
      measured: what was measured, with the figures that led to the status, in one sentence without a full stop.
      advice: what to do; empty if there is nothing to do.
      lines: lines of Markdown for the page, such as tables.
      figures: names of the figures in the folder of the context, without `.png`.
    """

    status: str
    measured: str
    advice: str = ''
    lines: Sequence[str] = ()
    figures: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Check:
    """A check of a config.

    Attributes:
      name: its name on the command line.
      question: the question that it answers.
      run: carries out the check.
      outputs: what the network must return, see `Network.outputs`; '' stands for anything.
    """

    name: str
    question: str
    run: 'Callable[[Context], Verdict]'
    outputs: str = ''


class Findings:
    """Collects what a check has found, and gives the verdict of the most severe finding."""

    def __init__(self) -> None:
        self._entries: list[tuple[str, str, str]] = []

    @property
    def statuses(self) -> set[str]:
        """The statuses of the findings so far."""
        return {entry[0] for entry in self._entries}

    def add(self, status: str, measured: str, advice: str = '') -> None:
        """Add a finding; see `Verdict`."""
        self._entries.append((status, measured, advice))

    def verdict(self, measured: str, lines: Sequence[str] = (), figures: Sequence[str] = (), status: str = OK) -> Verdict:
        """Return the verdict.

        Args:
          measured: the main figures, which precede those of the findings.
          lines, figures, status: see `Verdict`; the status without any finding.
        """
        entries = sorted(self._entries, key=lambda entry: -SEVERITY.index(entry[0]))
        worst = max([status, *(entry[0] for entry in entries)], key=SEVERITY.index)
        advice = [entry[2] for entry in entries if entry[2]]
        return Verdict(worst, '; '.join(filter(None, [measured, *(entry[1] for entry in entries)])),
                       '; '.join(dict.fromkeys(advice)), lines, figures)
