"""Names and docstrings in the words of the field, and comments where the numerics are dense."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import lightning_compress

PACKAGE = Path(lightning_compress.__file__).parent
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if "recipes" not in path.relative_to(PACKAGE).parts]
NUMERICS = ("functional/", "packing/", "quantization/placement.py", "quantization/lowering.py")
VAGUE = re.compile(r"\b(what|whose|so many|such that)\b", re.IGNORECASE)
PRIVATE_WORDS = frozenset(
    [
        "Grid", "scale_of_range", "whole_zero_point", "Seen", "look", "span", "spans", "extremes", "known",
        "Simulated", "Sites", "Attached", "Numbers", "Dialect", "Made", "Written", "Folded", "Bypassed",
        "writing", "eager", "Look", "try_step", "Trial", "evidence", "Pool", "exchange", "Coupled", "Coupling",
        "couple", "coupled", "makers", "readers", "riders", "Sight", "Taps", "Faculty", "examination", "asked",
        "study", "advance", "elsewhere", "pieces", "ort", "sentences", "Complaint", "artifact", "jobs",
        "distinct", "_drawn", "Mixing", "quantizable", "low", "high", "rise", "thawed", "apart", "mine",
        "landed", "_landed", "left_alone",
    ]
)  # fmt: skip
ROOM_FILES = {"__init__", "__main__", "callback"}  # one in each room, by convention


def documented(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield node, text


def identifiers(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every name that a file defines, reads, or passes by keyword, and its line."""
    for node in ast.walk(tree):
        name = {
            ast.Name: "id", ast.Attribute: "attr", ast.arg: "arg", ast.keyword: "arg", ast.ClassDef: "name",
            ast.FunctionDef: "name",
        }.get(type(node))  # fmt: skip
        if name is not None and getattr(node, name) is not None:
            yield getattr(node, name), getattr(node, "lineno", 0)


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in FILES:
        yield path.relative_to(PACKAGE), ast.parse(path.read_text())


def test_docstrings_name_things() -> None:
    vague, words = Counter[str](), 0
    for path, tree in trees():
        for _, text in documented(tree):
            words += len(text.split())
            vague[str(path)] += len(VAGUE.findall(text))
    rate = 1000 * vague.total() / words
    assert rate <= 2, f"{rate:.1f} per 1,000 words; most in {vague.most_common(10)}"


def test_first_lines_say_what_a_thing_is_or_does() -> None:
    vague = [
        f"{path}:{getattr(node, 'lineno', 1)}: {text.splitlines()[0]}"
        for path, tree in trees()
        for node, text in documented(tree)
        if re.match(r"(What|Whether|Such|Those)\b", text)
    ]
    assert not vague, "\n".join(vague)


def test_dense_numerics_have_comments() -> None:
    for prefix in NUMERICS:
        lines = [
            line.strip()
            for path in FILES
            if str(path.relative_to(PACKAGE)).startswith(prefix)
            for line in path.read_text().splitlines()
        ]
        comments = sum(line.startswith("#") for line in lines)
        assert 1000 * comments / len(lines) >= 20, f"{prefix}: {comments} comment lines in {len(lines)} lines"


def test_no_private_words_are_left_in_names() -> None:
    found = [
        f"{path}:{line}: {name}" for path, tree in trees() for name, line in identifiers(tree) if name in PRIVATE_WORDS
    ]
    found += [str(path) for path, _ in trees() if path.stem in PRIVATE_WORDS]
    assert not found, "take the field's word, such as quant_min, lower or observe:\n" + "\n".join(found)


def test_no_name_of_a_file_or_class_stands_twice() -> None:
    files = Counter(path.stem for path, _ in trees() if path.stem not in ROOM_FILES)
    classes = Counter(node.name for _, tree in trees() for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    twice = [name for names in (files, classes) for name, times in names.items() if times > 1]
    assert not twice, f"two files or classes of one name: {twice}"


def test_the_walks_see_what_they_look_for() -> None:
    text = 'class Grid:\n    """What it is, such that so many."""\n    def f(self, low):\n        x.span(high=1)'
    tree = ast.parse(text)
    assert {"Grid", "low", "span", "high"} <= {name for name, _ in identifiers(tree)}
    assert [len(VAGUE.findall(text)) for _, text in documented(tree)] == [3]
