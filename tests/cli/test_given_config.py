"""Files and options of a command line as trees of what was given."""

from pathlib import Path

import pytest

from lightning_compress.cli.given_config import flat, given_trees, merge


def test_files_and_options_in_their_order(workdir):
    Path("a.yaml").write_text("model: {class_path: M, init_args: {lr: 1}}\n")
    arguments = ["--config", "a.yaml", "--model.lr=2", "--trainer.callbacks+=X", "--model.init_args.width", "3"]
    assert list(given_trees(arguments)) == [
        {"model": {"class_path": "M", "lr": 1}},
        {"model": {"lr": "2"}},
        {"trainer": {"callbacks": "X"}},
        {"model": {"width": "3"}},
    ]


def test_values_that_follow_replace_and_complete():
    assert merge({"a": {"class_path": "M", "lr": 1}}, {"a": "N"}) == {"a": {"class_path": "N", "lr": 1}}
    assert merge({"a": 1, "b": 2}, {"a": None}) == {"a": None, "b": 2}
    assert merge({"a": 1}, {"a": "{x: 3}"}) == {"a": {"x": 3}}
    assert flat([{"class_path": "M", "init_args": {"lr": 1}}]) == [{"class_path": "M", "lr": 1}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stray"], "Unexpected argument 'stray'"),
        (["--a", "--b=1"], "--a requires a value"),
        (["--config=nowhere.yaml"], "config=nowhere.yaml does not exist"),
    ],
)
def test_mistakes(arguments, message, workdir):
    with pytest.raises(ValueError, match=message):
        list(given_trees(arguments))
