"""Export to ExecuTorch with the XNNPACK backend, which computes in INT8 on the CPUs of mobile devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_compress.arguments import Arguments, as_arguments
from lightning_compress.atomic_files import atomic_write
from lightning_compress.export.capture import capture, exporting, lower_for, run_copy
from lightning_compress.export.executorch_passes import duplicate_dequantize, quantize_concatenated
from lightning_compress.export.exported_file import ExportedFile
from lightning_compress.export.failures import running
from lightning_compress.export.lowered_parity import SplitModel, compare_segments
from lightning_compress.export.output_comparison import relative_difference, tensor_leaves, top1_agreement
from lightning_compress.export.requirements import require
from lightning_compress.export.subprocess_check import run_in_subprocess
from lightning_compress.quantization.backend_operators import BackendOperators, Bias, QParams, QuantizedLayer, Weight
from lightning_compress.quantization.lowering import LoweredModel
from lightning_compress.quantization.value_roles import DATA_MOVEMENT
from lightning_compress.targets import shorten

_COMPUTING = {"convolution", "conv1d", "conv2d", "linear", "addmm", "mm", "bmm"}
_OPERATOR_MISSING = "error: 0x:14"  # in the runtime's error message
# A process of its own, as the number of threads can only be set before the first program is loaded.
_SCRIPT = """
import pathlib, sys, torch
from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
_unsafe_reset_threadpool(1)
from lightning_compress.export.executorch import load_program
from lightning_compress.profiling import latency_quartiles
run = load_program(pathlib.Path(sys.argv[1]).read_bytes(), torch.load("inputs.pt"))
torch.save((run(), latency_quartiles(run)), "outputs.pt")
"""


@dataclass(frozen=True, kw_only=True)
class ExecutorchFile(ExportedFile):
    """A ``.pte`` file and its measurements.

    Attributes:
        num_delegates: Number of subgraphs that XNNPACK computes; one is best.
        undelegated: Calls that ExecuTorch's slow portable kernels compute, ``"<module>.<function>"``.
        top1_agreement: Fraction of the example inputs with the same top-1 class as the model.
    """

    num_delegates: int
    undelegated: tuple[str, ...]
    top1_agreement: float


def export_executorch(model: nn.Module, path: str | Path, example_inputs: Any) -> ExecutorchFile:
    """Export a model as ``.pte`` for XNNPACK, run the file and compare it with the model layer by layer.

    The batch size is fixed to that of the example inputs. A model without quantizers is written in FP32;
    :func:`float_copy` removes the quantizers of a model.

    Args:
        model: The model; it is not modified.
        path: Path of the file; an existing file is replaced once the new one is complete.
        example_inputs: Inputs of the model: a tensor, a tuple, or a dict of keyword arguments.

    Returns:
        The file and its measurements.

    Raises:
        ImportError: If the packages of the extra ``executorch`` are not installed.
        ValueError: If a quantizer has not observed a batch, if only weights are quantized, if the model cannot be
            exported, if there is no kernel for an operator outside of XNNPACK or the file cannot be run, or if a
            quantized layer of the file stays outside of XNNPACK or differs from the model by more than 1 LSB.

    Example::

        >>> import lightning_compress as lc
        >>> images = torch.rand(8, 3, 32, 32)
        >>> model = lc.calibrate(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), [images])
        >>> lc.export_executorch(model, "model.pte", images[:1]).num_delegates  # doctest: +SKIP
        1
    """
    require("executorch", "torchao", extra="executorch")
    operators, inputs = ExecutorchOperators(), _contiguous(as_arguments(example_inputs))
    simulation = run_copy(model, inputs)
    lowered = lower_for(simulation, operators)
    edge = _delegate(lowered.model, inputs)
    graph = edge.exported_program().graph_module
    undelegated = tuple(_call_name(node) for node in _undelegated(graph))
    _check_delegated(graph, lowered)
    with atomic_write(path) as partial, running(operators.name, type(model).__name__):
        partial.write_bytes(_serialize(model, edge))
        steps = compare_segments(simulation, operators, _run_split)
        expected, (actual, seconds) = tensor_leaves(simulation.output), _run_file(partial, inputs, undelegated)
    return ExecutorchFile(
        path=Path(path),
        num_bytes=Path(path).stat().st_size,
        latency_quartiles=seconds,
        steps=steps,
        difference=relative_difference(expected, actual),
        unquantized_ops=tuple(lowered.unquantized_ops),
        num_delegates=sum("call_delegate" in node.name for node in graph.graph.nodes),
        undelegated=undelegated,
        top1_agreement=top1_agreement(expected, actual),
    )


class ExecutorchOperators(BackendOperators):
    """Quantization as ``quantized_decomposed`` operators, which XNNPACK's partitioner matches."""

    name = "ExecuTorch"
    subject = "XNNPACK"
    """Who computes, in messages."""
    unsigned = False
    # After a flattening without quantization parameters, XNNPACK's linear layers return garbage without an error.
    not_propagated = frozenset(DATA_MOVEMENT)

    def __init__(self) -> None:
        # Registers the operators.
        from torchao.quantization.pt2e import quantize_pt2e  # noqa: F401

        self._ops = torch.ops.quantized_decomposed

    def activation(self, x: Tensor, qparams: QParams) -> Tensor:
        """Quantize and dequantize; fewer than 8 bits are clamped, as XNNPACK supports only the full range of int8."""
        if not qparams.is_8_bit:
            ends = qparams.quant_min, qparams.quant_max
            lower, upper = ((end - qparams.zero_point) * qparams.scale for end in ends)
            x = torch.clamp(self._quantize_dequantize(x, qparams), lower, upper)
        return self._quantize_dequantize(x, qparams)

    def weight(self, weight: Weight) -> Tensor:
        """Dequantize an int8 constant per channel."""
        ends = (-127, 127, torch.int8)
        constants = (weight.integers, weight.scale, weight.zero_point)
        return self._ops.dequantize_per_channel.default(*constants, weight.axis, *ends)

    def bias(self, bias: Bias) -> Tensor:
        """Return the FP32 value, which XNNPACK rounds to the same integers."""
        return bias.value

    def check(self, layers: Sequence[QuantizedLayer]) -> None:
        """Check that every quantized layer has quantized inputs.

        Raises:
            ValueError: If only the weight of a layer is quantized.
        """
        for layer in layers:
            if layer.input is None:
                raise ValueError(
                    f"{layer.name!r} has quantized weights and an FP32 input, which {self.subject} does not support: "
                    "quantize the activations too, or export its float_copy()."
                )

    def _quantize_dequantize(self, x: Tensor, qparams: QParams) -> Tensor:
        arguments = qparams.scale, qparams.zero_point, -128, 127, torch.int8
        quantized = self._ops.quantize_per_tensor.default(x, *arguments)
        return self._ops.dequantize_per_tensor.default(quantized, *arguments)


def _contiguous(inputs: Any) -> Any:
    """Return inputs with contiguous tensors: a program takes inputs of the strides with which it was captured."""
    return tree_map_only(Tensor, torch.Tensor.contiguous, inputs)


def _delegate(model: nn.Module, inputs: Arguments) -> Any:
    """Return the program in ExecuTorch's edge dialect, with the subgraphs that XNNPACK supports delegated to it."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    with exporting(model, ExecutorchOperators.name):
        program = capture(model, inputs, dynamic_batch=False)
    _check_dimensions(program.graph_module)
    with exporting(model, ExecutorchOperators.name):
        quantize_concatenated(program.graph_module)
        duplicate_dequantize(program.graph_module)
        config = EdgeCompileConfig(_check_ir_validity=False)
        return to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()], compile_config=config)


def _undelegated(graph_module: GraphModule) -> list[Node]:
    """Return the calls that are not delegated to XNNPACK."""
    calls = [node for node in graph_module.graph.nodes if node.op == "call_function"]
    return [node for node in calls if "call_delegate" not in node.name and not node.name.startswith("getitem")]


def _check_dimensions(graph_module: GraphModule) -> None:
    """Check that convolutions have one or two dimensions: others fail in ExecuTorch's passes, or when the file runs."""
    targets = (torch.ops.aten.conv3d.default, torch.ops.aten.conv_transpose3d.input)
    if calls := [_call_name(node) for node in graph_module.graph.nodes if node.target in targets]:
        raise ValueError(f"ExecuTorch has no kernel for {shorten(calls)}: use export_onnx or export_openvino.")


def _check_delegated(graph_module: GraphModule, lowered: LoweredModel) -> None:
    layers = {layer.name for layer in lowered.layers}
    for node in _undelegated(graph_module):
        module, _, function = _call_name(node).rpartition(".")
        if function in _COMPUTING and module in layers:
            raise ValueError(
                f"XNNPACK does not support {module!r} ({function}), which would be computed in FP32: exclude it from "
                f"quantization with targets=Targets(exclude=({module!r},))."
            )


def _call_name(node: Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    module = [*stack.values()][-1][0] if stack else ""
    function = getattr(getattr(node.target, "_schema", None), "name", str(node.target)).rpartition("::")[2]
    return f"{module}.{function}".lstrip(".")


def _serialize(model: nn.Module, edge: Any) -> bytes:
    with exporting(model, ExecutorchOperators.name, edge.exported_program):
        return edge.to_executorch().buffer


def _run_file(
    path: Path, inputs: Arguments, undelegated: tuple[str, ...]
) -> tuple[list[Tensor], tuple[float, float, float]]:
    """Return the outputs of the file and the quartiles of its latency in seconds."""
    try:
        return run_in_subprocess(_SCRIPT, path, inputs)
    except RuntimeError as error:
        if _OPERATOR_MISSING not in str(error):
            raise
        names = shorten(list(undelegated))
        raise ValueError(
            f"ExecuTorch has no kernel for one of {names}: replace it by supported operators, or move it out of the "
            "model."
        ) from error


def _run_split(split: SplitModel, arguments: Arguments) -> Sequence[Tensor]:
    """Run the split model with XNNPACK's kernels, from a second program."""
    arguments = _contiguous(arguments)
    return load_program(_serialize(split, _delegate(split, arguments)), arguments)()


def load_program(program: bytes, inputs: Arguments) -> Callable[[], list[Tensor]]:
    """Load a program into ExecuTorch's runtime and return a function that runs it on the inputs."""
    from executorch.runtime import Runtime

    loaded = Runtime.get().load_program(program)
    method = loaded.load_method("forward")
    assert method is not None
    values = tree_leaves(_contiguous(inputs))
    # The program must outlive its method; outputs lie in memory that the next run writes to.
    return lambda: loaded and [output.clone() for output in method.execute(values)]
