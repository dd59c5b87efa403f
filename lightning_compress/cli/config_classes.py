"""Classes that a configuration names by their class path."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from typing import Any

import yaml

from lightning_compress.cli.config_keys import Key
from lightning_compress.cli.errors import did_you_mean
from lightning_compress.cli.introspection import classes_in, concrete_names, subclasses

MAX_NAMES = 20
"""Number of names up to which a message lists them."""

_MAX_LENGTH = 80


class ConfigError(ValueError):
    """A mistake in a configuration, described in one sentence."""


def resolve(key: Key, path: str) -> type | None:
    """Return the class that a class path names, or ``None`` for a function.

    Raises:
        ConfigError: If there is none, or if it is of another kind.
    """
    bases = classes_in(key.hint)
    if "." not in path:
        by_name = {each.__name__: each for base in bases for each in (*subclasses(base), base)}
        if path not in by_name:
            raise ConfigError(
                f"{key.path}={short(path)} is not a known class{did_you_mean(path, class_names(key.hint))}"
                f"{choice(key.hint, default=': give the class path, package.Class')}."
            )
        return by_name[path]
    found = _imported(key, path)
    if not inspect.isclass(found):
        return None
    if bases and not issubclass(found, tuple(bases)):
        kind = " or ".join(base.__name__ for base in bases)
        raise ConfigError(f"{key.path}={path} is not a subclass of {kind}{choice(key.hint)}.")
    return found


def yaml_problem(text: str) -> str:
    """Return the reason why a text is no YAML, or an empty string."""
    try:
        yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        return str(error.problem or error.context)
    return ""


def _imported(key: Key, path: str) -> Any:
    module, _, name = path.rpartition(".")
    owner: Any
    try:
        owner = importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A class inside a class has a module two levels up.
        outer, _, inner = module.rpartition(".")
        owner = getattr(importlib.import_module(outer), inner, None) if outer and error.name == module else None
        if owner is None:
            raise ConfigError(
                f"{key.path}: module {error.name!r} cannot be imported: install it or correct its name."
            ) from error
    if not hasattr(owner, name):
        raise ConfigError(f"{key.path}={path} does not exist{did_you_mean(name, dir(owner))}.")
    return getattr(owner, name)


def class_names(hint: Any) -> list[str]:
    """Return the names of the known classes that a type hint allows."""
    return sorted({name for base in classes_in(hint) for name in concrete_names(base)})


def choice(hint: Any, *, default: str = "") -> str:
    """Return the classes to choose from, to append to a message, or the default for none or too many."""
    names = class_names(hint)
    return f": choose one of {', '.join(names)}" if 0 < len(names) <= MAX_NAMES else default


def requires(subject: str, missing: Sequence[str], path: str) -> str:
    """Return the sentence on missing keys.

    Args:
        subject: What lacks them.
        missing: Their names.
        path: The first of them from the top level.
    """
    return f"{subject} requires {', '.join(missing)}: set --{path}=..., or the key in the recipe."


def short(value: Any) -> str:
    """Return a value as it is shown in a message."""
    text = str(value)
    return text if len(text) <= _MAX_LENGTH else f"{text[: _MAX_LENGTH - 3]}..."
