"""Heat map of the delta losses of layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_compress.reporting.drawing import new_figure

NOISE_FLOOR = 1e-6
"""Fraction of the largest delta loss below which others are noise, and would stretch a logarithmic scale."""


def heat_map_figure(layers: Sequence[str], columns: Mapping[str, Sequence[float]]) -> Any:
    """Draw delta losses with a logarithmic color scale.

    Args:
        layers: Layer names, one row each.
        columns: Label to the delta loss of each layer. Values that are not positive and finite are gray.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    width, height = 3.0 + 0.7 * len(columns) + 0.065 * max(map(len, layers)), max(2.4, 1.2 + 0.27 * len(layers))
    figure = new_figure(width, height)
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    values = [[column[row] for column in columns.values()] for row in range(len(layers))]
    positive = [value for row in values for value in row if 0 < value < math.inf]
    largest, smallest = max(positive, default=1.0), min(positive, default=0.1)
    norm = LogNorm(max(smallest, largest * NOISE_FLOOR), largest, clip=True)
    axes = figure.add_subplot()
    shown = [[value if 0 < value < math.inf else math.nan for value in row] for row in values]
    image = axes.imshow(shown, aspect="auto", cmap=colormaps["viridis"].with_extremes(bad="0.85"), norm=norm)
    for row, column in ((row, column) for row in range(len(layers)) for column in range(len(columns))):
        value = values[row][column]
        # Black on the bright half of the colors and on gray.
        is_dark = 0 < value < math.inf and norm(value) < 0.55
        color = "white" if is_dark else "black"
        axes.text(column, row, f"{value:+.2g}", ha="center", va="center", fontsize=7, color=color)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(layers)), layers, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, label="delta loss (gray: not positive)", pad=0.02)
    return figure
