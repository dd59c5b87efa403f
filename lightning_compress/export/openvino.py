"""Export to ONNX for OpenVINO, which computes it in INT8 on Intel's and other x86 and ARM processors."""

from __future__ import annotations

import signal
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_compress.arguments import Arguments, as_arguments
from lightning_compress.atomic_files import atomic_write
from lightning_compress.export.batch_inputs import with_two_samples
from lightning_compress.export.exported_file import ExportedFile
from lightning_compress.export.failures import running
from lightning_compress.export.lowered_parity import check_lsb_errors
from lightning_compress.export.onnx.kernels import KernelCounts
from lightning_compress.export.onnx.operators import OnnxOperators
from lightning_compress.export.onnx.parity import SplitFile
from lightning_compress.export.onnx.translation import prepare, translate
from lightning_compress.export.openvino_simplification import simplify
from lightning_compress.export.output_comparison import relative_difference, tensor_leaves
from lightning_compress.export.requirements import require
from lightning_compress.export.subprocess_check import run_python
from lightning_compress.profiling import interleaved_durations, quartiles
from lightning_compress.quantization.finalize import float_copy
from lightning_compress.quantization.insertion import is_quantized
from lightning_compress.quantization.lowering import LoweredModel

# FP32 stays FP32, also on processors that compute faster in BF16.
_OPTIONS = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
_COMPILE = f"""
import pathlib, sys, openvino
core = openvino.Core()
core.compile_model(core.read_model(pathlib.Path(sys.argv[1]).read_bytes()), "CPU", {_OPTIONS})
"""
_LAYERS = {"Convolution": "conv", "Deconvolution": "conv_transpose", "FullyConnected": "linear", "MatMul": "matmul"}


@dataclass(frozen=True, kw_only=True)
class OpenvinoFile(ExportedFile):
    """An ``.onnx`` file and its measurements in OpenVINO.

    Attributes:
        fp32_latency_quartiles: Quartiles of the same model in FP32, in runs interleaved with those of the file;
            ``None`` for an FP32 file.
        kernels: Number of INT8 and of FP32 kernels of layers and matrix products on this CPU.
    """

    fp32_latency_quartiles: tuple[float, float, float] | None
    kernels: KernelCounts


def export_openvino(
    model: nn.Module,
    path: str | Path,
    example_inputs: Any,
    *,
    reduce_range: bool = True,
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
) -> OpenvinoFile:
    """Export a model to ONNX, run the file in OpenVINO, and compare it with the model layer by layer.

    OpenVINO reads ONNX files as they are: ``ovc model.onnx`` converts one to its own format. Models that were quantized
    for ``OnnxRuntime()`` and for ``TensorRT()`` are both computed in INT8. A model without quantizers is written in
    FP32; :func:`float_copy` removes the quantizers of a model.

    Args:
        model: The model; it is not modified.
        path: Path of the file; an existing file is replaced once the new one is complete.
        example_inputs: Inputs of the model: a tensor, a tuple, or a dict of keyword arguments.
        reduce_range: As of :func:`export_onnx`: the file computes the same on x86 processors with and without VNNI.
        dynamic_batch: Let the first dimension of inputs have any size.
        dynamic_size: Let the other dimensions have any size where the model allows it.

    Returns:
        The file and its measurements.

    Raises:
        ImportError: If the packages of the extra ``openvino`` are not installed.
        ValueError: If a quantizer has not observed a batch, if the model cannot be exported, if OpenVINO does not
            support the file, or if an activation differs from the model's by more than 1 LSB.

    Example::

        >>> import lightning_compress as lc
        >>> images = torch.rand(8, 3, 32, 32)
        >>> model = lc.calibrate(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), [images])
        >>> str(lc.export_openvino(model, "model.onnx", images[:1]).kernels)  # doctest: +SKIP
        'INT8: 1 conv; FP32: none'
    """
    require("onnx", "onnxruntime", "onnxscript", "openvino", extra="openvino")
    operators = OnnxOperators()
    inputs = as_arguments(with_two_samples(example_inputs) if dynamic_batch else example_inputs)
    given, simulation, lowered = prepare(model, inputs, operators, reduce_range=reduce_range)
    dynamic = {"dynamic_batch": dynamic_batch, "dynamic_size": dynamic_size}
    with atomic_write(path) as partial, running("OpenVINO", type(model).__name__):
        translate(lowered.model, simulation, partial, operators, **dynamic)
        # Before it is simplified: the file then has fewer quantizers than the model.
        split = SplitFile(partial, lowered, simulation) if is_quantized(model) else None
        simplify(partial)
        _check_compiles(partial, type(model).__name__)
        network = _OpenvinoNetwork(partial.read_bytes())
        steps = None if split is None else check_lsb_errors(split.lsb_errors(_run_split(split)))
        # From the given model, not from the one with other scales: their error is part of the difference.
        difference = relative_difference(tensor_leaves(given.output), network.run(inputs))
        networks = [network] if split is None else [network, _fp32_network(model, inputs, operators, dynamic)]
        latencies = _latencies(networks, as_arguments(example_inputs))
    kernels = network.kernels()
    return OpenvinoFile(
        path=Path(path),
        num_bytes=Path(path).stat().st_size,
        latency_quartiles=latencies[0],
        steps=steps,
        difference=difference,
        unquantized_ops=tuple(_unquantized_ops(lowered, kernels)),
        fp32_latency_quartiles=None if steps is None else latencies[1],
        kernels=kernels,
    )


def _check_compiles(path: Path, model: str) -> None:
    """Compile a file in another process, as OpenVINO crashes on some graphs and would take this one along."""
    status = run_python(_COMPILE, path).returncode
    if status < 0:
        raise ValueError(
            f"OpenVINO crashes on the file of {model} ({signal.Signals(-status).name}): exclude layers from "
            "quantization, or install another version of OpenVINO."
        )


class _OpenvinoNetwork:
    """Network compiled for one thread of this CPU.

    Args:
        serialized: The ONNX file.
    """

    def __init__(self, serialized: bytes) -> None:
        import openvino

        core = openvino.Core()
        self._compiled = core.compile_model(core.read_model(serialized), "CPU", _OPTIONS)

    def __call__(self, feeds: Any) -> Any:
        """Return the outputs by name."""
        return self._compiled(feeds)

    def run(self, inputs: Arguments) -> list[Tensor]:
        """Return the outputs in order."""
        outputs = self._compiled(self.feeds(inputs))
        return [torch.from_numpy(outputs[output]) for output in self._compiled.outputs]

    def feeds(self, inputs: Arguments) -> list[np.ndarray]:
        """Return the inputs as arrays, in order."""
        return [tensor.detach().cpu().numpy() for tensor in tensor_leaves(inputs)]

    def kernels(self) -> KernelCounts:
        """Count the kernels of layers by their precision."""
        counts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        for node in self._compiled.get_runtime_model().get_ops():
            info = node.get_rt_info()
            kind = _LAYERS.get(info["layerType"].astype(str)) if "layerType" in info else None
            if kind is not None:
                counts[info["runtimePrecision"].astype(str) in ("u8", "i8")][kind] += 1
        return KernelCounts(dict(counts[True]), dict(counts[False]))


def _unquantized_ops(lowered: LoweredModel, kernels: KernelCounts) -> Iterator[str]:
    """Yield the calls that compute in FP32: a layer with a quantized input does not, even if its output is FP32."""
    names = {f"{layer.name}.{layer.function}" for layer in lowered.layers if layer.input is not None}
    yield from (name for name in lowered.unquantized_ops if name not in names)
    # Not every CPU has INT8 kernels for transposed convolutions.
    if "conv_transpose" in kernels.float:
        yield from (
            f"{layer.name}.{layer.function}" for layer in lowered.layers if layer.function.startswith("conv_transpose")
        )


def _run_split(split: SplitFile) -> Sequence[np.ndarray]:
    outputs = _OpenvinoNetwork(split.serialized)(split.feeds)
    return [outputs[name] for name in split.outputs]


def _fp32_network(
    model: nn.Module, inputs: Arguments, operators: OnnxOperators, dynamic: dict[str, bool]
) -> _OpenvinoNetwork:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "float.onnx"
        _, simulation, lowered = prepare(float_copy(model), inputs, operators, reduce_range=False)
        translate(lowered.model, simulation, file, operators, **dynamic)
        return _OpenvinoNetwork(file.read_bytes())


def _latencies(networks: Sequence[_OpenvinoNetwork], inputs: Arguments) -> list[tuple[float, float, float]]:
    feeds = networks[0].feeds(inputs)
    durations = interleaved_durations({i: partial(network, feeds) for i, network in enumerate(networks)})
    return [*map(quartiles, durations.values())]
