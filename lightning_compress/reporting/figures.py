"""Figures of measurements; matplotlib is imported when a figure is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_compress.atomic_files import atomic_write
from lightning_compress.reporting.drawing import new_figure
from lightning_compress.reporting.heat_map import NOISE_FLOOR, heat_map_figure

_MARKERS = "osD^vPX"


def draw_sensitivity(
    path: str | Path, layers: Sequence[str], deltas: Mapping[int, Sequence[float]], *, loss: float
) -> None:
    """Draw the delta loss of every layer on a logarithmic scale, one line per number of bits.

    Args:
        path: PNG file to write.
        layers: Layer names along the horizontal axis.
        deltas: Number of bits to the delta loss of each layer. Values that are not positive are drawn as hollow
            markers at the bottom, values that are not finite are omitted.
        loss: Loss of the FP32 model.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure, axes = _axes(layers)
    lower, upper = _limits([*(value for values in deltas.values() for value in values), loss])
    for index, (bits, values) in enumerate(sorted(deltas.items())):
        _draw(axes, values, lower, label=f"{bits} bits", shade=0.9 * index / len(deltas), marker=_MARKERS[index])
    if loss > 0:
        axes.axhline(loss, color="0.4", linestyle="--", linewidth=1, label=f"FP32 loss, {loss:.3g}")
    axes.set_ylim(lower / 2, upper)
    axes.set_ylabel("sensitivity (delta loss)\n(hollow: not positive)")
    figure.legend(loc="outside upper center", ncols=len(deltas) + 1, frameon=False)
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png")


def draw_heat_map(path: str | Path, layers: Sequence[str], deltas: Mapping[int, Sequence[float]]) -> None:
    """Draw the delta loss of every layer and number of bits as a heat map with a logarithmic color scale.

    Args:
        path: PNG file to write.
        layers: Layer names, one row each.
        deltas: Number of bits, one column each, to the delta loss of each layer.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure = heat_map_figure(layers, {f"{bits} bits": deltas[bits] for bits in sorted(deltas)})
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png")


def _axes(layers: Sequence[str]) -> tuple[Any, Any]:
    """Create a figure wide enough for all layer names and high enough for the longest one."""
    size = max(6.4, 1.2 + 0.18 * len(layers)), 3.6 + 0.075 * max(map(len, layers))
    figure = new_figure(*size)
    axes = figure.add_subplot(yscale="log", xlim=(-0.5, len(layers) - 0.5))
    axes.set_xticks(range(len(layers)), layers, rotation=90, fontsize=8)
    axes.grid(axis="both", color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Return the lower and upper limit of a logarithmic axis."""
    positive = [value for value in values if 0 < value < float("inf")] or [1.0]
    return max(min(positive), max(positive) * NOISE_FLOOR) / 2, max(positive) * 2


def _draw(axes: Any, values: Sequence[float], floor: float, *, label: str, shade: float, marker: str) -> None:
    from matplotlib import colormaps

    heights = [max(value, floor) for value in values]
    hollow = [x for x, height in enumerate(heights) if height == floor]
    line = {"color": colormaps["plasma"](shade), "marker": marker, "markersize": 4, "linewidth": 1}
    axes.plot(heights, **line, label=label)
    axes.plot(hollow, [floor] * len(hollow), **{**line, "linewidth": 0}, markerfacecolor="white")
