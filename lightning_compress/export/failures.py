"""Translation of exporters' exceptions into messages that name the layer and a fix."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node

from lightning_compress.arguments import reason

_NODE = re.compile(r"Error when translating node %(\w+)")
# How ONNX's, ExecuTorch's and Core ML's exporters name an operator without an implementation.
_OPERATOR = re.compile(
    r"No ONNX function found for <OpOverload\(op='(\w+\.\w+)|Missing out variants: \{'(\w+::\w+)"
    r"|PyTorch convert function for op '([\w.]+)' not implemented|Unsupported fx node \w+, kind (\w+)"
)
# Core ML's exporter fails on some shapes with a dynamic dimension, "is0".
_DYNAMIC_CONSTANT = re.compile(r"Cannot add const \[is\d")


def failure_message(
    error: Exception, model: nn.Module, target: str, program: Callable[[], ExportedProgram] | None = None
) -> str:
    """Return a one-sentence message for the failure of an export.

    Args:
        error: The exception of the exporter.
        model: The model.
        target: Name of the target.
        program: Returns the graph of the model, in which the layer of an unsupported operator is searched.
    """
    causes = list(_causes(error))
    texts, deepest = [str(cause) for cause in causes], causes[-1]
    start = f"{type(model).__name__} could not be exported to {target}"
    for text in texts:
        if match := _OPERATOR.search(text):
            operator = _locate(program, match[match.lastindex or 0])
            return (
                f"{start}, which has no operator for {operator}: replace it by supported operators, or move it out of "
                "the model."
            )
    if node := next((match[1] for text in texts if (match := _NODE.search(text))), None):
        return f"{start}: {node} cannot be translated ({reason(deepest)}); replace it by another form."
    if any("Constraints violated" in text or _DYNAMIC_CONSTANT.search(text) for text in texts):
        return f"{start} with a dynamic batch size, as it only supports that of the example; use dynamic_batch=False."
    if any("data-dependent" in text for text in texts):
        return f"{start}, as it branches on values of a tensor ({reason(error)}); use torch.where there."
    return f"{start} ({reason(error)})."


@contextlib.contextmanager
def running(
    runtime: str, model: str, is_failure: Callable[[Exception], bool] = lambda error: isinstance(error, RuntimeError)
) -> Iterator[None]:
    """Turn exceptions of a runtime into a ``ValueError`` that names the model.

    Args:
        runtime: Name of the runtime.
        model: Name of the model.
        is_failure: Returns True for an exception of the runtime; most raise ``RuntimeError``.

    Raises:
        ValueError: For such an exception within the context.
    """
    try:
        yield
    except Exception as error:
        if not is_failure(error):
            raise
        # OpenVINO's begin with places in its sources.
        lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from")]
        raise ValueError(
            f"{runtime} cannot run the file of {model} ({reason(RuntimeError(*lines[:1]))}): write the operation in "
            "another form, or move it out of the model."
        ) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _locate(program: Callable[[], ExportedProgram] | None, operator: str) -> str:
    """Return an operator with the function and layer that call it, as far as the graph contains them."""
    # A failure of this search must not replace the exporter's own error.
    with contextlib.suppress(Exception):
        captured = program() if program is not None else None
        # The operator may appear only after decomposition, where fewer nodes have the user's function.
        for graph in (captured.graph, captured.run_decompositions().graph) if captured is not None else ():
            for node in graph.nodes:
                if node.op == "call_function" and _base_name(operator) == _base_name(str(node.target)):
                    return f"{_call_site(node)} ({operator})"
    return operator


def _call_site(node: Node) -> str:
    stack = [*(node.meta.get("nn_module_stack") or {}).values()]
    function = node.meta.get("torch_fn", ("", ""))[1].rpartition(".")[2]
    return f"{function} in {stack[-1][0]!r}" if stack and stack[-1][0] else function


def _base_name(operator: str) -> str:
    """Return ``"erfinv"`` for ``"prims.erf_inv"``, ``"aten::erfinv"``, ``"aten.erfinv.default"`` and ``"erf_inv"``."""
    parts = re.split(r"\.|::", operator)
    return parts[min(len(parts), 2) - 1].replace("_", "")
