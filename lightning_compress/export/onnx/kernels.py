"""Counts of the INT8 and FP32 kernels that ONNX Runtime chooses for a file."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_compress.export.onnx.runtime import session
from lightning_compress.quantization.backend_operators import QuantizedLayer, QuantizedOp
from lightning_compress.quantization.lowering import LoweredModel
from lightning_compress.targets import shorten

_INTEGER = {
    "QLinearConv": "conv", "ConvInteger": "conv",
    "QGemm": "linear", "QLinearMatMul": "linear", "MatMulIntegerToFloat": "linear", "MatMulInteger": "linear",
    "DynamicQuantizeMatMul": "linear",
    "QLinearAdd": "add", "QLinearMul": "mul", "QLinearConcat": "concat",
    "QLinearAveragePool": "pool", "QLinearGlobalAveragePool": "pool", "QLinearReduceMean": "pool",
    "QLinearSigmoid": "sigmoid", "QLinearLeakyRelu": "leaky_relu", "QLinearSoftmax": "softmax",
}  # fmt: skip
_FLOAT = {
    "Conv": "conv", "FusedConv": "conv", "ConvTranspose": "conv_transpose", "Gemm": "linear", "FusedGemm": "linear",
    "MatMul": "matmul", "Add": "add", "Mul": "mul", "Concat": "concat",
}  # fmt: skip
# Operators that only move or convert values, or clip them to a range: they are not counted as kernels.
DATA_MOVEMENT = {
    "QuantizeLinear", "DequantizeLinear", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Shape",
    "Constant", "ReorderInput", "ReorderOutput", "Cast", "Gather", "Slice", "Split", "Identity", "Clip", "Pad",
    "Expand", "MaxPool", "NhwcMaxPool",
}  # fmt: skip
# Position of the output's scale among the inputs of operators with quantized outputs; its zero point follows.
_SCALES = {
    "QLinearConv": 6, "QGemm": 7, "QLinearMatMul": 6, "QLinearAdd": 6, "QLinearMul": 6, "QLinearConcat": 0,
    "QLinearAveragePool": 3, "QLinearGlobalAveragePool": 3, "QLinearReduceMean": 3, "QLinearSigmoid": 3,
    "QLinearLeakyRelu": 3, "QLinearSoftmax": 3,
}  # fmt: skip
# Layers that must have INT8 kernels. Transposed convolutions are not among them: ONNX Runtime has no INT8 kernel for
# ConvTranspose, so that they compute in FP32, with a warning instead of an error.
_LAYERS = {"conv": ("conv1d", "conv2d", "conv3d"), "linear": ("linear",)}


@dataclass(frozen=True)
class KernelCounts:
    """Kernels of a file, as ONNX Runtime runs it on this CPU.

    Attributes:
        integer: Number of INT8 kernels by kind.
        float: Number of FP32 kernels by kind.
    """

    integer: dict[str, int]
    float: dict[str, int]

    def __str__(self) -> str:
        def listed(counts: dict[str, int]) -> str:
            return ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items())) or "none"

        return f"INT8: {listed(self.integer)}; FP32: {listed(self.float)}"


def optimized_graph(path: Path) -> Any:
    """Return the graph that ONNX Runtime runs on this CPU, after its fusions."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        session(path, optimized=optimized)
        # With the types of intermediate results, by which arithmetic on shapes is recognized.
        return onnx.shape_inference.infer_shapes(onnx.load(optimized)).graph


def check_integer_kernels(graph: Any, lowered: LoweredModel) -> KernelCounts:
    """Count the kernels of an optimized graph.

    Args:
        graph: The optimized graph.
        lowered: The lowered model that was written to the file.

    Raises:
        ValueError: If a quantized convolution, linear layer or addition has no INT8 kernel.
    """
    counts = _count(graph)
    for kind, functions in _LAYERS.items():
        layers = [layer for layer in lowered.layers if layer.is_integer and layer.function in functions]
        if (number := counts.integer.get(kind, 0)) < len(layers):
            # All layers of the kind are named if every weight is read by some INT8 kernel, which need not be its own.
            names = [layer.name for layer in _layers_in_fp32(graph, layers) or layers]
            which = f"{len(layers) - number} of {len(layers)} {kind} layers"
            raise _missing_kernels(which, names, counts, f"targets=Targets(exclude=({names[0]!r},))")
    additions = [op for op in lowered.ops if op.function == "add"]
    if missing := _ops_in_fp32(graph, additions):
        which, names = f"{len(missing)} of {len(additions)} additions", [op.name for op in missing]
        raise _missing_kernels(which, names, counts, f"activations={{{missing[0].module!r}: None, '*': Int(8)}}")
    return counts


def quantized_calls_in_fp32(graph: Any, lowered: LoweredModel) -> tuple[list[str], list[str]]:
    """Return quantized calls that compute in FP32, as ONNX Runtime has no INT8 kernels for them.

    Args:
        graph: The optimized graph.
        lowered: The lowered model that was written to the file.

    Returns:
        Names of the calls with a weight, and of the others.
    """
    checked = {function for functions in _LAYERS.values() for function in functions}
    layers = _layers_in_fp32(graph, [layer for layer in lowered.layers if layer.function not in checked])
    names = [f"{layer.name}.{layer.function}".lstrip(".") for layer in layers]
    return names, [op.name for op in _ops_in_fp32(graph, lowered.ops)]


def _missing_kernels(which: str, names: list[str], counts: KernelCounts, exclusion: str) -> ValueError:
    return ValueError(
        f"ONNX Runtime computes {which} in FP32 although they are quantized: {shorten(names)} ({counts}); exclude them "
        f"from quantization with {exclusion}."
    )


def _count(graph: Any) -> KernelCounts:
    integer, floats = Counter[str](), Counter[str]()
    for node in _compute_nodes(graph):
        if node.op_type in _INTEGER:
            integer[_INTEGER[node.op_type]] += 1
        elif node.op_type not in DATA_MOVEMENT:
            floats[_FLOAT.get(node.op_type, node.op_type)] += 1
    return KernelCounts(dict(integer), dict(floats))


def _compute_nodes(graph: Any) -> list[Any]:
    """Return the nodes of a graph without the int64 arithmetic on shapes."""
    import onnx

    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    return [node for node in graph.node if kinds.get(node.output[0]) != onnx.TensorProto.INT64]


def _layers_in_fp32(graph: Any, layers: Sequence[QuantizedLayer]) -> list[QuantizedLayer]:
    """Return the layers with a weight that no INT8 kernel reads."""
    # Optimization renames nodes, so that layers are recognized by the values of their weights.
    constants = _constants(graph)
    names = {name for node in graph.node if node.op_type in _INTEGER for name in node.input}
    read = {_key(constants[name]) for name in names & set(constants)}

    def is_read(weight: np.ndarray) -> bool:
        return _key(weight) in read or _key(weight.T) in read

    return [layer for layer in layers if not is_read(layer.weight.integers.numpy())]


def _ops_in_fp32(graph: Any, ops: Sequence[QuantizedOp]) -> list[QuantizedOp]:
    """Return the operators with output parameters that no INT8 kernel has."""
    constants = _constants(graph)
    outputs = set()
    for node in graph.node:
        at = _SCALES.get(node.op_type)
        if at is not None and len(node.input) > at + 1 and node.input[at]:  # without a scale, the output is FP32
            outputs.add(tuple(constants[name].item() for name in node.input[at : at + 2]))
    return [op for op in ops if (float(np.float32(op.qparams.scale)), op.qparams.zero_point) not in outputs]


def _constants(graph: Any) -> dict[str, np.ndarray]:
    import onnx

    return {constant.name: onnx.numpy_helper.to_array(constant) for constant in graph.initializer}


def _key(array: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    return array.shape, array.tobytes()
