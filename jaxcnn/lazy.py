"""Packages whose names are imported when they are first used (PEP 562)."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_attributes(package: str, locations: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the function `__getattr__` of a package, which imports its names when they are first used.

    Args:
      package: name of the package.
      locations: the module of each name, relative to the package; `module:name` if the object has another name there.
    """
    def get_attribute(name: str) -> Any:
        if name not in locations:
            raise AttributeError(f'module {package!r} has no attribute {name!r}')
        module, _, attribute = locations[name].partition(':')
        value = getattr(importlib.import_module(f'{package}.{module}'), attribute or name)
        setattr(sys.modules[package], name, value)
        return value
    return get_attribute
