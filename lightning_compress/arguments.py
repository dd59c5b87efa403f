"""Positional and keyword arguments of a forward call, and the reason that a call failed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

_COLORS = re.compile(r"\x1b\[[0-9;]*m")

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


def call_model(model: Callable[..., Any], inputs: Any) -> Any:
    """Call a model with a tensor, a tuple of positional or a dict of keyword arguments.

    >>> call_model(divmod, (7, 2))
    (3, 1)
    """
    args, kwargs = as_arguments(inputs)
    return model(*args, **kwargs)


def reason(error: BaseException) -> str:
    r"""Return the first line of an exception's message, without ANSI colors.

    >>> reason(ValueError("no such operator\nmore"))
    'no such operator'
    """
    lines = _COLORS.sub("", str(error)).strip().splitlines()
    return lines[0].rstrip(" .:") if lines else type(error).__name__
