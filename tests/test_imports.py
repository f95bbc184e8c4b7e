"""Modules import each other in one direction, also within functions and for type checking."""

import ast
import graphlib
import pathlib

import jaxcnn

ROOT = pathlib.Path(jaxcnn.__file__).parent


def imported_modules(path, modules):
    """Return the modules of the package that a file imports anywhere, without the packages that contain them."""
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f'{node.module}.{alias.name}'
                yield name if name in modules else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_no_modules_import_each_other_in_a_circle():
    modules = {'.'.join(path.relative_to(ROOT.parent).with_suffix('').parts).removesuffix('.__init__'): path
               for path in ROOT.rglob('*.py')}
    graph = {name: set(imported_modules(path, modules)) & set(modules) for name, path in modules.items()}
    assert 'jaxcnn.training.state' in graph['jaxcnn.run']
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules of a circle
