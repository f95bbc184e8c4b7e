"""Checking: a config as plain values becomes the typed, frozen `Config`, and back.

A config file's `get_config()` returns `make(...)`: an `ml_collections.ConfigDict` with every field, so that it
can be printed, changed and passed on. `parse` turns it into the typed, frozen `Config` that the rest of the
library reads, and is the only place where a config's shape is checked.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from jaxcnn.config.schema import RENAMED_FIELDS, UNITS, Choice, Config, Duration
from jaxcnn.errors import UserError, unknown


def _is_optional(kind: Any) -> bool:
    return typing.get_origin(kind) is types.UnionType and type(None) in typing.get_args(kind)


def _strip_optional(kind: Any) -> Any:
    return next(k for k in typing.get_args(kind) if k is not type(None)) if _is_optional(kind) else kind


def _fields(schema: type) -> dict[str, tuple[Any, dataclasses.Field]]:
    hints = typing.get_type_hints(schema)
    return {f.name: (hints[f.name], f) for f in dataclasses.fields(schema)}


def _wrong(path: str, expected: str, value: Any, hint: str | None = None) -> UserError:
    return UserError(f'expected {expected}, got {value!r}', field=path, hint=hint)


def _unknown_field(path: str, name: str, known: Iterable[str]) -> UserError:
    field = f'{path}.{name}'
    if field in RENAMED_FIELDS:
        return UserError(f'{field} is now {RENAMED_FIELDS[field]}')
    return unknown('field', field, [f'{path}.{k}' for k in known])


def _plain(value: Any) -> Any:
    """ConfigDicts and tuples inside out to plain dicts and lists."""
    if isinstance(value, ml_collections.ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def build_duration(value: Any, path: str, zero: bool = False) -> Duration:
    """A duration as configs write it, `{'epochs': 30}`, at `path`; `zero`: it may be 0.

    Raises:
      UserError: it is none, or not above 0.
    """
    if isinstance(value, Duration):
        value = {value.unit: value.value}
    if not isinstance(value, Mapping) or len(value) != 1:
        raise _wrong(path, 'a duration in one unit, as in dict(epochs=30)', value)
    (unit, amount), = value.items()
    if unit not in UNITS:
        raise unknown('unit of duration', unit, UNITS, path)
    if isinstance(amount, bool) or not isinstance(amount, (int, float)):
        raise _wrong(f'{path}.{unit}', 'a number', amount)
    if not (0 < amount < 1e15 or (zero and amount == 0)):
        limit = ' and below 1e15' if 0 < amount < math.inf else ''
        raise UserError(f'a duration must be positive{limit}, got {amount!r}', field=f'{path}.{unit}')
    if unit == 'steps' and amount != int(amount):
        raise _wrong(f'{path}.steps', 'a whole number', amount)
    return Duration(unit, amount)


def _build(kind: Any, value: Any, path: str, meta: Mapping[str, Any] = types.MappingProxyType({})) -> Any:
    if _is_optional(kind):
        if value is None:
            return None
        kind = _strip_optional(kind)
    if kind is Duration:
        return build_duration(value, path, meta.get('least') == 0)
    if kind is Choice:
        if isinstance(value, Choice):
            return value
        if isinstance(value, str):
            value = {'name': value}
        if not isinstance(value, Mapping) or not isinstance(value.get('name'), str):
            raise _wrong(path, "a name with arguments, as in dict(name='...')", value)
        return Choice(value['name'], {k: v for k, v in value.items() if k != 'name'})
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        if isinstance(value, kind):
            return value
        if not isinstance(value, Mapping):
            hint = f'{path}.name={value} names it' if isinstance(value, str) and 'name' in _fields(kind) else None
            raise _wrong(path, 'a group of fields', value, hint)
        known = _fields(kind)
        for name in value:
            if name not in known:
                raise _unknown_field(path, name, known)
        return kind(**{k: _build(known[k][0], v, f'{path}.{k}', known[k][1].metadata) for k, v in value.items()})
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise _wrong(path, 'a sequence', value)
        inner = typing.get_args(kind)
        if inner[-1] is Ellipsis:
            return tuple(_build(inner[0], v, f'{path}[{i}]') for i, v in enumerate(value))
        if len(value) != len(inner):
            raise _wrong(path, f'{len(inner)} entries', value)
        return tuple(_build(k, v, f'{path}[{i}]') for i, (k, v) in enumerate(zip(inner, value, strict=True)))
    names = {bool: 'True or False', int: 'a whole number', float: 'a number', str: 'a string'}
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise _wrong(path, f'one of {", ".join(meta["choices"])}' if meta.get('choices') else names[kind], value)
    if meta.get('choices') and value not in meta['choices']:
        raise unknown('value', value, meta['choices'], path)
    if meta.get('least') is not None and not value >= meta['least']:
        raise _wrong(path, f'at least {meta["least"]}', value)
    if meta.get('above') is not None and not value > meta['above']:
        raise _wrong(path, f'a finite number above {meta["above"]}', value)
    if meta.get('most') is not None and not value <= meta['most']:
        raise _wrong(path, f'at most {meta["most"]}', value)
    if kind is float and not abs(value) < 1e300:
        raise _wrong(path, 'a finite number', value)
    return float(value) if kind is float else value


def parse(fields: Mapping[str, Any] | ml_collections.ConfigDict | Config) -> Config:
    """The typed config of `fields`; what is left out has its default.

    Raises:
      UserError: an unknown field, a wrong type or a value out of range; the line names field and value.
    """
    if isinstance(fields, Config):
        return fields
    config = _build(Config, _plain(fields), 'config')
    if config.checkpoint.patience and config.data.val_fraction == 0:
        raise UserError('stopping early needs a validation part: config.data.val_fraction above 0',
                        field='config.checkpoint.patience')
    return config


def to_dict(value: Any) -> Any:
    """Plain dicts, lists and scalars, as they go into `config.json`; `parse` reads them back."""
    if isinstance(value, Duration):
        return {value.unit: value.value}
    if isinstance(value, Choice):
        return {'name': value.name, **_plain(value.args)}
    if dataclasses.is_dataclass(value):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [to_dict(v) for v in value]
    return value


def make(**fields: Any) -> ml_collections.ConfigDict:
    """The ConfigDict of a config file: the named fields, every other at its default."""
    return ml_collections.ConfigDict(to_dict(parse(fields)))


class _Default:
    """The value of an argument that a `Choice` does not set."""

    def __repr__(self) -> str:
        return 'its default'


@dataclasses.dataclass(frozen=True)
class Difference:
    """A field in which two configs differ, with both values as `to_dict` gives them."""

    field: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f'{self.field}: {self.old!r} -> {self.new!r}'


def differences(old: Config, new: Config, all_fields: bool = False) -> list[Difference]:
    """Return the fields that differ and that could change the result, or with `all_fields` all that differ."""
    found = []

    def walk(a: Any, b: Any, path: str) -> None:
        if dataclasses.is_dataclass(a) and type(a) is type(b) and not isinstance(a, (Duration, Choice)):
            for f in dataclasses.fields(a):
                if all_fields or f.metadata.get('result', True):
                    walk(getattr(a, f.name), getattr(b, f.name), f'{path}.{f.name}')
        elif isinstance(a, Choice) and isinstance(b, Choice) and a.name == b.name:
            for name in sorted({*a.args, *b.args}):
                old, new = (_plain(c.args[name]) if name in c.args else _Default() for c in (a, b))
                if repr(old) != repr(new):
                    found.append(Difference(f'{path}.{name}', old, new))
        elif to_dict(a) != to_dict(b):
            found.append(Difference(path, to_dict(a), to_dict(b)))

    walk(old, new, 'config')
    return found
