"""Streams of a packed tensor, plans to write them, and checks of their parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Parameter = int | str


@dataclass(frozen=True)
class Stream:
    """A sequence of bytes that holds one aspect of a packed tensor, for example its mask or its codebook.

    Attributes:
        kind: Kind of the encoding that reads it, for example ``"gaps"`` or ``"codebook"``.
        data: Bytes in the file.
        parameters: Integers and strings that the encoding needs to read the bytes.
    """

    kind: str
    data: bytes
    parameters: tuple[Parameter, ...] = ()


@dataclass(frozen=True)
class EncodingPlan:
    """Estimated size of some streams, and the function that writes them.

    Many plans are compared for every tensor, and only the cheapest is carried out.

    Attributes:
        num_bytes: Size in bytes, exact to within a few bytes.
        make: Returns the streams.
        num_fixed_bytes: Size in bytes with symbols of a fixed number of bits instead of entropy coding; infinite if
            the encoding has no such form.
    """

    num_bytes: float
    make: Callable[[], list[Stream]]
    num_fixed_bytes: float = math.inf

    def __add__(self, other: EncodingPlan) -> EncodingPlan:
        return EncodingPlan(
            self.num_bytes + other.num_bytes,
            lambda: self.make() + other.make(),
            self.num_fixed_bytes + other.num_fixed_bytes,
        )


def cheapest(*plans: EncodingPlan | None) -> EncodingPlan:
    """Return the plan with the fewest bytes, and the first one of several with the same size."""
    # The choice must be reproducible, so that the same tensors give the same file: `min` keeps the first of equals.
    return min((plan for plan in plans if plan is not None), key=lambda plan: plan.num_bytes)


def next_stream(streams: Iterator[Stream]) -> Stream:
    """Return the next stream of a tensor.

    Raises:
        ValueError: If there is none.
    """
    stream = next(streams, None)
    if stream is None:
        raise ValueError("a stream is missing")
    return stream


def checked_parameters(number: int, parameters: tuple[object, ...]) -> tuple[object, ...]:
    """Return the parameters of a stream if there are ``number`` of them.

    Raises:
        ValueError: If there are more or fewer.
    """
    if len(parameters) != number:
        raise ValueError(f"a stream must have {number} parameters, but has {len(parameters)}")
    return parameters


def checked_int(value: object, *, at_most: int, at_least: int = 0) -> int:
    """Return an integer read from a file if it lies within its bounds, which are inclusive.

    Raises:
        ValueError: If it is not an integer or out of bounds.
    """
    # JSON's true and false are integers in Python.
    if isinstance(value, bool) or not isinstance(value, int) or not at_least <= value <= at_most:
        raise ValueError(f"{str(value)[:40]!r} must be an integer from {at_least} to {at_most}")
    return value
