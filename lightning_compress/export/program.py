"""Files that plain PyTorch runs: a program of ``torch.export``, with weights as bytes."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from lightning_compress.arguments import Arguments, as_arguments
from lightning_compress.atomic_files import written
from lightning_compress.export.batch_inputs import batched
from lightning_compress.export.capture import captured, exporting, lowered_or_float
from lightning_compress.export.lowered_parity import SplitModel
from lightning_compress.export.output_comparison import difference, median_seconds, one_thread, outputs_of_model
from lightning_compress.export.subprocess_check import run_in_subprocess
from lightning_compress.quantization.backend import Bias, QParams, Weight
from lightning_compress.quantization.insertion import is_quantized
from lightning_compress.quantization.lowering import Lowered

# What someone does who has the file and PyTorch; an import of this package fails there.
_ELSEWHERE = """
import sys
sys.modules["lightning_compress"] = None
import torch
from torch.utils._pytree import tree_leaves
args, kwargs = torch.load("inputs.pt")
with torch.no_grad():
    outputs = torch.export.load(sys.argv[1]).module()(*args, **kwargs)
torch.save([output for output in tree_leaves(outputs) if isinstance(output, torch.Tensor)], "outputs.pt")
"""


@dataclass(frozen=True)
class ProgramFile:
    """What was written, and what was measured of it.

    Attributes:
        path: The file.
        num_bytes: Its size.
        latency: Median seconds of a run on the example inputs, one thread, this CPU. Integers only make the file small:
            PyTorch computes with floats, and rounding them costs time.
        steps: Largest difference of each activation from the model's on identical inputs, in steps of its scale;
            ``None`` for a float file.
        difference: Largest difference of the outputs from the model's, over their largest value, in another process.
        left_in_float: Calls whose numbers are on no grid, as they were not to be quantized.
    """

    path: Path
    num_bytes: int
    latency: float
    steps: dict[str, int] | None
    difference: float
    left_in_float: tuple[str, ...]


def export_program(
    model: nn.Module, path: str | Path, example_inputs: Any, *, dynamic_batch: bool = True
) -> ProgramFile:
    """Writes a model as ``.pt2``, which ``torch.export.load(path).module()`` makes a model without this package.

    A model without quantizers is written with floats; one that has them with weights in bytes and rounded activations.

    Args:
        model: The model, which stays as it is.
        path: Where to write; what is there is replaced when the new file is complete.
        example_inputs: What it is called with: a tensor, a tuple, or a dict of keyword arguments.
        dynamic_batch: The first dimension of inputs may have any size.

    Raises:
        ValueError: If a quantizer has never seen a batch, if the model cannot be exported, if weights are not integers
            in the file, or if a layer differs from the model by more than a step.
        RuntimeError: If another process cannot run the file.
    """
    inputs = as_arguments(batched(example_inputs) if dynamic_batch else example_inputs)
    lowered = lowered_or_float(model, inputs, ProgramBackend(), unsigned=True)
    with exporting(model, "a program"):
        program = captured(lowered.model, inputs, dynamic_batch=dynamic_batch)
    with written(path) as partial:
        _save(program, partial)
        loaded = torch.export.load(partial)
        _check_integers(loaded, lowered)
        steps = _steps(model, inputs) if is_quantized(model) else None
        apart = difference(outputs_of_model(model, inputs), run_in_subprocess(_ELSEWHERE, partial, inputs))
        seconds = _latency(loaded.module(), as_arguments(example_inputs))
    return ProgramFile(Path(path), Path(path).stat().st_size, seconds, steps, apart, tuple(lowered.left_in_float))


class ProgramBackend:
    """Writes integers as arithmetic that every PyTorch knows."""

    opaque: frozenset[str] = frozenset()

    def activation(self, x: Tensor, grid: QParams) -> Tensor:
        """Rounds as the simulation does."""
        quant_min, quant_max = grid.quant_min - grid.zero_point, grid.quant_max - grid.zero_point
        return torch.clamp(torch.round(x * (1 / grid.scale)), quant_min, quant_max) * grid.scale

    def weight(self, weight: Weight) -> Tensor:
        """Multiplies bytes by the scale of their channel."""
        return weight.value()

    def bias(self, bias: Bias) -> Tensor:
        """Floats."""
        return bias.value


def _save(program: ExportedProgram, path: Path) -> None:
    """Writes a program without what it tells of its Python code, zipped: a small file is mostly text."""
    for node in program.graph.nodes:
        node.meta = {key: value for key, value in node.meta.items() if key in ("val", "tensor_meta")}
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    with zipfile.ZipFile(buffer) as stored, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name in stored.namelist():
            zipped.writestr(name, stored.read(name))


def _check_integers(program: ExportedProgram, lowered: Lowered) -> None:
    constants = [
        value for value in program.constants.values() if isinstance(value, Tensor) and value.dtype == torch.int8
    ]
    for layer in lowered.layers:
        if not any(torch.equal(layer.weight.integers, constant) for constant in constants):
            raise ValueError(f"The weights of {layer.name!r} are not integers in the file.")


def _steps(model: nn.Module, inputs: Arguments) -> dict[str, int]:
    cut = SplitModel(model, inputs, ProgramBackend(), unsigned=True)
    with torch.no_grad():
        return cut.steps(cut(*inputs, cut.feeds))


def _latency(model: nn.Module, inputs: Arguments) -> float:
    args, kwargs = inputs
    with torch.no_grad(), one_thread():
        return median_seconds(lambda: model(*args, **kwargs))
