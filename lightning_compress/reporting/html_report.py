"""The report of a run as one HTML file without links to other files."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from lightning_compress.reporting.report_records import ModelResult, SensitivityMap
from lightning_compress.reporting.run_figures import sensitivity_title
from lightning_compress.reporting.run_report import RunReport
from lightning_compress.reporting.run_summary import headline, metric_with_interval
from lightning_compress.reporting.units import format_metric

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2128; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; border-bottom: 1px solid #d8dee4; }
.headline { font-size: 1.15rem; font-weight: 600; background: #eef4ff; padding: .8rem 1rem; border-radius: 6px; }
.failure { background: #ffebe9; padding: .5rem 1rem; border-radius: 6px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #e6eaef; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { background: #f6f8fa; }
img { max-width: 100%; height: auto; display: block; margin: .5rem 0; }
pre { background: #f6f8fa; padding: .8rem; overflow-x: auto; font-size: 12px; }
"""

Row = Sequence[str]


def render_html(report: RunReport, figures: Mapping[str, bytes]) -> str:
    """Return a report as HTML; every number in it is one of the report's.

    Args:
        report: Report of the run.
        figures: Title to PNG file of each figure, which are embedded.
    """
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(report.name)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>\n{''.join(_sections(report, figures))}</body></html>\n"
    )


def _sections(report: RunReport, figures: Mapping[str, bytes]) -> Iterator[str]:
    yield f'<h1>{escape(report.name)}</h1>\n<p class="headline">{escape(headline(report))}</p>\n'
    yield from (f'<p class="failure">{escape(failure)}</p>\n' for failure in report.failures)
    if report.notes:
        yield f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in report.notes)}</ul>\n"
    yield _section("Models and files", *_models_table(report))
    if report.sizes:
        rows = [[size.name, f"{size.num_bytes:,}"] for size in report.sizes]
        yield _section("Size by stage", ["stage", "bytes"], rows, figures.get("Size by stage"))
    for title in ("Weights before and after", "Schedules"):
        if title in figures:
            yield f"<h2>{title}</h2>\n{_image(title, figures[title])}"
    if report.layers:
        title = "Sparsity and bits by layer"
        yield _section(title, *_layers_table(report), figures.get(title))
    for found in report.sensitivities:
        title = sensitivity_title(found)
        yield _section(title, *_sensitivity_table(found), figures.get(title))
    if report.unquantized_ops:
        yield _section("Unquantized ops (FP32)", ["call"], [[name] for name in report.unquantized_ops])
    environment = {**report.environment, "command": report.command, "created": report.created}
    environment |= {"seed": "none" if report.seed is None else str(report.seed)}
    yield _section("Environment", ["", ""], [[name, value] for name, value in environment.items()])
    yield f"<h2>Configuration</h2>\n<pre>{escape(json.dumps(report.config, indent=1))}</pre>\n"


def _models_table(report: RunReport) -> tuple[list[str], list[Row]]:
    metrics = list(dict.fromkeys(name for model in report.models for name in model.metrics))
    header = ["model", *metrics, "samples", "parameters", "MACs", "bytes", "file"]
    header += ["median (ms)", "p95 (ms)", "batch", "threads", "runtime", "energy (J)"]
    return header, [_model_row(model, metrics) for model in report.models]


def _model_row(model: ModelResult, metrics: Sequence[str]) -> Row:
    values = [_metric(model, name) for name in metrics]
    counts = [_count(n) for n in (model.num_samples, model.num_parameters, model.macs, model.num_bytes)]
    timing = model.timing
    if timing is None:
        return [model.title, *values, *counts, model.file, *[""] * 6]
    energy = "not measurable here" if timing.joules is None else f"{timing.joules:.4g}"
    times = [f"{1e3 * seconds:.3f}" for seconds in (timing.median, timing.p95)]
    measured = [*times, str(timing.batch_size), str(timing.num_threads), timing.runtime, energy]
    return [model.title, *values, *counts, model.file, *measured]


def _metric(model: ModelResult, name: str) -> str:
    def interval(lower: float, upper: float) -> str:
        return f"({format_metric(name, lower)} to {format_metric(name, upper)})"

    return metric_with_interval(model, name, interval)


def _layers_table(report: RunReport) -> tuple[list[str], list[Row]]:
    header = ["weight", "shape", "weights", "zeros", "sparsity", "distinct values", "bits", "bytes in the packed file"]
    rows = [
        [
            layer.name,
            " x ".join(map(str, layer.shape)),
            f"{layer.num_weights:,}",
            f"{layer.num_zeros:,}",
            f"{layer.sparsity:.2%}",
            f"{layer.num_values:,}",
            "FP32" if layer.bits is None else str(layer.bits),
            _count(layer.num_bytes),
        ]
        for layer in report.layers
    ]
    total = report.weights
    return header, [
        *rows,
        [total.name, "", f"{total.num_weights:,}", f"{total.num_zeros:,}", f"{total.sparsity:.2%}", "", "", ""],
    ]


def _sensitivity_table(found: SensitivityMap) -> tuple[list[str], list[Row]]:
    levels = list(found.layers[0].delta_losses) if found.layers else []
    rows: list[Row] = [
        [layer.layer, *(f"{layer.delta_losses[level]:+.3g}" for level in levels)] for layer in found.layers
    ]
    return [f"delta loss (loss {found.loss:.4g})", *levels], rows


def _section(title: str, header: Row, rows: Sequence[Row], figure: bytes | None = None) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    table = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>\n'
    return f"<h2>{escape(title)}</h2>\n{_image(title, figure) if figure else ''}{table}"


def _image(title: str, figure: bytes) -> str:
    return f'<img alt="{escape(title)}" src="data:image/png;base64,{base64.b64encode(figure).decode()}">\n'


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"
