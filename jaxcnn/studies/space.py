"""The space of a search: the possible values of each field, and how trials are sampled from them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from jaxcnn.errors import UserError, unknown

SAMPLERS = ('tpe', 'random', 'qmc')
PRUNERS = ('none', 'median', 'hyperband')


@dataclasses.dataclass(frozen=True)
class Range:
    """A range of numbers, which includes its limits.

    Attributes:
      low: the smallest number.
      high: the largest number.
      log: whether numbers are drawn uniformly on a logarithmic scale.
      integer: whether only integers are drawn.
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def __post_init__(self) -> None:
        numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (self.low, self.high))
        if not numbers or not self.low < self.high or (self.log and self.low <= 0):
            positive = ' that are positive' if self.log else ''
            raise UserError(f'a range needs two numbers{positive}, the first below the second, got {self.low!r} and '
                            f'{self.high!r}')


@dataclasses.dataclass(frozen=True)
class Values:
    """A finite set of values."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if len({str(value) for value in self.values}) < max(2, len(self.values)):
            raise UserError(f'a choice needs at least two values that differ, got {list(self.values)!r}')


def uniform(low: float, high: float) -> Range:
    """Return the range of numbers in [low, high]."""
    return Range(low, high)


def log_uniform(low: float, high: float) -> Range:
    """Return the range of numbers in [low, high], drawn uniformly on a logarithmic scale."""
    return Range(low, high, log=True)


def integer(low: int, high: int) -> Range:
    """Return the range of integers in [low, high]."""
    return Range(low, high, integer=True)


def choice(values: Sequence[Any]) -> Values:
    """Return a set of values: numbers, strings, or any other values that the field accepts."""
    return Values(tuple(values))


@dataclasses.dataclass(frozen=True)
class Search:
    """A search over a space of configs; see `search`."""

    space: Mapping[str, Range | Values]
    trials: int
    sampler: str
    pruner: str
    seed: int


def search(space: Mapping[str, Range | Values], trials: int, sampler: Literal['tpe', 'random', 'qmc'] = 'tpe',
           pruner: Literal['none', 'median', 'hyperband'] = 'none', seed: int = 0) -> Search:
    """Return a search, to be given to `make_study` in place of the arms.

    Args:
      space: the possible values of each field by its path, as in `{'optim.learning_rate': log_uniform(1e-3, 1)}`.
      trials: number of configs to try.
      sampler: how the next config is chosen. `tpe` prefers configs similar to the best ones so far (Bergstra et al. 2011),
        `random` draws them independently, and `qmc` uses a Sobol sequence, which covers the space evenly.
      pruner: which trials are stopped early. `none` stops no trial, `median` those that are worse than the median of the
        others at the same step, and `hyperband` those that are worse than others with the same budget (Li et al. 2018).
      seed: seed of the sampler.

    Raises:
      UserError: The space is empty, or an argument is out of range.
    """
    if not space:
        raise UserError('a search needs a space of at least one field')
    for path, values in space.items():
        if not isinstance(values, (Range, Values)):
            raise UserError(f'expected uniform, log_uniform, integer or choice, got {values!r}', field=path)
    if not isinstance(trials, int) or isinstance(trials, bool) or trials < 1:
        raise UserError(f'expected at least 1 trial, got {trials!r}', field='trials')
    for what, name, names in (('sampler', sampler, SAMPLERS), ('pruner', pruner, PRUNERS)):
        if name not in names:
            raise unknown(what, str(name), names)
    return Search(dict(space), trials, sampler, pruner, seed)
