"""Positional and keyword arguments of a forward call, and the reason that a call failed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def as_arguments(inputs: Any) -> Arguments:
    """Convert example inputs to positional and keyword arguments.

    Args:
        inputs: A single tensor, a tuple or list of positional arguments, a mapping of keyword arguments, or a pair of
            a tuple and a dict.

    Returns:
        The positional arguments and the keyword arguments.

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


def reason(error: Exception) -> str:
    r"""Return the first line of an exception's message, without ANSI colours.

    >>> reason(ValueError("no such operator\nmore"))
    'no such operator'
    """
    lines = _COLOURS.sub("", str(error)).strip().splitlines()
    return lines[0].rstrip(" .:") if lines else type(error).__name__
