"""Registries: objects of this package and of plugins that configs refer to by name.

At an unknown name, a registry imports the modules of installed packages that declare the entry-point group `jaxcnn.plugins`,
so that configs can use what they register without naming them.
"""

import contextlib
import functools
import importlib.metadata
import inspect
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from jaxcnn.errors import UserError, describe_exception, unknown

T = TypeVar('T')
ENTRY_POINTS = 'jaxcnn.plugins'
_used: set[str] | None = None  # modules of the objects that were looked up
_registries: list['Registry'] = []


@functools.cache
def load_installed_plugins() -> None:
    """Import the modules that installed packages declare in the entry-point group, once.

    Raises:
      UserError: A module raises an exception.
    """
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            entry_point.load()
        except Exception as e:
            raise UserError(f'raised {describe_exception(e)}',
                            field=f'the plugin {entry_point.name!r} ({entry_point.value})') from e


@contextlib.contextmanager
def record_used_modules() -> Iterator[set[str]]:
    """Yield a set to which every lookup in the block adds the name of the module that defines the object."""
    global _used
    before, _used = _used, set()
    try:
        yield _used
    finally:
        _used = before


def forget(module: str) -> None:
    """Remove what a module has registered from all registries."""
    for registry in _registries:
        registry.forget(module)


@contextlib.contextmanager
def undo_registrations() -> Iterator[None]:
    """Restore all registries at the end of the block, as tests need."""
    before = [(registry, registry.copy()) for registry in _registries]
    try:
        yield
    finally:
        for registry, contents in before:
            registry.restore(contents)


class Registry(Generic[T]):
    """Objects of one kind by name.

    Attributes:
      kind: what the objects are, for errors, such as `model`.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._objects: dict[str, T] = {}
        self._definitions: dict[str, Any] = {}
        _registries.append(self)

    def add(self, name: str, value: T, definition: Any = None) -> None:
        """Register an object.

        Args:
          name: the name that configs use.
          value: the object.
          definition: the class or function that defines it; `value` itself by default.

        Raises:
          UserError: The name is taken by another definition. The same definition, as when a notebook's cell is run again,
            replaces the earlier one.
        """
        definition = value if definition is None else definition
        if name in self._objects and _identity(self._definitions[name]) != _identity(definition):
            locations = ' and by '.join(map(_describe_location, (self._definitions[name], definition)))
            raise UserError(f'the {self.kind} {name!r} is registered twice: by {locations}', hint='rename one of them')
        self._objects[name], self._definitions[name] = value, definition

    def __contains__(self, name: object) -> bool:
        if name not in self._objects:
            load_installed_plugins()
        return name in self._objects

    def get(self, name: str, field: str | None = None) -> T:
        """Return the object of a name.

        Args:
          name: the registered name.
          field: the field of the config that holds the name, for the error.

        Raises:
          UserError: The name is unknown.
        """
        if name not in self:
            error = unknown(self.kind, name, self._objects, field)
            error.add_hint('config.plugins names files that register others')
            raise error
        if _used is not None:
            _used.add(self._definitions[name].__module__)
        return self._objects[name]

    def forget(self, module: str) -> None:
        """Remove the objects that a module defines."""
        for name in [name for name, definition in self._definitions.items() if definition.__module__ == module]:
            del self._objects[name], self._definitions[name]

    def names(self) -> list[str]:
        """Return the registered names in order."""
        return sorted(self._objects)

    def items(self) -> list[tuple[str, T]]:
        """Return the names with their objects, in the order of registration."""
        return list(self._objects.items())

    def copy(self) -> tuple[dict[str, T], dict[str, Any]]:
        """Return the contents, for `restore`."""
        return dict(self._objects), dict(self._definitions)

    def restore(self, contents: tuple[dict[str, T], dict[str, Any]]) -> None:
        """Replace the contents by those that `copy` returned."""
        self._objects, self._definitions = contents


def _identity(definition: Any) -> tuple[str, str]:
    return definition.__module__, definition.__qualname__


def _describe_location(definition: Any) -> str:
    """Return the name and the file of a class or a function, for errors."""
    try:
        file = inspect.getsourcefile(definition)
    except TypeError:
        file = None
    return f'{definition.__qualname__} in {file or definition.__module__}'
