"""Loss weights that follow a schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_compress.schedules import Progress, Schedule


@dataclass(frozen=True)
class Ramp:
    """Loss weight that goes from ``first`` to ``last`` between the begin and the end of a schedule.

    Args:
        first: Weight until the schedule begins.
        last: Weight after the schedule ends.
        schedule: Begin, end and curve; with the curve ``"one_shot"`` the weight changes at ``begin``. The weight is
            computed in every step, whatever the schedule's ``every``.

    Raises:
        ValueError: If a weight is negative or not finite, or the curve is ``"exponential"``.

    >>> import lightning_compress as lc
    >>> ramp = lc.Ramp(0.0, 2.0, schedule=lc.Schedule(begin=0.0, end=0.5, curve="linear"))
    >>> [ramp.at(Progress(steps=n, fraction=n / 100, epochs=n / 10)) for n in (0, 25, 75)]
    [0.0, 1.0, 2.0]
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
            # The curve leaves (1 - final) ** progress, which for a final value of 1 is zero from the first step on.
            raise ValueError(
                "Ramp(schedule=Schedule(curve='exponential')) would reach its last weight at once: "
                "choose 'linear', 'cubic', 'cosine' or 'one_shot'."
            )

    def at(self, progress: Progress) -> float:
        """Return the weight at a point of the run."""
        return self.first + (self.last - self.first) * self.schedule.sparsity(1.0, progress)
