"""Files of a report: JSON, HTML, text and figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lightning_compress.atomic_files import atomic_write
from lightning_compress.reporting.html_report import render_html
from lightning_compress.reporting.run_figures import draw_run, file_name
from lightning_compress.reporting.run_report import RunReport
from lightning_compress.reporting.run_summary import RunSummary

HTML_FILE, TEXT_FILE, FIGURES = "report.html", "report.txt", "figures"


def write_report(report: RunReport, directory: Path) -> dict[str, Path]:
    """Write a report as ``report.json``, ``report.html``, ``report.txt`` and ``figures/*.png``.

    Older files are replaced. Without matplotlib no figures are written.

    Args:
        report: Report of a run.
        directory: Directory of the run.

    Returns:
        Kind to path, ``"figures"`` only if there are any.
    """
    paths = {"report": report.write(directory)}
    try:
        figures: Mapping[str, bytes] = draw_run(report)
    except ImportError:
        figures = {}
    for title, data in figures.items():
        with atomic_write(directory / FIGURES / file_name(title)) as partial:
            partial.write_bytes(data)
    texts = {"html": (HTML_FILE, render_html(report, figures)), "text": (TEXT_FILE, _as_text(report))}
    for kind, (name, text) in texts.items():
        with atomic_write(directory / name) as partial:
            partial.write_text(text)
        paths[kind] = directory / name
    return {**paths, "figures": directory / FIGURES} if figures else paths


def _as_text(report: RunReport) -> str:
    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        console.print(RunSummary(report), _layers(report))
    return capture.get()


def _layers(report: RunReport) -> Table:
    table = Table(title="Weights")
    table.add_column("weight", overflow="fold")
    for column in ("weights", "zeros", "sparsity", "distinct values", "bits", "bytes in the packed file"):
        table.add_column(column, justify="right")
    for layer in (*report.layers, report.weights):
        bits, num_bytes = ("" if n is None else f"{n:,}" for n in (layer.bits, layer.num_bytes))
        counts = (f"{n:,}" for n in (layer.num_weights, layer.num_zeros))
        table.add_row(layer.name, *counts, f"{layer.sparsity:.2%}", f"{layer.num_values:,}", bits, num_bytes)
    return table
