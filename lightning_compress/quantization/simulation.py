"""One run of a quantized model: its calls, its output, and the integers of every fake-quantized activation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.arguments import call_model, reason
from lightning_compress.quantization.call_patcher import patcher_of
from lightning_compress.quantization.fake_quantized_call import FakeQuantizedCall, FakeQuantizePatcher
from lightning_compress.quantization.quantizer import Quantizer
from lightning_compress.quantization.tracing import Graph, record_graph


@dataclass(frozen=True)
class Simulation:
    """Run of a quantized model.

    Attributes:
        model: The model, in eval mode and without ``torch.compile``.
        inputs: Inputs of the run: a tensor, a tuple, or a dict of keyword arguments.
        graph: Calls of the run.
        output: Output of the model.
        integers: Name and integers (int32) of each quantized activation, in the order of execution; without those of
            calls on which no output depends, which exporters leave out.
    """

    model: nn.Module
    inputs: Any
    graph: Graph
    output: Any
    integers: list[tuple[str, Tensor]]

    def again(self) -> Simulation:
        """Run the model again, with the scales that its quantizers have by now."""
        with torch.no_grad(), _recorded_integers(self.model) as integers:
            output = call_model(self.model, self.inputs)
        return replace(self, output=output, integers=_of_live_calls(self.graph, integers))


def simulate(model: nn.Module, inputs: Any) -> Simulation:
    """Run a quantized model and record its calls and quantized activations.

    Args:
        model: The model, in eval mode and without ``torch.compile``.
        inputs: A tensor, a tuple, or a dict of keyword arguments.

    Raises:
        ValueError: If the model cannot be run on the inputs.
    """
    with torch.no_grad(), _recorded_integers(model) as integers, record_graph(model) as graph:
        try:
            output = call_model(model, inputs)
        except Exception as error:
            raise ValueError(
                f"Could not run the model on the example inputs ({reason(error)}): give inputs that it runs on."
            ) from error
    return Simulation(model, inputs, graph, output, _of_live_calls(graph, integers))


def _of_live_calls(graph: Graph, recorded: Sequence[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    live = set(map(id, graph.without_dead_calls()))
    remaining, kept = iter(recorded), []
    for node in graph.nodes:
        action = node.action
        if isinstance(action, FakeQuantizedCall):
            own = list(islice(remaining, len(action.activations)))
            kept += own if id(node) in live else []
    return kept


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


@contextmanager
def _recorded_integers(model: nn.Module) -> Iterator[list[tuple[str, Tensor]]]:
    """Record the integers of the activations that are quantized inside the context."""
    recorded: list[tuple[str, Tensor]] = []
    actions = {id(action): (action, layer) for layer, action in _actions_of(model)}
    saved = [(action, vars(action).copy()) for action, _ in actions.values()]
    for action, layer in actions.values():
        _wrap_quantizers(action, layer, recorded)
    try:
        yield recorded
    finally:
        for action, attributes in saved:
            vars(action).update(attributes)


def _actions_of(model: nn.Module) -> Iterator[tuple[str, FakeQuantizedCall]]:
    for layer, module in model.named_modules():
        patcher = patcher_of(module)
        if isinstance(patcher, FakeQuantizePatcher):
            for action in (*patcher.actions.values(), *patcher.defaults.values()):
                assert isinstance(action, FakeQuantizedCall)
                yield layer, action


def _wrap_quantizers(action: FakeQuantizedCall, layer: str, recorded: list[tuple[str, Tensor]]) -> None:
    def wrap(quantizer: Any) -> Any:
        if quantizer is None or not quantizer.ready:
            return quantizer
        return _RecordingQuantizer(quantizer, f"{layer}.{quantizer.name}".lstrip("."), recorded)

    action.operands = {k: wrap(quantizer) for k, quantizer in action.operands.items()}
    action.inner, action.output = wrap(action.inner), wrap(action.output)
