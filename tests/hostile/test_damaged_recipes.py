"""Damaged recipes are parsed as they are written, or refused with exit code 2, in bounded time and memory.

The default suite reads a few. All of them, with the counts printed::

    python -m pytest tests/hostile -m slow -s -n 0
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_compress.cli.compression import CompressionCLI
from tests.cli.conftest import RECIPE
from tests.hostile.damage import Outcomes, edited, flipped, spliced

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")


def edited_recipe(data: bytes, rng: random.Random) -> bytes:
    return yaml.safe_dump(edited(yaml.safe_load(data), rng), sort_keys=False).encode()


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Scalars of nested mappings, by the keys that lead to them."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, *str(key).split(".")))
    else:
        yield path, value


def is_in(config: Any, path: tuple[str, ...], value: Any) -> bool:
    """True if a configuration holds a value of a recipe under its key."""
    for key in path:
        if isinstance(config, dict) and key not in config and "init_args" in config:
            config = config["init_args"]
        if not isinstance(config, dict) or key not in config:
            return False
        config = config[key]
    if path[-1] == "class_path" or (isinstance(config, dict) and "class_path" in config):
        name = config if isinstance(config, str) else config["class_path"]
        return str(value).rpartition(".")[2] == name.rpartition(".")[2]
    return as_number(config) == as_number(value) or str(config) == str(value)


class ConfigError(Exception):
    """Exit code 2."""


def as_number(value: Any) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


@pytest.mark.parametrize("damage", [flipped, spliced, edited_recipe])
@pytest.mark.parametrize("number", [20, pytest.param(334, marks=pytest.mark.slow)])
def test_recipes(
    damage: Callable[[bytes, random.Random], bytes],
    number: int,
    workdir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, outcomes = workdir / "recipe.yaml", Outcomes()
    path.write_text(RECIPE)
    cli = CompressionCLI(args=[f"--config={path}"], run=False)

    def parse() -> bool:
        try:
            with cli.exit_on_config_error():
                cli.parse_arguments(cli.parser, [f"--config={path}"])
        except SystemExit as error:
            if error.code != 2:
                raise
            raise ConfigError from error
        config = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))
        return all(is_in(config, keys, value) for keys, value in leaves(yaml.safe_load(path.read_text())))

    assert parse()
    for seed in range(number):
        path.write_bytes(damage(RECIPE.encode(), random.Random(seed)))
        refused = outcomes.refused
        capsys.readouterr()
        outcomes.read(seed, parse, ConfigError)
        printed = capsys.readouterr().err
        assert outcomes.refused == refused or printed.count("lightning-compress: ") == 1, (seed, printed)
    with capsys.disabled():
        print(f"\nrecipes, {damage.__name__}: {outcomes}")
