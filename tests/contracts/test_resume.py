"""Contract 1: a run resumed at any step ends as the uninterrupted one, to the last bit."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging

import lightning_compress as lc
from tests.cases import NUM_STEPS, RAMP, Case, Loader, Net, assert_same, every_case, load, save_every_step, trainer
from tests.cases import val_loader

STATE = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step")


def fit(folder: Path, callbacks: list[Callback], model: LightningModule, ckpt_path: Path | None = None) -> Trainer:
    run = trainer([save_every_step(folder), *callbacks])
    run.fit(model, Loader(), val_loader(), ckpt_path=ckpt_path)
    return run


def end_of(folder: Path) -> dict:
    """What the last checkpoint of a run holds of model, optimizer and our callbacks."""
    checkpoint = load(folder / f"step={NUM_STEPS}.ckpt")
    callbacks = {key: state for key, state in checkpoint["callbacks"].items() if not key.startswith("ModelCheckpoint")}
    extra = {key: checkpoint[key] for key in ("current_model_state", "averaging_state") if key in checkpoint}
    return {**{key: checkpoint[key] for key in STATE}, **extra, "callbacks": callbacks}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@every_case
def test_resumed_run_equals_uninterrupted(case: Case, optimizer: str, tmp_path: Path) -> None:
    model = Net(optimizer)
    case.prepare(model)
    fit(tmp_path / "whole", case.callbacks(), model)
    whole = end_of(tmp_path / "whole")
    # Each resumed run has seeds of its own, since nothing may hang on the global generator.
    for step in range(1, NUM_STEPS) if optimizer == "sgd" else (3,):
        torch.manual_seed(step)
        fit(tmp_path / f"{step}", case.callbacks(), Net(optimizer), tmp_path / "whole" / f"step={step}.ckpt")
        assert_same(end_of(tmp_path / f"{step}"), whole, f"resumed after step {step}: ")
