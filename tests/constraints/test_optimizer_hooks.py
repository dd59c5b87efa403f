from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from lightning_compress.constraints.layer import Layer
from lightning_compress.constraints.optimizer_hooks import OptimizerHooks


def make() -> tuple[list[Layer], list[nn.Parameter]]:
    parameters = [nn.Parameter(torch.ones(size, 2)) for size in (3, 2, 1)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    return [Layer(f"{i}.weight", parameter) for i, parameter in enumerate(parameters)], parameters


def sgd(*parameters: nn.Parameter) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def test_all_holders_of_a_weight_are_hooked_and_those_of_the_same_weights_count() -> None:
    layers, (a, b, c) = make()
    first, second, part, other = sgd(a, b), sgd(b, a), sgd(a), sgd(c)
    stepped: list[Optimizer] = []
    hooks = OptimizerHooks([part, first, second, other], layers, stepped.append)
    for optimizer in (part, first, second, other):
        optimizer.step()
    assert stepped == [part, first, second, other]
    assert hooks.holders == [first, second, part, other]
    assert [hooks.counts(optimizer) for optimizer in hooks.holders] == [True, True, False, False]
    assert hooks.layers_of(part) == layers[:1]
    hooks.remove()
    first.step()
    assert len(stepped) == 4


def test_replaced_optimizers_are_followed() -> None:
    layers, (a, b, c) = make()
    old, stepped = sgd(a, b, c), []
    hooks = OptimizerHooks([old], layers, stepped.append)
    assert hooks.follow([old]) == []
    new = sgd(b, c)
    assert hooks.follow([new]) == layers[:1]
    old.step()
    new.step()
    assert stepped == [new]
    assert hooks.counts(new)
    assert hooks.follow([]) == layers
    assert hooks.holders == []


def test_steps_count_again_after_one_that_raised() -> None:
    layers, parameters = make()
    optimizer, stepped = sgd(*parameters), []
    hooks = OptimizerHooks([optimizer], layers, stepped.append)

    def closure() -> None:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        optimizer.step(closure)
    hooks.reset()
    optimizer.step()
    assert stepped == [optimizer]
