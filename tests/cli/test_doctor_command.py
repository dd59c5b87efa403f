"""The command ``doctor``: what a recipe will do, from a few batches."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest

from lightning_compress.cli import main


@pytest.fixture(autouse=True)
def temporary(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = workdir / "temporary"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


def test_the_recipe_is_examined_and_nothing_is_written(recipe, temporary, capsys):
    flags = ["--trainer.max_epochs=10", "--trainer.limit_train_batches=4", "--quantization.targets.module=model"]
    main(["doctor", "small.yaml", "--pruning.schedule.begin=0.1", *flags])
    printed = " ".join(capsys.readouterr().out.split())
    assert "The fit takes 40 steps, 4 batches per epoch" in printed
    assert "begin 4, end 20" in printed
    assert "fake_quantize 0" in printed
    assert printed.count("100.0% of") == 2
    assert re.search(r"\d\.\d\d times the step without techniques", printed)
    expected, dense = re.search(r"packed size: about (\S+) kB, (\S+) MB dense", printed).groups()
    # Half of the 457,792 weights with 8 bits, and one bit for each position.
    assert float(expected) == pytest.approx(457.792 * (0.5 + 0.125), rel=0.05)
    assert float(dense) == pytest.approx(1.836, abs=0.02)
    assert not Path("runs").exists()
    assert not list(temporary.iterdir())


def test_a_size_budget_is_the_expected_size(recipe, capsys):
    flags = ["--trainer.max_epochs=10", "--trainer.limit_train_batches=4"]
    budget = ["--size_budget.size=60kB", "--size_budget.schedule.begin=0.6", "--size_budget.schedule.end=0.8"]
    main(["doctor", "small.yaml", *budget, *flags])
    printed = " ".join(capsys.readouterr().out.split())
    assert "SizeBudget: 7 tensors, 100.0% of the weights; in steps: begin 24, end 32." in printed
    assert "Expected packed size: at most 60.0 kB" in printed


def test_a_wrong_recipe_is_named_as_by_run(recipe, error_message):
    assert "matches no layer" in error_message("doctor", "small.yaml", "--pruning.targets.include=[x]")
    assert "did you mean 'sparsity'" in error_message("doctor", "small.yaml", "--pruning.sparsiti=0.5")
    assert "doctor requires a recipe" in error_message("doctor")
    assert "Unknown recipe 'nowhere'" in error_message("doctor", "small.yaml", "--after=nowhere")


def test_a_teacher_is_not_trained(recipe, capsys):
    text = recipe.read_text().replace("model: conv4", "student: conv4")
    Path("distilled.yaml").write_text(text.replace("ClassificationModule", "DistillationModule"))
    main(["doctor", "distilled.yaml", "--teacher=small.yaml"])
    assert "The fit takes 2 steps" in capsys.readouterr().out
