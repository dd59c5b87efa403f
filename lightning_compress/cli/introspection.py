"""Type hints and classes that a configuration may contain."""

from __future__ import annotations

import argparse
import collections.abc
import inspect
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from jsonargparse import ArgumentParser


def argument_hints(cls: Any) -> dict[str, Any]:
    """Return the type hints of the constructor arguments of a class; empty for anything but a class."""
    if not inspect.isclass(cls):
        return {}
    try:
        hints = typing.get_type_hints(cls.__init__)
    except (NameError, TypeError):
        hints = {}
    return {name: hints.get(name) for name in inspect.signature(cls).parameters}


def members(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the hint itself.

    >>> members(int | None)
    (<class 'int'>, <class 'NoneType'>)
    """
    is_union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return typing.get_args(hint) if is_union else (hint,)


def classes_in(hint: Any) -> list[type]:
    """Return the classes in a type hint that have arguments; of a callable, those that it returns.

    >>> classes_in(argparse.Namespace | int | list[int] | None)
    [<class 'argparse.Namespace'>]
    """
    found: list[type] = []
    for member in members(hint):
        if typing.get_origin(member) is collections.abc.Callable:
            found += classes_in(typing.get_args(member)[1])
        elif inspect.isclass(member) and member not in _WORDS and typing.get_origin(member) is None:
            found.append(member)
    return found


def num_arguments(hint: Any) -> int:
    """Return the number of arguments with which a callable in a type hint is called; 0 if there is none."""
    callables = [member for member in members(hint) if typing.get_origin(member) is collections.abc.Callable]
    arguments = typing.get_args(callables[0])[0] if callables else ()
    return len(arguments) if isinstance(arguments, list) else 0


def item_hint(hint: Any, kind: type) -> Any:
    """Return the type hint of the items of a sequence or a mapping in a type hint, or ``None``.

    Args:
        hint: Type hint.
        kind: ``collections.abc.Sequence`` or ``collections.abc.Mapping``.

    >>> item_hint(float | dict[str, int], collections.abc.Mapping)
    <class 'int'>
    """
    for member in members(hint):
        origin, arguments = typing.get_origin(member), typing.get_args(member)
        if inspect.isclass(origin) and issubclass(origin, kind) and arguments:
            return arguments[-1] if kind is collections.abc.Mapping else arguments[0]
    return None


def accepts(hint: Any, value: Any) -> bool:
    """Return True if jsonargparse accepts a value of a configuration for a type hint."""
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--value", type=hint)
        parser.parse_object({"value": value})
    except (argparse.ArgumentError, ValueError):
        return False
    return True


def describe(hint: Any) -> str:
    """Return the values that a type hint allows, in words.

    >>> describe(int | None)
    'an integer or null'
    >>> describe(Literal["a", "b"])
    "one of 'a', 'b'"
    """
    choices = [repr(choice) for member in members(hint) for choice in typing.get_args(member) if _is_literal(member)]
    words = [f"one of {', '.join(choices)}"] if choices else []
    words += [_describe_member(member) for member in members(hint) if not _is_literal(member)]
    return " or ".join(dict.fromkeys(words))


def _is_literal(member: Any) -> bool:
    return typing.get_origin(member) is Literal


def _describe_member(member: Any) -> str:
    origin = typing.get_origin(member) or member
    if origin in _WORDS:
        return _WORDS[origin]
    if inspect.isclass(origin) and issubclass(origin, collections.abc.Mapping):
        return "a mapping"
    if inspect.isclass(origin) and issubclass(origin, collections.abc.Iterable) and typing.get_args(member):
        return "a list"
    return getattr(origin, "__name__", str(origin))


_WORDS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    str: "a string",
    bool: "true or false",
    type(None): "null",
    dict: "a mapping",
    list: "a list",
    type: "a class path",
    collections.abc.Callable: "a class path",
}


def concrete_names(base: type[Any]) -> Iterable[str]:
    """Yield the names of the public classes below ``base`` that can be instantiated; its own if there are none."""
    below = [base, *subclasses(base)]
    names = [each.__name__ for each in below[1:] or below if not inspect.isabstract(each)]
    yield from (name for name in dict.fromkeys(names) if not name.startswith("_"))


def subclasses(base: type[Any]) -> Iterator[type[Any]]:
    """Yield all imported classes below ``base``."""
    for subclass in base.__subclasses__():
        yield subclass
        yield from subclasses(subclass)
