"""Flat names for loggers and sweeps."""

from __future__ import annotations

import pytest

from lightning_compress.reporting.report_metrics import report_metrics
from lightning_compress.reporting.run_report import RunReport


def test_all_numbers_that_a_sweep_may_optimize(report: RunReport) -> None:
    found = report_metrics(report)
    assert found == pytest.approx(
        {
            "report/dense_bytes": 1_836_072,
            "report/bytes": 61_234,
            "report/ratio": 1_836_072 / 61_234,
            "report/test/acc": 0.975,
            "report/test/acc_change": 0.975 - 0.983,
            "report/latency": 0.92e-3,
            "report/latency_p95": 1.15e-3,
            "report/speed_up": 1.59 / 0.92,
            "report/sparsity": 2010 / 3200,
        }
    )
