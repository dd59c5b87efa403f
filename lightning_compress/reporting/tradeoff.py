"""Comparison of runs: accuracy against size and latency, and the runs that no other dominates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from lightning_compress.reporting.drawing import as_png, clean, new_figure
from lightning_compress.reporting.printed import Printed
from lightning_compress.reporting.run_report import RunReport
from lightning_compress.reporting.run_summary import main_metric, smallest_file, timed_pair
from lightning_compress.reporting.settings import differing
from lightning_compress.reporting.units import format_bytes, format_metric, format_seconds

_MAX_SETTINGS = 3  # in a table
_LOWER_IS_BETTER = ("loss", "error", "err", "perplexity", "mse", "mae")


@dataclass(frozen=True)
class ComparedRun:
    """One run of a comparison.

    Attributes:
        name: Name of the run.
        directory: Directory of the run.
        metric: Value of the compared metric, or ``None`` if the run does not have it.
        num_bytes: Bytes of its smallest file, or ``None``.
        latency: Median latency in seconds, or ``None``.
        runtime: Runtime of the latency, or an empty string.
        dominated_by: Name of a run that is at least as good in everything and better in something, or an empty string.
        settings: Keys of its configuration, flat, that are not the same in all runs.
    """

    name: str
    directory: str
    metric: float | None
    num_bytes: int | None
    latency: float | None
    runtime: str = ""
    dominated_by: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The name, and the first of its settings."""
        shown = [f"{key}={value}" for key, value in list(self.settings.items())[:_MAX_SETTINGS]]
        more = len(self.settings) - len(shown)
        return ", ".join([self.name, *shown, *([f"{more} other keys"] if more else [])])


@dataclass(frozen=True)
class Tradeoff(Printed):
    """Comparison of runs; printed as a table.

    Attributes:
        metric: Name of the compared metric.
        runs: The runs, in the given order.
        notes: Sentences on what cannot be compared.
    """

    metric: str
    runs: tuple[ComparedRun, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the comparison as a JSON object with the attributes as keys."""
        return json.dumps(asdict(self), indent=1)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        numbers = {run.name: number for number, run in enumerate(self.runs, 1)}
        table = Table()
        table.add_column("", justify="right")
        table.add_column("run", overflow="fold")
        for column in (self.metric or "metric", "bytes", "latency"):
            table.add_column(column, justify="right")
        table.add_column("Pareto set", overflow="fold")
        for run in self.runs:
            metric = "" if run.metric is None else format_metric(self.metric, run.metric)
            place = f"dominated by {numbers[run.dominated_by]}" if run.dominated_by else "yes"
            cells = (
                str(numbers[run.name]),
                run.label,
                metric,
                format_bytes(run.num_bytes),
                format_seconds(run.latency),
                place,
            )
            table.add_row(*map(Text, cells), style="dim" if run.dominated_by else "")
        yield table
        for note in self.notes:
            yield Text(f"- {note}")


def compare_runs(reports: Sequence[tuple[str, RunReport]], metric: str = "") -> Tradeoff:
    """Compare runs by a metric, the bytes of their smallest file and their latency.

    Args:
        reports: Directory and report of each run.
        metric: Name of a test metric; by default an accuracy if there is one.

    Raises:
        ValueError: If no run has the metric.
    """
    results = [report.result for _, report in reports]
    metric = metric or main_metric([result for result in results if result is not None])
    runs = [_compared(directory, report, metric) for directory, report in reports]
    if metric and all(run.metric is None for run in runs):
        names = sorted({name for result in results if result is not None for name in result.metrics})
        raise ValueError(f"No run has the metric {metric!r}: choose one of {', '.join(names)}.")
    names = _unique_names(runs)
    settings = differing([report.config for _, report in reports])
    runs = [replace(run, name=name, settings=own) for run, name, own in zip(runs, names, settings, strict=True)]
    runtimes = {run.runtime for run in runs if run.latency is not None}
    notes = []
    if len(runtimes) > 1:
        notes.append(f"Latencies of different runtimes ({', '.join(sorted(runtimes))}) are not compared.")
    points = [_point(run, metric, with_latency=len(runtimes) == 1) for run in runs]
    dominators = [next((j for j, other in enumerate(points) if _dominates(other, point)), None) for point in points]
    marked = [
        run if index is None else replace(run, dominated_by=names[index])
        for run, index in zip(runs, dominators, strict=True)
    ]
    return Tradeoff(metric, tuple(marked), tuple(notes))


def draw_tradeoff(tradeoff: Tradeoff) -> bytes:
    """Draw the metric against bytes and latency as a PNG file; dominated runs are hollow.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure = new_figure(9.5, 4.2)
    left, right = figure.subplots(1, 2, sharey=True)
    sizes = [(run, run.num_bytes / 1e3) for run in tradeoff.runs if run.num_bytes is not None]
    times = [(run, 1e3 * run.latency) for run in tradeoff.runs if run.latency is not None]
    for axes, points, label in ((left, sizes, "smallest file (kB)"), (right, times, "latency (ms)")):
        _draw_points(axes, points, tradeoff.metric)
        axes.set_xlabel(label)
        clean(axes, grid="both")
    left.set_ylabel(tradeoff.metric)
    handles, labels = left.get_legend_handles_labels()
    if not handles:
        handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=1, frameon=False, fontsize=8)
    return as_png(figure)


def _draw_points(axes: Any, points: Sequence[tuple[ComparedRun, float]], metric: str) -> None:
    from matplotlib import colormaps

    shown = [(run, x) for run, x in points if run.metric is not None]
    for index, (run, x) in enumerate(shown):
        color = colormaps["tab10"](index % 10)
        face = "white" if run.dominated_by else color
        remarks = [*(["dominated"] if run.dominated_by else []), *([run.runtime] if run.runtime else [])]
        label = f"{run.label} ({', '.join(remarks)})" if remarks else run.label
        axes.plot(x, run.metric, "o", color=color, markerfacecolor=face, markersize=8, linestyle="none", label=label)
    if not shown:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="0.5")
    axes.margins(0.15)


def _compared(directory: str, report: RunReport, metric: str) -> ComparedRun:
    result, file, pair = report.result, smallest_file(report), timed_pair(report)
    timing = pair[1].timing if pair is not None else None
    return ComparedRun(
        name=report.name,
        directory=directory,
        metric=None if result is None else result.metrics.get(metric),
        num_bytes=None if file is None else file.num_bytes,
        latency=None if timing is None else timing.median,
        runtime="" if timing is None else timing.runtime,
    )


def _unique_names(runs: Sequence[ComparedRun]) -> list[str]:
    """Return the names of runs, with the names of their directories where several runs have one recipe."""
    names = [run.name for run in runs]
    return [
        run.name if names.count(run.name) == 1 else f"{run.name} {run.directory.rstrip('/').rpartition('/')[2]}"
        for run in runs
    ]


def _point(run: ComparedRun, metric: str, *, with_latency: bool) -> tuple[float, ...]:
    """Return the coordinates of a run, lower ones better; what was not measured is infinite."""
    sign = 1 if metric.lower().endswith(_LOWER_IS_BETTER) else -1
    value = float("inf") if run.metric is None else sign * run.metric
    latency = run.latency if with_latency and run.latency is not None else float("inf")
    return value, float("inf") if run.num_bytes is None else float(run.num_bytes), latency


def _dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))
