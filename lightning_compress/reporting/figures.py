"""Pictures of what was measured; matplotlib is loaded when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_compress.atomic_files import written

_DECADES = 1e-6  # of the largest value, below which there is only noise
_MARKERS = "osD^vPX"


def draw_rises(path: str | Path, layers: Sequence[str], rises: Mapping[int, Sequence[float]], *, loss: float) -> None:
    """Draws how a loss rises, layer by layer on a logarithmic scale, a line for each number of bits.

    Args:
        path: PNG file to write.
        layers: Names along the axis.
        rises: By number of bits, of the loss with each layer; where it does not rise, the mark is hollow and below
            the scale, and where it is not finite there is none.
        loss: The loss that rises.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure, axes = _axes(layers)
    ends = _ends([*(value for values in rises.values() for value in values), loss])
    for index, (bits, values) in enumerate(sorted(rises.items())):
        _draw(axes, values, ends[0], label=f"{bits} bits", shade=0.9 * index / len(rises), marker=_MARKERS[index])
    if loss > 0:
        axes.axhline(loss, color="0.4", linestyle="--", linewidth=1, label=f"the loss in float, {loss:.3g}")
    axes.set_ylim(ends[0] / 2, ends[1])
    axes.set_ylabel("rise of the loss\n(hollow: none)")
    figure.legend(loc="outside upper center", ncols=len(rises) + 1, frameon=False)
    with written(path) as partial:
        figure.savefig(partial, format="png")


def _axes(layers: Sequence[str]) -> tuple[Any, Any]:
    """A figure that is wide enough for the names of all layers, and high enough for the longest."""
    try:
        from matplotlib.figure import Figure  # not pyplot, which would keep figures and open windows
    except ImportError as error:
        raise ImportError('A figure needs matplotlib: pip install "lightning-compress[export]".') from error
    size = max(6.4, 1.2 + 0.18 * len(layers)), 3.6 + 0.075 * max(map(len, layers))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.add_subplot(yscale="log", xlim=(-0.5, len(layers) - 0.5))
    axes.set_xticks(range(len(layers)), layers, rotation=90, fontsize=8)
    axes.grid(axis="both", color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Lower and upper end of a logarithmic scale."""
    positive = [value for value in values if 0 < value < float("inf")] or [1.0]
    return max(min(positive), max(positive) * _DECADES) / 2, max(positive) * 2


def _draw(axes: Any, values: Sequence[float], floor: float, *, label: str, shade: float, marker: str) -> None:
    from matplotlib import colormaps

    heights = [max(value, floor) for value in values]
    hollow = [x for x, height in enumerate(heights) if height == floor]
    line = {"color": colormaps["plasma"](shade), "marker": marker, "markersize": 4, "linewidth": 1}
    axes.plot(heights, **line, label=label)
    axes.plot(hollow, [floor] * len(hollow), **{**line, "linewidth": 0}, markerfacecolor="white")
