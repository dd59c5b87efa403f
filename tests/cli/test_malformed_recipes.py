"""Two hundred malformed recipes: each is one sentence with exit code 2, and leaves no files behind."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_compress.cli import main
from tests.cli.conftest import RECIPE

COMPLETE = {
    **yaml.safe_load(RECIPE),
    "pruning": {
        "sparsity": 0.5,
        "scope": "global",
        "schedule": {"begin": 0.0, "end": 0.5, "every": 0.01, "curve": "cubic"},
        "targets": {"include": ["*"], "module": "model"},
    },
    "clustering": {"num_clusters": 16, "method": "hard", "schedule": {"begin": 0.6, "curve": "one_shot"}},
    "quantization": {
        "weights": {"bits": 8, "symmetric": True},
        "activations": {"bits": 8},
        "schedule": {"observe": 0.0, "fake_quantize": 0.7, "freeze_observers": 0.8},
    },
    "monitor": {"per_layer": True, "histograms": 4},
    "baseline": "skip",
}
NOT_YAML = [
    "", "# nothing\n", "just words", "- a\n- list\n", "3", "a,b,c\n1,2,3\n", "model:\n\tlr: 1\n",
    "pruning: {sparsity: 0.5",
    "pruning: [0.5", "pruning: 'open", "a: b: c", "@", "%", "&a", "*nowhere", "!!python/object:os.system {}", "? x",
    "{", "]", "pruning: {sparsity: 0.5}\npruning: {sparsity: 0.6}\n", "trainer: {max_epochs: 1, max_epochs: 2}",
    "model: null\n", "data: null\n", "trainer: null\n", "model: []\n", "data: {}\n", "\x00", "key: \x07",
    "pruning:\n  sparsity: 0.5\n schedule: {}\n", "<<: {a: 1}\n",
]  # fmt: skip
WRONG = {"number": ["x", [], {"a": 1}], "text": [3.5, [], {"a": 1}], "flag": ["maybe", 3, []], "other": ["x", 3, []]}
# Values that are valid although they are not of the kind of the one that they replace.
VALID = {
    ("pruning", "sparsity"): ({"a": 1},),
    ("clustering", "num_clusters"): ({"a": 1},),
    ("seed_everything",): (),
    ("trainer", "accelerator"): (),
    ("pruning", "targets", "module"): (3.5,),
    ("trainer", "logger"): ([],),
    ("quantization", "activations"): (),
}


def paths(tree: dict[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in tree.items():
        yield (*prefix, key)
        if isinstance(value, dict) and key != "model_kwargs":
            yield from paths(value, (*prefix, key))


def changed(path: tuple[str, ...], key: str | None = None, value: Any = None) -> str:
    """The complete recipe with one key renamed, or with another value."""
    tree = copy.deepcopy(COMPLETE)
    owner = tree
    for name in path[:-1]:
        owner = owner[name]
    if key is not None:
        owner[key] = owner.pop(path[-1])
    else:
        owner[path[-1]] = value
    return yaml.safe_dump(tree)


def kind(value: Any) -> str:
    return "flag" if isinstance(value, bool) else "number" if isinstance(value, (int, float)) else "text"


def value_at(path: tuple[str, ...]) -> Any:
    value: Any = COMPLETE
    for name in path:
        value = value[name]
    return value


def malformed() -> Iterator[tuple[str, str]]:
    for number, text in enumerate(NOT_YAML):
        yield f"text-{number}", text
    for path in paths(COMPLETE):
        name = ".".join(path)
        if path[-1] not in ("seed_everything", "class_path", "init_args"):
            yield f"{name}: a letter missing", changed(path, key=path[-1][:-1] + "_")
            yield f"{name}: doubled", changed(path, key=path[-1] * 2)
        if isinstance(value_at(path), dict):
            wrong: list[Any] = ["x", 3, ["x"]]
        else:
            wrong = WRONG[kind(value_at(path))]
        for value in wrong:
            if value not in VALID.get(path, ()) and path not in (("seed_everything",), ("trainer", "accelerator")):
                yield f"{name}={value}", changed(path, value=value)


CASES = dict(itertools.islice(malformed(), 260))


def test_there_are_two_hundred() -> None:
    assert len(CASES) >= 200


# All of them take a minute or two: every fifth runs by default, the others with -m slow.
NAMES = [pytest.param(n, marks=[] if index % 5 == 0 else pytest.mark.slow) for index, n in enumerate(CASES)]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_one_sentence(name: str, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.yaml").write_text(CASES[name])
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config=bad.yaml"])
    printed = capsys.readouterr().err
    assert exit_.value.code == 2, printed
    messages = [line for line in printed.splitlines() if line.startswith("lightning-compress: ")]
    assert len(messages) == 1, printed
    assert "Traceback" not in printed
    assert not any(word in messages[0] for word in ("functools", "object at 0x", "Namespace", "jsonargparse")), messages
    assert len(messages[0]) < 600
    assert not [path for path in Path("runs").rglob("*") if path.is_file()]
