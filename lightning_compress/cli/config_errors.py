"""One sentence on the first mistake of a configuration: the key, the value and the fix.

jsonargparse describes a mistake in prose of several lines. Here the values that were given are compared with what it
reads itself: the actions of its parsers, their type hints, and the classes that a configuration names.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from lightning_compress.cli.config_classes import (
    MAX_NAMES,
    ConfigError,
    choice,
    class_names,
    requires,
    resolve,
    short,
    yaml_problem,
)
from lightning_compress.cli.config_keys import Key, Keys
from lightning_compress.cli.errors import did_you_mean
from lightning_compress.cli.given_config import flat, given_trees, merge, parsed, parsed_all
from lightning_compress.cli.introspection import accepts, classes_in, describe, item_hint, members

# Keys of a class that stand next to its arguments; dict_kwargs are free.
_SPECIFICATION = ("class_path", "init_args", "dict_kwargs", "__path__")


def explain(parser: argparse.ArgumentParser, given: Sequence[str] | Mapping[str, Any], error: Exception) -> str:
    """Return one sentence on the first mistake in arguments that a parser does not accept.

    Args:
        parser: The parser.
        given: Arguments of the command line, or a configuration.
        error: Exception of the parser. Its own words are the answer for a mistake that is found nowhere.
    """
    arguments = [] if isinstance(given, Mapping) else list(given)
    subparsers = next((a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)), None)
    if subparsers is not None and arguments and arguments[0] in subparsers:
        parser = subparsers[arguments.pop(0)]
    try:
        trees = [flat(given)] if isinstance(given, Mapping) else list(given_trees(arguments))
        _check(Keys(parser), trees)
        # A string that holds a list is one, too, where it is given for an argument of a class.
        _check(Keys(parser), [parsed_all(tree) for tree in trees])
    except ValueError as mistake:
        return str(mistake)
    return " ".join(str(error).split())


def _check(keys: Keys, trees: Sequence[Mapping[str, Any]]) -> None:
    """Raise a ``ValueError`` for the first mistake in what was given one after the other."""
    merged: dict[str, Any] = {}
    for tree in trees:
        merged = merge(merged, tree)
        _check_keys(keys, tree, merged)
    _check_required(keys, merged)


def _check_keys(keys: Keys, given: Mapping[str, Any], merged: Any) -> None:
    """Check the values of a mapping, of which ``merged`` holds all that was given so far."""
    for name, value in given.items():
        if name in _SPECIFICATION and keys.owner:
            _check_specification(keys, name, value)
            continue
        below = merged.get(name) if isinstance(merged, Mapping) else None
        group, key = keys.group(name), keys.key(name)
        if group is not None:
            _check_group(group, parsed(value), below)
        elif key is not None:
            _check_value(key, value, below)
        else:
            _unknown_key(keys, name, value)


def _check_group(group: Keys, value: Any, merged: Any) -> None:
    if isinstance(value, Mapping):
        _check_keys(group, value, merged)
    elif value is not None:
        raise ConfigError(_must_be_mapping(group.path, value, group.owner))


def _check_specification(keys: Keys, name: str, value: Any) -> None:
    if name == "class_path" and not isinstance(value, str):
        raise ConfigError(f"{keys.path_of(name)}={short(value)} must be a string, such as package.Class.")
    if name in ("init_args", "dict_kwargs") and not isinstance(value, (Mapping, type(None))):
        raise ConfigError(_must_be_mapping(keys.path_of(name), value, keys.owner))


def _check_value(key: Key, value: Any, merged: Any) -> None:
    content = parsed(value)
    if content is None and key.required:
        return  # It is missing.
    classes = classes_in(key.hint)
    each = item_hint(key.hint, Mapping)
    items = item_hint(key.hint, Sequence)
    if isinstance(content, Mapping) and classes and not (each is not None and _is_mapping_of(key, each, content)):
        _check_class(key, content, merged)
    elif isinstance(content, Mapping) and each is not None:
        for name, item in content.items():
            _check_item(Key(f"{key.path}.{name}", each, _class_below(each)), item)
    elif isinstance(content, list) and items is not None:
        for item in content:
            _check_item(Key(key.path, items, _class_below(items)), item)
    elif not accepts(key.hint, value):
        _wrong_value(key, value)


def _check_item(key: Key, value: Any) -> None:
    """Check an item of a list or a mapping, which is given as a whole."""
    _check_value(key, value, value)
    _check_required_value(key, value)


def _is_mapping_of(key: Key, hint: Any, content: Mapping[str, Any]) -> bool:
    """Return True if a value is a mapping of names to values rather than the arguments of a class."""
    if "class_path" in content or not all(isinstance(v, Mapping) or accepts(hint, v) for v in content.values()):
        return False
    arguments = Keys.of_class(key.default_class, key) if key.default_class is not None else None
    return arguments is None or not any(name in arguments.names for name in content)


def _class_below(hint: Any) -> type | None:
    return next((each for each in classes_in(hint) if not inspect.isabstract(each)), None)


def _check_class(key: Key, content: Mapping[str, Any], merged: Any) -> None:
    """Check a class path and the arguments of the class."""
    cls = _class_of(key, merged if isinstance(merged, Mapping) else content)
    keys = Keys.of_class(cls, key) if cls is not None else None
    if keys is not None and not keys.names and "class_path" not in (merged or content) and len(members(key.hint)) > 1:
        raise ConfigError(f"{key.path}={short(content)} must be {describe(key.hint)}.")
    if keys is not None:
        _check_keys(keys, content, merged)


def _class_of(key: Key, merged: Mapping[str, Any]) -> type | None:
    """Return the class of a value, or ``None`` for a function that returns an instance."""
    if "class_path" not in merged:
        if key.default_class is None:
            names = choice(key.hint)
            raise ConfigError(f"{key.path} requires class_path{names}.")
        return key.default_class
    path = merged["class_path"]
    if not isinstance(path, str):
        raise ConfigError(f"{key.path}.class_path={short(path)} must be a string, such as package.Class.")
    return resolve(key, path)


def _check_required(keys: Keys, merged: Any) -> None:
    """Check that every required key was given, from the outermost to the innermost."""
    given = {name: parsed(value) for name, value in merged.items()} if isinstance(merged, Mapping) else {}
    found = [(name, keys.key(name), keys.group(name)) for name in keys.names]
    missing = [name for name, key, _ in found if key is not None and key.required and given.get(name) is None]
    if missing:
        subject = f"{keys.path}: {keys.owner}" if keys.owner else "The configuration"
        raise ConfigError(requires(subject, missing, keys.path_of(missing[0])))
    for name, key, group in found:
        if group is not None and name in given:
            _check_required(group, given[name])
        elif key is not None and name in given:
            _check_required_value(key, given[name])


def _check_required_value(key: Key, value: Any) -> None:
    content = {"class_path": value} if isinstance(value, str) and not accepts(key.hint, value) else value
    if isinstance(content, Mapping) and classes_in(key.hint) and ("class_path" in content or key.default_class):
        each = item_hint(key.hint, Mapping)
        cls = None if each is not None and _is_mapping_of(key, each, content) else _class_of(key, content)
        keys = Keys.of_class(cls, key) if cls is not None else None
        if keys is not None:
            _check_required(keys, content)


def _unknown_key(keys: Keys, name: str, value: Any) -> NoReturn:
    hint = did_you_mean(name, keys.names)
    path = keys.path_of(name)
    # The key as it was written on the command line.
    while isinstance(value, Mapping) and len(value) == 1:
        (inner,) = value
        path, value = f"{path}.{inner}", value[inner]
    if not keys.names:
        hint = f", which has no keys: set {keys.path} to another class"
    elif not hint and len(keys.names) <= MAX_NAMES:
        hint = f": valid keys are {', '.join(keys.names)}"
    raise ConfigError(f"Unknown key {path}{f' of {keys.owner}' if keys.owner else ''}{hint}.")


def _wrong_value(key: Key, value: Any) -> None:
    """Raise an error on a value that is not accepted, unless it is the path of a class whose arguments are missing."""
    classes = classes_in(key.hint)
    names = class_names(key.hint)
    if isinstance(value, str) and (problem := yaml_problem(value)):
        raise ConfigError(f"{key.path}={short(value)} cannot be parsed as YAML: {problem}.")
    if classes and isinstance(value, str) and _may_be_class(key, value, names):
        resolve(key, value)
    elif classes and {*members(key.hint)} <= {*classes, type(None)}:
        if names == [classes[0].__name__]:
            raise ConfigError(_must_be_mapping(key.path, value, classes[0].__name__))
        raise ConfigError(
            f"{key.path}={short(value)} is not a known class"
            f"{choice(key.hint, default=': give the class path, package.Class')}."
        )
    else:
        raise ConfigError(f"{key.path}={short(value)} must be {describe(key.hint)}.")


def _may_be_class(key: Key, value: str, names: Sequence[str]) -> bool:
    """Return True for a string that looks like a class path, where numbers are allowed too only if it is similar."""
    if not all(part.isidentifier() for part in value.split(".")):
        return False
    is_number = not {int, float}.isdisjoint(members(key.hint))
    return not is_number or "." in value or bool(did_you_mean(value, names))


def _must_be_mapping(path: str, value: Any, owner: str) -> str:
    return f"{path}={short(value)} must be a mapping: give the arguments of {owner} as keys below it."
