"""Schedules: the points of a run at which a technique starts, updates and reaches its target.

A time is an ``int`` (completed steps of the optimizer that owns the targets), a ``float`` in [0, 1] (a fraction of
the run) or a string such as ``"12ep"`` (epochs).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

# Tolerance in the comparison of times: k / n * n is not always k in floating point.
_EPSILON = 1e-6


@dataclass(frozen=True)
class Progress:
    """Position of a training run.

    Attributes:
        steps: Completed steps of the optimizer that owns the targets.
        fraction: Completed fraction of the run, in [0, 1]; ``None`` if the run has no bound.
        epochs: Completed epochs, including the fraction of the current one.
    """

    steps: int
    fraction: float | None
    epochs: float

    def at(self, time: int | float | str) -> float:
        """Return the position of the run in the unit of ``time``.

        Raises:
            ValueError: If ``time`` is a fraction and the run has no bound.
        """
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
        """Return True if the run is at or past ``time``; always True for time 0, even if the run has no bound."""
        return time_value(time) == 0 or self.at(time) >= time_value(time) - _EPSILON


def time_value(time: int | float | str) -> float:
    """Return the number in a time, without its unit.

    >>> time_value("12ep"), time_value(0.5), time_value(300)
    (12.0, 0.5, 300.0)
    """
    return float(time[:-2]) if isinstance(time, str) else float(time)


def check_time(name: str, time: int | float | str) -> None:
    """Check that a value is a valid time.

    Args:
        name: Name of the argument, for the error message.
        time: Value to check.

    Raises:
        ValueError: For a float outside [0, 1], a negative number, or a string that is not ``"<number>ep"``.
    """
    if isinstance(time, str):
        number = time[:-2] if time.endswith("ep") else ""
        if not number.replace(".", "", 1).isdigit():
            raise ValueError(
                f"{name}={time!r} is not a valid time: write '12ep' for epochs, an int for optimizer steps, "
                "or a float in [0, 1] for a fraction of the run."
            )
    elif isinstance(time, bool) or not isinstance(time, (int, float)):
        raise ValueError(
            f"{name}={time!r} is not a valid time: write an int, a float in [0, 1] or a string such as '12ep'."
        )
    elif isinstance(time, float) and not 0 <= time <= 1:
        raise ValueError(
            f"{name}={time} is a fraction of the run and must lie in [0, 1]; "
            f"write an int for optimizer steps or '{time:g}ep' for epochs."
        )
    elif time < 0:
        raise ValueError(f"{name}={time} must not be negative.")


def _same_unit(a: int | float | str, b: int | float | str) -> bool:
    return type(a) is type(b)


# Sparsity at the fraction x of the ramp, for a final sparsity s. Cubic: Zhu and Gupta 2017 (arXiv:1710.01878).
# Exponential removes the same fraction of the remaining weights per update, as iterative magnitude pruning does.
_CURVES: dict[str, Callable[[float, float], float]] = {
    "one_shot": lambda x, s: s,
    "linear": lambda x, s: s * x,
    "cubic": lambda x, s: s * (1 - (1 - x) ** 3),
    "exponential": lambda x, s: 1 - (1 - s) ** x,
    "cosine": lambda x, s: s * (1 - math.cos(math.pi * x)) / 2,
}


@dataclass(frozen=True)
class Schedule:
    """Schedule of the updates of a constraint, such as a pruning mask; the update at ``end`` is always made.

    Args:
        begin: Time of the first update.
        end: Time of the last update, when the target is reached.
        every: Time between updates; at least one step.
        curve: Shape of the ramp from zero to the target: ``"cubic"`` (Zhu and Gupta 2017, arXiv:1710.01878),
            ``"linear"``, ``"exponential"``, ``"cosine"``, or ``"one_shot"`` (the full target at ``begin``).

    Raises:
        ValueError: If a time or the curve is invalid, ``every`` is 0, ``begin`` is not before ``end`` or in another
            unit, and for ``end=1``, which is ambiguous.

    >>> schedule = Schedule(begin=0.0, end=0.5, curve="cubic")
    >>> schedule.sparsity(0.9, Progress(steps=25, fraction=0.25, epochs=1.0))
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
            raise ValueError(f"curve={self.curve!r} must be one of {', '.join(map(repr, _CURVES))}.")
        if isinstance(self.end, int) and self.end == 1:
            raise ValueError("end=1 is one optimizer step: write end=1.0 for the whole run or end='1ep' for one epoch.")
        if time_value(self.every) <= 0:
            raise ValueError(f"every={self.every!r} must be greater than 0.")
        if self.curve == "one_shot":
            return
        if time_value(self.begin) > 0 and not _same_unit(self.begin, self.end):
            raise ValueError(f"begin={self.begin!r} and end={self.end!r} must be in the same unit.")
        if time_value(self.begin) >= time_value(self.end):
            raise ValueError(f"begin={self.begin!r} must come before end={self.end!r}.")

    def tick(self, progress: Progress) -> int:
        """Return the index of the current update interval; -1 before ``begin``."""
        if not progress.reached(self.begin):
            return -1
        # Intervals are counted from ``begin`` only if both have the same unit; otherwise from the start of the run.
        origin = time_value(self.begin) if _same_unit(self.begin, self.every) else 0.0
        return math.floor((progress.at(self.every) - origin) / time_value(self.every) + _EPSILON)

    def finished(self, progress: Progress) -> bool:
        """Return True if the update that reaches the target is due or past."""
        return progress.reached(self.begin if self.curve == "one_shot" else self.end)

    def sparsity(self, target: float, progress: Progress) -> float:
        """Return the scheduled sparsity.

        Args:
            target: Final sparsity, the fraction of zeros in [0, 1).
            progress: Position of the run.
        """
        if self.finished(progress):
            return target
        if not progress.reached(self.begin):
            return 0.0
        return _CURVES[self.curve](self.ramp(progress), target)

    def ramp(self, progress: Progress) -> float:
        """Return the completed fraction of the ramp from ``begin`` to ``end``, in [0, 1]."""
        begin = time_value(self.begin) if _same_unit(self.begin, self.end) else 0.0
        fraction = (progress.at(self.end) - begin) / (time_value(self.end) - begin)
        return min(max(fraction, 0.0), 1.0)


@dataclass(frozen=True)
class QATSchedule:
    """Schedule of the phases of quantization-aware training.

    Args:
        observe: Time from which observers collect value ranges.
        fake_quantize: Time from which weights and activations are fake-quantized.
        freeze_observers: Time from which value ranges are frozen. Learned scales are parameters and stay trainable.
        freeze_batch_norm: Time from which batch norms use their running statistics and no longer update them.

    Raises:
        ValueError: If a time is invalid, or if fake quantization or freezing of observers would come before
            observation.

    >>> schedule = QATSchedule(fake_quantize="1ep", freeze_observers=0.5)
    >>> second_epoch = Progress(steps=150, fraction=0.15, epochs=1.5)
    >>> second_epoch.reached(schedule.fake_quantize), second_epoch.reached(schedule.freeze_observers)
    (True, False)
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
            too_late = (
                time_value(first) >= time_value(then)
                if later == "freeze_observers"
                else time_value(first) > time_value(then)
            )
            if _same_unit(first, then) and too_late:
                raise ValueError(f"{later}={then!r} must come after observe={first!r}, which collects the ranges.")
