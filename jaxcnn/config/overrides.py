"""Config files, and the command line's assignments to their fields."""

import dataclasses
import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from jaxcnn.config.literals import _literal
from jaxcnn.config.parse import _fields, _plain, _strip_optional, _unknown_field, _wrong, parse, to_dict
from jaxcnn.config.schema import Choice, Config, Duration
from jaxcnn.errors import UserError, unknown


def override(fields: Mapping[str, Any] | ml_collections.ConfigDict, assignments: Sequence[str]) -> dict[str, Any]:
    """`fields` with assignments of the command line, `'a.b=VALUE'`, carried out; VALUE is a Python literal.

    A duration is replaced whole by its new unit (`duration.epochs=3`); another `name` of an optimizer, schedule
    or model drops the arguments of the one before.

    Raises:
      UserError: the assignment names no field of the config, or is none.
    """
    tree = to_dict(parse(fields))
    for assignment in assignments:
        path, equals, text = assignment.partition('=')
        if not equals:
            raise UserError(f'expected --config.{path}=VALUE', field=f'--config.{assignment}')
        schema: type = Config
        node, at, parts = tree, 'config', path.split('.')
        while True:
            known = _fields(schema)
            if parts[0] not in known:
                raise _unknown_field(at, parts[0], known)
            kind = _strip_optional(known[parts[0]][0])
            key, at, rest = parts[0], f'{at}.{parts[0]}', parts[1:]
            if rest and kind is Duration and len(rest) == 1:
                node[key] = {rest[0]: _literal(text)}
            elif rest and kind is Choice and len(rest) == 1:
                same = node[key] is not None and node[key]['name'] == text
                if rest[0] == 'name' and not same:
                    node[key] = {'name': text}
                elif rest[0] != 'name':
                    node[key] = {**(node[key] or {}), rest[0]: _literal(text)}
            elif rest and dataclasses.is_dataclass(kind) and kind not in (Duration, Choice):
                assert isinstance(kind, type)
                if node[key] is None:
                    node[key] = to_dict(kind())
                elif not isinstance(node[key], dict):
                    raise _wrong(at, 'a group of fields', node[key])
                node, schema, parts = node[key], kind, rest
                continue
            elif rest:
                raise UserError(f'has no field {".".join(rest)!r}', field=at)
            elif kind is Choice and not text.startswith(('{', 'dict(')):
                node[key] = {'name': text}
            elif kind is str:
                node[key] = text
            else:
                node[key] = _plain(_literal(text))
            break
    return to_dict(parse(tree))


def load(path: str | os.PathLike, assignments: Sequence[str] = ()) -> Config:
    """The config of a file with `get_config()`, after the assignments of the command line.

    Raises:
      UserError: the file is missing or not a config, or see `parse` and `override`.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        folder = os.path.dirname(path) or '.'
        near = [os.path.normpath(os.path.join(f, n)) for f in {folder, 'configs'} if os.path.isdir(f)
                for n in os.listdir(f) if n.endswith('.py')]
        raise unknown('config file', path, near)
    spec = importlib.util.spec_from_file_location('jaxcnn_user_config', path)
    if spec is None or spec.loader is None:
        raise UserError('a config is a Python file with get_config()', field=path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, 'get_config'):
            raise UserError('has no get_config()')
        fields = module.get_config()
    except UserError as e:
        raise UserError(str(e), field=path) from e
    except Exception as e:
        raise UserError(f'{type(e).__name__}: {" ".join(str(e).split())}', field=path) from e
    stem = os.path.splitext(os.path.basename(path))[0]
    tree = override(fields, assignments)
    return parse({**tree, 'name': tree['name'] or stem})
