from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_compress.constraints.completed_steps import CompletedSteps, optimizers_of, step_was_skipped
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


def test_after_a_step_that_raised_steps_count_again() -> None:
    parameter = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    calls: list[torch.optim.Optimizer] = []
    steps = CompletedSteps(optimizer, calls.append)

    def closure() -> None:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        optimizer.step(closure)
    steps.reset()
    optimizer.step()
    assert calls == [optimizer]


class Still(torch.optim.Optimizer):
    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, {})

    def step(self, closure: object = None) -> None:
        pass


class Wrapped(Still):
    def step(self, closure: object = None) -> None:
        super().step(closure)


def test_a_step_that_calls_that_of_its_parent_counts_once_and_a_skipped_one_not_at_all() -> None:
    parameter = nn.Parameter(torch.ones(1))
    Still([parameter])  # torch wraps the step of a class when it is first instantiated
    optimizer = Wrapped([parameter])
    calls: list[torch.optim.Optimizer] = []
    CompletedSteps(optimizer, calls.append)
    optimizer.step()
    assert calls == [optimizer]
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert calls == [optimizer]


class WithoutInit(torch.optim.Optimizer):
    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.param_groups = [{"params": parameters}]

    def step(self, closure: object = None) -> None:
        pass


class WithAWrappedStep(WithoutInit):
    def step(self, closure: object = None) -> None:
        pass

    step.hooked = True


class WithDictionaries(WithoutInit):
    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._optimizer_step_pre_hooks = {}


@pytest.mark.parametrize("kind", [WithoutInit, WithAWrappedStep, WithDictionaries])
def test_an_optimizer_that_calls_no_hooks_is_named(kind: type[WithoutInit]) -> None:
    with pytest.raises(ValueError, match=rf"^{kind.__name__} calls no hooks around its steps"):
        CompletedSteps(kind([]), lambda optimizer: None)
