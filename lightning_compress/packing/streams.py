"""The pieces that a packed tensor is made of, and what one way of packing would cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Parameter = int | str


@dataclass(frozen=True)
class Stream:
    """A piece of a packed tensor.

    Attributes:
        kind: What it holds, such as ``"gaps"`` or ``"codebook"``.
        data: Its bytes in the file.
        parameters: What is needed to read them.
    """

    kind: str
    data: bytes
    parameters: tuple[Parameter, ...] = ()


@dataclass(frozen=True)
class EncodingPlan:
    """One way of packing, before it is done.

    Attributes:
        num_bytes: How many bytes it will take, to within a few.
        make: Does it.
    """

    num_bytes: float
    make: Callable[[], list[Stream]]

    def __add__(self, other: EncodingPlan) -> EncodingPlan:
        return EncodingPlan(self.num_bytes + other.num_bytes, lambda: self.make() + other.make())


def cheapest(*plans: EncodingPlan | None) -> EncodingPlan:
    """Of the plans that there are, the one with the fewest bytes; of equal ones the first."""
    return min((plan for plan in plans if plan is not None), key=lambda plan: plan.num_bytes)


def exactly(number: int, parameters: tuple[object, ...]) -> tuple[object, ...]:
    """The parameters of a stream, if they are so many.

    Raises:
        ValueError: If they are not.
    """
    if len(parameters) != number:
        raise ValueError(f"a stream has {len(parameters)} parameters instead of {number}")
    return parameters


def whole(value: object, *, at_most: int, at_least: int = 0) -> int:
    """A number that a file claims, if it is whole and within its bounds.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not at_least <= value <= at_most:
        raise ValueError(f"{str(value)[:40]!r} is no whole number from {at_least} to {at_most}")
    return value
