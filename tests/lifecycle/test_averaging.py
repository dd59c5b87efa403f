"""Contract 6: averages of the weights keep the zeros, in every validation, in every checkpoint and in the end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging

import lightning_compress as lc
from tests.cases import (
    CASES,
    RAMP,
    Case,
    Loader,
    Net,
    assert_same,
    assert_zeros,
    case,
    load,
    main_cases,
    masks_of,
    num_masked,
    placed,
    save_every_step,
    trainer,
    val_loader,
)

AVERAGES: dict[str, Callable[[], Callback]] = {
    "ema": lambda: EMAWeightAveraging(decay=0.5),
    "late ema": lambda: EMAWeightAveraging(decay=0.9, update_starting_at_step=5),
    "mean": lambda: WeightAveraging(),
    "swa": lambda: StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1, annealing_epochs=1),
}
either_order = pytest.mark.parametrize("order", [1, -1], ids=["before", "after"])


class PlainNet(Net):
    """Without batch norm, for which SWA adds no epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = self.norm2 = torch.nn.Identity()


class Witness(Callback):
    """Asserts zeros in whatever model is validated; keeps the masks."""

    def __init__(self) -> None:
        self.masks: list[dict[str, torch.Tensor]] = []
        self.num_validations = 0

    def on_train_batch_end(self, run: Trainer, model: LightningModule, *args: Any) -> None:
        assert_zeros(dict(model.named_parameters()), masks_of(run))
        self.masks.append(masks_of(run))

    def on_validation_batch_start(self, run: Trainer, model: LightningModule, *args: Any) -> None:
        assert_zeros(dict(model.named_parameters()), masks_of(run))
        self.num_validations += not run.sanity_checking


@either_order
@pytest.mark.parametrize("average", ["ema", "swa"])
@main_cases(CASES)
def test_averages_keep_the_zeros(case: Case, average: str, order: int, tmp_path: Path) -> None:
    assert_keeps_zeros(case, average, order, tmp_path)


@either_order
@pytest.mark.parametrize("average", ["late ema", "mean"])
@pytest.mark.parametrize("name", ["cubic", "set"])
def test_other_averages_keep_the_zeros(name: str, average: str, order: int, tmp_path: Path) -> None:
    assert_keeps_zeros(case(name), average, order, tmp_path)


def assert_keeps_zeros(case: Case, average: str, order: int, tmp_path: Path) -> None:
    model, witness = Net(), Witness()
    case.prepare(model)
    callbacks = placed(AVERAGES[average](), case.callbacks(), order)
    run = trainer([witness, *callbacks, save_every_step(tmp_path)], val_check_interval=1)
    if order == 1 and "average first" in case.refused:
        with pytest.raises(ValueError, match=case.refused["average first"]):
            run.fit(model, Loader(), val_loader())
        return
    run.fit(model, Loader(), val_loader())
    assert witness.num_validations >= 20
    assert abs(num_masked(witness.masks[-1]) - case.zeros) <= case.within
    assert_zeros(dict(model.named_parameters()), witness.masks[-1])
    for step, masks in enumerate(witness.masks[:10], start=1):
        checkpoint = load(tmp_path / f"step={step}.ckpt")
        assert_zeros(checkpoint["state_dict"], masks)
        assert_zeros(checkpoint.get("current_model_state", checkpoint["state_dict"]), masks)
        assert all(torch.isfinite(tensor).all() for tensor in checkpoint["state_dict"].values())


@either_order
def test_swa_without_norms(order: int) -> None:
    model, witness = PlainNet(), Witness()
    callbacks = placed(AVERAGES["swa"](), [lc.Pruning(0.9, schedule=RAMP)], order)
    trainer([witness, *callbacks], max_epochs=3).fit(model, Loader(), val_loader())
    assert num_masked(witness.masks[-1]) == 346
    assert_zeros(dict(model.named_parameters()), witness.masks[-1])


@pytest.mark.parametrize("model", [Net, PlainNet])
def test_swa_with_a_target_at_the_very_end(model: type[Net]) -> None:
    net, pruning = model(), lc.Pruning(0.9, schedule=lc.Schedule(end=1.0, every=2))
    trainer([pruning, AVERAGES["swa"]()], max_epochs=3).fit(net, Loader())
    assert pruning.reached
    assert sum(int((p == 0).sum()) for p in (net.conv1.weight, net.conv2.weight, net.fc.weight)) == 346


def test_the_average_is_one_of_masked_weights() -> None:
    """Where nothing is masked, an average is what it is without pruning a layer at all."""
    plain, pruned = Net(), Net()
    trainer([EMAWeightAveraging(decay=0.5)]).fit(plain, Loader())
    everything_stays = lc.Pruning(0.0, schedule=RAMP)
    trainer([everything_stays, EMAWeightAveraging(decay=0.5)]).fit(pruned, Loader())
    assert_same(dict(pruned.state_dict()), dict(plain.state_dict()))


class SavesEarly(Callback):
    """Saves before any other callback has seen the batch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, run: Trainer, *args: Any) -> None:
        path = self.folder / "early.ckpt"
        run.save_checkpoint(path)
        checkpoint = load(path)
        assert_zeros(checkpoint["state_dict"], masks_of(run))
        assert_zeros(checkpoint["current_model_state"], masks_of(run))


@pytest.mark.parametrize("name", ["cubic", "rigl", "two_callbacks"])
def test_checkpoints_of_other_callbacks_are_sparse_too(name: str, tmp_path: Path) -> None:
    trainer([SavesEarly(tmp_path), EMAWeightAveraging(decay=0.5), *case(name).callbacks()]).fit(Net(), Loader())


class SavesInStep(Net):
    """Saves right after each optimizer step."""

    folder: Path

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        SavesEarly(self.folder).on_train_batch_end(self.trainer)


@pytest.mark.parametrize("name", ["cubic", "rigl", "two_callbacks"])
def test_checkpoints_within_a_step_are_sparse_too(name: str, tmp_path: Path) -> None:
    model = SavesInStep()
    model.folder = tmp_path
    trainer([EMAWeightAveraging(decay=0.5), *case(name).callbacks()]).fit(model, Loader())
