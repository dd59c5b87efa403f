"""Networks with what they cost, as a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from lightning_compress.reporting.printed import Printed


@dataclass(frozen=True)
class Backbone:
    """A network of timm and what it costs.

    Attributes:
        name: What ``timm.create_model`` and ``ClassificationModule`` call it.
        family: Whose it is.
        params: Parameters, the classifier's included.
        macs: Multiply-accumulates of convolutions and matrix products for one image.
        fp32_bytes: Bytes of its parameters and buffers.
        int8_bytes: Bytes with convolutions and linear layers in integers, batch norms folded: one for each weight, 4
            for the scale and 4 for the int32 bias of each output channel, and 4 for each parameter of anything else.
        input_size: Height and width of the image in pixels.
        pretrained: Whether timm knows where pretrained weights are.
        latency: Median seconds for one image on this machine, if that was asked for.
    """

    name: str
    family: str
    params: int
    macs: int
    fp32_bytes: int
    int8_bytes: int
    input_size: int
    pretrained: bool
    latency: float | None = None


@dataclass(frozen=True)
class Catalogue(Printed):
    """Networks with what they cost; prints as a table.

    Attributes:
        rows: One for each.
        left_out: Names of those that do not take images of the size that was asked for.
    """

    rows: tuple[Backbone, ...]
    left_out: tuple[str, ...] = ()

    def sort(self, key: Callable[[Backbone], Any]) -> Catalogue:
        """The same with the smallest first, as in ``catalogue.sort(lambda row: row.macs)``."""
        return Catalogue(tuple(sorted(self.rows, key=key)), self.left_out)

    def filter(self, takes: Callable[[Backbone], bool]) -> Catalogue:
        """Those that it takes, as in ``catalogue.filter(lambda row: row.int8_bytes < 2**20)``."""
        return Catalogue(tuple(filter(takes, self.rows)), self.left_out)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.rows:
            yield self._table()
        else:
            yield "No network is within these limits."
        if self.left_out:
            yield f"Left out, as they do not take images of this size: {', '.join(self.left_out)}."

    def _table(self) -> Table:
        timed = any(row.latency is not None for row in self.rows)
        # As narrow as can be: the longest name and all figures fit into 80 columns.
        table = Table(title="Compact networks", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        table.add_column("network", overflow="fold")
        for column in ("params\nM", "MACs\nM", "fp32\nMB", "int8\nMB", "size\npx", *(["\nms"] if timed else [])):
            table.add_column(column, justify="right")
        table.add_column("pre-\ntrained")
        for row in self.rows:
            megabytes = (f"{size / 1e6:.1f}" for size in (row.fp32_bytes, row.int8_bytes))
            times = [f"{1e3 * row.latency:.1f}"] if row.latency is not None else [""] * timed
            trained = "yes" if row.pretrained else ""
            counts = f"{row.params / 1e6:.2f}", f"{row.macs / 1e6:,.1f}"
            table.add_row(row.name, *counts, *megabytes, str(row.input_size), *times, trained)
        return table
