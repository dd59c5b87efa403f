from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_compress.cli.config_files import check_config_files


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: the key a occurs twice: remove one of them"),
        ("a: {b: {c: 1, c: 2}}", "line 1: the key a.b.c occurs twice"),
        ("a:\n- {b: 1}\n- {c: 2,\n   c: 3}\n", "line 4: the key a.c occurs twice"),
    ],
)
def test_a_key_that_occurs_twice(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    for arguments in (["fit", f"--config={tmp_path / 'a.yaml'}"], ["-c", str(tmp_path / "a.yaml"), "--x=1"]):
        with pytest.raises(ValueError, match=words):
            check_config_files(arguments)


def test_other_files_are_left_to_the_parser(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &x {b: 1}\nc: *x\nd: {b: 1}\n")
    check_config_files([f"--config={tmp_path / 'a.yaml'}", "--config", str(tmp_path / "nothing"), "--config"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty: it must be a YAML file with keys"),
        ("a: [", "line 1: The YAML cannot be parsed"),
        ("model:\n\tlr: 1\n", "line 2: The YAML cannot be parsed: found character .*; indent with spaces"),
        ("\xff", "is not a text file"),
        ("- {a: 1}\n- {a: 2}\n", "is not a recipe"),
        ("&x [*x]", "is not a recipe"),
    ],
)
def test_files_that_are_no_recipes_are_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=words) as error:
        check_config_files([f"--config={tmp_path / 'a.yaml'}"])
    assert str(tmp_path / "a.yaml") in str(error.value)


def test_aliases_of_aliases_take_no_time(tmp_path: Path) -> None:
    lines = ["a0: &a0 {x: 1}", *(f"a{k + 1}: &a{k + 1} [{', '.join([f'*a{k}'] * 10)}]" for k in range(20))]
    (tmp_path / "a.yaml").write_text("\n".join(lines))
    check_config_files([f"--config={tmp_path / 'a.yaml'}"])


def test_the_command_says_so_in_one_line(recipe: Path, error_message: Callable[..., str]) -> None:
    recipe.write_text(recipe.read_text() + "pruning: {sparsity: 0.9}\n")
    assert error_message("fit", f"--config={recipe}") == (
        f"{recipe}, line {len(recipe.read_text().splitlines())}: the key pruning occurs twice: remove one of them."
    )
