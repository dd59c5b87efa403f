"""Simplification of an exported graph, which leaves it to the file what is computed in integers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from lightning_compress.export.onnx.kernels import DATA_MOVEMENT

# Layers that ONNX Runtime can compute in integers, and what it moves across quantizers behind them.
_LAYERS = ("Conv", "ConvTranspose", "Gemm")
_PASSED = {"Relu", *DATA_MOVEMENT} - {"QuantizeLinear", "DequantizeLinear"}


def simplify(model: Any) -> None:
    """Fold constants and remove what is unused, in place.

    Not by the exporter's own optimization: it merges equal nodes and constants, so that the quantized activations of
    the file would no longer be those of the model, and ONNX Runtime rewrites weights for its precise kernels, which
    fails for constants that two layers share.

    Args:
        model: Model in the intermediate representation of ``onnx_ir``.
    """
    import onnxscript.optimizer
    from onnx_ir.passes import common

    common.InlinePass()(model)
    onnxscript.optimizer.fold_constants(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for node in list(model.graph):
        if node.op_type in ("Conv", "ConvTranspose"):
            _remove_zero_bias(node)
        if node.op_type in _LAYERS:
            _keep_in_fp32(model, node)
    for each in (
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        each(model)
    _remove_annotations(model.graph)


def _remove_annotations(graph: Any) -> None:
    """Remove the exporter's annotations, a third of a small file."""
    values = (value for node in graph for value in node.outputs)
    for part in (graph, *graph, *values, *graph.inputs, *graph.initializers.values()):
        part.doc_string = None
        part.metadata_props.clear()


def _remove_zero_bias(layer: Any) -> None:
    """Remove the zeros that the exporter writes where there is no bias: in FP32 they forbid an integer kernel."""
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    if bias is not None and bias.const_value is not None and not bias.const_value.numpy().any():
        layer.replace_input_with(2, None)


def _keep_in_fp32(model: Any, layer: Any) -> None:
    """Let a layer with an FP32 weight compute in FP32 between quantized activations.

    ONNX Runtime would quantize the weight by itself, with one scale for the whole tensor, if the layer's only consumers
    quantize its output. The maximum with the lowest number changes nothing, and is one that it does not see through.
    """
    if layer.inputs[1].const_value is None:
        return
    for value in [*_ends(layer)]:
        hide(model.graph, value, [*value.uses()])


def hide(graph: Any, value: Any, uses: Iterable[Any]) -> None:
    """Let some nodes read a value through a maximum with the lowest number, which runtimes do not see through.

    Args:
        graph: The graph.
        value: The value, in FP32.
        uses: Nodes that read it, with the positions of this input.
    """
    import onnx_ir as ir

    lowest = ir.tensor(np.array(np.finfo(np.float32).min))
    constant = ir.Value(
        name=f"{value.name}_lowest", const_value=lowest, shape=ir.Shape(()), type=ir.TensorType(lowest.dtype)
    )
    graph.register_initializer(constant)
    maximum = ir.node("Max", [value, constant])
    maximum.outputs[0].type, maximum.outputs[0].shape = value.type, value.shape
    graph.insert_after(value.producer(), maximum)
    for reader, index in uses:
        reader.replace_input_with(index, maximum.outputs[0])


def _ends(layer: Any) -> Iterator[Any]:
    """Yield the values behind a layer that are quantized, perhaps after a clip or a move."""
    pending = [layer.outputs[0]]
    while pending:
        value = pending.pop()
        consumers = [consumer for consumer, _ in value.uses()]
        if any(consumer.op_type == "QuantizeLinear" for consumer in consumers):
            yield value
        pending += [output for consumer in consumers if consumer.op_type in _PASSED for output in consumer.outputs]
