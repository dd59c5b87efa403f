"""Progress bar; rich is imported only if one is shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], description: str, *, shown: bool) -> Iterable[T]:
    """Return the items; with ``shown`` a progress bar advances as they are taken."""
    if not shown:
        return items
    from rich.progress import track as with_bar

    return with_bar(list(items), description=description)
