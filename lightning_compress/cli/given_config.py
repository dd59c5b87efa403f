"""The values of a configuration as they were given: one tree for each file and each option of a command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_compress.cli.config_files import CONFIG_OPTIONS, read_config

Tree = dict[str, Any]


def given_trees(arguments: Sequence[str]) -> Iterator[Tree]:
    """Yield the keys of each configuration file and of each option, in their order.

    Values of options stay strings: only their type hint says whether ``3`` is a number or a name. The contents of
    ``init_args`` stand in the tree of their class, next to ``class_path``.

    Args:
        arguments: Arguments of a command line.

    Raises:
        ValueError: For an argument that is neither, an option without a value, and a file that cannot be read.

    >>> list(given_trees(["--pruning.sparsity=0.5", "--pruning.pattern", "NM"]))
    [{'pruning': {'sparsity': '0.5'}}, {'pruning': {'pattern': 'NM'}}]
    """
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        option, has_value, value = argument.partition("=")
        if (not option.startswith("--") and option not in CONFIG_OPTIONS) or option == "--":
            raise ValueError(
                f"Unexpected argument {option!r}: write options as --key=value and files as --config=FILE."
            )
        if not has_value:
            if not waiting or waiting[0].startswith("--"):
                raise ValueError(f"{option} requires a value: write {option}=VALUE.")
            value = waiting.pop(0)
        if option in CONFIG_OPTIONS:
            yield flat(_read(value))
        else:
            yield _nested(option.lstrip("-").removesuffix("+").split("."), value)


def flat(value: Any) -> Any:
    """Return a value with the contents of ``init_args`` in the mapping that contains them."""
    if isinstance(value, Mapping):
        items = {str(key): flat(each) for key, each in value.items()}
        # Anything but a mapping is a mistake, which is left to be found.
        arguments = items.pop("init_args") if isinstance(items.get("init_args"), Mapping) else {}
        return {**items, **arguments}
    return [flat(each) for each in value] if isinstance(value, (list, tuple)) else value


def merge(old: Any, given: Any) -> Any:
    """Return a value after another one was given for the same key.

    A class path keeps the arguments, and arguments keep the class path.

    >>> merge({"class_path": "NM", "n": 2}, {"m": 4})
    {'class_path': 'NM', 'n': 2, 'm': 4}
    >>> merge("NM", {"n": 2})
    {'class_path': 'NM', 'n': 2}
    """
    given = parsed(given)
    if isinstance(given, str) and isinstance(old, Mapping):
        return {**old, "class_path": given}
    if not isinstance(given, Mapping):
        return given
    start: Mapping[str, Any] = {"class_path": old} if isinstance(old, str) else old if isinstance(old, Mapping) else {}
    return {**start, **{key: merge(start.get(key), value) for key, value in given.items()}}


def parsed(value: Any) -> Any:
    """Return the mapping or list that a string holds as YAML or that is in the file it names; others as they are."""
    if not isinstance(value, str):
        return value
    if value.endswith((".yaml", ".yml")) and Path(value).is_file():
        return flat(read_config(Path(value)))
    try:
        loaded = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    return flat(loaded) if isinstance(loaded, (dict, list, type(None))) else value


def parsed_all(value: Any) -> Any:
    """Return a value with the mapping or list of each string that holds one.

    >>> parsed_all({"a": {"b": "[1]"}})
    {'a': {'b': [1]}}
    """
    content = parsed(value)
    return {key: parsed_all(each) for key, each in content.items()} if isinstance(content, Mapping) else content


def _read(path: str) -> Any:
    if not Path(path).exists():
        raise ValueError(f"config={path} does not exist.")
    if not Path(path).is_file():
        raise ValueError(f"config={path} is not a file: give a YAML file with keys such as model, data and trainer.")
    return read_config(Path(path))


def _nested(keys: Sequence[str], value: str) -> Tree:
    first, *rest = [key for key in keys if key != "init_args"] or [""]
    return {first: _nested(rest, value) if rest else value}
