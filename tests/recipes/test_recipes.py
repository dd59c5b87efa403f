"""Shipped recipes: they parse, survive a round trip, have comments, and are documented."""

import re
from pathlib import Path

import pytest

from lightning_compress.cli import main
from lightning_compress.cli.compression import TECHNIQUES
from lightning_compress.cli.runs import ChildRun, RunCLI
from lightning_compress.reporting.run_report import read_report

ROOT = Path(__file__).parents[2]
RECIPES = sorted(p for p in (ROOT / "recipes").glob("**/*.yaml") if p.parent.name != "sweeps")


def names(paths: list[Path]) -> list[str]:
    return [path.relative_to(ROOT / "recipes").as_posix() for path in paths]


@pytest.fixture
def short_runs(monkeypatch):
    """Runs that a recipe depends on are limited to one batch: building a recipe executes them."""
    short = ["--trainer.max_epochs=1", "--trainer.logger=false", "--trainer.enable_progress_bar=false"]
    short += [f"--trainer.limit_{kind}_batches=1" for kind in ("train", "val", "test")]
    init = ChildRun.__init__

    def init_short(self, parent, name, args):
        init(self, parent, name, [*args, *short])

    monkeypatch.setattr(ChildRun, "__init__", init_short)


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("path", RECIPES, ids=names(RECIPES))
def test_round_trip(path, workdir):
    def build(file: Path) -> RunCLI:
        return RunCLI(args=[f"--config={file}", "--trainer.accelerator=cpu"], run=False)

    cli = build(path)
    (workdir / "saved.yaml").write_text(cli.parser.dump(cli.config, skip_none=False))
    again = build(workdir / "saved.yaml")
    assert again.parser.dump(again.config) == cli.parser.dump(cli.config)
    assert [type(c) for c in again.trainer.callbacks] == [type(c) for c in cli.trainer.callbacks]
    for key in TECHNIQUES:
        assert repr(again.config_init[key]).partition(" at ")[0] == repr(cli.config_init[key]).partition(" at ")[0]


@pytest.mark.parametrize("path", RECIPES, ids=names(RECIPES))
def test_header_and_comments(path):
    text = path.read_text()
    name = path.relative_to(ROOT).as_posix()
    first_line, _, rest = text.partition("\n")
    assert re.match(r"# [A-Z].*\.$", first_line)
    assert f"#   lightning-compress run {name}" in rest.partition("\n\n")[0]
    assert "offline: true" in text


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("path", RECIPES, ids=names(RECIPES))
def test_every_recipe_can_be_swept(path, workdir):
    """``${args}`` of a W&B sweep are flags with dotted keys."""
    # The optimizer is configured in the student if that is a module of its own.
    owner = "model.student" if "student:\n      class_path" in path.read_text() else "model"
    flags = [
        "--pruning.sparsity=0.75",
        "--pruning.schedule.end=0.25",
        f"--{owner}.optimizer.lr=0.5",
        "--seed_everything=3",
    ]
    cli = RunCLI(args=[f"--config={path}", "--trainer.accelerator=cpu", *flags], run=False)
    assert cli.config_init.pruning.sparsity == 0.75
    assert cli.config_init.pruning.schedule.end == 0.25
    model = cli.config.model.init_args
    trained = model.student.init_args if owner == "model.student" else model
    assert trained.optimizer.init_args.lr == 0.5
    assert cli.config.seed_everything == 3


def test_digits_runs_as_it_is(workdir, capsys):
    """The complete command, with a few batches."""
    main(["run", "recipes/digits/prune.yaml", "--trainer.max_epochs=2", "--trainer.limit_train_batches=4"])
    (run,) = (workdir / "runs/digits-prune").iterdir()
    assert "90.00%" in (run / "report.txt").read_text()
    assert len(list(run.glob("wandb/offline-run-*"))) == 2
    assert (run / "checkpoints/last.ckpt").is_file()


@pytest.mark.slow
def test_digits_is_good(workdir, capsys):
    main(["run", "recipes/digits/prune.yaml"])
    (run,) = (workdir / "runs/digits-prune").iterdir()
    _, report = read_report(run)
    dense = report.baseline.metrics["test/acc"]
    assert dense > 0.97
    assert report.result.metrics["test/acc"] > dense - 0.015


@pytest.mark.slow
def test_deep_compression_is_small_and_good(workdir):
    """About a minute on two cores."""
    main(["run", "recipes/digits/deep_compression.yaml"])
    (run,) = (workdir / "runs/digits-deep_compression").iterdir()
    _, report = read_report(run)
    assert report.sizes[0].num_bytes / report.file("model.packed").num_bytes > 13
    assert report.result.title == "INT8 ONNX"
    assert report.result.metrics["test/acc"] > report.baseline.metrics["test/acc"] - 0.015
    assert not report.failures
