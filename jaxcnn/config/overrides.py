"""Config files, and assignments to their fields on the command line."""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from jaxcnn.config.literals import parse_literal
from jaxcnn.config.parse import fields_of, parse, strip_optional, to_dict, to_plain, unknown_field, wrong_value
from jaxcnn.config.schema import Choice, Config, Duration, Plugin
from jaxcnn.errors import UserError, unknown


class _Text(str):
    """A value as it is written on the command line, which may be a literal, in contrast to a string from Python."""


def _to_value(value: Any) -> Any:
    return parse_literal(value) if isinstance(value, _Text) else to_plain(value)


def override(fields: Mapping[str, Any] | ml_collections.ConfigDict | Config,
             assignments: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields as plain values after assignments to some of them.

    A new unit replaces the whole duration (`duration.epochs=3`); a new `name` of an optimizer, schedule or model drops the
    arguments of the old one.

    Args:
      fields: of a config.
      assignments: values by the path of their field, as in `{'optim.learning_rate': 0.1}`, or strings `'a.b=VALUE'` with a
        Python literal as VALUE, as on the command line.

    Raises:
      UserError: an assignment has no `=`, names no field of the config, or gives it a wrong value.
    """
    tree = to_dict(parse(fields))
    pairs = assignments.items() if isinstance(assignments, Mapping) else map(_split_assignment, assignments)
    for path, value in pairs:
        _assign(tree, Config, 'config', path.split('.'), value)
    return to_dict(parse(tree))


def _split_assignment(assignment: str) -> tuple[str, _Text]:
    path, equals, text = assignment.partition('=')
    if not equals:
        raise UserError(f'expected --config.{path}=VALUE', field=f'--config.{assignment}')
    return path, _Text(text)


def parse_assignment(flag: str, assignment: str) -> tuple[str, Any]:
    """Return the name and the value of `NAME=VALUE`, which a flag of a command has; the value is a literal or a string."""
    name, equals, text = assignment.partition('=')
    if not equals or not name:
        raise UserError(f'expected {flag}=NAME=VALUE, got {assignment!r}', field=flag)
    return name, parse_literal(text)


def _assign(tree: dict[str, Any], schema: type, group: str, names: Sequence[str], value: Any) -> None:
    """Set one field in a tree of plain values.

    Args:
      tree: the fields of one group; it is changed.
      schema: the schema class of the group.
      group: the name of the group in full, for errors.
      names: the path from the group to the field.
      value: the value; `_Text` if it is from the command line.
    """
    name, *rest = names
    known = fields_of(schema)
    if name not in known:
        raise unknown_field(group, name, known)
    kind, field = strip_optional(known[name][0]), f'{group}.{name}'
    if not rest:
        tree[name] = _whole_field(kind, value)
    elif kind is Duration and len(rest) == 1:
        tree[name] = {rest[0]: _to_value(value)}
    elif kind is Choice and len(rest) == 1:
        tree[name] = _assign_to_choice(tree[name], rest[0], value)
    elif dataclasses.is_dataclass(kind) and kind not in (Duration, Choice):
        assert isinstance(kind, type)
        if tree[name] is None:
            tree[name] = to_dict(kind())
        elif not isinstance(tree[name], dict):
            raise wrong_value(field, 'a group of fields', tree[name])
        _assign(tree[name], kind, field, rest, value)
    else:
        raise UserError(f'has no field {".".join(rest)!r}', field=field)


def _assign_to_choice(choice: dict[str, Any] | None, key: str, value: Any) -> dict[str, Any]:
    """Return the plain form of a `Choice` with another name, or with another argument."""
    if key != 'name':
        return {**(choice or {}), key: _to_value(value)}
    return choice if choice is not None and choice['name'] == value else {'name': value}


def _whole_field(kind: Any, value: Any) -> Any:
    """Return the plain value of a whole field."""
    if kind is Choice and isinstance(value, str) and not value.startswith(('{', 'dict(')):
        return {'name': str(value)}
    return str(value) if kind is str and isinstance(value, str) else to_plain(_to_value(value))


def load(path: str | os.PathLike, assignments: Sequence[str] = ()) -> Config:
    """Return the config of a file with `get_config()`, after the assignments of the command line.

    Args:
      path: of the file, which may be the `config.json` of a run, or the name of a config that comes with jaxcnn, such as
        `digits_lenet5`.
      assignments: see `override`.

    Raises:
      UserError: the file is missing or defines no config, or the config is wrong (see `parse` and `override`).
    """
    path = find_config_file(os.fspath(path))
    fields = parse(_run_config_file(path))
    fields = dataclasses.replace(fields, plugins=tuple(_resolve_plugin_path(path, plugin) for plugin in fields.plugins))
    stem = os.path.splitext(os.path.basename(path))[0]
    tree = override(fields, assignments)
    return parse({**tree, 'name': tree['name'] or stem})


def _resolve_plugin_path(path: str, plugin: Plugin) -> Plugin:
    """Return the plugin with the absolute path of its file, if the file is in the folder of the config."""
    file = os.path.join(os.path.dirname(path), plugin.source)
    return dataclasses.replace(plugin, source=os.path.abspath(file)) if os.path.isfile(file) else plugin


def find_config_file(path: str, kind: str = 'config') -> str:
    """Return the path of a config file or a study file, which is given by its path or, if it comes with jaxcnn, by its name.

    Raises:
      UserError: there is no such file.
    """
    if os.path.isfile(path):
        return path
    shipped = {os.path.splitext(os.path.basename(file))[0]: file for file in shipped_configs(kind)}
    if path in shipped:
        return shipped[path]
    raise unknown(f'{kind} file', path, [*_config_files(os.path.dirname(path) or '.', *_FOLDERS[kind][-1:]), *shipped])


# the folders of the files that come with jaxcnn, from the outermost on
_FOLDERS = {'config': ('configs',), 'study': ('configs', 'studies')}


def shipped_configs(kind: str = 'config') -> list[str]:
    """Return the paths of the configs or studies that come with jaxcnn, in the clone or in the installed package."""
    root, folders = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), _FOLDERS[kind]
    if os.path.isfile(os.path.join(root, 'pyproject.toml')):
        return _config_files(os.path.join(root, *folders))
    files: list = []
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        files = importlib.metadata.files('jaxcnn') or []
    return sorted(os.path.normpath(file.locate()) for file in files
                  if file.parts[-len(folders) - 2:-1] == ('jaxcnn', *folders))


def _config_files(*folders: str) -> list[str]:
    return sorted(os.path.normpath(os.path.join(folder, name)) for folder in set(folders) if os.path.isdir(folder)
                  for name in os.listdir(folder) if name.endswith('.py'))


def _run_config_file(path: str) -> Any:
    """Return what `get_config()` of the file returns, or the content of a JSON file."""
    if not path.endswith('.json'):
        return call_in_file(path, 'get_config')
    try:
        with open(path, encoding='utf-8') as file:
            return json.load(file)
    except (OSError, ValueError) as e:
        raise UserError(f'cannot be read: {e}', field=path) from e


def call_in_file(path: str, name: str) -> Any:
    """Return what a function in a Python file of the user's returns.

    Raises:
      UserError: the file cannot be imported, has no such function, or it fails.
    """
    spec = importlib.util.spec_from_file_location('jaxcnn_user_config', path)
    if spec is None or spec.loader is None:
        raise UserError(f'a Python file with {name}() is needed', field=path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        function = getattr(module, name, None)
        if function is None:
            others = ', '.join(f'{other}()' for other in vars(module) if other.startswith('get_'))
            raise UserError(f'has no {name}()', hint=f'it has {others}' if others else None)
        return function()
    except UserError as e:
        raise UserError(str(e), field=path) from e
    except Exception as e:
        lines = [frame.lineno for frame in traceback.extract_tb(e.__traceback__) if frame.filename == spec.origin]
        field = f'{path}, line {lines[-1]}' if lines else path
        raise UserError(f'{type(e).__name__}: {" ".join(str(e).split())}', field=field) from e
