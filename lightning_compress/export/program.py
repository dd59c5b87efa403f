"""Export to programs of ``torch.export``, with INT8 weights, for runtimes that have only PyTorch."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from lightning_compress.arguments import Arguments, as_arguments
from lightning_compress.atomic_files import atomic_write
from lightning_compress.export.batch_inputs import with_two_samples
from lightning_compress.export.capture import capture, exporting, lower_for, run_copy
from lightning_compress.export.exported_file import ExportedFile
from lightning_compress.export.lowered_parity import SplitModel, compare_segments
from lightning_compress.export.output_comparison import relative_difference, tensor_leaves
from lightning_compress.export.subprocess_check import run_in_subprocess
from lightning_compress.profiling import latency_quartiles
from lightning_compress.quantization.backend_operators import BackendOperators, Bias, QParams, Weight
from lightning_compress.quantization.lowering import LoweredModel

# The check runs where this package cannot be imported, as for a user who has only the file and PyTorch.
_SCRIPT = """
import sys
sys.modules["lightning_compress"] = None
import torch
from torch.utils._pytree import tree_leaves
args, kwargs = torch.load("inputs.pt")
with torch.no_grad():
    outputs = torch.export.load(sys.argv[1]).module()(*args, **kwargs)
torch.save([output for output in tree_leaves(outputs) if isinstance(output, torch.Tensor)], "outputs.pt")
"""


@dataclass(frozen=True, kw_only=True)
class ProgramFile(ExportedFile):
    """A ``.pt2`` file and its measurements.

    PyTorch stores the weights as INT8 and computes in FP32: the file is small, but not faster.
    """


def export_program(
    model: nn.Module, path: str | Path, example_inputs: Any, *, dynamic_batch: bool = True
) -> ProgramFile:
    """Export a model as ``.pt2``, which ``torch.export.load(path).module()`` loads without this package.

    A model with quantizers is written with INT8 weights and fake-quantized activations, any other in FP32. The file is
    run in a separate process and compared with the model.

    Args:
        model: The model; it is not modified.
        path: Path of the file; an existing file is replaced once the new one is complete.
        example_inputs: Inputs of the model: a tensor, a tuple, or a dict of keyword arguments.
        dynamic_batch: Let the first dimension of inputs have any size.

    Returns:
        The file and its measurements.

    Raises:
        ValueError: If a quantizer has not observed a batch, if the model cannot be exported, if weights are not INT8
            in the file, or if an activation differs from the model's by more than 1 LSB.
        RuntimeError: If a separate process cannot run the file.

    Example::

        >>> import tempfile
        >>> import lightning_compress as lc
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = lc.export_program(nn.Linear(4, 2), f"{folder}/model.pt2", torch.ones(1, 4))
        ...     torch.export.load(file.path).module()(torch.ones(3, 4)).shape
        torch.Size([3, 2])
    """
    operators, inputs = (
        ProgramOperators(),
        as_arguments(with_two_samples(example_inputs) if dynamic_batch else example_inputs),
    )
    simulation = run_copy(model, inputs)
    lowered = lower_for(simulation, operators)
    with exporting(model, operators.name):
        program = capture(lowered.model, inputs, dynamic_batch=dynamic_batch)
    with atomic_write(path) as partial:
        _save(program, partial)
        loaded = torch.export.load(partial)
        _check_integers(loaded, lowered)
        steps = compare_segments(simulation, operators, _run_split)
        difference = relative_difference(tensor_leaves(simulation.output), run_in_subprocess(_SCRIPT, partial, inputs))
        seconds = _latency(loaded.module(), as_arguments(example_inputs))
    return ProgramFile(
        path=Path(path),
        num_bytes=Path(path).stat().st_size,
        latency_quartiles=seconds,
        steps=steps,
        difference=difference,
        unquantized_ops=tuple(lowered.unquantized_ops),
    )


class ProgramOperators(BackendOperators):
    """Quantization as arithmetic of core operators, which every version of PyTorch loads."""

    name = "an ExportedProgram"

    def activation(self, x: Tensor, qparams: QParams) -> Tensor:
        """Fake-quantize as the simulation does, around a zero point of 0."""
        quant_min, quant_max = qparams.quant_min - qparams.zero_point, qparams.quant_max - qparams.zero_point
        return torch.clamp(torch.round(x * (1 / qparams.scale)), quant_min, quant_max) * qparams.scale

    def weight(self, weight: Weight) -> Tensor:
        """Multiply the INT8 constant by the scale of each channel."""
        return weight.dequantize()

    def bias(self, bias: Bias) -> Tensor:
        """Return the FP32 value."""
        return bias.value


def _save(program: ExportedProgram, path: Path) -> None:
    # Most of a small file is text: the Python stack of every node is dropped, and the archive compressed.
    for node in program.graph.nodes:
        node.meta = {key: value for key, value in node.meta.items() if key in ("val", "tensor_meta")}
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    with zipfile.ZipFile(buffer) as stored, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name in stored.namelist():
            zipped.writestr(name, stored.read(name))


def _check_integers(program: ExportedProgram, lowered: LoweredModel) -> None:
    # The exporter may fold a constant expression: then the file would hold FP32 weights without an error.
    constants = [
        value for value in program.constants.values() if isinstance(value, Tensor) and value.dtype == torch.int8
    ]
    for layer in lowered.layers:
        if not any(torch.equal(layer.weight.integers, constant) for constant in constants):
            raise ValueError(f"The weights of {layer.name!r} are not stored as INT8 in the file.")


def _run_split(split: SplitModel, arguments: Arguments) -> Sequence[Tensor]:
    args, _ = arguments
    with torch.no_grad():
        return split(*args)


def _latency(model: nn.Module, inputs: Arguments) -> tuple[float, float, float]:
    args, kwargs = inputs
    with torch.no_grad():
        return latency_quartiles(lambda: model(*args, **kwargs))
