"""Arithmetic of numbers and variables, without the evaluation of code."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs, "ceil": math.ceil, "float": float, "floor": math.floor, "int": int, "max": max, "min": min,
    "round": round,
}  # fmt: skip
_MAX_LENGTH = 1000


class UndefinedVariableError(ValueError):
    """Raised for a variable without a value."""


def evaluate(expression: str, variables: Mapping[str, Any]) -> Any:
    """Return the value of an expression of numbers, variables, ``+ - * / // %``, and functions such as ``max``.

    Args:
        expression: Expression.
        variables: Variables by name; one that stands alone may have a value of any type.

    Raises:
        UndefinedVariableError: If a variable has no value.
        ValueError: If the expression is not arithmetic, or cannot be computed.

    >>> evaluate("warmup + 2 * pruning", {"warmup": 1, "pruning": 4.5})
    10.0
    """
    if len(expression) > _MAX_LENGTH:
        raise ValueError(f"an expression of {len(expression):,} characters is not supported")
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body, variables)
    except (SyntaxError, ArithmeticError, RecursionError, TypeError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ValueError(f"{expression.strip()!r} cannot be computed ({reason})") from error


def _value(node: ast.expr, variables: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() as value):
            return value
        case ast.Name(id=name):
            if name not in variables:
                raise UndefinedVariableError(f"the variable {name!r} is not defined")
            return variables[name]
        case ast.UnaryOp() if type(node.op) in _UNARY:
            return _UNARY[type(node.op)](_number(node.operand, variables))
        case ast.BinOp() if type(node.op) in _BINARY:
            return _BINARY[type(node.op)](_number(node.left, variables), _number(node.right, variables))
        case ast.Call(func=ast.Name(id=name), keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_number(argument, variables) for argument in node.args))
    raise ValueError(f"{ast.unparse(node)!r} is not arithmetic of numbers and variables")


def _number(node: ast.expr, variables: Mapping[str, Any]) -> int | float:
    value = _value(node, variables)
    # A text or a list times a number would be a repetition, of any length.
    if not isinstance(value, (int, float)):
        raise ValueError(f"{ast.unparse(node)}={value!r} is not a number")
    return value
