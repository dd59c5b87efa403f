"""Comparison of an ONNX file with the simulation, one quantized tensor at a time, on identical inputs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_compress.arguments import reason
from lightning_compress.export.lowered_parity import check_lsb_errors, max_lsb_errors
from lightning_compress.export.onnx.runtime import feeds_of, is_of_runtime, session
from lightning_compress.quantization.backend_operators import QParams
from lightning_compress.quantization.lowering import LoweredModel
from lightning_compress.quantization.simulation import Simulation


@dataclass(frozen=True)
class Parity:
    """Differences of a file from the model.

    Attributes:
        steps: Largest difference of each activation's integers on identical inputs in LSB, by name.
        overflowing: Activations that differ by more than 1 LSB in ONNX Runtime's default kernels on this CPU: without
            VNNI, the 16-bit sums of two products overflow with 8-bit weights.
    """

    steps: dict[str, int]
    overflowing: tuple[str, ...]


class SplitFile:
    """A file that is split at each quantized activation, as :class:`SplitModel` is.

    Args:
        path: The file.
        lowered: The lowered model that was written to the file.
        simulation: Run of the model on positional and keyword arguments.

    Attributes:
        serialized: The split file.
        outputs: Names of the tensors that its segments compute.
        feeds: Inputs by name: those of the model, and the integers of the simulation.
    """

    def __init__(self, path: Path, lowered: LoweredModel, simulation: Simulation) -> None:
        import onnx

        model = onnx.load(path)
        simulated = simulation.integers
        all_qparams = [qparams for qparams in lowered.activations if not qparams.is_requantized]
        self._names = [qparams.name for qparams in all_qparams]
        assert [name for name, _ in simulated] == self._names, "both runs quantize alike"
        feeds = feeds_of(model.graph.input, simulation.inputs)
        kinds = {i.name: onnx.helper.tensor_dtype_to_np_dtype(i.data_type) for i in model.graph.initializer}
        dtype = next((kinds[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"), np.uint8)
        self._expected = [
            (integers + qparams.offset).numpy().astype(dtype)
            for (_, integers), qparams in zip(simulated, all_qparams, strict=True)
        ]
        points = _split(model, lowered.activations)
        self.feeds = feeds | {point.fed: array for point, array in zip(points, self._expected, strict=True)}
        # OpenVINO needs the number of dimensions of its inputs.
        for value in model.graph.input:
            value.CopyFrom(
                onnx.helper.make_tensor_value_info(
                    value.name, value.type.tensor_type.elem_type, self.feeds[value.name].shape
                )
            )
        self.serialized, self.outputs = model.SerializeToString(), [point.computed for point in points]

    def lsb_errors(self, computed: Sequence[np.ndarray]) -> dict[str, int]:
        """Return the largest difference of each activation from the simulation, in LSB, by name."""
        integers = ([torch.from_numpy(array) for array in arrays] for arrays in (self._expected, computed))
        return max_lsb_errors(self._names, *integers)


def check_parity(split: SplitFile) -> Parity:
    """Compare the integers of every activation with those of the simulation, computed from the simulation's inputs.

    Raises:
        ValueError: If one differs by more than 1 LSB in ONNX Runtime's precise kernels, which do not overflow.
    """

    def lsb_errors(*, precise: bool) -> dict[str, int]:
        if not split.outputs:  # ONNX Runtime takes an empty list for all outputs
            return {}
        return split.lsb_errors(session(split.serialized, precise=precise).run(split.outputs, split.feeds))

    try:
        errors = lsb_errors(precise=False)
    except Exception as error:
        if not is_of_runtime(error):
            raise
        warnings.warn(
            f"The activations of the file could not be compared one by one ({reason(error)}), as where shapes "
            "depend on values; compare the outputs on data.",
            stacklevel=3,
        )
        return Parity({}, ())
    overflowing = tuple(name for name, number in errors.items() if number > 1)
    return Parity(check_lsb_errors(lsb_errors(precise=True) if overflowing else errors), overflowing)


@dataclass(frozen=True)
class _SplitPoint:
    """A quantized tensor at which the graph is split.

    Attributes:
        computed: Name of the tensor, an output of the split graph.
        fed: Name of the input that its readers have instead.
    """

    computed: str
    fed: str


def _split(model: Any, all_qparams: Sequence[QParams]) -> list[_SplitPoint]:
    """Split a graph in place at each quantized tensor, which becomes an output, and an input of its readers."""
    import onnx

    graph, points = model.graph, dict[str, _SplitPoint]()
    nodes = _quantize_nodes(graph, all_qparams)
    for node, qparams in zip(nodes, all_qparams, strict=True):
        if qparams.is_requantized or node.output[0] in points:
            continue
        # With fewer than 8 bits, the simulated integers are those after the clip.
        clip = next((n for n in graph.node if n.op_type == "Clip" and n.input[0] == node.output[0]), None)
        computed = clip.output[0] if clip is not None else node.output[0]
        kind = next(i.data_type for i in graph.initializer if i.name == node.input[2])
        point = _SplitPoint(computed, f"{computed}_fed")
        for reader in graph.node:
            for i, name in enumerate(reader.input):
                if name == computed:
                    reader.input[i] = point.fed
        graph.input.append(onnx.helper.make_tensor_value_info(point.fed, kind, None))
        graph.output.append(onnx.helper.make_tensor_value_info(point.computed, kind, None))
        points[node.output[0]] = point
    # The recorded shapes are those of the whole graph; ONNX Runtime infers those of the split one.
    del graph.value_info[:]
    return [
        points[node.output[0]] for node, qparams in zip(nodes, all_qparams, strict=True) if not qparams.is_requantized
    ]


def _quantize_nodes(graph: Any, all_qparams: Sequence[QParams]) -> list[Any]:
    """Return the QuantizeLinear node of each quantized activation; both stand in the order of the run."""
    import onnx

    constants = {constant.name: onnx.numpy_helper.to_array(constant) for constant in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    stored = [tuple(constants[name].item() for name in node.input[1:]) for node in nodes]
    wanted = [(float(np.float32(qparams.scale)), qparams.zero_point) for qparams in all_qparams]
    assert stored == wanted, "the QuantizeLinear nodes of the file are not those of the model"
    return nodes
