"""Lowering of a fake-quantized model to INT8 arithmetic, for all export targets.

Batch norms are folded into the layers before them, which only rescales the per-channel scales: the integers of the
weights are those of training, up to the sign of gamma (Jacob et al. 2018, arXiv:1712.05877, with per-channel scales).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.arguments import reason
from lightning_compress.module_copies import copy_module
from lightning_compress.quantization.backend import Backend, Bias, QParams, QuantizedLayer, QuantizedOp
from lightning_compress.quantization.call_patcher import CallPatcher, CallSite, install_all
from lightning_compress.quantization.fake_quantized_call import FakeQuantizedCall
from lightning_compress.quantization.folding import (
    argument,
    arguments_of,
    as_factor,
    fold,
    is_foldable,
    quantize_bias,
    shares_scales,
)
from lightning_compress.quantization.insertion import QuantizerRef, quantizers_of, remove_quantizers
from lightning_compress.quantization.lowered_calls import FoldedBatchNorm, LoweredCall, LoweredQuantizer
from lightning_compress.quantization.placement import CHANNEL_AXIS, CLIPPING, Placement, QuantizationPoint, weight_point
from lightning_compress.quantization.strip_compile import strip_compile
from lightning_compress.quantization.tracing import Graph, Node, trace


@dataclass
class LoweredModel:
    """Copy of a model that computes in the form of a backend.

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


def lower(model: nn.Module, example_inputs: Any, backend: Backend) -> LoweredModel:
    """Lower a model with quantizers to a backend.

    Args:
        model: The model, which is not modified.
        example_inputs: Its inputs: a tensor, a tuple, or a dict of keyword arguments.
        backend: Target of the export.

    Raises:
        ValueError: If there are no quantizers, or one has never observed a batch; if the model does not run on the
            example inputs; for weights that integer kernels do not support: affine ones, those with a scale per group
            of inputs, and NaN.
    """
    return _Lowering(model, example_inputs, unsigned=backend.unsigned).run(backend)


@torch.no_grad()
def round_biases_(model: nn.Module, example_inputs: Any) -> None:
    """Round the biases of a quantized model to multiples of the scales' product, the INT32 biases of an INT8 model.

    A bias that is added by several calls with different input scales stays.

    Args:
        model: A model with quantizers, in eval mode.
        example_inputs: Its inputs.

    Raises:
        ValueError: As :func:`lower`.
    """
    lowering = _Lowering(model, example_inputs, unsigned=True)
    rounded: dict[nn.Parameter, list[Tensor]] = {}
    for node in lowering.graph.nodes:
        if lowering.is_layer(node):
            layer = lowering.layer(node)
            bias = model.get_submodule(layer.bias_module)._parameters.get("bias")
            if bias is not None:
                rounded.setdefault(bias, []).append(torch.zeros(()) if layer.bias_error is None else layer.bias_error)
    for bias, errors in rounded.items():
        if len(errors) == 1:
            bias.copy_(bias.double() + errors[0].to(bias.device))


class _Lowering:
    """Builds the table of the actions at each call."""

    def __init__(self, model: nn.Module, example_inputs: Any, *, unsigned: bool) -> None:
        quantized = strip_compile(copy_module(model)).eval()
        refs = {QuantizationPoint.from_name(ref.layer, ref.quantizer.name): ref for ref in quantizers_of(quantized)}
        _check(refs)
        self.plain = copy_module(quantized)
        remove_quantizers(self.plain)
        # The graph is traced again: of a model from a checkpoint, only the quantizers are known.
        self.graph = graph = _trace(self.plain, example_inputs)
        self.refs = refs
        self.unsigned = unsigned
        self.arguments = arguments_of(self.plain, graph, example_inputs)
        # Targets are the layers with a weight quantizer. If only activations are quantized, the placement must have
        # taken all layers for targets.
        layers = [node for node in graph.nodes if node.call.function in CHANNEL_AXIS]
        is_target = {node.module: weight_point(node) in refs for node in layers}
        has_weights = any(point.role == "weight" for point in refs)
        self.placement = Placement(graph, is_target if has_weights else dict.fromkeys(is_target, True))
        self._unquantized = set(self.placement.unquantized_ops())

    def run(self, backend: Backend) -> LoweredModel:
        lowered = LoweredModel(self.plain, unquantized_ops=[*self.graph.opaque])
        table: dict[str, dict[CallSite, Any]] = {}
        for node in self.graph.nodes:
            action = self._activations_of(node, backend, lowered)
            if self.is_layer(node):
                layer = self.layer(node)
                lowered.layers.append(layer)
                action = LoweredCall.of(action, layer, backend)
            elif self._is_folded_norm(node):
                action = FoldedBatchNorm.of(action)
            elif (op := self._quantized_op(node)) is not None:
                lowered.ops.append(op)
            if self._is_unquantized(node):
                lowered.unquantized_ops.append(node.name)
            if action is not None:
                table.setdefault(node.module, {})[node.call] = action
        install_all(self.plain, {name: CallPatcher(actions) for name, actions in table.items()})
        return lowered

    def is_layer(self, node: Node) -> bool:
        """Return True if the weight of a call is quantized."""
        return weight_point(node) in self.refs and node.call.function in CHANNEL_AXIS

    def layer(self, node: Node) -> QuantizedLayer:
        """Quantize the weight and the bias of a call, with the batch norm after it folded."""
        ref = self.refs[weight_point(node)]
        args, kwargs = self.arguments[node]
        weight, bias = argument(args, kwargs, 1, "weight"), argument(args, kwargs, 2, "bias")
        norm = self._norm(node)
        _check_finite(node.module, "weight", weight)
        _check_finite(node.module, "bias", bias)
        # The integers of training, not those of the folded weight: the norm goes into the scale alone.
        integers = ref.quantizer.to_integers(ref.module, weight)
        scale, _ = ref.quantizer.qparams(ref.module)
        axis = CHANNEL_AXIS[node.call.function]
        scale = scale.detach().double().expand(weight.shape[axis])
        # y = factor * (W x + b) + shift = (factor * W) x + (factor * b + shift), in float64 as factors may be tiny.
        if norm is not None:
            factor, shift = as_factor(*self.arguments[norm])
            _check_finite(norm.module, "statistics or weights", factor + shift)
            bias = shift if bias is None else shift + factor * bias.detach().double()
            scale = scale * factor
        # The LSB of the int32 accumulator is input scale * weight scale, and the bias is added to it in the same unit.
        # There is none for an FP32 input, nor where output channels of several groups share a weight scale.
        qparams = self._input_qparams(node)
        bias_qparams = None if shares_scales(node.call.function, args, kwargs) else qparams
        input_scale = bias_qparams.scale if bias_qparams is not None else None
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
            bias_module=node.module if norm is None else norm.module,
            bias_error=bias_error,
            is_integer=not self._is_unquantized(node),
        )

    def _norm(self, node: Node) -> Node | None:
        """Return the batch norm that is folded into a layer; one that cannot be folded stays in FP32."""
        norm = self.placement.folds_into(node)
        if norm is None or not self.is_layer(node) or not is_foldable(*self.arguments[norm]):
            return None
        return None if shares_scales(node.call.function, *self.arguments[node]) else norm

    def _is_folded_norm(self, node: Node) -> bool:
        return self.placement.is_folded(node) and self._norm(self.graph.producer[node.operands[0]]) is node

    def _is_unquantized(self, node: Node) -> bool:
        """Return True if a call computes in FP32: by the placement, or as its input or output has no quantizer."""
        if node.call.function in CHANNEL_AXIS and not self.is_layer(node):
            return True
        if self.placement.is_folded(node):
            return not self._is_folded_norm(node)
        if not self.placement.is_integer(node):
            return node in self._unquantized
        # Integer kernels multiply integers: a single FP32 operand has the whole call computed in FP32.
        inputs = [self._input_qparams(node, k) for k in range(len(self.placement.data_operands(node)))]
        if node.call.function == "linear":  # its kernel can return the accumulator in FP32
            return None in inputs
        # A clip after an FP32 call is part of the quantization of its result: it clamps to the same range.
        clips = node.call.function in CLIPPING and QuantizationPoint(node.module, node.call) in self.refs
        return not clips and (None in inputs or self._output_qparams(node) is None)

    def _quantized_op(self, node: Node) -> QuantizedOp | None:
        """Return the quantized operation of a call without a weight, if it is to be one."""
        # Clips are fused into the call before, and are not counted as kernels of their own.
        computes = self.placement.is_integer(node) and node.call.function not in CLIPPING
        qparams = self._output_qparams(node) if computes and not self._is_unquantized(node) else None
        return QuantizedOp(node.module, node.call.function, qparams) if qparams is not None else None

    def _output_qparams(self, node: Node) -> QParams | None:
        """Return the parameters of a call's output, or of the norm or clip after it that is fused with it."""
        own = self.refs.get(QuantizationPoint(node.module, node.call))
        if own is not None:
            return self._qparams(own)
        users = self.placement.users.get(node.outputs[0], [])
        is_fused = len(users) == 1 and (users[0].call.function in CLIPPING or self._is_folded_norm(users[0]))
        return self._output_qparams(users[0]) if is_fused else None

    def _activations_of(self, node: Node, backend: Backend, lowered: LoweredModel) -> FakeQuantizedCall | None:
        """Return the action that quantizes the activations of a call, and list their parameters in ``lowered``."""
        roles = [f"input_{k}" for k in range(len(node.operands))] + ["inner", "output"]
        points = {role: QuantizationPoint(node.module, node.call, role) for role in roles}
        action = FakeQuantizedCall()
        for role, point in points.items():
            if point in self.refs:
                qparams = replace(self._qparams(self.refs[point]), is_input=role.startswith("input_"))
                lowered.activations.append(qparams)
                action.put(role, LoweredQuantizer(qparams, backend))  # type: ignore[arg-type]
        # Runtimes select an INT8 kernel by the quantize nodes around a call. Where they do not propagate parameters
        # through a call that only moves values, its outputs are quantized again, to the same integers.
        if node.call.function in backend.not_propagated and (moved := self._input_qparams(node)) is not None:
            again = replace(moved, is_requantized=True, is_input=False)
            lowered.activations += [again] * len(node.outputs)
            action.output = LoweredQuantizer(again, backend)  # type: ignore[assignment]
            return action
        return action if any(point in self.refs for point in points.values()) else None

    def _qparams(self, ref: QuantizerRef) -> QParams:
        scale, zero_point = ref.quantizer.qparams(ref.module)
        spec = ref.quantizer.spec
        qparams = QParams(ref.name, float(scale), int(zero_point), spec.quant_min, spec.quant_max)
        # The same values in the target's type: fake-quantization has affine integers from 0, symmetric ones around 0.
        if spec.symmetric and self.unsigned:
            return qparams.shifted(128)
        return qparams if self.unsigned or spec.symmetric else qparams.shifted(-(2 ** (spec.bits - 1)))

    def _input_qparams(self, node: Node, k: int = 0) -> QParams | None:
        """Return the parameters of an operand: its own, or those of the call that produced it."""
        own = QuantizationPoint(node.module, node.call, f"input_{k}")
        if own in self.refs:
            return self._qparams(self.refs[own])
        producer = self.graph.producer.get(self.placement.origin(self.placement.data_operands(node)[k]))
        output = self.refs.get(QuantizationPoint(producer.module, producer.call)) if producer is not None else None
        return self._qparams(output) if output is not None else None


def _check(refs: Mapping[QuantizationPoint, QuantizerRef]) -> None:
    if not refs:
        raise ValueError("The model has no quantizers: train it with QuantizationAwareTraining, or calibrate() it.")
    for point, ref in refs.items():
        spec = ref.quantizer.spec
        if not ref.quantizer.ready:
            raise ValueError(
                f"The observer of {ref.name!r} has never observed a batch: train or calibrate before exporting."
            )
        # A zero point of the weight would add a sum over the inputs to every output, which the kernels leave out.
        if point.role == "weight" and not spec.symmetric:
            raise ValueError(
                f"The weights of {ref.layer!r} are affine, which integer kernels do not support: use symmetric=True."
            )
        # The accumulator sums over all inputs before it is rescaled: they must share the scale.
        if point.role == "weight" and isinstance(spec.granularity, int):
            raise ValueError(
                f"The weights of {ref.layer!r} have a scale for each group of {spec.granularity} inputs, which integer "
                "kernels do not support: use granularity='channel'."
            )


def _check_finite(name: str, kind: str, tensor: Tensor | None) -> None:
    if tensor is not None and not bool(torch.isfinite(tensor).all()):
        raise ValueError(
            f"{name!r} has NaN or infinity in its {kind}: training has diverged; load an earlier checkpoint."
        )


def _trace(model: nn.Module, example_inputs: Any) -> Graph:
    try:
        return trace(model, example_inputs)
    except Exception as error:
        raise ValueError(
            f"Could not run the model on the example inputs ({reason(error)}): give inputs that it runs on."
        ) from error
