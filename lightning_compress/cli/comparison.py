"""Table of test metrics at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from lightning_compress.cli.onnx_evaluation import OnnxEvaluation


@dataclass(frozen=True)
class Comparison:
    """Test metrics of several models side by side; printed as tables.

    Attributes:
        columns: Column title to test metrics, in the order of the columns; empty ones are not shown.
        result: Title of the column of the model that the run has produced.
        baseline: Title of the column that it is compared with.
        exported: Exported files, if any.
    """

    columns: Mapping[str, Mapping[str, float]]
    result: str
    baseline: str
    exported: OnnxEvaluation | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._metrics()
        if self.exported is not None:
            yield from _describe(self.exported)

    def _metrics(self) -> Table:
        table = Table(title="Test metrics")
        table.add_column("metric")
        onnx = {} if self.exported is None else {"INT8 ONNX": self.exported.metrics}
        columns = {title: metrics for title, metrics in {**self.columns, **onnx}.items() if metrics}
        has_baseline = self.baseline in columns
        for title in [*columns, *(["change"] if has_baseline else [])]:
            table.add_column(title, justify="right")
        for metric in self.columns[self.result]:
            values = {title: metrics.get(metric, float("nan")) for title, metrics in columns.items()}
            # The change is that of the last column, the model that is deployed.
            change = [f"{[*values.values()][-1] - values[self.baseline]:+.4f}"] if has_baseline else []
            table.add_row(metric, *(f"{value:.4f}" for value in values.values()), *change)
        return table


def _describe(exported: OnnxEvaluation) -> Iterator[Table | str]:
    table = Table(title="Exported files, run by ONNX Runtime on this CPU with one thread")
    for column in ("file", "bytes", "latency (ms)"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for file in (exported.fp32, exported.int8):
        table.add_row(file.path.name, f"{file.num_bytes:,}", f"{1e3 * file.latency:.3f}")
    yield table
    int8 = exported.int8
    assert int8.parity is not None
    yield f"{int8.path.name}: {int8.integers}; {len(int8.parity.steps)} tensors, each within 1 LSB of the model."
