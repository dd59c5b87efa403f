"""Recorded calls and integers of one run of a quantized model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import lightning_compress as lc
from lightning_compress.quantization.finalize import copy_for_deployment
from lightning_compress.quantization.insertion import quantizers_of
from lightning_compress.quantization.simulation import Simulation, simulate
from tests.cases import assert_same
from tests.export.nets import SUBJECTS, outputs

SUBJECT = SUBJECTS["residual"]


def record(model: nn.Module, inputs: Any) -> Simulation:
    return simulate(copy_for_deployment(model, "", "test"), inputs)


def test_recording_returns_the_output_and_does_not_modify_the_model() -> None:
    model = SUBJECT.quantized().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    output = record(model, SUBJECT.batch(2)).output
    assert model.training
    assert_same({**model.state_dict()}, before)
    assert_same([output], outputs(model.eval(), SUBJECT.batch(2)))


def test_activations_are_in_the_order_of_execution() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(8, 3)
    quantized = lc.calibrate(model, [x])
    simulation = record(quantized, x)
    output, kept = simulation.output, simulation.integers
    assert [name for name, _ in kept] == ["0.linear_input_0", "1.relu", "2.linear"]
    assert {integers.dtype for _, integers in kept} == {torch.int32}
    last = next(a for a in quantizers_of(quantized) if a.name == "2.linear")
    scale, zero_point = last.quantizer.qparams(last.module)
    torch.testing.assert_close((kept[-1][1] - zero_point) * scale, output, atol=1e-6, rtol=0)


def test_layers_called_twice_are_recorded_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.fc(x))

    kept = record(lc.calibrate(Twice(), [torch.randn(8, 3)]), torch.randn(2, 3)).integers
    assert [name for name, _ in kept] == ["fc.linear_input_0", "fc.linear", "fc.linear_call_1"]


def test_names_do_not_contain_compile_wrappers() -> None:
    model = lc.calibrate(nn.Sequential(nn.Sequential(nn.Linear(3, 3)), nn.ReLU()), [torch.randn(8, 3)])
    model[0] = torch.compile(model[0], backend="eager")
    kept = record(model, torch.randn(2, 3)).integers
    assert [name for name, _ in kept] == ["0.0.linear_input_0", "1.relu"]
    assert isinstance(model[0], torch._dynamo.OptimizedModule)


def test_integers_span_the_range_of_the_specification() -> None:
    numbers = lc.Int(4)
    model = lc.calibrate(nn.Sequential(nn.Linear(3, 3)), [torch.randn(8, 3)], activations=numbers)
    kept = record(model, torch.randn(64, 3) * 10).integers
    assert all((int(t.min()), int(t.max())) == (0, 15) for _, t in kept)


def test_ties_are_rounded_as_in_the_simulation() -> None:
    model = lc.calibrate(nn.Sequential(nn.Linear(1, 1)), [torch.randn(64, 1)])
    ref = next(a for a in quantizers_of(model) if a.name == "0.linear_input_0")
    scale, zero_point = ref.quantizer.qparams(ref.module)
    halves = (torch.arange(256)[:, None] + 0.5 - zero_point) * scale
    kept = record(model, halves).integers
    assert_same((kept[0][1] - zero_point) * scale, ref.quantizer(ref.module, halves))
