from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader

import lightning_compress as lc
from lightning_compress.pruning.snapshot import Snapshot


def make() -> Any:
    """What a snapshot asks of a Trainer."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    module[2].requires_grad_(False)
    optimizer = torch.optim.Adam([*module[0].parameters(), *module[1].parameters()], lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    return SimpleNamespace(
        lightning_module=module,
        optimizers=[optimizer],
        lr_scheduler_configs=[SimpleNamespace(scheduler=scheduler)],
    )


def train(trainer: Any, num_steps: int) -> None:
    (optimizer,) = trainer.optimizers
    for _ in range(num_steps):
        optimizer.zero_grad()
        trainer.lightning_module(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        trainer.lr_scheduler_configs[0].scheduler.step()


def copy_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


def test_weights_buffers_and_learning_rate_return_and_momenta_are_forgotten() -> None:
    trainer = make()
    train(trainer, 3)
    before, rate = copy_of(trainer.lightning_module), trainer.optimizers[0].param_groups[0]["lr"]
    parameters = list(map(id, trainer.lightning_module.parameters()))
    snapshot = Snapshot.take(trainer, weights=True)
    train(trainer, 4)
    assert not same(before, trainer.lightning_module.state_dict())
    snapshot.restore_(trainer)
    assert same(before, trainer.lightning_module.state_dict())
    assert list(map(id, trainer.lightning_module.parameters())) == parameters
    assert trainer.optimizers[0].param_groups[0]["lr"] == rate == 0.05
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 3
    assert not trainer.optimizers[0].state


def test_only_the_learning_rate_returns() -> None:
    trainer = make()
    train(trainer, 1)
    snapshot = Snapshot.take(trainer, weights=False)
    assert snapshot.weights == {}
    train(trainer, 4)
    after = copy_of(trainer.lightning_module)
    state = trainer.optimizers[0].state[trainer.lightning_module[0].weight]["exp_avg"].clone()
    snapshot.restore_(trainer)
    assert same(after, trainer.lightning_module.state_dict())
    assert torch.equal(trainer.optimizers[0].state[trainer.lightning_module[0].weight]["exp_avg"], state)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.1
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 1


def test_frozen_parameters_are_neither_kept_nor_touched() -> None:
    trainer = make()
    snapshot = Snapshot.take(trainer, weights=True)
    assert not any(name.startswith("2.") for name in snapshot.weights)
    trainer.lightning_module[2].weight.data.fill_(7.0)
    snapshot.restore_(trainer)
    assert (trainer.lightning_module[2].weight == 7.0).all()


def test_it_can_be_restored_many_times() -> None:
    trainer = make()
    before = copy_of(trainer.lightning_module)
    snapshot = Snapshot.take(trainer, weights=True)
    for _ in range(3):
        train(trainer, 2)
        snapshot.restore_(trainer)
        assert same(before, trainer.lightning_module.state_dict())
        assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 0


def test_it_survives_a_safe_file(tmp_path: Any) -> None:
    trainer = make()
    train(trainer, 3)
    before = copy_of(trainer.lightning_module)
    model = trainer.lightning_module
    torch.save(Snapshot.take(trainer, weights=True).state_dict(), tmp_path / "snapshot")
    train(trainer, 3)
    Snapshot.from_state(torch.load(tmp_path / "snapshot", weights_only=True), model).restore_(trainer)
    assert same(before, trainer.lightning_module.state_dict())
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.05


class Record(Callback):
    """The weights after every step."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.weights.append(pl_module.net[0].weight.detach().clone())


@pytest.mark.parametrize("to", [0, 2])
def test_live_weights_go_back_to_a_step(small: type, loader: DataLoader, trainer: Callable, to: int) -> None:
    record = Record()
    pruning = lc.Pruning(0.5, schedule=lc.Schedule(begin=4, end=8, every=4), rewind=lc.RewindWeights(to))
    trainer(pruning, record).fit(small(), loader)
    for step in (4, 8):
        after = record.weights[step]
        assert torch.equal(after, torch.where(after == 0, 0.0, record.weights[to]))
    assert int((record.weights[8] == 0).sum()) > int((record.weights[4] == 0).sum()) - 1
    assert not torch.equal(record.weights[9], record.weights[8])
