"""Times in epochs, as schedules write them."""

from __future__ import annotations

import math


def epoch_time(epoch: float) -> str | float:
    """Return an epoch as a time; the start of the run for 0 and -1.

    Raises:
        ValueError: If it is not finite.

    >>> epoch_time(12.5), epoch_time(-1)
    ('12.5ep', 0.0)
    """
    if not math.isfinite(epoch):
        raise ValueError(f"epoch {epoch} must be finite")
    return f"{epoch:.6f}".rstrip("0").rstrip(".") + "ep" if epoch > 0 else 0.0
