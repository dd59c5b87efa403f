"""Checks of configuration files before they are parsed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

_OPTIONS = ("--config", "-c")


def check_config_files(arguments: Sequence[str]) -> None:
    """Check that no key occurs twice in the configuration files of a command line.

    Args:
        arguments: Arguments of the command line.

    Raises:
        ValueError: If a key occurs twice: YAML parsers keep the last one without a word.
    """
    for path in filter(Path.is_file, _config_files(arguments)):
        try:
            root = yaml.compose(path.read_text(), Loader=yaml.SafeLoader)
        except (yaml.YAMLError, UnicodeDecodeError):
            continue  # the parser reports it with its line
        if root is not None:
            _check_node(root, path, "", set())


def _config_files(arguments: Sequence[str]) -> Iterator[Path]:
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        option, _, value = argument.partition("=")
        if option in _OPTIONS:
            yield Path(value or following)


def _check_node(node: Any, path: Path, prefix: str, checked: set[int]) -> None:
    # Aliases stand for the same node, which can be reached in very many ways.
    if id(node) in checked:
        return
    checked.add(id(node))
    if isinstance(node, yaml.MappingNode):
        keys = set()
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            if str(key.value) in keys:
                line = key.start_mark.line + 1
                raise ValueError(f"{path}, line {line}: the key {name} occurs twice: remove one of them.")
            keys.add(str(key.value))
            _check_node(value, path, f"{name}.", checked)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_node(item, path, prefix, checked)
