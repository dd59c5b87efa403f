"""Broadcasting instead of expansions in a captured graph."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.fx import GraphModule, Node

_ATEN = torch.ops.aten
_EXPANSIONS = (_ATEN.expand.default, _ATEN.expand_as.default)
_ELEMENTWISE = (_ATEN.add.Tensor, _ATEN.sub.Tensor, _ATEN.mul.Tensor, _ATEN.div.Tensor)


def remove_expansions(graph_module: GraphModule) -> None:
    """Let arithmetic broadcast what the model expands before it, which computes the same.

    litert-torch moves the dimensions of tensors, and not those of the shapes to which they are expanded.
    """
    for node in list(graph_module.graph.nodes):
        if node.target in _EXPANSIONS and all(_broadcasts(reader, operand) for reader, operand in _arithmetic(node)):
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)
    graph_module.recompile()


def _arithmetic(node: Node) -> Iterator[tuple[Node, Node]]:
    """Yield the readers of a tensor with the operand that they read, behind its quantizers."""
    for reader in node.users:
        if "quantize_per_tensor" in str(reader.target):
            yield from _arithmetic(reader)
        else:
            yield reader, node


def _broadcasts(reader: Node, operand: Node) -> bool:
    """Return whether a node computes the same if one operand is not expanded to the shape of the other."""
    others = [each for each in reader.args if isinstance(each, Node) and each is not operand]
    shape = reader.meta["val"].shape if reader.target in _ELEMENTWISE else None
    return any(_before_quantizers(other).meta["val"].shape == shape for other in others)


def _before_quantizers(node: Node) -> Node:
    # Their recorded shape is that of an expansion that may be removed by now.
    while "quantize_per_tensor" in str(node.target):
        node = node.all_input_nodes[0]
    return node
