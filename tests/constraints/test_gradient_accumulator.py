"""Contributions of completed steps, and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_compress.constraints.gradient_accumulator import GradientAccumulator
from lightning_compress.constraints.layer import Layer


def make_layer(name: str, *gradient: float) -> Layer:
    parameter = nn.Parameter(torch.full((1, 2), 3.0))
    parameter.grad = torch.tensor([gradient]) if gradient else None
    return Layer(name, parameter)


def product(weight: Tensor, gradient: Tensor) -> Tensor:
    assert weight.dtype == gradient.dtype == torch.float32
    return weight * gradient


def test_skipped_steps_and_repeated_calls_count_nothing() -> None:
    accumulator, layer = GradientAccumulator(product), make_layer("a", 1.0, 2.0)
    accumulator.read([layer])
    assert accumulator.sums == {}
    layer.parameter.grad = torch.tensor([[1024.0, 0.0]])
    accumulator.read([layer], 1024.0)  # the step of the first read was skipped
    accumulator.step_completed([layer])
    accumulator.step_completed([layer])
    assert accumulator.sums["a"].tolist() == [[3.0, 0.0]]
    accumulator.read([layer], 1024.0)
    accumulator.step_completed([layer])
    assert accumulator.sums["a"].tolist() == [[6.0, 0.0]]


def test_only_layers_of_the_optimizer_that_stepped_are_counted() -> None:
    accumulator, first, second = GradientAccumulator(product), make_layer("a", 1.0, 1.0), make_layer("b", 1.0, 1.0)
    accumulator.read([first])
    accumulator.read([second])
    accumulator.step_completed([second])
    assert {*accumulator.sums} == {"b"}


def test_a_missing_gradient_counts_as_zeros() -> None:
    accumulator, layer = GradientAccumulator(product), make_layer("a")
    accumulator.read([layer])
    accumulator.step_completed([layer])
    assert accumulator.sums["a"].tolist() == [[0.0, 0.0]]


def test_half_precision_is_accumulated_in_float32() -> None:
    layer = Layer("a", nn.Parameter(torch.full((1, 1), 3.0, dtype=torch.float16)))
    layer.parameter.grad = torch.full((1, 1), 60000.0, dtype=torch.float16)
    accumulator = GradientAccumulator(product)
    accumulator.read([layer])
    accumulator.step_completed([layer])
    assert accumulator.sums["a"].item() == 180000.0


def test_state_is_a_copy() -> None:
    (accumulator, other), layer = (GradientAccumulator(product) for _ in range(2)), make_layer("a", 1.0, 2.0)
    accumulator.read([layer])
    accumulator.step_completed([layer])
    other.load_state_dict([layer, make_layer("b")], accumulator.state_dict([layer]))
    accumulator.read([layer])
    accumulator.step_completed([layer])
    assert other.sums["a"].tolist() == [[3.0, 6.0]]
    assert accumulator.sums["a"].tolist() == [[6.0, 12.0]]
    accumulator.clear()
    assert accumulator.sums == {}
    assert other.sums.keys() == {"a"}
