from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_compress as lc

NET = lc.Targets(module="net")


class Momentum(pl.LightningModule):
    """A network and a copy that follows it, as a submodule or hidden in a list."""

    def __init__(self, follow: Callable[[nn.Module, nn.Module], None], *, hidden: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
        copied = copy.deepcopy(self.net).requires_grad_(False)
        self.copies, self.target, self.follow = [copied], None if hidden else copied, follow

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        with torch.no_grad():
            self.follow(self.net, self.copies[0])
        return (self.net(batch[0]) - self.copies[0](batch[0]) - 1).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.net.parameters(), 0.01)


def load(net: nn.Module, copied: nn.Module) -> None:
    copied.load_state_dict(net.state_dict())


def load_a_part(net: nn.Module, copied: nn.Module) -> None:
    copied[0].load_state_dict(net[0].state_dict())


def average_parameters(net: nn.Module, copied: nn.Module) -> None:
    for new, old in zip(net.parameters(), copied.parameters(), strict=True):
        old.lerp_(new, 0.1)


def average_states(net: nn.Module, copied: nn.Module) -> None:
    for new, old in zip(net.state_dict().values(), copied.state_dict().values(), strict=False):
        assert new.shape == old.shape
        old.copy_(0.9 * old + 0.1 * new if old.is_floating_point() else new)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("follow", [load, load_a_part, average_parameters, average_states])
@pytest.mark.parametrize(
    "technique",
    [
        lambda: lc.Pruning(0.5, targets=NET),
        lambda: lc.WeightClustering(4, targets=NET),
        lambda: lc.QuantizationAwareTraining(targets=NET),
        lambda: lc.QuantizationAwareTraining(),
    ],
)
def test_copies_follow_the_trained_network(
    trainer: Callable, loader: DataLoader, technique: Callable, follow: Callable, hidden: bool
) -> None:
    trainer(technique(), max_epochs=1).fit(Momentum(follow, hidden=hidden), loader)


def test_learned_scales_are_pointed_out(trainer: Callable, loader: DataLoader) -> None:
    learned = lc.QuantizationAwareTraining(weights=lc.Int(8, observer=lc.Learned()), targets=NET)
    with pytest.warns(UserWarning, match="'target' has the layers of 'net', which has learned scales"):
        trainer(learned, max_epochs=1).fit(Momentum(load, hidden=False), loader)


@pytest.mark.parametrize("hidden", [False, True])
def test_copies_of_a_shrunk_network(trainer: Callable, loader: DataLoader, hidden: bool) -> None:
    module = Momentum(load, hidden=hidden)
    with torch.no_grad():
        for tensor in (*module.net[0].parameters(), *module.net[1].parameters()):
            tensor[:8] = 0
    _, log = lc.shrink(module.net, torch.randn(4, 8))
    fresh = Momentum(load, hidden=hidden)
    with pytest.warns(UserWarning, match=r"is as 'net' was before the removal .* add Shrunk\(log, module="):
        trainer(lc.Shrunk(log, module="net"), max_epochs=1).fit(fresh, loader)
    assert fresh.net[0].weight.shape == fresh.copies[0][0].weight.shape == (8, 8)
