"""Rewrites of a captured graph into the patterns that XNNPACK's partitioner matches."""

from __future__ import annotations

import torch
from torch.fx import Graph, GraphModule, Node


def duplicate_dequantize(graph_module: GraphModule) -> None:
    """Give every reader of a dequantize node a copy of its own, so that the partitioner finds one in each subgraph."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and "dequantize_per_tensor" in str(node.target):
            for reader in list(node.users)[1:]:
                with graph.inserting_after(node):
                    reader.replace_input_with(node, graph.node_copy(node))
    graph_module.recompile()


def quantize_concatenated(graph_module: GraphModule) -> None:
    """Quantize the inputs of a concatenation with the parameters of its output, as XNNPACK only copies their bytes.

    Quantization is elementwise, hence the same before and after the concatenation.
    """
    graph = graph_module.graph
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.cat.default):
        quantize = _following_quantize(node)
        if quantize is not None:
            with graph.inserting_before(node):
                node.update_arg(0, [_quantize_like(graph, quantize, tensor) for tensor in node.args[0]])
            with graph.inserting_after(node):
                requantized = _quantize_like(graph, quantize, node)
            # Its own quantize node must keep reading the concatenation.
            node.replace_all_uses_with(
                requantized, delete_user_cb=lambda user, own=requantized.args[0]: user is not own
            )
    graph_module.recompile()


def _following_quantize(node: Node) -> Node | None:
    """Return the node that quantizes the result of a call, directly or after a clipping activation."""
    for user in node.users:
        if "quantize_per_tensor" in str(user.target):
            return user
        if any(name in str(user.target) for name in ("relu", "clamp", "hardtanh")) and len(node.users) == 1:
            return _following_quantize(user)
    return None


def _quantize_like(graph: Graph, quantize: Node, tensor: Node) -> Node:
    """Insert nodes that quantize and dequantize a tensor with the parameters of a quantize node."""
    operators = torch.ops.quantized_decomposed
    quantized = graph.call_function(operators.quantize_per_tensor.default, (tensor, *quantize.args[1:]))
    with graph.inserting_after(quantized):
        restored = graph.call_function(operators.dequantize_per_tensor.default, (quantized, *quantize.args[1:]))
    quantized.meta = restored.meta = dict(tensor.meta)
    return restored
