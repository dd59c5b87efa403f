"""Recording of the integers of every fake-quantized activation in one run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.arguments import call_model
from lightning_compress.module_copies import copy_module
from lightning_compress.quantization.call_patcher import patcher_of
from lightning_compress.quantization.fake_quantized_call import FakeQuantizedCall, FakeQuantizePatcher
from lightning_compress.quantization.quantizer import Quantizer
from lightning_compress.quantization.strip_compile import strip_compile


class _RecordingQuantizer:
    """Quantizer that records the integers of its results."""

    def __init__(self, quantizer: Quantizer, name: str, recorded: list[tuple[str, Tensor]]) -> None:
        self.quantizer = quantizer
        self.name = name
        self.recorded = recorded

    def __call__(self, module: nn.Module, x: Tensor) -> Tensor:
        quantized = self.quantizer(module, x)
        scale, zero_point = self.quantizer.qparams(module)
        # From the result, not from x: another expression for the same integers may round ties the other way.
        self.recorded.append((self.name, (torch.round(quantized / scale) + zero_point).to(torch.int32)))
        return quantized


def record(model: nn.Module, inputs: Any) -> tuple[Any, list[tuple[str, Tensor]]]:
    """Run a copy of a quantized model in eval mode and record its quantized activations.

    Args:
        model: The model.
        inputs: A tensor, a tuple, or a dict of keyword arguments.

    Returns:
        Output of the model, and name and integers (int32) of each quantized activation, in the order of execution.
    """
    recorded: list[tuple[str, Tensor]] = []
    copied = strip_compile(copy_module(model)).eval()
    for layer, module in copied.named_modules():
        patcher = patcher_of(module)
        if isinstance(patcher, FakeQuantizePatcher):
            for action in {id(a): a for a in (*patcher.actions.values(), *patcher.defaults.values())}.values():
                assert isinstance(action, FakeQuantizedCall)
                _wrap_quantizers(action, layer, recorded)
    with torch.no_grad():
        output = call_model(copied, inputs)
    return output, recorded


def _wrap_quantizers(action: FakeQuantizedCall, layer: str, recorded: list[tuple[str, Tensor]]) -> None:
    def wrap(quantizer: Any) -> Any:
        return quantizer and _RecordingQuantizer(quantizer, f"{layer}.{quantizer.name}".lstrip("."), recorded)

    action.operands = {k: wrap(quantizer) for k, quantizer in action.operands.items()}
    action.inner, action.output = wrap(action.inner), wrap(action.output)
