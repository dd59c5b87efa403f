"""Export of a quantized run to ONNX, and evaluation of the exported file in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only, tree_unflatten

import lightning_compress as lc
from lightning_compress.cli.measurements import batch_size_of, first_sample, time_calls
from lightning_compress.export.onnx.exporter import OnnxFile
from lightning_compress.export.onnx.runtime import feeds_of, session
from lightning_compress.module_copies import copy_module
from lightning_compress.quantization.finalize import copy_for_deployment
from lightning_compress.reporting.report_records import Timing

_NUM_SAMPLES = 8


@dataclass(frozen=True)
class OnnxEvaluation:
    """Exported files of a quantized run, and the test metrics of the quantized one.

    Attributes:
        int8: Quantized ONNX model.
        fp32: ONNX model of the same weights without quantizers.
        metrics: Test metrics of the quantized ONNX model, run by ONNX Runtime.
        timings: Latency of both files by name, measured in one run.
    """

    int8: OnnxFile
    fp32: OnnxFile
    metrics: dict[str, float]
    timings: dict[str, Timing]


@contextmanager
def capture_inputs(module: nn.Module) -> Iterator[list[Any]]:
    """Capture the arguments of the first call of a module, at most 8 samples of them, on the CPU."""
    captured: list[Any] = []

    def capture(_: nn.Module, args: Any, kwargs: Any) -> None:
        if not captured:
            arguments = (tuple(args), dict(kwargs))
            batch_size = next((len(t) for t in tree_leaves(arguments) if isinstance(t, Tensor) and t.ndim), 0)
            captured.append(tree_map_only(Tensor, lambda t: _first_samples(t.detach().cpu(), batch_size), arguments))

    handle = module.register_forward_pre_hook(capture, with_kwargs=True)
    try:
        yield captured
    finally:
        handle.remove()


def _first_samples(tensor: Tensor, batch_size: int) -> Tensor:
    """Return the first samples of a tensor with a batch dimension, and any other tensor as it is."""
    return tensor[:_NUM_SAMPLES] if tensor.ndim and len(tensor) == batch_size else tensor


def export_int8_and_fp32(
    model: LightningModule, module: str, inputs: Any, directory: Path, backend: lc.Backend
) -> tuple[OnnxFile, OnnxFile]:
    """Export ``model.onnx``, quantized to INT8, and ``float.onnx``, the same weights in FP32.

    Args:
        model: Quantized LightningModule.
        module: Name of the submodule that is deployed.
        inputs: Example inputs of that submodule.
        directory: Directory to write to.
        backend: Runtime for which the model was quantized.
    """
    # Not the finalized model: rounded weights would lose more when they are rounded again to the scales of the file.
    quantized = copy_for_deployment(model, module, "export").cpu()
    int8 = lc.export_onnx(quantized, directory / "model.onnx", inputs, backend=backend)
    return int8, lc.export_onnx(lc.float_copy(model, module=module).cpu(), directory / "float.onnx", inputs)


def time_files(paths: Sequence[Path], inputs: Any) -> dict[str, Timing]:
    """Measure the latency of ONNX files on one sample, interleaved in one run.

    Args:
        paths: The files.
        inputs: Captured arguments of the deployed module.

    Returns:
        Name of the file to its latency.
    """
    sample = first_sample(inputs)
    calls = {path.name: _call(session(path), sample) for path in paths}
    return time_calls(calls, batch_size=batch_size_of(sample), runtime="ONNX Runtime")


def _call(runtime: Any, inputs: Any) -> Callable[[], Any]:
    feeds = feeds_of(runtime.get_inputs(), inputs)
    return lambda: runtime.run(None, feeds)


def with_onnx_module(model: LightningModule, module: str, path: Path, inputs: Any) -> LightningModule:
    """Return a copy of a LightningModule that runs its deployed submodule in ONNX Runtime."""
    # The structure of the output (dict, tuple) is taken from the model: ONNX Runtime returns a flat list.
    with torch.no_grad():
        output = lc.finalize(model, module=module).cpu()(*inputs[0], **inputs[1])
    return with_module(model, module, _OnnxModule(path, output))


def with_module(model: LightningModule, module: str, network: nn.Module) -> LightningModule:
    """Return a copy of a LightningModule on the CPU, with another network in place of its deployed submodule."""
    evaluated = copy_module(model).cpu()
    if module:
        evaluated.set_submodule(module, network)
    else:
        vars(evaluated)["forward"] = network
    return evaluated


class _OnnxModule(nn.Module):
    """ONNX Runtime session as a module."""

    def __init__(self, path: Path, output: Any) -> None:
        super().__init__()
        self.session = session(path)
        self.structure = torch.utils._pytree.tree_structure(output)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs of the ONNX model."""
        outputs = self.session.run(None, feeds_of(self.session.get_inputs(), (args, kwargs)))
        return tree_unflatten([torch.from_numpy(output) for output in outputs], self.structure)
