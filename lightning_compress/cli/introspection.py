"""Keys, type hints and classes that a configuration may contain."""

from __future__ import annotations

import argparse
import inspect
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any


def parser_keys(parser: argparse.ArgumentParser) -> Iterable[str]:
    """Yield the keys of a parser and of its subcommands, and the groups that contain them."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from parser_keys(subparser)
        elif not action.dest.endswith("help"):
            yield action.dest
            yield action.dest.partition(".")[0]


def argument_hints(cls: Any) -> dict[str, Any]:
    """Return the type hints of the constructor arguments of a class; empty for anything but a class."""
    if not inspect.isclass(cls):
        return {}
    try:
        hints = typing.get_type_hints(cls.__init__)
    except (NameError, TypeError):
        hints = {}
    return {name: hints.get(name) for name in inspect.signature(cls).parameters}


def classes_in(hint: Any) -> list[type]:
    """Return the classes in a type hint, except ``None``."""
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) else (hint,)
    return [member for member in members if inspect.isclass(member) and member is not type(None)]


def concrete_names(base: type[Any]) -> Iterable[str]:
    """Yield the names of the public classes below ``base`` that can be instantiated; its own if there are none."""
    below = [base, *_subclasses(base)]
    names = [each.__name__ for each in below[1:] or below if not inspect.isabstract(each)]
    yield from (name for name in dict.fromkeys(names) if not name.startswith("_"))


def _subclasses(base: type[Any]) -> Iterator[type[Any]]:
    for subclass in base.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)
