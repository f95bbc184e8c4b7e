"""Plugins: Python files and modules outside the package that register networks, losses, data sets and the like.

`config.plugins` names them. They are imported before any name is looked up, in training, evaluation and prediction alike,
and a run records the checksum of their code and the version of an installed package. Importing a plugin runs its code, so
open only workdirs that you trust.
"""

import ast
import dataclasses
import hashlib
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

from jaxcnn import registry
from jaxcnn.config import Plugin
from jaxcnn.errors import UserError, describe_exception, unknown
from jaxcnn.files import open_replacement

log = logging.getLogger('jaxcnn')
FOLDER = 'plugins'  # of a workdir, with copies of the files
_loaded_files: dict[str, str] = {}  # checksum by module name


def is_file(source: str) -> bool:
    """Return whether a plugin is a file and not a module."""
    return source.endswith('.py')


def load(plugins: Sequence[Plugin], workdir: str | None = None) -> tuple[Plugin, ...]:
    """Import plugins, and return them with their versions and checksums.

    Args:
      plugins: the plugins of a config. If one has a checksum, a run has recorded it, and the code must still match it.
      workdir: the workdir of the run that has recorded the plugins. Its copy of a file is used if the file is missing or has
        changed.

    Raises:
      UserError: A plugin is missing, raises an exception, or is not what the run recorded.
    """
    plugins = [dataclasses.replace(plugin, source=os.path.expanduser(plugin.source)) for plugin in plugins]
    names = [_module_name(plugin.source) for plugin in plugins]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UserError(f'{plugins[i].source!r} has the same name as another plugin', field=f'config.plugins[{i}]')
    for name in [name for name in _loaded_files if name not in names]:  # those of another config
        _forget_file(name)
    return tuple(_load(plugin, f'config.plugins[{i}]', workdir) for i, plugin in enumerate(plugins))


def _load(plugin: Plugin, field: str, workdir: str | None) -> Plugin:
    source = plugin.source
    if not is_file(source):
        module = _import_module(plugin, field)
        loaded = Plugin(source, _version(source), _checksum(_files_of_module(module)))
    else:
        path = _find_file(plugin, field, workdir)
        loaded = Plugin(os.path.abspath(source), '', _checksum(_files_of_script(path)))
        _import_file(path, loaded.sha256, field)
    if plugin.sha256 and plugin.sha256 != loaded.sha256:
        versions = f' (version {plugin.version} then, {loaded.version} now)' if plugin.version != loaded.version else ''
        raise UserError(f'{source!r} has changed since the run was trained{versions}', field=field,
                        hint='restore its code, or use a new workdir')
    return loaded


def _find_file(plugin: Plugin, field: str, workdir: str | None) -> str:
    """Return the path of a plugin's file, or of its copy in the workdir where the file is missing or has changed."""
    source = plugin.source
    exists = os.path.isfile(source)
    if exists and (not plugin.sha256 or _checksum(_files_of_script(source)) == plugin.sha256):
        return source
    if workdir is not None:
        copy = os.path.join(_folder_of_copies(workdir, source), os.path.basename(source))
        if os.path.isfile(copy):
            log.warning('%s: %s %s; the copy in %s is used', field, source, 'has changed' if exists else 'is missing', copy)
            return copy
    if exists:
        return source
    if workdir is not None:
        raise UserError(f'{source!r} is missing, and so is its copy in {_folder_of_copies(workdir, source)!r}', field=field,
                        hint='restore the file')
    folder = os.path.dirname(source) or '.'
    files = os.listdir(folder) if os.path.isdir(folder) else []
    raise unknown('plugin file', source, [os.path.join(folder, name) for name in files if is_file(name)], field=field)


def _module_name(source: str) -> str:
    return f'jaxcnn_plugin_{os.path.splitext(os.path.basename(source))[0]}' if is_file(source) else source


def _forget_file(name: str) -> None:
    """Remove what the module of a file has registered from all registries."""
    registry.forget(name)
    _loaded_files.pop(name, None)


def _import_file(path: str, sha256: str, field: str) -> None:
    import cloudpickle
    name = _module_name(path)
    if _loaded_files.get(name) == sha256:
        return
    _forget_file(name)
    folder = os.path.dirname(os.path.abspath(path))
    files_beside = [os.path.relpath(file, folder) for file in _files_of_script(path)[1:]]
    names_beside = {file.split(os.sep)[0].removesuffix('.py') for file in files_beside}
    for module_name in list(sys.modules):
        if module_name.partition('.')[0] in names_beside:  # of another version of the plugin
            del sys.modules[module_name]
    sys.path[:] = [folder, *(entry for entry in sys.path if entry != folder)]  # also for imports inside functions, later
    spec = importlib.util.spec_from_file_location(name, os.path.abspath(path))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        del sys.modules[name]
        raise _failed(path, e, field) from e
    cloudpickle.register_pickle_by_value(module)  # worker processes cannot import it
    _loaded_files[name] = sha256


def _import_module(plugin: Plugin, field: str) -> ModuleType:
    name = plugin.source
    if not all(part.isidentifier() for part in name.split('.')):
        raise UserError(f'{name!r} is neither a Python file nor a module', field=field)
    sys.path[:] = [os.getcwd(), *(entry for entry in sys.path if entry != os.getcwd())]  # as `python -m` does
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        if e.name and (name == e.name or name.startswith(f'{e.name}.')):
            if plugin.sha256:  # recorded by a run, so that the name was right once
                version = f', version {plugin.version}' if plugin.version else ''
                raise UserError(f'the run was trained with the module {name!r}{version}, which cannot be imported here',
                                field=field, hint='install its package, or set PYTHONPATH to the folder that holds it; the '
                                'workdir has copies of plugin files, but not of modules') from e
            raise UserError(f'there is no module {name!r}', field=field,
                            hint='install its package; a file is named with its ending, .py') from e
        raise _failed(name, e, field) from e
    except Exception as e:
        raise _failed(name, e, field) from e


def _failed(source: str, error: Exception, field: str) -> UserError:
    """Return the error for a plugin that raises one, with the file and the line where it does."""
    if isinstance(error, UserError):
        return UserError(str(error), field=f'{field}: {source}')
    folder = os.path.dirname(os.path.abspath(source))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if os.path.dirname(frame.filename) == folder]
    place = f'{frames[-1].filename}, line {frames[-1].lineno}' if frames else source
    if isinstance(error, SyntaxError):
        place = f'{error.filename}, line {error.lineno}'
    return UserError(describe_exception(error), field=f'{field}: {place}')


def _files_of_script(path: str) -> list[str]:
    """Return a file, and the files of its folder that it imports directly or indirectly, including packages."""
    path = os.path.abspath(path)
    folder, files, queue = os.path.dirname(path), [], [path]
    while queue:
        file = queue.pop(0)
        if file in files or not os.path.isfile(file):
            continue
        files.append(file)
        try:
            with open(file, 'rb') as f:
                tree = ast.parse(f.read())
        except (SyntaxError, ValueError):
            continue  # its import says what is wrong
        for node in ast.walk(tree):
            imported = ([alias.name for alias in node.names] if isinstance(node, ast.Import) else
                        [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else [])
            for name in imported:
                base = os.path.join(folder, name.partition('.')[0])
                queue += [f'{base}.py', *_python_files(base)]
    return files


def _python_files(folder: str) -> list[str]:
    return sorted(os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names if is_file(name))


def _files_of_module(module: ModuleType) -> list[str]:
    """Return all Python files of the package that a module is in, or the module's own."""
    top = sys.modules[module.__name__.partition('.')[0]]
    if not hasattr(top, '__path__'):
        return [str(module.__file__)]
    return [file for root in top.__path__ for file in _python_files(root)]


def _checksum(files: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with open(file, 'rb') as f:
            digest.update(hashlib.sha256(f.read()).digest())
    return digest.hexdigest()[:16]


def _version(module: str) -> str:
    """Return the version of the installed package that has a module, or '' for a module that is not installed."""
    packages = importlib.metadata.packages_distributions().get(module.partition('.')[0], [])
    return importlib.metadata.version(packages[0]) if packages else ''


def _folder_of_copies(workdir: str, source: str) -> str:
    return os.path.join(workdir, FOLDER, os.path.splitext(os.path.basename(source))[0])


def save_copies(plugins: Sequence[Plugin], workdir: str) -> None:
    """Copy the files of a run's plugins into its workdir, where prediction finds them if they move or change."""
    for plugin in plugins:
        if not is_file(plugin.source) or not os.path.isfile(plugin.source):
            continue
        folder = os.path.dirname(os.path.abspath(plugin.source))
        for file in _files_of_script(plugin.source):
            copy = os.path.join(_folder_of_copies(workdir, plugin.source), os.path.relpath(file, folder))
            if os.path.abspath(copy) != file:
                os.makedirs(os.path.dirname(copy), exist_ok=True)
                with open(file, 'rb') as source, open_replacement(copy, 'wb') as target:
                    shutil.copyfileobj(source, target)


def with_installed(plugins: tuple[Plugin, ...], used_modules: set[str]) -> tuple[Plugin, ...]:
    """Return the plugins of a config, and the installed ones that registered an object which the config uses.

    Args:
      plugins: the loaded plugins of the config.
      used_modules: the modules that define the objects which the config uses.
    """
    sources = {plugin.source for plugin in plugins}
    packages = {module.partition('.')[0] for module in used_modules}
    installed = [entry_point.module for entry_point in importlib.metadata.entry_points(group=registry.ENTRY_POINTS)]
    return (*plugins, *(_load(Plugin(source), 'config.plugins', None) for source in dict.fromkeys(installed)
                        if source not in sources and source.partition('.')[0] in packages))


def check_unchanged(recorded: Sequence[Plugin], plugins: Sequence[Plugin], workdir: str) -> None:
    """Raise a UserError if a run would continue with other plugins than it began with.

    Args:
      recorded: the plugins in the workdir.
      plugins: those that are loaded now.
      workdir: the workdir, for the error.
    """
    old, new = ({_module_name(plugin.source): plugin for plugin in group} for group in (recorded, plugins))
    for name in sorted({*old, *new}):
        plugin = (old.get(name) or new[name]).source
        what = 'is new' if name not in old else 'is missing' if name not in new else (
            'has changed' if old[name].sha256 != new[name].sha256 else None)
        if what is not None:
            raise UserError(f'the plugin {plugin!r} {what} since the run in {workdir!r} began', field='config.plugins',
                            hint='a run resumes with the code that it began with; use a new workdir for other code')
