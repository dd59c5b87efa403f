"""Export to ONNX with INT8 weights and activations, as QuantizeLinear and DequantizeLinear nodes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lightning_compress.arguments import as_arguments
from lightning_compress.atomic_files import atomic_write
from lightning_compress.export.batch_inputs import with_two_samples
from lightning_compress.export.exported_file import ExportedFile
from lightning_compress.export.failures import running
from lightning_compress.export.onnx.half_precision import convert_to_half
from lightning_compress.export.onnx.kernels import (
    KernelCounts,
    check_integer_kernels,
    optimized_graph,
    quantized_calls_in_fp32,
)
from lightning_compress.export.onnx.operators import OnnxOperators
from lightning_compress.export.onnx.parity import Parity, SplitFile, check_parity
from lightning_compress.export.onnx.runtime import is_of_runtime, latency, run, session
from lightning_compress.export.onnx.translation import prepare, translate
from lightning_compress.export.output_comparison import relative_difference, tensor_leaves
from lightning_compress.export.requirements import require
from lightning_compress.quantization.backend import Backend, OnnxRuntime
from lightning_compress.quantization.insertion import is_quantized
from lightning_compress.quantization.lowering import LoweredModel
from lightning_compress.targets import shorten


@dataclass(frozen=True, kw_only=True)
class OnnxFile(ExportedFile):
    """An ``.onnx`` file and its measurements in ONNX Runtime.

    Calls in ``unquantized_ops`` are first those that were not quantized, then those that were but have no INT8 kernels
    in ONNX Runtime, such as transposed convolutions.

    Attributes:
        integers: Number of INT8 and of FP32 kernels; ``None`` for an FP32 file, and one for another runtime.
        parity: Differences of the activations from those of the model (with the scales of the file if the range of
            weights is reduced); ``None`` for an FP32 file.
    """

    integers: KernelCounts | None
    parity: Parity | None


def export_onnx(
    model: nn.Module,
    path: str | Path,
    example_inputs: Any,
    *,
    unsigned: bool = True,
    reduce_range: bool = True,
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
    opset: int | None = None,
    backend: Backend = OnnxRuntime(),
    contrib: bool = True,
    half: bool = False,
) -> OnnxFile:
    """Export a model to ONNX, run the file and compare it with the model layer by layer.

    A model without quantizers is written in FP32; :func:`float_copy` removes the quantizers of a model.

    Args:
        model: The model; it is not modified.
        path: Path of the file; an existing file is replaced once the new one is complete.
        example_inputs: Inputs of the model: a tensor, a tuple, or a dict of keyword arguments.
        unsigned: Quantize activations to uint8, for which ONNX Runtime has its fast kernels on x86; else to int8.
        reduce_range: Keep the weights of each channel so small that no 16-bit sum of two products overflows, as x86
            kernels without VNNI compute them: the file computes the same on every CPU, with a resolution of 7 to 8
            bits. Weights that were trained with ``Int(7)`` stay as they are. ``False`` keeps 8 bits, and needs a CPU
            with VNNI or an ARM one; files for other runtimes always keep 8.
        dynamic_batch: Let the first dimension of inputs have any size.
        dynamic_size: Let the other dimensions have any size where the model allows it: height and width of images,
            lengths of sequences.
        opset: Version of ONNX's operators; by default 21, and 20 for int8 activations, as ONNX Runtime fails to load
            some of these with opset 21.
        backend: Runtime that the file is for, the same as in training: a file for another runtime than ONNX Runtime is
            run there and compared all the same, but its INT8 kernels are not counted.
        contrib: Store linear layers with quantized weights and FP32 inputs as MatMulNBits, an operator of ONNX Runtime
            alone that multiplies by 4-bit or 8-bit blocks; ``False``, and files for other runtimes, store them as
            DequantizeLinear, with blocks and 4 bits from opset 21.
        half: Write a model without quantizers in FP16, with inputs and outputs in FP32: half the bytes, and faster
            where the processor computes in FP16.

    Returns:
        The file and its measurements.

    Raises:
        ImportError: If the packages of the extra ``export`` are not installed.
        ValueError: If a quantizer has not observed a batch, if the model cannot be exported, or if a quantized layer or
            addition of the file computes in FP32 or differs from the model by more than 1 LSB; if the model has
            operators that ``opset`` lacks, or fixes its input size although ``dynamic_size`` is asked for.

    Example::

        >>> import tempfile
        >>> import torch
        >>> import lightning_compress as lc
        >>> batch = torch.linspace(-1, 1, 32).reshape(8, 4)
        >>> model = lc.calibrate(nn.Linear(4, 2), [batch])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = lc.export_onnx(model, f"{folder}/model.onnx", batch)
        >>> file.integers.integer, file.unquantized_ops
        ({'linear': 1}, ())
    """
    require("onnx", "onnxruntime", "onnxscript")
    if half and is_quantized(model):
        raise ValueError("half=True is for models without quantizers: export lc.float_copy(model).")
    is_for_cpu = backend == OnnxRuntime()
    operators = OnnxOperators(opset, unsigned=unsigned, backend=backend, contrib=contrib and is_for_cpu)
    inputs = as_arguments(with_two_samples(example_inputs) if dynamic_batch else example_inputs)
    given, simulation, lowered = prepare(model, inputs, operators, reduce_range=is_for_cpu and reduce_range)
    parity, integers, unquantized_ops = None, None, tuple(lowered.unquantized_ops)
    with atomic_write(path) as partial, running("ONNX Runtime", type(model).__name__, is_of_runtime):
        dynamic = {"dynamic_batch": dynamic_batch, "dynamic_size": dynamic_size}
        translate(lowered.model, simulation, partial, operators, **dynamic)
        if half:
            convert_to_half(partial)
        if is_quantized(model):
            if is_for_cpu:
                graph = optimized_graph(partial)
                integers, unquantized_ops = check_integer_kernels(graph, lowered), _unquantized_ops(graph, lowered)
            parity = check_parity(SplitFile(partial, lowered, simulation))
            _warn_of_overflow(parity)
        runtime = session(partial)
        # From the given model, not from the one with other scales: their error is part of the difference.
        difference = relative_difference(tensor_leaves(given.output), run(runtime, inputs))
        seconds = latency(runtime, as_arguments(example_inputs))
    return OnnxFile(
        path=Path(path),
        num_bytes=Path(path).stat().st_size,
        latency_quartiles=seconds,
        steps=parity.steps if parity is not None else None,
        difference=difference,
        unquantized_ops=unquantized_ops,
        integers=integers,
        parity=parity,
    )


def _unquantized_ops(graph: Any, lowered: LoweredModel) -> tuple[str, ...]:
    layers, ops = quantized_calls_in_fp32(graph, lowered)
    if layers:
        warnings.warn(
            f"ONNX Runtime has no INT8 kernels for {shorten(layers)}: their weights are stored as INT8, but they "
            "compute in FP32.",
            stacklevel=3,
        )
    return (*lowered.unquantized_ops, *(name for name in layers if name not in lowered.unquantized_ops), *ops)


def _warn_of_overflow(parity: Parity) -> None:
    if parity.overflowing:
        warnings.warn(
            f"On this CPU, which has no VNNI, {len(parity.overflowing)} of {len(parity.steps)} activations overflow in "
            "ONNX Runtime: export with reduce_range=True, or run the file with the session option "
            "session.x64quantprecision=1.",
            stacklevel=3,
        )
