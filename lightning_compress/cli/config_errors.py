"""One-line summaries of jsonargparse's error messages: the key, the value and the fix."""

from __future__ import annotations

import argparse
import inspect
import pydoc
import re
from collections.abc import Callable

from lightning_compress.cli.errors import did_you_mean
from lightning_compress.cli.introspection import argument_hints, classes_in, concrete_names, parser_keys


class ConfigErrorMessage:
    """Multi-line error message of jsonargparse, parsed from the outermost key to the innermost.

    Args:
        message: Message of jsonargparse.
        parser: Parser that raised the error, which knows the top-level keys.
    """

    def __init__(self, message: str, parser: argparse.ArgumentParser) -> None:
        self.message = message
        self.parser = parser
        self.path: list[str] = []
        self.owner = ""  # class path of the class with the invalid argument
        self.choices = ""  # members of the innermost union type

    def summary(self) -> str:
        """Return the message in one line."""
        for number, line in enumerate(self.message.splitlines()):
            self._descend(line)
            for pattern, explain in _EXPLANATIONS:
                if found := re.search(pattern, line):
                    return explain(self, number, *found.groups())
        return " ".join(self.message.split())

    def key(self, name: str = "") -> str:
        """Return a key as it is written in a configuration, from the top level."""
        parts = ".".join([*self.path, name]).split(".")
        # A file has no key for the subcommand.
        parts = parts[1:] if parts[0] in _SUBCOMMANDS and len(parts) > 1 else parts
        return ".".join(part for part in parts if part not in ("", "init_args"))

    def value(self, number: int) -> str:
        """Return the value that the error on line ``number`` is about."""
        for line in self.message.splitlines()[number:]:
            if found := re.search(r"(?:Given|Got) value: (.*?)(?:\. Got value: .*)?$", line):
                return found.group(1)
        return "the given value"

    def valid_keys(self, name: str = "") -> list[str]:
        """Return the keys that are valid in the place of ``name``."""
        if not self.owner:
            return sorted(parser_keys(self.parser))
        owner = pydoc.locate(self.owner)
        for part in name.split(".")[:-1]:
            owner = next(iter(classes_in(argument_hints(owner).get(part))), None)
        return [key for key in argument_hints(owner) if key != "return"]

    def valid_classes(self) -> list[str]:
        """Return the names of the classes that are valid at the current key."""
        if self.owner and self.path:
            bases = classes_in(argument_hints(pydoc.locate(self.owner)).get(self.path[-1]))
        else:
            bases = [base for base in map(pydoc.locate, _CLASS.findall(self.choices)) if inspect.isclass(base)]
        return sorted({name for base in bases for name in concrete_names(base)})

    def _descend(self, line: str) -> None:
        if inner := re.findall(r'Parser key "([^"]+)"', line):
            self.path += inner
            self.choices = ""
        if found := re.search(r"Problem with given class_path '([^']+)'", line):
            self.owner = found.group(1)
        if found := re.search(r"Subtypes: \[(.*)\]", line):
            self.choices = found.group(1)


def _unknown_key(error: ConfigErrorMessage, number: int, name: str) -> str:
    name = name.removeprefix("--").partition("=")[0].removeprefix("init_args.")
    keys = error.valid_keys(name)
    if "." in name and not error.owner:
        hint = did_you_mean(name, keys) or did_you_mean(name.partition(".")[0], keys)
    else:
        hint = did_you_mean(name.rpartition(".")[2], keys)
    if not hint and error.owner:
        hint = f": valid keys are {', '.join(keys)}"
    owner = f" of {error.owner.rpartition('.')[2]}" if error.owner and "." not in name else ""
    return f"Unknown key {error.key(name)}{owner}{hint}."


def _stray_argument(error: ConfigErrorMessage, number: int, name: str) -> str:
    if name.startswith("-"):
        return _unknown_key(error, number, name)
    return f"Unexpected argument {name!r}: write options as --key=value and files as --config=FILE."


def _missing_arguments(error: ConfigErrorMessage, number: int, names: str) -> str:
    names = re.sub(rf"\b(?:{'|'.join(_SUBCOMMANDS)})\.", "", names)
    where = error.key()
    owner = error.owner.rpartition(".")[2]
    subject = f"{where}: {owner}" if where and owner else where or "The configuration"
    return f"{subject} requires {names}: set --{error.key(names.split(', ')[0])}=..., or the key in the recipe."


def _missing_key(error: ConfigErrorMessage, number: int, name: str) -> str:
    error.path.pop()
    return _missing_arguments(error, number, name)


def _unknown_class(error: ConfigErrorMessage, number: int, name: str) -> str:
    names = error.valid_classes()
    short = name.rpartition(".")[2]
    choice = f": choose one of {', '.join(names)}" if 0 < len(names) <= 20 else ": give the class path, package.Class"
    return f"{error.key()}={name} is not a known class{did_you_mean(short, names)}{choice}."


def _unknown_attribute(error: ConfigErrorMessage, number: int, module: str, name: str) -> str:
    hint = did_you_mean(name, dir(pydoc.locate(module)))
    return f"{error.key()}={module}.{name} does not exist{hint}."


def _missing_module(error: ConfigErrorMessage, number: int, module: str) -> str:
    return f"{error.key()}: module {module!r} cannot be imported: install it or correct its name."


def _wrong_base_class(error: ConfigErrorMessage, number: int, name: str, base: str) -> str:
    names = error.valid_classes()
    choice = f": choose one of {', '.join(names)}" if 0 < len(names) <= 20 else ""
    return f"{error.key()}={name} is not a subclass of {base}{choice}."


def _not_a_mapping(error: ConfigErrorMessage, number: int, name: str) -> str:
    return f"{error.key()}={error.value(number)} must be a mapping: give the arguments of {name} as keys below it."


def _wrong_choice(error: ConfigErrorMessage, number: int, choices: str) -> str:
    return f"{error.key()}={error.value(number)} must be one of {choices}."


def _wrong_type(error: ConfigErrorMessage, number: int, name: str) -> str:
    accepted = re.findall(r"<class '(?:\w+\.)*(\w+)'>|([\w.]+\[[^\]]*\])", error.choices or f"<class '{name}'>")
    types = [_TYPE_NAMES.get(plain or generic, plain or generic) for plain, generic in accepted]
    return f"{error.key()}={error.value(number)} must be {' or '.join(dict.fromkeys(types))}."


def _missing_file(error: ConfigErrorMessage, number: int, path: str) -> str:
    return f"{error.key() or 'config'}={path} does not exist."


def _invalid_yaml(error: ConfigErrorMessage, number: int, problem: str) -> str:
    text = " ".join(error.message.split())
    position = re.search(r"line (\d+)", text)
    return f"The YAML cannot be parsed{f', line {position.group(1)}' if position else ''}: {problem}."


_SUBCOMMANDS = ("fit", "validate", "test", "predict")

_CLASS = re.compile(r"<class '([\w.]+)'>")

_TYPE_NAMES = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "NoneType": "null",
    "dict": "a mapping",
    "list": "a list",
}

# The order matters: the first pattern that matches the first matching line is the most specific explanation.
_EXPLANATIONS: list[tuple[str, Callable[..., str]]] = [
    (r"Option '(.+?)' is not accepted", _unknown_key),
    (r"does not accept option '(.+?)'", _unknown_key),
    (r"[Uu]nrecognized arguments: (\S+)", _stray_argument),
    (r"arguments are required: (.+)", _missing_arguments),
    (r'Key "(.+?)" is required', _missing_key),
    (r"Expected a dot import path string: (\S+)", _unknown_class),
    (r"module '(.+?)' has no attribute '(.+?)'", _unknown_attribute),
    (r"No module named '(.+?)'", _missing_module),
    (r"Import path (\S+) does not correspond to a subclass of (\w+)", _wrong_base_class),
    (r"Not a valid subclass of (\w+)", _not_a_mapping),
    (r"Expected a (?:typing\.)?Literal\[(.+?)\]", _wrong_choice),
    (r"Expected (?:a )?<class '(?:\w+\.)*(\w+)'>", _wrong_type),
    (r"Expected (?:a )?((?:\w+\.)*\w+\[.*\])", _wrong_type),
    (r"File does not exist: '?([^']+)'?", _missing_file),
    (r"Problems parsing config: (.+)", _invalid_yaml),
]
