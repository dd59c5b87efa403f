"""Lowering of a fake-quantized model to INT8 arithmetic, for all export targets.

Batch norms and other affine maps are folded into the layers before them, which only rescales the per-channel scales:
the integers of the weights are those of training, up to the sign of the factor (Jacob et al. 2018, arXiv:1712.05877,
with per-channel scales).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_compress.module_copies import copy_module
from lightning_compress.quantization.affine_maps import argument, as_factor, position_of_data, shares_scales
from lightning_compress.quantization.backend import Backend, OnnxRuntime
from lightning_compress.quantization.backend_operators import (
    BackendOperators,
    Bias,
    QParams,
    QuantizedLayer,
    QuantizedOp,
)
from lightning_compress.quantization.call_patcher import CallPatcher, CallSite, install_all
from lightning_compress.quantization.fake_quantized_call import FakeQuantizedCall
from lightning_compress.quantization.folding import fold, fold_weight_only, quantize_bias
from lightning_compress.quantization.function_names import CHANNEL_AXIS
from lightning_compress.quantization.insertion import quantizers_of, remove_quantizers
from lightning_compress.quantization.lowered_calls import FoldedCall, LoweredCall, LoweredQuantizer
from lightning_compress.quantization.lowering_checks import check_finite, check_quantizers, check_shared_scales
from lightning_compress.quantization.placement import CLIPPING, PlacedCall, Placement, Role
from lightning_compress.quantization.quantizer import Quantizer
from lightning_compress.quantization.simulation import Simulation
from lightning_compress.quantization.tracing import Node


@dataclass
class LoweredModel:
    """Copy of a model that computes with the operators of a backend.

    Attributes:
        model: The copy, in eval mode.
        layers: Calls with an INT8 weight, in the order of the run.
        ops: Other quantized calls, in the order of the run.
        activations: Quantization parameters of all activations, in the order of the run.
        unquantized_ops: Unquantized ops (FP32), ``"<module>.<function>"``.
    """

    model: nn.Module
    layers: list[QuantizedLayer] = field(default_factory=list)
    ops: list[QuantizedOp] = field(default_factory=list)
    activations: list[QParams] = field(default_factory=list)
    unquantized_ops: list[str] = field(default_factory=list)


def lower(simulation: Simulation, operators: BackendOperators) -> LoweredModel:
    """Lower a model with quantizers to the operators of a backend.

    Args:
        simulation: Run of the model, which is not modified.
        operators: Operators of the target of an export.

    Raises:
        ValueError: If there are no quantizers, or none has observed a batch; for weights that integer kernels do not
            support: affine ones, those with a scale per group of inputs, and NaN.
    """
    lowering = _Lowering(simulation, operators.backend, unsigned=operators.unsigned)
    model = copy_module(simulation.model)
    remove_quantizers(model)
    lowered = LoweredModel(model, unquantized_ops=[*simulation.graph.opaque])
    table: dict[str, dict[CallSite, Any]] = {}
    for node in simulation.graph.without_dead_calls():
        action = lowering.lower(node, operators, lowered)
        if action is not None:
            table.setdefault(node.module, {})[node.call] = action
    install_all(model, {name: CallPatcher(actions) for name, actions in table.items()})
    return lowered


def quantized_layers(simulation: Simulation) -> list[QuantizedLayer]:
    """Return the layers with an INT8 weight, in the order of the run.

    Raises:
        ValueError: As :func:`lower`.
    """
    return [*_Lowering(simulation, OnnxRuntime(), unsigned=True).layers.values()]


@torch.no_grad()
def round_biases_(model: nn.Module, layers: Iterable[QuantizedLayer]) -> bool:
    """Round the biases of a quantized model to multiples of the scales' product, the INT32 biases of an INT8 model.

    A bias that is added by several calls with different input scales stays.

    Args:
        model: The model.
        layers: Its quantized layers.

    Returns:
        True if a bias has changed.
    """
    changed = False
    rounded: dict[nn.Parameter, list[Tensor]] = {}
    for layer in layers:
        owner = None if layer.bias_module is None else model.get_submodule(layer.bias_module)
        bias = None if owner is None else owner._parameters.get("bias")
        if bias is not None:
            rounded.setdefault(bias, []).append(torch.zeros(()) if layer.bias_error is None else layer.bias_error)
    for bias, errors in rounded.items():
        if len(errors) == 1:
            before = bias.clone()
            bias.copy_(bias.double() + errors[0].to(bias.device))
            changed |= not torch.equal(bias, before)
    return changed


class _Lowering:
    """Quantized layers and activations of a run.

    Attributes:
        layers: Layers with a quantized weight.
    """

    def __init__(self, simulation: Simulation, backend: Backend, *, unsigned: bool) -> None:
        check_quantizers(quantizers_of(simulation.model), backend)
        self._model = simulation.model
        self._graph = simulation.graph
        self._backend = backend
        self._unsigned = unsigned
        self._live = self._graph.live_values
        # Targets are the layers with a weight quantizer. If only activations are quantized, the placement must have
        # taken all layers for targets.
        layers = [node for node in self._graph.nodes if node.call.function in CHANNEL_AXIS]
        is_target = {node.module: _weight_quantizer(node) is not None for node in layers}
        has_weights = any(is_target.values())
        is_target = is_target if has_weights else dict.fromkeys(is_target, True)
        self._placement = Placement(self._graph, is_target, backend)
        check_shared_scales(simulation.model, self._placement, backend)
        self._qparams = {node: self._qparams_of(node) for node in self._graph.nodes}
        self._is_unquantized = {node: self._computes_in_fp32(call) for node, call in self._placement.calls.items()}
        self.layers = {node: self._layer(node) for node in layers if _weight_quantizer(node) is not None}

    def lower(self, node: Node, operators: BackendOperators, lowered: LoweredModel) -> FakeQuantizedCall | None:
        """Return the action at a call, and list in ``lowered`` what it computes."""
        call = self._placement.calls[node]
        action = self._activations_of(call, operators, lowered)
        if self._is_unquantized[node]:
            lowered.unquantized_ops.append(node.name)
        if node in self.layers:
            lowered.layers.append(self.layers[node])
            return LoweredCall.of(action, self.layers[node], operators)
        if call.role is Role.FOLDED and not self._is_unquantized[node]:
            return FoldedCall.of(action, position_of_data(node))
        # Clips are fused into the call before, and are not counted as kernels of their own.
        output = self._output_qparams(node)
        is_op = call.role is Role.INTEGER and node.call.function not in CLIPPING and not self._is_unquantized[node]
        if is_op and output is not None:
            lowered.ops.append(QuantizedOp(node.module, node.call.function, output))
        return action

    def _layer(self, node: Node) -> QuantizedLayer:
        """Quantize the weight and the bias of a call, with the affine maps after it folded."""
        quantizer, module = _weight_quantizer(node), self._model.get_submodule(node.module)
        assert quantizer is not None
        assert node.arguments is not None
        args, kwargs = node.arguments
        weight, bias = argument(args, kwargs, 1, "weight"), argument(args, kwargs, 2, "bias")
        check_finite(node.module, "weight", weight)
        check_finite(node.module, "bias", bias)
        # The integers of training, not those of the folded weight: the maps go into the scale alone.
        integers = quantizer.to_integers(module, weight)
        scale, _ = quantizer.qparams(module)
        axis = CHANNEL_AXIS[node.call.function]
        # A row for each channel: one scale, or those of its groups.
        scale = scale.detach().double()
        scale = scale if scale.ndim == 2 else scale.expand(weight.shape[axis])
        maps = self._placement.calls[node].affine_maps
        # y = factor * (W x + b) + shift = (factor * W) x + (factor * b + shift), in float64 as factors may be tiny.
        for each in maps:
            factor, shift = as_factor(each)
            check_finite(each.module, "statistics or weights", factor)
            check_finite(each.module, "statistics or weights", shift)
            bias = shift if bias is None else shift + factor * bias.detach().double()
            scale = scale * (factor.view(-1, 1) if scale.ndim == 2 else factor)
        if maps and bias is not None:
            bias = bias.expand(len(scale))  # all of them may have added a number
        qparams = self._input_qparams(node)
        is_weight_only = qparams is None and node.call.function == "linear"
        # The accumulator sums over all inputs before it is rescaled: they must share the scale.
        if scale.ndim == 2 and not is_weight_only:
            raise ValueError(
                f"The weights of {node.module!r} have a scale for each group of {quantizer.spec.granularity} inputs, "
                "which integer kernels do not support: use granularity='channel', or activations=None."
            )
        # The LSB of the int32 accumulator is input scale * weight scale, and the bias is added to it in the same unit.
        # There is none for an FP32 input, nor where output channels of several groups share a weight scale.
        is_integer_bias = self._backend.integer_bias and not shares_scales(node.call.function, args, kwargs)
        bias_qparams = qparams if is_integer_bias else None
        input_scale = bias_qparams.scale if bias_qparams is not None else None
        if is_weight_only:
            folded = fold_weight_only(node.module, integers, scale, axis, bits=quantizer.spec.bits)
        else:
            folded = fold(node.module, integers, scale, axis, bias=bias, input_scale=input_scale)
        quantized = quantize_bias(folded, bias, bias_qparams)
        bias_error = None
        if bias is not None and isinstance(quantized, Bias):
            bias_error = quantized.integers.double() * quantized.scale.double() - bias.detach().double()
        return QuantizedLayer(
            name=node.module,
            function=node.call.function,
            weight=folded,
            bias=quantized,
            input=qparams,
            bias_module=_bias_module(node, maps),
            bias_error=bias_error,
            # On constants there may be nothing left to compute.
            is_integer=not self._is_unquantized[node] and node.operands[0] not in self._graph.constants,
        )

    def _computes_in_fp32(self, call: PlacedCall) -> bool:
        """Return True if a call computes in FP32: by its role, or as its input or output has no quantizer."""
        node = call.node
        if node.call.function in CHANNEL_AXIS and _weight_quantizer(node) is None:
            return True
        if call.role is Role.FOLDED:
            return _weight_quantizer(self._layer_before(node)) is None
        if call.role is not Role.INTEGER:
            return call.role is Role.FP32 and any(len(shape) > 0 for shape in node.shapes)
        # Integer kernels multiply integers: a single FP32 operand has the whole call computed in FP32.
        accumulator = self._placement.accumulator(node)
        inputs = [self._input_qparams(node, k) for k in range(len(call.data)) if k != accumulator]
        name = node.call.function
        if self._backend.fuses_epilogues and name in CLIPPING:
            producer = self._graph.producer.get(node.operands[0])
            return producer is None or self._computes_in_fp32(self._placement.calls[producer])
        # Kernels that can return the accumulator in FP32.
        if name == "linear" or (self._backend.fuses_epilogues and (name in CHANNEL_AXIS or accumulator is not None)):
            return None in inputs
        # A clip after an FP32 call is part of the quantization of its result: it clamps to the same range.
        clips = name in CLIPPING and "output" in self._qparams[node]
        return not clips and (None in inputs or self._output_qparams(node) is None)

    def _layer_before(self, node: Node) -> Node:
        """Return the layer into which an affine map is folded."""
        return next(layer for layer, call in self._placement.calls.items() if node in call.affine_maps)

    def _output_qparams(self, node: Node) -> QParams | None:
        """Return the parameters of a call's output, or of the map or clip after it that is fused with it."""
        if "output" in self._qparams[node]:
            return self._qparams[node]["output"]
        users = self._placement.users.get(node.outputs[0], [])
        if len(users) != 1:
            return None
        is_fused = users[0].call.function in CLIPPING or self._placement.calls[users[0]].role is Role.FOLDED
        return self._output_qparams(users[0]) if is_fused else None

    def _activations_of(
        self, call: PlacedCall, operators: BackendOperators, lowered: LoweredModel
    ) -> FakeQuantizedCall | None:
        """Return the action that quantizes the activations of a call, and list their parameters in ``lowered``."""
        node, action = call.node, FakeQuantizedCall()
        for role, qparams in self._qparams[node].items():
            lowered.activations.append(qparams)
            action.put(role, cast(Quantizer, LoweredQuantizer(qparams, operators)))
        # Runtimes select an INT8 kernel by the quantize nodes around a call. Where they do not propagate parameters
        # through a call that only moves values, its outputs are quantized again, to the same integers.
        if node.call.function in operators.not_propagated and (moved := self._input_qparams(node)) is not None:
            again = replace(moved, is_requantized=True, is_input=False)
            # The part of a split that nothing reads is in no file.
            lowered.activations += [again] * len(self._live.intersection(node.outputs))
            action.output = cast(Quantizer, LoweredQuantizer(again, operators))
            return action
        return action if self._qparams[node] else None

    def _qparams_of(self, node: Node) -> dict[str, QParams]:
        """Return the parameters of the activations that a call quantizes, by role."""
        action = node.action
        if not isinstance(action, FakeQuantizedCall):
            return {}
        return {role: self._as_qparams(node, role, quantizer) for role, quantizer in action.activations.items()}

    def _as_qparams(self, node: Node, role: str, quantizer: Quantizer) -> QParams:
        scale, zero_point = quantizer.qparams(self._model.get_submodule(node.module))
        spec, name = quantizer.spec, f"{node.module}.{quantizer.name}".lstrip(".")
        is_input = role.startswith("input_")
        qparams = QParams(name, float(scale), int(zero_point), spec.quant_min, spec.quant_max, is_input=is_input)
        # The same values in the target's type: fake-quantization has affine integers from 0, symmetric ones around 0.
        if spec.symmetric and self._unsigned:
            return qparams.shifted(128)
        return qparams if self._unsigned or spec.symmetric else qparams.shifted(-(2 ** (spec.bits - 1)))

    def _input_qparams(self, node: Node, k: int = 0) -> QParams | None:
        """Return the parameters of an operand: its own, or those of the call that produced it."""
        own = self._qparams[node].get(f"input_{k}")
        if own is not None:
            return own
        producer = self._graph.producer.get(self._placement.origin(self._placement.calls[node].data[k]))
        return None if producer is None else self._qparams[producer].get("output")


def _weight_quantizer(node: Node) -> Quantizer | None:
    is_layer = node.call.function in CHANNEL_AXIS and isinstance(node.action, FakeQuantizedCall)
    quantizer = node.action.weight if is_layer else None  # type: ignore[union-attr]
    return quantizer if quantizer is not None and quantizer.ready else None


def _bias_module(node: Node, maps: tuple[Node, ...]) -> str | None:
    """Return the name of the module the bias of which is added to the result, if there is one."""
    if not maps:
        return node.module
    return maps[-1].module if maps[-1].call.function == "batch_norm" else None
