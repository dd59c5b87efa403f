"""What a run ends with: its test metrics, and those of what it was compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from lightning_compress.cli.onnx_evaluation import Files


@dataclass(frozen=True)
class Comparison:
    """Test metrics side by side; prints as tables.

    Attributes:
        columns: Of every model, in the order in which they are shown; those without metrics are left out.
        made: The column of the model that the run has made.
        base: The column that it is compared with.
        files: What was exported, if anything was.
    """

    columns: Mapping[str, Mapping[str, float]]
    made: str
    base: str
    files: Files | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The tables."""
        yield self._metrics()
        if self.files is not None:
            yield from _described(self.files)

    def _metrics(self) -> Table:
        table = Table(title="Test")
        table.add_column("metric")
        files = {} if self.files is None else {"file": self.files.metrics}
        columns = {name: metrics for name, metrics in {**self.columns, **files}.items() if metrics}
        compared = self.base in columns
        for name in [*columns, *(["change"] if compared else [])]:
            table.add_column(name, justify="right")
        for metric in self.columns[self.made]:
            values = {name: metrics.get(metric, float("nan")) for name, metrics in columns.items()}
            change = [f"{[*values.values()][-1] - values[self.base]:+.4f}"] if compared else []
            table.add_row(metric, *(f"{value:.4f}" for value in values.values()), *change)
        return table


def _described(files: Files) -> Iterator[Table | str]:
    table = Table(title="Files, run by ONNX Runtime on this CPU with one thread")
    for column in ("file", "bytes", "ms"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for file in (files.floats, files.integers):
        table.add_row(file.path.name, f"{file.num_bytes:,}", f"{1e3 * file.latency:.3f}")
    yield table
    integers = files.integers
    assert integers.parity is not None
    yield f"{integers.path.name}: {integers.integers}; {len(integers.parity.steps)} places, each within a step."
    if integers.parity.overflowing:
        yield (
            f"On this CPU, without VNNI, {len(integers.parity.overflowing)} of them overflow in the fast kernels; the "
            "metrics are those of the precise ones (session option session.x64quantprecision=1)."
        )
