"""Parsing: turn plain values into the typed, frozen `Config`, and back.

The `get_config()` of a config file returns `make(...)`, an `ml_collections.ConfigDict` with every field, which can be
printed, changed and passed on. `parse` turns it into the `Config` that the rest of the library reads, and is the only place
that checks the types and the ranges of the fields.
"""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from jaxcnn.config.schema import (
    ORIGINAL_SIZE,
    RENAMED_FIELDS,
    UNITS,
    Choice,
    Config,
    DistillationConfig,
    Duration,
    ImageSize,
    InitConfig,
    Plugin,
    PruningConfig,
)
from jaxcnn.errors import UserError, unknown

INIT_SOURCES = ('run', 'pretrained', 'torch', 'safetensors', 'variables')  # fields of `config.init`, of which one is set
_SCALARS = {bool: 'True or False', int: 'a whole number', float: 'a number', str: 'a string'}


def is_optional(kind: Any) -> bool:
    """Return whether a type annotation has the form `X | None`."""
    return typing.get_origin(kind) is types.UnionType and type(None) in typing.get_args(kind)


def strip_optional(kind: Any) -> Any:
    """Return the `X` of a type annotation `X | None`, and any other annotation as it is."""
    return next(k for k in typing.get_args(kind) if k is not type(None)) if is_optional(kind) else kind


def fields_of(schema: type) -> dict[str, tuple[Any, dataclasses.Field]]:
    """Return the type and the definition of each field of a schema class, by name."""
    types_of_fields = typing.get_type_hints(schema)
    return {f.name: (types_of_fields[f.name], f) for f in dataclasses.fields(schema)}


def wrong_value(field: str, expected: str, value: Any, hint: str | None = None) -> UserError:
    """Return the error for a field with a value of the wrong type or outside its range."""
    return UserError(f'expected {expected}, got {value!r}', field=field, hint=hint)


def unknown_field(group: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for a field `name` that the group of fields lacks; it names the new name of a renamed field."""
    field = f'{group}.{name}'
    if field in RENAMED_FIELDS:
        return UserError(f'{field} is now {RENAMED_FIELDS[field]}')
    return unknown('field', field, [f'{group}.{k}' for k in known])


def to_plain(value: Any) -> Any:
    """Return the value with all ConfigDicts and tuples in it replaced by dicts and lists."""
    if isinstance(value, ml_collections.ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {k: to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    return value


def parse_duration(value: Any, field: str, allow_zero: bool = False) -> Duration:
    """Return the duration that a config writes as, for example, `{'epochs': 30}`.

    Raises:
      UserError: the value is not a duration, or not above 0.
    """
    if isinstance(value, Duration):
        value = {value.unit: value.value}
    if not isinstance(value, Mapping) or len(value) != 1:
        raise wrong_value(field, 'a duration in one unit, as in dict(epochs=30)', value)
    (unit, amount), = value.items()
    if unit not in UNITS:
        raise unknown('unit of duration', unit, UNITS, field)
    if isinstance(amount, bool) or not isinstance(amount, (int, float)):
        raise wrong_value(f'{field}.{unit}', 'a number', amount)
    if not (0 < amount < 1e15 or (allow_zero and amount == 0)):
        limit = ' and below 1e15' if 0 < amount < math.inf else ''
        raise UserError(f'a duration must be positive{limit}, got {amount!r}', field=f'{field}.{unit}')
    if unit == 'steps' and amount != int(amount):
        raise wrong_value(f'{field}.steps', 'a whole number', amount)
    return Duration(unit, amount)


def _parse_choice(value: Any, field: str) -> Choice:
    if isinstance(value, Choice):
        return value
    if isinstance(value, str):
        value = {'name': value}
    if not isinstance(value, Mapping) or not isinstance(value.get('name'), str):
        raise wrong_value(field, "a name with arguments, as in dict(name='...')", value)
    return Choice(value['name'], {k: v for k, v in value.items() if k != 'name'})


def _parse_group(schema: type, value: Any, field: str) -> Any:
    """Return an instance of a schema class from a mapping of its fields."""
    if isinstance(value, schema):
        return value
    known = fields_of(schema)
    if not isinstance(value, Mapping):
        hint = f'{field}.name={value} names it' if isinstance(value, str) and 'name' in known else None
        if isinstance(value, str) and 'run' in known:
            hint = f'dict(run={value!r}) starts from a run'
        raise wrong_value(field, 'a group of fields', value, hint)
    for name in value:
        if name not in known:
            raise unknown_field(field, name, known)
    return schema(**{k: _parse_value(known[k][0], v, f'{field}.{k}', known[k][1].metadata) for k, v in value.items()})


def _parse_tuple(kinds: tuple[Any, ...], value: Any, field: str, limits: Mapping[str, Any]) -> tuple:
    """Return a tuple whose entries have the types `kinds`, or any number of entries of one type for `(kind, ...)`."""
    if kinds[0] is Plugin and isinstance(value, str):
        value = [source.strip() for source in value.split(',')]
    if not isinstance(value, (list, tuple)):
        raise wrong_value(field, 'a sequence', value, f'({value!r},) has one entry' if isinstance(value, str) else None)
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(value) != len(kinds):
        raise wrong_value(field, f'{len(kinds)} entries', value)
    return tuple(_parse_value(k, v, f'{field}[{i}]', limits) for i, (k, v) in enumerate(zip(kinds, value, strict=True)))


def _parse_scalar(kind: type, value: Any, field: str, limits: Mapping[str, Any]) -> Any:
    choices = limits.get('choices')
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise wrong_value(field, f'one of {", ".join(choices)}' if choices else _SCALARS[kind], value)
    if choices and value not in choices:
        raise unknown('value', value, choices, field)
    minimum, greater_than, maximum = (limits.get(name) for name in ('minimum', 'greater_than', 'maximum'))
    if minimum is not None and not value >= minimum:  # written so that NaN is refused
        raise wrong_value(field, f'at least {minimum}', value)
    if greater_than is not None and not value > greater_than:
        raise wrong_value(field, f'a finite number above {greater_than}', value)
    if maximum is not None and not value <= maximum:
        raise wrong_value(field, f'at most {maximum}', value)
    if kind is float and not abs(value) < 1e300:
        raise wrong_value(field, 'a finite number', value)
    return float(value) if kind is float else value


def _parse_image_size(value: Any, field: str) -> Any:
    """Return the size of images: a whole number, a pair of them, `{'shorter': SIDE}` or `ORIGINAL_SIZE`."""
    def is_length(length: Any) -> bool:
        return isinstance(length, int) and not isinstance(length, bool) and length >= 1
    is_valid = is_length(value) or value == ORIGINAL_SIZE or (value == 0 and not isinstance(value, bool))
    if isinstance(value, (list, tuple)):
        value = tuple(value)
        is_valid = len(value) == 2 and all(map(is_length, value))
    elif isinstance(value, Mapping):
        is_valid = list(value) == ['shorter'] and is_length(value['shorter'])
    if not is_valid:
        raise wrong_value(field, f'a number of pixels, (height, width), dict(shorter=256) or {ORIGINAL_SIZE!r}', value)
    return value


def _parse_value(kind: Any, value: Any, field: str, limits: Mapping[str, Any] = types.MappingProxyType({})) -> Any:
    """Return the value of a field as its type annotation `kind` demands; `limits` is the field's metadata."""
    if value is None and is_optional(kind):
        return None
    kind = strip_optional(kind)
    if kind is Duration:
        return parse_duration(value, field, limits.get('minimum') == 0)
    if kind is Choice:
        return _parse_choice(value, field)
    if kind == ImageSize:
        return _parse_image_size(value, field)
    if kind is Plugin and isinstance(value, str):
        return Plugin(value)
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        return _parse_group(kind, value, field)
    if typing.get_origin(kind) is types.UnionType:  # a scalar or a tuple
        scalar, sequence = typing.get_args(kind)
        kind = sequence if isinstance(value, (list, tuple)) else scalar
    if typing.get_origin(kind) is tuple:
        return _parse_tuple(typing.get_args(kind), value, field, limits)
    return _parse_scalar(kind, value, field, limits)


def parse(fields: Mapping[str, Any] | ml_collections.ConfigDict | Config) -> Config:
    """Return the typed config; missing fields have their defaults.

    Raises:
      UserError: a field is unknown, has the wrong type or is out of range; the error names the field and the value.
    """
    if isinstance(fields, Config):
        return fields
    config = _parse_value(Config, to_plain(fields), 'config')
    if config.checkpoint.patience and config.data.val_fraction == 0:
        raise UserError('stopping early needs a validation split: config.data.val_fraction above 0',
                        field='config.checkpoint.patience')
    if len({isinstance(entry, int) for entry in config.data.train_size}) > 1:
        raise wrong_value('config.data.train_size', 'numbers alone, which alternate by epoch, or pairs of a moment and a '
                          'number alone', to_dict(config.data.train_size))
    return config


def check_init(init: InitConfig | None) -> None:
    """Raise a UserError unless the fields of `config.init` fit together. No file is read."""
    if init is None:
        return
    sources = [name for name in INIT_SOURCES if getattr(init, name)]
    if len(sources) != 1:
        given = ' and '.join(sources) if sources else 'none of them'
        raise UserError(f'exactly one of {", ".join(INIT_SOURCES)} must be set, got {given}', field='config.init',
                        hint="for example init=dict(run='runs/a') or init=dict(safetensors='resnet18.safetensors')")
    for field, fits, reason in (
            ('checkpoint', bool(init.run) or init.checkpoint == 'best', 'only config.init.run has checkpoints'),
            ('channels', init.channels is None or bool(init.run), 'channels are removed from config.init.run only'),
            ('weights', init.weights or bool(init.run), 'only config.init.run has features of layers'),
            ('ema', init.ema is None or bool(init.run or init.torch),
             'only config.init.run and config.init.torch may have moving averages beside the parameters')):
        if not fits:
            raise UserError(f'got {to_dict(getattr(init, field))!r} with config.init.{sources[0]}, but {reason}',
                            field=f'config.init.{field}', hint='leave it out')
    if not init.weights and (unused := next((name for name in ('include', 'exclude', 'rename') if getattr(init, name)), '')):
        raise UserError('selects weights, and config.init.weights=False takes none', field=f'config.init.{unused}',
                        hint='leave it out')
    patterns = {'include': init.include, 'exclude': init.exclude,
                **{f'rename[{i}]': pattern for i, (pattern, _) in enumerate(init.rename)}}
    for field, pattern in patterns.items():
        try:
            re.compile(pattern)
        except re.error as e:
            raise UserError(f'{pattern!r} is no regular expression: {e}', field=f'config.init.{field}') from e


def check_pruning(pruning: PruningConfig | None, init: InitConfig | None) -> None:
    """Raise a UserError unless the fields of `config.pruning` fit together and with `config.init`. No file is read."""
    if pruning is None:
        return
    if pruning.sparsity is None and not pruning.masks:
        raise UserError('must be set', field='config.pruning.sparsity', hint='for example 0.9, or set config.pruning.masks')
    if pruning.sparsity is not None and pruning.sparsity >= 1:
        raise wrong_value('config.pruning.sparsity', 'at least 0 and below 1', pruning.sparsity)
    defaults = PruningConfig()
    without_effect: dict[str, tuple[str, ...]] = {
        'masks hold from the start to the end': ('begin', 'end', 'every') if pruning.masks else (),
        'the masks of the run are taken as they are, because config.pruning.sparsity is not set':
            ('method', 'scope') if pruning.masks and pruning.sparsity is None else (),
        'masks are computed from a run by magnitude only': ('method',) if pruning.masks else (),
        'there are no config.pruning.masks': () if pruning.masks else ('checkpoint', 'reinitialize'),
        'all is pruned at once': ('every',) if pruning.begin == pruning.end else (),
        'config.init says with which weights the run starts': ('reinitialize',) if init else ()}
    for reason, names in without_effect.items():
        for name in names:
            if getattr(pruning, name) != getattr(defaults, name):
                value = to_dict(getattr(pruning, name))
                raise UserError(f'got {value!r}, but {reason}', field=f'config.pruning.{name}', hint='leave it out')


def check_distillation(config: DistillationConfig | None) -> None:
    """Raise a UserError unless the fields of `config.distillation` fit together. No file is read."""
    if config is None:
        return
    group = 'config.distillation'
    if not config.teachers or not all(config.teachers):
        raise wrong_value(f'{group}.teachers', 'at least one workdir', list(config.teachers))
    for name in ('weights', 'checksums'):
        values = getattr(config, name)
        if values and len(values) != len(config.teachers):
            raise UserError(f'got {len(values)} for {len(config.teachers)} teachers', field=f'{group}.{name}')
    if config.hints_alone and not config.hints:
        raise UserError('there are no hints', field=f'{group}.hints_alone', hint=f'{group}.hints names feature maps')
    for i, hint in enumerate(config.hints):
        for name in ('teacher_map', 'student_map'):
            if not getattr(hint, name):
                raise UserError('is missing', field=f'{group}.hints[{i}].{name}',
                                hint="a feature map of each network is named, as in dict(teacher_map='stage3', "
                                "student_map='stage3') of ResNets")
        if hint.teacher >= len(config.teachers):
            raise UserError(f'got {hint.teacher}, but the last teacher is number {len(config.teachers) - 1}',
                            field=f'{group}.hints[{i}].teacher')


def to_dict(value: Any) -> Any:
    """Return plain dicts, lists and scalars, as `config.json` holds them; `parse` reads them back."""
    if isinstance(value, Duration):
        return {value.unit: value.value}
    if isinstance(value, Choice):
        return {'name': value.name, **to_plain(value.args)}
    if dataclasses.is_dataclass(value):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [to_dict(v) for v in value]
    return value


def make(**fields: Any) -> ml_collections.ConfigDict:
    """Return the ConfigDict of a config file: the given fields, and the defaults of all others."""
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


def _choice_differences(old: Choice, new: Choice, field: str) -> list[Difference]:
    """Return the arguments in which two choices of the same name differ."""
    changes = []
    for name in sorted({*old.args, *new.args}):
        before, after = (to_plain(c.args[name]) if name in c.args else _Default() for c in (old, new))
        if repr(before) != repr(after):
            changes.append(Difference(f'{field}.{name}', before, after))
    return changes


def differences(old: Any, new: Any, all_fields: bool = False, field: str = 'config') -> list[Difference]:
    """Return the fields in which two configs differ and that affect the result; with `all_fields` also the others."""
    if dataclasses.is_dataclass(old) and type(old) is type(new) and not isinstance(old, (Duration, Choice)):
        return [change for f in dataclasses.fields(old) if all_fields or f.metadata.get('affects_result', True)
                for change in differences(getattr(old, f.name), getattr(new, f.name), all_fields, f'{field}.{f.name}')]
    if isinstance(old, Choice) and isinstance(new, Choice) and old.name == new.name:
        return _choice_differences(old, new, field)
    old, new = to_dict(old), to_dict(new)
    return [] if old == new else [Difference(field, old, new)]
