"""Which operators of a file ONNX Runtime computes with integers, and which with floats."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lightning_compress.export.ort import session
from lightning_compress.quantization.lowering import Lowered

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
_NO_WORK = {
    "QuantizeLinear", "DequantizeLinear", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Shape",
    "Constant", "ReorderInput", "ReorderOutput", "Cast", "Gather", "Slice", "Split", "Identity", "Clip", "Pad",
    "Expand", "MaxPool", "NhwcMaxPool",
}  # fmt: skip


@dataclass(frozen=True)
class Integers:
    """Operators of a file as ONNX Runtime runs it.

    Attributes:
        integer: Numbers of operators on integers, by kind.
        float: Numbers of operators on floats, by kind.
    """

    integer: dict[str, int]
    float: dict[str, int]

    def __str__(self) -> str:
        def listed(counts: dict[str, int]) -> str:
            return ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items())) or "none"

        return f"integer: {listed(self.integer)}; float: {listed(self.float)}"


def check_integers(path: Path, lowered: Lowered) -> Integers:
    """Counts operators in the graph that ONNX Runtime makes of the file.

    Raises:
        ValueError: If fewer convolutions or linear layers compute with integers than were to.
    """
    counts = operators(path)
    integer, floats = Counter[str](), Counter[str]()
    for kind, number in counts.items():
        if kind in _INTEGER:
            integer[_INTEGER[kind]] += number
        elif kind not in _NO_WORK:
            floats[_FLOAT.get(kind, kind)] += number
    with_inputs = [layer for layer in lowered.layers if layer.input is not None]
    for kind, functions in {"conv": ("conv1d", "conv2d", "conv3d"), "linear": ("linear",)}.items():
        wanted = [layer.name for layer in with_inputs if layer.function in functions]
        if integer[kind] < len(wanted):
            raise ValueError(
                f"ONNX Runtime computes {len(wanted) - integer[kind]} of {len(wanted)} {kind} layers with floats in "
                f"spite of their quantizers ({Integers(dict(integer), dict(floats))})."
            )
    return Integers(dict(integer), dict(floats))


def operators(path: Path) -> Counter[str]:
    """Kinds of the operators that ONNX Runtime runs for a file on this CPU, but for arithmetic on shapes."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        session(path, optimized=optimized)
        graph = onnx.load(optimized).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    return Counter(node.op_type for node in graph.node if kinds.get(node.output[0]) != onnx.TensorProto.INT64)
