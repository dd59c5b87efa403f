"""Sensitivity analysis: the delta loss of each layer when its weights are quantized."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import nn

from lightning_compress.mean_loss import Loss, mean_loss
from lightning_compress.module_copies import copy_module
from lightning_compress.quantization.insertion import quantizers_of, remove_quantizers
from lightning_compress.quantization.int_spec import Int
from lightning_compress.quantization.mixed_precision import Effect, as_quantization_spec, by_layer, choose
from lightning_compress.quantization.quantizer import Quantizer, quantizer_mode
from lightning_compress.quantization.quantizer_plan import QuantizerPlan
from lightning_compress.quantization.tracing import Graph, record_graph
from lightning_compress.reporting.figures import draw_heat_map, draw_sensitivity
from lightning_compress.reporting.printed import Printed
from lightning_compress.reporting.report_records import LayerSensitivity, SensitivityMap
from lightning_compress.targets import Targets


@dataclass(frozen=True)
class Sensitivity(Printed):
    """Delta loss of each layer and bit width, the result of :func:`sensitivity`; prints as a table.

    Attributes:
        loss: Mean loss of the FP32 model.
        effects: One for each layer and bit width, in the order of the model, each layer's in ascending order of bits.

    >>> result = Sensitivity(1.0, (Effect("fc", 10, 2, 0.5), Effect("fc", 10, 8, 0.0)))
    >>> result.choose(mean_bits=8)
    {'fc': Int(bits=8, symmetric=None, granularity=None, observer=None)}
    """

    loss: float
    effects: tuple[Effect, ...]

    def choose(self, *, max_bytes: int | None = None, mean_bits: float | None = None) -> dict[str, Int | None]:
        """Choose the bit width of each layer with the smallest total delta loss under a budget.

        Delta losses are assumed to add up over layers, as in HAWQ (Dong et al. 2019, arXiv:1905.03696; V2,
        arXiv:1911.03852), but are measured instead of estimated from the Hessian. The choice is optimal, and never
        exceeds the budget.

        Args:
            max_bytes: Largest size of the bit-packed weights of all layers in bytes, each layer's rounded up. Scales
                and unquantized parameters are not included.
            mean_bits: Alternatively, the largest mean number of bits per weight over the weights of all layers.

        Returns:
            Specifications for ``QuantizationAwareTraining(weights=...)`` and ``calibrate(weights=...)``. Layers that
            were not measured are not included, and stay in FP32.

        Raises:
            ValueError: If not exactly one budget is given, or no measured choice is within it.
        """
        return as_quantization_spec(choose(self.effects, max_bytes=max_bytes, mean_bits=mean_bits))

    def figure(self, path: str | Path) -> None:
        """Draw the delta loss over the layers as a PNG file, with a line for each bit width.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        draw_sensitivity(path, *self._delta_losses(), loss=self.loss)

    def heat_map(self, path: str | Path) -> None:
        """Draw the delta loss as a PNG file, with a row for each layer and a column for each bit width.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        draw_heat_map(path, *self._delta_losses())

    def to_map(self) -> SensitivityMap:
        """Return the delta losses as plain data for a report."""
        layers, deltas = self._delta_losses()
        records = [LayerSensitivity(n, {f"{b} bits": deltas[b][i] for b in deltas}) for i, n in enumerate(layers)]
        return SensitivityMap("quantization", self.loss, tuple(records))

    def to_csv(self) -> str:
        """Return the effects as CSV text with a header."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("layer", "num_weights", "bits", "delta_loss"))
        writer.writerows(astuple(effect) for effect in self.effects)
        return text.getvalue()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(title="Sensitivity: delta loss with the weights of one layer quantized")
        table.add_column("layer", overflow="fold")
        for column in ("weights", *(f"{bits} bits" for bits in self._bits())):
            table.add_column(column, justify="right")
        for name, layer in by_layer(self.effects).items():
            delta_losses = [f"{_delta_loss(layer, bits):+.3g}" for bits in self._bits()]
            table.add_row(name, f"{layer[0].num_weights:,}", *delta_losses)
        yield table
        yield f"The FP32 loss is {self.loss:.4g}."

    def _delta_losses(self) -> tuple[list[str], dict[int, list[float]]]:
        layers = by_layer(self.effects)
        return list(layers), {bits: [_delta_loss(layer, bits) for layer in layers.values()] for bits in self._bits()}

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
    """Measure the delta loss when the weights of one layer at a time are quantized.

    Weights are quantized as by ``Int(bits)``: symmetric, with one scale per output channel. All else stays in FP32,
    activations included. The mean loss over the batches is computed once in FP32 and once for every layer and bit
    width, without gradients and with the same random seed each time.

    Args:
        model: Model, which is not modified: a copy is run in eval mode, without the quantizers that it may have.
        batches: Batches for ``loss``, on the device of the model; they are kept in memory.
        loss: Function of a model and a batch that returns a tensor of one element. It must call the model that it
            receives, not another one.
        bits: Bit widths, 2 to 8.
        targets: Layers to measure. Frozen layers are left out, unless the whole model is frozen.

    Returns:
        The delta losses.

    Raises:
        ValueError: If there is no batch or no bit width, if the FP32 loss is not finite, or if ``loss`` calls no
            target.

    >>> linear = nn.Linear(2, 1, bias=False)
    >>> _ = linear.weight.data.copy_(torch.tensor([[1.0, 0.6]]))
    >>> result = sensitivity(linear, [torch.ones(1, 2)], loss=lambda model, batch: model(batch).sum(), bits=(2, 8))
    >>> [(effect.layer, effect.bits, round(effect.delta_loss, 3)) for effect in result.effects]
    [('', 2, 0.4), ('', 8, -0.002)]
    """
    specs, batches = [Int(number) for number in sorted(set(bits))], list(batches)
    if not specs or not batches:
        raise ValueError(f"sensitivity: there is no {'batch' if specs else 'number of bits'}; give at least one.")
    plain = _plain_copy(model)
    chosen: dict[str, int] = {}
    for target in targets.select(plain):
        chosen[target.layer] = chosen.get(target.layer, 0) + target.parameter.numel()
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        measure = partial(mean_loss, plain, batches, loss)
        fp32_loss = measure()
        if not math.isfinite(fp32_loss):
            raise ValueError(f"sensitivity: the mean loss is {fp32_loss} in FP32; it must be a finite number.")
        with record_graph(plain) as graph:
            loss(plain, batches[0])
        losses = {
            spec.bits: _losses(plain, QuantizerPlan(spec, None, dict.fromkeys(chosen, True)), graph, measure)
            for spec in specs
        }
    effects = [
        Effect(layer, num_weights, spec.bits, losses[spec.bits][layer] - fp32_loss)
        for layer, num_weights in chosen.items()
        for spec in specs
        if layer in losses[spec.bits]
    ]
    if not effects:
        raise ValueError(
            "sensitivity: loss(model, batch) calls none of the targets of the model that it is given; it must run "
            "that model, and not another."
        )
    return Sensitivity(fp32_loss, tuple(effects))


def _losses(model: nn.Module, plan: QuantizerPlan, graph: Graph, measure: Callable[[], float]) -> dict[str, float]:
    """Return the mean loss with the weights of one layer quantized, by layer."""
    plan.insert_traced(model, graph)
    layers: dict[str, list[Quantizer]] = {}
    for ref in quantizers_of(model):
        ref.quantizer.quantizing = False
        layers.setdefault(ref.layer, []).append(ref.quantizer)
    losses = {}
    for layer, quantizers in layers.items():
        with quantizer_mode(quantizers, observing=1, quantizing=True):
            losses[layer] = measure()
    remove_quantizers(model)
    return losses


def _plain_copy(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode without quantizers; a fully frozen model is unfrozen."""
    plain = copy_module(model).eval()
    remove_quantizers(plain)
    if not any(parameter.requires_grad for parameter in plain.parameters()):
        plain.requires_grad_(True)
    return plain


def _delta_loss(layer: Sequence[Effect], bits: int) -> float:
    return next((effect.delta_loss for effect in layer if effect.bits == bits), math.nan)
