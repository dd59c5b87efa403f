"""What a run ends with: its test metrics, and those of what it was compared with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from lightning_compress.cli.artifact import Files


@dataclass(frozen=True)
class Comparison:
    """Test metrics side by side; prints as tables.

    Attributes:
        dense: Of the model without techniques; empty where there is none.
        compressed: Of the compressed model.
        files: What was exported, if anything was.
    """

    dense: dict[str, float]
    compressed: dict[str, float]
    files: Files | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The tables."""
        yield self._metrics()
        if self.files is not None:
            yield from _described(self.files)

    def _metrics(self) -> Table:
        table = Table(title="Test")
        table.add_column("metric")
        columns = {"dense": self.dense, "compressed": self.compressed}
        if self.files is not None:
            columns["file"] = self.files.metrics
        columns = {name: metrics for name, metrics in columns.items() if metrics}
        for name in [*columns, *(["change"] if self.dense else [])]:
            table.add_column(name, justify="right")
        for metric in self.compressed:
            values = [metrics.get(metric, float("nan")) for metrics in columns.values()]
            change = [f"{values[-1] - values[0]:+.4f}"] if self.dense else []
            table.add_row(metric, *(f"{value:.4f}" for value in values), *change)
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
