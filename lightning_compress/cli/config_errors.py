"""One sentence out of the many lines in which jsonargparse says what is wrong: the key, the value, what to do."""

from __future__ import annotations

import argparse
import inspect
import pydoc
import re
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any

from lightning_compress.cli.errors import nearest


class ConfigError:
    """A complaint of jsonargparse, read from the outermost key inwards up to what is wrong.

    Args:
        message: As jsonargparse has it.
        parser: The parser that complains, which knows the keys on the outside.
    """

    def __init__(self, message: str, parser: argparse.ArgumentParser) -> None:
        self.message = message
        self.parser = parser
        self.path: list[str] = []
        self.owner = ""  # class whose arguments are being read
        self.choices = ""  # of the innermost union

    def sentence(self) -> str:
        """The complaint in one sentence."""
        for number, line in enumerate(self.message.splitlines()):
            self._descend(line)
            for pattern, explain in _EXPLANATIONS:
                if found := re.search(pattern, line):
                    return explain(self, number, *found.groups())
        return " ".join(self.message.split())

    def key(self, name: str = "") -> str:
        """A key as it is written, from the top."""
        parts = ".".join([*self.path, name]).split(".")
        return ".".join(part for part in parts if part not in ("", "init_args"))

    def value(self, number: int) -> str:
        """The value that the complaint found on line ``number`` is about."""
        for line in self.message.splitlines()[number:]:
            if found := re.search(r"(?:Given|Got) value: (.*?)(?:\. Got value: .*)?$", line):
                return found.group(1)
        return "what is given"

    def keys(self, name: str = "") -> list[str]:
        """Keys that may stand where ``name`` does."""
        if not self.owner:
            return sorted(_destinations(self.parser))
        owner = pydoc.locate(self.owner)
        for part in name.split(".")[:-1]:
            owner = next(iter(_classes(_hints(owner).get(part))), None)
        return [key for key in _hints(owner) if key != "return"]

    def names(self) -> list[str]:
        """Names of classes that may stand at the current key."""
        if self.owner and self.path:
            bases = _classes(_hints(pydoc.locate(self.owner)).get(self.path[-1]))
        else:
            bases = [base for base in map(pydoc.locate, _CLASS.findall(self.choices)) if inspect.isclass(base)]
        return sorted({name for base in bases for name in _concrete(base)})

    def _descend(self, line: str) -> None:
        if inner := re.findall(r'Parser key "([^"]+)"', line):
            self.path += inner
            self.choices = ""
        if found := re.search(r"Problem with given class_path '([^']+)'", line):
            self.owner = found.group(1)
        if found := re.search(r"Subtypes: \[(.*)\]", line):
            self.choices = found.group(1)


def _unknown_key(complaint: ConfigError, number: int, name: str) -> str:
    name = name.removeprefix("--").partition("=")[0].removeprefix("init_args.")
    keys = complaint.keys(name)
    if "." in name and not complaint.owner:
        hint = nearest(name, keys) or nearest(name.partition(".")[0], keys)
    else:
        hint = nearest(name.rpartition(".")[2], keys)
    if not hint and complaint.owner:
        hint = f": it takes {', '.join(keys)}"
    owner = f" of {complaint.owner.rpartition('.')[2]}" if complaint.owner and "." not in name else ""
    return f"{complaint.key(name)} is no key{owner}{hint}."


def _stray(complaint: ConfigError, number: int, name: str) -> str:
    if name.startswith("-"):
        return _unknown_key(complaint, number, name)
    return f"{name!r} is not understood: options are written --key=value, files --config=FILE."


def _missing(complaint: ConfigError, number: int, names: str) -> str:
    where = complaint.key()
    owner = complaint.owner.rpartition(".")[2]
    subject = f"{where}: {owner}" if where and owner else where or "The configuration"
    return f"{subject} lacks {names}: write --{complaint.key(names.split(', ')[0])}=..., or the key in the recipe."


def _required(complaint: ConfigError, number: int, name: str) -> str:
    complaint.path.pop()
    return _missing(complaint, number, name)


def _no_class(complaint: ConfigError, number: int, name: str) -> str:
    names = complaint.names()
    short = name.rpartition(".")[2]
    choice = f": choose one of {', '.join(names)}" if 0 < len(names) <= 20 else ": give the class path, package.Class"
    return f"{complaint.key()}={name} is no class that fits{nearest(short, names)}{choice}."


def _no_attribute(complaint: ConfigError, number: int, module: str, name: str) -> str:
    hint = nearest(name, dir(pydoc.locate(module)))
    return f"{complaint.key()}={module}.{name} does not exist{hint}."


def _no_module(complaint: ConfigError, number: int, module: str) -> str:
    return f"{complaint.key()} names the module {module!r}, which cannot be imported: install it or correct the name."


def _no_subclass(complaint: ConfigError, number: int, name: str, base: str) -> str:
    names = complaint.names()
    choice = f": choose one of {', '.join(names)}" if 0 < len(names) <= 20 else ""
    return f"{complaint.key()}={name} is no {base}{choice}."


def _not_arguments(complaint: ConfigError, number: int, name: str) -> str:
    return f"{complaint.key()}={complaint.value(number)} is not understood: give {name}'s arguments as keys below it."


def _wrong_choice(complaint: ConfigError, number: int, choices: str) -> str:
    return f"{complaint.key()}={complaint.value(number)} is unknown: choose one of {choices}."


def _wrong_type(complaint: ConfigError, number: int, name: str) -> str:
    accepted = re.findall(r"<class '(?:\w+\.)*(\w+)'>|([\w.]+\[[^\]]*\])", complaint.choices or f"<class '{name}'>")
    words = [_WORDS.get(kind or generic, kind or generic) for kind, generic in accepted]
    return f"{complaint.key()}={complaint.value(number)} must be {' or '.join(dict.fromkeys(words))}."


def _no_file(complaint: ConfigError, number: int, path: str) -> str:
    return f"{complaint.key() or 'config'}={path} does not exist."


def _broken_yaml(complaint: ConfigError, number: int, problem: str) -> str:
    text = " ".join(complaint.message.split())
    place = re.search(r"line (\d+)", text)
    return f"The YAML cannot be read{f', at line {place.group(1)}' if place else ''}: {problem}."


_CLASS = re.compile(r"<class '([\w.]+)'>")

_WORDS = {
    "int": "an integer",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "NoneType": "null",
    "dict": "a mapping",
    "list": "a list",
}

_EXPLANATIONS: list[tuple[str, Callable[..., str]]] = [
    (r"Option '(.+?)' is not accepted", _unknown_key),
    (r"does not accept option '(.+?)'", _unknown_key),
    (r"[Uu]nrecognized arguments: (\S+)", _stray),
    (r"arguments are required: (.+)", _missing),
    (r'Key "(.+?)" is required', _required),
    (r"Expected a dot import path string: (\S+)", _no_class),
    (r"module '(.+?)' has no attribute '(.+?)'", _no_attribute),
    (r"No module named '(.+?)'", _no_module),
    (r"Import path (\S+) does not correspond to a subclass of (\w+)", _no_subclass),
    (r"Not a valid subclass of (\w+)", _not_arguments),
    (r"Expected a (?:typing\.)?Literal\[(.+?)\]", _wrong_choice),
    (r"Expected (?:a )?<class '(?:\w+\.)*(\w+)'>", _wrong_type),
    (r"Expected (?:a )?((?:\w+\.)*\w+\[.*\])", _wrong_type),
    (r"File does not exist: '?([^']+)'?", _no_file),
    (r"Problems parsing config: (.+)", _broken_yaml),
]


def _destinations(parser: argparse.ArgumentParser) -> Iterable[str]:
    """Keys of a parser and of its subcommands, with the groups they are in."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _destinations(inner)
        elif not action.dest.endswith("help"):
            yield action.dest
            yield action.dest.partition(".")[0]


def _hints(owner: Any) -> dict[str, Any]:
    if not inspect.isclass(owner):
        return {}
    try:
        annotated = typing.get_type_hints(owner.__init__)
    except (NameError, TypeError):
        annotated = {}
    return {name: annotated.get(name) for name in inspect.signature(owner).parameters}


def _classes(hint: Any) -> list[type]:
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) else (hint,)
    return [part for part in parts if inspect.isclass(part) and part is not type(None)]


def _concrete(base: type[Any]) -> Iterable[str]:
    """Names of the public classes below ``base`` that can be built."""
    if not inspect.isabstract(base) and not base.__subclasses__() and not base.__name__.startswith("_"):
        yield base.__name__
    for below in base.__subclasses__():
        yield from _concrete(below)
