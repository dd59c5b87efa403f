"""From simulated integers to real ones: one lowering, in terms of a backend, for all targets.

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

from lightning_compress.arguments import reason
from lightning_compress.quantization.backend import Backend, Bias, QParams, QuantizedLayer, QuantizedOp
from lightning_compress.quantization.calibrate import trace
from lightning_compress.quantization.call_patcher import CallPatcher, CallSite, install_all
from lightning_compress.quantization.folding import (
    argument,
    arguments_of,
    as_factor,
    fold,
    integer_bias,
    is_foldable,
    shares_scales,
)
from lightning_compress.quantization.insertion import (
    FakeQuantizedCall,
    QuantizerRef,
    quantizers_of,
    remove_quantizers,
)
from lightning_compress.quantization.lowered_calls import FoldedBatchNorm, LoweredCall, LoweredQuantizer
from lightning_compress.quantization.placement import CHANNEL_AXIS, CLIPPING, Placement, QuantizationPoint, weight_place
from lightning_compress.quantization.strip_compile import strip_compile
from lightning_compress.quantization.tracing import Graph, Node


@dataclass
class Lowered:
    """A plain copy of a model that computes in the form of a backend.

    Attributes:
        model: The copy, in eval mode.
        layers: Its layers with integer weights, in the order of the run.
        others: Its other calls that are to compute with integers, in the order of the run.
        grids: Its activations' grids, in the order of the run.
        left_in_float: Calls that compute in floats, ``"<module>.<function>"``.
    """

    model: nn.Module
    layers: list[QuantizedLayer] = field(default_factory=list)
    others: list[QuantizedOp] = field(default_factory=list)
    grids: list[QParams] = field(default_factory=list)
    left_in_float: list[str] = field(default_factory=list)


def lower(model: nn.Module, example_inputs: Any, backend: Backend) -> Lowered:
    """Lowers a model with quantizers.

    Args:
        model: The model, which stays as it is.
        example_inputs: What it is called with: a tensor, a tuple, or a dict of keyword arguments.
        backend: Target of the export.

    Raises:
        ValueError: If there are no quantizers, or one has never observed a batch; if the model does not run on the example
            inputs; for weights whose integers no kernel takes: affine ones, scales for groups of inputs, and NaN.
    """
    return _Lowering(model, example_inputs, unsigned=backend.unsigned).run(backend)


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
        quantized = strip_compile(copy.deepcopy(model)).eval()
        found = {QuantizationPoint.named(each.layer, each.quantizer.name): each for each in quantizers_of(quantized)}
        _check(found)
        self.plain = copy.deepcopy(quantized)
        remove_quantizers(self.plain)
        self.graph = graph = _traced(self.plain, example_inputs)
        self.found = found
        self.unsigned = unsigned
        self.arguments = arguments_of(self.plain, graph, example_inputs)
        layers = [node for node in graph.nodes if node.call.function in CHANNEL_AXIS]
        is_target = {node.module: weight_place(node) in found for node in layers}
        has_weights = any(place.role == "weight" for place in found)
        self.placement = Placement(graph, is_target if has_weights else dict.fromkeys(is_target, True))
        self._floats = set(self.placement.left_in_float())

    def run(self, backend: Backend) -> Lowered:
        lowered = Lowered(self.plain)
        table: dict[str, dict[CallSite, Any]] = {}
        for node in self.graph.nodes:
            action = self._simulated(node, backend, lowered)
            if self.is_layer(node):
                layer = self.layer(node)
                lowered.layers.append(layer)
                action = LoweredCall.of(action, layer, backend)
            elif self._is_bypassed(node):
                action = FoldedBatchNorm.of(action)
            elif (made := self._made(node)) is not None:
                lowered.others.append(made)
            if self._computes_floats(node):
                lowered.left_in_float.append(node.name)
            if action is not None:
                table.setdefault(node.module, {})[node.call] = action
        install_all(self.plain, {name: CallPatcher(actions) for name, actions in table.items()})
        return lowered

    def is_layer(self, node: Node) -> bool:
        """Whether a call's weight is to be integers."""
        return weight_place(node) in self.found and node.call.function in CHANNEL_AXIS

    def layer(self, node: Node) -> QuantizedLayer:
        """A call with the batch norm after it as integers."""
        attached = self.found[weight_place(node)]
        args, kwargs = self.arguments[node]
        weight, bias = argument(args, kwargs, 1, "weight"), argument(args, kwargs, 2, "bias")
        norm = self._norm(node)
        _check_finite(node.module, "weight", weight)
        _check_finite(node.module, "bias", bias)
        integers = attached.quantizer.to_integers(attached.module, weight)
        scale, _ = attached.quantizer.grid(attached.module)
        axis = CHANNEL_AXIS[node.call.function]
        scale = scale.detach().double().expand(weight.shape[axis])
        if norm is not None:
            factor, shift = as_factor(*self.arguments[norm])
            _check_finite(norm.module, "statistics or weights", factor + shift)
            bias = shift if bias is None else shift + factor * bias.detach().double()
            scale = scale * factor
        grid = self._input(node)
        bias_grid = None if shares_scales(node.call.function, args, kwargs) else grid
        input_scale = bias_grid.scale if bias_grid is not None else None
        folded = fold(node.module, integers, scale, axis, bias=bias, input_scale=input_scale)
        written = integer_bias(folded, bias, bias_grid)
        rounding = None
        if bias is not None and isinstance(written, Bias):
            rounding = written.integers.double() * written.scale.double() - bias.detach().double()
        biased = node.module if norm is None else norm.module
        return QuantizedLayer(
            node.module, node.call.function, folded, written, grid, biased, rounding, not self._computes_floats(node)
        )

    def _norm(self, node: Node) -> Node | None:
        """The batch norm that is folded into a layer; one that cannot be stays, in float."""
        norm = self.placement.folds_into(node)
        if norm is None or not self.is_layer(node) or not is_foldable(*self.arguments[norm]):
            return None
        return None if shares_scales(node.call.function, *self.arguments[node]) else norm

    def _is_bypassed(self, node: Node) -> bool:
        return self.placement.is_folded(node) and self._norm(self.graph.maker[node.operands[0]]) is node

    def _computes_floats(self, node: Node) -> bool:
        """Whether a call computes in floats: by the plan, or as it reads some."""
        if node.call.function in CHANNEL_AXIS and not self.is_layer(node):
            return True
        if self.placement.is_folded(node):
            return not self._is_bypassed(node)
        if not self.placement.is_integer(node):
            return node in self._floats
        reads = [self._input(node, k) for k in range(len(self.placement.data_operands(node)))]
        if node.call.function == "linear":  # its products may be integers whose sums are floats
            return None in reads
        # What clips floats onto a grid only rounds them.
        clips = node.call.function in CLIPPING and QuantizationPoint(node.module, node.call) in self.found
        return not clips and (None in reads or self._result(node) is None)

    def _made(self, node: Node) -> QuantizedOp | None:
        """What a call that reads no weight makes, if it is integers that it is to make it of."""
        computes = self.placement.is_integer(node) and node.call.function not in CLIPPING
        grid = self._result(node) if computes and not self._computes_floats(node) else None
        return QuantizedOp(node.module, node.call.function, grid) if grid is not None else None

    def _result(self, node: Node) -> QParams | None:
        """The grid of what a call makes: its own, or that of the norm that is folded into it or of what clips it."""
        own = self.found.get(QuantizationPoint(node.module, node.call))
        if own is not None:
            return self._grid(own)
        users = self.placement.users.get(node.outputs[0], [])
        follows = len(users) == 1 and (users[0].call.function in CLIPPING or self._is_bypassed(users[0]))
        return self._result(users[0]) if follows else None

    def _simulated(self, node: Node, backend: Backend, lowered: Lowered) -> FakeQuantizedCall | None:
        roles = [f"input_{k}" for k in range(len(node.operands))] + ["inner", "output"]
        places = {role: QuantizationPoint(node.module, node.call, role) for role in roles}
        action = FakeQuantizedCall()
        for role, place in places.items():
            if place in self.found:
                grid = replace(self._grid(self.found[place]), is_read=role.startswith("input_"))
                lowered.grids.append(grid)
                action.put(role, LoweredQuantizer(grid, backend))  # type: ignore[arg-type]
        if node.call.function in backend.opaque and (read := self._input(node)) is not None:
            again = replace(read, is_again=True, is_read=False)
            lowered.grids += [again] * len(node.outputs)
            action.output = LoweredQuantizer(again, backend)  # type: ignore[assignment]
            return action
        return action if any(place in self.found for place in places.values()) else None

    def _grid(self, attached: QuantizerRef) -> QParams:
        scale, zero_point = attached.quantizer.grid(attached.module)
        integers = attached.quantizer.integers
        grid = QParams(attached.name, float(scale), int(zero_point), integers.quant_min, integers.quant_max)
        if integers.symmetric and self.unsigned:
            return grid.shifted(128)
        return grid if self.unsigned or integers.symmetric else grid.shifted(-(2 ** (integers.bits - 1)))

    def _input(self, node: Node, k: int = 0) -> QParams | None:
        """The grid of an operand that a call reads: its own, or that of the call that made it."""
        own = QuantizationPoint(node.module, node.call, f"input_{k}")
        if own in self.found:
            return self._grid(self.found[own])
        maker = self.graph.maker.get(self.placement.origin(self.placement.data_operands(node)[k]))
        made = self.found.get(QuantizationPoint(maker.module, maker.call)) if maker is not None else None
        return self._grid(made) if made is not None else None


def _check(found: Mapping[QuantizationPoint, QuantizerRef]) -> None:
    if not found:
        raise ValueError("The model has no quantizers: train it with QuantizationAwareTraining, or calibrate() it.")
    for place, attached in found.items():
        integers = attached.quantizer.integers
        if not attached.quantizer.ready:
            raise ValueError(
                f"The observer of {attached.name!r} has never observed a batch: train or calibrate before exporting."
            )
        if place.role == "weight" and not integers.symmetric:
            raise ValueError(f"The weights of {attached.layer!r} are affine, which integer kernels do not take.")
        if place.role == "weight" and isinstance(integers.granularity, int):
            raise ValueError(
                f"The weights of {attached.layer!r} have a scale for each group of {integers.granularity} inputs, "
                "which integer kernels do not take: use granularity='channel'."
            )


def _check_finite(name: str, what: str, tensor: Tensor | None) -> None:
    if tensor is not None and not bool(torch.isfinite(tensor).all()):
        raise ValueError(
            f"{name!r} has NaN or infinity in its {what}: training has diverged; load an earlier checkpoint."
        )


def _traced(model: nn.Module, example_inputs: Any) -> Graph:
    try:
        return trace(model, example_inputs)
    except Exception as error:
        raise ValueError(
            f"Could not run the model on the example inputs ({reason(error)}): give inputs that it runs on."
        ) from error
