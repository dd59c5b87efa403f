"""Numbers of a report under flat names, for loggers, sweeps and comparisons."""

from __future__ import annotations

from lightning_compress.reporting.run_report import RunReport
from lightning_compress.reporting.run_summary import smallest_file, timed_pair


def report_metrics(report: RunReport) -> dict[str, float]:
    """Return the numbers of a report that a sweep may optimize.

    ``report/bytes`` is the size of the smallest compressed file and ``report/ratio`` that of the dense network over
    it; ``report/<metric>`` is a test metric of the deployed model or file, and ``report/<metric>_change`` its
    difference from the baseline; ``report/latency`` and ``report/latency_p95`` are in seconds, and
    ``report/speed_up`` is the ratio to the model that was timed with it.

    Args:
        report: Report of the run.

    >>> from lightning_compress.reporting.report_records import ModelResult
    >>> model = ModelResult("fitted", "fitted", {"test/acc": 0.9})
    >>> report_metrics(RunReport(name="digits", command="", created="", models=(model,)))
    {'report/test/acc': 0.9}
    """
    found: dict[str, float] = {}
    file = smallest_file(report)
    if report.sizes:
        found["report/dense_bytes"] = report.sizes[0].num_bytes
    if file is not None and file.num_bytes:
        found["report/bytes"] = file.num_bytes
        if report.sizes:
            found["report/ratio"] = report.sizes[0].num_bytes / file.num_bytes
    result, baseline = report.result, report.baseline
    for name, value in (result.metrics if result is not None else {}).items():
        found[f"report/{name}"] = value
        if baseline is not None and name in baseline.metrics:
            found[f"report/{name}_change"] = value - baseline.metrics[name]
    pair = timed_pair(report)
    if pair is not None and pair[0].timing is not None and pair[1].timing is not None:
        found["report/latency"], found["report/latency_p95"] = pair[1].timing.median, pair[1].timing.p95
        found["report/speed_up"] = pair[0].timing.median / pair[1].timing.median
    if report.layers:
        found["report/sparsity"] = report.weights.sparsity
    return found
