"""Checks of the arguments of calls in strings, such as `pad_crop(4)`.

The errors name the argument as `call.argument`.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

from jaxcnn.errors import UserError, unknown


def check_whole_number(call: str, minimum: int = 1, **arguments: Any) -> None:
    """Raise a UserError for an argument that is not a whole number of at least `minimum`."""
    for name, value in arguments.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise UserError(f'expected a whole number of at least {minimum}, got {value!r}', field=f'{call}.{name}')


def check_number(call: str, minimum: float = 0.0, maximum: float = math.inf, **arguments: Any) -> None:
    """Raise a UserError for an argument that is not a finite number from `minimum` to `maximum`."""
    for name, value in arguments.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or not minimum <= value <= maximum:
            limits = f'between {minimum:g} and {maximum:g}' if maximum < math.inf else f'of at least {minimum:g}'
            is_quoted = isinstance(value, str) and re.fullmatch(r'[-+.\d/]+', value)
            raise UserError(f'expected a number {limits}, got {value!r}', field=f'{call}.{name}',
                            hint='numbers need no quotes' if is_quoted else None)


def check_range(call: str, minimum: float = 0.0, maximum: float = math.inf, **arguments: Any) -> None:
    """Raise a UserError for an argument that is not (low, high), with `minimum <= low <= high <= maximum`."""
    for name, value in arguments.items():
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise UserError(f'expected two numbers (low, high), got {value!r}', field=f'{call}.{name}')
        low, high = value
        check_number(call, minimum, maximum, **{f'{name}[0]': low, f'{name}[1]': high})
        if low > high:
            raise UserError(f'expected (low, high) with low at most high, got {value!r}', field=f'{call}.{name}')


def check_choice(call: str, choices: Sequence[str], **arguments: Any) -> None:
    """Raise a UserError for an argument that is not one of `choices`."""
    for name, value in arguments.items():
        if value not in choices:
            raise unknown(f'{name} of {call}', value, choices)
