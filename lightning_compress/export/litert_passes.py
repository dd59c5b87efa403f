"""Rewrites of a captured graph into what LiteRT's kernels compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

_ATEN = torch.ops.aten
_TRANSPOSED = (_ATEN.conv_transpose1d.default, _ATEN.conv_transpose2d.input)
_TRANSPOSED_DEFAULTS = (None, None, None, [1], [0], [0], 1, [1])


def spell_out_exponentials(graph_module: GraphModule) -> None:
    """Replace sigmoid, tanh and softmax before a quantize node by exponentials, which are computed in FP32.

    Their INT8 kernels have one fixed scale of the output, and the model another one.
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        spell_out = _FORMULAS.get(node.target)
        if spell_out is not None and any("quantize_per_tensor" in str(reader.target) for reader in node.users):
            with graph.inserting_before(node):
                node.replace_all_uses_with(spell_out(graph, *node.args))
            graph.erase_node(node)
    graph_module.recompile()


def crop_transposed_convolutions(graph_module: GraphModule) -> None:
    """Crop the unpadded result of transposed convolutions with output padding, which litert-torch does not convert."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.target not in _TRANSPOSED:
            continue
        shape = node.meta["val"].shape
        given = (*node.args, *_TRANSPOSED_DEFAULTS[len(node.args) :])
        x, weight, bias, stride, padding, output_padding, groups, dilation = (
            [*each] * (len(shape) - 2) if isinstance(each, (list, tuple)) and len(each) == 1 else each for each in given
        )
        # Beyond the unpadded result, the output would have to be extended.
        if any(output_padding) and all(extra <= cut for extra, cut in zip(output_padding, padding, strict=True)):
            with graph.inserting_before(node):
                none = [0] * len(padding)
                arguments = (x, weight, bias, stride, none, none, groups, dilation)
                result = graph.call_function(node.target, arguments)
                for dim, cut in enumerate(padding, start=2):
                    window = (result, dim, cut, cut + shape[dim])
                    result = graph.call_function(_ATEN.slice.Tensor, window)
            node.replace_all_uses_with(result)
            graph.erase_node(node)
    graph_module.recompile()


def _sigmoid(graph: Graph, x: Any) -> Node:
    denominator = graph.call_function(_ATEN.add.Scalar, (_exp(graph, x, -1.0), 1.0))
    return graph.call_function(_ATEN.reciprocal.default, (denominator,))


def _tanh(graph: Graph, x: Any) -> Node:
    denominator = graph.call_function(_ATEN.add.Scalar, (_exp(graph, x, 2.0), 1.0))
    fraction = graph.call_function(_ATEN.reciprocal.default, (denominator,))
    return graph.call_function(_ATEN.add.Scalar, (graph.call_function(_ATEN.mul.Scalar, (fraction, -2.0)), 1.0))


def _softmax(graph: Graph, x: Any, dim: int, dtype: torch.dtype | None = None) -> Node:
    largest = graph.call_function(_ATEN.amax.default, (x, [dim], True))
    exponentials = graph.call_function(_ATEN.exp.default, (graph.call_function(_ATEN.sub.Tensor, (x, largest)),))
    total = graph.call_function(_ATEN.sum.dim_IntList, (exponentials, [dim], True))
    # By a product: the converter would make a softmax of a division.
    fraction = graph.call_function(_ATEN.reciprocal.default, (total,))
    return graph.call_function(_ATEN.mul.Tensor, (exponentials, fraction))


def _exp(graph: Graph, x: Any, factor: float) -> Node:
    return graph.call_function(_ATEN.exp.default, (graph.call_function(_ATEN.mul.Scalar, (x, factor)),))


_FORMULAS: Mapping[Any, Callable[..., Node]] = {
    _ATEN.sigmoid.default: _sigmoid,
    _ATEN.tanh.default: _tanh,
    _ATEN.softmax.int: _softmax,
}
