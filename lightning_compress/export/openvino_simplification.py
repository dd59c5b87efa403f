"""Forms of a graph that OpenVINO's passes cannot take, and others with the same values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_compress.export.onnx.simplification import hide

_ARITHMETIC = ("Add", "Sub", "Mul", "Div")


def simplify(path: Path) -> None:
    """Rewrite an ONNX file in place.

    - Constants that have quantizers, as positions and layer scales, are stored in FP32 with their quantized values:
      the passes fail where activations are added to or multiplied by the integers. Those of layers stay.
    - Tensors that are quantized twice with the same scale are quantized once, also behind a slice that takes all.
      Concatenations that are quantized again with another scale, or after arithmetic with a constant, are read through
      a maximum with the lowest number there. OpenVINO fails or crashes on both forms.
    """
    import onnx_ir as ir
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants
    from onnxscript.rewriter import rewrite
    from onnxscript.rewriter.rules.common import collapse_slice_rule

    model = ir.load(path)
    names = _of_constants(model.graph)
    fold_constants(model, should_fold=lambda node: node.name in names)
    model = rewrite(model, [collapse_slice_rule])
    common.IdentityEliminationPass()(model)
    for node in _quantize_nodes(model.graph):
        dequantize = node.inputs[0].producer()
        if dequantize is not None and _qparams(dequantize) == _qparams(node):
            node.outputs[0].replace_all_uses_with(dequantize.inputs[0])
    for value, uses in [*_uses_of_concatenations(model.graph)]:
        hide(model.graph, value, uses)
    common.RemoveUnusedNodesPass()(model)
    ir.save(model, path)


def _uses_of_concatenations(graph: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Yield quantized concatenations with what quantizes them again, directly or after arithmetic with a constant."""
    for node in _quantize_nodes(graph):
        producer = node.inputs[0].producer()
        if producer is not None and producer.op_type == "Concat":
            for value in _dequantized(node):
                if uses := [(reader, index) for reader, index in value.uses() if _quantizes_again(reader)]:
                    yield value, uses


def _dequantized(quantize: Any) -> Iterator[Any]:
    pending = [quantize]
    while pending:
        for reader, _ in pending.pop().outputs[0].uses():
            if reader.op_type == "DequantizeLinear":
                yield reader.outputs[0]
            elif reader.op_type == "Clip":
                pending.append(reader)


def _quantizes_again(reader: Any) -> bool:
    is_arithmetic = reader.op_type in _ARITHMETIC and any(value.const_value is not None for value in reader.inputs)
    return reader.op_type == "QuantizeLinear" or is_arithmetic


def _quantize_nodes(graph: Any) -> list[Any]:
    return [node for node in graph if node.op_type == "QuantizeLinear"]


def _of_constants(graph: Any) -> set[str]:
    """Return the names of the nodes that quantize and dequantize constants, and of those that compute these before."""
    constant = _constant_nodes(graph)
    pending = [node for node in constant.values() if node.op_type == "QuantizeLinear"]
    names: set[str] = set()
    while pending:
        node = pending.pop()
        if node.name in constant and node.name not in names:
            names.add(node.name)
            pending += [producer for value in node.inputs if value and (producer := value.producer())]
            # With fewer than 8 bits, the integers are clipped before they are dequantized.
            if node.op_type in ("QuantizeLinear", "Clip"):
                pending += [reader for reader, _ in node.outputs[0].uses()]
    return names


def _constant_nodes(graph: Any) -> dict[str, Any]:
    """Return the nodes that read constants alone, or what was computed from these, by name."""
    found: dict[str, Any] = {}
    for node in graph:
        values = [value for value in node.inputs if value is not None]
        if values and all(value.const_value is not None or _is_from(found, value) for value in values):
            found[node.name] = node
    return found


def _is_from(nodes: dict[str, Any], value: Any) -> bool:
    producer = value.producer()
    return producer is not None and producer.name in nodes


def _qparams(node: Any) -> tuple[Any, ...] | None:
    """Return scale and zero point of a node that quantizes or dequantizes activations; None for another one."""
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return None
    return tuple(value.const_value.numpy().tolist() for value in node.inputs[1:])
