"""Runs the examples in the docstrings, wherever the tests are started."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import lightning_compress

MODULES = [
    info.name
    for info in pkgutil.walk_packages(lightning_compress.__path__, "lightning_compress.")
    if not info.name.endswith("__main__")
]
ROOMS = sorted({name.split(".")[1] for name in MODULES})


@pytest.mark.parametrize("room", ROOMS)
def test_examples(room: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    modules = [name for name in MODULES if name.split(".")[1] == room]
    failed = [name for name in modules if doctest.testmod(importlib.import_module(name)).failed]
    assert not failed
    assert not list(tmp_path.iterdir()), "an example leaves files behind"


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    examples = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(examples) >= len(lightning_compress.__all__)
