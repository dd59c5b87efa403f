"""Sentences that say where a compression gave no smaller file or no speed-up."""

from __future__ import annotations

from collections.abc import Iterator

from lightning_compress.reporting.run_report import RunReport
from lightning_compress.reporting.run_summary import smallest_file, timed_pair
from lightning_compress.reporting.sparsity import SPARSITY_NOTE
from lightning_compress.reporting.units import format_bytes, format_seconds

_NO_SPEED_UP = 1.05
"""Ratios of latencies below it are within the noise of a measurement."""

_FEW_ZEROS = 0.1
"""Sparsity of what channel pruning leaves: channels that could not be removed."""


def notes_on(report: RunReport) -> tuple[str, ...]:
    """Return sentences on everything that gave no gain, or was not measured.

    Args:
        report: Report of the run, whose own notes are ignored.

    >>> report = RunReport(name="digits", command="", created="")
    >>> notes_on(report)
    ('No latency was measured.',)
    """
    return (*_on_latency(report), *_on_size(report), *_on_energy(report))


def _on_latency(report: RunReport) -> Iterator[str]:
    removed = any(model.role == "channels removed" for model in report.models)
    sparse = report.weights.sparsity > (_FEW_ZEROS if removed else 0)
    if sparse and "Pruning" in report.techniques:
        yield SPARSITY_NOTE
    if {"WeightClustering", "SizeBudget"} & set(report.techniques):
        yield "Clusters make only the packed file smaller: runtimes load clustered weights as dense ones."
    if any(layer.bits is not None and layer.bits < 8 for layer in report.layers):
        yield "Fewer than 8 bits make only the packed file smaller: ONNX stores and computes a byte per value."
    pair = timed_pair(report)
    if pair is None:
        if not any(model.timing for model in report.models):
            yield "No latency was measured."
        return
    before, after = pair[0].timing, pair[1].timing
    if before is not None and after is not None and before.median < _NO_SPEED_UP * after.median:
        runtime = _runtime_of_file(report)
        if runtime:
            yield f"{pair[1].file} is for {runtime}; its latency is that of {after.runtime} on this CPU."
            return
        yield (
            f"No speed-up in {after.runtime} on this CPU: {pair[0].title} takes {format_seconds(before.median)}, "
            f"{pair[1].title} {format_seconds(after.median)}."
        )


def _runtime_of_file(report: RunReport) -> str:
    """Return the runtime that an exported file is for; empty for ONNX Runtime."""
    backend = ((report.config or {}).get("quantization") or {}).get("backend") or {}
    name = str(backend.get("class_path", "")).rpartition(".")[2]
    return "" if name == "OnnxRuntime" else name


def _on_size(report: RunReport) -> Iterator[str]:
    file = smallest_file(report)
    if file is None:
        yield from ["No compressed file was written."] if report.techniques else []
        return
    if report.sizes and file.num_bytes and file.num_bytes >= report.sizes[0].num_bytes:
        yield (
            f"{file.file} is not smaller than the dense tensors: {format_bytes(file.num_bytes)}, "
            f"{format_bytes(report.sizes[0].num_bytes)} dense."
        )
    if file.file.endswith(".packed"):
        yield f"{file.file} is for storage and transfer: in memory its tensors are dense again."


def _on_energy(report: RunReport) -> Iterator[str]:
    timings = [model.timing for model in report.models if model.timing is not None]
    if timings and all(timing.joules is None for timing in timings):
        yield "Energy is not measurable here: the RAPL counters of the CPU cannot be read."
