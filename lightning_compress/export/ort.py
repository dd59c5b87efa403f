"""What ONNX Runtime makes of a file: which operators compute with integers, whether they are right, and how fast."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_compress.calls import Arguments
from lightning_compress.export.outputs import median_seconds, tensors
from lightning_compress.export.parity import checked, steps_apart
from lightning_compress.quantization.dialect import Grid
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


@dataclass(frozen=True)
class Parity:
    """How far a file is from the model it was made of.

    Attributes:
        steps: Largest difference of each activation's integers on identical inputs, in steps of its scale, by place.
        overflowing: Places that differ by more than a step in the kernels that ONNX Runtime uses on this CPU: without
            VNNI, its 16-bit sums of two products overflow where weights have 8 bits.
    """

    steps: dict[str, int]
    overflowing: tuple[str, ...]


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
        options = _options()
        options.optimized_model_filepath = f"{folder}/optimized.onnx"
        _session(path, options)
        graph = onnx.load(options.optimized_model_filepath).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    return Counter(node.op_type for node in graph.node if kinds.get(node.output[0]) != onnx.TensorProto.INT64)


def check_layers(
    path: Path, lowered: Lowered, simulated: Sequence[tuple[str, Tensor]], inputs: Arguments, *, unsigned: bool
) -> Parity:
    """Compares every activation's integers with the simulation's, each computed from the simulation's own inputs.

    Args:
        path: The file.
        lowered: What it was made of.
        simulated: Integers of every activation, in the order of the run.
        inputs: What the simulation was run on.
        unsigned: Whether the file's activations are uint8.

    Raises:
        ValueError: If one differs by more than a step in ONNX Runtime's precise kernels, which do not overflow.
    """
    import onnx

    model = onnx.load(path)
    grids = [grid for grid in lowered.grids if not grid.is_again]
    assert [name for name, _ in simulated] == [grid.name for grid in grids], "one run is like the other"
    feeds = feeds_of(model.graph.input, inputs)
    places = _cut(model, lowered.grids)
    expected = []
    for (_, integers), grid, place in zip(simulated, grids, places, strict=True):
        expected.append((integers + grid.offset).numpy().astype(np.uint8 if unsigned else np.int8))
        feeds[place.fed] = expected[-1]
    serialized, made, names = model.SerializeToString(), [place.made for place in places], [grid.name for grid in grids]

    def steps(*, precise: bool) -> dict[str, int]:
        if not made:  # to ONNX Runtime, no outputs are all outputs
            return {}
        got = _session(serialized, _options(precise=precise)).run(made, feeds)
        return steps_apart(names, *([torch.from_numpy(array) for array in arrays] for arrays in (expected, got)))

    overflowing = (name for name, number in steps(precise=False).items() if number > 1)
    return Parity(checked(steps(precise=True)), tuple(overflowing))


def outputs_of(path: Path, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """What the file computes of the arguments."""
    runtime = session(path)
    return [torch.from_numpy(array) for array in runtime.run(None, feeds_of(runtime.get_inputs(), (args, kwargs)))]


def latency(path: Path, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """Median seconds of a run with one thread, after a warm-up."""
    runtime = session(path)
    feeds = feeds_of(runtime.get_inputs(), (args, kwargs))
    return median_seconds(lambda: runtime.run(None, feeds))


@dataclass(frozen=True)
class _Place:
    """A quantized tensor where the graph is cut."""

    made: str
    fed: str


def _cut(model: Any, grids: Sequence[Grid]) -> list[_Place]:
    """Cuts a graph at each quantized tensor: what is made there is given out, and what is read there is fed in."""
    import onnx

    graph, places = model.graph, dict[str, _Place]()
    nodes = _nodes(graph, grids)
    for node, grid in zip(nodes, grids, strict=True):
        if grid.is_again or node.output[0] in places:
            continue
        made = node.output[0]
        clip = next((n for n in graph.node if n.op_type == "Clip" and n.input[0] == made), None)
        made = clip.output[0] if clip is not None else made
        place = _Place(made, f"{made}_fed")
        for reader in graph.node:
            for i, name in enumerate(reader.input):
                if name == made:
                    reader.input[i] = place.fed
        kind = next(i.data_type for i in graph.initializer if i.name == node.input[2])
        graph.input.append(onnx.helper.make_tensor_value_info(place.fed, kind, None))
        graph.output.append(onnx.helper.make_tensor_value_info(place.made, kind, None))
        places[node.output[0]] = place
    del graph.value_info[:]
    return [places[node.output[0]] for node, grid in zip(nodes, grids, strict=True) if not grid.is_again]


def _nodes(graph: Any, grids: Sequence[Grid]) -> list[Any]:
    """The node of each grid; where a tensor is quantized twice alike, the exporter has made one node of two."""
    import onnx

    constants = {constant.name: onnx.numpy_helper.to_array(constant) for constant in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    written = [tuple(constants[name].item() for name in node.input[1:]) for node in nodes]
    wanted = [(float(np.float32(grid.scale)), grid.zero_point) for grid in grids]
    chosen: list[int] = []
    again: list[bool] = []
    may_be_again = True
    while len(chosen) < len(grids):
        i = len(chosen)
        reads = [chosen[k] for k in range(i) if grids[k].is_read and wanted[k] == wanted[i]]
        new = i - sum(again)
        if may_be_again and grids[i].is_read and reads and sum(again) < len(grids) - len(nodes):
            again.append(True)
            chosen.append(reads[-1])
        elif new < len(nodes) and wanted[i] == written[new]:
            again.append(False)
            chosen.append(new)
        else:  # back to the last that was taken for the same as another, by the constants that they share
            while again and not again[-1]:
                again.pop()
                chosen.pop()
            assert again, f"the file does not quantize what the model does, such as {grids[i].name!r}"
            again.pop()
            chosen.pop()
            may_be_again = False
            continue
        may_be_again = True
    return [nodes[k] for k in chosen]


def feeds_of(values: Iterable[Any], inputs: Arguments) -> dict[str, np.ndarray]:
    """Arrays by the names of a graph's or a session's inputs, in their order."""
    arrays = [tensor.detach().cpu().numpy() for tensor in tensors(inputs)]
    return dict(zip([value.name for value in values], arrays, strict=True))


def _options(*, precise: bool = False) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if precise:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def session(path: Path, *, precise: bool = False) -> Any:
    """ONNX Runtime's session of a file: one thread, and kernels that do not overflow if they are asked for."""
    return _session(path, _options(precise=precise))


def _session(model: Path | bytes, options: Any) -> Any:
    import onnxruntime

    given = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
