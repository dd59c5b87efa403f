"""Mutation testing: each line of a file is broken in turn, and a test of the file has to fail.

A mutant is run against the tests of its module, and if it survives those, against the tests of its room and the others
in ``FURTHER``. Survivors are printed with their line; those in ``EXPLAINED`` compute the same, or differ only where the
tests of a fork do not see it, and do not count. Limits of memory and time, which are constants in capitals, are not
broken. A mutant takes seconds, as each is tried in a fork of a process that has imported the libraries::

    python -m tests.mutation constraints functional
    python -m tests.mutation constraints/mask.py packing --sample 50 --near
    python -m tests.mutation                         # constraints, functional, the callbacks and packing
"""

from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lightning_compress"
DEFAULT = ("constraints", "functional", "packing", "pruning/callback.py", "clustering/callback.py",
           "quantization/callback.py", "trainer/constraint_callback.py", "trainer/compression_callback.py")  # fmt: skip
FIT = ["tests/lifecycle/test_irregular_fits.py", "tests/contracts/test_resume.py"]
FURTHER = {
    "pruning/callback.py": FIT,
    "clustering/callback.py": [*FIT, "tests/contracts/test_clusters.py"],
    "quantization/callback.py": ["tests/contracts/test_resume.py"],
    "trainer/constraint_callback.py": [*FIT, "tests/lifecycle/test_fits.py", "tests/lifecycle/test_optimization.py"],
    "trainer/compression_callback.py": [*FIT, "tests/lifecycle/test_fits.py", "tests/contracts/test_selection.py"],
}
# "file: broken line" of mutants that do not count, and why.
ALIKE = "all tensors of a batch are alike"
RANKS = "seen by tests/distributed, in processes of their own"
EXPLAINED: dict[str, str] = {
    "constraints/finite.py: dist.all_reduce(bad, dist.ReduceOp.MAX, group=layers[1].group)": RANKS,
    "constraints/finite.py: pass": RANKS,
    "constraints/finite.py: if layers[0].group is None:": RANKS,
    "constraints/finite.py: if layers[1].group is not None:": RANKS,
} | {
    f"constraints/layer_batches.py: buffer = torch.empty(len(tensors), *tensors[{i}].shape, dtype=tensors[{j}].dtype, "
    f"device=tensors[{k}].device)": ALIKE
    for i, j, k in ((1, 0, 0), (0, 1, 0), (0, 0, 1))
}  # fmt: skip

TIMEOUT = 120.0  # seconds of a run of tests; an endless loop is a failure that is noticed
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
                yield Mutant(statement.lineno, setting(node, name, without))
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and name not in SKIPPED_FIELDS and not is_without_behaviour(child):
                yield from mutants(child)


def is_without_behaviour(node: ast.AST) -> bool:
    """True for messages, types, assertions of invariants, and limits of memory and time."""
    is_strict = isinstance(node, ast.keyword) and node.arg == "strict"
    is_limit = isinstance(node, ast.Assign) and all(isinstance(t, ast.Name) and t.id.isupper() for t in node.targets)
    return isinstance(node, NO_BEHAVIOUR) or is_strict or is_limit


class Loader(importlib.machinery.SourceFileLoader, importlib.abc.MetaPathFinder):
    """Imports one module from other code than its file holds."""

    def __init__(self, name: str, path: Path, code: CodeType) -> None:
        super().__init__(name, str(path))
        self.code = code

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_code(self, fullname: str) -> CodeType:
        return self.code


def is_noticed(name: str, path: Path, code: CodeType, tests: list[str]) -> bool:
    """True if tests fail, or do not end, with other code in a module."""
    child = os.fork()
    if not child:
        os.setpgrp()
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        sys.meta_path.insert(0, Loader(name, path, code))
        status = 1
        try:
            import pytest

            status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", *tests])
        finally:
            os._exit(int(status))
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status != 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def tests_of(path: Path) -> list[list[str]]:
    """Tests of a module, and further ones for mutants that those do not notice."""
    relative = path.relative_to(PACKAGE)
    own, room = ROOT / "tests" / relative.parent / f"test_{relative.name}", ROOT / "tests" / relative.parent
    near = [str(own)] if own.exists() else []
    return [tests for tests in (near, [str(room), *FURTHER.get(str(relative), [])]) if tests]


def broken_line(tree: ast.Module, mutant: Mutant) -> str:
    """The smallest statement on the line of an applied mutant, in one line."""
    found = [n for n in ast.walk(tree) if isinstance(n, ast.stmt) and n.lineno <= mutant.line <= (n.end_lineno or 0)]
    statement = min(found, key=lambda n: ((n.end_lineno or 0) - n.lineno, -n.lineno))
    return " ".join(ast.unparse(statement).splitlines()[0].split())


def check_file(path: Path, sample: int | None, seed: int, *, near: bool) -> tuple[int, int]:
    """Print the survivors of a file; return the number of mutants that were noticed, and of all that could be."""
    tree = ast.parse(path.read_text())
    name = ".".join(("lightning_compress", *path.relative_to(PACKAGE).with_suffix("").parts))
    all_mutants = list(mutants(tree))
    chosen = all_mutants if sample is None else random.Random(seed).sample(all_mutants, min(sample, len(all_mutants)))
    suites = tests_of(path)[: 1 if near else None]
    noticed = explained = 0
    for mutant in sorted(chosen, key=lambda mutant: mutant.line):
        mend = mutant.apply()
        line = f"{path.relative_to(PACKAGE)}: {broken_line(tree, mutant)}"
        code = compile(ast.fix_missing_locations(tree), str(path), "exec")
        mend()
        found = any(is_noticed(name, path, code, tests) for tests in suites)
        noticed, explained = noticed + found, explained + (not found and line in EXPLAINED)
        if not found:
            print(f"  line {mutant.line}: {line.partition(': ')[2]}  [{EXPLAINED.get(line, 'SURVIVED')}]", flush=True)
    total = len(chosen) - explained
    print(f"{path.relative_to(PACKAGE)}: {noticed} of {total} noticed, {explained} explained", flush=True)
    return noticed, total


def main() -> None:
    """Print survivors by file, and the score."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__.split("\n")[0])
    parser.add_argument("paths", nargs="*", default=DEFAULT, help="files or rooms of the package")
    parser.add_argument("--sample", type=int, help="number of mutants of each file, drawn at random; all by default")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument(
        "--near", action="store_true", help="run the tests of the module alone: a lower bound, in less time"
    )
    options = parser.parse_args()
    os.chdir(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"
    # Libraries are imported once, before processes are forked; the package and its tests are not.
    for library in ("torch", "lightning.pytorch", "pytest", "hypothesis", "torchmetrics", "timm", "jsonargparse"):
        importlib.import_module(library)
    files = [f for p in options.paths for f in (sorted((PACKAGE / p).rglob("*.py")) if "." not in p else [PACKAGE / p])]
    scores = [check_file(f, options.sample, options.seed, near=options.near) for f in files if f.name != "__init__.py"]
    noticed, total = (sum(column) for column in zip(*scores, strict=True))
    print(f"{noticed} of {total} mutants noticed ({noticed / max(1, total):.1%})")


if __name__ == "__main__":
    main()
