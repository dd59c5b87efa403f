"""Which operators of a file ONNX Runtime computes with integers, and which with floats."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_compress.export.onnx.runtime import session
from lightning_compress.quantization.backend import QuantizedLayer, QuantizedOp
from lightning_compress.quantization.lowering import Lowered
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
_NO_WORK = {
    "QuantizeLinear", "DequantizeLinear", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Shape",
    "Constant", "ReorderInput", "ReorderOutput", "Cast", "Gather", "Slice", "Split", "Identity", "Clip", "Pad",
    "Expand", "MaxPool", "NhwcMaxPool",
}  # fmt: skip
# Where operators that round their results have the result's scale among their inputs, and its zero point behind it.
_SCALES = {
    "QLinearConv": 6, "QGemm": 7, "QLinearMatMul": 6, "QLinearAdd": 6, "QLinearMul": 6, "QLinearConcat": 0,
    "QLinearAveragePool": 3, "QLinearGlobalAveragePool": 3, "QLinearReduceMean": 3, "QLinearSigmoid": 3,
    "QLinearLeakyRelu": 3, "QLinearSoftmax": 3,
}  # fmt: skip
_LAYERS = {"conv": ("conv1d", "conv2d", "conv3d"), "linear": ("linear",)}


@dataclass(frozen=True)
class KernelCounts:
    """Operators of a file as ONNX Runtime runs it.

    Attributes:
        integer: Number of operators on integers, by kind.
        float: Number of operators on floats, by kind.
    """

    integer: dict[str, int]
    float: dict[str, int]

    def __str__(self) -> str:
        def listed(counts: dict[str, int]) -> str:
            return ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items())) or "none"

        return f"integer: {listed(self.integer)}; float: {listed(self.float)}"


def optimized(path: Path) -> Any:
    """The graph that ONNX Runtime makes of a file on this CPU, and runs."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "optimized.onnx"
        session(path, optimized=written)
        return onnx.load(written).graph


def check_integers(graph: Any, lowered: Lowered) -> KernelCounts:
    """Counts the operators of an optimized graph.

    Raises:
        ValueError: If fewer convolutions, linear layers or additions compute with integers than were to.
    """
    counted = _counted(graph)
    for kind, functions in _LAYERS.items():
        layers = [layer for layer in lowered.layers if layer.is_integer and layer.function in functions]
        if (number := counted.integer.get(kind, 0)) < len(layers):
            names = [layer.name for layer in _unread(graph, layers) or layers]
            which = f"{len(layers) - number} of {len(layers)} {kind} layers"
            raise _stayed(which, names, counted, f"targets=Targets(exclude=({names[0]!r},))")
    additions = [other for other in lowered.others if other.function == "add"]
    if missing := _unmade(graph, additions):
        which, names = f"{len(missing)} of {len(additions)} additions", [other.name for other in missing]
        raise _stayed(which, names, counted, f"activations={{{missing[0].module!r}: None, '*': Int(8)}}")
    return counted


def without_integers(graph: Any, lowered: Lowered) -> tuple[list[str], list[str]]:
    """Calls that ONNX Runtime computes with floats in spite of their quantizers, as it has no integer kernels for them.

    Returns:
        The names of those that read a weight, and of the others.
    """
    kernels = {function for functions in _LAYERS.values() for function in functions}
    layers = _unread(graph, [layer for layer in lowered.layers if layer.function not in kernels])
    names = [f"{layer.name}.{layer.function}".lstrip(".") for layer in layers]
    return names, [other.name for other in _unmade(graph, lowered.others)]


def _stayed(which: str, names: list[str], counted: KernelCounts, without: str) -> ValueError:
    return ValueError(
        f"ONNX Runtime computes {which} with floats in spite of their quantizers: {shorten(names)} ({counted}); "
        f"quantize without them, as {without} does."
    )


def _counted(graph: Any) -> KernelCounts:
    integer, floats = Counter[str](), Counter[str]()
    for node in _computing(graph):
        if node.op_type in _INTEGER:
            integer[_INTEGER[node.op_type]] += 1
        elif node.op_type not in _NO_WORK:
            floats[_FLOAT.get(node.op_type, node.op_type)] += 1
    return KernelCounts(dict(integer), dict(floats))


def _computing(graph: Any) -> list[Any]:
    """All nodes but arithmetic on shapes."""
    import onnx

    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    return [node for node in graph.node if kinds.get(node.output[0]) != onnx.TensorProto.INT64]


def _unread(graph: Any, layers: Sequence[QuantizedLayer]) -> list[QuantizedLayer]:
    """Layers whose weights no integer operator reads."""
    constants = _constants(graph)
    names = {name for node in graph.node if node.op_type in _INTEGER for name in node.input}
    read = {_key(constants[name]) for name in names & set(constants)}

    def is_read(weight: np.ndarray) -> bool:
        return _key(weight) in read or _key(weight.T) in read

    return [layer for layer in layers if not is_read(layer.weight.integers.numpy())]


def _unmade(graph: Any, others: Sequence[QuantizedOp]) -> list[QuantizedOp]:
    """Calls whose results are on grids that no integer operator makes."""
    constants = _constants(graph)
    made = set()
    for node in graph.node:
        at = _SCALES.get(node.op_type)
        if at is not None and len(node.input) > at + 1 and node.input[at]:  # else the result is floats
            made.add(tuple(constants[name].item() for name in node.input[at : at + 2]))
    return [other for other in others if (float(np.float32(other.grid.scale)), other.grid.zero_point) not in made]


def _constants(graph: Any) -> dict[str, np.ndarray]:
    import onnx

    return {constant.name: onnx.numpy_helper.to_array(constant) for constant in graph.initializer}


def _key(array: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    return array.shape, array.tobytes()
