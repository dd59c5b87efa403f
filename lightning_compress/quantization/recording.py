"""The integers of a simulation, place by place."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.quantization.calibrate import call
from lightning_compress.quantization.call_patcher import patcher_of
from lightning_compress.quantization.insertion import FakeQuantizedCall, FakeQuantizePatcher
from lightning_compress.quantization.quantizer import Quantizer
from lightning_compress.quantization.strip_compile import strip_compile


class _Recorded:
    """A quantizer that keeps the integers it makes."""

    def __init__(self, quantizer: Quantizer, name: str, kept: list[tuple[str, Tensor]]) -> None:
        self.quantizer = quantizer
        self.name = name
        self.kept = kept

    def __call__(self, module: nn.Module, x: Tensor) -> Tensor:
        rounded = self.quantizer(module, x)
        scale, zero_point = self.quantizer.grid(module)
        # Of what it made: on their own, halves might be rounded the other way.
        self.kept.append((self.name, (torch.round(rounded / scale) + zero_point).to(torch.int32)))
        return rounded


def record(model: nn.Module, inputs: Any) -> tuple[Any, list[tuple[str, Tensor]]]:
    """Runs a copy of a model with quantizers in eval mode.

    Args:
        model: The model.
        inputs: A tensor, a tuple, or a dict of keyword arguments.

    Returns:
        What it returns, and the integers (int32) of each activation that was quantized, in the order of the run.
    """
    kept: list[tuple[str, Tensor]] = []
    probe = strip_compile(copy.deepcopy(model)).eval()
    for layer, module in probe.named_modules():
        sites = patcher_of(module)
        if isinstance(sites, FakeQuantizePatcher):
            for action in {id(a): a for a in (*sites.actions.values(), *sites.defaults.values())}.values():
                assert isinstance(action, FakeQuantizedCall)
                _replace(action, layer, kept)
    with torch.no_grad():
        output = call(probe, inputs)
    return output, kept


def _replace(action: FakeQuantizedCall, layer: str, kept: list[tuple[str, Tensor]]) -> None:
    def recorded(quantizer: Any) -> Any:
        return quantizer and _Recorded(quantizer, f"{layer}.{quantizer.name}".lstrip("."), kept)

    action.operands = {k: recorded(quantizer) for k, quantizer in action.operands.items()}
    action.inner, action.output = recorded(action.inner), recorded(action.output)
