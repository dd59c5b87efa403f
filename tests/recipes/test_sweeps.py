"""Shipped sweeps: the command lines that an agent makes of them are valid and change the recipe."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
import yaml
from wandb.apis.public import sweeps
from wandb.wandb_agent import Agent

from lightning_compress.cli import CompressionCLI
from lightning_compress.cli.options import check_options_once
from lightning_compress.cli.recipes import available, find
from lightning_compress.cli.runs import RunCLI
from lightning_compress.reporting.run_report import read_report
from tests.cli.test_wandb_runs import config_of, history_of, info_of, records_by_job

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


SHORT = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=4", "--trainer.limit_test_batches=1"]


@pytest.mark.slow
def test_an_agent_runs_two_points_of_the_sweep(workdir, monkeypatch):
    """W&B's own agent makes the command lines and starts the processes; only the server's answers are made here."""
    sweep = yaml.safe_load((SWEEPS[0]).read_text())
    sweep["command"] += SHORT
    points = {"point0id": {"pruning.sparsity": 0.5, "quantization.weights.bits": 4},
              "point1id": {"pruning.sparsity": 0.9, "quantization.weights.bits": 8}}  # fmt: skip
    commands = [
        {"type": "run", "run_id": run_id, "program": None, "args": {name: {"value": v} for name, v in point.items()}}
        for run_id, point in points.items()
    ] + [{"type": "exit"}]
    monkeypatch.setattr(sweeps, "_sweep_with_runs", lambda *_: {"config": yaml.safe_dump(sweep)})
    monkeypatch.setattr(sweeps, "_register_agent", lambda *_, **__: {"id": "agent"})
    monkeypatch.setattr(
        sweeps, "_agent_heartbeat", lambda api, agent, metrics, running: [] if running else [commands.pop(0)]
    )
    monkeypatch.setattr(wandb, "Api", lambda: None)
    monkeypatch.setattr(Agent, "POLL_INTERVAL", 0.2)
    program = workdir / "bin/lightning-compress"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m lightning_compress.cli "$@"\n')
    program.chmod(0o755)
    for name, value in {"PATH": f"{program.parent}:{os.environ['PATH']}", "WANDB_SWEEP_ID": "sweepid", "WANDB_DIR": ".",
                        "WANDB_MODE": "offline", "WANDB_RUN_ID": "", "WANDB_SWEEP_PARAM_PATH": ""}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    Agent(None, multiprocessing.Queue(), sweep_id="sweepid", count=2).run()
    assert not commands[1:], "both points were run"

    found = {}
    for run in Path("runs/digits-quantize").iterdir():
        jobs = records_by_job(run)
        assert set(jobs) == {"compress"}
        info = info_of(jobs["compress"])
        assert info.sweep_id == "sweepid"
        config = config_of(jobs["compress"])
        assert {name: config[name] for name in points[info.run_id]} == points[info.run_id]
        last = {key: value for row in history_of(jobs["compress"]) for key, value in row.items()}
        assert last["report/bytes"] == (run / "model.packed").stat().st_size
        _, report = read_report(run)
        assert report.weights.sparsity == pytest.approx(points[info.run_id]["pruning.sparsity"], abs=0.01)
        found[info.run_id] = last["report/bytes"]
    assert set(found) == set(points)
    assert found["point1id"] != found["point0id"]
