"""Config files, and assignments to their fields on the command line."""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from jaxcnn.config.literals import parse_literal
from jaxcnn.config.parse import fields_of, parse, strip_optional, to_dict, to_plain, unknown_field, wrong_value
from jaxcnn.config.schema import Choice, Config, Duration, Plugin
from jaxcnn.errors import UserError, unknown


def override(fields: Mapping[str, Any] | ml_collections.ConfigDict, assignments: Sequence[str]) -> dict[str, Any]:
    """Return the fields as plain values after the assignments `'a.b=VALUE'`, with a Python literal as VALUE.

    A new unit replaces the whole duration (`duration.epochs=3`); a new `name` of an optimizer, schedule or model drops the
    arguments of the old one.

    Raises:
      UserError: an assignment has no `=`, names no field of the config, or gives it a wrong value.
    """
    tree = to_dict(parse(fields))
    for assignment in assignments:
        path, equals, text = assignment.partition('=')
        if not equals:
            raise UserError(f'expected --config.{path}=VALUE', field=f'--config.{assignment}')
        _assign(tree, Config, 'config', path.split('.'), text)
    return to_dict(parse(tree))


def _assign(tree: dict[str, Any], schema: type, group: str, names: Sequence[str], text: str) -> None:
    """Set one field in a tree of plain values.

    Args:
      tree: the fields of one group; it is changed.
      schema: the schema class of the group.
      group: the name of the group in full, for errors.
      names: the path from the group to the field.
      text: the value as on the command line.
    """
    name, *rest = names
    known = fields_of(schema)
    if name not in known:
        raise unknown_field(group, name, known)
    kind, field = strip_optional(known[name][0]), f'{group}.{name}'
    if not rest:
        tree[name] = _parse_text(kind, text)
    elif kind is Duration and len(rest) == 1:
        tree[name] = {rest[0]: parse_literal(text)}
    elif kind is Choice and len(rest) == 1:
        tree[name] = _assign_to_choice(tree[name], rest[0], text)
    elif dataclasses.is_dataclass(kind) and kind not in (Duration, Choice):
        assert isinstance(kind, type)
        if tree[name] is None:
            tree[name] = to_dict(kind())
        elif not isinstance(tree[name], dict):
            raise wrong_value(field, 'a group of fields', tree[name])
        _assign(tree[name], kind, field, rest, text)
    else:
        raise UserError(f'has no field {".".join(rest)!r}', field=field)


def _assign_to_choice(choice: dict[str, Any] | None, key: str, text: str) -> dict[str, Any]:
    """Return the plain form of a `Choice` with another name, or with another argument."""
    if key != 'name':
        return {**(choice or {}), key: parse_literal(text)}
    return choice if choice is not None and choice['name'] == text else {'name': text}


def _parse_text(kind: Any, text: str) -> Any:
    """Return the plain value of a whole field from the command line."""
    if kind is Choice and not text.startswith(('{', 'dict(')):
        return {'name': text}
    return text if kind is str else to_plain(parse_literal(text))


def load(path: str | os.PathLike, assignments: Sequence[str] = ()) -> Config:
    """Return the config of a file with `get_config()`, after the assignments of the command line.

    Args:
      path: of the file, or the name of a config that comes with jaxcnn, such as `digits_lenet5`.
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


def find_config_file(path: str) -> str:
    """Return the path of a config file, which is given by its path or, if it comes with jaxcnn, by its name.

    Raises:
      UserError: there is no such file.
    """
    if os.path.isfile(path):
        return path
    shipped = {os.path.splitext(os.path.basename(file))[0]: file for file in shipped_configs()}
    if path in shipped:
        return shipped[path]
    raise unknown('config file', path, [*_config_files(os.path.dirname(path) or '.', 'configs'), *shipped])


def shipped_configs() -> list[str]:
    """Return the paths of the configs that come with jaxcnn, in the clone or in the installed package."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if os.path.isfile(os.path.join(root, 'pyproject.toml')):
        return _config_files(os.path.join(root, 'configs'))
    files: list = []
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        files = importlib.metadata.files('jaxcnn') or []
    return sorted(os.path.normpath(file.locate()) for file in files if file.parts[-3:-1] == ('jaxcnn', 'configs'))


def _config_files(*folders: str) -> list[str]:
    return sorted(os.path.normpath(os.path.join(folder, name)) for folder in set(folders) if os.path.isdir(folder)
                  for name in os.listdir(folder) if name.endswith('.py'))


def _run_config_file(path: str) -> Any:
    """Return what `get_config()` of the file returns."""
    spec = importlib.util.spec_from_file_location('jaxcnn_user_config', path)
    if spec is None or spec.loader is None:
        raise UserError('a config is a Python file with get_config()', field=path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, 'get_config'):
            raise UserError('has no get_config()')
        return module.get_config()
    except UserError as e:
        raise UserError(str(e), field=path) from e
    except Exception as e:
        raise UserError(f'{type(e).__name__}: {" ".join(str(e).split())}', field=path) from e
