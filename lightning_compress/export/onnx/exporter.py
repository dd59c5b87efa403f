"""ONNX files for ONNX Runtime: weights, biases, activations as integers, with QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import warnings
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
from lightning_compress.export.onnx.kernels import KernelCounts, check_integers, optimized, without_integers
from lightning_compress.export.onnx.parity import Parity, check_layers
from lightning_compress.export.onnx.runtime import latency, outputs_of
from lightning_compress.export.output_comparison import difference, names_of_outputs, outputs_of_model
from lightning_compress.export.requirements import require
from lightning_compress.quantization.backend import Bias, QParams, Weight
from lightning_compress.quantization.insertion import is_quantized, with_weight_bits
from lightning_compress.quantization.lowering import Lowered
from lightning_compress.quantization.recording import record
from lightning_compress.targets import shorten


@dataclass(frozen=True)
class OnnxFile:
    """What was written, and what was measured of it.

    Attributes:
        path: The file.
        num_bytes: Its size.
        latency: Median seconds of a run on the example inputs, one thread, ONNX Runtime on this CPU.
        integers: Operators that ONNX Runtime computes with integers, and with floats; ``None`` for a float file.
        parity: How far each layer is from the model's, that of 7 bits if it is reduced; ``None`` for a float file.
        difference: Largest difference of the outputs from the given model's, over their largest value.
        left_in_float: Calls that compute with floats: those that were not to be quantized, then those for which ONNX
            Runtime has no integer kernels, such as transposed convolutions, ``"<module>.<function>"``.
    """

    path: Path
    num_bytes: int
    latency: float
    integers: KernelCounts | None
    parity: Parity | None
    difference: float
    left_in_float: tuple[str, ...]


def export_onnx(
    model: nn.Module,
    path: str | Path,
    example_inputs: Any,
    *,
    unsigned: bool = True,
    reduce_range: bool = False,
    dynamic_batch: bool = True,
    opset: int = 21,
) -> OnnxFile:
    """Writes a model as ONNX, runs the file and compares it with the model layer by layer.

    A model without quantizers is written with floats; :func:`float_copy` makes one of a model that has them.

    Args:
        model: The model, which stays as it is.
        path: Where to write; what is there is replaced when the new file is complete.
        example_inputs: What it is called with: a tensor, a tuple, or a dict of keyword arguments.
        unsigned: Activations are uint8, with which ONNX Runtime has its fast kernels on x86; else int8.
        reduce_range: Weights in 7 bits, for x86 without VNNI, whose 16-bit sums of two products overflow with 8.
        dynamic_batch: The first dimension of inputs may have any size.
        opset: Version of ONNX's operators.

    Raises:
        ImportError: Without the extra ``export``.
        ValueError: If a quantizer has never seen a batch, if the model cannot be exported, or if in the file a layer
            or an addition that was to be quantized computes with floats or differs from the model by more than a step.
    """
    require("onnx", "onnxruntime", "onnxscript")
    args, kwargs = as_arguments(batched(example_inputs) if dynamic_batch else example_inputs)
    dialect = OnnxBackend(opset, unsigned=unsigned)
    simulated = with_weight_bits(model, 7) if reduce_range else model
    lowered = lowered_or_float(simulated, (args, kwargs), dialect, unsigned=unsigned)
    parity, integers, left = None, None, tuple(lowered.left_in_float)
    with written(path) as partial:
        _write(lowered.model, (args, kwargs), partial, dynamic_batch=dynamic_batch, opset=opset)
        if is_quantized(model):
            graph = optimized(partial)
            integers, left = check_integers(graph, lowered), _left_in_float(graph, lowered)
            _, recorded = record(simulated, (args, kwargs))
            parity = check_layers(partial, lowered, recorded, (args, kwargs), unsigned=unsigned)
            _warn_of_overflow(parity)
        # From the model as it was given: what seven bits lose is part of it.
        apart = difference(outputs_of_model(model, (args, kwargs)), outputs_of(partial, args, kwargs))
        seconds = latency(partial, *as_arguments(example_inputs))
    return OnnxFile(Path(path), Path(path).stat().st_size, seconds, integers, parity, apart, left)


class OnnxBackend:
    """Writes integers as nodes of ONNX.

    Args:
        opset: Version of the operators.
        unsigned: Activations are uint8, else int8.
    """

    opaque = frozenset({
        "pad", "chunk", "split", "tensor_split", "unbind", "getitem", "select", "index_select", "max_pool2d",
    })  # fmt: skip

    def __init__(self, opset: int, *, unsigned: bool) -> None:
        self.opset = opset
        self.dtype = torch.uint8 if unsigned else torch.int8

    def activation(self, x: Tensor, grid: QParams) -> Tensor:
        """QuantizeLinear and DequantizeLinear; fewer bits than the type has are clipped in between."""
        scale, zero = torch.tensor(grid.scale), torch.tensor(grid.zero_point, dtype=self.dtype)
        q = self._op("QuantizeLinear", (x, scale, zero), {}, dtype=self.dtype, shape=x.shape)
        if grid.quant_max - grid.quant_min < 254:
            ends = (torch.tensor(end, dtype=self.dtype) for end in (grid.quant_min, grid.quant_max))
            q = self._op("Clip", (q, *ends), {}, dtype=self.dtype, shape=x.shape)
        return self._op("DequantizeLinear", (q, scale, zero), {}, dtype=x.dtype, shape=x.shape)

    def weight(self, weight: Weight) -> Tensor:
        """DequantizeLinear of an int8 constant, per channel."""
        return self._constant(weight.integers, weight.scale, weight.axis)

    def bias(self, bias: Bias) -> Tensor:
        """DequantizeLinear of an int32 constant, per channel."""
        return self._constant(bias.integers, bias.scale, 0)

    def _constant(self, integers: Tensor, scale: Tensor, axis: int) -> Tensor:
        zeros = torch.zeros(scale.shape, dtype=integers.dtype)
        inputs, shape = (integers, scale, zeros), integers.shape
        return self._op("DequantizeLinear", inputs, {"axis": axis}, dtype=scale.dtype, shape=shape)

    def _op(self, name: str, inputs: Any, attributes: Any, *, dtype: torch.dtype, shape: Any) -> Tensor:
        return torch.onnx.ops.symbolic(name, inputs, attributes, dtype=dtype, shape=shape, version=self.opset)


def _write(model: nn.Module, inputs: Arguments, path: Path, *, dynamic_batch: bool, opset: int) -> None:
    def program() -> ExportedProgram:
        return captured(model, inputs, dynamic_batch=dynamic_batch)

    with exporting(model, "ONNX", program):
        # The program and not the module: handed a module, the exporter may trace around the integers.
        onnx_program = torch.onnx.export(
            program(),
            dynamo=True,
            opset_version=opset,
            output_names=names_of_outputs(model, inputs),
            verbose=False,
        )
    assert onnx_program is not None
    onnx_program.save(str(path), external_data=False)
    _tidy(path)


def _tidy(path: Path) -> None:
    """Leaves out the exporter's notes, a third of a small file, and gives each constant a zero point of its own.

    ONNX Runtime needs the latter to rewrite weights for its precise kernels.
    """
    import onnx

    model = onnx.load(path)
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output, model.graph):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    constants = {initializer.name: initializer for initializer in model.graph.initializer}
    used: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            if node.input[2] in used:
                own = onnx.TensorProto()
                own.CopyFrom(constants[node.input[2]])
                own.name = f"{node.output[0]}_zero_point"
                model.graph.initializer.append(own)
                node.input[2] = own.name
            used.add(node.input[2])
    onnx.save(model, path)


def _left_in_float(graph: Any, lowered: Lowered) -> tuple[str, ...]:
    layers, others = without_integers(graph, lowered)
    if layers:
        warnings.warn(
            f"ONNX Runtime has no integer kernels for {shorten(layers)}: the file has bytes for their weights and "
            "computes with floats.",
            stacklevel=3,
        )
    return (*lowered.left_in_float, *(name for name in layers if name not in lowered.left_in_float), *others)


def _warn_of_overflow(parity: Parity) -> None:
    if parity.overflowing:
        warnings.warn(
            f"On this CPU, which has no VNNI, {len(parity.overflowing)} of {len(parity.steps)} layers overflow in ONNX "
            "Runtime: export with reduce_range=True, or run with the session option session.x64quantprecision=1.",
            stacklevel=3,
        )
