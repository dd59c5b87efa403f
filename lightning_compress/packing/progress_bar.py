"""A progress bar, for which rich is loaded when one is wanted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def track(things: Iterable[T], doing: str, *, shown: bool) -> Iterable[T]:
    """The things, with a bar that says how many of them have been taken."""
    if not shown:
        return things
    from rich.progress import track as with_bar

    return with_bar(list(things), description=doing)
