"""Translation of a lowered model to an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from lightning_compress.arguments import Arguments
from lightning_compress.export.capture import capture, exporting, lower_for, run_copy
from lightning_compress.export.onnx.decomposition import skip_needless_decomposition
from lightning_compress.export.onnx.operators import OnnxOperators
from lightning_compress.export.onnx.simplification import simplify
from lightning_compress.export.output_comparison import output_names
from lightning_compress.quantization.accumulator_range import limit_pair_sums_
from lightning_compress.quantization.lowering import LoweredModel, round_biases_
from lightning_compress.quantization.simulation import Simulation


def prepare(
    model: nn.Module, inputs: Arguments, operators: OnnxOperators, *, reduce_range: bool
) -> tuple[Simulation, Simulation, LoweredModel]:
    """Run and lower a model.

    Args:
        model: The model; it is not modified.
        inputs: Its positional and keyword arguments.
        operators: Operators of the quantized tensors.
        reduce_range: Limit the weights, as of :func:`export_onnx`.

    Returns:
        The run of the given model, a run with the biases and the range of weights that the file has, and the lowered
        model.
    """
    given = simulation = run_copy(model, inputs)
    is_limited = reduce_range and limit_pair_sums_(given)
    lowered = lower_for(given, operators)
    # Biases are multiples of the scales that the weights have by now.
    if round_biases_(given.model, lowered.layers) or is_limited:
        simulation = given.again()
    return given, simulation, lowered


def translate(model: nn.Module, simulation: Simulation, path: Path, operators: OnnxOperators, **dynamic: bool) -> None:
    """Write a lowered model as an ONNX file.

    Args:
        model: The model.
        simulation: Run of it on positional and keyword arguments.
        path: Path of the file.
        operators: Operators of the quantized tensors.
        **dynamic: ``dynamic_batch`` and ``dynamic_size``, as of :func:`export_onnx`.

    Raises:
        ValueError: If the model cannot be translated.
    """

    def captured() -> ExportedProgram:
        return capture(model, simulation.inputs, **dynamic)

    with exporting(model, operators.name, captured):
        program = captured()
        skip_needless_decomposition(program)
        onnx_program = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=operators.opset,
            output_names=output_names(simulation.output),
            custom_translation_table=operators.translations(),
            optimize=False,
            verbose=False,
        )
        assert onnx_program is not None
        operators.dequantize_constants(program, onnx_program.model)
        simplify(onnx_program.model)
    _save(onnx_program.model_proto, path)
    _check_opset(path, operators.opset)
    if dynamic["dynamic_size"]:
        _check_dynamic_size(path)


def _check_opset(path: Path, opset: int) -> None:
    """Check that the exporter has converted its operators: it may keep a newer version without an error."""
    import onnx

    written = next(each.version for each in onnx.load(path).opset_import if each.domain in ("", "ai.onnx"))
    if written != opset:
        raise ValueError(
            f"The model could not be written with opset={opset}: its operators need opset {written}; pass "
            f"opset={written}, or another one of at least 18."
        )


def _check_dynamic_size(path: Path) -> None:
    """Check that an input has a dynamic dimension apart from the batch: the exporter fixes them without an error."""
    import onnx

    inputs = onnx.load(path).graph.input
    if not any(dim.dim_param for each in inputs for dim in each.type.tensor_type.shape.dim[1:]):
        raise ValueError(
            "The model fixes the size of its inputs, as by a flattening before a linear layer: use dynamic_size=False."
        )


def _save(model: Any, path: Path) -> None:
    import onnx

    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param.isdigit():  # a dimension that the model has fixed
                dim.dim_value = int(dim.dim_param)
    onnx.save(model, path)
