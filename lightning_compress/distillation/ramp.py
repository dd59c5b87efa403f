"""Weights of losses that change in the course of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_compress.schedules import Progress, Schedule


@dataclass(frozen=True)
class Ramp:
    """A weight that goes from ``first`` to ``last``: ``first`` until the schedule begins, ``last`` from its end.

    Args:
        first: The weight before.
        last: The weight after.
        schedule: When, and on what curve; with ``"one_shot"`` it jumps at ``begin``. The weight is that of each step:
            ``every`` does not matter.

    Raises:
        ValueError: For weights that are negative or not finite, and for the curve ``"exponential"``.

    >>> Ramp(0.0, 2.0).at(Progress(steps=25, fraction=0.25, epochs=1.0))
    0.5
    """

    first: float
    last: float
    schedule: Schedule = Schedule(end=1.0, curve="linear")

    def __post_init__(self) -> None:
        for name in ("first", "last"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"Ramp({name}={value}) is the weight of a loss and must be finite and not negative.")
        if self.schedule.curve == "exponential":
            # It removes a fixed part of what is left per step, and so is nowhere on its way to nothing.
            raise ValueError(
                "Ramp(schedule=Schedule(curve='exponential')) would be at its last weight at once: "
                "choose 'linear', 'cubic', 'cosine' or 'one_shot'."
            )

    def at(self, progress: Progress) -> float:
        """The weight now."""
        return self.first + (self.last - self.first) * self.schedule.sparsity(1.0, progress)
