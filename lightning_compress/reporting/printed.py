"""Tables as text."""

from __future__ import annotations

from rich.console import Console


class Printed:
    """What rich can print and ``str`` prints alike, without colours and in 100 columns."""

    def __str__(self) -> str:
        console = Console(width=100, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip()
