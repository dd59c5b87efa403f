"""Rewrites of a captured graph into what LiteRT's kernels compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

_ATEN = torch.ops.aten


def spell_out_sigmoids(graph_module: GraphModule) -> None:
    """Replace sigmoid and tanh before a quantize node by exponentials, which are computed in FP32.

    Their INT8 kernels have one fixed scale of the output, and the model another one.
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        spell_out = _FORMULAS.get(node.target)
        if spell_out is not None and any("quantize_per_tensor" in str(reader.target) for reader in node.users):
            with graph.inserting_before(node):
                node.replace_all_uses_with(spell_out(graph, node.args[0]))
            graph.erase_node(node)
    graph_module.recompile()


def _sigmoid(graph: Graph, x: Any) -> Node:
    denominator = graph.call_function(_ATEN.add.Scalar, (_exp(graph, x, -1.0), 1.0))
    return graph.call_function(_ATEN.reciprocal.default, (denominator,))


def _tanh(graph: Graph, x: Any) -> Node:
    denominator = graph.call_function(_ATEN.add.Scalar, (_exp(graph, x, 2.0), 1.0))
    fraction = graph.call_function(_ATEN.reciprocal.default, (denominator,))
    return graph.call_function(_ATEN.add.Scalar, (graph.call_function(_ATEN.mul.Scalar, (fraction, -2.0)), 1.0))


def _exp(graph: Graph, x: Any, factor: float) -> Node:
    return graph.call_function(_ATEN.exp.default, (graph.call_function(_ATEN.mul.Scalar, (x, factor)),))


_FORMULAS: Mapping[Any, Callable[[Graph, Any], Node]] = {_ATEN.sigmoid.default: _sigmoid, _ATEN.tanh.default: _tanh}
