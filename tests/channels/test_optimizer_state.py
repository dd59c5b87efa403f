from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import lightning_compress as lc
from tests.channels.nets import Residual, images, trained
from tests.channels.test_shrink import half_zero

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}


def stepped(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for _ in range(3):
        optimizer.zero_grad()
        net(images(4)).square().mean().backward()
        optimizer.step()


def two(kind: str) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer, lc.RemovalLog]:
    net = trained(Residual)
    old = OPTIMIZERS[kind](net.parameters())
    stepped(net, old)
    small, log = lc.shrink(half_zero(net), images())
    return net, small, old, log


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_moments_of_the_channels_that_stay(kind: str) -> None:
    net, small, old, log = two(kind)
    parameters = list(small.parameters())
    new = OPTIMIZERS[kind](parameters[::-1])  # the order is not what tells them apart
    lc.carry_optimizer_state(old, new, log)
    before, after = dict(net.named_parameters()), dict(small.named_parameters())
    assert len(new.state) == len(after)
    key = "momentum_buffer" if kind == "sgd" else "exp_avg_sq"
    moments = old.state[before["blocks.0.conv2.weight"]][key]
    assert torch.equal(new.state[after["blocks.0.conv2.weight"]][key], moments[::2, ::2])
    assert torch.equal(new.state[after["fc.bias"]][key], old.state[before["fc.bias"]][key])
    if kind == "adamw":
        assert new.state[after["fc.bias"]]["step"] == 3
    new.state[after["fc.bias"]][key].zero_()
    assert old.state[before["fc.bias"]][key].any(), "it is a copy"


def test_every_weight_is_trained_on() -> None:
    _, small, old, log = two("adamw")
    new = OPTIMIZERS["adamw"](small.parameters())
    lc.carry_optimizer_state(old, new, log)
    before = {name: p.detach().clone() for name, p in small.named_parameters()}
    stepped(small.train(), new)
    assert all(not torch.equal(p, before[name]) for name, p in small.named_parameters())


def test_after_a_second_round() -> None:
    net, small, old, log = two("sgd")
    again, later = lc.shrink(half_zero(small), images())
    new = OPTIMIZERS["sgd"](again.parameters())
    lc.carry_optimizer_state(old, new, log.then(later))
    buffer = old.state[dict(net.named_parameters())["fc.weight"]]["momentum_buffer"]
    assert torch.equal(new.state[again.fc.weight]["momentum_buffer"], buffer[:, ::4])


def test_replayed_on_the_model_itself() -> None:
    _, _, _, log = two("sgd")
    net = trained(Residual)
    old = OPTIMIZERS["sgd"](net.parameters())
    stepped(net, old)
    log.replay_(net)
    new = OPTIMIZERS["sgd"](net.parameters())
    lc.carry_optimizer_state(old, new, log)
    assert new.state[net.stem.weight]["momentum_buffer"].shape == net.stem.weight.shape


def test_refusals_change_nothing() -> None:
    net, small, old, log = two("sgd")
    with pytest.raises(ValueError, match="state of SGD cannot be used by AdamW"):
        lc.carry_optimizer_state(old, OPTIMIZERS["adamw"](small.parameters()), log)
    stranger = OPTIMIZERS["sgd"](trained(Residual).parameters())
    with pytest.raises(ValueError, match="a parameter that is unknown to the log"):
        lc.carry_optimizer_state(old, stranger, log)
    partial = OPTIMIZERS["sgd"](net.fc.parameters())
    new = OPTIMIZERS["sgd"](small.parameters())
    with pytest.raises(ValueError, match="does not hold"):
        lc.carry_optimizer_state(partial, new, log)
    with pytest.raises(ValueError, match="which does not match the log"):
        lc.carry_optimizer_state(new, old, log)
    assert not new.state


def test_a_weight_that_has_another_name_first() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            net = Residual()
            self.inner = net.blocks[0].conv1.weight
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

    net = trained(Named)
    old = OPTIMIZERS["adamw"](net.parameters())
    stepped(net, old)
    small, log = lc.shrink(half_zero(net), images())
    lc.carry_optimizer_state(old, OPTIMIZERS["adamw"](small.parameters()), log)


def test_state_of_which_channels_cannot_be_told_apart() -> None:
    net = trained(Residual)
    old = torch.optim.Adafactor(net.parameters())
    stepped(net, old)
    small, log = lc.shrink(half_zero(net), images())
    new = torch.optim.Adafactor(small.parameters())
    with pytest.raises(ValueError, match=r"Adafactor keeps state of shape .* for 'stem.weight'"):
        lc.carry_optimizer_state(old, new, log)
    assert not new.state
