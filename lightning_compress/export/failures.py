"""Why a model could not be exported, in one sentence and in its user's terms."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node

from lightning_compress.arguments import reason

# How ONNX's and ExecuTorch's exporters name what they have no operator for.
_OPERATOR = re.compile(r"No ONNX function found for <OpOverload\(op='(\w+\.\w+)|Missing out variants: \{'(\w+::\w+)")


def explained(
    error: Exception, model: nn.Module, target: str, program: Callable[[], ExportedProgram] | None = None
) -> str:
    """A sentence.

    Args:
        error: What the exporter raised.
        model: The model.
        target: What it was to be exported to.
        program: Its graph, in which the layer is looked for that calls what the target has no operator for.
    """
    said = [str(cause) for cause in _causes(error)]
    begins = f"{type(model).__name__} could not be exported to {target}"
    for text in said:
        if found := _OPERATOR.search(text):
            missing = _caller(program, found[1] or found[2])
            return f"{begins}, which has no operator for {missing}: compute it otherwise, or outside of the model."
    if any("Constraints violated" in text for text in said):
        return f"{begins} for batches of any size, as it works with the example's alone; use dynamic_batch=False."
    if any("data-dependent" in text for text in said):
        return f"{begins}, as it branches on values of a tensor ({reason(error)}); use torch.where there."
    return f"{begins} ({reason(error)})."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _caller(program: Callable[[], ExportedProgram] | None, operator: str) -> str:
    """An operator, and as far as the graph tells the function and the layer that it comes from."""
    # Only to say more: it must not take the place of what went wrong.
    with contextlib.suppress(Exception):
        captured = program() if program is not None else None
        for graph in (captured.graph, captured.run_decompositions().graph) if captured is not None else ():
            for node in graph.nodes:
                if node.op == "call_function" and _plain(operator) == _plain(str(node.target)):
                    return f"{_place(node)} ({operator})"
    return operator


def _place(node: Node) -> str:
    stack = [*(node.meta.get("nn_module_stack") or {}).values()]
    function = node.meta.get("torch_fn", ("", ""))[1].rpartition(".")[2]
    return f"{function} in {stack[-1][0]!r}" if stack and stack[-1][0] else function


def _plain(operator: str) -> str:
    """``"prims.erf_inv"``, ``"aten::erfinv"`` and ``"aten.erfinv.default"`` are the same to a user."""
    parts = re.split(r"\.|::", operator)
    return parts[1].replace("_", "") if len(parts) > 1 else operator
