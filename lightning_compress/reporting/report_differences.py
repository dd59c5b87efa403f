"""Differences between what a report says and what was computed again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from lightning_compress.reporting.report_records import ModelResult
from lightning_compress.reporting.run_report import RunReport
from lightning_compress.reporting.settings import flat

_TOLERANCE = 1e-5  # of metrics, which other kernels round in another way


def statements(report: RunReport) -> dict[str, Any]:
    """Return what a report says of models, sizes, layers, histograms and sensitivities, by name.

    Latencies and energies, which are other ones in each run, and the series of schedules, which are logged during the
    fit, are left out.

    >>> report = RunReport("digits", "", "", models=(ModelResult("fitted", "fitted", {"test/acc": 0.9}),))
    >>> statements(report)["fitted: metrics.test/acc"]
    0.9
    """
    named: list[tuple[str, Any]] = [(model.title, _without_timing(model)) for model in report.models]
    named += [(f"size, {size.name}", size) for size in report.sizes]
    named += [(layer.name, layer) for layer in report.layers]
    named += [(f"histogram of {histogram.name}", histogram) for histogram in report.histograms]
    for each in report.sensitivities:
        named.append((f"sensitivity to {each.technique}", {"loss": each.loss}))
        named += [(f"sensitivity of {layer.layer} to {each.technique}", layer) for layer in each.layers]
    found: dict[str, Any] = {}
    for name, record in named:
        content = record if isinstance(record, Mapping) else dataclasses.asdict(record)
        found |= {f"{name}: {key}": value for key, value in flat(content).items()}
    return {key: value for key, value in found.items() if value not in (None, "", {})}


def differences(reported: RunReport, found: RunReport) -> Iterator[str]:
    """Yield a sentence on each statement of a report that is another one, or none, when it is computed again."""
    again = statements(found)
    for name, value in statements(reported).items():
        if name not in again:
            yield f"{name} is {value} in the report, and cannot be computed again."
        elif not _equal(value, again[name]):
            yield f"{name} is {again[name]}, the report says {value}."


def _without_timing(model: ModelResult) -> ModelResult:
    return dataclasses.replace(model, timing=None)


def _equal(reported: Any, found: Any) -> bool:
    if isinstance(reported, (tuple, list)) and isinstance(found, (tuple, list)):
        return len(reported) == len(found) and all(map(_equal, reported, found))
    if isinstance(reported, float) and isinstance(found, (int, float)):
        if math.isnan(reported) or math.isnan(found):
            return math.isnan(reported) and math.isnan(found)
        return math.isclose(reported, found, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    return bool(reported == found)
