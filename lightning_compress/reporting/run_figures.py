"""Figures of a run: sizes, layers, weights and schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning_compress.reporting.drawing import as_png, clean, new_figure
from lightning_compress.reporting.heat_map import heat_map_figure
from lightning_compress.reporting.report_records import LayerResult, SensitivityMap, WeightHistogram
from lightning_compress.reporting.run_report import RunReport
from lightning_compress.reporting.units import format_bytes

_DENSE, _COMPRESSED = "#9aa5b1", "#1f6feb"
_MAX_LAYERS = 40
_COLUMNS = 3
_LOGARITHMIC = 50  # ratio of values above which an axis is logarithmic


def draw_run(report: RunReport) -> dict[str, bytes]:
    """Draw the figures of a run as PNG files.

    Args:
        report: Report of the run.

    Returns:
        Title to the bytes of the file; only figures that the report has data for.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figures: dict[str, tuple[bool, Callable[[RunReport], Any]]] = {
        "Size by stage": (len(report.sizes) > 1, _draw_sizes),
        "Sparsity and bits by layer": (bool(report.layers), _draw_layers),
        "Weights before and after": (bool(report.histograms), _draw_histograms),
        "Schedules": (bool(_drawn_schedules(report)), _draw_schedules),
    }
    drawn = {title: as_png(draw(report)) for title, (has_data, draw) in figures.items() if has_data}
    maps = {sensitivity_title(found): draw_sensitivity_map(found) for found in report.sensitivities if found.layers}
    return {**drawn, **maps}


def sensitivity_title(found: SensitivityMap) -> str:
    """Return the title of a figure of sensitivity."""
    return f"Sensitivity to {found.technique}"


def draw_sensitivity_map(found: SensitivityMap) -> bytes:
    """Draw the delta losses of layers as a heat map, a PNG file.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    return as_png(_sensitivity_figure(found))


def _sensitivity_figure(found: SensitivityMap) -> Any:
    levels = list(found.layers[0].delta_losses)
    columns = {level: [layer.delta_losses[level] for layer in found.layers] for level in levels}
    return heat_map_figure([_short(layer.layer) for layer in found.layers], columns)


def _draw_sizes(report: RunReport) -> Any:
    figure = new_figure(7.0, 1.0 + 0.42 * len(report.sizes))
    axes = figure.add_subplot()
    names, sizes = [s.name for s in report.sizes], [s.num_bytes for s in report.sizes]
    colors = [_DENSE] + [_COMPRESSED] * (len(sizes) - 1)
    bars = axes.barh(names, sizes, color=colors, height=0.65)
    labels = [f"{format_bytes(size)}  ({sizes[0] / max(size, 1):.1f}x)" for size in sizes]
    axes.bar_label(bars, [format_bytes(sizes[0]), *labels[1:]], padding=4, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, max(sizes) * 1.25)
    axes.xaxis.set_major_formatter(lambda value, _: format_bytes(round(value)))
    clean(axes)
    return figure


def _draw_layers(report: RunReport) -> Any:
    # The largest layers, in the order of the network.
    largest = set(sorted(report.layers, key=lambda layer: -layer.num_weights)[:_MAX_LAYERS])
    layers = [layer for layer in report.layers if layer in largest]
    figure = new_figure(9.0, 1.3 + 0.24 * len(layers))
    left, right = figure.subplots(1, 2, sharey=True)
    positions = range(len(layers))
    left.barh(positions, [100 * layer.sparsity for layer in layers], color=_COMPRESSED, height=0.7)
    left.set_yticks(positions, [_short(layer.name) for layer in layers], fontsize=8)
    left.set_xlim(0, 100)
    left.set_xlabel("sparsity (%)")
    left.invert_yaxis()
    bars = right.barh(positions, [_stored_bits(layer) for layer in layers], color=_COMPRESSED, height=0.7)
    right.bar_label(bars, [f"{_stored_bits(layer):.2g}" for layer in layers], padding=3, fontsize=8)
    right.set_xlim(0, max(8.0, 1.15 * max(map(_stored_bits, layers))))
    right.set_xlabel("bits per weight in the packed file")
    for axes in (left, right):
        clean(axes)
    return figure


def _draw_histograms(report: RunReport) -> Any:
    shown = report.histograms
    rows = -(-len(shown) // _COLUMNS)
    figure = new_figure(9.0, 0.5 + 2.1 * rows)
    grid = figure.subplots(rows, min(_COLUMNS, len(shown)), squeeze=False)
    for axes, histogram in zip(grid.flat, shown, strict=False):
        _draw_histogram(axes, histogram)
    for axes in list(grid.flat)[len(shown) :]:
        axes.set_axis_off()
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return figure


def _draw_histogram(axes: Any, histogram: WeightHistogram) -> None:
    for counts, color, label, alpha in (
        (histogram.before, _DENSE, "before", 0.7),
        (histogram.after, _COMPRESSED, "after, zeros left out", 0.8),
    ):
        width = (histogram.upper - histogram.lower) / max(len(counts), 1)
        centers = [histogram.lower + (index + 0.5) * width for index in range(len(counts))]
        # Relative to the largest bin of each: a few clusters hold all weights and would dwarf the rest.
        largest = max(counts, default=0) or 1
        axes.bar(centers, [n / largest for n in counts], width=width, color=color, alpha=alpha, label=label)
    axes.set_title(f"{_short(histogram.name)}\n{histogram.num_zeros:,} zeros", fontsize=8)
    axes.set_yticks([])
    axes.tick_params(labelsize=7)
    axes.spines["left"].set_visible(False)
    clean(axes)


def _draw_schedules(report: RunReport) -> Any:
    series = _drawn_schedules(report)
    figure = new_figure(7.0, 0.4 + 1.5 * len(series))
    grid = figure.subplots(len(series), 1, squeeze=False, sharex=True)
    for axes, (name, points) in zip(grid.flat, series.items(), strict=True):
        axes.step([step for step, _ in points], [value for _, value in points], where="post", color=_COMPRESSED)
        axes.set_ylabel(name.replace("_", "\n"), fontsize=8)
        values = [value for _, value in points if value > 0]
        if len(values) == len(points) and max(values) > _LOGARITHMIC * min(values):
            axes.set_yscale("log")
        axes.tick_params(labelsize=8)
        clean(axes, grid="both")
    grid[-1][0].set_xlabel("step")
    return figure


def _drawn_schedules(report: RunReport) -> dict[str, tuple[tuple[int, float], ...]]:
    """Return the series with a course; the time at which a target was reached shows in its own one."""
    return {n: points for n, points in report.schedules.items() if len(points) > 1 and not n.startswith("reached/")}


def _stored_bits(layer: LayerResult) -> float:
    if layer.num_bytes is not None and layer.num_weights:
        return 8 * layer.num_bytes / layer.num_weights
    return float(layer.bits or 32)


def _short(name: str, limit: int = 34) -> str:
    return name if len(name) <= limit else f"...{name[3 - limit :]}"


def file_name(title: str) -> str:
    """Return the file name of a figure.

    >>> file_name("Size by stage")
    'size-by-stage.png'
    """
    return f"{title.lower().replace(' ', '-')}.png"
