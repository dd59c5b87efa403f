"""What fewer bits cost, layer by layer."""

from __future__ import annotations

import copy
import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import Tensor, nn

from lightning_compress.quantization.insertion import quantizers_of, remove_quantizers
from lightning_compress.quantization.int_spec import Int
from lightning_compress.quantization.mixed_precision import Effect, as_numbers, by_layer, choose
from lightning_compress.quantization.quantizer import Quantizer
from lightning_compress.quantization.quantizer_plan import QuantizerPlan
from lightning_compress.quantization.tracing import Graph, recording
from lightning_compress.reporting.figures import draw_sensitivity
from lightning_compress.reporting.printed import Printed
from lightning_compress.targets import Targets

Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Sensitivity(Printed):
    """What fewer bits cost, layer by layer; prints as a table.

    Attributes:
        loss: Mean loss of the float model.
        effects: One for each layer and number of bits, in the model's order, each layer's fewest bits first.
    """

    loss: float
    effects: tuple[Effect, ...]

    def choose(self, *, max_bytes: int | None = None, mean_bits: float | None = None) -> dict[str, Int | None]:
        """The numbers of bits with the smallest total rise of the loss under a budget.

        Rises are taken to add up over layers, as in HAWQ (Dong et al. 2019, arXiv:1905.03696; V2, arXiv:1911.03852),
        here measured rather than estimated from the Hessian. The choice is never above the budget, and the best one
        up to what :func:`~lightning_compress.functional.knapsack.cheapest` says of very large budgets.

        Args:
            max_bytes: Most bytes that the integers of all layers may take, packed, each layer's into whole bytes.
                Scales, and what is not quantized, come on top.
            mean_bits: Instead of ``max_bytes``, most bits of a weight, on average over the weights of all layers.

        Returns:
            What ``QuantizationAwareTraining(weights=...)`` and ``calibrate(weights=...)`` take; layers that were not
            measured are not in it, and stay in float.

        Raises:
            ValueError: If not exactly one budget is given, or if nothing that was measured is within it.
        """
        return as_numbers(choose(self.effects, max_bytes=max_bytes, mean_bits=mean_bits))

    def figure(self, path: str | Path) -> None:
        """Draws the rises over the layers, a line for each number of bits, as a PNG file.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        layers = by_layer(self.effects)
        rises = {bits: [_rise(layer, bits) for layer in layers.values()] for bits in self._bits()}
        draw_sensitivity(path, list(layers), rises, loss=self.loss)

    def to_csv(self) -> str:
        """The effects as CSV, for programs."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("layer", "num_weights", "bits", "rise"))
        writer.writerows(astuple(effect) for effect in self.effects)
        return text.getvalue()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(title="Rise of the loss with one layer's weights in integers")
        table.add_column("layer", overflow="fold")
        for column in ("weights", *(f"{bits} bits" for bits in self._bits())):
            table.add_column(column, justify="right")
        for name, layer in by_layer(self.effects).items():
            rises = [f"{_rise(layer, bits):+.3g}" for bits in self._bits()]
            table.add_row(name, f"{layer[0].num_weights:,}", *rises)
        yield table
        yield f"The loss is {self.loss:.4g} in float."

    def _bits(self) -> list[int]:
        return sorted({effect.bits for effect in self.effects})


def sensitivity(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    loss: Loss,
    bits: Sequence[int] = (2, 4, 8),
    targets: Targets = Targets(),
) -> Sensitivity:
    """Measures how the loss rises when one layer's weights at a time are rounded to integers.

    Symmetric ones with a scale for each output channel, as ``Int(bits)`` makes of weights; all else stays in float,
    activations too, so what these cost is not in it. The mean loss over the batches is measured once in float and once
    for every layer and number of bits, without gradients, with the same random numbers each time.

    Args:
        model: The model, which stays as it is: a copy is run, in eval mode and without quantizers it may have.
        batches: What ``loss`` takes, on the model's device; they are kept in memory.
        loss: From the model that it is given and a batch, a tensor of one element; it must not use another model.
        bits: Number of bits, 2 to 8.
        targets: Which layers; frozen ones are left out, unless the whole model is frozen.

    Raises:
        ValueError: If there is no batch or no number of bits, if the loss is not finite in float, or if no target is
            called.
    """
    numbers, batches = [Int(number) for number in sorted(set(bits))], list(batches)
    if not numbers or not batches:
        raise ValueError(f"sensitivity: there is no {'batch' if numbers else 'number of bits'}; give at least one.")
    probe = _plain_copy(model)
    chosen: dict[str, int] = {}
    for target in targets.select(probe):
        chosen[target.layer] = chosen.get(target.layer, 0) + target.parameter.numel()
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        measure = partial(_mean_loss, probe, batches, loss)
        float_loss = measure()
        if not math.isfinite(float_loss):
            raise ValueError(f"sensitivity: the mean loss is {float_loss} in float; it must be a finite number.")
        with recording(probe) as graph:
            loss(probe, batches[0])
        losses = {
            n.bits: _losses(probe, QuantizerPlan(n, None, dict.fromkeys(chosen, True)), graph, measure) for n in numbers
        }
    effects = [
        Effect(layer, num_weights, n.bits, losses[n.bits][layer] - float_loss)
        for layer, num_weights in chosen.items()
        for n in numbers
        if layer in losses[n.bits]
    ]
    if not effects:
        raise ValueError(
            "sensitivity: loss(model, batch) calls none of the targets of the model that it is given; it must run "
            "that model, and not another."
        )
    return Sensitivity(float_loss, tuple(effects))


def _losses(model: nn.Module, plan: QuantizerPlan, graph: Graph, measure: Callable[[], float]) -> dict[str, float]:
    """The mean loss with the weights of one layer quantized, by layer."""
    plan.insert_traced(model, graph)
    layers: dict[str, list[Quantizer]] = {}
    for attached in quantizers_of(model):
        attached.quantizer.quantizing = False
        layers.setdefault(attached.layer, []).append(attached.quantizer)
    losses = {}
    for layer, quantizers in layers.items():
        with _quantizing(quantizers):
            losses[layer] = measure()
    remove_quantizers(model)
    return losses


@contextmanager
def _quantizing(quantizers: Sequence[Quantizer]) -> Iterator[None]:
    """While it lasts, weights are looked at and rounded."""
    for quantizer in quantizers:
        quantizer.observing, quantizer.quantizing = 1, True
    yield
    for quantizer in quantizers:
        quantizer.observing, quantizer.quantizing = 0, False


def _mean_loss(model: nn.Module, batches: Sequence[Any], loss: Loss) -> float:
    """The mean over batches, with random numbers that are the same each time and leave PyTorch's as they were."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(0)
        return sum(float(loss(model, batch)) for batch in batches) / len(batches)


def _plain_copy(model: nn.Module) -> nn.Module:
    """In eval mode, without quantizers; a model that is frozen as a whole is measured like any other."""
    plain = copy.deepcopy(model).eval()
    remove_quantizers(plain)
    if not any(parameter.requires_grad for parameter in plain.parameters()):
        plain.requires_grad_(True)
    return plain


def _rise(layer: Sequence[Effect], bits: int) -> float:
    return next((effect.rise for effect in layer if effect.bits == bits), math.nan)
