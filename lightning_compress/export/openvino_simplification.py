"""Forms of a graph that OpenVINO's passes cannot take, and others with the same values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any


def simplify(path: Path) -> None:
    """Rewrite an ONNX file in place.

    - Constants that have quantizers, as positions and layer scales, are stored in FP32 with their quantized values:
      the passes fail where activations are added to or multiplied by the integers. Those of layers stay.
    - Tensors that are quantized twice with the same scale are quantized once, also behind a slice that takes all:
      OpenVINO crashes where this follows a concatenation.
    """
    import onnx_ir as ir
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants
    from onnxscript.rewriter import rewrite
    from onnxscript.rewriter.rules.common import collapse_slice_rule

    model = ir.load(path)
    names = {name for node in _quantize_nodes(model.graph) for name in _quantizers_of_constant(node)}
    fold_constants(model, should_fold=lambda node: node.name in names)
    model = rewrite(model, [collapse_slice_rule])
    common.IdentityEliminationPass()(model)
    for node in _quantize_nodes(model.graph):
        dequantize = node.inputs[0].producer()
        if dequantize is not None and _qparams(dequantize) == _qparams(node):
            node.outputs[0].replace_all_uses_with(dequantize.inputs[0])
    common.RemoveUnusedNodesPass()(model)
    ir.save(model, path)


def _quantize_nodes(graph: Any) -> list[Any]:
    return [node for node in graph if node.op_type == "QuantizeLinear"]


def _quantizers_of_constant(quantize: Any) -> Iterator[str]:
    """Yield the names of the nodes that quantize and dequantize a constant; none if it is an activation."""
    pending = [quantize] if quantize.inputs[0].const_value is not None else []
    while pending:
        node = pending.pop()
        yield node.name
        if node.op_type != "DequantizeLinear":
            pending += [reader for reader, _ in node.outputs[0].uses()]


def _qparams(node: Any) -> tuple[Any, ...] | None:
    """Return scale and zero point of a node that quantizes or dequantizes activations; None for another one."""
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return None
    return tuple(value.const_value.numpy().tolist() for value in node.inputs[1:])
