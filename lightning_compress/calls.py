"""What a network is called with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def as_arguments(inputs: Any) -> Arguments:
    """Positional and keyword arguments of a tensor, a tuple, a dict, or a pair of a tuple and a dict.

    >>> as_arguments({"x": 1})
    ((), {'x': 1})
    """
    match inputs:
        case Mapping():
            return (), dict(inputs)
        case (tuple() as args, dict() as kwargs):
            return args, kwargs
        case tuple() | list():
            return tuple(inputs), {}
        case _:
            return (inputs,), {}
