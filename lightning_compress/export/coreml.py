"""Export to Core ML, which computes on the CPU, GPU and Neural Engine of Apple's devices."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.export import ExportedProgram

from lightning_compress.arguments import as_arguments
from lightning_compress.atomic_files import atomic_directory
from lightning_compress.export.batch_inputs import with_two_samples
from lightning_compress.export.capture import capture, exporting, lower_for, run_copy
from lightning_compress.export.coreml_operators import (
    CoremlOperators,
    integer_type,
    register_translations,
    shaped_scale,
)
from lightning_compress.export.exported_file import ExportedFile
from lightning_compress.export.output_comparison import output_names
from lightning_compress.export.requirements import require
from lightning_compress.quantization.lowering import LoweredModel

_SUFFIX = ".mlpackage"
_HALF_SUFFIX = "_cast_fp16"  # of operators that coremltools converts to FP16
_FP16_ERROR = 2**-8  # largest relative error of a scale


@dataclass(frozen=True, kw_only=True)
class CoremlFile(ExportedFile):
    """An ``.mlpackage`` and what was read back from it; it runs on a Mac only, so that nothing was measured.

    Attributes:
        compressed: Types of compressed weights by layer: ``"int4"``, ``"int8"``, or ``"4-bit palette"``, after which
            the number of palettes follows if there are several.
    """

    compressed: Mapping[str, str]


def export_coreml(
    model: nn.Module, path: str | Path, example_inputs: Any, *, dynamic_batch: bool = True, half: bool = True
) -> CoremlFile:
    """Export a model to Core ML, read the file back, and compare its weights with the model's bit by bit.

    Weights of a model with quantizers are stored as INT4, or as INT8 where their values need more bits
    (``constexpr_blockwise_shift_scale``), and quantized activations as ``quantize`` and ``dequantize``. In a model
    without quantizers, weights with few values, such as those of :class:`WeightClustering`, are stored as palettes
    (``constexpr_lut_to_dense``), one for the tensor or for each group of output channels, whichever is smaller; all
    other weights are floating-point numbers. The file is for iOS 18 and macOS 15.

    Prediction needs a Mac: elsewhere the file is written and inspected, and latency and outputs are not measured.
    Compare the outputs there, with ``coremltools.models.MLModel(path).predict``.

    Args:
        model: The model; it is not modified.
        path: Path of the package, which ends in ``.mlpackage``; an existing one is replaced once the new one is
            complete.
        example_inputs: Inputs of the model: a tensor, a tuple, or a dict of keyword arguments.
        dynamic_batch: Let the first dimension of inputs have any size.
        half: Compute in FP16, as the Neural Engine does, with scales, palettes and other weights rounded to FP16;
            ``False`` for FP32.

    Returns:
        The file, and the types of its compressed weights.

    Raises:
        ImportError: If the packages of the extra ``coreml`` are not installed.
        ValueError: If the path has another suffix, if a quantizer has not observed a batch, if the model cannot be
            converted, if FP16 does not have the scale of a weight, or if a weight in the file is not the model's.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> import lightning_compress as lc
        >>> images = torch.rand(8, 3, 32, 32)
        >>> model = lc.calibrate(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), [images])
        >>> lc.export_coreml(model, "model.mlpackage", images[:1]).compressed  # doctest: +SKIP
        {'0': 'int8'}
    """
    require("coremltools", extra="coreml")
    if Path(path).suffix != _SUFFIX:
        raise ValueError(f"path={str(path)!r} must end in {_SUFFIX}, as Core ML requires it.")
    operators = CoremlOperators()
    inputs = as_arguments(with_two_samples(example_inputs) if dynamic_batch else example_inputs)
    simulation = run_copy(model, inputs)
    lowered = lower_for(simulation, operators)
    if half:
        _check_scales(lowered)

    def captured() -> ExportedProgram:
        return capture(lowered.model, inputs, dynamic_batch=dynamic_batch)

    with atomic_directory(path) as partial:
        with exporting(model, operators.name, captured):
            program = captured()
            operators.palettize_(program)
            _convert(program, operators, output_names(simulation.output), half=half).save(str(partial))
            # Positions of operators in the captured graph, for debugging in ExecuTorch.
            (partial / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)
            stored = _stored_weights(partial)
        _check_weights(operators, stored, half=half)
    return CoremlFile(
        path=Path(path),
        num_bytes=sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file()),
        latency_quartiles=None,
        steps=None,
        difference=None,
        unquantized_ops=tuple(lowered.unquantized_ops),
        compressed={operators.layers[name]: kind for name, kind in _types(operators).items()},
    )


def _check_scales(lowered: LoweredModel) -> None:
    """Check that FP16 has the scales of weights."""
    for layer in lowered.layers:
        scale = layer.weight.scale
        if ((scale.half().float() - scale).abs() > _FP16_ERROR * scale).any():
            raise ValueError(
                f"The weights of {layer.name!r} have scales down to {float(scale.min()):.1e}, which FP16 does not "
                "have: use half=False."
            )


def _convert(program: ExportedProgram, operators: CoremlOperators, names: list[str] | None, *, half: bool) -> Any:
    import coremltools

    register_translations(operators.palettes)
    precision = coremltools.precision
    with redirect_stdout(io.StringIO()):
        return coremltools.convert(
            program.run_decompositions({}),
            convert_to="mlprogram",
            minimum_deployment_target=coremltools.target.iOS18,
            compute_precision=precision.FLOAT16 if half else precision.FLOAT32,
            outputs=None if names is None else [coremltools.TensorType(name=name) for name in names],
            skip_model_load=True,
        )


def _stored_weights(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Return the constants of the compressed weights in a file, by operator and argument."""
    import coremltools
    from coremltools.converters.mil.frontend.milproto import load as milproto

    model = coremltools.models.MLModel(str(path), skip_model_load=True)
    spec = model.get_spec()
    program = milproto.load(spec, spec.specificationVersion, file_weights_dir=model.weights_dir)
    pending = [*program.functions.values()]
    found: dict[str, dict[str, np.ndarray]] = {}
    while pending:
        for operator in pending.pop().operations:
            pending += operator.blocks
            if operator.op_type.startswith("constexpr"):
                constants = {argument: value.val for argument, value in operator.inputs.items() if value is not None}
                found[operator.name.removesuffix(_HALF_SUFFIX)] = constants
    return found


def _check_weights(operators: CoremlOperators, stored: Mapping[str, Mapping[str, np.ndarray]], *, half: bool) -> None:
    """Check that the constants in the file are those of the model."""
    for name, expected in _expected_weights(operators, half=half).items():
        # Equal weights of several layers are stored once, under the name of one of them.
        candidates = [stored[name]] if name in stored else stored.values()
        if not any(_holds(given, expected) for given in candidates):
            raise ValueError(
                f"The weights of {operators.layers[name]!r} in the file are not the model's: report a bug, or export "
                "lc.float_copy(model)."
            )


def _expected_weights(operators: CoremlOperators, *, half: bool) -> dict[str, dict[str, np.ndarray]]:
    dtype = np.float16 if half else np.float32
    integers = {
        name: {"data": weight.integers.numpy(), "scale": shaped_scale(weight).numpy().astype(dtype)}
        for name, weight in operators.weights.items()
    }
    palettes = {
        name: {"indices": palette.indices.numpy(), "lut": palette.table.numpy().astype(dtype)}
        for name, palette in operators.palettes.items()
    }
    return integers | palettes


def _holds(given: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> bool:
    return all(argument in given and _equal(array, given[argument]) for argument, array in expected.items())


def _equal(expected: np.ndarray, actual: np.ndarray) -> bool:
    return expected.shape == actual.shape and expected.tobytes() == actual.astype(actual.dtype.type).tobytes()


def _types(operators: CoremlOperators) -> dict[str, str]:
    found = {name: integer_type(weight.integers.numpy()) for name, weight in operators.weights.items()}
    for name, palette in operators.palettes.items():
        number = len(palette.table)
        found[name] = f"{palette.bits}-bit palette{f' ({number} palettes)' if number > 1 else ''}"
    return found
