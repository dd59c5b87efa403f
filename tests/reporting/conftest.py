"""A report of a run, with every kind of model and file."""

from __future__ import annotations

import pytest

from lightning_compress.reporting.report_records import LayerResult, ModelResult, SizeStage, Timing, WeightHistogram
from lightning_compress.reporting.run_report import RunReport

INTERVAL = {"test/acc": (0.951, 0.989)}


def timing(milliseconds: float, runtime: str = "ONNX Runtime") -> Timing:
    return Timing(milliseconds / 1e3, 1.25 * milliseconds / 1e3, 50, 1, 1, runtime)


@pytest.fixture
def models() -> tuple[ModelResult, ...]:
    return (
        ModelResult("teacher", "teacher", {"test/loss": 0.06, "test/acc": 0.9889}),
        ModelResult(
            "baseline", "dense baseline", {"test/loss": 0.1, "test/acc": 0.983}, INTERVAL, 360, 459_018, 6_130_000,
            1_836_072,
        ),
        ModelResult("fitted", "fitted", {"test/loss": 0.2, "test/acc": 0.9751}, INTERVAL, 360, 459_018, 6_130_000),
        ModelResult("packed", "packed file", {"test/acc": 0.9751}, num_bytes=61_234, file="model.packed", sha256="ab"),
        ModelResult("export", "FP32 ONNX", {}, num_bytes=1_838_687, file="float.onnx", timing=timing(1.59)),
        ModelResult(
            "export", "INT8 ONNX", {"test/acc": 0.975}, num_bytes=488_693, file="model.onnx", timing=timing(0.92)
        ),
    )  # fmt: skip


@pytest.fixture
def report(models: tuple[ModelResult, ...]) -> RunReport:
    before = tuple(range(30)) + tuple(range(31))[::-1]
    return RunReport(
        name="digits-all",
        command="lightning-compress run digits/all",
        created="2026-01-01T00:00:00+00:00",
        models=models,
        sizes=(SizeStage("dense", 1_836_072), SizeStage("zeros left out", 230_000), SizeStage("entropy-coded", 61_234)),
        layers=tuple(
            LayerResult(f"features.{index}.weight", (64, 8 + index), 512 + 64 * index, 400 + index, 17, 8, 321 + index)
            for index in range(5)
        ),
        histograms=(WeightHistogram("features.0.weight", -0.5, 0.5, before, before, 400),),
        schedules={"sparsity": ((0, 0.0), (10, 0.5), (20, 0.9)), "quantization_phase": ((0, 1.0),)},
        unquantized_ops=("model.<softmax>",),
        techniques=("Pruning", "QuantizationAwareTraining"),
        environment={"torch": "2.14.0", "CPU": "a CPU"},
        seed=0,
        config={"pruning": {"sparsity": 0.9}},
    )
