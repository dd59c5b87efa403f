"""Mutants of a file: each is its syntax tree with one thing broken."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.RShift: ast.LShift,
    ast.LShift: ast.RShift,
}  # fmt: skip
NO_BEHAVIOUR = (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom)
SKIPPED_FIELDS = ("annotation", "returns", "decorator_list", "type_params")


@dataclass
class Mutant:
    """A broken line: ``apply`` breaks the tree and returns a function that mends it."""

    line: int
    apply: Callable[[], Callable[[], None]]
    removed: ast.stmt | None = None


def setting(node: Any, name: str, value: Any) -> Callable[[], Callable[[], None]]:
    """Change an attribute of a node, or an item of a list in it."""

    def apply() -> Callable[[], None]:
        before = getattr(node, name)
        setattr(node, name, value)
        return lambda: setattr(node, name, before)

    return apply


def other_constant(value: object) -> object:
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else 2 * value + 1 if isinstance(value, float) else value


def mutants(node: ast.AST) -> Iterator[Mutant]:
    """All mutants of a tree."""
    line = getattr(node, "lineno", 0)
    if isinstance(node, ast.Compare):
        for i, operator in enumerate(node.ops):
            swapped = [*node.ops[:i], SWAPS[type(operator)](), *node.ops[i + 1 :]]
            yield Mutant(line, setting(node, "ops", swapped))
    elif isinstance(node, (ast.BoolOp, ast.BinOp, ast.AugAssign)) and type(node.op) in SWAPS:
        yield Mutant(line, setting(node, "op", SWAPS[type(node.op)]()))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.Invert)):
        yield Mutant(line, setting(node, "operand", ast.copy_location(ast.UnaryOp(node.op, node.operand), node)))
    elif isinstance(node, ast.Constant) and other_constant(node.value) != node.value:
        yield Mutant(line, setting(node, "value", other_constant(node.value)))
    elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
        negated = ast.copy_location(ast.UnaryOp(ast.Not(), node.test), node.test)
        yield Mutant(line, setting(node, "test", negated))
    for name in ("body", "orelse", "finalbody"):
        statements = getattr(node, name, None)
        for i, statement in enumerate(statements if isinstance(statements, list) else []):
            is_call = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
            if is_call or isinstance(statement, (ast.AugAssign, ast.Continue, ast.Break)):
                without = [*statements[:i], ast.copy_location(ast.Pass(), statement), *statements[i + 1 :]]
                yield Mutant(statement.lineno, setting(node, name, without), removed=statement)
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and name not in SKIPPED_FIELDS and not is_without_behaviour(child):
                yield from mutants(child)


def is_without_behaviour(node: ast.AST) -> bool:
    """True for messages, types, assertions of invariants, and limits of memory and time."""
    is_strict = isinstance(node, ast.keyword) and node.arg == "strict"
    is_limit = isinstance(node, ast.Assign) and all(isinstance(t, ast.Name) and t.id.isupper() for t in node.targets)
    return isinstance(node, NO_BEHAVIOUR) or is_strict or is_limit


def statement_of(tree: ast.Module, line: int) -> ast.stmt:
    """The smallest statement on a line."""
    found = [n for n in ast.walk(tree) if isinstance(n, ast.stmt) and n.lineno <= line <= (n.end_lineno or 0)]
    return min(found, key=lambda n: ((n.end_lineno or 0) - n.lineno, -n.lineno))


def lines_of(statement: ast.stmt) -> range:
    """Lines of a statement without those of the statements in it."""
    inner = [n.lineno for n in ast.walk(statement) if isinstance(n, ast.stmt) and n.lineno > statement.lineno]
    return range(statement.lineno, min([*inner, (statement.end_lineno or statement.lineno) + 1]))


@dataclass
class BrokenCode:
    """Code of a file with one mutant.

    Attributes:
        line: Line that is broken.
        lines: Lines of its statement: a test that runs none of them cannot notice.
        text: First line of the broken statement, without indentation, or the statement that is left out.
        code: The compiled file.
    """

    line: int
    lines: range
    text: str
    code: CodeType


def broken_codes(source: str, path: str) -> list[BrokenCode]:
    """All mutants of a file, compiled, by line."""
    tree = ast.parse(source)
    found = []
    for mutant in sorted(mutants(tree), key=lambda mutant: mutant.line):
        lines = lines_of(statement_of(tree, mutant.line))
        mend = mutant.apply()
        text = " ".join(ast.unparse(mutant.removed or statement_of(tree, mutant.line)).splitlines()[0].split())
        text = f"without {text}" if mutant.removed else text
        code = compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)
        mend()
        found.append(BrokenCode(mutant.line, lines, text, code))
    return found
