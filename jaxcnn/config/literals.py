"""Literals in strings: values on the command line, and calls as in `'pad_crop(4)|flip_lr'`. No code is run."""

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxcnn.errors import UserError, unknown


class _Dicts(ast.NodeTransformer):
    """`dict(a=1)`, as config files have it, as the literal `{'a': 1}`."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        named = [(ast.Constant(k.arg), k.value) for k in node.keywords if k.arg]
        if isinstance(node.func, ast.Name) and node.func.id == 'dict' and len(named) == len(node.keywords) and not node.args:
            return ast.Dict([key for key, _ in named], [value for _, value in named])
        return node


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(_Dicts().visit(ast.parse(text.strip(), mode='eval')))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def parse_call(text: str, where: str) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """'name(1, b=2)' or 'name' as (name, args, kwargs); arguments are literals, nothing is evaluated as code."""
    error = UserError(f'{text.strip()!r} is not a name, or name(value, key=value, ...) with numbers, tuples, or strings in '
                      'quotes', field=where)
    try:
        node = ast.parse(text.strip(), mode='eval').body
        if isinstance(node, ast.Name):
            return node.id, (), {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and all(k.arg for k in node.keywords):
            return (node.func.id, tuple(ast.literal_eval(a) for a in node.args),
                    {str(k.arg): ast.literal_eval(k.value) for k in node.keywords})
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise error from None
    raise error


def parse_calls(text: str, where: str) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """As `parse_call`, of several with `|` between them."""
    try:
        return [parse_call(part, where) for part in text.split('|')]
    except UserError as e:
        e.add_hint("between several stands '|'")
        raise


def bind(function: Callable, args: Sequence[Any], kwargs: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The arguments as keywords of `function`; a UserError names the one that does not fit and the known ones."""
    signature = inspect.signature(function)
    for name in kwargs:
        if name not in signature.parameters:
            raise unknown(f'argument of {where}', name, signature.parameters)
    try:
        return dict(signature.bind(*args, **kwargs).arguments)
    except TypeError as e:
        raise UserError(str(e), field=where, hint=f'it takes ({", ".join(map(str, signature.parameters))})') from e
