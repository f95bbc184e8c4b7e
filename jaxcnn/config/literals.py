"""Literals in strings: values on the command line, and calls such as `'pad_crop(4)|flip_lr'`. No code is executed."""

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxcnn.errors import UserError, unknown

_SYNTAX_ERRORS = (ValueError, SyntaxError, TypeError, ArithmeticError, MemoryError, RecursionError)


class _ToLiterals(ast.NodeTransformer):
    """Replace `dict(a=1)`, which config files write, by the literal `{'a': 1}`, and `8/255` by its value."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        keywords = [(ast.Constant(k.arg), k.value) for k in node.keywords if k.arg]
        only_keywords = not node.args and len(keywords) == len(node.keywords)
        if isinstance(node.func, ast.Name) and node.func.id == 'dict' and only_keywords:
            return ast.Dict([key for key, _ in keywords], [value for _, value in keywords])
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        if not isinstance(node.op, ast.Div):
            return node
        dividend, divisor = ast.literal_eval(node.left), ast.literal_eval(node.right)
        return ast.Constant(dividend / divisor)


def _evaluate(node: ast.AST) -> Any:
    return ast.literal_eval(_ToLiterals().visit(node))


def parse_literal(text: str) -> Any:
    """Return the value of a Python literal, in which `dict(a=1)` and `8/255` are allowed; other text as the string it is."""
    try:
        return _evaluate(ast.parse(text.strip(), mode='eval'))
    except _SYNTAX_ERRORS:
        return text


def parse_call(text: str, field: str) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """Return the name, the positional and the keyword arguments of `'name(1, b=2)'` or `'name'`.

    Args:
      text: the call; its arguments are literals.
      field: what the text is the value of, for the error.

    Raises:
      UserError: the text is neither a name nor a call with literal arguments.
    """
    error = UserError(f'{text.strip()!r} is not a name, or name(value, key=value, ...) with numbers or fractions, tuples, '
                      'or strings in quotes', field=field)
    try:
        node = ast.parse(text.strip(), mode='eval').body
        if isinstance(node, ast.Name):
            return node.id, (), {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and all(k.arg for k in node.keywords):
            return node.func.id, tuple(map(_evaluate, node.args)), {str(k.arg): _evaluate(k.value) for k in node.keywords}
    except _SYNTAX_ERRORS:
        raise error from None
    raise error


def parse_calls(text: str, field: str) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Return what `parse_call` returns for each of several calls that are separated by `|`."""
    try:
        return [parse_call(call, field) for call in text.split('|')]
    except UserError as e:
        e.add_hint("several are separated by '|'")
        raise


def bind(function: Callable, args: Sequence[Any], kwargs: Mapping[str, Any], description: str) -> dict[str, Any]:
    """Return all arguments as keyword arguments of the function.

    Raises:
      UserError: the function does not take an argument; the error describes the function by `description` and names the
        arguments that it takes.
    """
    signature = inspect.signature(function)
    for name in kwargs:
        if name not in signature.parameters:
            raise unknown(f'argument of {description}', name, signature.parameters)
    try:
        return dict(signature.bind(*args, **kwargs).arguments)
    except TypeError as e:
        hint = f'it takes ({", ".join(map(str, signature.parameters))})'
        raise UserError(str(e), field=description, hint=hint) from e
