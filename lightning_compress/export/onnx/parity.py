"""Whether a file is right: cut at each quantized tensor, ONNX Runtime computes it piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_compress.arguments import Arguments
from lightning_compress.export.lowered_parity import checked, steps_apart
from lightning_compress.export.onnx.runtime import feeds_of, session
from lightning_compress.quantization.backend import QParams
from lightning_compress.quantization.lowering import Lowered


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
        got = session(serialized, precise=precise).run(made, feeds)
        return steps_apart(names, *([torch.from_numpy(array) for array in arrays] for arrays in (expected, got)))

    overflowing = (name for name, number in steps(precise=False).items() if number > 1)
    return Parity(checked(steps(precise=True)), tuple(overflowing))


@dataclass(frozen=True)
class _CutPoint:
    """A quantized tensor where the graph is cut."""

    made: str
    fed: str


def _cut(model: Any, grids: Sequence[QParams]) -> list[_CutPoint]:
    """Cuts a graph at each quantized tensor: what is made there is given out, and what is read there is fed in."""
    import onnx

    graph, places = model.graph, dict[str, _CutPoint]()
    nodes = _nodes(graph, grids)
    for node, grid in zip(nodes, grids, strict=True):
        if grid.is_again or node.output[0] in places:
            continue
        made = node.output[0]
        clip = next((n for n in graph.node if n.op_type == "Clip" and n.input[0] == made), None)
        made = clip.output[0] if clip is not None else made
        place = _CutPoint(made, f"{made}_fed")
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


def _nodes(graph: Any, grids: Sequence[QParams]) -> list[Any]:
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
