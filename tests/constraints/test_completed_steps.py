from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_compress.constraints.completed_steps import optimizers_of, step_was_skipped
from lightning_compress.constraints.layer import Layer


def make() -> tuple[nn.Sequential, list[Layer]]:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 30), nn.Linear(30, 1))
    return net, [Layer(f"{i}.weight", net[i].weight) for i in range(3)]


def test_the_optimizer_with_the_most_weights_comes_first() -> None:
    net, layers = make()
    small, large = torch.optim.SGD(net[0].parameters(), lr=0.1), torch.optim.SGD(net[1:].parameters(), lr=0.1)
    assert optimizers_of([small, large], layers) == [large, small]


def test_an_optimizer_without_any_is_left_out() -> None:
    net, layers = make()
    first, rest = torch.optim.SGD(net[0].parameters(), lr=0.1), torch.optim.SGD(net[1:].parameters(), lr=0.1)
    assert optimizers_of([first, rest], layers[1:]) == [rest]


def test_a_weight_that_no_optimizer_holds_is_named() -> None:
    net, layers = make()
    with pytest.raises(ValueError, match=r"No optimizer holds '2\.weight'.*configure_optimizers"):
        optimizers_of([torch.optim.SGD(net[:2].parameters(), lr=0.1)], layers)


@pytest.mark.parametrize(("found", "skipped"), [(1.0, True), (0.0, False)])
def test_a_skipped_step_of_a_fused_optimizer_is_seen(found: float, skipped: bool) -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    assert not step_was_skipped(optimizer)
    optimizer.found_inf = torch.tensor(found)
    assert step_was_skipped(optimizer) is skipped
    optimizer.found_inf = None
    assert not step_was_skipped(optimizer)
