"""Graphs that need no decomposition before they are translated to ONNX."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

_ATEN = torch.ops.aten
_OUT_OF_PLACE = {_ATEN.relu_.default: _ATEN.relu.default, _ATEN.add_.Tensor: _ATEN.add.Tensor}
_TRANSLATED = frozenset({"aten::conv1d", "aten::conv2d", "aten::conv3d", "aten::linear", "aten::max_pool2d"})
# Operators that always return a new tensor, unlike a dropout in evaluation, which returns its argument.
_RETURN_NEW = _TRANSLATED | {
    "aten::batch_norm", "aten::add.Tensor", "aten::relu", "lightning_compress::quantize_dequantize"
}  # fmt: skip


def skip_needless_decomposition(program: ExportedProgram) -> None:
    """Let an exporter keep the graph of a program if its decompositions would not change it.

    Decomposition traces the whole model a second time, which takes longer than its translation. The operators of common
    convolutional networks that it would change are replaced first: in-place ones where nothing else reads the tensor
    that they modify, global pooling, and flattening.

    Args:
        program: The program; its graph is modified in place.
    """
    for node in program.graph.nodes:
        _replace(node)
    program.graph_module.recompile()
    decompose = program.run_decompositions

    def run_decompositions(table: Mapping[Any, Callable[..., Any]]) -> ExportedProgram:
        return decompose(dict(table)) if _changes(program, table) else program

    program.run_decompositions = run_decompositions  # type: ignore[method-assign, assignment]


def _replace(node: Node) -> None:
    target: Any = node.target
    x: Any = node.args[0] if node.args else None
    if target in _OUT_OF_PLACE and _is_only_use(x):
        node.target = _OUT_OF_PLACE[target]
    elif target is _ATEN.adaptive_avg_pool2d.default and node.args[1] == [1, 1]:
        node.target, node.args = _ATEN.mean.dim, (x, [-1, -2], True)
    elif target is _ATEN.flatten.using_ints and node.args[1:] == (1,):
        sizes = x.meta["val"].shape[1:]
        if all(isinstance(size, int) for size in sizes):
            node.target, node.args = _ATEN.view.default, (x, [-1, math.prod(sizes)])


def _is_only_use(argument: Node) -> bool:
    if len(argument.users) != 1:
        return False
    return isinstance(argument.target, torch._ops.OpOverload) and argument.target.name() in _RETURN_NEW


def _changes(program: ExportedProgram, table: Mapping[Any, Callable[..., Any]]) -> bool:
    """Return True if decomposition replaces one of the operators of a graph, or if the graph has subgraphs."""
    targets: set[Any] = {node.target for node in program.graph.nodes if node.op == "call_function"}
    operators = {target for target in targets if isinstance(target, torch._ops.OpOverload)}
    is_flat = all(target in operators or target.__module__ == "_operator" for target in targets)
    return not is_flat or any(target in table or _is_always_decomposed(target) for target in operators)


def _is_always_decomposed(operator: torch._ops.OpOverload) -> bool:
    """Return True for in-place operators, and those that are made of others and have no translation of their own."""
    is_composite = torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), "CompositeImplicitAutograd")
    return operator._schema.is_mutable or (is_composite and operator.name() not in _TRANSLATED)
