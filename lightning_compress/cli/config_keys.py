"""The keys of a parser: their type hints, defaults and groups, read from its actions."""

from __future__ import annotations

import argparse
import inspect
import pydoc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jsonargparse import ArgumentParser

from lightning_compress.cli.introspection import classes_in, num_arguments

# Options of a command line that a file has no key for.
_NO_KEYS = ("help", "config")


@dataclass(frozen=True)
class Key:
    """A key of a configuration.

    Attributes:
        path: The key from the top level, as it is written in a configuration.
        hint: Its type hint.
        default_class: Class whose arguments may be given below it without a class path, or ``None``.
        required: True if it has no default.
        skip: Arguments of its class that are no keys: their names, or the number of the first ones.
    """

    path: str
    hint: Any
    default_class: type | None = None
    required: bool = False
    skip: frozenset[str | int] = frozenset()


class Keys:
    """The keys that are valid in one place of a configuration.

    Args:
        parser: Parser of the place.
        path: The place: key from the top level, empty for the top level.
        owner: Name of the class with these arguments, empty for the top level.
        prefix: Start of the names of the parser that belong to the place.
    """

    def __init__(self, parser: argparse.ArgumentParser, path: str = "", owner: str = "", prefix: str = "") -> None:
        self.parser, self.path, self.owner, self.prefix = parser, path, owner, prefix
        self._actions = {
            action.dest.removeprefix(prefix): action
            for action in parser._actions
            if action.dest.startswith(prefix) and not action.dest.endswith(_NO_KEYS)
        }

    @classmethod
    def of_class(cls, class_: type, at: Key) -> Keys | None:
        """Return the keys of the arguments of a class, or ``None`` if jsonargparse cannot read them.

        Args:
            class_: The class.
            at: Key that the class is the value of.
        """
        parser = ArgumentParser(exit_on_error=False)
        try:
            parser.add_class_arguments(class_, skip=set(at.skip), fail_untyped=False)
        except ValueError:
            return None
        return cls(parser, at.path, class_.__name__)

    @property
    def names(self) -> list[str]:
        """Names of the keys."""
        return list(dict.fromkeys(dest.partition(".")[0] for dest in self._actions))

    def path_of(self, name: str) -> str:
        """Return a key of this place from the top level."""
        return f"{self.path}.{name}" if self.path else name

    def key(self, name: str) -> Key | None:
        """Return the key of a name, or ``None`` if there is none."""
        action = self._actions.get(name)
        if action is None:
            return None
        hint = getattr(action, "_typehint", None) or action.type or Any
        # A callable is called with its arguments by whoever it is given to.
        required = action.required or action.dest in getattr(self.parser, "_extra_required_keys", ())
        skip = {*getattr(action, "sub_add_kwargs", {}).get("skip", ()), *filter(None, [num_arguments(hint)])}
        return Key(self.path_of(name), hint, _default_class(action.default, hint), required, frozenset(skip))

    def group(self, name: str) -> Keys | None:
        """Return the keys below a name, or ``None`` if it has a value of its own."""
        if not any(dest.startswith(f"{name}.") for dest in self._actions):
            return None
        # The action that loads the group from a file knows its class.
        owner = getattr(getattr(self._actions.get(name), "basetype", None), "__name__", "")
        return Keys(self.parser, self.path_of(name), owner, f"{self.prefix}{name}.")


def _default_class(default: Any, hint: Any) -> type | None:
    path = default.get("class_path") if isinstance(default, Mapping) else getattr(default, "class_path", None)
    found = pydoc.locate(path) if isinstance(path, str) else None
    if inspect.isclass(found):
        return found
    concrete = [each for each in classes_in(hint) if not inspect.isabstract(each)]
    return concrete[0] if concrete else None
