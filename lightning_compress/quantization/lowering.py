"""From simulated integers to real ones: one lowering, in terms of a dialect, for all targets.

Batch norms are folded into the convolutions before them, which only rescales each channel's weight scale: the integers
of the weights are those of training (Jacob et al. 2018, arXiv:1712.05877, with per-channel scales).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.quantization.calibration import trace
from lightning_compress.quantization.dialect import Bias, Dialect, Grid, Layer
from lightning_compress.quantization.folding import argument, arguments_of, as_factor, fold, integer_bias
from lightning_compress.quantization.placement import CHANNEL_AXIS, Place, Placement, weight_place
from lightning_compress.quantization.simulation import (
    Attached,
    Simulated,
    quantizers_of,
    remove_quantizers,
)
from lightning_compress.quantization.sites import Call, Sites, install_all
from lightning_compress.quantization.trace import Node
from lightning_compress.quantization.writing import Bypassed, Folded, Written


@dataclass
class Lowered:
    """A plain copy of a model that computes in a dialect.

    Attributes:
        model: The copy, in eval mode.
        layers: Its layers with integer weights, in the order of the run.
        grids: Its activations' grids, in the order of the run.
        left_in_float: Calls that compute in floats, ``"<module>.<function>"``.
    """

    model: nn.Module
    layers: list[Layer] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    left_in_float: list[str] = field(default_factory=list)


def lower(model: nn.Module, example_inputs: Any, dialect: Dialect, *, unsigned: bool = True) -> Lowered:
    """Lowers a model with quantizers.

    Args:
        model: The model, which stays as it is.
        example_inputs: What it is called with: a tensor, a tuple, or a dict of keyword arguments.
        dialect: How integers are written.
        unsigned: Activations are uint8, else int8.

    Raises:
        ValueError: If there are no quantizers, or one has never seen a batch; for weights whose integers no kernel
            takes: affine ones, and scales for groups of inputs.
    """
    return _Lowering(model, example_inputs, unsigned=unsigned).run(dialect)


@torch.no_grad()
def round_biases_(model: nn.Module, example_inputs: Any) -> None:
    """Writes into biases what a file of integers adds in their place: multiples of two scales' product.

    With few bits the steps are wide, and a value that is rounded to another integer tips others in the layers after it.
    A bias that several calls add on several grids stays.

    Args:
        model: A model with quantizers, in eval mode.
        example_inputs: What it is called with.

    Raises:
        ValueError: As :func:`lower`.
    """
    lowering = _Lowering(model, example_inputs, unsigned=True)
    rounded: dict[nn.Parameter, list[Tensor]] = {}
    for node in lowering.graph.nodes:
        if lowering.is_layer(node):
            layer = lowering.layer(node)
            bias = model.get_submodule(layer.biased)._parameters.get("bias")
            if bias is not None:
                rounded.setdefault(bias, []).append(torch.zeros(()) if layer.rounding is None else layer.rounding)
    for bias, roundings in rounded.items():
        if len(roundings) == 1:
            bias.copy_(bias.double() + roundings[0].to(bias.device))


class _Lowering:
    """Builds the table of what is done at each call."""

    def __init__(self, model: nn.Module, example_inputs: Any, *, unsigned: bool) -> None:
        found = {Place.named(attached.layer, attached.quantizer.name): attached for attached in quantizers_of(model)}
        _check(found)
        self.plain = copy.deepcopy(model).eval()
        remove_quantizers(self.plain)
        self.graph = graph = trace(self.plain, example_inputs)
        self.found = found
        self.unsigned = unsigned
        self.arguments = arguments_of(self.plain, graph, example_inputs)
        layers = [node for node in graph.nodes if node.call.function in CHANNEL_AXIS]
        is_target = {node.module: weight_place(node) in found for node in layers}
        has_weights = any(place.role == "weight" for place in found)
        self.placement = Placement(graph, is_target if has_weights else dict.fromkeys(is_target, True))

    def run(self, dialect: Dialect) -> Lowered:
        lowered = Lowered(self.plain)
        table: dict[str, dict[Call, Any]] = {}
        for node in self.graph.nodes:
            action = self._simulated(node, dialect, lowered)
            if self.is_layer(node):
                layer = self.layer(node)
                lowered.layers.append(layer)
                action = Folded.of(action, layer, dialect)
            elif self.placement.is_folded(node):
                maker = self.graph.maker[node.operands[0]]
                if weight_place(maker) in self.found:
                    action = Bypassed.of(action)
            if action is not None:
                table.setdefault(node.module, {})[node.call] = action
        lowered.left_in_float = [f"{n.module}.{n.call.function}".lstrip(".") for n in self.placement.left_in_float()]
        install_all(self.plain, {name: Sites(actions) for name, actions in table.items()})
        return lowered

    def is_layer(self, node: Node) -> bool:
        """Whether a call's weight is to be integers."""
        return weight_place(node) in self.found and node.call.function in CHANNEL_AXIS

    def layer(self, node: Node) -> Layer:
        """A call with the batch norm after it as integers."""
        attached = self.found[weight_place(node)]
        args, kwargs = self.arguments[node]
        weight, bias = argument(args, kwargs, 1, "weight"), argument(args, kwargs, 2, "bias")
        integers = attached.quantizer.to_integers(attached.module, weight)
        scale, _ = attached.quantizer.grid(attached.module)
        axis = CHANNEL_AXIS[node.call.function]
        scale = scale.detach().double().expand(weight.shape[axis])
        norm = self.placement.folds_into(node)
        if norm is not None:
            factor, shift = as_factor(*self.arguments[norm])
            bias = shift if bias is None else shift + factor * bias.detach().double()
            scale = scale * factor
        grid = self._input(node)
        folded = fold(
            node.module, integers, scale, axis, bias=bias, input_scale=grid.scale if grid is not None else None
        )
        written = integer_bias(folded, bias, grid)
        rounding = None
        if bias is not None and isinstance(written, Bias):
            rounding = written.integers.double() * written.scale.double() - bias.detach().double()
        biased = node.module if norm is None else norm.module
        return Layer(node.module, node.call.function, folded, written, grid, biased, rounding)

    def _simulated(self, node: Node, dialect: Dialect, lowered: Lowered) -> Simulated | None:
        roles = [f"input_{k}" for k in range(len(node.operands))] + ["inner", "output"]
        places = {role: Place(node.module, node.call, role) for role in roles}
        action = Simulated()
        for role, place in places.items():
            if place in self.found:
                grid = replace(self._grid(self.found[place]), is_read=role.startswith("input_"))
                lowered.grids.append(grid)
                action.put(role, Written(grid, dialect))  # type: ignore[arg-type]
        if node.call.function in dialect.opaque and (read := self._input(node)) is not None:
            again = replace(read, is_again=True, is_read=False)
            lowered.grids += [again] * len(node.outputs)
            action.output = Written(again, dialect)  # type: ignore[assignment]
            return action
        return action if any(place in self.found for place in places.values()) else None

    def _grid(self, attached: Attached) -> Grid:
        scale, zero_point = attached.quantizer.grid(attached.module)
        integers = attached.quantizer.integers
        grid = Grid(attached.name, float(scale), int(zero_point), integers.low, integers.high)
        if integers.symmetric and self.unsigned:
            return grid.shifted(128)
        return grid if self.unsigned or integers.symmetric else grid.shifted(-(2 ** (integers.bits - 1)))

    def _input(self, node: Node) -> Grid | None:
        """The grid of what a call reads: its own, or that of the call that made it."""
        own = Place(node.module, node.call, "input_0")
        if own in self.found:
            return self._grid(self.found[own])
        maker = self.graph.maker.get(self.placement.origin(node.operands[0]))
        made = self.found.get(Place(maker.module, maker.call)) if maker is not None else None
        return self._grid(made) if made is not None else None


def _check(found: Mapping[Place, Attached]) -> None:
    if not found:
        raise ValueError("The model has no quantizers: train it with QuantizationAwareTraining, or calibrate() it.")
    for place, attached in found.items():
        integers = attached.quantizer.integers
        if not attached.quantizer.ready:
            raise ValueError(
                f"The observer of {attached.name!r} has never seen a batch: train or calibrate before exporting."
            )
        if place.role == "weight" and not integers.symmetric:
            raise ValueError(f"The weights of {attached.layer!r} are affine, which integer kernels do not take.")
        if place.role == "weight" and isinstance(integers.granularity, int):
            raise ValueError(
                f"The weights of {attached.layer!r} have a scale for each group of {integers.granularity} inputs, "
                "which integer kernels do not take: use granularity='channel'."
            )
