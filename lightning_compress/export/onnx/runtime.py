"""Execution of a file in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_compress.arguments import Arguments
from lightning_compress.export.output_comparison import tensor_leaves
from lightning_compress.module_copies import is_defined_in
from lightning_compress.profiling import latency_quartiles


def session(model: Path | bytes, *, precise: bool = False, optimized: Path | None = None) -> Any:
    """Create a single-threaded CPU session of ONNX Runtime.

    Args:
        model: Path of the file, or its bytes.
        precise: Use kernels without saturating 16-bit sums, on x86 processors without VNNI as well.
        optimized: Path to which the optimized graph is written.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if precise:
        options.add_session_config_entry("session.x64quantprecision", "1")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    given = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def is_of_runtime(error: Exception) -> bool:
    """Return True for an exception of ONNX Runtime."""
    return is_defined_in(type(error), "onnxruntime")


def run(runtime: Any, inputs: Arguments) -> list[Tensor]:
    """Run a session and return its outputs."""
    return [torch.from_numpy(array) for array in runtime.run(None, feeds_of(runtime.get_inputs(), inputs))]


def latency(runtime: Any, inputs: Arguments) -> tuple[float, float, float]:
    """Return the quartiles of the seconds of a run of a session."""
    feeds = feeds_of(runtime.get_inputs(), inputs)
    return latency_quartiles(lambda: runtime.run(None, feeds))


def feeds_of(values: Iterable[Any], inputs: Arguments) -> dict[str, np.ndarray]:
    """Return arrays by the names of a graph's or a session's inputs, in their order."""
    arrays = [tensor.detach().cpu().numpy() for tensor in tensor_leaves(inputs)]
    return dict(zip([value.name for value in values], arrays, strict=True))
