"""Contract 1: a run resumed at any step ends as the uninterrupted one, to the last bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging

import lightning_compress as lc
from tests.cases import (
    CASES,
    NUM_STEPS,
    RAMP,
    Case,
    Loader,
    Net,
    TwoPlayers,
    assert_same,
    every_case,
    load,
    main_cases,
    mine_only,
    placed,
    save_every_step,
    trainer,
    val_loader,
)

LAST = f"step={NUM_STEPS}.ckpt"
STATE = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step")


def fit(folder: Path, callbacks: list[Callback], model: LightningModule, ckpt_path: Path | None = None) -> Trainer:
    run = trainer([save_every_step(folder), *callbacks])
    run.fit(model, Loader(), val_loader(), ckpt_path=ckpt_path)
    return run


def state_of(path: Path) -> dict[str, Any]:
    """What a checkpoint holds of model, optimizer and our callbacks."""
    checkpoint = load(path)
    callbacks = {key: state for key, state in checkpoint["callbacks"].items() if not key.startswith("ModelCheckpoint")}
    extra = {key: checkpoint[key] for key in ("current_model_state", "averaging_state") if key in checkpoint}
    return {**{key: checkpoint[key] for key in STATE}, **extra, "callbacks": callbacks}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@every_case
def test_resumed_run_equals_uninterrupted(case: Case, optimizer: str, tmp_path: Path) -> None:
    model = Net(optimizer)
    case.prepare(model)
    fit(tmp_path / "whole", case.callbacks(), model)
    # Each resumed run has a seed of its own, since nothing may hang on the global generator.
    for step in range(1, NUM_STEPS) if optimizer == "sgd" else (3,):
        torch.manual_seed(step)
        fit(tmp_path / f"{step}", case.callbacks(), Net(optimizer), tmp_path / "whole" / f"step={step}.ckpt")
        for later in {step + 1, NUM_STEPS}:
            ours, theirs = (state_of(tmp_path / name / f"step={later}.ckpt") for name in (f"{step}", "whole"))
            assert_same(ours, theirs, f"resumed after step {step}, now at {later}: ")


@pytest.mark.parametrize("order", [1, -1], ids=["before", "after"])
@main_cases(CASES)
def test_with_an_average_of_the_weights(case: Case, order: int, tmp_path: Path) -> None:
    def callbacks() -> list[Callback]:
        return placed(EMAWeightAveraging(decay=0.5), case.callbacks(), order)

    model = Net()
    case.prepare(model)
    if order == 1 and "average first" in case.refused:
        pytest.skip(case.refused["average first"])
    fit(tmp_path / "whole", callbacks(), model)
    for step in (2, 5, 8):
        fit(tmp_path / f"{step}", callbacks(), Net(), tmp_path / "whole" / f"step={step}.ckpt")
        assert_same(state_of(tmp_path / f"{step}" / LAST), state_of(tmp_path / "whole" / LAST), f"after step {step}: ")


@main_cases(CASES)
def test_with_manual_optimization(case: Case, tmp_path: Path) -> None:
    if "manual" in case.refused:
        pytest.skip(case.refused["manual"])
    model = TwoPlayers()
    case.prepare(model)
    fit(tmp_path / "whole", mine_only(case), model)
    for step in (6, 15, 21):  # the Trainer counts three steps a batch
        fit(tmp_path / f"{step}", mine_only(case), TwoPlayers(), tmp_path / "whole" / f"step={step}.ckpt")
        ours, theirs = (state_of(tmp_path / name / "step=30.ckpt") for name in (f"{step}", "whole"))
        assert_same(ours, theirs, f"after step {step}: ")


@pytest.mark.parametrize("step", [3, 5, 7])
def test_pruning_begins_in_a_run_that_was_dense(step: int, tmp_path: Path) -> None:
    fit(tmp_path, [], Net())
    model = Net()
    fit(tmp_path / "pruned", [lc.Pruning(0.9, schedule=RAMP)], model, tmp_path / f"step={step}.ckpt")
    zeros = [num_zeros_in(tmp_path / "pruned" / f"step={later}.ckpt") for later in range(step + 1, NUM_STEPS + 1)]
    # 346 (1 - (1 - x)^3): at once what is due then (x = 1/3, 2/3, 1), and again after every two steps
    assert zeros == {3: [243, 333, 333, 346, 346, 346, 346], 5: [333, 346, 346, 346, 346], 7: [346, 346, 346]}[step]


def num_zeros_in(path: Path) -> int:
    return sum(int((tensor == 0).sum()) for tensor in load(path)["state_dict"].values() if tensor.ndim > 1)
