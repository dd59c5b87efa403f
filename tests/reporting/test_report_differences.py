"""What a report says, compared with what is computed again."""

import dataclasses
import math

from lightning_compress.reporting.report_differences import differences, statements
from lightning_compress.reporting.report_records import LayerResult, ModelResult, SizeStage, Timing
from lightning_compress.reporting.run_report import RunReport

MODEL = ModelResult("fitted", "fitted", {"test/acc": 0.5, "test/loss": math.nan}, num_samples=2, macs=10)
REPORT = RunReport(
    "run", "", "", models=(MODEL,), sizes=(SizeStage("dense", 8),), layers=(LayerResult("w", (2,), 2, 1, 2),)
)


def found(**changes: object) -> list[str]:
    return list(differences(REPORT, dataclasses.replace(REPORT, **changes)))


def test_the_same_report_has_no_differences():
    timing = Timing(1.0, 2.0, 3, 1, 1, "PyTorch")
    assert not found()
    # Latencies differ from run to run.
    assert not found(models=(dataclasses.replace(MODEL, timing=timing),))
    assert not found(models=(dataclasses.replace(MODEL, metrics={"test/acc": 0.5 + 1e-6, "test/loss": math.nan}),))


def test_each_difference_is_a_sentence():
    worse = dataclasses.replace(MODEL, metrics={"test/acc": 0.4999, "test/loss": 1.0}, macs=11)
    assert found(models=(worse,)) == [
        "fitted: metrics.test/acc is 0.4999, the report says 0.5.",
        "fitted: metrics.test/loss is 1.0, the report says nan.",
        "fitted: macs is 11, the report says 10.",
    ]
    assert found(sizes=(SizeStage("dense", 9),)) == ["size, dense: num_bytes is 9, the report says 8."]
    assert found(layers=(LayerResult("w", (1, 2), 2, 1, 2),)) == ["w: shape is (1, 2), the report says (2,)."]


def test_what_cannot_be_computed_again_is_named():
    assert "w: num_zeros is 1 in the report, and cannot be computed again." in found(layers=())
    assert len(found(models=(), sizes=(), layers=())) == len(statements(REPORT))
