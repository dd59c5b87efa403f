"""Shipped sweeps: the command lines that an agent makes of them are valid and change the recipe."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lightning_compress.cli import CompressionCLI
from lightning_compress.cli.options import check_options_once
from lightning_compress.cli.recipes import available, find
from lightning_compress.cli.runs import RunCLI

SWEEPS = sorted((Path(__file__).parents[2] / "recipes/sweeps").glob("*.yaml"))


def command_lines(sweep: dict) -> Iterator[tuple[dict[str, object], list[str]]]:
    """Values and command lines of a grid; ``${args}`` becomes one flag per parameter."""
    names = list(sweep["parameters"])
    for values in itertools.product(*(sweep["parameters"][name]["values"] for name in names)):
        chosen = dict(zip(names, values, strict=True))
        flags = [f"--{name}={value}" for name, value in chosen.items()]
        yield chosen, [word for part in sweep["command"] for word in (flags if part == "${args}" else [part])]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_every_command_line_is_valid(path, workdir, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)

    def stop(self):
        raise InterruptedError

    monkeypatch.setattr(CompressionCLI, "instantiate_classes", stop)
    sweep = yaml.safe_load(path.read_text())
    assert sweep["metric"]["name"] == "report/bytes"
    seen = []
    for chosen, (program, command, recipe, *flags) in command_lines(sweep):
        assert (program, command) == ("lightning-compress", "run")
        check_options_once(flags)
        cli = RunCLI.__new__(RunCLI)
        with pytest.raises(InterruptedError):
            cli.__init__(args=[f"--config={find(recipe)}", *flags], run=False)
        assert {name: cli.config[name] for name in chosen} == chosen
        seen.append(tuple(chosen.values()))
    assert len(set(seen)) == len(seen) == 6
    assert not os.listdir(workdir)


def test_sweeps_are_no_recipes():
    assert not any(name.startswith("sweeps/") for name in available())
