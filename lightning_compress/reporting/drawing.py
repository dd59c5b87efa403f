"""Empty figures, and figures as files; matplotlib is imported when one is drawn."""

from __future__ import annotations

import io
from typing import Any

_GRID = "0.9"


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure, its size in inches.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        # Not pyplot: it would keep a reference to every figure and may open windows.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('A figure needs matplotlib: pip install "lightning-compress[export]".') from error
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def as_png(figure: Any) -> bytes:
    """Return a figure as the bytes of a PNG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def clean(axes: Any, *, grid: str = "x") -> None:
    """Remove the frame of axes and draw a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
