"""Contracts 2 and 3: plain keys; exact zeros at every moment; the target to one weight."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

import lightning_compress as lc
from tests.cases import (
    NUM_STEPS,
    OPTIMIZERS,
    RAMP,
    Case,
    Loader,
    Net,
    assert_zeros,
    every_case,
    every_mask,
    halve,
    load,
    masks_of,
    num_masked,
    num_zeros,
    plain,
    run,
    save_every_step,
    scales_of,
    trainer,
    val_loader,
)


class Witness(Net):
    """Looks at its own weights whenever somebody could."""

    def __init__(self, optimizer: str) -> None:
        super().__init__(optimizer)
        self.history: list[dict[str, Tensor]] = []
        self.num_validations = 0

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        masks = masks_of(self.trainer)
        self.assert_sparse()
        self.momentum_names = [self.keys(name) for name in masks]
        assert_zeros(self.momenta(masks), {f"{name}/{key}": m for name, m in masks.items() for key in self.keys(name)})
        self.history.append(masks)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.assert_sparse()
        self.num_validations += 1

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert_zeros(checkpoint["state_dict"], masks_of(self.trainer))

    def assert_sparse(self) -> None:
        assert_zeros(dict(self.named_parameters()), masks_of(self.trainer))

    def keys(self, name: str) -> list[str]:
        """What the optimizer keeps of a weight, of the weight's shape."""
        weight = self.get_parameter(name)
        state = self.trainer.optimizers[0].state[weight]
        return [key for key, value in state.items() if isinstance(value, Tensor) and value.shape == weight.shape]

    def momenta(self, masks: dict[str, Tensor]) -> dict[str, Tensor]:
        state = self.trainer.optimizers[0].state
        return {f"{name}/{key}": state[self.get_parameter(name)][key] for name in masks for key in self.keys(name)}


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@every_mask
def test_zeros_are_exact_at_every_moment(case: Case, optimizer: str, tmp_path: Path) -> None:
    model = Witness(optimizer)
    run(case, model, save_every_step(tmp_path))
    assert len(model.history) == NUM_STEPS
    assert model.num_validations == 6
    assert all(model.momentum_names)
    assert abs(num_masked(model.history[-1]) - case.zeros) <= case.within
    assert_zeros(dict(model.named_parameters()), model.history[-1])
    for step, masks in enumerate(model.history, start=1):
        assert_zeros(load(tmp_path / f"step={step}.ckpt")["state_dict"], masks)
    if not case.grows:
        assert num_zeros(model) == num_masked(model.history[-1])
        for earlier, later in zip(model.history, model.history[1:], strict=False):
            assert all(not (later[name] & ~earlier[name]).any() for name in later)


@every_case
def test_checkpoints_hold_the_plain_keys(case: Case, tmp_path: Path) -> None:
    before = {name: tensor.shape for name, tensor in Net().state_dict().items()}
    model = run(case, None, save_every_step(tmp_path))
    assert {name: tensor.shape for name, tensor in plain(model.state_dict()).items()} == before
    assert bool(scales_of(model.state_dict())) == case.quantizes
    assert type(model) is Net
    assert type(model.conv1) is torch.nn.Conv2d
    assert type(model.conv1.weight) is torch.nn.Parameter
    fresh = Net()
    fresh.load_state_dict(plain(load(tmp_path / f"step={NUM_STEPS}.ckpt")["state_dict"]), strict=True)
    assert num_zeros(fresh) == num_zeros(model)


@every_case
def test_parameters_stay_the_same_objects(case: Case) -> None:
    model = Net()
    before = ids_of(model)
    run(case, model)
    assert {name: number for name, number in ids_of(model).items() if name in before} == before


def ids_of(model: Net) -> dict[str, int]:
    return {name: id(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())}


class Untargeted(Callback):
    """Notes what no technique may write to: after the backward pass and after the step they must follow plain SGD."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.frozen = [p.clone() for p in pl_module.parameters() if not p.requires_grad]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        frozen = [p for p in pl_module.parameters() if not p.requires_grad]
        assert all(torch.equal(*pair) for pair in zip(frozen, self.frozen, strict=True))


@every_case
def test_frozen_parameters_are_untouched(case: Case) -> None:
    model = Net()
    model.teacher = Net().requires_grad_(False)
    words = case.refused.get("teacher")
    with pytest.raises(ValueError, match=words) if words else nullcontext():
        run(case, model, Untargeted())
    assert (model.teacher.conv1.weight != 0).all()


def test_the_events_of_a_cubic_ramp() -> None:
    model = Witness("sgd")
    trainer([lc.Pruning(0.9, schedule=RAMP)]).fit(model, Loader(), val_loader())
    # 346 (1 - (1 - x)^3) with x = 0, 1/6, 3/6, 5/6 and 1 after steps 1, 2, 4, 6 and 7
    assert [num_masked(masks) for masks in model.history] == [0, 146, 146, 303, 303, 344, 346, 346, 346, 346]


@pytest.mark.parametrize("sparsity", [0.0, 0.001, 1 / 3, 0.5, 0.987])
def test_final_sparsity_is_exact_to_one_weight(sparsity: float) -> None:
    model = Net()
    trainer([lc.Pruning(sparsity)]).fit(model, Loader())
    assert num_zeros(model) == round(384 * sparsity)


def test_fixed_keeps_what_pruning_left() -> None:
    model = Net()
    trainer([lc.Pruning(0.9, schedule=RAMP)]).fit(model, Loader())
    pruned = {name: p == 0 for name, p in model.named_parameters() if p.ndim > 1}
    trainer([lc.Fixed()]).fit(model, Loader())
    assert all((model.get_parameter(name) == 0).equal(zeros) for name, zeros in pruned.items())


def test_pruning_a_sparse_model_counts_its_zeros() -> None:
    model = Net()
    halve(model)
    zeros = {name: p == 0 for name, p in model.named_parameters() if p.ndim > 1}
    trainer([lc.Pruning(0.6, schedule=lc.Schedule(begin=0.0, curve="one_shot"))]).fit(model, Loader())
    assert num_zeros(model) == 230
    assert all((model.get_parameter(name)[mask] == 0).all() for name, mask in zeros.items())
