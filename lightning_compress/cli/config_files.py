"""Checks of configuration files before they are parsed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

CONFIG_OPTIONS = ("--config", "-c")
"""Options that name a configuration file."""


def check_config_files(arguments: Sequence[str]) -> None:
    """Check that no key occurs twice in the configuration files of a command line.

    Args:
        arguments: Arguments of the command line.

    Raises:
        ValueError: If a file is no YAML with keys, or a key occurs twice: parsers keep the last one without a word.
    """
    for path in filter(Path.is_file, _config_files(arguments)):
        read_config(path)


def read_config(path: Path) -> dict[str, Any]:
    """Read a configuration file.

    Args:
        path: Path of the file.

    Raises:
        ValueError: If it is no YAML with keys, or a key occurs twice.
    """
    root, content = _load(path)
    if root is None:
        raise ValueError(f"{path} is empty: it must be a YAML file with keys such as model, data and trainer.")
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a recipe: it must be a YAML file with keys such as model, data and trainer.")
    _check_node(root, path, "", set())
    return content


def _load(path: Path) -> tuple[yaml.Node | None, Any]:
    """Return the nodes of a file, which may contain a key twice, and its content."""
    try:
        text = path.read_text()
        return yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file: it must be a YAML file.") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark is not None else ""
        hint = "; indent with spaces" if "'\\t'" in str(error) else ""
        raise ValueError(
            f"{path}{where}: The YAML cannot be parsed: {error.problem or error.context}{hint}."
        ) from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: The YAML cannot be parsed: {' '.join(str(error).split())}.") from error


def _config_files(arguments: Sequence[str]) -> Iterator[Path]:
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        option, _, value = argument.partition("=")
        if option in CONFIG_OPTIONS:
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
