"""When, and how far along.

A time is an ``int`` (completed steps of the optimizer that owns the targets), a ``float`` in [0, 1] (a fraction of
the run) or a string such as ``"12ep"`` (epochs).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

# A step more than this before a boundary counts as before it: k / n * n is not always k in floating point.
_EPSILON = 1e-6


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        steps: Completed steps of the optimizer that owns the targets.
        fraction: Part of the run that is done, in [0, 1]; ``None`` where the run has no bound.
        epochs: Epochs done, with the fraction of the current one.
    """

    steps: int
    fraction: float | None
    epochs: float

    def at(self, time: int | float | str) -> float:
        """Where the run stands now, in the unit of ``time``."""
        if isinstance(time, str):
            return self.epochs
        if isinstance(time, int):
            return self.steps
        if self.fraction is None:
            raise ValueError(
                f"A fraction of the run ({time}) needs a bound: set the Trainer's max_epochs or max_steps, "
                "or write an int (optimizer steps) or a string such as '12ep' (epochs)."
            )
        return self.fraction

    def reached(self, time: int | float | str) -> bool:
        """Whether ``time`` has come; the beginning of a run always has, also of one without bound."""
        return amount(time) == 0 or self.at(time) >= amount(time) - _EPSILON


def amount(time: int | float | str) -> float:
    """The number in a time, without its unit.

    >>> amount("12ep"), amount(0.5), amount(300)
    (12.0, 0.5, 300.0)
    """
    return float(time[:-2]) if isinstance(time, str) else float(time)


def check_time(name: str, time: int | float | str) -> None:
    """Refuses what is no time.

    Raises:
        ValueError: For a float outside [0, 1], a negative number, or a string that is not ``"<number>ep"``.
    """
    if isinstance(time, str):
        number = time[:-2] if time.endswith("ep") else ""
        if not number.replace(".", "", 1).isdigit():
            raise ValueError(
                f"{name}={time!r} is no time: write '12ep' for epochs, an int for optimizer steps, "
                "or a float in [0, 1] for a fraction of the run."
            )
    elif isinstance(time, bool) or not isinstance(time, (int, float)):
        raise ValueError(f"{name}={time!r} is no time: write an int, a float in [0, 1] or a string such as '12ep'.")
    elif isinstance(time, float) and not 0 <= time <= 1:
        raise ValueError(
            f"{name}={time} is a fraction of the run and must lie in [0, 1]; "
            f"write an int for optimizer steps or '{time:g}ep' for epochs."
        )
    elif time < 0:
        raise ValueError(f"{name}={time} must not be negative.")


def _same_unit(a: int | float | str, b: int | float | str) -> bool:
    return type(a) is type(b)


# How sparse at the fraction x of the ramp, for a final sparsity s. Cubic: Zhu and Gupta 2017 (arXiv:1710.01878).
# Exponential keeps the fraction removed per update constant, as in iterative magnitude pruning.
_CURVES: dict[str, Callable[[float, float], float]] = {
    "one_shot": lambda x, s: s,
    "linear": lambda x, s: s * x,
    "cubic": lambda x, s: s * (1 - (1 - x) ** 3),
    "exponential": lambda x, s: 1 - (1 - s) ** x,
    "cosine": lambda x, s: s * (1 - math.cos(math.pi * x)) / 2,
}


@dataclass(frozen=True)
class Schedule:
    """When a constraint is updated and how far it has come; the last update, at ``end``, always lands.

    Args:
        begin: Time of the first update.
        end: Time of the last update, when the target is reached.
        every: Time between updates; never less than one step.
        curve: Shape of the way from nothing to the target: ``"cubic"`` (Zhu and Gupta 2017), ``"linear"``,
            ``"exponential"``, ``"cosine"``, or ``"one_shot"`` (all of it at ``begin``).

    Raises:
        ValueError: For what is no time, for ``begin`` after ``end``, and for ``end=1``, which is ambiguous.

    >>> Schedule(end=0.5).sparsity(0.9, Progress(steps=25, fraction=0.25, epochs=1.0))
    0.7875
    """

    begin: int | float | str = 0.0
    end: int | float | str = 0.7
    every: int | float | str = 0.01
    curve: Literal["one_shot", "linear", "cubic", "exponential", "cosine"] = "cubic"

    def __post_init__(self) -> None:
        for name in ("begin", "end", "every"):
            check_time(name, getattr(self, name))
        if self.curve not in _CURVES:
            raise ValueError(f"curve={self.curve!r} is unknown: choose one of {', '.join(map(repr, _CURVES))}.")
        if isinstance(self.end, int) and self.end == 1:
            raise ValueError("end=1 is one optimizer step: write end=1.0 for the whole run or end='1ep' for one epoch.")
        if amount(self.every) <= 0:
            raise ValueError(f"every={self.every!r} must be above zero.")
        if self.curve == "one_shot":
            return
        if amount(self.begin) > 0 and not _same_unit(self.begin, self.end):
            raise ValueError(f"begin={self.begin!r} and end={self.end!r} must be in the same unit.")
        if amount(self.begin) >= amount(self.end):
            raise ValueError(f"begin={self.begin!r} must come before end={self.end!r}.")

    def tick(self, progress: Progress) -> int:
        """Index of the update interval the run is in; -1 before ``begin``."""
        if not progress.reached(self.begin):
            return -1
        origin = amount(self.begin) if _same_unit(self.begin, self.every) else 0.0
        return math.floor((progress.at(self.every) - origin) / amount(self.every) + _EPSILON)

    def landed(self, progress: Progress) -> bool:
        """Whether the update that reaches the target is due or past."""
        return progress.reached(self.begin if self.curve == "one_shot" else self.end)

    def sparsity(self, target: float, progress: Progress) -> float:
        """Sparsity due now on the way to ``target``, both as fractions of all weights in [0, 1)."""
        if self.landed(progress):
            return target
        if not progress.reached(self.begin):
            return 0.0
        return _CURVES[self.curve](self.ramp(progress), target)

    def ramp(self, progress: Progress) -> float:
        """The part of the way from ``begin`` to ``end`` that is done, in [0, 1]."""
        begin = amount(self.begin) if _same_unit(self.begin, self.end) else 0.0
        part = (progress.at(self.end) - begin) / (amount(self.end) - begin)
        return min(max(part, 0.0), 1.0)


@dataclass(frozen=True)
class QATSchedule:
    """When what happens in quantization-aware training.

    Args:
        observe: From here on ranges are looked for.
        fake_quantize: From here on weights and activations are rounded.
        freeze_observers: From here on ranges stay. Learned scales are parameters and go on.
        freeze_batch_norm: From here on batch norms use their running statistics, and leave them as they are.

    Raises:
        ValueError: For what is no time, and for rounding before observing.
    """

    observe: int | float | str = 0.0
    fake_quantize: int | float | str = 0.0
    freeze_observers: int | float | str = 0.5
    freeze_batch_norm: int | float | str = 0.75

    def __post_init__(self) -> None:
        for name in ("observe", "fake_quantize", "freeze_observers", "freeze_batch_norm"):
            check_time(name, getattr(self, name))
        for later in ("fake_quantize", "freeze_observers"):
            first, then = self.observe, getattr(self, later)
            too_late = amount(first) >= amount(then) if later == "freeze_observers" else amount(first) > amount(then)
            if _same_unit(first, then) and too_late:
                raise ValueError(f"{later}={then!r} must come after observe={first!r}: ranges have to be seen first.")
