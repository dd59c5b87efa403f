"""Running a file in ONNX Runtime: what it computes, and how fast."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_compress.arguments import Arguments
from lightning_compress.export.output_comparison import median_seconds, tensors


def session(model: Path | bytes, *, precise: bool = False, optimized: Path | None = None) -> Any:
    """ONNX Runtime's session of a file or of its bytes, with one thread.

    Args:
        model: The file.
        precise: With kernels that do not overflow.
        optimized: Where to write the graph that it makes of the file.
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


def outputs_of(path: Path, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """What the file computes of the arguments."""
    runtime = session(path)
    return [torch.from_numpy(array) for array in runtime.run(None, feeds_of(runtime.get_inputs(), (args, kwargs)))]


def latency(path: Path, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """Median seconds of a run with one thread, after a warm-up."""
    runtime = session(path)
    feeds = feeds_of(runtime.get_inputs(), (args, kwargs))
    return median_seconds(lambda: runtime.run(None, feeds))


def feeds_of(values: Iterable[Any], inputs: Arguments) -> dict[str, np.ndarray]:
    """Arrays by the names of a graph's or a session's inputs, in their order."""
    arrays = [tensor.detach().cpu().numpy() for tensor in tensors(inputs)]
    return dict(zip([value.name for value in values], arrays, strict=True))
