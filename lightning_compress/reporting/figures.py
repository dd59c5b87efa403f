"""Figures of measurements; matplotlib is imported when a figure is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_compress.atomic_files import atomic_write
from lightning_compress.reporting.run_figures import new_figure

# Values below this fraction of the largest one are noise and would stretch the logarithmic axis.
_NOISE_FLOOR = 1e-6
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
        deltas: Number of bits, one column each, to the delta loss of each layer. Values that are not positive and
            finite are gray.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    bits = sorted(deltas)
    figure = new_figure(3.0 + 0.7 * len(bits) + 0.065 * max(map(len, layers)), max(2.4, 1.2 + 0.27 * len(layers)))
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    values = [[deltas[number][row] for number in bits] for row in range(len(layers))]
    largest = max((value for row in values for value in row if 0 < value < float("inf")), default=1.0)
    smallest = min((value for row in values for value in row if 0 < value < float("inf")), default=0.1)
    norm = LogNorm(max(smallest, largest * _NOISE_FLOOR), largest, clip=True)
    colors = colormaps["viridis"].with_extremes(bad="0.85")
    axes = figure.add_subplot()
    shown = [[value if 0 < value < float("inf") else float("nan") for value in row] for row in values]
    image = axes.imshow(shown, aspect="auto", cmap=colors, norm=norm)
    for row, column in ((row, column) for row in range(len(layers)) for column in range(len(bits))):
        value = values[row][column]
        # Black on the bright half of the colors and on gray.
        is_dark = 0 < value < float("inf") and norm(value) < 0.55
        color = "white" if is_dark else "black"
        axes.text(column, row, f"{value:+.2g}", ha="center", va="center", fontsize=7, color=color)
    axes.set_xticks(range(len(bits)), [f"{number} bits" for number in bits])
    axes.set_yticks(range(len(layers)), layers, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, label="delta loss (gray: not positive)", pad=0.02)
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
    return max(min(positive), max(positive) * _NOISE_FLOOR) / 2, max(positive) * 2


def _draw(axes: Any, values: Sequence[float], floor: float, *, label: str, shade: float, marker: str) -> None:
    from matplotlib import colormaps

    heights = [max(value, floor) for value in values]
    hollow = [x for x, height in enumerate(heights) if height == floor]
    line = {"color": colormaps["plasma"](shade), "marker": marker, "markersize": 4, "linewidth": 1}
    axes.plot(heights, **line, label=label)
    axes.plot(hollow, [floor] * len(hollow), **{**line, "linewidth": 0}, markerfacecolor="white")
