"""The table of networks and their costs."""

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
    """Costs of one timm network.

    Attributes:
        name: Name in ``timm.create_model`` and :class:`ClassificationModule`.
        family: Family of architectures.
        params: Number of parameters, including the classifier.
        macs: Multiply-accumulates of convolutions and matrix products for one image.
        fp32_bytes: Bytes of parameters and buffers in FP32.
        int8_bytes: Bytes with convolutions and linear layers quantized to INT8 and batch norms folded: 1 for each
            weight, 8 for the scale and int32 bias of each output channel, and 4 for each other parameter.
        input_size: Height and width of the image in pixels.
        pretrained: True if timm has pretrained weights.
        latency: Median latency for one image on this machine in seconds, or ``None`` if it was not measured.
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
    """Networks and their costs, as returned by :func:`backbones`; ``str`` and rich render it as a table.

    Attributes:
        rows: One row per network.
        left_out: Names of the networks that do not support the requested input size.

    >>> import lightning_compress as lc
    >>> catalogue = lc.backbones("mobilenetv3*").filter(lambda row: row.int8_bytes < 3e6).sort(lambda row: row.macs)
    >>> [row.name for row in catalogue.rows]
    ['mobilenetv3_small_050', 'mobilenetv3_small_075', 'mobilenetv3_small_100']
    """

    rows: tuple[Backbone, ...]
    left_out: tuple[str, ...] = ()

    def sort(self, key: Callable[[Backbone], Any]) -> Catalogue:
        """Return the catalogue with rows in ascending order of a key.

        Args:
            key: Function from a row to its sort key.
        """
        return Catalogue(tuple(sorted(self.rows, key=key)), self.left_out)

    def filter(self, takes: Callable[[Backbone], bool]) -> Catalogue:
        """Return the catalogue with only the rows that satisfy a predicate.

        Args:
            takes: Predicate; returns True for the rows to keep.
        """
        return Catalogue(tuple(filter(takes, self.rows)), self.left_out)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.rows:
            yield self._table()
        else:
            yield "No network is within these limits."
        if self.left_out:
            yield f"Left out because they do not support this input size: {', '.join(self.left_out)}."

    def _table(self) -> Table:
        timed = any(row.latency is not None for row in self.rows)
        # As narrow as possible: the longest name and all columns fit into a terminal of 80 columns.
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
