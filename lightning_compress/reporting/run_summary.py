"""Headline and table of a run, as they are printed at its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lightning_compress.reporting.printed import Printed
from lightning_compress.reporting.report_records import ModelResult
from lightning_compress.reporting.run_report import RunReport
from lightning_compress.reporting.units import (
    format_bytes,
    format_change,
    format_count,
    format_metric,
    format_seconds,
    is_accuracy,
)

MAX_ROWS = 14
"""Rows of the printed table, which has at most 20 lines with its title, header and borders."""


def main_metric(models: Sequence[ModelResult]) -> str:
    """Return the name of the metric to print: an accuracy if there is one, else the first that is no loss.

    >>> main_metric([ModelResult("fitted", "compressed", {"test/loss": 0.1, "test/acc": 0.9})])
    'test/acc'
    """
    names = list(dict.fromkeys(name for model in reversed(models) for name in model.metrics))
    ordered = sorted(names, key=lambda name: (not is_accuracy(name), name.lower().endswith("loss")))
    return ordered[0] if ordered else ""


def headline(report: RunReport) -> str:
    """Return the result of a run in one line: size, metric and latency, before -> after.

    Sizes are those of the dense network and of the smallest file; the metric is that of the deployed model or file,
    and latencies are of models that were timed in the same runtime.

    Args:
        report: Report of the run.
    """
    parts = [_size(report), _metric(report), _latency(report)]
    return ", ".join(part for part in parts if part) or "The run measured nothing."


def smallest_file(report: RunReport) -> ModelResult | None:
    """Return the smallest file of compressed weights, or ``None``."""
    files = [model for model in report.models if model.file and model.num_bytes and not model.file.startswith("float")]
    return min(files, key=lambda model: model.num_bytes or 0, default=None)


def timed_pair(report: RunReport) -> tuple[ModelResult, ModelResult] | None:
    """Return the last two models that were timed in the same runtime, the reference first, or ``None``."""
    timed = [model for model in report.models if model.timing is not None]
    for after in reversed(timed):
        runtime = after.timing.runtime if after.timing is not None else ""
        alike = [m for m in timed if m.timing is not None and m.timing.runtime == runtime and m is not after]
        if alike:
            return alike[0], after
    return None


def _size(report: RunReport) -> str:
    file = smallest_file(report)
    if file is None or not report.sizes or not file.num_bytes:
        return ""
    dense = report.sizes[0].num_bytes
    return f"{format_bytes(dense)} -> {format_bytes(file.num_bytes)} ({dense / file.num_bytes:.1f}x, {file.file})"


def _metric(report: RunReport) -> str:
    name, after, before = main_metric(report.models), report.result, report.baseline
    if after is None or name not in after.metrics:
        return ""
    label = "accuracy" if is_accuracy(name) else name
    value = after.metrics[name]
    if before is None or name not in before.metrics:
        return f"{label} {format_metric(name, value)}"
    first = before.metrics[name]
    change = format_change(name, first, value)
    return f"{label} {format_metric(name, first)} -> {format_metric(name, value)} ({change})"


def _latency(report: RunReport) -> str:
    pair = timed_pair(report)
    if pair is None:
        return ""
    before, after = (model.timing for model in pair)
    assert before is not None
    assert after is not None
    threads = f"{after.num_threads} thread{'s' if after.num_threads > 1 else ''}"
    return (
        f"{format_seconds(before.median)} -> {format_seconds(after.median)} "
        f"({before.median / after.median:.1f}x, {after.runtime}, {threads})"
    )


class RunSummary(Printed):
    """Headline, table of all models, and notes; printed in at most 40 lines.

    Args:
        report: Report of the run.
    """

    def __init__(self, report: RunReport) -> None:
        self.report = report

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # Text and not markup, in which a name such as lightning-compress[export] loses its bracket.
        yield Text(headline(self.report), style="bold")
        yield self._table()
        for note in self.report.notes:
            yield Text(f"- {note}")
        for failure in self.report.failures:
            yield Text(f"- {failure}", style="red")

    def _table(self) -> Table:
        models, metric = self.report.models, main_metric(self.report.models)
        columns = {
            metric: [metric_with_interval(model, metric, _in_percent) for model in models],
            "bytes": [format_bytes(model.num_bytes) for model in models],
            "MACs": [format_count(model.macs) for model in models],
            "latency": [format_seconds(model.timing.median if model.timing else None) for model in models],
        }
        shown = {name: values for name, values in columns.items() if name and any(values)}
        table = Table()
        table.add_column("model", overflow="fold")
        for name in shown:
            table.add_column(escape("accuracy [95 %]") if is_accuracy(name) else name, justify="right")
        for index, model in list(enumerate(models))[:MAX_ROWS]:
            table.add_row(model.title, *(escape(values[index]) for values in shown.values()))
        if len(models) > MAX_ROWS:
            table.add_row(f"{len(models) - MAX_ROWS} more in report.html")
        return table


def metric_with_interval(model: ModelResult, metric: str, format_interval: Callable[[float, float], str]) -> str:
    """Return a metric of a model and its interval where it has one; empty without the metric.

    Args:
        model: The model.
        metric: Name of the metric.
        format_interval: Text of an interval.
    """
    if metric not in model.metrics:
        return ""
    value = format_metric(metric, model.metrics[metric])
    interval = model.intervals.get(metric)
    return value if interval is None else f"{value} {format_interval(*interval)}"


def _in_percent(lower: float, upper: float) -> str:
    return f"[{100 * lower:.1f}, {100 * upper:.1f}]"
