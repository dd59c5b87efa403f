"""Plain-text rendering of rich tables."""

from __future__ import annotations

from rich.console import Console


class Printed:
    """Mixin for rich renderables: ``str`` renders them as plain text, 100 columns wide and without colors."""

    def __str__(self) -> str:
        console = Console(width=100, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip()
