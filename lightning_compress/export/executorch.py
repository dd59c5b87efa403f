"""Files for ExecuTorch, whose XNNPACK backend computes with int8 on phones' and other small CPUs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_leaves

from lightning_compress.arguments import Arguments, as_arguments
from lightning_compress.atomic_files import written
from lightning_compress.export.capture import captured, exporting, lowered_or_float
from lightning_compress.export.lowered_parity import SplitModel
from lightning_compress.export.output_comparison import agreement, difference, outputs_of_model
from lightning_compress.export.requirements import require
from lightning_compress.export.subprocess_check import run_in_subprocess
from lightning_compress.quantization.backend import Bias, QParams, Weight
from lightning_compress.quantization.insertion import is_quantized
from lightning_compress.quantization.lowering import Lowered
from lightning_compress.quantization.placement import PASSING
from lightning_compress.targets import shorten

_COMPUTING = {"convolution", "conv1d", "conv2d", "linear", "addmm", "mm", "bmm"}
_OPERATOR_MISSING = "error: 0x:14"  # in what the runtime says
# Threads can only be set where nobody has loaded a program yet.
_ELSEWHERE = """
import pathlib, sys, torch
from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
_unsafe_reset_threadpool(1)
from lightning_compress.export.executorch import runner
from lightning_compress.export.output_comparison import median_seconds
run = runner(pathlib.Path(sys.argv[1]).read_bytes(), torch.load("inputs.pt"))
torch.save((run(), median_seconds(run)), "outputs.pt")
"""


@dataclass(frozen=True)
class ExecutorchFile:
    """What was written, and what was measured of it.

    Attributes:
        path: The file.
        num_bytes: Its size.
        latency: Median seconds of a run on the example inputs, one thread, ExecuTorch's runtime on this CPU.
        num_delegates: Parts that XNNPACK computes, each at one go; one is best.
        outside: Calls that ExecuTorch's portable and slow kernels compute, ``"<module>.<function>"``.
        steps: Largest difference of each activation from the model's on identical inputs, in steps of its scale, as
            XNNPACK computes it; ``None`` for a float file.
        difference: Largest difference of the outputs from the model's, over their largest value.
        agreement: Fraction of the examples on which the largest output is the same as the model's.
        left_in_float: Calls that compute with floats as they were not to be quantized.
    """

    path: Path
    num_bytes: int
    latency: float
    num_delegates: int
    outside: tuple[str, ...]
    steps: dict[str, int] | None
    difference: float
    agreement: float
    left_in_float: tuple[str, ...]


def export_executorch(model: nn.Module, path: str | Path, example_inputs: Any) -> ExecutorchFile:
    """Writes a model as ``.pte`` for XNNPACK, runs the file and compares it with the model layer by layer.

    The size of a batch is that of the example inputs, for good. A model without quantizers is written with floats;
    :func:`float_copy` makes one of a model that has them.

    Args:
        model: The model, which stays as it is.
        path: Where to write; what is there is replaced when the new file is complete.
        example_inputs: What it is called with: a tensor, a tuple, or a dict of keyword arguments.

    Raises:
        ImportError: Without the extra ``executorch``.
        RuntimeError: If ExecuTorch's runtime cannot run the file.
        ValueError: If a quantizer has never seen a batch, if only weights are integers, if the model cannot be
            exported, if nothing has a kernel for what XNNPACK leaves, or if in the file a layer that was to be
            quantized stays outside of XNNPACK or differs from the model by more than a step.
    """
    require("executorch", "torchao", extra="executorch")
    inputs = as_arguments(example_inputs)
    lowered = lowered_or_float(model, inputs, ExecutorchBackend(), unsigned=False)
    _check_inputs(lowered)
    edge = _delegated(lowered.model, inputs)
    graph = edge.exported_program().graph_module
    outside = tuple(_name(node) for node in _outside(graph))
    _check_delegated(graph, lowered)
    with written(path) as partial:
        partial.write_bytes(_binary(model, edge))
        steps = _steps(model, inputs) if is_quantized(model) else None
        expected, (actual, seconds) = outputs_of_model(model, inputs), _outputs_of(partial, inputs, outside)
    measured = difference(expected, actual), agreement(expected, actual)
    delegates = sum("call_delegate" in node.name for node in graph.graph.nodes)
    left = tuple(lowered.left_in_float)
    return ExecutorchFile(Path(path), Path(path).stat().st_size, seconds, delegates, outside, steps, *measured, left)


class ExecutorchBackend:
    """Writes integers as ``quantized_decomposed`` operators, which XNNPACK's partitioner looks for."""

    # Behind a flattening that is not on a grid, XNNPACK's linear layers return garbage without a word.
    opaque = frozenset(PASSING)

    def __init__(self) -> None:
        # Registers the operators.
        from torchao.quantization.pt2e import quantize_pt2e  # noqa: F401

        self._ops = torch.ops.quantized_decomposed

    def activation(self, x: Tensor, grid: QParams) -> Tensor:
        """Quantizes and dequantizes; fewer than 8 bits are clamped to, as XNNPACK knows no other ends than int8's."""
        if grid.quant_max - grid.quant_min < 254:
            quant_min, quant_max = ((end - grid.zero_point) * grid.scale for end in (grid.quant_min, grid.quant_max))
            x = torch.clamp(self._rounded(x, grid), quant_min, quant_max)
        return self._rounded(x, grid)

    def weight(self, weight: Weight) -> Tensor:
        """Dequantizes a constant of int8, per channel."""
        ends = (-127, 127, torch.int8)
        constants = (weight.integers, weight.scale, weight.zero_point)
        return self._ops.dequantize_per_channel.default(*constants, weight.axis, *ends)

    def bias(self, bias: Bias) -> Tensor:
        """Floats, which XNNPACK rounds to the integers that they come from."""
        return bias.value

    def _rounded(self, x: Tensor, grid: QParams) -> Tensor:
        numbers = grid.scale, grid.zero_point, -128, 127, torch.int8
        return self._ops.dequantize_per_tensor.default(self._ops.quantize_per_tensor.default(x, *numbers), *numbers)


def _check_inputs(lowered: Lowered) -> None:
    for layer in lowered.layers:
        if layer.input is None:
            raise ValueError(
                f"{layer.name!r} has integer weights and a float input, which XNNPACK does not compute: quantize the "
                "activations too, or export its float_copy()."
            )


def _delegated(model: nn.Module, inputs: Arguments) -> Any:
    """The program in ExecuTorch's terms, with all that XNNPACK takes in parts of their own."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    with exporting(model, "ExecuTorch"):
        program = captured(model, inputs, dynamic_batch=False)
        _put_on_one_grid(program.graph_module)
        _give_each_reader_its_own(program.graph_module)
        config = EdgeCompileConfig(_check_ir_validity=False)
        return to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()], compile_config=config)


def _give_each_reader_its_own(graph_module: GraphModule) -> None:
    """In place: one dequantize for each reader, so that each finds it in its own part."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and "dequantize_per_tensor" in str(node.target):
            for reader in list(node.users)[1:]:
                with graph.inserting_after(node):
                    reader.replace_input_with(node, graph.node_copy(node))
    graph_module.recompile()


def _put_on_one_grid(graph_module: GraphModule) -> None:
    """In place: concatenations read what is on the grid of what they make, as XNNPACK only moves their bytes.

    Rounding before is the same as rounding behind.
    """
    graph = graph_module.graph
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.cat.default):
        rounding = _rounding_behind(node)
        if rounding is not None:
            with graph.inserting_before(node):
                node.update_arg(0, [_like(graph, rounding, part) for part in node.args[0]])
            with graph.inserting_after(node):
                whole = _like(graph, rounding, node)
            node.replace_all_uses_with(whole, delete_user_cb=lambda user, own=whole.args[0]: user is not own)
    graph_module.recompile()


def _rounding_behind(node: Node) -> Node | None:
    """What quantizes the result of a call, clipped or not."""
    for user in node.users:
        if "quantize_per_tensor" in str(user.target):
            return user
        if any(name in str(user.target) for name in ("relu", "clamp", "hardtanh")) and len(node.users) == 1:
            return _rounding_behind(user)
    return None


def _like(graph: Graph, rounding: Node, part: Node) -> Node:
    """Quantizes and dequantizes a part as a node does with the whole."""
    operators = torch.ops.quantized_decomposed
    quantized = graph.call_function(operators.quantize_per_tensor.default, (part, *rounding.args[1:]))
    with graph.inserting_after(quantized):
        restored = graph.call_function(operators.dequantize_per_tensor.default, (quantized, *rounding.args[1:]))
    quantized.meta = restored.meta = dict(part.meta)
    return restored


def _outside(graph_module: GraphModule) -> list[Node]:
    """What XNNPACK did not take."""
    calls = [node for node in graph_module.graph.nodes if node.op == "call_function"]
    return [node for node in calls if "call_delegate" not in node.name and not node.name.startswith("getitem")]


def _check_delegated(graph_module: GraphModule, lowered: Lowered) -> None:
    layers = {layer.name for layer in lowered.layers}
    for node in _outside(graph_module):
        module, _, function = _name(node).rpartition(".")
        if function in _COMPUTING and module in layers:
            raise ValueError(
                f"XNNPACK does not take {module!r} ({function}), so that it would be computed with floats: quantize "
                f"without it, as targets=Targets(exclude=({module!r},)) does."
            )


def _name(node: Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    module = [*stack.values()][-1][0] if stack else ""
    function = getattr(getattr(node.target, "_schema", None), "name", str(node.target)).rpartition("::")[2]
    return f"{module}.{function}".lstrip(".")


def _binary(model: nn.Module, edge: Any) -> bytes:
    with exporting(model, "ExecuTorch", edge.exported_program):
        return edge.to_executorch().buffer


def _outputs_of(path: Path, inputs: Arguments, outside: tuple[str, ...]) -> tuple[list[Tensor], float]:
    try:
        return run_in_subprocess(_ELSEWHERE, path, inputs)
    except RuntimeError as error:
        if _OPERATOR_MISSING not in str(error):
            raise
        names = shorten(list(outside))
        raise ValueError(
            f"ExecuTorch has no kernel for one of {names}: compute it otherwise, or outside of the model."
        ) from error


def _steps(model: nn.Module, inputs: Arguments) -> dict[str, int]:
    """How far each place is from the simulation in XNNPACK's kernels: a second file, of the model in pieces."""
    cut = SplitModel(model, inputs, ExecutorchBackend(), unsigned=False)
    pieces: Arguments = (*inputs, cut.feeds), {}
    return cut.steps(runner(_binary(cut, _delegated(cut, pieces)), pieces)())


def runner(program: bytes, inputs: Arguments) -> Callable[[], list[Tensor]]:
    """Runs a program on some inputs in ExecuTorch's runtime."""
    from executorch.runtime import Runtime

    loaded = Runtime.get().load_program(program)
    method = loaded.load_method("forward")
    assert method is not None
    values = [value.contiguous() if isinstance(value, Tensor) else value for value in tree_leaves(inputs)]
    # The program must outlive its method; outputs lie in memory that the next run writes to.
    return lambda: loaded and [output.clone() for output in method.execute(values)]
