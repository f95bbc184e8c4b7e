"""Checks of a config before or instead of a training: is the training sound?

`run_checks` carries them out one after another. Each answers one question by measurements on the objects that `train` would
use, and gives a `Verdict`: a status, what was measured, and what to do. To add a check, write a function from a `Context` to
a `Verdict` and put it into `CHECKS`.
"""

from jaxcnn.checks.base import FAILED, INFORMATION, OK, WARNING, Check, Verdict
from jaxcnn.checks.context import Context
from jaxcnn.checks.run import CHECKS, run_checks

__all__ = ['CHECKS', 'FAILED', 'INFORMATION', 'OK', 'WARNING', 'Check', 'Context', 'Verdict', 'run_checks']
